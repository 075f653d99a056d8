//! The built-in admission plugins, in upstream's order: they may change an object, then refuse it.
//!
//! Webhooks and policy expressions belong between the two, at the ends of [`mutate`] and [`validate`].

use api::catalog::Resource;
use api::error::ApiError;
use api::object::Value;

use crate::registry::Api;
use crate::request::{Action, Request};

mod certificates;
mod classes;
mod limits;
mod namespace_lifecycle;
pub(crate) mod node_restriction;
mod pod_security;
mod pods;
pub(crate) mod quota;
mod rbac;
mod service_account;

/// A write under review.
pub(crate) struct Review<'a> {
    pub(crate) api: &'a Api,
    pub(crate) request: &'a Request,
    pub(crate) resource: &'a Resource,
    /// The object as it would be stored; for a deletion, as it is.
    pub(crate) object: &'a mut Value,
    pub(crate) old: Option<&'a Value>,
    pub(crate) warnings: &'a mut Vec<String>,
}

impl Review<'_> {
    /// Whether a new object of this resource is reviewed (not one of its subresources).
    fn creates(&self, group: &str, plural: &str) -> bool {
        self.old.is_none() && self.is(group, plural)
    }

    /// Whether an object of this resource is reviewed (not one of its subresources).
    fn is(&self, group: &str, plural: &str) -> bool {
        self.request.subresource.is_empty()
            && self.resource.group == group
            && self.resource.plural == plural
    }

    fn deletes(&self) -> bool {
        matches!(self.request.action, Action::Delete(_) | Action::DeleteCollection { .. })
    }

    /// 403 in the words of admission.
    fn forbidden(&self, message: impl Into<String>) -> ApiError {
        let name = match api::meta::name(self.object) {
            "" => api::meta::generate_name(self.object),
            name => name,
        };
        ApiError::Forbidden {
            resource: self.resource.resource_name(),
            name: name.to_owned(),
            message: message.into(),
            causes: Vec::new(),
        }
    }
}

/// Runs the plugins that may change the object.
///
/// # Errors
/// The refusal of the first plugin that refuses.
pub(crate) async fn mutate(review: &mut Review<'_>) -> Result<(), ApiError> {
    namespace_lifecycle::admit(review).await?;
    node_restriction::admit(review)?;
    limits::mutate(review);
    service_account::mutate(review).await?;
    pods::taint_new_nodes(review);
    pods::priority(review)?;
    pods::default_tolerations(review);
    classes::defaults(review);
    classes::protect(review);
    classes::runtime(review)
}

/// Runs the plugins that only refuse.
///
/// # Errors
/// The refusal of the first plugin that refuses.
pub(crate) async fn validate(review: &mut Review<'_>) -> Result<(), ApiError> {
    if review.deletes() {
        namespace_lifecycle::admit_deletion(review)?;
        return node_restriction::admit(review);
    }
    limits::validate(review)?;
    pod_security::validate(review)?;
    pods::one_default_priority(review)?;
    classes::validate_resize(review)?;
    pods::validate_resize(review)?;
    classes::validate_runtime(review)?;
    certificates::validate(review)?;
    rbac::validate(review)
}
