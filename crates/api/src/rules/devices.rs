//! Rules of claims on devices.

use super::{IMMUTABLE, internal, reasons};
use crate::error::FieldErrors;
use crate::name;
use crate::object::Value;

/// ResourceClaim.
pub fn claim(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    match old {
        Some(old) => fixed_spec(new, old, errs),
        None => claim_devices("spec.devices", &new["spec"]["devices"], errs),
    }
}

/// ResourceClaimTemplate.
pub fn claim_template(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    match old {
        Some(old) => fixed_spec(new, old, errs),
        None => claim_devices("spec.spec.devices", &new["spec"]["spec"]["devices"], errs),
    }
}

fn fixed_spec(new: &Value, old: &Value, errs: &mut FieldErrors) {
    if old["spec"] != new["spec"] {
        errs.invalid("spec", internal(&new["spec"]), IMMUTABLE);
    }
}

fn claim_devices(at: &str, devices: &Value, errs: &mut FieldErrors) {
    let requests = devices["requests"].items();
    let mut known: Vec<String> = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        let at = format!("{at}.requests[{i}]");
        let n = request["name"].text();
        if known.iter().any(|k| k == n) {
            errs.duplicate(format!("{at}.name"), n);
        }
        reasons(&format!("{at}.name"), n, name::dns_label(n), errs);
        known.push(n.to_owned());
        for sub in request["firstAvailable"].items() {
            known.push(format!("{n}/{}", sub["name"].text()));
        }
        let exactly = &request["exactly"];
        match (exactly.is_null(), request["firstAvailable"].is_empty()) {
            (true, true) => {
                errs.required(&at, "exactly one of `exactly` or `firstAvailable` is required");
            }
            (false, false) => errs.invalid(
                &at,
                internal(request),
                "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
            ),
            (false, true) => device_request(&format!("{at}.exactly"), exactly, errs),
            (true, false) => {
                for (j, sub) in request["firstAvailable"].items().iter().enumerate() {
                    let at = format!("{at}.firstAvailable[{j}]");
                    let n = sub["name"].text();
                    reasons(&format!("{at}.name"), n, name::dns_label(n), errs);
                    device_request(&at, sub, errs);
                }
            }
        }
    }
    for (i, constraint) in devices["constraints"].items().iter().enumerate() {
        let at = format!("{at}.constraints[{i}]");
        for (j, n) in constraint["requests"].items().iter().enumerate() {
            if !known.iter().any(|k| k == n.text()) {
                let text = "must be the name of a request in the claim or the name of a request and a subrequest \
                            separated by '/'";
                errs.invalid(format!("{at}.requests[{j}]"), n.clone(), text);
            }
        }
        let attribute = constraint["matchAttribute"].text();
        if !attribute.is_empty() && !attribute.contains('/') {
            let text = "a fully qualified name must be a domain and a name separated by a slash";
            errs.invalid(format!("{at}.matchAttribute"), attribute, text);
        }
    }
}

fn device_request(at: &str, request: &Value, errs: &mut FieldErrors) {
    match request["deviceClassName"].text() {
        "" => errs.required(format!("{at}.deviceClassName"), ""),
        n => reasons(&format!("{at}.deviceClassName"), n, name::dns_subdomain(n), errs),
    }
    let count = &request["count"];
    let field = format!("{at}.count");
    match request["allocationMode"].text() {
        "All" if count.as_int().unwrap_or(0) != 0 => {
            errs.invalid(
                field,
                count.clone(),
                "must not be specified when allocationMode is 'All'",
            );
        }
        "ExactCount" if count.as_int().unwrap_or(0) <= 0 => {
            errs.invalid(field, count.clone(), "must be greater than zero");
        }
        "All" | "ExactCount" => {}
        other => errs.not_supported(format!("{at}.allocationMode"), other, &["All", "ExactCount"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_names_what_it_wants() {
        let check = |devices: Value| {
            let mut claim_object = Value::object();
            claim_object.set_at(&["spec", "devices"], devices);
            let mut errs = FieldErrors::new();
            claim(&claim_object, None, &mut errs);
            errs.iter().map(|e| e.field.clone()).collect::<Vec<_>>()
        };
        let exactly =
            crate::json!({"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1});
        let mut good = crate::json!({"requests": [{"name": "r"}],
            "constraints": [{"requests": ["r"], "matchAttribute": "d/a"}]});
        if let Some(requests) = good.get_mut("requests") {
            requests.items_mut()[0].set("exactly", exactly);
        }
        assert!(check(good).is_empty());
        let bad = crate::json!({"requests": [{"name": "r"}],
            "constraints": [{"requests": ["x"], "matchAttribute": "a"}]});
        assert_eq!(
            check(bad),
            [
                "spec.devices.requests[0]",
                "spec.devices.constraints[0].requests[0]",
                "spec.devices.constraints[0].matchAttribute"
            ]
        );
    }
}
