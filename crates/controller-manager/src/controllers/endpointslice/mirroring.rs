//! EndpointSlices for Endpoints that somebody wrote for a Service without selector: who reads only slices finds them too.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::act::controlled_by;
use client::{Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};

use super::{MANAGED_BY, SERVICE_NAME, Wanted, service_of, settle, slices_of};
use crate::controllers::endpoints::family_of;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints with this annotation are a lock of leaders.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Addresses of a subset that are mirrored.
const ADDRESSES_MAX: usize = 1000;

/// Endpoints to mirror, if they are, and the slices there are of them.
#[derive(Debug)]
pub struct Seen {
    pub(super) endpoints: Option<Arc<Endpoints>>,
    pub(super) slices: Vec<Arc<EndpointSlice>>,
}

/// Mirrors Endpoints.
#[derive(Debug)]
pub struct EndpointsMirror;

impl Controller for EndpointsMirror {
    const NAME: &'static str = "endpointslice-mirroring";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[
        Wake::own("Endpoints"),
        Wake::keys("Service", |_, changed| vec![changed.key.clone()]),
        Wake::keys("EndpointSlice", service_of),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let service = cache.at::<Service>(key);
        let selects = |service: &Service| {
            service.spec.as_ref().and_then(|s| s.selector.as_ref()).is_some_and(|s| !s.is_empty())
        };
        let mirrored = service.is_some_and(|service| !selects(&service));
        let endpoints = cache.at::<Endpoints>(key).filter(|e| mirrored && is_mirrored(e));
        Some(Seen { endpoints, slices: slices_of(cache, key, MANAGER) })
    }

    fn reconcile(seen: &Seen, _: Timestamp) -> Plan {
        let Some(endpoints) = &seen.endpoints else {
            return settle(&seen.slices, Vec::new(), &EndpointSlice::default());
        };
        let subsets = endpoints.subsets.as_deref().unwrap_or_default();
        let mut groups: BTreeMap<(&str, String), Wanted> = BTreeMap::new();
        for subset in subsets {
            let ports: Vec<EndpointPort> = subset.ports.iter().flatten().map(port).collect();
            for endpoint in addresses(subset) {
                let family = family_of(&endpoint.addresses[0]);
                let group =
                    groups.entry((family, format!("{ports:?}"))).or_insert_with(|| Wanted {
                        family: family.to_owned(),
                        ports: ports.clone(),
                        endpoints: Vec::new(),
                    });
                group.endpoints.push(endpoint);
            }
        }
        settle(&seen.slices, groups.into_values().collect(), &form(endpoints))
    }
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let meta = &endpoints.metadata;
    let skipped = meta.labels.as_ref().and_then(|l| l.get(SKIP)).is_some_and(|s| s == "true");
    let lock = meta.annotations.as_ref().is_some_and(|a| a.contains_key(LEADER));
    !skipped && !lock && meta.deletion_timestamp.is_none()
}

fn addresses(subset: &EndpointSubset) -> impl Iterator<Item = Endpoint> {
    let ready = subset.addresses.iter().flatten().map(|address| endpoint(address, true));
    let unready = subset.not_ready_addresses.iter().flatten();
    ready.chain(unready.map(|address| endpoint(address, false))).take(ADDRESSES_MAX)
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn port(port: &k8s_openapi::api::core::v1::EndpointPort) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
        port: Some(port.port),
        app_protocol: port.app_protocol.clone(),
    }
}

/// What all slices of Endpoints have in common.
fn form(endpoints: &Endpoints) -> EndpointSlice {
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.remove(TRIGGER_TIME);
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    let mut form = EndpointSlice::default();
    form.metadata.generate_name = Some(format!("{name}-"));
    form.metadata.namespace.clone_from(&endpoints.metadata.namespace);
    form.metadata.labels = Some(labels);
    form.metadata.annotations = Some(annotations).filter(|a| !a.is_empty());
    form.metadata.owner_references = Some(vec![controlled_by(endpoints)]);
    form
}
