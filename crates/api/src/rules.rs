//! Validation: of metadata for all kinds, and one function per kind in the modules below.
//!
//! All errors of an object are gathered; texts are those clients know.

pub mod admission;
mod amounts;
pub mod apps;
pub mod autoscaling;
pub mod certificates;
pub mod core;
pub mod crd;
pub mod devices;
mod env;
pub mod event;
pub mod flow;
pub mod groups;
pub mod ingress;
pub mod jobs;
pub mod limits;
pub mod meta;
pub mod pod;
pub mod pod_update;
pub mod rbac;
pub mod review;
mod scheduling;
mod security;
pub mod service;
mod volumes;
pub mod warnings;
pub mod webhooks;

use crate::catalog::Resource;
use crate::error::FieldErrors;
use crate::object::Value;

/// What changing an immutable field is told.
pub const IMMUTABLE: &str = "field is immutable";

/// Checks a new object (with defaults).
pub fn validate_create(resource: &Resource, new: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    meta::validate(resource, new, &mut errs);
    if let Some(f) = resource.rules {
        f(new, None, &mut errs);
    }
    if resource.custom {
        crate::crd::validate(resource, new, &mut errs);
    }
    errs
}

/// Checks an update of the main resource.
pub fn validate_update(resource: &Resource, new: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    // Once for all kinds and once by the kind itself, as upstream reports them.
    for _ in 0..2 {
        meta::validate(resource, new, &mut errs);
        meta::validate_update(new, old, &mut errs);
    }
    immutable_fields(resource, new, old, &mut errs);
    if let Some(f) = resource.rules {
        f(new, Some(old), &mut errs);
    }
    if resource.custom {
        crate::crd::validate(resource, new, &mut errs);
    }
    errs
}

/// Checks an update through the status subresource.
pub fn validate_status_update(resource: &Resource, new: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    for _ in 0..2 {
        meta::validate(resource, new, &mut errs);
        meta::validate_update(new, old, &mut errs);
    }
    if let Some(f) = resource.status_rules {
        f(new, Some(old), &mut errs);
    }
    if resource.custom {
        crate::crd::validate(resource, new, &mut errs);
    }
    errs
}

/// Warnings about an object that is written.
pub fn warnings(resource: &Resource, new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    if let Some(f) = resource.warnings {
        f(new, old, &mut out);
    }
    out
}

fn immutable_fields(resource: &Resource, new: &Value, old: &Value, errs: &mut FieldErrors) {
    for path in &resource.immutable {
        let keys: Vec<&str> = path.split('.').collect();
        let (a, b) = (new.at(&keys), old.at(&keys));
        if a != b {
            errs.invalid(path.as_ref(), a.cloned().unwrap_or_default(), IMMUTABLE);
        }
    }
}

/// A value as upstream shows those that it keeps in its own structs: with the names of their fields.
pub(crate) fn internal(v: &Value) -> Value {
    match v {
        Value::Array(items) => Value::Array(items.iter().map(internal).collect()),
        Value::Object(map) => {
            let mut out = crate::object::Map::with_capacity(map.len());
            for (key, value) in map.iter() {
                let (first, rest) = key.split_at(key.chars().next().map_or(0, char::len_utf8));
                out.insert(format!("{}{rest}", first.to_uppercase()), internal(value));
            }
            Value::Object(out)
        }
        other => other.clone(),
    }
}

/// What changed between two values, for messages: the lines between their common beginning and end.
pub(crate) fn difference(old: &Value, new: &Value) -> String {
    let lines = |v: &Value| -> Vec<String> {
        let mut out = Vec::new();
        leaves(v, String::new(), &mut out);
        out
    };
    let (a, b) = (lines(old), lines(new));
    let start = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[start..], &b[start..]);
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[..a.len() - end], &b[..b.len() - end]);
    let mut out = format!("\n@@ -{0},{1} +{0},{2} @@", start + 1, a.len(), b.len());
    for (sign, lines) in [('-', a), ('+', b)] {
        for line in lines {
            out.push_str(&format!("\n{sign}{line}"));
        }
    }
    out
}

fn leaves(v: &Value, path: String, out: &mut Vec<String>) {
    match v {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, inner)| leaves(inner, format!("{path}.{key}"), out));
        }
        Value::Array(items) if !items.is_empty() => {
            let each = items.iter().enumerate();
            each.for_each(|(i, inner)| leaves(inner, format!("{path}[{i}]"), out));
        }
        other => out.push(format!("{path}: {other}")),
    }
}

/// The value must be one of these; an empty one is missing.
pub(crate) fn one_of(path: &str, v: &Value, known: &[&str], errs: &mut FieldErrors) {
    match v.text() {
        "" => errs.required(path, ""),
        text if !known.contains(&text) => errs.not_supported(path, v.clone(), known),
        _ => {}
    }
}

/// The value must be one of these if it is set.
pub(crate) fn one_of_if_set(path: &str, v: &Value, known: &[&str], errs: &mut FieldErrors) {
    if !v.is_null() && !known.contains(&v.text()) {
        errs.not_supported(path, v.clone(), known);
    }
}

