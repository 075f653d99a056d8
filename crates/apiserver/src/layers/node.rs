//! What a node may do beyond its role: read what the pods on it mention, and keep what is its own.
//!
//! Specified by <https://kubernetes.io/docs/reference/access-authn-authz/node/>.

use api::object::Value;

use super::rbac::Attributes;
use crate::storage::cache::Cache;

/// Whether the graph of pods says something of what is asked, and what; `None` leaves it to the node's role.
pub(super) fn decide(cache: &Cache, node: &str, ask: &Attributes<'_>) -> Option<bool> {
    let read = matches!(ask.verb, "get" | "list" | "watch");
    let named = !ask.name.is_empty();
    let pods = |namespace: &str| pods_of(cache, node, namespace);
    Some(match (ask.group, ask.resource) {
        ("", "secrets" | "configmaps") => {
            read && named
                && (pods(ask.namespace).iter().any(|pod| mentions(pod, ask))
                    || (ask.resource == "secrets"
                        && volumes_of(cache, node).iter().any(|v| names_secret(v, ask))))
        }
        ("", "persistentvolumeclaims") if ask.subresource.is_empty() => {
            read && named && pods(ask.namespace).iter().any(|pod| mentions(pod, ask))
        }
        ("", "serviceaccounts") if ask.subresource == "token" => {
            ask.verb == "create" && pods(ask.namespace).iter().any(|pod| mentions(pod, ask))
        }
        // Nodes watch volumes for those that were made for them by `local-path`, and let go of them.
        ("", "persistentvolumes") if !named => matches!(ask.verb, "list" | "watch"),
        ("", "persistentvolumes") if ask.verb == "patch" => {
            let found = cache.shelf("persistentvolumes").get(ask.name).map(|entry| entry.parse());
            found.is_some_and(|volume| {
                api::meta::label(&volume, "ironclad.io/node") == Some(node)
                    && volume.at(&["metadata", "deletionTimestamp"]).is_some()
            })
        }
        ("", "persistentvolumes") => {
            read && volumes_of(cache, node).iter().any(|v| api::meta::name(v) == ask.name)
        }
        ("resource.k8s.io", "resourceclaims") => {
            read && named && pods(ask.namespace).iter().any(|pod| mentions(pod, ask))
        }
        ("storage.k8s.io", "volumeattachments") => {
            let found = cache.shelf("volumeattachments").get(ask.name);
            read && found.is_some_and(|a| a.parse()["spec"]["nodeName"].text() == node)
        }
        ("coordination.k8s.io", "leases") | ("storage.k8s.io", "csinodes") => {
            // The name of what is created is not known yet; admission looks at it.
            let own = ask.verb == "create" || ask.name == node;
            let verbs = ["get", "create", "update", "patch", "delete"];
            let place = ask.resource == "csinodes" || ask.namespace == "kube-node-lease";
            own && place && verbs.contains(&ask.verb)
        }
        _ => return None,
    })
}

/// The pods on a node, in one namespace or in all.
fn pods_of(cache: &Cache, node: &str, namespace: &str) -> Vec<Value> {
    let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    let needle = format!("\"nodeName\":\"{node}\"");
    let likely =
        |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
    let pods = cache.shelf("pods").list(&prefix, "");
    pods.into_iter()
        .filter(|(_, entry)| likely(&entry.bytes))
        .map(|(_, entry)| entry.parse())
        .filter(|pod| pod.str_at(&["spec", "nodeName"]) == Some(node))
        .collect()
}

/// The volumes behind the claims of a node's pods.
fn volumes_of(cache: &Cache, node: &str) -> Vec<Value> {
    let (claims, volumes) =
        (cache.shelf("persistentvolumeclaims"), cache.shelf("persistentvolumes"));
    let mut found = Vec::new();
    for pod in pods_of(cache, node, "") {
        let namespace = api::meta::namespace(&pod);
        for claim in claims_of(&pod) {
            let claim = claims.get(&format!("{namespace}/{claim}")).map(|entry| entry.parse());
            let volume = claim.and_then(|c| volumes.get(c["spec"]["volumeName"].text()));
            found.extend(volume.map(|entry| entry.parse()));
        }
    }
    found
}

/// The claims a pod mounts: those it names, and those made for it.
fn claims_of(pod: &Value) -> Vec<String> {
    let volumes = pod["spec"]["volumes"].items().iter();
    let each = volumes.filter_map(|v| match v["persistentVolumeClaim"]["claimName"].text() {
        "" if v.has("ephemeral") => Some(format!("{}-{}", api::meta::name(pod), v["name"].text())),
        "" => None,
        claim => Some(claim.to_owned()),
    });
    each.collect()
}

