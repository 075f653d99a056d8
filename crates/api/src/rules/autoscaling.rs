//! Rules of horizontal autoscalers, in the newer form; the older one has none of its own.

use super::{one_of_if_set, reasons};
use crate::error::FieldErrors;
use crate::name;
use crate::object::Value;
use crate::quantity::Quantity;

const WINDOW_S_MAX: i64 = 3600;
const PERIOD_S_MAX: i64 = 1800;
/// Each kind of metric and the member that describes it.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

/// HorizontalPodAutoscaler, both versions.
pub fn autoscaler(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    if spec["minReplicas"].as_int().is_some_and(|n| n < 1) {
        let shown = spec["minReplicas"].clone();
        errs.invalid("spec.minReplicas", shown, "must be greater than or equal to 1");
    }
    let max = spec["maxReplicas"].as_int().unwrap_or(0);
    if max < 1 {
        errs.invalid("spec.maxReplicas", max, "must be greater than 0");
    }
    if spec["minReplicas"].as_int().is_some_and(|n| max < n) {
        errs.invalid("spec.maxReplicas", max, "must be greater than or equal to `minReplicas`");
    }
    reference("spec.scaleTargetRef", &spec["scaleTargetRef"], errs);
    // Shown where the newer form has it, as upstream does.
    let percent = &spec["targetCPUUtilizationPercentage"];
    at_least_one("spec.metrics[0].resource.target.averageUtilization", percent, errs);
    for (i, m) in spec["metrics"].items().iter().enumerate() {
        metric(&format!("spec.metrics[{i}]"), m, errs);
    }
    for direction in ["scaleUp", "scaleDown"] {
        if spec["behavior"].has(direction) {
            scaling_rules(
                &format!("spec.behavior.{direction}"),
                &spec["behavior"][direction],
                errs,
            );
        }
    }
}

fn reference(at: &str, v: &Value, errs: &mut FieldErrors) {
    for key in ["kind", "name"] {
        match v[key].text() {
            "" => errs.required(format!("{at}.{key}"), ""),
            text => reasons(&format!("{at}.{key}"), text, name::path_segment(text), errs),
        }
    }
}

fn at_least_one(at: &str, v: &Value, errs: &mut FieldErrors) {
    if v.as_int().is_some_and(|n| n < 1) {
        errs.invalid(at, v.clone(), "must be greater than 0");
    }
}

fn metric(at: &str, m: &Value, errs: &mut FieldErrors) {
    let kind = m["type"].text();
    let known: Vec<&str> = SOURCES.iter().map(|(kind, _)| *kind).collect();
    if kind.is_empty() {
        errs.required(format!("{at}.type"), "must specify a metric source type");
    } else if !known.contains(&kind) {
        errs.not_supported(format!("{at}.type"), kind, &known);
    }
    let wanted = SOURCES.iter().find(|(known, _)| *known == kind).map_or("", |(_, key)| *key);
    if !wanted.is_empty() && !m.has(wanted) {
        let text = "must populate information for the given metric source";
        errs.required(format!("{at}.{wanted}"), text);
    }
    // Upstream looks at the first of them in this order.
    let order = ["object", "external", "pods", "resource", "containerResource"];
    let present: Vec<&str> = order.into_iter().filter(|key| m.has(key)).collect();
    if let Some(first) = present.first() {
        source(&format!("{at}.{first}"), first, &m[*first], errs);
    }
    for key in present.iter().filter(|key| present.len() != 1 && **key != wanted) {
        errs.forbidden(format!("{at}.{key}"), "must populate the given metric source only");
    }
}

