//! What an object uses of a namespace's quotas, and which of them count it. Pure.
//!
//! Specified by <https://kubernetes.io/docs/concepts/policy/resource-quotas/>.

use std::collections::BTreeMap;

use crate::meta;
use crate::object::Value;
use crate::quantity::Quantity;

/// Amounts by resource name.
pub type Usage = BTreeMap<String, Quantity>;

/// Kinds that are counted by their bare name as well.
const PLAIN: [&str; 7] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
/// What every container has to name if a quota limits it.
const DEMANDED: [&str; 6] =
    ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];

/// What an object of this resource uses.
pub fn usage(group: &str, plural: &str, object: &Value) -> Usage {
    let mut used = Usage::new();
    let count = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
    used.insert(format!("count/{count}"), Quantity::of(1));
    if group.is_empty() && PLAIN.contains(&plural) {
        used.insert(plural.to_owned(), Quantity::of(1));
    }
    match (group, plural) {
        ("", "pods") => pod(object, &mut used),
        ("", "services") => service(&object["spec"], &mut used),
        ("", "persistentvolumeclaims") => claim(object, &mut used),
        _ => {}
    }
    used
}

fn pod(pod: &Value, used: &mut Usage) {
    if matches!(pod["status"]["phase"].text(), "Succeeded" | "Failed") {
        // Only its object is left.
        used.remove("pods");
        return;
    }
    for (which, prefix) in [("requests", "requests."), ("limits", "limits.")] {
        for (key, amount) in pod_total(&pod["spec"], which) {
            let standard = matches!(key.as_str(), "cpu" | "memory" | "ephemeral-storage");
            if which == "requests" && (standard || key.starts_with("hugepages-")) {
                used.insert(key.clone(), amount);
            }
            if which == "requests" || standard {
                used.insert(format!("{prefix}{key}"), amount);
            }
        }
    }
}

/// What a pod's containers ask for together: the sum of those that run side by side, or the most that starting takes.
pub fn pod_total(spec: &Value, which: &str) -> Usage {
    let each = |list: &str, sidecars: bool| -> Vec<&Value> {
        let all = spec[list].items().iter();
        let sort = |c: &&Value| {
            (list == "initContainers" && c["restartPolicy"].text() == "Always") == sidecars
        };
        all.filter(sort).map(|c| &c["resources"][which]).collect()
    };
    let amount =
        |list: &Value, key: &str| list.get(key).and_then(|v| Quantity::parse(v.text()).ok());
    let sum = |lists: &[&Value], key: &str| {
        lists.iter().filter_map(|l| amount(l, key)).fold(Quantity::ZERO, Quantity::plus)
    };
    let (sidecars, starting) = (each("initContainers", true), each("initContainers", false));
    let mut beside = each("containers", false);
    beside.extend(&sidecars);
    let mut total = Usage::new();
    for (key, _) in beside.iter().chain(&starting).flat_map(|list| list.members()) {
        let before = sum(&sidecars, key);
        let steps = starting.iter().filter_map(|l| amount(l, key)).map(|q| q.plus(before));
        let most = steps.fold(sum(&beside, key), Ord::max);
        let most = amount(&spec["overhead"], key).map_or(most, |more| most.plus(more));
        total.insert(key.to_owned(), most);
    }
    for (key, _) in spec["resources"][which].members() {
        total.extend(amount(&spec["resources"][which], key).map(|q| (key.to_owned(), q)));
    }
    total
}

fn service(spec: &Value, used: &mut Usage) {
    let ports = i64::try_from(spec["ports"].items().len()).unwrap_or(i64::MAX);
    let node_ports = match spec["type"].text() {
        "NodePort" => ports,
        "LoadBalancer" => {
            used.insert("services.loadbalancers".into(), Quantity::of(1));
            let without = spec["allocateLoadBalancerNodePorts"].as_bool() == Some(false);
            let given =
                spec["ports"].items().iter().filter(|p| p["nodePort"].as_int().unwrap_or(0) > 0);
            if without { i64::try_from(given.count()).unwrap_or(i64::MAX) } else { ports }
        }
        _ => 0,
    };
    used.insert("services.nodeports".into(), Quantity::of(node_ports));
}

