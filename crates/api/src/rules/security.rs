//! Rules of security contexts, and of what an operating system rules out.

use super::{one_of_if_set, reasons};
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
        "seLinuxChangePolicy",
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

/// What a pod says of all its containers.
pub(super) fn pod_security(at: &str, spec: &Value, errs: &mut FieldErrors) {
    let s = &spec["securityContext"];
    ids(at, s, &["runAsUser", "runAsGroup", "fsGroup"], errs);
    for (i, group) in s["supplementalGroups"].items().iter().enumerate() {
        id(&format!("{at}.supplementalGroups[{i}]"), group, errs);
    }
    let both = |key: &str| spec[key].as_bool() == Some(true);
    if both("shareProcessNamespace") && both("hostPID") {
        let text = "ShareProcessNamespace and HostPID cannot both be enabled";
        errs.invalid(format!("{at}.shareProcessNamespace"), true, text);
    }
    sysctls(&format!("{at}.sysctls"), spec, errs);
    for (key, known) in [
        ("fsGroupChangePolicy", ["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", ["Merge", "Strict"]),
        ("seLinuxChangePolicy", ["MountOption", "Recursive"]),
    ] {
        one_of_if_set(&format!("{at}.{key}"), &s[key], &known, errs);
    }
    profiles(at, s, errs);
}

/// Kernel parameters that belong to a namespace which a pod shares with the host.
fn sysctls(path: &str, spec: &Value, errs: &mut FieldErrors) {
    let list = spec["securityContext"]["sysctls"].items();
    for (i, sysctl) in list.iter().enumerate() {
        let at = format!("{path}[{i}].name");
        let text = sysctl["name"].text();
        let wrong = name::sysctl(text);
        if text.is_empty() {
            errs.required(&at, "");
        } else if !wrong.is_empty() {
            reasons(&at, text, wrong, errs);
        } else if list[..i].iter().any(|o| o["name"] == sysctl["name"]) {
            errs.duplicate(&at, text);
        }
        let dotted = text.replace('/', ".");
        let shares = |key: &str| spec[key].as_bool() == Some(true);
        let of_ipc =
            ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p))
                || dotted == "kernel.sem";
        if dotted.starts_with("net.") && shares("hostNetwork") {
            errs.invalid(at, text, "may not be specified when 'hostNetwork' is true");
        } else if of_ipc && shares("hostIPC") {
            errs.invalid(at, text, "may not be specified when 'hostIPC' is true");
        }
    }
}

/// Users of its own need namespaces of its own.
pub(super) fn host_users(path: &str, spec: &Value, errs: &mut FieldErrors) {
    if spec["hostUsers"].as_bool() != Some(false) {
        return;
    }
    // The words are upstream's, where two are named as they are in its own structs.
    for (key, shown) in
        [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")]
    {
        if spec[key].as_bool() == Some(true) {
            errs.forbidden(format!("{path}.{shown}"), "when `pod.Spec.HostUsers` is false");
        }
    }
}

fn ids(at: &str, s: &Value, keys: &[&str], errs: &mut FieldErrors) {
    keys.iter().for_each(|key| id(&format!("{at}.{key}"), &s[*key], errs));
}

fn id(at: &str, v: &Value, errs: &mut FieldErrors) {
    if v.as_int().is_some_and(|n| !(0..=i64::from(i32::MAX)).contains(&n)) {
        errs.invalid(at, v.clone(), format!("must be between 0 and {}, inclusive", i32::MAX));
    }
}

/// What a container says of itself.
pub(super) fn security(at: &str, s: &Value, host_users: bool, errs: &mut FieldErrors) {
    ids(at, s, &["runAsUser", "runAsGroup"], errs);
    if s["allowPrivilegeEscalation"].as_bool() == Some(false) {
        let refuse = |with: &str, errs: &mut FieldErrors| {
            let text = format!("cannot set `allowPrivilegeEscalation` to false and {with}");
            errs.invalid(at, super::internal(s), text);
        };
        if s["privileged"].as_bool() == Some(true) {
            refuse("`privileged` to true", errs);
        }
        for _ in s["capabilities"]["add"].items().iter().filter(|c| c.text() == "CAP_SYS_ADMIN") {
            refuse("`capabilities.Add` CAP_SYS_ADMIN", errs);
        }
    }
    let mount = &s["procMount"];
    one_of_if_set(&format!("{at}.procMount"), mount, &["Default", "Unmasked"], errs);
    if host_users && mount.text() == "Unmasked" {
        let text = "`hostUsers` must be false to use `Unmasked`";
        errs.invalid(format!("{at}.procMount"), mount.clone(), text);
    }
    profiles(at, s, errs);
}

fn profiles(at: &str, s: &Value, errs: &mut FieldErrors) {
    for (key, shown) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        if s.has(key) {
            profile(&format!("{at}.{key}"), key, shown, &s[key], errs);
        }
    }
}

fn profile(at: &str, key: &str, shown: &str, profile: &Value, errs: &mut FieldErrors) {
    let known = ["Localhost", "RuntimeDefault", "Unconfined"];
    let kind = profile["type"].text();
    if kind.is_empty() {
        errs.required(format!("{at}.type"), format!("type is required when {key} is set"));
    } else if !known.contains(&kind) {
        errs.not_supported(format!("{at}.type"), kind, &known);
    }
    let file = &profile["localhostProfile"];
    let at = format!("{at}.localhostProfile");
    if kind != "Localhost" {
        if !file.is_null() && (shown == "seccomp" || known.contains(&kind)) {
            let text = format!("can only be set when {shown} type is Localhost");
            let value = if shown == "seccomp" { super::internal(profile) } else { file.clone() };
            errs.invalid(at, value, text);
        }
        return;
    }
    if file.text().trim() != file.text() && shown == "AppArmor" {
        errs.invalid(at, file.clone(), "must not be padded with whitespace");
    } else if file.is_null() || (file.text().is_empty() && shown == "AppArmor") {
        errs.required(at, format!("must be set when {shown} type is Localhost"));
    } else if shown == "seccomp" {
        super::volumes::descending_path(&at, file.text(), errs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_with_the_host_is_not_set_for_it() {
        let cases = [
            (
                crate::json!({"hostNetwork": true, "securityContext": {"sysctls": [{"name": "net.core.somaxconn"}]}}),
                vec!["s.sysctls[0].name"],
            ),
            (
                crate::json!({"securityContext": {"sysctls": [{"name": "net.core.somaxconn"}]}}),
                vec![],
            ),
            (
                crate::json!({"securityContext": {"seccompProfile": {"type": "Localhost"}, "appArmorProfile": {}}}),
                vec!["s.seccompProfile.localhostProfile", "s.appArmorProfile.type"],
            ),
            (
                crate::json!({"hostPID": true, "shareProcessNamespace": true, "securityContext": {"supplementalGroups": [-1]}}),
                vec!["s.supplementalGroups[0]", "s.shareProcessNamespace"],
            ),
        ];
        for (spec, wanted) in cases {
            let mut errs = FieldErrors::new();
            pod_security("s", &spec, &mut errs);
            let fields: Vec<&str> = errs.iter().map(|e| e.field.as_str()).collect();
            assert_eq!(fields, wanted, "{spec}");
        }
    }
}