fn source(at: &str, kind: &str, s: &Value, errs: &mut FieldErrors) {
    let t = &s["target"];
    let needs = |key: &str, text: &str, errs: &mut FieldErrors| {
        if s[key].text().is_empty() {
            errs.required(format!("{at}.{key}"), text);
        }
    };
    if matches!(kind, "resource" | "containerResource") {
        needs("name", "must specify a resource name", errs);
    } else {
        match s["metric"]["name"].text() {
            "" => errs.required(format!("{at}.metric.name"), "must specify a metric name"),
            n => reasons(&format!("{at}.metric.name"), n, name::path_segment(n), errs),
        }
        super::label_selector(&format!("{at}.metric.selector"), &s["metric"]["selector"], errs);
    }
    if kind == "containerResource" {
        needs("container", "must specify a container", errs);
    }
    if kind == "object" {
        reference(&format!("{at}.describedObject"), &s["describedObject"], errs);
    }
    let at = format!("{at}.target");
    target(&at, t, errs);
    let (value, average, percent) =
        (t.has("value"), t.has("averageValue"), t.has("averageUtilization"));
    match kind {
        "pods" if !average => {
            let text = "must specify a positive target averageValue";
            errs.required(format!("{at}.averageValue"), text);
        }
        "object" if !value && !average => {
            let text = "must set either a target value or averageValue";
            errs.required(format!("{at}.averageValue"), text);
        }
        "external" if !value && !average => errs.required(
            format!("{at}.averageValue"),
            "must set either a target value for metric or a per-pod target",
        ),
        "external" if value && average => errs.forbidden(
            format!("{at}.value"),
            "may not set both a target value for metric and a per-pod target",
        ),
        "resource" | "containerResource" if !average && !percent => errs.required(
            format!("{at}.averageUtilization"),
            "must set either a target raw value or a target utilization",
        ),
        "resource" | "containerResource" if average && percent => errs.forbidden(
            format!("{at}.averageValue"),
            "may not set both a target raw value and a target utilization",
        ),
        _ => {}
    }
}

fn target(at: &str, t: &Value, errs: &mut FieldErrors) {
    match t["type"].text() {
        "" => errs.required(format!("{at}.type"), "must specify a metric target type"),
        "Utilization" | "Value" | "AverageValue" => {}
        other => {
            let text = "must be either Utilization, Value, or AverageValue";
            errs.invalid(format!("{at}.type"), other, text);
        }
    }
    for key in ["value", "averageValue"] {
        if Quantity::parse(t[key].text()).is_ok_and(|q| t.has(key) && q <= Quantity::ZERO) {
            errs.invalid(format!("{at}.{key}"), t[key].clone(), "must be positive");
        }
    }
    at_least_one(&format!("{at}.averageUtilization"), &t["averageUtilization"], errs);
}

fn scaling_rules(at: &str, r: &Value, errs: &mut FieldErrors) {
    let window = format!("{at}.stabilizationWindowSeconds");
    match r["stabilizationWindowSeconds"].as_int() {
        Some(n) if n < 0 => errs.invalid(window, n, "must be greater than or equal to zero"),
        Some(n) if n > WINDOW_S_MAX => {
            errs.invalid(window, n, format!("must be less than or equal to {WINDOW_S_MAX}"));
        }
        _ => {}
    }
    let selects = ["Disabled", "Max", "Min"];
    one_of_if_set(&format!("{at}.selectPolicy"), &r["selectPolicy"], &selects, errs);
    let policies = r["policies"].items();
    if policies.is_empty() {
        errs.required(format!("{at}.policies"), "must specify at least one Policy");
    }
    for (i, p) in policies.iter().enumerate() {
        let at = format!("{at}.policies[{i}]");
        if !matches!(p["type"].text(), "Pods" | "Percent") {
            errs.not_supported(format!("{at}.type"), p["type"].text(), &["Percent", "Pods"]);
        }
        for key in ["value", "periodSeconds"] {
            let n = p[key].as_int().unwrap_or(0);
            if n <= 0 {
                errs.invalid(format!("{at}.{key}"), n, "must be greater than zero");
            } else if key == "periodSeconds" && n > PERIOD_S_MAX {
                let text = format!("must be less than or equal to {PERIOD_S_MAX}");
                errs.invalid(format!("{at}.{key}"), n, text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_has_one_source_with_one_target() {
        let cases = [
            (
                crate::json!({"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 50}}}),
                vec![],
            ),
            (crate::json!({}), vec!["m.type"]),
            (
                crate::json!({"type": "Pods", "pods": {"metric": {"name": "q"}, "target": {"type": "Foo"}}}),
                vec!["m.pods.target.type", "m.pods.target.averageValue"],
            ),
            (
                crate::json!({"type": "Object", "resource": {"name": "cpu",
                    "target": {"type": "Value", "averageValue": "-1"}}}),
                vec!["m.object", "m.resource.target.averageValue"],
            ),
        ];
        for (m, wanted) in cases {
            let mut errs = FieldErrors::new();
            metric("m", &m, &mut errs);
            let fields: Vec<&str> = errs.iter().map(|e| e.field.as_str()).collect();
            assert_eq!(fields, wanted, "{m}");
        }
    }
}