/// Whether a pod refers to the object that is asked for.
fn mentions(pod: &Value, ask: &Attributes<'_>) -> bool {
    let Some(spec) = pod.get("spec") else { return false };
    let keys: &[(&str, &str)] = match ask.resource {
        "serviceaccounts" => return spec["serviceAccountName"].text() == ask.name,
        "persistentvolumeclaims" => return claims_of(pod).iter().any(|claim| claim == ask.name),
        "resourceclaims" => {
            let made = pod["status"]["resourceClaimStatuses"].items().iter();
            let named = spec["resourceClaims"].items().iter();
            return made.chain(named).any(|c| c["resourceClaimName"].text() == ask.name);
        }
        "secrets" => &[
            ("secretRef", "name"),
            ("secretKeyRef", "name"),
            ("secret", "secretName"),
            ("secret", "name"),
            ("imagePullSecrets", "name"),
            ("nodePublishSecretRef", "name"),
            ("azureFile", "secretName"),
        ],
        _ => &[("configMapRef", "name"), ("configMapKeyRef", "name"), ("configMap", "name")],
    };
    refers(spec, &mut |key, inner| {
        keys.iter().any(|(k, field)| *k == key && inner[*field].text() == ask.name)
    })
}

/// Whether a volume of the cluster needs the secret that is asked for; those of controllers are not for nodes.
fn names_secret(volume: &Value, ask: &Attributes<'_>) -> bool {
    let claim = volume["spec"]["claimRef"]["namespace"].text();
    let here =
        |namespace: &str| ask.namespace == if namespace.is_empty() { claim } else { namespace };
    let keys = ["secretRef", "nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"];
    refers(&volume["spec"], &mut |key, inner| {
        let plain = keys.contains(&key)
            && inner["name"].text() == ask.name
            && here(inner["namespace"].text());
        let azure = key == "azureFile"
            && inner["secretName"].text() == ask.name
            && here(inner["secretNamespace"].text());
        plain || azure
    })
}

/// Whether a member anywhere below, or an item of one that is a list, is what is wanted.
fn refers(value: &Value, wanted: &mut dyn FnMut(&str, &Value) -> bool) -> bool {
    match value {
        Value::Array(items) => items.iter().any(|item| refers(item, wanted)),
        Value::Object(map) => map.iter().any(|(key, inner)| {
            wanted(key, inner)
                || inner.items().iter().any(|item| wanted(key, item))
                || refers(inner, wanted)
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask<'a>(resource: &'a str, name: &'a str) -> Attributes<'a> {
        Attributes { verb: "get", resource, name, namespace: "ns", ..Attributes::default() }
    }

    #[test]
    fn a_pod_mentions_what_it_needs() {
        let pod = api::codec::json::parse(
            br#"{"metadata":{"name":"p"},"spec":{"serviceAccountName":"sa","imagePullSecrets":[{"name":"pull"}],
            "containers":[{"env":[{"valueFrom":{"configMapKeyRef":{"name":"cm"}}}]}],
            "volumes":[{"name":"e","ephemeral":{}},{"name":"c","persistentVolumeClaim":{"claimName":"claim"}}],
            "resourceClaims":[{"name":"r","resourceClaimName":"device"}]}}"#,
        )
        .unwrap();
        for (resource, name) in [
            ("serviceaccounts", "sa"),
            ("secrets", "pull"),
            ("configmaps", "cm"),
            ("persistentvolumeclaims", "claim"),
            ("persistentvolumeclaims", "p-e"),
            ("resourceclaims", "device"),
        ] {
            assert!(mentions(&pod, &ask(resource, name)), "{resource}/{name}");
            assert!(!mentions(&pod, &ask(resource, "other")), "{resource}");
        }
    }

    #[test]
    fn a_volume_names_secrets_of_nodes_and_of_its_claim() {
        let volume = api::codec::json::parse(
            br#"{"spec":{"claimRef":{"namespace":"ns"},"csi":{"nodeStageSecretRef":{"name":"s","namespace":"ns"},
            "controllerExpandSecretRef":{"name":"c","namespace":"ns"}},"azureFile":{"secretName":"a"}}}"#,
        )
        .unwrap();
        assert!(names_secret(&volume, &ask("secrets", "s")));
        assert!(names_secret(&volume, &ask("secrets", "a")));
        assert!(!names_secret(&volume, &ask("secrets", "c")));
        let elsewhere = Attributes { namespace: "other", ..ask("secrets", "s") };
        assert!(!names_secret(&volume, &elsewhere));
    }
}
