//! Warnings about objects that are taken: what is deprecated, hidden or overlaps.

use crate::meta;
use crate::object::Value;
use crate::quantity::Quantity;

/// Pod.
pub fn pod(new: &Value, _: Option<&Value>, out: &mut Vec<String>) {
    pod_like("", new, out);
}

/// A workload whose template is at `spec.template`; one that did not change is not spoken of again.
pub fn template(new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
    if old.is_none_or(|old| meta::generation(old) != meta::generation(new)) {
        pod_like("spec.template.", &new["spec"]["template"], out);
    }
}

/// PodTemplate.
pub fn pod_template(new: &Value, _: Option<&Value>, out: &mut Vec<String>) {
    pod_like("template.", &new["template"], out);
}

/// StatefulSet.
pub fn stateful_set(new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
    template(new, old, out);
    let limit = &new["spec"]["revisionHistoryLimit"];
    if limit.as_int().is_some_and(|n| n < 0) {
        out.push(
            "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended"
                .to_owned(),
        );
    }
    for (i, claim) in new["spec"]["volumeClaimTemplates"].items().iter().enumerate() {
        claim_spec(&format!("spec.volumeClaimTemplates[{i}].Spec"), &claim["spec"], out);
    }
}

/// PersistentVolumeClaim.
pub fn claim(new: &Value, _: Option<&Value>, out: &mut Vec<String>) {
    let key = "volume.beta.kubernetes.io/storage-class";
    if meta::annotation(new, key).is_some() {
        out.push(format!(
            "metadata.annotations[{key}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
        ));
    }
    claim_spec("spec", &new["spec"], out);
}

fn claim_spec(path: &str, spec: &Value, out: &mut Vec<String>) {
    for list in ["limits", "requests"] {
        fraction(&format!("{path}.resources.{list}"), &spec["resources"][list], &["storage"], out);
    }
}

/// CronJob.
pub fn cron_job(new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
    if old.is_none_or(|old| meta::generation(old) != meta::generation(new)) {
        let template = &new["spec"]["jobTemplate"]["spec"]["template"];
        pod_like("spec.jobTemplate.spec.template.", template, out);
    }
    if new["spec"]["schedule"].text().contains("TZ") {
        out.push(
            "CRON_TZ or TZ used in schedule \"CRON_TZ or TZ\" is not officially supported, see \
             https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
                .to_owned(),
        );
    }
}

/// Service.
pub fn service(new: &Value, _: Option<&Value>, out: &mut Vec<String>) {
    let spec = &new["spec"];
    let hints = "service.kubernetes.io/topology-aware-hints";
    if meta::annotation(new, hints).is_some() {
        let newer = "service.kubernetes.io/topology-mode";
        out.push(format!("annotation {hints} is deprecated, please use {newer} instead"));
    }
    let (kind, external) = (spec["type"].text(), !spec["externalIPs"].is_empty());
    let headless = kind == "ClusterIP" && spec["clusterIP"].text() == "None";
    let mut warn = |holds: bool, text: &str| {
        if holds {
            out.push(text.to_owned());
        }
    };
    warn(
        headless && !spec["loadBalancerIP"].text().is_empty(),
        "spec.loadBalancerIP is ignored for headless services",
    );
    warn(headless && external, "spec.externalIPs is ignored for headless services");
    warn(
        headless && spec["sessionAffinity"].text() != "None",
        "spec.SessionAffinity is ignored for headless services",
    );
    warn(
        external && !headless && kind != "ExternalName",
        "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
    );
    warn(
        external && kind == "ExternalName",
        "spec.externalIPs is ignored when spec.type is \"ExternalName\"",
    );
    warn(
        kind != "ExternalName" && !spec["externalName"].text().is_empty(),
        "spec.externalName is ignored when spec.type is not \"ExternalName\"",
    );
    warn(
        spec["trafficDistribution"].text() == "PreferClose",
        "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
    );
}

/// StorageClass.
pub fn storage_class(new: &Value, _: Option<&Value>, out: &mut Vec<String>) {
    for (i, term) in new["allowedTopologies"].items().iter().enumerate() {
        for (j, e) in term["matchLabelExpressions"].items().iter().enumerate() {
            let at = format!("allowedTopologies[{i}].matchLabelExpressions[{j}].key");
            deprecated_label(&at, e["key"].text(), " is", out);
        }
    }
}