fn claim(claim: &Value, used: &mut Usage) {
    let spec = &claim["spec"];
    let beta = meta::annotation(claim, "volume.beta.kubernetes.io/storage-class");
    let class = beta.unwrap_or(spec["storageClassName"].text());
    let size = Quantity::parse(spec["resources"]["requests"]["storage"].text()).ok();
    let suffix = format!("{class}.storageclass.storage.k8s.io");
    if !class.is_empty() {
        used.insert(format!("{suffix}/persistentvolumeclaims"), Quantity::of(1));
    }
    if let Some(size) = size {
        used.insert("requests.storage".into(), size);
        if !class.is_empty() {
            used.insert(format!("{suffix}/requests.storage"), size);
        }
    }
}

/// The resource that a quota's name counts: group and plural.
pub fn counted(name: &str) -> (&str, &str) {
    if let Some(count) = name.strip_prefix("count/") {
        return count.split_once('.').map_or(("", count), |(plural, group)| (group, plural));
    }
    let storage = name == "requests.storage"
        || name.ends_with(".storageclass.storage.k8s.io/requests.storage");
    if storage || name.ends_with("persistentvolumeclaims") {
        return ("", "persistentvolumeclaims");
    }
    if name.starts_with("services") {
        return ("", "services");
    }
    if PLAIN.contains(&name) { ("", name) } else { ("", "pods") }
}

/// Whether a quota's scopes take in this object.
pub fn covers(quota: &Value, plural: &str, object: &Value) -> bool {
    let spec = &quota["spec"];
    let plain =
        spec["scopes"].items().iter().all(|s| in_scope(s.text(), plural, object, &Value::Null));
    let selector = spec["scopeSelector"]["matchExpressions"].items();
    plain && selector.iter().all(|s| in_scope(s["scopeName"].text(), plural, object, s))
}

fn in_scope(scope: &str, plural: &str, object: &Value, selector: &Value) -> bool {
    let spec = &object["spec"];
    let pod = plural == "pods";
    let best_effort = || crate::rules::pod::qos_class(spec) == "BestEffort";
    let deadline = spec["activeDeadlineSeconds"].as_int().is_some_and(|s| s >= 0);
    match scope {
        "Terminating" => pod && deadline,
        "NotTerminating" => pod && !deadline,
        "BestEffort" => pod && best_effort(),
        "NotBestEffort" => pod && !best_effort(),
        "PriorityClass" => pod && selects(selector, spec["priorityClassName"].text()),
        "CrossNamespacePodAffinity" => pod && crosses(spec),
        "VolumeAttributesClass" => {
            plural == "persistentvolumeclaims"
                && selects(selector, spec["volumeAttributesClassName"].text())
        }
        _ => false,
    }
}

fn selects(selector: &Value, value: &str) -> bool {
    let listed = selector["values"].items().iter().any(|v| v.text() == value);
    match selector["operator"].text() {
        "In" => !value.is_empty() && listed,
        "NotIn" => value.is_empty() || !listed,
        "DoesNotExist" => value.is_empty(),
        _ => !value.is_empty(),
    }
}

/// Whether a pod's affinity looks at other namespaces.
fn crosses(spec: &Value) -> bool {
    let terms = ["podAffinity", "podAntiAffinity"].into_iter().flat_map(|kind| {
        let affinity = &spec["affinity"][kind];
        let required = affinity["requiredDuringSchedulingIgnoredDuringExecution"].items().iter();
        let preferred = affinity["preferredDuringSchedulingIgnoredDuringExecution"].items().iter();
        required.chain(preferred.map(|p| &p["podAffinityTerm"]))
    });
    terms.into_iter().any(|t| !t["namespaces"].is_empty() || t.has("namespaceSelector"))
}