/// An integer must not be below zero.
pub(crate) fn non_negative(path: &str, v: &Value, errs: &mut FieldErrors) {
    if v.as_int().is_some_and(|n| n < 0) {
        errs.invalid(path, v.clone(), NON_NEGATIVE);
    }
}

pub(crate) const NON_NEGATIVE: &str = "must be greater than or equal to 0";

/// Each reason a name check gives becomes an error.
pub(crate) fn reasons(path: &str, value: &str, reasons: Vec<String>, errs: &mut FieldErrors) {
    for r in reasons {
        errs.invalid(path, value, r);
    }
}

/// A port number.
pub(crate) fn port_number(path: &str, v: &Value, errs: &mut FieldErrors) {
    if !v.as_int().is_some_and(|n| (1..=65535).contains(&n)) {
        let shown = if v.is_null() { Value::Int(0) } else { v.clone() };
        errs.invalid(path, shown, PORT_RANGE);
    }
}

pub(crate) const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

/// A port by number or name.
pub(crate) fn port(path: &str, v: &Value, errs: &mut FieldErrors) {
    match v.as_str() {
        Some(name) => reasons(path, name, crate::name::port_name(name), errs),
        None => port_number(path, v, errs),
    }
}

/// A domain and a path below it, as `acme.io/foo`.
pub(crate) fn domain_path(at: &str, text: &str, errs: &mut FieldErrors) {
    if text.is_empty() {
        errs.required(at, "");
        return;
    }
    match text.split_once('/') {
        Some((domain, path)) if !domain.is_empty() && !path.is_empty() => {
            for wrong in crate::name::dns_subdomain(domain) {
                errs.invalid(at, domain, wrong);
            }
        }
        _ => {
            let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errs.invalid(at, text, why);
        }
    }
}

/// A label selector in object form.
pub(crate) fn label_selector(path: &str, v: &Value, errs: &mut FieldErrors) {
    if v.is_null() {
        return;
    }
    labels(&format!("{path}.matchLabels"), &v["matchLabels"], errs);
    for (i, e) in v["matchExpressions"].items().iter().enumerate() {
        let at = format!("{path}.matchExpressions[{i}]");
        let values = e["values"].items();
        match e["operator"].text() {
            "In" | "NotIn" => {
                if values.is_empty() {
                    errs.required(
                        format!("{at}.values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    );
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    errs.forbidden(
                        format!("{at}.values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    );
                }
            }
            _ => errs.invalid(
                format!("{at}.operator"),
                e["operator"].text(),
                "not a valid selector operator",
            ),
        }
        let key = e["key"].text();
        reasons(&format!("{at}.key"), key, crate::name::qualified(key), errs);
        for (j, v) in values.iter().enumerate() {
            let at = format!("{at}.values[{j}]");
            reasons(&at, v.text(), crate::name::label_value(v.text()), errs);
        }
    }
}

/// Labels as a map; the field is the map itself.
pub(crate) fn labels(path: &str, v: &Value, errs: &mut FieldErrors) {
    for (key, value) in v.members() {
        reasons(path, key, crate::name::qualified(key), errs);
        reasons(path, value.text(), crate::name::label_value(value.text()), errs);
    }
}

/// Whether a selector selects everything.
pub(crate) fn selects_all(v: &Value) -> bool {
    v["matchLabels"].is_empty() && v["matchExpressions"].is_empty()
}

/// Whether the selector matches these labels.
pub(crate) fn selector_matches(selector: &Value, labels: &Value) -> bool {
    crate::selector::LabelSelector::from_object(selector).is_ok_and(|s| s.matches_labels(labels))
}

/// An integer or a percentage, neither below zero.
pub(crate) fn int_or_percent(path: &str, v: &Value, errs: &mut FieldErrors) {
    if v.is_null() {
        return;
    }
    match v.as_str() {
        Some(_) if crate::intstr::percent(v).is_none() => errs.invalid(
            path,
            v.clone(),
            "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
             regex used for validation is '[0-9]+%')",
        ),
        _ => non_negative(path, v, errs),
    }
}

/// A percentage above 100 is refused.
pub(crate) fn not_above_100_percent(path: &str, v: &Value, errs: &mut FieldErrors) {
    if crate::intstr::percent(v).is_some_and(|p| p > 100) {
        errs.invalid(path, v.clone(), "must not be greater than 100%");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_as_upstream_keeps_them() {
        let value = crate::json!({"matchLabels": [{"a": 1}], "b": "c"});
        assert_eq!(internal(&value).to_string(), r#"{"B":"c","MatchLabels":[{"A":1}]}"#);
    }

    #[test]
    fn a_difference_shows_what_lies_between() {
        let old = crate::json!({"a": 1, "b": {"c": 2}, "d": 3});
        let new = crate::json!({"a": 1, "b": {"c": 4}, "d": 3});
        assert_eq!(difference(&old, &new), "\n@@ -2,1 +2,1 @@\n-.b.c: 2\n+.b.c: 4");
    }
}
