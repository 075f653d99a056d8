//! Rules of environment variables and of references to fields of the pod.

use super::{one_of_if_set, reasons};
use crate::error::FieldErrors;
use crate::name;
use crate::object::Value;
use crate::quantity::Quantity;

const FIELD_REFS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// All that a reference can name; each place knows some of them.
const LABELS: [&str; 14] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.phase",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const SIZES: [&str; 13] =
    ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

pub(super) fn env(path: &str, v: &Value, errs: &mut FieldErrors) {
    for (i, e) in v.items().iter().enumerate() {
        let at = format!("{path}[{i}]");
        match e["name"].text() {
            "" => errs.required(format!("{at}.name"), ""),
            n => reasons(&format!("{at}.name"), n, name::env_name(n), errs),
        }
        if e.has("valueFrom") {
            value_from(&format!("{at}.valueFrom"), e, errs);
        }
    }
}

fn value_from(at: &str, e: &Value, errs: &mut FieldErrors) {
    let from = &e["valueFrom"];
    let sources = from.members().filter(|(_, v)| !v.is_null()).count();
    if sources == 0 {
        errs.invalid(
            at,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, \
            `secretKeyRef` or `fileKeyRef`",
        );
    } else if !e["value"].text().is_empty() {
        errs.invalid(at, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        errs.invalid(at, "", "may not have more than one field specified at a time");
    }
    if from.has("fieldRef") {
        field_ref(&format!("{at}.fieldRef"), &from["fieldRef"], &FIELD_REFS, errs);
    }
    if from.has("resourceFieldRef") {
        let field = format!("{at}.resourceFieldRef");
        resource_ref(&field, &from["resourceFieldRef"], false, errs);
    }
    for key in ["configMapKeyRef", "secretKeyRef"] {
        let Some(r) = from.get(key) else { continue };
        let n = r["name"].text();
        reasons(&format!("{at}.{key}.name"), n, name::dns_subdomain(n), errs);
        match r["key"].text() {
            "" => errs.required(format!("{at}.{key}.key"), ""),
            k => reasons(&format!("{at}.{key}.key"), k, name::config_key(k), errs),
        }
    }
}

/// A reference to a field of the pod, one of `known`.
pub(super) fn field_ref(at: &str, r: &Value, known: &[&str], errs: &mut FieldErrors) {
    let field = r["fieldPath"].text();
    if r["apiVersion"].text().is_empty() {
        errs.required(format!("{at}.apiVersion"), "");
        return;
    }
    if field.is_empty() {
        errs.required(format!("{at}.fieldPath"), "");
        return;
    }
    let unknown =
        |field: &str| format!("error converting fieldPath: field label not supported: {field}");
    let subscript =
        field.split_once("['").and_then(|(p, rest)| Some((p, rest.strip_suffix("']")?)));
    match subscript {
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            reasons(at, &key, name::qualified(&key), errs);
        }
        Some(("metadata.labels", key)) => reasons(at, key, name::qualified(key), errs),
        Some(_) => errs.invalid(
            format!("{at}.fieldPath"),
            field,
            format!("error converting fieldPath: field label does not support subscript: {field}"),
        ),
        None if !LABELS.contains(&field) => {
            errs.invalid(format!("{at}.fieldPath"), field, unknown(field));
        }
        None if !known.contains(&field) => {
            errs.not_supported(format!("{at}.fieldPath"), field, known);
        }
        None => {}
    }
}

