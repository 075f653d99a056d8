//! NodeRestriction: a node writes its own Node, Lease and CSINode, and what becomes of its own pods; nothing else.
//!
//! Specified by <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction>.

use api::error::ApiError;
use api::object::Value;

use super::Review;

const LEASES: &str = "kube-node-lease";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels of Kubernetes that a node may give itself, and the owners of those it may.
const LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const OWNERS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
const RESTRICTED: &str = "node-restriction.kubernetes.io";

/// Checks what a node writes or deletes.
pub(super) fn admit(review: &Review<'_>) -> Result<(), ApiError> {
    let user = review.request.user.clone();
    let Some(node) = user.node() else { return Ok(()) };
    let decided = match (
        review.resource.group.as_ref(),
        review.resource.plural.as_ref(),
        review.request.subresource.as_str(),
    ) {
        ("", "pods", "") => pod(review, node),
        ("", "pods", "status") => pod_status(review, node),
        ("", "nodes", "" | "status") => own_node(review, node),
        ("", "persistentvolumeclaims", "status") => claim_status(review, node),
        ("coordination.k8s.io", "leases", "") => lease(review, node),
        ("storage.k8s.io", "csinodes", "") if target(review) != node => {
            Err("can only access CSINode with the same name as the requesting node".to_owned())
        }
        _ => Ok(()),
    };
    decided.map_err(|why| review.forbidden(why))
}

type Decision = Result<(), String>;

/// The name of the object that is written.
fn target<'a>(review: &'a Review<'_>) -> &'a str {
    match review.request.name.as_str() {
        "" => api::meta::name(review.object),
        name => name,
    }
}

fn node_of(pod: &Value) -> &str {
    pod["spec"]["nodeName"].text()
}

fn pod(review: &Review<'_>, node: &str) -> Decision {
    if review.deletes() {
        if node_of(review.object) == node {
            return Ok(());
        }
        return Err(format!("node {node:?} can only delete pods with spec.nodeName set to itself"));
    }
    if review.old.is_some() {
        return Err(format!(
            "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
        ));
    }
    let uid = review.api.cache.shelf("minions").get(node).map(|entry| entry.parse());
    let uid = uid.map(|own| api::meta::uid(&own).to_owned());
    mirror(review.object, node, uid.as_deref())
}

