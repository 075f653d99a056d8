//! Rules of what is asked for and of limits, by containers and by pods as a whole.

use super::{NON_NEGATIVE, reasons};
use crate::error::FieldErrors;
use crate::name;
use crate::object::Value;
use crate::quantity::Quantity;

const STANDARD: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
const HUGE: &str = "hugepages-";

/// Whether a resource belongs to Kubernetes itself.
fn is_native(key: &str) -> bool {
    !key.contains('/') || key.contains("kubernetes.io/")
}

/// Whether more of it may be promised than there is.
pub(super) fn overcommits(key: &str) -> bool {
    is_native(key) && !key.starts_with(HUGE)
}

/// The name of a resource that containers may ask for.
pub(super) fn resource_name(at: &str, key: &str, errs: &mut FieldErrors) {
    let wrong = name::qualified(key);
    let bad_form = !wrong.is_empty();
    reasons(at, key, wrong, errs);
    if !key.contains('/') {
        let standard = STANDARD.contains(&key) || key.starts_with(HUGE);
        if !standard && !bad_form {
            errs.invalid(at, key, "must be a standard resource type or fully qualified");
        }
        if !standard {
            errs.invalid(at, key, "must be a standard resource for containers");
        }
    } else if !is_native(key)
        && (key.starts_with("requests.") || !name::qualified(&format!("requests.{key}")).is_empty())
    {
        errs.invalid(at, key, "doesn't follow extended resource name standard");
    }
}

/// Requests and limits.
pub(super) fn resources(at: &str, r: &Value, errs: &mut FieldErrors) {
    for list in ["limits", "requests"] {
        for (key, v) in r[list].members() {
            let at = format!("{at}.{list}[{key}]");
            resource_name(&at, key, errs);
            amount(&at, key, v, errs);
        }
    }
    for (key, v) in r["requests"].members() {
        let Ok(request) = Quantity::parse(v.text()) else { continue };
        let limit = r["limits"][key].as_str().and_then(|text| Quantity::parse(text).ok());
        let field = format!("{at}.requests");
        match limit {
            None if !overcommits(key) => errs.required(
                format!("{at}.limits"),
                "Limit must be set for non overcommitable resources",
            ),
            Some(limit) if !overcommits(key) && request != limit => {
                errs.invalid(field, v.clone(), format!("must be equal to {key} limit of {limit}"));
            }
            Some(limit) if request > limit => {
                let text = format!("must be less than or equal to {key} limit of {limit}");
                errs.invalid(field, v.clone(), text);
            }
            _ => {}
        }
    }
    let any = |wanted: &dyn Fn(&str) -> bool| {
        ["limits", "requests"].iter().any(|list| r[*list].members().any(|(key, _)| wanted(key)))
    };
    if any(&|key| key.starts_with(HUGE)) && !any(&|key| matches!(key, "cpu" | "memory")) {
        errs.forbidden(at, "HugePages require cpu or memory");
    }
}

fn amount(at: &str, key: &str, v: &Value, errs: &mut FieldErrors) {
    let Ok(q) = Quantity::parse(v.text()) else { return };
    if q.is_negative() {
        errs.invalid(at, v.clone(), NON_NEGATIVE);
    }
    if !is_native(key) && !q.is_whole() {
        errs.invalid(at, v.clone(), "must be an integer");
    }
    if let Some(size) = key.strip_prefix(HUGE).and_then(|size| Quantity::parse(size).ok())
        && (size.value() == 0 || q.value() % size.value() != 0)
    {
        let text = format!("{} is not positive integer multiple of {key}", v.text());
        errs.invalid(at, v.clone(), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_fit_into_limits() {
        let cases = [
            (crate::json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}), vec![]),
            (crate::json!({"requests": {"cpu": "3"}, "limits": {"cpu": "2"}}), vec!["r.requests"]),
            (crate::json!({"requests": {"a.com/gpu": "1"}}), vec!["r.limits"]),
            (crate::json!({"limits": {"a.com/gpu": "500m"}}), vec!["r.limits[a.com/gpu]"]),
            (
                crate::json!({"limits": {"hugepages-2Mi": "3Mi"}}),
                vec!["r.limits[hugepages-2Mi]", "r"],
            ),
            (crate::json!({"limits": {"foo": "1"}}), vec!["r.limits[foo]", "r.limits[foo]"]),
        ];
        for (r, wanted) in cases {
            let mut errs = FieldErrors::new();
            resources("r", &r, &mut errs);
            let fields: Vec<&str> = errs.iter().map(|e| e.field.as_str()).collect();
            assert_eq!(fields, wanted, "{r}");
        }
    }
}
