//! Rules of limit ranges and quotas.

use super::{IMMUTABLE, reasons};
use crate::error::FieldErrors;
use crate::name;
use crate::object::Value;
use crate::quantity::Quantity;

/// LimitRange.
pub fn limit_range(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let list = new["spec"]["limits"].items();
    for (i, l) in list.iter().enumerate() {
        let at = format!("spec.limits[{i}]");
        let kind = l["type"].text();
        if list[..i].iter().any(|o| o["type"] == l["type"]) {
            errs.duplicate(format!("{at}.type"), kind);
        }
        let known = matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim");
        if !known && !kind.contains('/') {
            let text = "must be a standard limit type or fully qualified";
            errs.invalid(format!("{at}.type"), kind, text);
        }
        let unbounded = !l["min"].has("storage") && !l["max"].has("storage");
        if kind == "PersistentVolumeClaim" && unbounded {
            let text =
                "either minimum or maximum storage value is required, but neither was provided";
            errs.required(format!("{at}.limits"), text);
        }
        if kind == "Pod" {
            for f in ["default", "defaultRequest"] {
                if !l[f].is_empty() {
                    errs.forbidden(
                        format!("{at}.{f}"),
                        "may not be specified when `type` is 'Pod'",
                    );
                }
            }
        }
        limit_item(&at, l, errs);
    }
}

fn limit_item(at: &str, l: &Value, errs: &mut FieldErrors) {
    let q = |list: &str, key: &str| l[list][key].as_str().and_then(|s| Quantity::parse(s).ok());
    let mut keys: Vec<&str> = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"]
        .iter()
        .flat_map(|list| l[*list].members().map(|(k, _)| k))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        for (key, _) in l[list].members() {
            let at = format!("{at}.{list}[{key}]");
            if matches!(l["type"].text(), "Pod" | "Container") {
                super::amounts::resource_name(&at, key, errs);
            } else {
                reasons(&at, key, name::qualified(key), errs);
            }
        }
    }
    for k in keys {
        let mut above = |field: &str, low: (&str, &str), high: (&str, &str)| {
            if let (Some(a), Some(b)) = (q(low.0, k), q(high.0, k))
                && a > b
            {
                // Of a default, upstream shows what it is compared with.
                let shown = match (low.0, high.0) {
                    ("min", "default") => &l["min"],
                    ("default", "max") => &l["max"],
                    _ => &l[field],
                };
                let shown = shown[k].clone();
                let text = format!("{} value {a} is greater than {} value {b}", low.1, high.1);
                errs.invalid(format!("{at}.{field}[{k}]"), shown, text);
            }
        };
        let (min, max) = (("min", "min"), ("max", "max"));
        let (dr, d) = (("defaultRequest", "default request"), ("default", "default"));
        above("min", min, max);
        above("defaultRequest", min, dr);
        above("defaultRequest", dr, max);
        above("defaultRequest", dr, ("default", "default limit"));
        above("default", min, d);
        above("default", d, max);
        if let Some(r) = q("maxLimitRequestRatio", k)
            && r < Quantity::of(1)
        {
            errs.invalid(
                format!("{at}.maxLimitRequestRatio[{k}]"),
                l["maxLimitRequestRatio"][k].clone(),
                format!("ratio {r} is less than 1"),
            );
        }
    }
}

const QUOTA_INTEGERS: [&str; 8] = [
    "pods",
    "services",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
];

const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
const COMPUTE: [&str; 7] =
    ["pods", "cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// Whether a resource is counted by the things this scope tells apart.
fn scope_fits(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "NotBestEffort"
        | "Terminating"
        | "NotTerminating"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => {
            COMPUTE.contains(&resource)
                || ["ephemeral-storage", "requests.ephemeral-storage", "limits.ephemeral-storage"]
                    .contains(&resource)
                || resource == "count/pods"
                || resource.contains("hugepages-")
                || (resource.starts_with("requests.") && resource.contains('/'))
        }
        "VolumeAttributesClass" => matches!(
            resource,
            "requests.storage" | "persistentvolumeclaims" | "count/persistentvolumeclaims"
        ),
        _ => true,
    }
}

