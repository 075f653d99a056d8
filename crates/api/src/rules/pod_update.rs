//! What of a pod may change once it exists.

use crate::error::FieldErrors;
use crate::object::Value;

const ALLOWED: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A write to the main resource.
pub fn update(new: &Value, old: &Value, errs: &mut FieldErrors) {
    let (n, o) = (&new["spec"], &old["spec"]);
    for list in ["containers", "initContainers"] {
        if n[list].items().len() != o[list].items().len() {
            let text = "pod updates may not add or remove containers";
            errs.forbidden(format!("spec.{list}"), text);
            return;
        }
        for (i, c) in n[list].items().iter().enumerate() {
            if c["image"].text().is_empty() {
                errs.required(format!("spec.{list}[{i}].image"), "");
            }
        }
    }
    deadline(n, o, errs);
    if !tolerations_grow(n, o) {
        let text = "existing toleration can not be modified except its tolerationSeconds";
        errs.forbidden("spec.tolerations", text);
    }
    let gated = !o["schedulingGates"].is_empty();
    let added =
        n["schedulingGates"].items().iter().any(|g| !o["schedulingGates"].items().contains(g));
    if added {
        let text = "only deletion is allowed, but found new scheduling gate";
        errs.forbidden("spec.schedulingGates", text);
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
    if gated {
        keys.extend(["nodeSelector", "affinity"]);
    }
    for key in keys {
        match o.get(key) {
            Some(v) => munged.set(key, v.clone()),
            None => {
                munged.remove(key);
            }
        }
    }
    if munged != *o {
        errs.forbidden("spec", ALLOWED);
    }
}

fn deadline(n: &Value, o: &Value, errs: &mut FieldErrors) {
    let (new, old) = (n["activeDeadlineSeconds"].as_int(), o["activeDeadlineSeconds"].as_int());
    let path = "spec.activeDeadlineSeconds";
    match (new, old) {
        (Some(n), _) if n < 1 || n > i64::from(i32::MAX) => {
            errs.invalid(path, n, format!("must be between 1 and {}, inclusive", i32::MAX));
        }
        (Some(n), Some(o)) if n > o => {
            errs.invalid(path, n, format!("must be less than or equal to previous value {o}"));
        }
        (None, Some(_)) => {
            errs.invalid(path, Value::Null, "must not update from a positive integer to nil value")
        }
        _ => {}
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
    if n["os"]["name"].text() == "windows" {
        errs.forbidden("", "windows pods cannot be resized");
    }
    if crate::meta::annotation(new, "kubernetes.io/config.mirror").is_some() {
        errs.forbidden("", "static pods cannot be resized");
    }
    if super::pod::qos_class(n) != super::pod::qos_class(o) {
        let class = new["status"]["qosClass"].text();
        errs.invalid("spec", class, "Pod QOS Class may not change as a result of resizing");
    }
    let rest = |spec: &Value| -> Vec<Value> {
        let lists = ["containers", "initContainers"].into_iter().flat_map(|l| spec[l].items());
        let mut all: Vec<Value> = lists.map(|c| c["resources"].clone()).collect();
        for resources in &mut all {
            for list in ["requests", "limits"] {
                for key in ["cpu", "memory"] {
                    resources.remove_at(&[list, key]);
                }
                if resources[list].is_empty() {
                    resources.remove(list);
                }
            }
        }
        all
    };
    if rest(n) != rest(o) {
        errs.forbidden("spec", "only cpu and memory resources are mutable");
    }
    for list in ["containers", "initContainers"] {
        for (i, c) in n[list].items().iter().enumerate() {
            super::pod::resources(&format!("spec.{list}[{i}].resources"), &c["resources"], errs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resize_keeps_the_class_and_touches_cpu_and_memory_only() {
        let pod = |resources: Value| {
            let mut container = Value::object();
            container.set("resources", resources);
            let mut pod = crate::json!({"status": {"qosClass": "Burstable"}});
            pod.set_at(&["spec", "containers"], vec![container]);
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