/// A pod that a node creates only shows what it runs anyway. Pure.
fn mirror(pod: &Value, node: &str, uid: Option<&str>) -> Decision {
    if api::meta::annotation(pod, MIRROR).is_none() {
        return Err(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if node_of(pod) != node {
        return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let can = format!("node {node:?} can only create pods with");
    let owner = match api::meta::owner_references(pod) {
        [owner] => owner,
        [] => return Err(format!("{can} an owner reference set to itself")),
        _ => return Err(format!("{can} a single owner reference set to itself")),
    };
    if (owner["apiVersion"].text(), owner["kind"].text(), owner["name"].text())
        != ("v1", "Node", node)
    {
        return Err(format!("{can} an owner reference set to itself"));
    }
    if owner["controller"].as_bool() != Some(true) {
        return Err(format!("{can} a controller owner reference set to itself"));
    }
    if owner["blockOwnerDeletion"].as_bool() == Some(true) {
        return Err(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let given = owner["uid"].text();
    if uid.is_some_and(|uid| uid != given) {
        let uid = uid.unwrap_or_default();
        return Err(format!("node {node} UID mismatch: expected {given} got {uid}"));
    }
    let cannot = format!("node {node:?} can not create pods that reference");
    let spec = &pod["spec"];
    if !spec["serviceAccountName"].text().is_empty() {
        return Err(format!("{cannot} a service account"));
    }
    for (keys, what) in [
        (&["secretRef", "secretKeyRef", "secret", "imagePullSecrets"][..], "secrets"),
        (&["configMapRef", "configMapKeyRef", "configMap"], "configmaps"),
        (&["clusterTrustBundle"], "clustertrustbundles"),
        (&["persistentVolumeClaim"], "persistentvolumeclaims"),
    ] {
        if names_any(spec, keys) {
            return Err(format!("{cannot} {what}"));
        }
    }
    Ok(())
}

fn names_any(value: &Value, keys: &[&str]) -> bool {
    match value {
        Value::Array(items) => items.iter().any(|item| names_any(item, keys)),
        Value::Object(map) => map.iter().any(|(key, inner)| {
            (keys.contains(&key) && !inner.is_empty()) || names_any(inner, keys)
        }),
        _ => false,
    }
}

fn pod_status(review: &Review<'_>, node: &str) -> Decision {
    let Some(old) = review.old else { return Ok(()) };
    if node_of(old) != node {
        return Err(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    let labels = |pod: &Value| pod["metadata"]["labels"].clone();
    if labels(old) != labels(review.object) {
        return Err(format!("node {node:?} cannot update labels through pod status"));
    }
    let claims = |pod: &Value| pod["status"]["resourceClaimStatuses"].clone();
    if claims(old) != claims(review.object) {
        return Err(format!("node {node:?} cannot update resource claim statues"));
    }
    Ok(())
}

fn own_node(review: &Review<'_>, node: &str) -> Decision {
    let name = target(review);
    if name != node {
        return Err(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    if review.deletes() {
        return Ok(());
    }
    let Some(old) = review.old else {
        let forbidden = forbidden_labels(&review.object["metadata"]["labels"], &Value::Null);
        if forbidden.is_empty() {
            return Ok(());
        }
        let list = forbidden.join(", ");
        return Err(format!("node {node:?} is not allowed to set the following labels: {list}"));
    };
    if review.object["spec"]["taints"] != old["spec"]["taints"] {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    let labels = |v: &Value| v["metadata"]["labels"].clone();
    let forbidden = forbidden_labels(&labels(review.object), &labels(old));
    if forbidden.is_empty() {
        return Ok(());
    }
    Err(format!("is not allowed to modify labels: {}", forbidden.join(", ")))
}

/// Labels that changed and that a node may not change, in order. Pure.
fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    let keys = new.members().chain(old.members()).map(|(key, _)| key);
    let changed = keys.filter(|key| new.get(key) != old.get(key));
    let below = |owner: &str, root: &str| owner == root || owner.ends_with(&format!(".{root}"));
    let mut found: Vec<String> = changed
        .filter(|key| {
            let owner = key.split_once('/').map_or("", |(owner, _)| owner);
            let kubernetes = below(owner, "kubernetes.io") || below(owner, "k8s.io");
            let allowed = LABELS.contains(key) || OWNERS.iter().any(|root| below(owner, root));
            below(owner, RESTRICTED) || (kubernetes && !allowed)
        })
        .map(str::to_owned)
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn claim_status(review: &Review<'_>, node: &str) -> Decision {
    let Some(old) = review.old else { return Ok(()) };
    let rest = |claim: &Value| {
        let mut claim = claim.clone();
        for path in [
            &["metadata", "resourceVersion"][..],
            &["metadata", "managedFields"],
            &["status", "capacity"],
            &["status", "conditions"],
            &["status", "allocatedResourceStatuses"],
            &["status", "allocatedResources"],
        ] {
            claim.remove_at(path);
        }
        claim
    };
    if rest(old) == rest(review.object) {
        return Ok(());
    }
    Err(format!(
        "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
    ))
}

fn lease(review: &Review<'_>, node: &str) -> Decision {
    if review.request.namespace != LEASES {
        return Err(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    if target(review) != node {
        return Err(
            "can only access node lease with the same name as the requesting node".to_owned()
        );
    }
    Ok(())
}

/// A token for a node is bound to a pod that runs there.
///
/// # Errors
/// 403 for any other.
pub(crate) fn token(asked: &Value, pod: Option<&Value>, node: &str) -> Result<(), String> {
    let bound = &asked["spec"]["boundObjectRef"];
    let of_pod = bound["kind"].text() == "Pod" && bound["apiVersion"].text() == "v1";
    if !of_pod || bound["name"].text().is_empty() {
        return Err("node requested token not bound to a pod".to_owned());
    }
    let uid = bound["uid"].text();
    if uid.is_empty() {
        return Err("node requested token with a pod binding without a uid".to_owned());
    }
    let Some(pod) = pod else { return Ok(()) };
    if api::meta::uid(pod) != uid {
        return Err(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have \
             been deleted and then recreated"
        ));
    }
    if node_of(pod) != node {
        return Err("node requested token bound to a pod scheduled on a different node".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Value {
        api::codec::json::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_node_names_itself_but_not_its_purpose() {
        let new = parse(
            r#"{"kubernetes.io/hostname":"n","example.com/a":"b","node-role.kubernetes.io/master":"",
            "x.node-restriction.kubernetes.io/y":"z","node.kubernetes.io/c":"d","kept.k8s.io/e":"f"}"#,
        );
        let old = parse(r#"{"kept.k8s.io/e":"f","gone.k8s.io/g":"h"}"#);
        let wanted = [
            "gone.k8s.io/g",
            "node-role.kubernetes.io/master",
            "x.node-restriction.kubernetes.io/y",
        ];
        assert_eq!(forbidden_labels(&new, &old), wanted);
    }

    #[test]
    fn a_mirror_pod_is_the_nodes_own_and_refers_to_nothing() {
        let pod = |more: &str| {
            parse(&format!(
                r#"{{"metadata":{{"annotations":{{"kubernetes.io/config.mirror":"h"}},"ownerReferences":[{{"apiVersion":"v1",
                "kind":"Node","name":"n","uid":"u","controller":true}}]}},"spec":{{"nodeName":"n"{more}}}}}"#
            ))
        };
        assert_eq!(mirror(&pod(""), "n", Some("u")), Ok(()));
        assert!(mirror(&pod(""), "n", Some("other")).is_err());
        assert!(mirror(&pod(""), "m", Some("u")).is_err());
        let secret = r#","volumes":[{"name":"v","secret":{"secretName":"s"}}]"#;
        assert!(mirror(&pod(secret), "n", Some("u")).unwrap_err().ends_with("secrets"));
        assert!(mirror(&parse("{}"), "n", None).is_err());
    }

    #[test]
    fn a_token_for_a_node_is_bound_to_its_pod() {
        let asked = parse(
            r#"{"spec":{"boundObjectRef":{"apiVersion":"v1","kind":"Pod","name":"p","uid":"u"}}}"#,
        );
        let pod = parse(r#"{"metadata":{"uid":"u"},"spec":{"nodeName":"n"}}"#);
        assert_eq!(token(&asked, Some(&pod), "n"), Ok(()));
        assert!(token(&asked, Some(&pod), "m").is_err());
        assert!(token(&parse("{}"), Some(&pod), "n").is_err());
    }
}
