//! Rules of role-based access control.

use crate::error::FieldErrors;
use crate::object::Value;
use crate::rules::{label_selector, one_of};

/// Role.
pub fn role(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    for (i, r) in new["rules"].items().iter().enumerate() {
        policy_rule(&format!("rules[{i}]"), r, true, errs);
    }
}

/// ClusterRole.
pub fn cluster_role(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    for (i, r) in new["rules"].items().iter().enumerate() {
        policy_rule(&format!("rules[{i}]"), r, false, errs);
    }
    let aggregation = &new["aggregationRule"];
    if aggregation.is_null() {
        return;
    }
    let path = "aggregationRule.clusterRoleSelectors";
    let selectors = aggregation["clusterRoleSelectors"].items();
    if selectors.is_empty() {
        errs.required(
            path,
            "at least one clusterRoleSelector required if aggregationRule is non-nil",
        );
    }
    for (i, s) in selectors.iter().enumerate() {
        let at = format!("{path}[{i}]");
        let before = errs.len();
        label_selector(&at, s, errs);
        if errs.len() > before {
            errs.invalid(at, Value::Null, "invalid label selector.");
        }
    }
}

fn policy_rule(path: &str, r: &Value, namespaced: bool, errs: &mut FieldErrors) {
    if r["verbs"].is_empty() {
        errs.required(format!("{path}.verbs"), "verbs must contain at least one value");
    }
    if !r["nonResourceURLs"].is_empty() {
        let at = format!("{path}.nonResourceURLs");
        if namespaced {
            let text = "namespaced rules cannot apply to non-resource URLs";
            errs.invalid(&at, r["nonResourceURLs"].clone(), text);
        }
        let resource =
            ["apiGroups", "resources", "resourceNames"].iter().any(|k| !r[*k].is_empty());
        if resource {
            let text = "rules cannot apply to both regular resources and non-resource URLs";
            errs.invalid(&at, r["nonResourceURLs"].clone(), text);
        }
        return;
    }
    if r["apiGroups"].is_empty() {
        errs.required(
            format!("{path}.apiGroups"),
            "resource rules must supply at least one api group",
        );
    }
    if r["resources"].is_empty() {
        errs.required(
            format!("{path}.resources"),
            "resource rules must supply at least one resource",
        );
    }
}

/// RoleBinding.
pub fn role_binding(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    binding(new, old, true, errs);
}

/// ClusterRoleBinding.
pub fn cluster_role_binding(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    binding(new, old, false, errs);
}

const GROUP: &str = "rbac.authorization.k8s.io";

fn binding(new: &Value, old: Option<&Value>, namespaced: bool, errs: &mut FieldErrors) {
    let role = &new["roleRef"];
    if role["apiGroup"].text() != GROUP {
        errs.not_supported("roleRef.apiGroup", role["apiGroup"].clone(), &[GROUP]);
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&role["kind"].text()) {
        errs.not_supported("roleRef.kind", role["kind"].text(), kinds);
    }
    match role["name"].text() {
        "" => errs.required("roleRef.name", ""),
        n => super::reasons("roleRef.name", n, crate::name::path_segment(n), errs),
    }
    for (i, s) in new["subjects"].items().iter().enumerate() {
        subject(&format!("subjects[{i}]"), s, namespaced, errs);
    }
    if let Some(old) = old
        && old["roleRef"] != *role
    {
        errs.invalid("roleRef", super::internal(role), "cannot change roleRef");
    }
}

fn subject(path: &str, s: &Value, namespaced: bool, errs: &mut FieldErrors) {
    let name = s["name"].text();
    if name.is_empty() {
        errs.required(format!("{path}.name"), "");
    }
    match s["kind"].text() {
        "ServiceAccount" => {
            if !name.is_empty() {
                super::reasons(
                    &format!("{path}.name"),
                    name,
                    crate::name::dns_subdomain(name),
                    errs,
                );
            }
            if !s["apiGroup"].text().is_empty() {
                errs.not_supported(format!("{path}.apiGroup"), s["apiGroup"].clone(), &[""]);
            }
            if !namespaced && s["namespace"].text().is_empty() {
                errs.required(format!("{path}.namespace"), "");
            }
        }
        "User" | "Group" => {
            if s["apiGroup"].text() != GROUP {
                errs.not_supported(format!("{path}.apiGroup"), s["apiGroup"].text(), &[GROUP]);
            }
        }
        _ => {
            let at = format!("{path}.kind");
            let kind = Value::from(s["kind"].text());
            if s["kind"].text().is_empty() {
                errs.not_supported(at, kind, &["ServiceAccount", "User", "Group"]);
            } else {
                one_of(&at, &kind, &["ServiceAccount", "User", "Group"], errs);
            }
        }
    }
}
