//! Rules of access reviews.

use super::internal;
use crate::error::{FieldErrors, FieldReason};
use crate::object::Value;

const RESOURCE: &str = "spec.resourceAttributes";
const PATH: &str = "spec.nonResourceAttributes";

/// SelfSubjectAccessReview.
pub fn of_self(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    attributes(&new["spec"], errs);
    metadata(&new["metadata"], &[], "must be empty", errs);
}

/// SubjectAccessReview.
pub fn of_subject(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    attributes(&new["spec"], errs);
    subject(&new["spec"], errs);
    metadata(&new["metadata"], &[], "must be empty", errs);
}

/// LocalSubjectAccessReview.
pub fn of_local(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    attributes(spec, errs);
    subject(spec, errs);
    metadata(&new["metadata"], &["namespace"], "must be empty except for namespace", errs);
    let asked = spec["resourceAttributes"]["namespace"].text();
    if spec.has("resourceAttributes") && asked != crate::meta::namespace(new) {
        errs.invalid(format!("{RESOURCE}.namespace"), asked, "must match metadata.namespace");
    }
    if let Some(path) = spec.get("nonResourceAttributes") {
        errs.invalid(PATH, internal(path), "disallowed on this kind of request");
    }
}

fn subject(spec: &Value, errs: &mut FieldErrors) {
    if spec["user"].text().is_empty() && spec["groups"].is_empty() {
        errs.invalid("spec.user", "", "at least one of user or group must be specified");
    }
}

fn attributes(spec: &Value, errs: &mut FieldErrors) {
    match (spec.get("resourceAttributes"), spec.get("nonResourceAttributes")) {
        (Some(_), Some(path)) => errs.invalid(
            PATH,
            internal(path),
            "cannot be specified in combination with resourceAttributes",
        ),
        (None, None) => errs.invalid(
            RESOURCE,
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        _ => {}
    }
    for field in ["fieldSelector", "labelSelector"] {
        let Some(selector) = spec["resourceAttributes"].get(field) else { continue };
        let at = format!("{RESOURCE}.{field}");
        let raw = selector["rawSelector"].text();
        let requirements = selector["requirements"].items();
        if raw.is_empty() && requirements.is_empty() {
            let why = format!("when {at} is specified, requirements or rawSelector is required");
            errs.required(format!("{at}.requirements"), why);
        }
        if !raw.is_empty() && !requirements.is_empty() {
            let why = "may not specified at the same time as requirements";
            errs.invalid(format!("{at}.rawSelector"), raw, why);
        }
        for (i, requirement) in requirements.iter().enumerate() {
            let at = format!("{at}.requirements[{i}]");
            if requirement["key"].text().is_empty() {
                errs.required(format!("{at}.key"), "must be specified");
            }
            let values = format!("{at}.values");
            match (requirement["operator"].text(), requirement["values"].is_empty()) {
                ("In" | "NotIn", true) => {
                    errs.required(values, "must be specified when `operator` is 'In' or 'NotIn'");
                }
                ("Exists" | "DoesNotExist", false) => errs.forbidden(
                    values,
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ),
                _ => {}
            }
        }
    }
}

/// Reviews have no metadata of their own; the record of field owners does not count.
fn metadata(metadata: &Value, allowed: &[&str], why: &str, errs: &mut FieldErrors) {
    if metadata.members().any(|(key, _)| key != "managedFields" && !allowed.contains(&key)) {
        let shown = super::meta::shown(metadata);
        errs.push("metadata", FieldReason::InvalidAs(shown, why.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_asks_one_question_about_somebody() {
        let cases = [
            (crate::json!({"spec": {}}), vec![RESOURCE, "spec.user"]),
            (
                crate::json!({"spec": {"user": "u", "resourceAttributes": {}, "nonResourceAttributes": {}}}),
                vec![PATH],
            ),
            (
                crate::json!({"spec": {"groups": ["g"], "resourceAttributes": {"fieldSelector":
                {"rawSelector": "a=b", "requirements": [{"key": "k", "operator": "In"}]}}}}),
                vec![
                    "spec.resourceAttributes.fieldSelector.rawSelector",
                    "spec.resourceAttributes.fieldSelector.requirements[0].values",
                ],
            ),
            (
                crate::json!({"metadata": {"name": "x", "managedFields": []}, "spec": {"user": "u", "resourceAttributes": {}}}),
                vec!["metadata"],
            ),
        ];
        for (review, wanted) in cases {
            let mut errs = FieldErrors::new();
            of_subject(&review, None, &mut errs);
            let fields: Vec<&str> = errs.iter().map(|e| e.field.as_str()).collect();
            assert_eq!(fields, wanted, "{review}");
        }
    }
}
