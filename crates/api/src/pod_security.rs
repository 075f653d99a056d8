//! The Pod Security Standards: which rules of a level a pod breaks. Pure.
//!
//! Specified by <https://kubernetes.io/docs/concepts/security/pod-security-standards/>, in each of its versions.

use crate::object::Value;

/// How strict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Anything goes.
    Privileged,
    /// No known way out of the container.
    Baseline,
    /// Hardened.
    Restricted,
}

impl Level {
    /// Reads a level's name.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// A rule that is broken: what it is called, and by whom and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// In short, as `hostPort`.
    pub reason: &'static str,
    /// In full; empty if the reason says it all.
    pub detail: String,
}

/// The pod's metadata and spec, and the minor version of the standards.
type Check = fn(&Value, &Value, u32) -> Option<Violation>;

/// The newest version of the standards, whatever its number.
pub const LATEST: u32 = u32::MAX;

/// The minor version that a label names: `latest` or `v1.N`.
pub fn version(text: &str) -> Option<u32> {
    if text == "latest" {
        return Some(LATEST);
    }
    let minor = text.strip_prefix("v1.")?;
    let number = minor.parse().ok()?;
    // No sign, no zero in front.
    (minor == format!("{number}")).then_some(number)
}

/// Checks in the order they are reported: the level and the minor version that each begins with, and the version since which
/// a stricter one takes its place for restricted pods.
const CHECKS: &[(Level, u32, Option<u32>, Check)] = {
    use Level::{Baseline, Restricted};
    &[
        (Baseline, 0, None, app_armor),
        (Baseline, 0, Some(22), |_, spec, _| capabilities(spec, false)),
        (Baseline, 0, None, host_namespaces),
        (Baseline, 0, Some(0), host_path),
        (Baseline, 0, None, host_ports),
        (Baseline, 34, None, host_probes),
        (Baseline, 0, None, privileged),
        (Baseline, 0, None, proc_mount),
        (Baseline, 0, None, se_linux),
        (Baseline, 0, Some(19), |meta, spec, minor| {
            if minor < 19 { seccomp_notes(meta, spec) } else { seccomp(spec, false) }
        }),
        (Baseline, 0, None, sysctls),
        (Baseline, 0, None, host_process),
        (Restricted, 8, None, escalation),
        (Restricted, 22, None, |_, spec, minor| {
            windows_since_25(spec, minor, || capabilities(spec, true))
        }),
        (Restricted, 0, None, volume_types),
        (Restricted, 0, None, run_as_non_root),
        (Restricted, 23, None, run_as_user),
        (Restricted, 19, None, |_, spec, minor| {
            windows_since_25(spec, minor, || seccomp(spec, true))
        }),
    ]
};

/// The rules of `level` that a pod (or template) breaks, by the standards of a [`version`].
pub fn violations(level: Level, minor: u32, metadata: &Value, spec: &Value) -> Vec<Violation> {
    let holds = |(from, since, replaced, _): &&(Level, u32, Option<u32>, Check)| {
        let replaced = level == Level::Restricted && replaced.is_some_and(|since| minor >= since);
        *from <= level && minor >= *since && !replaced
    };
    let checks = CHECKS.iter().filter(holds);
    checks.filter_map(|(_, _, _, check)| check(metadata, spec, minor)).collect()
}

/// A check that leaves Windows pods alone since 1.25.
fn windows_since_25(
    spec: &Value,
    minor: u32,
    check: impl FnOnce() -> Option<Violation>,
) -> Option<Violation> {
    if minor >= 25 && windows(spec) { None } else { check() }
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| spec[list].items())
}

