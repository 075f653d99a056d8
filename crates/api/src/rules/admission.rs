//! Rules of admission policies.

use super::reasons;
use crate::error::FieldErrors;
use crate::name;
use crate::object::Value;

const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];

/// MutatingAdmissionPolicyBinding.
pub fn mutating_binding(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    match new["spec"]["policyName"].text() {
        "" => errs.required("spec.policyName", ""),
        text => reasons("spec.policyName", text, name::dns_subdomain(text), errs),
    }
}

/// ValidatingAdmissionPolicyBinding.
pub fn validating_binding(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    mutating_binding(new, old, errs);
    let at = "spec.validationActions";
    let all = &new["spec"]["validationActions"];
    let list = all.items();
    if list.is_empty() {
        errs.required(at, "at least one validation action is required");
    }
    for (i, action) in list.iter().enumerate() {
        let at = format!("{at}[{i}]");
        if !ACTIONS.contains(&action.text()) {
            errs.not_supported(&at, action.clone(), &ACTIONS);
        }
        if list[..i].contains(action) {
            errs.duplicate(at, action.clone());
        }
    }
    let has = |wanted: &str| list.iter().any(|action| action.text() == wanted);
    if has("Deny") && has("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API \
                   response and headers serves no purpose)";
        errs.invalid(at, all.clone(), why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_names_a_policy_and_what_to_do() {
        let cases = [
            (crate::json!({"policyName": "p", "validationActions": ["Deny"]}), vec![]),
            (
                crate::json!({"validationActions": ["Deny", "Warn"]}),
                vec!["spec.policyName", "spec.validationActions"],
            ),
            (
                crate::json!({"policyName": "p", "validationActions": ["Foo"]}),
                vec!["spec.validationActions[0]"],
            ),
            (crate::json!({"policyName": "p"}), vec!["spec.validationActions"]),
        ];
        for (spec, wanted) in cases {
            let mut binding = Value::object();
            binding.set("spec", spec);
            let mut errs = FieldErrors::new();
            validating_binding(&binding, None, &mut errs);
            let fields: Vec<&str> = errs.iter().map(|e| e.field.as_str()).collect();
            assert_eq!(fields, wanted, "{binding}");
        }
    }
}
