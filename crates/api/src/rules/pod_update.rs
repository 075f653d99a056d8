//! What of a pod may change once it exists.

use crate::error::FieldErrors;
use crate::object::Value;

const ALLOWED: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A write to the main resource.
pub fn update(new: &Value, old: &Value, errs: &mut FieldErrors) {
    let (n, o) = (&new["spec"], &old["spec"]);
    if n == o {
        // What was let in stays in: most writes change labels, annotations or finalizers only.
        return super::pod::annotations("metadata.annotations", new, n, errs);
    }
    super::pod::whole(new, errs);
    for list in ["containers", "initContainers"] {
        if n[list].items().len() != o[list].items().len() {
            let text = "pod updates may not add or remove containers";
            errs.forbidden(format!("spec.{list}"), text);
            return;
        }
        for (i, c) in n[list].items().iter().enumerate() {
            let (at, image) = (format!("spec.{list}[{i}].image"), c["image"].text());
            if image.is_empty() {
                errs.required(at, "");
            } else if image.trim() != image {
                errs.invalid(at, image, "must not have leading or trailing whitespace");
            }
        }
    }
    if !deadline(n, o, errs) {
        return;
    }
    if !tolerations_grow(n, o) {
        let text = "existing toleration can not be modified except its tolerationSeconds";
        errs.forbidden("spec.tolerations", text);
    }
    for (i, gate) in n["schedulingGates"].items().iter().enumerate() {
        if !o["schedulingGates"].items().contains(gate) {
            let name = gate["name"].text();
            let text = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errs.forbidden(format!("spec.schedulingGates[{i}].name"), text);
        }
    }
    let mut munged = n.clone();
    for list in ["containers", "initContainers"] {
        let olds = o[list].items();
        if let Some(items) = munged.get_mut(list) {
            for (c, old) in items.items_mut().iter_mut().zip(olds) {
                c.set("image", old["image"].clone());
            }
        }
    }
    let mut keys = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    if o["terminationGracePeriodSeconds"].as_int().is_some_and(|s| s < 0)
        && n["terminationGracePeriodSeconds"].as_int() == Some(1)
    {
        keys.push("terminationGracePeriodSeconds");
    }
    if !o["schedulingGates"].is_empty() {
        narrowed(n, o, errs);
        keys.push("nodeSelector");
        put_back(&mut munged, o, &["affinity", "nodeAffinity"]);
        if munged["affinity"].is_empty() && !o.has("affinity") {
            munged.remove("affinity");
        }
    }
    keys.iter().for_each(|key| put_back(&mut munged, o, &[key]));
    if munged != *o {
        errs.forbidden("spec", format!("{ALLOWED}{}", super::difference(o, &munged)));
    }
}

/// Takes one field from the old spec.
fn put_back(spec: &mut Value, old: &Value, path: &[&str]) {
    match old.at(path) {
        Some(v) => spec.set_at(path, v.clone()),
        None => {
            spec.remove_at(path);
        }
    }
}

/// While a pod is held back from the scheduler, the nodes it may run on may become fewer, not more.
fn narrowed(n: &Value, o: &Value, errs: &mut FieldErrors) {
    let at = "spec.nodeSelector";
    for (key, v) in o["nodeSelector"].members() {
        if n["nodeSelector"].get(key) != Some(v) {
            let text =
                "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            let shown = n["nodeSelector"].clone();
            errs.invalid(at, if shown.is_null() { Value::object() } else { shown }, text);
            break;
        }
    }
    let at = "spec.affinity.nodeAffinity";
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let terms =
        |spec: &Value| spec["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"].clone();
    let (new, old) = (terms(n), terms(o));
    if old.is_empty() {
        return;
    }
    if new.items().len() != old.items().len() {
        let text = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        let field = format!("{at}.{required}.nodeSelectorTerms");
        errs.invalid(field, super::internal(&new), text);
        return;
    }
    for (i, (new, old)) in new.items().iter().zip(old.items()).enumerate() {
        let wider = ["matchExpressions", "matchFields"].iter().any(|list| {
            !old[*list]
                .items()
                .iter()
                .enumerate()
                .all(|(j, e)| new[*list].items().get(j) == Some(e))
        });
        if wider || (old.is_empty() && !new.is_empty()) {
            let text = "only additions are allowed (no mutations or deletions)";
            let field = format!("{at}.{required}.nodeSelectorTerms[{i}]");
            errs.invalid(field, super::internal(new), text);
        }
    }
}

