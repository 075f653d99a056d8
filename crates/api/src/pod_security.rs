//! The Pod Security Standards: which rules of a level a pod breaks. Pure.
//!
//! Specified by <https://kubernetes.io/docs/concepts/security/pod-security-standards/>, newest version.

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

type Check = fn(&Value, &Value) -> Option<Violation>;

/// Checks of both levels, in the order they are reported. The second number says from which level on, the third up to
/// which (a stricter check may take its place).
const CHECKS: &[(Level, Level, Check)] = {
    use Level::{Baseline, Restricted};
    &[
        (Baseline, Restricted, app_armor),
        (Baseline, Baseline, |_, spec| capabilities(spec, false)),
        (Baseline, Restricted, host_namespaces),
        (Baseline, Baseline, host_path),
        (Baseline, Restricted, host_ports),
        (Baseline, Restricted, host_probes),
        (Baseline, Restricted, privileged),
        (Baseline, Restricted, proc_mount),
        (Baseline, Restricted, se_linux),
        (Baseline, Baseline, |_, spec| seccomp(spec, false)),
        (Baseline, Restricted, sysctls),
        (Baseline, Restricted, host_process),
        (Restricted, Restricted, escalation),
        (Restricted, Restricted, |_, spec| capabilities(spec, true)),
        (Restricted, Restricted, volume_types),
        (Restricted, Restricted, run_as_non_root),
        (Restricted, Restricted, run_as_user),
        (Restricted, Restricted, |_, spec| seccomp(spec, true)),
    ]
};

/// The rules of `level` that a pod (or template) breaks.
pub fn violations(level: Level, metadata: &Value, spec: &Value) -> Vec<Violation> {
    let holds = |(from, to, _): &&(Level, Level, Check)| *from <= level && level <= *to;
    CHECKS.iter().filter(holds).filter_map(|(_, _, check)| check(metadata, spec)).collect()
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

fn app_armor(metadata: &Value, spec: &Value) -> Option<Violation> {
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
    if restricted && windows(spec) {
        return None;
    }
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

fn host_namespaces(_: &Value, spec: &Value) -> Option<Violation> {
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|f| spec[**f].as_bool() == Some(true))
        .map(|f| format!("{f}=true"))
        .collect();
    if used.is_empty() { None } else { violation("host namespaces", used.join(", ")) }
}

fn host_path(_: &Value, spec: &Value) -> Option<Violation> {
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

fn host_ports(_: &Value, spec: &Value) -> Option<Violation> {
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

fn host_probes(_: &Value, spec: &Value) -> Option<Violation> {
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

fn privileged(_: &Value, spec: &Value) -> Option<Violation> {
    let bad = names(spec, |c| security(c, "privileged").as_bool() == Some(true));
    if bad.is_empty() {
        return None;
    }
    violation(
        "privileged",
        format!("{} must not set securityContext.privileged=true", listed(&bad)),
    )
}

fn proc_mount(_: &Value, spec: &Value) -> Option<Violation> {
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

fn se_linux(_: &Value, spec: &Value) -> Option<Violation> {
    const TYPES: [&str; 5] =
        ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    fn options(of: &Value) -> &Value {
        security(of, "seLinuxOptions")
    }
    let set = |o: &Value, field: &str| !o[field].text().is_empty();
    let bad = |of: &Value| {
        let o = options(of);
        !TYPES.contains(&o["type"].text()) || set(o, "user") || set(o, "role")
    };
    let who = setters(bad(spec), &names(spec, bad))?;
    let all: Vec<&Value> = std::iter::once(spec).chain(containers(spec)).map(options).collect();
    let types = sorted(all.iter().map(|o| o["type"].text()).filter(|t| !TYPES.contains(t)));
    let mut what = Vec::new();
    if !types.is_empty() {
        what.push(format!("{} {}", plural(types.len(), "type", "types"), quoted(&types)));
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
    if restricted && windows(spec) {
        return None;
    }
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

const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

fn sysctls(_: &Value, spec: &Value) -> Option<Violation> {
    let all = security(spec, "sysctls").items().iter().map(|s| s["name"].text());
    let bad: Vec<&str> = all.filter(|name| !SYSCTLS.contains(name)).collect();
    if bad.is_empty() { None } else { violation("forbidden sysctls", bad.join(", ")) }
}

fn host_process(_: &Value, spec: &Value) -> Option<Violation> {
    let bad = |v: &Value| security(v, "windowsOptions")["hostProcess"].as_bool() == Some(true);
    let who = setters(bad(spec), &names(spec, bad))?;
    violation(
        "hostProcess",
        format!("{who} must not set securityContext.windowsOptions.hostProcess=true"),
    )
}

fn escalation(_: &Value, spec: &Value) -> Option<Violation> {
    let bad = names(spec, |c| security(c, "allowPrivilegeEscalation").as_bool() != Some(false));
    if bad.is_empty() || windows(spec) {
        return None;
    }
    let detail =
        format!("{} must set securityContext.allowPrivilegeEscalation=false", listed(&bad));
    violation("allowPrivilegeEscalation != false", detail)
}

fn volume_types(_: &Value, spec: &Value) -> Option<Violation> {
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

fn run_as_non_root(_: &Value, spec: &Value) -> Option<Violation> {
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

fn run_as_user(_: &Value, spec: &Value) -> Option<Violation> {
    let bad = |v: &Value| security(v, "runAsUser").as_int() == Some(0);
    let who = setters(bad(spec), &names(spec, bad)).filter(|_| !own_users(spec))?;
    violation("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(level: Level, spec: Value) -> Vec<String> {
        let all = violations(level, &Value::Null, &spec);
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
}
