//! Rules of flow control.

use super::{internal, one_of};
use crate::error::{FieldErrors, FieldReason};
use crate::meta;
use crate::object::Value;

/// FlowSchema.
pub fn schema(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    let precedence = spec["matchingPrecedence"].as_int().unwrap_or(0);
    if precedence <= 0 {
        errs.invalid("spec.matchingPrecedence", precedence, "must be a positive value");
    }
    if precedence > 10_000 {
        errs.invalid("spec.matchingPrecedence", precedence, "must not be greater than 10000");
    }
    if precedence == 1 && meta::name(new) != "exempt" {
        let text = "only the schema named 'exempt' may have matchingPrecedence 1";
        errs.invalid("spec.matchingPrecedence", precedence, text);
    }
    let method = &spec["distinguisherMethod"];
    if !method.is_null() && !matches!(method["type"].text(), "ByNamespace" | "ByUser") {
        let known = ["ByNamespace", "ByUser"].map(str::to_owned).to_vec();
        errs.push(
            "spec.distinguisherMethod.type",
            FieldReason::NotSupported(internal(method), known),
        );
    }
    if spec["priorityLevelConfiguration"]["name"].text().is_empty() {
        errs.required("spec.priorityLevelConfiguration.name", "must reference a priority level");
    }
    for (i, rule) in spec["rules"].items().iter().enumerate() {
        policy(&format!("spec.rules[{i}]"), rule, errs);
    }
}

fn policy(at: &str, rule: &Value, errs: &mut FieldErrors) {
    let need = |field: String, list: &Value, text: &str, errs: &mut FieldErrors| {
        if list.is_empty() {
            errs.required(field, text);
        }
    };
    need(
        format!("{at}.subjects"),
        &rule["subjects"],
        "subjects must contain at least one value",
        errs,
    );
    for (i, subject) in rule["subjects"].items().iter().enumerate() {
        let kind = &subject["kind"];
        one_of(
            &format!("{at}.subjects[{i}].kind"),
            kind,
            &["Group", "ServiceAccount", "User"],
            errs,
        );
    }
    if rule["resourceRules"].is_empty() && rule["nonResourceRules"].is_empty() {
        errs.required(at, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    let verbs = "verbs must contain at least one value";
    for (i, r) in rule["resourceRules"].items().iter().enumerate() {
        let at = format!("{at}.resourceRules[{i}]");
        need(format!("{at}.verbs"), &r["verbs"], verbs, errs);
        let text = "resource rules must supply at least one api group";
        need(format!("{at}.apiGroups"), &r["apiGroups"], text, errs);
        let text = "resource rules must supply at least one resource";
        need(format!("{at}.resources"), &r["resources"], text, errs);
        if r["clusterScope"].as_bool() != Some(true) {
            let text =
                "resource rules that are not cluster scoped must supply at least one namespace";
            need(format!("{at}.namespaces"), &r["namespaces"], text, errs);
        }
    }
    for (i, r) in rule["nonResourceRules"].items().iter().enumerate() {
        let at = format!("{at}.nonResourceRules[{i}]");
        need(format!("{at}.verbs"), &r["verbs"], verbs, errs);
        let text = "nonResourceURLs must contain at least one value";
        need(format!("{at}.nonResourceURLs"), &r["nonResourceURLs"], text, errs);
    }
}

/// PriorityLevelConfiguration.
pub fn level(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    let kind = spec["type"].text();
    if (meta::name(new) == "exempt") != (kind == "Exempt") && matches!(kind, "Exempt" | "Limited") {
        errs.invalid("spec.type", kind, "must be 'Exempt' if and only if `name` is 'exempt'");
    }
    match kind {
        "Exempt" => {
            if spec.has("limited") {
                errs.forbidden("spec.limited", "must be nil if the type is not Limited");
            }
        }
        "Limited" => {
            if spec.has("exempt") {
                errs.forbidden("spec.exempt", "must be nil if the type is Limited");
            }
            if spec.has("limited") {
                limited(&spec["limited"], errs);
            } else {
                errs.required("spec.limited", "must not be empty when type is Limited");
            }
        }
        _ => one_of("spec.type", &spec["type"], &["Exempt", "Limited"], errs),
    }
}

fn limited(limited: &Value, errs: &mut FieldErrors) {
    let at = "spec.limited";
    let shares = limited["nominalConcurrencyShares"].as_int().unwrap_or(0);
    if shares < 0 {
        errs.invalid(
            format!("{at}.nominalConcurrencyShares"),
            shares,
            "must be a non-negative integer",
        );
    }
    let lendable = limited["lendablePercent"].as_int().unwrap_or(0);
    if !(0..=100).contains(&lendable) {
        errs.invalid(
            format!("{at}.lendablePercent"),
            lendable,
            "must be between 0 and 100, inclusive",
        );
    }
    let response = &limited["limitResponse"];
    let (kind, queuing) = (response["type"].text(), &response["queuing"]);
    let at = format!("{at}.limitResponse");
    match kind {
        "Reject" if !queuing.is_null() => {
            errs.forbidden(
                format!("{at}.queuing"),
                "must be nil if limited.limitResponse.type is not Limited",
            );
        }
        "Reject" => {}
        "Queue" if queuing.is_null() => errs.required(
            format!("{at}.queuing"),
            "must not be empty if limited.limitResponse.type is Limited",
        ),
        "Queue" => {
            let at = format!("{at}.queuing");
            let count = |key: &str| queuing[key].as_int().unwrap_or(0);
            for key in ["queueLengthLimit", "queues", "handSize"] {
                if count(key) <= 0 {
                    errs.invalid(format!("{at}.{key}"), count(key), "must be positive");
                }
            }
            if count("queues") > 10_000_000 {
                errs.invalid(
                    format!("{at}.queues"),
                    count("queues"),
                    "must not be greater than 10000000",
                );
            }
            if count("handSize") > count("queues") {
                let text = format!("should not be greater than queues ({})", count("queues"));
                errs.invalid(format!("{at}.handSize"), count("handSize"), text);
            }
        }
        _ => one_of(&format!("{at}.type"), &response["type"], &["Queue", "Reject"], errs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_schemas_are_refused_for_what_is_wrong_with_them() {
        type Check = fn(&Value, Option<&Value>, &mut FieldErrors);
        let cases: [(Check, Value, &[&str]); 4] = [
            (
                level,
                crate::json!({"metadata": {"name": "a"}, "spec": {"type": "Exempt", "limited": {}}}),
                &["spec.type", "spec.limited"],
            ),
            (level, crate::json!({"spec": {"type": "Foo"}}), &["spec.type"]),
            (
                level,
                crate::json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue",
                "queuing": {"queues": 1, "handSize": 5, "queueLengthLimit": 1}}}}}),
                &["spec.limited.limitResponse.queuing.handSize"],
            ),
            (
                schema,
                crate::json!({"spec": {"matchingPrecedence": 20000}}),
                &["spec.matchingPrecedence", "spec.priorityLevelConfiguration.name"],
            ),
        ];
        for (check, object, wanted) in cases {
            let mut errs = FieldErrors::new();
            check(&object, None, &mut errs);
            let fields: Vec<&str> = errs.iter().map(|e| e.field.as_str()).collect();
            assert_eq!(fields, wanted, "{object}");
        }
    }
}