/// PersistentVolume.
pub fn volume(new: &Value, _: Option<&Value>, out: &mut Vec<String>) {
    let spec = &new["spec"];
    let key = "volume.beta.kubernetes.io/storage-class";
    if meta::annotation(new, key).is_some() {
        out.push(format!(
            "metadata.annotations[{key}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
        ));
    }
    let key = "volume.beta.kubernetes.io/mount-options";
    if meta::annotation(new, key).is_some() {
        out.push(format!(
            "metadata.annotations[{key}]: deprecated since v1.31; use \"mountOptions\" attribute instead"
        ));
    }
    if spec["persistentVolumeReclaimPolicy"].text() == "Recycle" {
        out.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended \
             approach is to use dynamic provisioning."
                .to_owned(),
        );
    }
    let terms = &spec["nodeAffinity"]["required"]["nodeSelectorTerms"];
    node_terms("spec.nodeAffinity.required.nodeSelectorTerms", terms, out);
    for (key, text) in OLD_VOLUMES.iter().filter(|(key, _)| spec.has(key)) {
        out.push(format!("spec.{key}: {text}"));
    }
}

const OLD_VOLUMES: [(&str, &str); 9] = [
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];
const OLD_LABELS: [(&str, &str); 8] = [
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
];
const OLD_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];

/// A label of nodes that has a newer name; `is` stands between the label and the word on it.
fn deprecated_label(at: &str, label: &str, is: &str, out: &mut Vec<String>) {
    let Some((old, text)) = OLD_LABELS.iter().find(|(old, _)| *old == label) else { return };
    let shown = if is.is_empty() { String::new() } else { format!("{old}{is} ") };
    out.push(format!("{at}: {shown}{text}"));
}

/// RuntimeClass.
pub fn runtime_class(new: &Value, _: Option<&Value>, out: &mut Vec<String>) {
    for (key, _) in new["scheduling"]["nodeSelector"].members() {
        deprecated_label("scheduling.nodeSelector", key, "", out);
    }
}

fn node_terms(at: &str, terms: &Value, out: &mut Vec<String>) {
    for (i, term) in terms.items().iter().enumerate() {
        node_term(&format!("{at}[{i}]"), term, out);
    }
}

fn node_term(at: &str, term: &Value, out: &mut Vec<String>) {
    for (j, e) in term["matchExpressions"].items().iter().enumerate() {
        let at = format!("{at}.matchExpressions[{j}].key");
        deprecated_label(&at, e["key"].text(), " is", out);
    }
}

/// Bytes come whole.
fn fraction(at: &str, list: &Value, keys: &[&str], out: &mut Vec<String>) {
    for key in keys {
        let broken = Quantity::parse(list[*key].text()).is_ok_and(|q| !q.is_whole());
        if list.has(key) && broken {
            let shown = list[*key].text();
            out.push(format!(
                "{at}[{key}]: fractional byte value {shown:?} is invalid, must be an integer"
            ));
        }
    }
}

/// A pod, or the template at `path` (which ends in a dot).
fn pod_like(path: &str, holder: &Value, out: &mut Vec<String>) {
    let (at, spec) = (format!("{path}spec"), &holder["spec"]);
    for (key, _) in spec["nodeSelector"].members() {
        deprecated_label(&format!("{at}.nodeSelector[{key}]"), key, "", out);
    }
    let nodes = &spec["affinity"]["nodeAffinity"];
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let field = format!("{at}.affinity.nodeAffinity");
    let terms = &nodes[required]["nodeSelectorTerms"];
    node_terms(&format!("{field}.{required}.nodeSelectorTerms"), terms, out);
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for (i, term) in nodes[preferred].items().iter().enumerate() {
        node_term(&format!("{field}.{preferred}[{i}].preference"), &term["preference"], out);
    }
    for (i, c) in spec["topologySpreadConstraints"].items().iter().enumerate() {
        let field = format!("{at}.topologySpreadConstraints[{i}]");
        deprecated_label(&format!("{field}.topologyKey"), c["topologyKey"].text(), " is", out);
        if c["labelSelector"].is_null() {
            out.push(format!(
                "{field}.labelSelector: a null labelSelector results in matching no pod"
            ));
        }
    }
    for (key, text) in OLD_ANNOTATIONS {
        if meta::annotation(holder, key).is_some() {
            out.push(format!("{path}metadata.annotations[{key}]: {text}"));
        }
    }
    pod_volumes(&at, spec, out);
    duplicates(&format!("{at}.hostAliases"), &spec["hostAliases"], "ip", out);
    duplicates(&format!("{at}.imagePullSecrets"), &spec["imagePullSecrets"], "name", out);
    for (i, secret) in spec["imagePullSecrets"].items().iter().enumerate() {
        if secret["name"].text().is_empty() {
            out.push(format!("{at}.imagePullSecrets[{i}].name: invalid empty name \"\""));
        }
    }
    let bytes = ["memory", "ephemeral-storage"];
    fraction(&format!("{at}.overhead"), &spec["overhead"], &bytes, out);
    each_container(&at, spec, &mut |at, c| container(at, c, out));
    ports(&at, spec, out);
    let grace_s = &spec["terminationGracePeriodSeconds"];
    if grace_s.as_int().is_some_and(|s| s < 0) {
        out.push(format!(
            "{at}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let of = &spec["affinity"][kind];
        for (list, key) in [(required, ""), (preferred, "podAffinityTerm")] {
            for (i, term) in of[list].items().iter().enumerate() {
                let (term, dot) = if key.is_empty() { (term, "") } else { (&term[key], ".") };
                if term["labelSelector"].is_null() {
                    out.push(format!(
                        "{at}.affinity.{kind}.{list}[{i}]{dot}{key}.labelSelector: a null labelSelector results in \
                         matching no pod"
                    ));
                }
            }
        }
    }
}

fn pod_volumes(at: &str, spec: &Value, out: &mut Vec<String>) {
    for (i, volume) in spec["volumes"].items().iter().enumerate() {
        let at = format!("{at}.volumes[{i}]");
        for (key, text) in OLD_VOLUMES.iter().filter(|(key, _)| volume.has(key)) {
            let shown = if *key == "storageos" { "storageOS" } else { key };
            out.push(format!("{at}.{shown}: {text}"));
        }
        let claim = &volume["ephemeral"]["volumeClaimTemplate"]["spec"];
        claim_spec(&format!("{at}.ephemeral.volumeClaimTemplate.spec"), claim, out);
    }
}

fn duplicates(path: &str, list: &Value, key: &str, out: &mut Vec<String>) {
    let list = list.items();
    for (i, item) in list.iter().enumerate() {
        if list[..i].iter().any(|o| o[key].text() == item[key].text()) {
            out.push(format!("{path}[{i}].{key}: duplicate {key} {:?}", item[key].text()));
        }
    }
}

fn each_container(at: &str, spec: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, c) in spec[list].items().iter().enumerate() {
            visit(&format!("{at}.{list}[{i}]"), c);
        }
    }
}