/// Whether there is more to look at.
fn deadline(n: &Value, o: &Value, errs: &mut FieldErrors) -> bool {
    let (new, old) = (n["activeDeadlineSeconds"].as_int(), o["activeDeadlineSeconds"].as_int());
    let path = "spec.activeDeadlineSeconds";
    match (new, old) {
        (Some(n), _) if n < 0 || n > i64::from(i32::MAX) => {
            errs.invalid(path, n, format!("must be between 0 and {}, inclusive", i32::MAX));
            false
        }
        (Some(n), Some(o)) if n > o => {
            errs.invalid(path, n, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            let text = "must not update from a positive integer to nil value";
            errs.invalid(path, Value::Null, text);
            true
        }
        _ => true,
    }
}

/// Tolerations may be added; of those there are only the seconds may change.
fn tolerations_grow(n: &Value, o: &Value) -> bool {
    let bare = |t: &Value| {
        let mut t = t.clone();
        t.remove("tolerationSeconds");
        t
    };
    let news: Vec<Value> = n["tolerations"].items().iter().map(bare).collect();
    o["tolerations"].items().iter().map(bare).all(|t| news.contains(&t))
}

/// A write through `ephemeralcontainers`.
pub fn ephemeral_containers(new: &Value, old: &Value, errs: &mut FieldErrors) {
    let path = "spec.ephemeralContainers";
    let (n, o) =
        (new["spec"]["ephemeralContainers"].items(), old["spec"]["ephemeralContainers"].items());
    let spec = &new["spec"];
    let mut names: Vec<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|l| spec[*l].items().iter().map(|c| c["name"].text()))
        .collect();
    for (i, c) in n.iter().enumerate() {
        let at = format!("{path}[{i}]");
        let name = c["name"].text();
        if name.is_empty() {
            errs.required(format!("{at}.name"), "");
        } else if names.contains(&name) {
            errs.duplicate(format!("{at}.name"), name);
        } else {
            super::reasons(&format!("{at}.name"), name, crate::name::dns_label(name), errs);
        }
        names.push(name);
        if c["image"].text().is_empty() {
            errs.required(format!("{at}.image"), "");
        }
        let target = c["targetContainerName"].text();
        let known = spec["containers"].items().iter().any(|c| c["name"].text() == target);
        if !target.is_empty() && !known {
            errs.not_found(format!("{at}.targetContainerName"), target);
        }
        for key in
            ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources"]
        {
            if !c[key].is_empty() {
                errs.forbidden(format!("{at}.{key}"), "cannot be set for an Ephemeral Container");
            }
        }
    }
    for old in o {
        let name = old["name"].text();
        match n.iter().find(|c| c["name"].text() == name) {
            None => {
                let text = format!("existing ephemeral containers {name:?} may not be removed\n");
                errs.forbidden(path, text);
            }
            Some(new) if new != old => {
                let hunk = super::difference(old, new);
                let text =
                    format!("existing ephemeral containers {name:?} may not be changed{hunk}");
                errs.forbidden(path, text);
            }
            Some(_) => {}
        }
    }
}

/// A write through `resize`.
pub fn resize(new: &Value, old: &Value, errs: &mut FieldErrors) {
    let (n, o) = (&new["spec"], &old["spec"]);
    super::pod::whole(new, errs);
    if o["os"]["name"].text() == "windows" {
        errs.forbidden("", "windows pods cannot be resized");
        return;
    }
    if crate::meta::annotation(old, "kubernetes.io/config.mirror").is_some() {
        errs.forbidden("", "static pods cannot be resized");
        return;
    }
    if super::pod::qos_class(n) != super::pod::qos_class(o) {
        let class = new["status"]["qosClass"].text();
        errs.invalid("spec", class, "Pod QOS Class may not change as a result of resizing");
    }
    let mut running = old["status"]["containerStatuses"].items().iter();
    if running.find(|c| c["state"].has("running")).is_some_and(|c| !c.has("resources")) {
        errs.forbidden("spec", "Pod running on node without support for resize");
    }
    for (list, what) in [
        ("initContainers", "only cpu and memory resources for sidecar containers are mutable"),
        ("containers", "only cpu and memory resources are mutable"),
    ] {
        for (i, (c, old)) in n[list].items().iter().zip(o[list].items()).enumerate() {
            let sidecar = c["restartPolicy"].text() == "Always";
            if list == "initContainers" && !sidecar {
                if c != old {
                    let text = "resources for non-sidecar init containers are immutable";
                    errs.forbidden("spec", text);
                }
                continue;
            }
            container_resize(&format!("spec.{list}[{i}].resources"), c, old, errs);
            if beside_cpu_and_memory(c, old) != *old {
                errs.forbidden("spec", what);
            }
        }
    }
}

/// A container with the cpu and memory that it had.
fn beside_cpu_and_memory(c: &Value, old: &Value) -> Value {
    let mut c = c.clone();
    for list in ["requests", "limits"] {
        for key in ["cpu", "memory"] {
            put_back(&mut c, old, &["resources", list, key]);
        }
        if c["resources"][list].is_empty() && !old["resources"].has(list) {
            c.remove_at(&["resources", list]);
        }
    }
    c
}

/// Nothing that was promised may be taken away.
fn container_resize(at: &str, c: &Value, old: &Value, errs: &mut FieldErrors) {
    for (list, what) in [("requests", "resource requests"), ("limits", "resource limits")] {
        let now = &c["resources"][list];
        if old["resources"][list].members().any(|(key, _)| !now.has(key)) {
            errs.forbidden(format!("{at}.{list}"), format!("{what} cannot be removed"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resize_keeps_the_class_and_touches_cpu_and_memory_only() {
        let pod = |resources: Value| {
            let mut pod = crate::json!({"metadata": {"name": "p"}, "status": {"qosClass": "Burstable"},
                "spec": {"containers": [{"name": "c", "image": "i"}]}});
            if let Some(list) = pod.at_mut(&["spec", "containers"]) {
                list.items_mut()[0].set("resources", resources);
            }
            crate::defaults::pod::pod(&mut pod);
            pod
        };
        let old = pod(crate::json!({"requests": {"cpu": "1"}}));
        let cases = [
            (crate::json!({"requests": {"cpu": "2"}}), 0),
            (
                crate::json!({"requests": {"cpu": "1", "memory": "1"}, "limits": {"cpu": "1", "memory": "1"}}),
                1,
            ),
            (crate::json!({"requests": {"cpu": "1", "ephemeral-storage": "1"}}), 1),
        ];
        for (resources, wanted) in cases {
            let mut errs = FieldErrors::new();
            resize(&pod(resources.clone()), &old, &mut errs);
            assert_eq!(errs.len(), wanted, "{resources}");
        }
    }
}
