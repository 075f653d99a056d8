//! Whether a user may do something: the Node authorizer for what belongs to a node's own pods, then RBAC.

use std::sync::Arc;

use api::error::{ApiError, ResourceName};
use api::object::Value;
use arc_swap::ArcSwap;
use auth::User;

use super::rbac::{Attributes, Objects, Policy};
use crate::storage::cache::Cache;

const SHELVES: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

/// Decides from the cache's roles and bindings.
#[derive(Debug)]
pub(crate) struct Authorizer {
    cache: Arc<Cache>,
    policy: ArcSwap<Indexed>,
}

#[derive(Debug, Default)]
struct Indexed {
    /// The shelves' revisions at which the policy was made.
    at: [i64; 4],
    policy: Policy,
}

impl Authorizer {
    /// An authorizer over `cache`.
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        Self { cache, policy: ArcSwap::default() }
    }

    /// Runs `with` on the policy as it stands now.
    pub(crate) fn with_policy<T>(&self, with: impl FnOnce(&Policy) -> T) -> T {
        let at = SHELVES.map(|name| self.cache.shelf(name).changed());
        let indexed = self.policy.load();
        if indexed.at == at {
            return with(&indexed.policy);
        }
        let read = |name| -> Vec<Value> {
            let shelf = self.cache.shelf(name);
            shelf.list("", "").into_iter().map(|(_, entry)| entry.parse()).collect()
        };
        let [cluster_roles, roles, cluster_role_bindings, role_bindings] = SHELVES.map(read);
        let objects = Objects { cluster_roles, roles, cluster_role_bindings, role_bindings };
        let indexed = Arc::new(Indexed { at, policy: Policy::new(&objects) });
        self.policy.store(indexed.clone());
        with(&indexed.policy)
    }

    /// Whether `user` may do what is asked.
    pub(crate) fn allows(&self, user: &User, ask: &Attributes<'_>) -> bool {
        user.in_group(auth::identity::MASTERS)
            || user.node().is_some_and(|node| self.node_allows(node, ask))
            || self.with_policy(|policy| policy.allows(user, ask))
    }

    /// Whether `user` may do what is asked, and what RBAC says of it.
    pub(crate) fn explain(&self, user: &User, ask: &Attributes<'_>) -> (bool, Option<String>) {
        if user.in_group(auth::identity::MASTERS)
            || user.node().is_some_and(|node| self.node_allows(node, ask))
        {
            return (true, None);
        }
        let source = self.with_policy(|policy| policy.source(user, ask));
        (source.is_some(), source.map(|source| format!("RBAC: allowed by {source}")))
    }

    /// The same as a result.
    ///
    /// # Errors
    /// 403 in Kubernetes' words.
    pub(crate) fn check(&self, user: &User, ask: &Attributes<'_>) -> Result<(), ApiError> {
        if self.allows(user, ask) { Ok(()) } else { Err(forbidden(user, ask)) }
    }

    /// What a node may do: what its pods' needs say, else what its role says.
    fn node_allows(&self, node: &str, ask: &Attributes<'_>) -> bool {
        if let Some(decided) = super::node::decide(&self.cache, node, ask) {
            return decided;
        }
        self.with_policy(|policy| {
            let rules = policy.role("", "system:node").unwrap_or_default();
            rules.iter().any(|rule| rule.allows(ask))
        })
    }
}

/// The refusal, as Kubernetes words it.
pub(crate) fn forbidden(user: &User, ask: &Attributes<'_>) -> ApiError {
    if ask.resource.is_empty() {
        return ApiError::ForbiddenPath(format!(
            "User {:?} cannot {} path {:?}",
            user.name, ask.verb, ask.path
        ));
    }
    let slash = if ask.subresource.is_empty() { "" } else { "/" };
    let place = if ask.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", ask.namespace)
    };
    ApiError::Forbidden {
        resource: ResourceName::new(ask.group, ask.resource),
        name: ask.name.to_owned(),
        message: format!(
            "User {:?} cannot {} resource \"{}{slash}{}\" in API group {:?} {place}",
            user.name, ask.verb, ask.resource, ask.subresource, ask.group
        ),
        causes: Vec::new(),
    }
}