fn container(at: &str, c: &Value, out: &mut Vec<String>) {
    for list in ["limits", "requests"] {
        let field = format!("{at}.resources.{list}");
        fraction(&field, &c["resources"][list], &["memory"], out);
    }
    for list in ["limits", "requests"] {
        let field = format!("{at}.resources.{list}");
        fraction(&field, &c["resources"][list], &["ephemeral-storage"], out);
    }
    let env = c["env"].items();
    for (j, e) in env.iter().enumerate() {
        let name = e["name"].text();
        // A value that builds on the earlier one does not hide it.
        let whole = format!("$({name})");
        let hides =
            e.has("valueFrom") || e["value"].text() == whole || !e["value"].text().contains(&whole);
        if hides && env[..j].iter().any(|o| o["name"].text() == name) {
            out.push(format!(
                "{at}.env[{j}]: hides previous definition of {name:?}, which may be \
                 dropped when using apply"
            ));
        }
    }
}

/// Ports of all containers share the pod's address.
fn ports(at: &str, spec: &Value, out: &mut Vec<String>) {
    let mut seen: Vec<(String, Value)> = Vec::new();
    each_container(at, spec, &mut |at, c| {
        for (i, port) in c["ports"].items().iter().enumerate() {
            let field = format!("{at}.ports[{i}]");
            let same = |key: &str, o: &Value| o[key] == port[key];
            let host = |p: &Value| p["hostPort"].as_int().unwrap_or(0);
            let others =
                seen.iter().filter(|(_, o)| same("containerPort", o) && same("protocol", o));
            for (other, o) in others {
                let ip = |p: &Value| p["hostIP"].text().to_owned();
                let text = if ip(o) == ip(port) && host(o) == host(port) {
                    "duplicate"
                } else if host(o) == 0 || host(port) == 0 {
                    "overlapping"
                } else if host(o) == host(port) && (ip(o).is_empty() || ip(port).is_empty()) {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                out.push(format!("{field}: {text} port definition with {other}"));
            }
            seen.push((field, port.clone()));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_warned_of_what_is_old_or_twice() {
        let new = crate::json!({"spec": {
            "nodeSelector": {"beta.kubernetes.io/os": "linux"},
            "hostAliases": [{"ip": "1.1.1.1"}, {"ip": "1.1.1.1"}],
            "volumes": [{"name": "g", "gitRepo": {}}],
            "containers": [
                {"ports": [{"containerPort": 80, "protocol": "TCP"}],
                 "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}, {"name": "A"}],
                 "resources": {"limits": {"memory": "1500m"}}},
                {"ports": [{"containerPort": 80, "protocol": "TCP"}]}
            ]
        }});
        let mut out = Vec::new();
        pod(&new, None, &mut out);
        let wanted = [
            "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            "spec.volumes[0].gitRepo: deprecated in v1.11",
            "spec.hostAliases[1].ip: duplicate ip \"1.1.1.1\"",
            "spec.containers[0].resources.limits[memory]: fractional byte value \"1500m\" is invalid, must be an integer",
            "spec.containers[0].env[2]: hides previous definition of \"A\", which may be dropped when using apply",
            "spec.containers[1].ports[0]: duplicate port definition with spec.containers[0].ports[0]",
        ];
        assert_eq!(out, wanted);
    }
}
