//! Rules of what says where a pod may run: tolerations, affinity, spreading.

use super::{one_of, one_of_if_set, reasons};
use crate::error::FieldErrors;
use crate::name;
use crate::object::Value;

pub(super) fn tolerations(path: &str, v: &Value, errs: &mut FieldErrors) {
    for (i, t) in v.items().iter().enumerate() {
        let at = format!("{path}[{i}]");
        let (key, op) = (t["key"].text(), t["operator"].text());
        if !key.is_empty() {
            reasons(&format!("{at}.key"), key, name::qualified(key), errs);
        } else if op != "Exists" {
            errs.invalid(
                format!("{at}.operator"),
                op,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if t.has("tolerationSeconds") && t["effect"].text() != "NoExecute" {
            errs.invalid(
                format!("{at}.effect"),
                t["effect"].text(),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        match op {
            "" | "Equal" => {
                let value = t["value"].text();
                let wrong = name::label_value(value);
                if !wrong.is_empty() {
                    errs.invalid(format!("{at}.operator"), value, wrong.join(";"));
                }
            }
            "Exists" if !t["value"].text().is_empty() => {
                let text = "value must be empty when `operator` is 'Exists'";
                errs.invalid(format!("{at}.operator"), t["value"].clone(), text);
            }
            "Exists" | "Lt" | "Gt" => {}
            _ => errs.not_supported(format!("{at}.operator"), op, &["Equal", "Exists"]),
        }
        if !t["effect"].text().is_empty() {
            let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            one_of(&format!("{at}.effect"), &t["effect"], &known, errs);
        }
    }
}

pub(super) fn affinity(path: &str, a: &Value, errs: &mut FieldErrors) {
    let (required, preferred) = (
        "requiredDuringSchedulingIgnoredDuringExecution",
        "preferredDuringSchedulingIgnoredDuringExecution",
    );
    if a["nodeAffinity"].has(required) {
        let at = format!("{path}.nodeAffinity.{required}");
        node_selector(&at, &a["nodeAffinity"][required], errs);
    }
    for (i, p) in a["nodeAffinity"][preferred].items().iter().enumerate() {
        let at = format!("{path}.nodeAffinity.{preferred}[{i}]");
        weight(&at, p, errs);
        node_selector_term(&format!("{at}.preference"), &p["preference"], false, errs);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (i, t) in a[kind][required].items().iter().enumerate() {
            affinity_term(&format!("{path}.{kind}.{required}[{i}]"), t, errs);
        }
        for (i, t) in a[kind][preferred].items().iter().enumerate() {
            let at = format!("{path}.{kind}.{preferred}[{i}]");
            weight(&at, t, errs);
            affinity_term(&format!("{at}.podAffinityTerm"), &t["podAffinityTerm"], errs);
        }
    }
}

/// Which nodes will do.
pub(super) fn node_selector(at: &str, v: &Value, errs: &mut FieldErrors) {
    let terms = v["nodeSelectorTerms"].items();
    if terms.is_empty() {
        let text = "must have at least one node selector term";
        errs.required(format!("{at}.nodeSelectorTerms"), text);
    }
    for (i, t) in terms.iter().enumerate() {
        node_selector_term(&format!("{at}.nodeSelectorTerms[{i}]"), t, true, errs);
    }
}

fn weight(at: &str, v: &Value, errs: &mut FieldErrors) {
    if !v["weight"].as_int().is_some_and(|n| (1..=100).contains(&n)) {
        errs.invalid(format!("{at}.weight"), v["weight"].clone(), "must be in the range 1-100");
    }
}

fn affinity_term(at: &str, t: &Value, errs: &mut FieldErrors) {
    for key in ["labelSelector", "namespaceSelector"] {
        super::label_selector(&format!("{at}.{key}"), &t[key], errs);
    }
    for n in t["namespaces"].items() {
        reasons(&format!("{at}.namespace"), n.text(), name::dns_label(n.text()), errs);
    }
    for list in ["matchLabelKeys", "mismatchLabelKeys"] {
        label_keys(&format!("{at}.{list}"), &t[list], &t["labelSelector"], errs);
    }
    for (i, key) in t["matchLabelKeys"].items().iter().enumerate() {
        if t["mismatchLabelKeys"].items().contains(key) {
            let text = "exists in both matchLabelKeys and mismatchLabelKeys";
            errs.invalid(format!("{at}.matchLabelKeys[{i}]"), key.clone(), text);
        }
    }
    let key = t["topologyKey"].text();
    if key.is_empty() {
        errs.required(format!("{at}.topologyKey"), "can not be empty");
    }
    reasons(&format!("{at}.topologyKey"), key, name::qualified(key), errs);
}

/// Keys whose values are those of the incoming pod make sense only beside a selector.
fn label_keys(at: &str, v: &Value, selector: &Value, errs: &mut FieldErrors) {
    if !v.is_empty() && selector.is_null() {
        errs.forbidden(at, "must not be specified when labelSelector is not set");
    }
    for (i, key) in v.items().iter().enumerate() {
        reasons(&format!("{at}[{i}]"), key.text(), name::qualified(key.text()), errs);
    }
}

/// One term of a node selector; `strict` where its values have to be those of labels.
fn node_selector_term(at: &str, t: &Value, strict: bool, errs: &mut FieldErrors) {
    for (j, e) in t["matchExpressions"].items().iter().enumerate() {
        let at = format!("{at}.matchExpressions[{j}]");
        let n = e["values"].items().len();
        match e["operator"].text() {
            "In" | "NotIn" if n == 0 => {
                errs.required(
                    format!("{at}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if n > 0 => {
                let text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errs.forbidden(format!("{at}.values"), text);
            }
            "Gt" | "Lt" if n != 1 => {
                let text = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errs.required(format!("{at}.values"), text);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            op => errs.invalid(format!("{at}.operator"), op, "not a valid selector operator"),
        }
        reasons(&format!("{at}.key"), e["key"].text(), name::qualified(e["key"].text()), errs);
        for (k, value) in e["values"].items().iter().enumerate().filter(|_| strict) {
            let wrong = name::label_value(value.text());
            reasons(&format!("{at}.values[{k}]"), value.text(), wrong, errs);
        }
    }
    for (j, e) in t["matchFields"].items().iter().enumerate() {
        let at = format!("{at}.matchFields[{j}]");
        match e["operator"].text() {
            "In" | "NotIn" if e["values"].items().len() != 1 => errs.required(
                format!("{at}.values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ),
            "In" | "NotIn" => {}
            op => errs.invalid(format!("{at}.operator"), op, "not a valid selector operator"),
        }
        if e["key"].text() != "metadata.name" {
            errs.invalid(format!("{at}.key"), e["key"].text(), "not a valid field selector key");
            continue;
        }
        for (k, value) in e["values"].items().iter().enumerate() {
            let wrong = name::dns_subdomain(value.text());
            reasons(&format!("{at}.values[{k}]"), value.text(), wrong, errs);
        }
    }
}

pub(super) fn spread(path: &str, v: &Value, errs: &mut FieldErrors) {
    let list = v.items();
    for (i, c) in list.iter().enumerate() {
        let at = format!("{path}[{i}]");
        if c["maxSkew"].as_int().unwrap_or(0) <= 0 {
            errs.invalid(
                format!("{at}.maxSkew"),
                c["maxSkew"].clone(),
                "must be greater than zero",
            );
        }
        if c["topologyKey"].text().is_empty() {
            errs.required(format!("{at}.topologyKey"), "can not be empty");
        }
        let known = ["DoNotSchedule", "ScheduleAnyway"];
        if !known.contains(&c["whenUnsatisfiable"].text()) {
            errs.not_supported(
                format!("{at}.whenUnsatisfiable"),
                c["whenUnsatisfiable"].clone(),
                &known,
            );
        }
        if let Some(n) = c["minDomains"].as_int() {
            let at = format!("{at}.minDomains");
            if n <= 0 {
                errs.invalid(&at, n, "must be greater than zero");
            }
            let when = c["whenUnsatisfiable"].text();
            if when != "DoNotSchedule" {
                let text = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ";
                errs.invalid(at, n, format!("{text}{when}"));
            }
        }
        let pair = |c: &Value| (c["topologyKey"].clone(), c["whenUnsatisfiable"].clone());
        // The first of two that are the same is the one upstream names.
        if list[i + 1..].iter().any(|o| pair(o) == pair(c)) {
            let shown =
                format!("{{{}, {}}}", c["topologyKey"].text(), c["whenUnsatisfiable"].text());
            errs.duplicate(format!("{at}.{{topologyKey, whenUnsatisfiable}}"), shown);
        }
        for key in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            one_of_if_set(&format!("{at}.{key}"), &c[key], &["Honor", "Ignore"], errs);
        }
        let keys = format!("{at}.matchLabelKeys");
        label_keys(&keys, &c["matchLabelKeys"], &c["labelSelector"], errs);
        for (j, key) in c["matchLabelKeys"].items().iter().enumerate() {
            let selector = &c["labelSelector"];
            let chosen = selector["matchLabels"].has(key.text())
                || selector["matchExpressions"].items().iter().any(|e| e["key"] == *key);
            if chosen {
                let text = "exists in both matchLabelKeys and labelSelector";
                errs.invalid(format!("{keys}[{j}]"), key.clone(), text);
            }
        }
        super::label_selector(&format!("{at}.labelSelector"), &c["labelSelector"], errs);
    }
}
