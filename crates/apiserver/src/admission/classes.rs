//! Plugins around classes and volumes: DefaultStorageClass, DefaultIngressClass, RuntimeClass,
//! StorageObjectInUseProtection and PersistentVolumeClaimResize.

use std::sync::Arc;

use api::error::ApiError;
use api::object::Value;
use api::quantity::Quantity;

use super::Review;

fn all(review: &Review<'_>, group: &str, plural: &str) -> Vec<Arc<Value>> {
    let shelf = review.api.shelf(&review.api.resource(group, "v1", plural));
    shelf.list("", "").into_iter().map(|(_, entry)| entry.tree()).collect()
}

/// The name of the class that is marked as default; the newest if there are several.
fn default_of(classes: &[Arc<Value>], marks: &[&str]) -> Option<String> {
    let marked = classes
        .iter()
        .filter(|class| marks.iter().any(|m| api::meta::annotation(class, m) == Some("true")));
    let newest = marked.max_by(|a, b| {
        let made = |v| api::meta::creation_timestamp(v).unwrap_or("").to_owned();
        made(a).cmp(&made(b)).then_with(|| api::meta::name(b).cmp(api::meta::name(a)))
    });
    newest.map(|class| api::meta::name(class).to_owned())
}

/// Claims and ingresses that name no class get the default one.
pub(super) fn defaults(review: &mut Review<'_>) {
    if review.creates("", "persistentvolumeclaims") {
        let named = review.object.at(&["spec", "storageClassName"]).is_some()
            || api::meta::annotation(review.object, "volume.beta.kubernetes.io/storage-class")
                .is_some();
        let marks = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ];
        if !named
            && let Some(class) =
                default_of(&all(review, "storage.k8s.io", "storageclasses"), &marks)
        {
            review.object.set_at(&["spec", "storageClassName"], class);
        }
    }
    if review.creates("networking.k8s.io", "ingresses") {
        let named = review.object.at(&["spec", "ingressClassName"]).is_some()
            || api::meta::annotation(review.object, "kubernetes.io/ingress.class").is_some();
        let marks = ["ingressclass.kubernetes.io/is-default-class"];
        if !named
            && let Some(class) =
                default_of(&all(review, "networking.k8s.io", "ingressclasses"), &marks)
        {
            review.object.set_at(&["spec", "ingressClassName"], class);
        }
    }
}

/// New claims and volumes are kept until a controller finds that nobody uses them.
pub(super) fn protect(review: &mut Review<'_>) {
    for (group, plural, finalizer) in [
        ("", "persistentvolumeclaims", "kubernetes.io/pvc-protection"),
        ("", "persistentvolumes", "kubernetes.io/pv-protection"),
        ("storage.k8s.io", "volumeattributesclasses", "kubernetes.io/vac-protection"),
    ] {
        if review.creates(group, plural)
            && !api::meta::finalizers(review.object).any(|f| f == finalizer)
        {
            super::pods::push(review.object, &["metadata", "finalizers"], Value::from(finalizer));
        }
    }
}

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

fn runtime_class(review: &Review<'_>) -> Result<Option<Arc<Value>>, ApiError> {
    let Some(name) = review.object.str_at(&["spec", "runtimeClassName"]) else { return Ok(None) };
    let found =
        review.api.shelf(&review.api.resource("node.k8s.io", "v1", "runtimeclasses")).get(name);
    match found {
        Some(entry) => Ok(Some(entry.tree())),
        None => Err(review.forbidden(format!("pod rejected: RuntimeClass {name:?} not found"))),
    }
}

/// What a pod's runtime class adds: overhead, node selector, tolerations.
pub(super) fn runtime(review: &mut Review<'_>) -> Result<(), ApiError> {
    if !review.creates("", "pods") {
        return Ok(());
    }
    let Some(class) = runtime_class(review)? else { return Ok(()) };
    if let Some(overhead) = class.at(&["overhead", "podFixed"]) {
        if review.object.at(&["spec", "overhead"]).is_some_and(|own| own != overhead) {
            return Err(review.forbidden(MISMATCH));
        }
        review.object.set_at(&["spec", "overhead"], overhead.clone());
    }
    for (key, value) in class["scheduling"]["nodeSelector"].members() {
        let path = ["spec", "nodeSelector", key];
        if let Some(own) = review.object.str_at(&path).filter(|own| *own != value.text()) {
            return Err(review.forbidden(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {own}",
                value.text()
            )));
        }
        review.object.set_at(&path, value.clone());
    }
    let more = class["scheduling"]["tolerations"].items();
    if !more.is_empty() {
        let own = review.object["spec"]["tolerations"].items();
        let merged = merge_tolerations(own.iter().chain(more).cloned().collect());
        review.object.set_at(&["spec", "tolerations"], Value::Array(merged));
    }
    Ok(())
}

