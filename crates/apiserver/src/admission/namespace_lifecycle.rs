//! NamespaceLifecycle: nothing new in a namespace that is not there or on its way out; some may not be deleted.

use api::error::ApiError;

use super::Review;

/// Namespaces that no cluster can do without.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Checks the namespace of a new object.
pub(super) async fn admit(review: &mut Review<'_>) -> Result<(), ApiError> {
    if !review.resource.namespaced || review.old.is_some() {
        return Ok(());
    }
    let api = review.api;
    let namespaces = api.resource("", "v1", "namespaces");
    let name = &review.request.namespace;
    let shelf = api.shelf(&namespaces);
    let found = match shelf.get(name) {
        Some(entry) => Some(entry),
        // Perhaps it is newer than the cache.
        None => api.stored(&namespaces, "", name).await?,
    };
    let Some(entry) = found else {
        return Err(ApiError::NotFound {
            resource: namespaces.resource_name(),
            name: name.clone(),
        });
    };
    let terminating = entry.bytes.windows(11).any(|w| w == b"Terminating")
        && entry.tree().str_at(&["status", "phase"]) == Some("Terminating");
    if terminating {
        let resource = review.resource;
        let object = match api::meta::name(review.object) {
            "" => api::meta::generate_name(review.object),
            name => name,
        };
        return Err(ApiError::Forbidden {
            resource: resource.resource_name(),
            name: object.to_owned(),
            message: format!(
                "unable to create new content in namespace {name} because it is being terminated"
            ),
            causes: vec![(
                "NamespaceTerminating".into(),
                format!("namespace {name} is being terminated"),
                "metadata.namespace".into(),
            )],
        });
    }
    Ok(())
}

/// Checks the deletion of a namespace.
pub(super) fn admit_deletion(review: &Review<'_>) -> Result<(), ApiError> {
    let name = api::meta::name(review.object);
    let namespace = review.resource.group.is_empty() && review.resource.plural == "namespaces";
    if namespace && IMMORTAL.contains(&name) {
        let mut error = review.forbidden("this namespace may not be deleted");
        if let ApiError::Forbidden { name: shown, .. } = &mut error {
            shown.clear();
            shown.push_str(name);
        }
        return Err(error);
    }
    Ok(())
}
