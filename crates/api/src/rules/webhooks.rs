//! Rules of webhook configurations.

use super::{label_selector, one_of_if_set, reasons};
use crate::error::FieldErrors;
use crate::name;
use crate::object::Value;

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
const FORM: &str = "; desired format: https://host[/path]";
const CONDITIONS_MAX: usize = 64;

/// ValidatingWebhookConfiguration and MutatingWebhookConfiguration.
pub fn configuration(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let list = new["webhooks"].items();
    for (i, hook) in list.iter().enumerate() {
        let at = format!("webhooks[{i}]");
        webhook(&at, hook, errs);
        let n = hook["name"].text();
        if !n.is_empty() && list[..i].iter().any(|o| o["name"].text() == n) {
            errs.duplicate(format!("{at}.name"), n);
        }
    }
}

fn webhook(at: &str, hook: &Value, errs: &mut FieldErrors) {
    match hook["name"].text() {
        "" => errs.required(format!("{at}.name"), ""),
        n => {
            let wrong = name::dns_subdomain(n);
            if wrong.is_empty() && n.split('.').count() < 3 {
                let text = "should be a domain with at least three segments separated by dots";
                errs.invalid(format!("{at}.name"), n, text);
            }
            reasons(&format!("{at}.name"), n, wrong, errs);
        }
    }
    for (i, rule) in hook["rules"].items().iter().enumerate() {
        with_operations(&format!("{at}.rules[{i}]"), rule, errs);
    }
    for (key, known) in [
        ("failurePolicy", ["Fail", "Ignore"]),
        ("matchPolicy", ["Equivalent", "Exact"]),
        ("reinvocationPolicy", ["IfNeeded", "Never"]),
    ] {
        one_of_if_set(&format!("{at}.{key}"), &hook[key], &known, errs);
    }
    let effects = ["None", "NoneOnDryRun"];
    if hook.has("sideEffects") {
        one_of_if_set(&format!("{at}.sideEffects"), &hook["sideEffects"], &effects, errs);
    } else {
        errs.required(format!("{at}.sideEffects"), "must specify one of None, NoneOnDryRun");
    }
    if hook["timeoutSeconds"].as_int().is_some_and(|n| !(1..=30).contains(&n)) {
        let text = "the timeout value must be between 1 and 30 seconds";
        errs.invalid(format!("{at}.timeoutSeconds"), hook["timeoutSeconds"].clone(), text);
    }
    for key in ["namespaceSelector", "objectSelector"] {
        label_selector(&format!("{at}.{key}"), &hook[key], errs);
    }
    client(&format!("{at}.clientConfig"), &hook["clientConfig"], errs);
    conditions(&format!("{at}.matchConditions"), &hook["matchConditions"], errs);
    review_versions(
        &format!("{at}.admissionReviewVersions"),
        &hook["admissionReviewVersions"],
        errs,
    );
}

fn review_versions(at: &str, v: &Value, errs: &mut FieldErrors) {
    let list = v.items();
    if list.is_empty() {
        errs.required(at, "must specify one of v1, v1beta1");
        return;
    }
    for (i, version) in list.iter().enumerate() {
        let field = format!("{at}[{i}]");
        if list[..i].contains(version) {
            errs.invalid(field, version.clone(), "duplicate version");
        } else {
            reasons(&field, version.text(), name::dns_label_1035(version.text()), errs);
        }
    }
    if !list.iter().any(|version| matches!(version.text(), "v1" | "v1beta1")) {
        errs.invalid(at, v.clone(), "must include at least one of v1, v1beta1");
    }
}

/// How a webhook is called.
fn client(at: &str, c: &Value, errs: &mut FieldErrors) {
    match (c.get("url"), c.get("service")) {
        (Some(url), None) => address(&format!("{at}.url"), url.text(), errs),
        (None, Some(service)) => service_of(&format!("{at}.service"), service, errs),
        _ => errs.required(at, "exactly one of url or service is required"),
    }
}

fn address(at: &str, url: &str, errs: &mut FieldErrors) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        errs.invalid(at, scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let host = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or("") };
    let (user, host) = host.rsplit_once('@').unwrap_or(("", host));
    if host.is_empty() {
        errs.invalid(at, "", format!("host must be specified{FORM}"));
    }
    for (part, text) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            errs.invalid(at, part, text);
        }
    }
}

fn service_of(at: &str, s: &Value, errs: &mut FieldErrors) {
    for key in ["name", "namespace"] {
        if s[key].text().is_empty() {
            errs.required(format!("{at}.{key}"), format!("service {key} is required"));
        }
    }
    if s["port"].as_int().is_some_and(|n| !(1..=65535).contains(&n)) {
        let text = format!("port is not valid: {}", super::PORT_RANGE);
        errs.invalid(format!("{at}.port"), s["port"].clone(), text);
    }
    let path = s["path"].text();
    let at = format!("{at}.path");
    if path.is_empty() || path == "/" {
        return;
    }
    let Some(rest) = path.strip_prefix('/') else {
        errs.invalid(at, path, "must start with a '/'");
        return;
    };
    let steps: Vec<&str> = rest.strip_suffix('/').unwrap_or(rest).split('/').collect();
    for (i, step) in steps.iter().enumerate() {
        if step.is_empty() {
            errs.invalid(&at, path, format!("segment[{i}] may not be empty"));
        }
        for wrong in name::dns_subdomain(step).into_iter().filter(|_| !step.is_empty()) {
            errs.invalid(&at, path, format!("segment[{i}]: {wrong}"));
        }
    }
}