/// A reference to what a container asks for; `named` where the container has to be named.
pub(super) fn resource_ref(at: &str, r: &Value, named: bool, errs: &mut FieldErrors) {
    let resource = r["resource"].text();
    let huge = ["limits.hugepages-", "requests.hugepages-"].iter().any(|p| resource.starts_with(p));
    if named && r["containerName"].text().is_empty() {
        errs.required(format!("{at}.containerName"), "");
    } else if resource.is_empty() {
        errs.required(format!("{at}.resource"), "");
    } else if !RESOURCES.contains(&resource) && !huge {
        errs.not_supported(format!("{at}.resource"), resource, &RESOURCES);
    }
    let Ok(divisor) = Quantity::parse(r["divisor"].text()) else { return };
    if divisor.is_zero() {
        return;
    }
    let shown = divisor.to_string();
    let kind = match resource.split_once('.').map(|(_, kind)| kind) {
        Some("cpu") if matches!(shown.as_str(), "1m" | "1") => return,
        Some("cpu") => {
            let text = "only divisor's values 1m and 1 are supported with the cpu resource";
            errs.invalid(format!("{at}.divisor"), resource, text);
            return;
        }
        Some("memory") => "memory",
        Some("ephemeral-storage") => "local ephemeral storage",
        Some(kind) if kind.starts_with("hugepages-") => "hugepages",
        _ => return,
    };
    if !SIZES.contains(&shown.as_str()) {
        let text = format!(
            "only divisor's values {} are supported with the {kind} resource",
            SIZES.join(", ")
        );
        errs.invalid(format!("{at}.divisor"), resource, text);
    }
}

pub(super) fn env_from(path: &str, v: &Value, errs: &mut FieldErrors) {
    for (i, e) in v.items().iter().enumerate() {
        let at = format!("{path}[{i}]");
        let prefix = e["prefix"].text();
        if !prefix.is_empty() {
            reasons(&format!("{at}.prefix"), prefix, name::env_name(prefix), errs);
        }
        let mut sources = 0;
        for key in ["configMapRef", "secretRef"] {
            let Some(r) = e.get(key) else { continue };
            sources += 1;
            match r["name"].text() {
                "" => errs.required(format!("{at}.{key}.name"), ""),
                n => reasons(&format!("{at}.{key}.name"), n, name::dns_subdomain(n), errs),
            }
        }
        // Upstream does not say which of the list it is.
        match sources {
            0 => errs.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errs.invalid(path, "", "may not have more than one field specified at a time"),
        }
    }
}

/// How a change of resources reaches a running container.
pub(super) fn resize_policies(path: &str, v: &Value, never: bool, errs: &mut FieldErrors) {
    let list = v.items();
    for (i, p) in list.iter().enumerate() {
        if list[..i].iter().any(|o| o["resourceName"] == p["resourceName"]) {
            errs.duplicate(format!("{path}[{i}]"), p["resourceName"].clone());
        }
        for (key, known) in [
            ("resourceName", ["cpu", "memory"]),
            ("restartPolicy", ["NotRequired", "RestartContainer"]),
        ] {
            if p[key].text().is_empty() {
                errs.required(path, "");
            } else {
                one_of_if_set(path, &p[key], &known, errs);
            }
        }
        if never && p["restartPolicy"].text() != "NotRequired" {
            let text = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errs.invalid(path, p["restartPolicy"].text(), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_from_one_place_that_exists() {
        let cases = [
            (
                crate::json!([{"name": "a", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
                vec![],
            ),
            (
                crate::json!([{"name": "a", "valueFrom": {"resourceFieldRef": {"resource": "limits.gpu"}}}]),
                vec!["e[0].valueFrom.resourceFieldRef.resource"],
            ),
            (
                crate::json!([{"name": "a", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "2"}}}]),
                vec!["e[0].valueFrom.resourceFieldRef.divisor"],
            ),
            (
                crate::json!([{"name": "a", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels"}}}]),
                vec!["e[0].valueFrom.fieldRef.fieldPath"],
            ),
            (
                crate::json!([{"name": "a", "valueFrom": {"configMapKeyRef": {"name": "A_", "key": ""}}}]),
                vec!["e[0].valueFrom.configMapKeyRef.name", "e[0].valueFrom.configMapKeyRef.key"],
            ),
        ];
        for (list, wanted) in cases {
            let mut errs = FieldErrors::new();
            env("e", &list, &mut errs);
            let fields: Vec<&str> = errs.iter().map(|e| e.field.as_str()).collect();
            assert_eq!(fields, wanted, "{list}");
        }
    }
}
