//! Whether an owner is there: asked of the API server, since watches of two kinds keep no order between them.

use client::{Client, Kind};
use parking_lot::Mutex;
use wire::apiserver as pb;

use super::Owner;

/// Why nothing could be done.
#[derive(Debug)]
pub(super) enum Unsettled {
    /// The server's answer.
    Refused(client::Error),
    /// Nobody knows where to look for an owner: its kind may be served later, so it counts as there.
    UnknownKind,
}

impl From<client::Error> for Unsettled {
    fn from(error: client::Error) -> Self {
        Self::Refused(error)
    }
}

#[derive(Debug)]
struct Place {
    kind_name: String,
    kind: Kind,
    namespaced: bool,
}

/// Where objects of each kind are found.
#[derive(Debug, Default)]
pub(super) struct Kinds(Mutex<Vec<Place>>);

impl Kinds {
    pub(super) fn set(&self, kinds: &[pb::ResourceKind]) {
        let place = |k: &pb::ResourceKind| {
            let r = k.resource.clone()?;
            let kind = Kind { group: r.group, version: r.version, resource: r.resource };
            Some(Place { kind_name: k.kind.clone(), kind, namespaced: k.namespaced })
        };
        *self.0.lock() = kinds.iter().filter_map(place).collect();
    }

    /// The kind of an owner in any version, and whether it has namespaces.
    fn find(&self, owner: &Owner) -> Option<(Kind, bool)> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let places = self.0.lock();
        let found = places.iter().find(|p| p.kind.group == group && p.kind_name == owner.kind)?;
        Some((found.kind.clone(), found.namespaced))
    }

    /// Whether the owner of an object in `namespace` is there.
    pub(super) async fn is_there(
        &self,
        client: &Client,
        owner: &Owner,
        namespace: &str,
    ) -> Result<bool, Unsettled> {
        let (kind, namespaced) = self.find(owner).ok_or(Unsettled::UnknownKind)?;
        if namespaced && namespace.is_empty() {
            // What belongs to the cluster cannot be owned from within a namespace: nobody can say by whom, so it stays.
            return Ok(true);
        }
        let namespace = if namespaced { namespace } else { "" };
        match client.get_raw(&kind, namespace, &owner.name).await {
            Ok(found) => Ok(found.uid == owner.uid),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