/// Conditions have names of their own; their expressions are not read yet.
fn conditions(at: &str, v: &Value, errs: &mut FieldErrors) {
    let list = v.items();
    if list.len() > CONDITIONS_MAX {
        errs.too_many(at, list.len(), CONDITIONS_MAX);
    }
    for (i, c) in list.iter().enumerate() {
        let (field, n) = (format!("{at}[{i}].name"), c["name"].text());
        if c["expression"].text().trim().is_empty() {
            errs.required(format!("{at}[{i}].expression"), "");
        }
        if n.is_empty() {
            errs.required(field, "");
        } else if list[..i].iter().any(|o| o["name"].text() == n) {
            errs.duplicate(field, n);
        } else {
            reasons(&field, n, name::qualified(n), errs);
        }
    }
}

/// What calls a webhook: operations on resources.
pub(super) fn with_operations(at: &str, rule: &Value, errs: &mut FieldErrors) {
    let operations = rule["operations"].items();
    let field = format!("{at}.operations");
    if operations.is_empty() {
        errs.required(&field, "");
    }
    alone(&field, &rule["operations"], "operations", errs);
    for (i, op) in operations.iter().enumerate() {
        if !OPERATIONS.contains(&op.text()) {
            errs.not_supported(format!("{field}[{i}]"), op.clone(), &OPERATIONS);
        }
    }
    for (key, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let field = format!("{at}.{key}");
        if rule[key].is_empty() {
            errs.required(&field, "");
        }
        alone(&field, &rule[key], what, errs);
    }
    for (i, version) in rule["apiVersions"].items().iter().enumerate() {
        if version.text().is_empty() {
            errs.required(format!("{at}.apiVersions[{i}]"), "");
        }
    }
    resources(&format!("{at}.resources"), &rule["resources"], errs);
    one_of_if_set(&format!("{at}.scope"), &rule["scope"], &SCOPES, errs);
}

fn alone(at: &str, list: &Value, what: &str, errs: &mut FieldErrors) {
    let all = list.items();
    if all.len() > 1 && all.iter().any(|item| item.text() == "*") {
        let text = format!("if '*' is present, must not specify other {what}");
        errs.invalid(at, list.clone(), text);
    }
}

fn resources(at: &str, v: &Value, errs: &mut FieldErrors) {
    let list = v.items();
    if list.is_empty() {
        errs.required(at, "");
    }
    for (i, item) in list.iter().enumerate() {
        let text = item.text();
        if text.is_empty() {
            errs.required(format!("{at}[{i}]"), "");
        }
        let Some((resource, sub)) = text.split_once('/') else { continue };
        let before = |wide: &str| list[..i].iter().any(|o| o.text() == wide);
        for wide in [format!("{resource}/*"), format!("*/{sub}")] {
            if before(&wide) {
                let why = format!("if '{wide}' is present, must not specify {text}");
                errs.invalid(format!("{at}[{i}]"), text, why);
            }
        }
    }
    let has = |wanted: &str| list.iter().any(|item| item.text() == wanted);
    if list.len() > 1 && has("*/*") {
        errs.invalid(at, v.clone(), "if '*/*' is present, must not specify other resources");
    }
    let whole = |item: &Value| item.text() != "*" && !item.text().contains('/');
    if has("*") && list.iter().any(whole) {
        let text = "if '*' is present, must not specify other resources without subresources";
        errs.invalid(at, v.clone(), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_says_where_it_is_and_what_calls_it() {
        let good = crate::json!({"webhooks": [{"name": "a.b.c", "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "clientConfig": {"url": "https://h/p"},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}]});
        let bad = crate::json!({"webhooks": [{"name": "a", "clientConfig": {"service": {"path": "x"}},
            "rules": [{"operations": ["*", "X"], "apiGroups": ["*"], "apiVersions": [""], "resources": ["*", "pods"]}]}]});
        let fields = |object: &Value| {
            let mut errs = FieldErrors::new();
            configuration(object, None, &mut errs);
            errs.iter()
                .map(|e| e.field.trim_start_matches("webhooks[0].").to_owned())
                .collect::<Vec<_>>()
        };
        assert!(fields(&good).is_empty());
        let wanted = [
            "name",
            "rules[0].operations",
            "rules[0].operations[1]",
            "rules[0].apiVersions[0]",
            "rules[0].resources",
            "sideEffects",
            "clientConfig.service.name",
            "clientConfig.service.namespace",
            "clientConfig.service.path",
            "admissionReviewVersions",
        ];
        assert_eq!(fields(&bad), wanted);
    }
}