fn names<'a>(spec: &'a Value, bad: impl Fn(&'a Value) -> bool) -> Vec<&'a str> {
    containers(spec).filter(|c| bad(c)).map(|c| c["name"].text()).collect()
}

fn quoted<T: AsRef<str>>(names: &[T]) -> String {
    let all: Vec<String> = names.iter().map(|n| format!("{:?}", n.as_ref())).collect();
    all.join(", ")
}

/// `one` or `many` of them.
fn plural(n: usize, one: &'static str, many: &'static str) -> &'static str {
    if n == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`.
fn listed(names: &[&str]) -> String {
    format!("{} {}", plural(names.len(), "container", "containers"), quoted(names))
}

fn violation(reason: &'static str, detail: impl Into<String>) -> Option<Violation> {
    Some(Violation { reason, detail: detail.into() })
}

/// Who sets a bad value: the pod itself, its containers, or both.
fn setters(pod: bool, containers: &[&str]) -> Option<String> {
    let mut all = Vec::new();
    if pod {
        all.push("pod".to_owned());
    }
    if !containers.is_empty() {
        all.push(listed(containers));
    }
    (!all.is_empty()).then(|| all.join(" and "))
}

fn sorted<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let set: std::collections::BTreeSet<&str> = values.collect();
    set.into_iter().collect()
}

fn windows(spec: &Value) -> bool {
    spec["os"]["name"].text() == "windows"
}

/// The pod has users of its own, so that root in it is nobody outside.
fn own_users(spec: &Value) -> bool {
    spec["hostUsers"].as_bool() == Some(false)
}

fn security<'a>(of: &'a Value, field: &str) -> &'a Value {
    &of["securityContext"][field]
}

fn app_armor(metadata: &Value, spec: &Value, _: u32) -> Option<Violation> {
    const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
    let bad = |of: &Value| security(of, "appArmorProfile")["type"].text() == "Unconfined";
    let reason = |n| plural(n, "forbidden AppArmor profile", "forbidden AppArmor profiles");
    if let Some(who) = setters(bad(spec), &names(spec, bad)) {
        return violation(
            reason(1),
            format!("{who} must not set AppArmor profile type to \"Unconfined\""),
        );
    }
    let forbidden =
        |v: &str| !(v.is_empty() || v == "runtime/default" || v.starts_with("localhost/"));
    let notes: Vec<String> = metadata["annotations"]
        .members()
        .filter(|(key, value)| key.starts_with(PREFIX) && forbidden(value.text()))
        .map(|(key, value)| format!("{key}={:?}", value.text()))
        .collect();
    if notes.is_empty() { None } else { violation(reason(notes.len()), notes.join(", ")) }
}

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

fn capabilities(spec: &Value, restricted: bool) -> Option<Violation> {
    let known: &[&str] = if restricted { &["NET_BIND_SERVICE"] } else { &CAPABILITIES };
    let list = |c: &'_ Value, which: &str| -> Vec<String> {
        let all = security(c, "capabilities")[which].items().iter();
        all.map(|v| v.text().to_owned()).collect()
    };
    let excess = |c: &Value| -> Vec<String> {
        list(c, "add").into_iter().filter(|v| !known.contains(&v.as_str())).collect()
    };
    let mut details = Vec::new();
    if restricted {
        let keeping = names(spec, |c| !list(c, "drop").iter().any(|v| v == "ALL"));
        if !keeping.is_empty() {
            let who = listed(&keeping);
            details.push(format!("{who} must set securityContext.capabilities.drop=[\"ALL\"]"));
        }
    }
    let adding = names(spec, |c| !excess(c).is_empty());
    if !adding.is_empty() {
        let all: std::collections::BTreeSet<String> = containers(spec).flat_map(excess).collect();
        let all: Vec<String> = all.into_iter().collect();
        details.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            listed(&adding),
            quoted(&all)
        ));
    }
    let reason = if restricted { "unrestricted capabilities" } else { "non-default capabilities" };
    if details.is_empty() { None } else { violation(reason, details.join("; ")) }
}

fn host_namespaces(_: &Value, spec: &Value, _: u32) -> Option<Violation> {
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|f| spec[**f].as_bool() == Some(true))
        .map(|f| format!("{f}=true"))
        .collect();
    if used.is_empty() { None } else { violation("host namespaces", used.join(", ")) }
}

fn host_path(_: &Value, spec: &Value, _: u32) -> Option<Violation> {
    let bad: Vec<&str> = spec["volumes"]
        .items()
        .iter()
        .filter(|v| v.has("hostPath"))
        .map(|v| v["name"].text())
        .collect();
    let word = plural(bad.len(), "volume", "volumes");
    if bad.is_empty() {
        None
    } else {
        violation("hostPath volumes", format!("{word} {}", quoted(&bad)))
    }
}

fn host_ports(_: &Value, spec: &Value, _: u32) -> Option<Violation> {
    let ports = |c: &Value| -> Vec<i64> {
        let all = c["ports"].items().iter();
        all.filter_map(|p| p["hostPort"].as_int()).filter(|p| *p != 0).collect()
    };
    let bad = names(spec, |c| !ports(c).is_empty());
    if bad.is_empty() {
        return None;
    }
    let mut all: Vec<String> = containers(spec).flat_map(ports).map(|p| p.to_string()).collect();
    all.sort();
    all.dedup();
    violation(
        "hostPort",
        format!(
            "{} {} {} {}",
            listed(&bad),
            plural(bad.len(), "uses", "use"),
            plural(all.len(), "hostPort", "hostPorts"),
            all.join(", ")
        ),
    )
}

fn host_probes(_: &Value, spec: &Value, _: u32) -> Option<Violation> {
    fn hosts(container: &Value) -> Vec<&str> {
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|p| &container[p]);
        let hooks = ["postStart", "preStop"].map(|h| &container["lifecycle"][h]);
        let calls = probes.into_iter().chain(hooks).flat_map(|p| [&p["httpGet"], &p["tcpSocket"]]);
        calls.map(|c| c["host"].text()).filter(|h| !h.is_empty()).collect()
    }
    let bad = sorted(names(spec, |c| !hosts(c).is_empty()).into_iter());
    if bad.is_empty() {
        return None;
    }
    let all = sorted(containers(spec).flat_map(hosts));
    violation(
        "probe or lifecycle host",
        format!(
            "{} {} {} {}",
            listed(&bad),
            plural(bad.len(), "uses", "use"),
            plural(all.len(), "probe or lifecycle host", "probe or lifecycle hosts"),
            quoted(&all)
        ),
    )
}

fn privileged(_: &Value, spec: &Value, _: u32) -> Option<Violation> {
    let bad = names(spec, |c| security(c, "privileged").as_bool() == Some(true));
    if bad.is_empty() {
        return None;
    }
    violation(
        "privileged",
        format!("{} must not set securityContext.privileged=true", listed(&bad)),
    )
}

fn proc_mount(_: &Value, spec: &Value, _: u32) -> Option<Violation> {
    let of = |c: &'_ Value| security(c, "procMount").text().to_owned();
    let forbidden = |v: &String| !v.is_empty() && v != "Default";
    let bad = names(spec, |c| forbidden(&of(c)));
    if bad.is_empty() || own_users(spec) {
        return None;
    }
    let all: std::collections::BTreeSet<String> =
        containers(spec).map(of).filter(forbidden).collect();
    let all: Vec<String> = all.into_iter().collect();
    let detail =
        format!("{} must not set securityContext.procMount to {}", listed(&bad), quoted(&all));
    violation("procMount", detail)
}

fn se_linux(_: &Value, spec: &Value, minor: u32) -> Option<Violation> {
    const TYPES: [&str; 5] =
        ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let types = if minor < 31 { &TYPES[..4] } else { &TYPES };
    fn options(of: &Value) -> &Value {
        security(of, "seLinuxOptions")
    }
    let set = |o: &Value, field: &str| !o[field].text().is_empty();
    let bad = |of: &Value| {
        let o = options(of);
        !types.contains(&o["type"].text()) || set(o, "user") || set(o, "role")
    };
    let who = setters(bad(spec), &names(spec, bad))?;
    let all: Vec<&Value> = std::iter::once(spec).chain(containers(spec)).map(options).collect();
    let bad = sorted(all.iter().map(|o| o["type"].text()).filter(|t| !types.contains(t)));
    let mut what = Vec::new();
    if !bad.is_empty() {
        what.push(format!("{} {}", plural(bad.len(), "type", "types"), quoted(&bad)));
    }
    for field in ["user", "role"] {
        if all.iter().any(|o| set(o, field)) {
            what.push(format!("{field} may not be set"));
        }
    }
    let what = what.join("; ");
    violation(
        "seLinuxOptions",
        format!("{who} set forbidden securityContext.seLinuxOptions: {what}"),
    )
}

fn seccomp(spec: &Value, restricted: bool) -> Option<Violation> {
    const REASON: &str = "seccompProfile";
    fn of(v: &Value) -> &str {
        security(v, "seccompProfile")["type"].text()
    }
    let good = |v: &str| matches!(v, "RuntimeDefault" | "Localhost");
    let bad = |v: &Value| !of(v).is_empty() && !good(of(v));
    if let Some(who) = setters(bad(spec), &names(spec, bad)) {
        let values =
            sorted(std::iter::once(spec).chain(containers(spec)).filter(|v| bad(v)).map(of));
        let values = quoted(&values);
        let detail = format!("{who} must not set securityContext.seccompProfile.type to {values}");
        return violation(REASON, detail);
    }
    let open = names(spec, |c| of(c).is_empty());
    if !restricted || good(of(spec)) || open.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        listed(&open)
    );
    violation(REASON, detail)
}

/// Before 1.19 profiles were annotations.
fn seccomp_notes(metadata: &Value, spec: &Value) -> Option<Violation> {
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    let notes = &metadata["annotations"];
    let good = |v: &str| {
        matches!(v, "" | "runtime/default" | "docker/default") || v.starts_with("localhost/")
    };
    let keys = std::iter::once(POD.to_owned())
        .chain(containers(spec).map(|c| format!("{CONTAINER}{}", c["name"].text())));
    let bad: Vec<String> = keys
        .filter(|key| !good(notes[key.as_str()].text()))
        .map(|key| format!("{key}={:?}", notes[key.as_str()].text()))
        .collect();
    if bad.is_empty() {
        None
    } else {
        violation("seccompProfile", sorted(bad.iter().map(String::as_str)).join(", "))
    }
}

/// Sysctls that are safe, each with the version since which it is.
const SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

fn sysctls(_: &Value, spec: &Value, minor: u32) -> Option<Violation> {
    let safe = |name: &str| SYSCTLS.iter().any(|(known, since)| *known == name && minor >= *since);
    let all = security(spec, "sysctls").items().iter().map(|s| s["name"].text());
    let bad: Vec<&str> = all.filter(|name| !safe(name)).collect();
    if bad.is_empty() { None } else { violation("forbidden sysctls", bad.join(", ")) }
}

fn host_process(_: &Value, spec: &Value, _: u32) -> Option<Violation> {
    let bad = |v: &Value| security(v, "windowsOptions")["hostProcess"].as_bool() == Some(true);
    let who = setters(bad(spec), &names(spec, bad))?;
    violation(
        "hostProcess",
        format!("{who} must not set securityContext.windowsOptions.hostProcess=true"),
    )
}

fn escalation(_: &Value, spec: &Value, minor: u32) -> Option<Violation> {
    let bad = names(spec, |c| security(c, "allowPrivilegeEscalation").as_bool() != Some(false));
    if bad.is_empty() || (minor >= 25 && windows(spec)) {
        return None;
    }
    let detail =
        format!("{} must set securityContext.allowPrivilegeEscalation=false", listed(&bad));
    violation("allowPrivilegeEscalation != false", detail)
}

fn volume_types(_: &Value, spec: &Value, _: u32) -> Option<Violation> {
    const GOOD: [&str; 8] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    fn kind(volume: &Value) -> &str {
        volume.members().map(|(key, _)| key).find(|key| *key != "name").unwrap_or("unknown")
    }
    let bad: Vec<&Value> =
        spec["volumes"].items().iter().filter(|v| !GOOD.contains(&kind(v))).collect();
    if bad.is_empty() {
        return None;
    }
    let named: Vec<&str> = bad.iter().map(|v| v["name"].text()).collect();
    let types = sorted(bad.iter().map(|v| kind(v)));
    violation(
        "restricted volume types",
        format!(
            "{} {} {} restricted volume {} {}",
            plural(bad.len(), "volume", "volumes"),
            quoted(&named),
            plural(bad.len(), "uses", "use"),
            plural(types.len(), "type", "types"),
            quoted(&types)
        ),
    )
}

fn run_as_non_root(_: &Value, spec: &Value, _: u32) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    if own_users(spec) {
        return None;
    }
    fn of(v: &Value) -> Option<bool> {
        security(v, "runAsNonRoot").as_bool()
    }
    let bad = |v: &Value| of(v) == Some(false);
    if let Some(who) = setters(bad(spec), &names(spec, bad)) {
        return violation(REASON, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let open = names(spec, |c| of(c).is_none());
    if of(spec) == Some(true) || open.is_empty() {
        return None;
    }
    violation(
        REASON,
        format!("pod or {} must set securityContext.runAsNonRoot=true", listed(&open)),
    )
}

fn run_as_user(_: &Value, spec: &Value, _: u32) -> Option<Violation> {
    let bad = |v: &Value| security(v, "runAsUser").as_int() == Some(0);
    let who = setters(bad(spec), &names(spec, bad)).filter(|_| !own_users(spec))?;
    violation("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(level: Level, spec: Value) -> Vec<String> {
        let all = violations(level, LATEST, &Value::Null, &spec);
        all.into_iter().map(|v| format!("{}: {}", v.reason, v.detail)).collect()
    }

    #[test]
    fn a_hardened_pod_breaks_nothing() {
        let spec = crate::json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext":
                {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]
        });
        assert!(found(Level::Restricted, spec).is_empty());
    }

    #[test]
    fn each_rule_names_who_breaks_it() {
        let cases = [
            (
                crate::json!({"hostNetwork": true, "hostIPC": true}),
                "host namespaces: hostNetwork=true, hostIPC=true",
            ),
            (
                crate::json!({"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}),
                "hostPath volumes: volume \"h\"",
            ),
            (
                crate::json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}]}]}),
                "hostPort: container \"a\" uses hostPort 80",
            ),
            (
                crate::json!({"containers": [
                {"name": "a", "securityContext": {"privileged": true}},
                {"name": "b", "securityContext": {"privileged": true}}]}),
                "privileged: containers \"a\", \"b\" must not set securityContext.privileged=true",
            ),
            (
                crate::json!({"containers": [{"name": "a", "securityContext": {"capabilities": {"add": ["X"]}}}]}),
                "non-default capabilities: container \"a\" must not include \"X\" in securityContext.capabilities.add",
            ),
            (
                crate::json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
                "seccompProfile: pod must not set securityContext.seccompProfile.type to \"Unconfined\"",
            ),
            (
                crate::json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}),
                "forbidden sysctls: kernel.msgmax",
            ),
        ];
        for (spec, wanted) in cases {
            assert_eq!(found(Level::Baseline, spec), [wanted]);
        }
        assert!(found(Level::Privileged, crate::json!({"hostPID": true})).is_empty());
    }
    /// Each case: the level, a spec, the last version that judges it one way, and what it says then and later.
    #[test]
    fn a_pinned_version_judges_as_it_did_then() {
        let found = |level, minor, spec: &Value| -> Vec<&str> {
            violations(level, minor, &Value::Null, spec).iter().map(|v| v.reason).collect()
        };
        let sysctl =
            crate::json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}});
        let probe = crate::json!({"containers": [
            {"name": "a", "livenessProbe": {"httpGet": {"host": "10.0.0.1"}}}]});
        let engine =
            crate::json!({"securityContext": {"seLinuxOptions": {"type": "container_engine_t"}}});
        let bare = crate::json!({"securityContext": {"runAsNonRoot": true, "runAsUser": 0},
            "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false}}]});
        let added = crate::json!({"securityContext": {"runAsNonRoot": true}, "containers": [{"name": "a",
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"add": ["X"]}}}]});
        let windows = crate::json!({"os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true},
            "containers": [{"name": "a"}]});
        let cases: [(_, _, _, &[&str], &[&str]); 8] = [
            (Level::Baseline, &sysctl, 31, &["forbidden sysctls"], &[]),
            (Level::Baseline, &probe, 33, &[], &["probe or lifecycle host"]),
            (Level::Baseline, &engine, 30, &["seLinuxOptions"], &[]),
            (Level::Restricted, &bare, 18, &[], &["seccompProfile"]),
            (
                Level::Restricted,
                &bare,
                21,
                &["seccompProfile"],
                &["unrestricted capabilities", "seccompProfile"],
            ),
            (
                Level::Restricted,
                &bare,
                22,
                &["unrestricted capabilities", "seccompProfile"],
                &["unrestricted capabilities", "runAsUser=0", "seccompProfile"],
            ),
            (
                Level::Restricted,
                &added,
                21,
                &["non-default capabilities", "seccompProfile"],
                &["unrestricted capabilities", "seccompProfile"],
            ),
            (
                Level::Restricted,
                &windows,
                24,
                &[
                    "allowPrivilegeEscalation != false",
                    "unrestricted capabilities",
                    "seccompProfile",
                ],
                &[],
            ),
        ];
        for (level, spec, last, then, later) in cases {
            assert_eq!(found(level, last, spec), then, "v1.{last}");
            assert_eq!(found(level, last + 1, spec), later, "after v1.{last}");
        }
    }

    #[test]
    fn a_version_is_what_labels_may_say() {
        for (text, minor) in [
            ("latest", Some(LATEST)),
            ("v1.0", Some(0)),
            ("v1.30", Some(30)),
            ("v1.01", None),
            ("1.2", None),
            ("v1.+2", None),
            ("v1.", None),
        ] {
            assert_eq!(version(text), minor, "{text}");
        }
    }

    #[test]
    fn profiles_were_annotations_before_1_19() {
        let notes = crate::json!({"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}});
        let old = violations(Level::Baseline, 18, &notes, &Value::Null);
        assert_eq!(old[0].detail, "seccomp.security.alpha.kubernetes.io/pod=\"unconfined\"");
        assert!(violations(Level::Baseline, 19, &notes, &Value::Null).is_empty());
    }
}