/// Drops each toleration that another one covers.
fn merge_tolerations(all: Vec<Value>) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::with_capacity(all.len());
    for (i, toleration) in all.iter().enumerate() {
        let covered = merged.iter().any(|m| covers(m, toleration))
            || all[i + 1..].iter().any(|m| m != toleration && covers(m, toleration));
        if !covered {
            merged.push(toleration.clone());
        }
    }
    merged
}

fn covers(wide: &Value, narrow: &Value) -> bool {
    let exists = wide["operator"].text() == "Exists";
    let differ = |field: &str| wide[field].text() != narrow[field].text();
    let seconds = |t: &Value| t["tolerationSeconds"].as_int();
    if wide == narrow {
        return true;
    }
    if differ("key") && !(exists && wide["key"].text().is_empty())
        || differ("effect") && !wide["effect"].text().is_empty()
    {
        return false;
    }
    if wide["effect"].text() == "NoExecute"
        && let Some(most) = seconds(wide)
        && seconds(narrow).is_none_or(|s| s > most)
    {
        return false;
    }
    exists || (!differ("operator") && !differ("value"))
}

/// Overhead without a class that says so is refused.
pub(super) fn validate_runtime(review: &Review<'_>) -> Result<(), ApiError> {
    if !review.creates("", "pods") {
        return Ok(());
    }
    let class = runtime_class(review)?;
    let defined = class.as_ref().and_then(|c| c.at(&["overhead", "podFixed"]));
    let own = review.object.at(&["spec", "overhead"]).filter(|o| !o.is_empty());
    match (defined, own) {
        (Some(defined), own) if own != Some(defined) => Err(review.forbidden(MISMATCH)),
        (None, Some(_)) => Err(review.forbidden(
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
        )),
        _ => Ok(()),
    }
}

/// A claim grows only if its class can make volumes larger.
pub(super) fn validate_resize(review: &Review<'_>) -> Result<(), ApiError> {
    let Some(old) = review.old.filter(|_| review.is("", "persistentvolumeclaims")) else {
        return Ok(());
    };
    let size = |claim: &Value| {
        let text = claim.str_at(&["spec", "resources", "requests", "storage"])?.to_owned();
        Quantity::parse(&text).ok()
    };
    if size(review.object) <= size(old) {
        return Ok(());
    }
    if old.str_at(&["status", "phase"]) != Some("Bound") {
        return Err(review.forbidden("Only bound persistent volume claims can be expanded"));
    }
    let class =
        |claim: &Value| claim.str_at(&["spec", "storageClassName"]).unwrap_or("").to_owned();
    let name = class(old);
    let found =
        review.api.shelf(&review.api.resource("storage.k8s.io", "v1", "storageclasses")).get(&name);
    let expands = found.is_some_and(|c| c.parse().bool_at(&["allowVolumeExpansion"]) == Some(true));
    if !name.is_empty() && name == class(review.object) && expands {
        return Ok(());
    }
    Err(review.forbidden(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support \
         resize",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Value {
        api::codec::json::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_newest_default_wins_then_the_first_by_name() {
        let class = |name: &str, made: &str, mark: &str| {
            Arc::new(parse(&format!(
                r#"{{"metadata":{{"name":"{name}","creationTimestamp":"{made}","annotations":{{"d":"{mark}"}}}}}}"#
            )))
        };
        let classes = [
            class("old", "2025-01-01T00:00:00Z", "true"),
            class("b", "2025-01-02T00:00:00Z", "true"),
            class("a", "2025-01-02T00:00:00Z", "true"),
            class("c", "2025-01-03T00:00:00Z", "false"),
        ];
        assert_eq!(default_of(&classes, &["d"]).as_deref(), Some("a"));
        assert_eq!(default_of(&classes, &["e"]), None);
    }

    #[test]
    fn a_wider_toleration_takes_the_place_of_narrower_ones() {
        let narrow = parse(r#"{"key":"k","operator":"Equal","value":"v","effect":"NoSchedule"}"#);
        let wide = parse(r#"{"key":"k","operator":"Exists"}"#);
        let other = parse(r#"{"key":"x","operator":"Exists"}"#);
        let merged =
            merge_tolerations(vec![narrow.clone(), other.clone(), wide.clone(), other.clone()]);
        assert_eq!(merged, [other, wide]);
        assert_eq!(merge_tolerations(vec![narrow.clone()]), [narrow]);
    }
}