fn scopes(spec: &Value, errs: &mut FieldErrors) {
    let list = &spec["scopes"];
    let has = |scope: &str| list.items().iter().any(|s| s.text() == scope);
    let misfits = |scope: &str| spec["hard"].members().any(|(key, _)| !scope_fits(scope, key));
    for scope in list.items() {
        if !SCOPES.contains(&scope.text()) {
            errs.invalid("spec.scopes", list.clone(), "unsupported scope");
        }
        let each = spec["hard"].members().filter(|(key, _)| !scope_fits(scope.text(), key));
        if each.count() > 0 {
            errs.invalid("spec.scopes", list.clone(), "unsupported scope applied to resource");
        }
    }
    for (a, b) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if has(a) && has(b) {
            errs.invalid("spec.scopes", list.clone(), "conflicting scopes");
        }
    }
    let at = "spec.scopeSelector.matchExpressions";
    let all = &spec["scopeSelector"]["matchExpressions"];
    for item in all.items() {
        let (scope, operator) = (item["scopeName"].text(), item["operator"].text());
        if !SCOPES.contains(&scope) {
            errs.invalid(format!("{at}.scopeName"), scope, "unsupported scope");
        }
        if misfits(scope) {
            errs.invalid(at, super::internal(all), "unsupported scope applied to resource");
        }
        let binary =
            !matches!(scope, "PriorityClass" | "VolumeAttributesClass") && SCOPES.contains(&scope);
        if binary && operator != "Exists" {
            let text = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, \
                        ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                        ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errs.invalid(format!("{at}.operator"), operator, text);
        }
        match (operator, item["values"].is_empty()) {
            ("In" | "NotIn", true) => errs.required(
                format!("{at}.values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            ("Exists" | "DoesNotExist", false) => errs.invalid(
                format!("{at}.values"),
                item["values"].clone(),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
            _ => errs.invalid(format!("{at}.operator"), operator, "not a valid selector operator"),
        }
    }
}

/// ResourceQuota.
pub fn resource_quota(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    for (key, v) in new["spec"]["hard"].members() {
        let at = format!("spec.hard[{key}]");
        quota_name(&at, key, errs);
        if let Ok(q) = Quantity::parse(v.text()) {
            if q.is_negative() {
                errs.invalid(&at, v.clone(), super::NON_NEGATIVE);
            }
            let integer = QUOTA_INTEGERS.contains(&key)
                || key.starts_with("count/")
                || key == "services.loadbalancers";
            if integer && !q.is_whole() {
                errs.invalid(&at, v.clone(), "must be an integer");
            }
        }
    }
    scopes(&new["spec"], errs);
    if let Some(old) = old {
        let key = |v: &Value| {
            let mut l: Vec<String> =
                v["spec"]["scopes"].items().iter().map(|s| s.text().to_owned()).collect();
            l.sort();
            l
        };
        if key(new) != key(old) {
            errs.invalid("spec.scopes", new["spec"]["scopes"].clone(), IMMUTABLE);
        }
    }
}

fn quota_name(at: &str, key: &str, errs: &mut FieldErrors) {
    reasons(at, key, name::qualified(key), errs);
    if !key.contains('/') {
        let compute = ["cpu", "memory", "ephemeral-storage", "storage"];
        let bare =
            key.strip_prefix("requests.").or_else(|| key.strip_prefix("limits.")).unwrap_or(key);
        let known = QUOTA_INTEGERS.contains(&key)
            || key == "services.loadbalancers"
            || compute.contains(&bare)
            || bare.starts_with("hugepages-");
        if !known {
            errs.invalid(at, key, "must be a standard resource for quota");
            if name::qualified(key).is_empty() {
                errs.invalid(at, key, "must be a standard resource type or fully qualified");
            }
        }
    }
}