/// What containers of a pod leave open although a quota limits it, in words; `None` when all is said.
pub fn unsaid(hard: &Value, spec: &Value) -> Option<String> {
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let lists = ["containers", "initContainers"].into_iter().flat_map(|list| spec[list].items());
    for container in lists {
        for name in DEMANDED.into_iter().filter(|name| hard.has(name)) {
            let (which, key) = name.split_once('.').unwrap_or(("requests", name));
            let said = |of: &Value| of["resources"][which].has(key);
            if !said(container) && !said(spec) {
                missing.entry(name).or_default().push(container["name"].text());
            }
        }
    }
    let each = missing.into_iter().map(|(name, mut containers)| {
        containers.sort_unstable();
        containers.dedup();
        format!("{name} for: {}", containers.join(","))
    });
    let each: Vec<String> = each.collect();
    (!each.is_empty()).then(|| format!("must specify {}", each.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(used: &Usage) -> String {
        used.iter().map(|(k, q)| format!("{k}={q}")).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn each_kind_uses_what_it_asks_for() {
        let cases = [
            (
                "",
                "pods",
                crate::json!({"spec": {"containers": [
                {"resources": {"requests": {"cpu": "1", "x.com/y": "2"}, "limits": {"cpu": "2"}}}]}}),
                "count/pods=1,cpu=1,limits.cpu=2,pods=1,requests.cpu=1,requests.x.com/y=2",
            ),
            ("", "pods", crate::json!({"status": {"phase": "Failed"}}), "count/pods=1"),
            (
                "",
                "services",
                crate::json!({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}}),
                "count/services=1,services=1,services.loadbalancers=1,services.nodeports=2",
            ),
            (
                "",
                "persistentvolumeclaims",
                crate::json!({"spec": {"storageClassName": "c",
                "resources": {"requests": {"storage": "1Gi"}}}}),
                "c.storageclass.storage.k8s.io/persistentvolumeclaims=1,\
                 c.storageclass.storage.k8s.io/requests.storage=1Gi,\
                 count/persistentvolumeclaims=1,persistentvolumeclaims=1,requests.storage=1Gi",
            ),
            ("apps", "deployments", crate::json!({}), "count/deployments.apps=1"),
        ];
        for (group, plural, object, wanted) in cases {
            assert_eq!(shown(&usage(group, plural, &object)), wanted);
        }
    }

    #[test]
    fn a_pod_asks_for_its_containers_or_for_what_starting_takes() {
        let spec = crate::json!({
            "containers": [{"resources": {"requests": {"cpu": "1"}}}, {"resources": {"requests": {"cpu": "500m"}}}],
            "initContainers": [{"restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"resources": {"requests": {"cpu": "3"}}}],
            "overhead": {"cpu": "10m"}
        });
        assert_eq!(shown(&pod_total(&spec, "requests")), "cpu=3110m");
    }

    #[test]
    fn names_say_what_they_count() {
        for (name, wanted) in [
            ("count/jobs.batch", ("batch", "jobs")),
            ("count/secrets", ("", "secrets")),
            ("g.storageclass.storage.k8s.io/requests.storage", ("", "persistentvolumeclaims")),
            ("services.nodeports", ("", "services")),
            ("configmaps", ("", "configmaps")),
            ("limits.cpu", ("", "pods")),
        ] {
            assert_eq!(counted(name), wanted, "{name}");
        }
    }

    #[test]
    fn scopes_tell_pods_apart() {
        let pod = crate::json!({"spec": {"activeDeadlineSeconds": 5, "priorityClassName": "high", "containers": [{}]}});
        let cases = [
            (crate::json!({"spec": {}}), true),
            (crate::json!({"spec": {"scopes": ["Terminating", "BestEffort"]}}), true),
            (crate::json!({"spec": {"scopes": ["NotTerminating"]}}), false),
            (
                crate::json!({"spec": {"scopeSelector": {"matchExpressions":
                [{"scopeName": "PriorityClass", "operator": "In", "values": ["low"]}]}}}),
                false,
            ),
        ];
        for (quota, wanted) in cases {
            assert_eq!(covers(&quota, "pods", &pod), wanted, "{quota}");
        }
        let hard = crate::json!({"cpu": "1", "limits.memory": "1", "pods": "1"});
        let spec =
            crate::json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]});
        assert_eq!(unsaid(&hard, &spec).as_deref(), Some("must specify limits.memory for: c"));
    }
}
