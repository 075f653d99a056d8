//! Rules of security contexts, and of what an operating system rules out.

use super::{one_of, one_of_if_set, reasons};
use crate::error::FieldErrors;
use crate::name;
use crate::object::Value;

/// What pods, and containers, for Windows cannot have of `securityContext`; and pods beside it.
const NOT_ON_WINDOWS: [&[&str]; 3] = [
    &["hostPID", "hostIPC", "hostUsers", "shareProcessNamespace"],
    &[
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "fsGroup",
        "fsGroupChangePolicy",
        "sysctls",
        "runAsUser",
        "runAsGroup",
        "supplementalGroups",
        "supplementalGroupsPolicy",
    ],
    &[
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ],
];

/// What the operating system that a pod names rules out.
pub(super) fn operating_system(path: &str, s: &Value, errs: &mut FieldErrors) {
    let each = |at: &str, v: &Value, keys: &[&str], errs: &mut FieldErrors| {
        for key in keys.iter().filter(|key| v.has(key)) {
            errs.forbidden(format!("{at}.{key}"), "cannot be set for a windows pod");
        }
    };
    let lists = ["containers", "initContainers"];
    let all = || {
        lists.into_iter().flat_map(|list| {
            let each = s[list].items().iter().enumerate();
            each.map(move |(i, c)| {
                (format!("{path}.{list}[{i}].securityContext"), &c["securityContext"])
            })
        })
    };
    let own = (format!("{path}.securityContext"), &s["securityContext"]);
    match s["os"]["name"].text() {
        "windows" => {
            each(path, s, NOT_ON_WINDOWS[0], errs);
            each(&own.0, own.1, NOT_ON_WINDOWS[1], errs);
            all().for_each(|(at, security)| each(&at, security, NOT_ON_WINDOWS[2], errs));
        }
        "linux" => {
            for (at, security) in std::iter::once(own.clone()).chain(all()) {
                if security.has("windowsOptions") {
                    let text = "windows options cannot be set for a linux pod";
                    errs.forbidden(format!("{at}.windowsOptions"), text);
                }
            }
        }
        _ => {}
    }
    for (at, security) in std::iter::once(own).chain(all()) {
        if security["windowsOptions"].get("runAsUserName").is_some_and(|n| n.text().is_empty()) {
            let field = format!("{at}.windowsOptions.runAsUserName");
            errs.invalid(field, "", "runAsUserName cannot be an empty string");
        }
    }
}

pub(super) fn security(at: &str, s: &Value, errs: &mut FieldErrors) {
    for (i, sysctl) in s["sysctls"].items().iter().enumerate() {
        let at = format!("{at}.sysctls[{i}].name");
        match sysctl["name"].text() {
            "" => errs.required(at, ""),
            text => reasons(&at, text, name::sysctl(text), errs),
        }
    }
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        if s[key].as_int().is_some_and(|n| !(0..=i64::from(i32::MAX)).contains(&n)) {
            let text = format!("must be between 0 and {}, inclusive", i32::MAX);
            errs.invalid(format!("{at}.{key}"), s[key].clone(), text);
        }
    }
    if s["privileged"].as_bool() == Some(true)
        && s["allowPrivilegeEscalation"].as_bool() == Some(false)
    {
        errs.invalid(
            at,
            super::internal(s),
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        );
    }
    one_of_if_set(&format!("{at}.procMount"), &s["procMount"], &["Default", "Unmasked"], errs);
    let profile = &s["seccompProfile"];
    if !profile.is_null() {
        let known = ["Localhost", "RuntimeDefault", "Unconfined"];
        let at = format!("{at}.seccompProfile");
        match profile["type"].text() {
            "Localhost" if profile["localhostProfile"].text().is_empty() => {
                errs.required(
                    format!("{at}.localhostProfile"),
                    "must be set when seccomp type is Localhost",
                );
            }
            kind if kind != "Localhost" && profile.has("localhostProfile") => {
                let text = "can only be set when seccomp type is Localhost";
                errs.invalid(
                    format!("{at}.localhostProfile"),
                    profile["localhostProfile"].clone(),
                    text,
                );
            }
            _ => {}
        }
        one_of(&format!("{at}.type"), &profile["type"], &known, errs);
    }
}
