//! Cells of the core group's other kinds.

use super::{age, label_map, or};
use crate::meta;
use crate::object::Value;
use crate::time::{self, Timestamp};

fn name(v: &Value) -> Value {
    meta::name(v).into()
}

/// ConfigMap.
pub fn config_map(v: &Value, now: Timestamp) -> Vec<Value> {
    let n = v["data"].members().count() + v["binaryData"].members().count();
    vec![name(v), Value::Int(n as i64), age(v, now)]
}

/// Secret.
pub fn secret(v: &Value, now: Timestamp) -> Vec<Value> {
    let n = v["data"].members().count() as i64;
    vec![name(v), v["type"].clone(), Value::Int(n), age(v, now)]
}

/// ServiceAccount and other kinds that show only their age.
pub fn aged(v: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(v), age(v, now)]
}

/// Namespace.
pub fn namespace(v: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(v), v["status"]["phase"].clone(), age(v, now)]
}

/// Endpoints.
pub fn endpoints(v: &Value, now: Timestamp) -> Vec<Value> {
    const SHOWN_MAX: usize = 3;
    let mut list = Vec::new();
    for subset in v["subsets"].items() {
        let ports = subset["ports"].items();
        for a in subset["addresses"].items() {
            let ip = a["ip"].text();
            if ports.is_empty() {
                list.push(ip.to_owned());
            }
            for p in ports {
                let port = p["port"].as_int().unwrap_or(0);
                list.push(if ip.contains(':') {
                    format!("[{ip}]:{port}")
                } else {
                    format!("{ip}:{port}")
                });
            }
        }
    }
    let shown = match list.len() {
        0 => "<none>".to_owned(),
        n if n > SHOWN_MAX => {
            format!("{} + {} more...", list[..SHOWN_MAX].join(","), n - SHOWN_MAX)
        }
        _ => list.join(","),
    };
    vec![name(v), shown.into(), age(v, now)]
}

/// Event, in both groups.
pub fn event(v: &Value, now: Timestamp) -> Vec<Value> {
    let pick = |names: [&str; 2]| {
        let found = names.iter().find_map(|n| v[*n].as_str().filter(|s| !s.is_empty()));
        found.unwrap_or("").to_owned()
    };
    let first = match pick(["firstTimestamp", "deprecatedFirstTimestamp"]) {
        s if s.is_empty() => v["eventTime"].text().to_owned(),
        s => s,
    };
    let last = match (
        v["series"]["lastObservedTime"].as_str(),
        pick(["lastTimestamp", "deprecatedLastTimestamp"]),
    ) {
        (Some(s), _) => s.to_owned(),
        (None, s) if !s.is_empty() => s,
        _ => first.clone(),
    };
    let object = if v.has("involvedObject") { &v["involvedObject"] } else { &v["regarding"] };
    let kind = object["kind"].text().to_lowercase();
    let target = match object["name"].text() {
        "" => kind,
        n => format!("{kind}/{n}"),
    };
    let source = if v.has("source") { &v["source"] } else { &v["deprecatedSource"] };
    let (mut component, mut host) = (source["component"].text(), source["host"].text());
    if component.is_empty() {
        component = match v["reportingComponent"].text() {
            "" => v["reportingController"].text(),
            c => c,
        };
        host = v["reportingInstance"].text();
    }
    let source =
        if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    let count = [&v["series"]["count"], &v["count"], &v["deprecatedCount"]]
        .into_iter()
        .find_map(|c| c.as_int().filter(|n| *n > 0));
    let ago = |s: &str| Value::from(time::age(Some(s).filter(|s| !s.is_empty()), now));
    let message = match v["message"].text() {
        "" => v["note"].text(),
        m => m,
    };
    vec![
        ago(&last),
        v["type"].text().into(),
        v["reason"].text().into(),
        target.into(),
        object["fieldPath"].text().into(),
        source.into(),
        message.trim().into(),
        ago(&first),
        Value::Int(count.unwrap_or(1)),
        name(v),
    ]
}

/// Node.
pub fn node(v: &Value, now: Timestamp) -> Vec<Value> {
    let mut state = match meta::condition(v, "Ready") {
        Some(c) if c["status"].text() == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if v["spec"]["unschedulable"].as_bool() == Some(true) {
        state.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = meta::labels(v)
        .filter_map(|(k, value)| match k.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if k == "kubernetes.io/role" => Some(value),
            None => None,
        })
        .filter(|r| !r.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let roles = if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") };
    let address = |kind: &str| {
        let list = v["status"]["addresses"].items();
        let found = list.iter().find(|a| a["type"].text() == kind);
        found.map(|a| a["address"].clone()).unwrap_or_else(|| Value::from("<none>"))
    };
    let info = &v["status"]["nodeInfo"];
    vec![
        name(v),
        state.into(),
        roles.into(),
        age(v, now),
        info["kubeletVersion"].text().into(),
        address("InternalIP"),
        address("ExternalIP"),
        or(&info["osImage"], "<unknown>"),
        or(&info["kernelVersion"], "<unknown>"),
        or(&info["containerRuntimeVersion"], "<unknown>"),
    ]
}

/// Service.
pub fn service(v: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &v["spec"];
    let kind = spec["type"].text();
    let cluster_ip = match spec["clusterIPs"].items().first() {
        Some(ip) => ip.text(),
        None => spec["clusterIP"].text(),
    };
    let ports: Vec<String> = spec["ports"].items().iter().map(service_port).collect();
    vec![
        name(v),
        kind.into(),
        if cluster_ip.is_empty() { "<none>".into() } else { cluster_ip.into() },
        external_ip(v, kind).into(),
        if ports.is_empty() { "<none>".into() } else { ports.join(",").into() },
        age(v, now),
        label_map(&spec["selector"]),
    ]
}

fn service_port(p: &Value) -> String {
    let (port, protocol) = (p["port"].as_int().unwrap_or(0), p["protocol"].text());
    match p["nodePort"].as_int() {
        Some(n) if n > 0 => format!("{port}:{n}/{protocol}"),
        _ => format!("{port}/{protocol}"),
    }
}

fn external_ip(v: &Value, kind: &str) -> String {
    let spec = &v["spec"];
    let external: Vec<&str> = spec["externalIPs"].items().iter().map(Value::text).collect();
    let none = || "<none>".to_owned();
    match kind {
        "ClusterIP" | "NodePort" if external.is_empty() => none(),
        "ClusterIP" | "NodePort" => external.join(","),
        "LoadBalancer" => {
            let ingress = v["status"]["loadBalancer"]["ingress"].items().iter();
            let mut all: Vec<&str> = ingress
                .map(|i| match i["ip"].text() {
                    "" => i["hostname"].text(),
                    ip => ip,
                })
                .filter(|s| !s.is_empty())
                .collect();
            all.extend(&external);
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => spec["externalName"].text().to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn access_modes(list: &Value) -> String {
    let mut out: Vec<&str> = Vec::new();
    for (mode, short) in [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ] {
        if list.items().iter().any(|m| m.text() == mode) {
            out.push(short);
        }
    }
    out.join(",")
}

fn phase(v: &Value) -> Value {
    if meta::deletion_timestamp(v).is_some() {
        return Value::from("Terminating");
    }
    Value::from(v["status"]["phase"].text())
}

/// PersistentVolume.
pub fn persistent_volume(v: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &v["spec"];
    let claim = match &spec["claimRef"] {
        c if c.is_null() => String::new(),
        c => format!("{}/{}", c["namespace"].text(), c["name"].text()),
    };
    vec![
        name(v),
        spec["capacity"]["storage"].text().into(),
        access_modes(&spec["accessModes"]).into(),
        spec["persistentVolumeReclaimPolicy"].text().into(),
        phase(v),
        claim.into(),
        storage_class(v).into(),
        or(&spec["volumeAttributesClassName"], "<unset>"),
        v["status"]["reason"].text().into(),
        age(v, now),
        or(&spec["volumeMode"], "<unset>"),
    ]
}

fn storage_class(v: &Value) -> &str {
    match meta::annotation(v, "volume.beta.kubernetes.io/storage-class") {
        Some(c) => c,
        None => v["spec"]["storageClassName"].text(),
    }
}

/// PersistentVolumeClaim.
pub fn persistent_volume_claim(v: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &v["spec"];
    let bound = !spec["volumeName"].text().is_empty();
    let (capacity, modes) = if bound {
        let capacity = v["status"]["capacity"]["storage"].text();
        (capacity.to_owned(), access_modes(&v["status"]["accessModes"]))
    } else {
        (String::new(), String::new())
    };
    vec![
        name(v),
        phase(v),
        spec["volumeName"].text().into(),
        capacity.into(),
        modes.into(),
        storage_class(v).into(),
        or(&spec["volumeAttributesClassName"], "<unset>"),
        age(v, now),
        or(&spec["volumeMode"], "<unset>"),
    ]
}

/// ResourceQuota.
pub fn resource_quota(v: &Value, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (key, hard) in v["status"]["hard"].members() {
        let used = or(&v["status"]["used"][key], "0");
        let text = format!("{key}: {}/{}", used.text(), hard.text());
        if key.starts_with("limits.") { limits.push(text) } else { requests.push(text) }
    }
    vec![name(v), requests.join(", ").into(), limits.join(", ").into(), age(v, now)]
}

/// ComponentStatus.
pub fn component_status(v: &Value, _: Timestamp) -> Vec<Value> {
    let healthy = v["conditions"].items().iter().find(|c| c["type"].text() == "Healthy");
    let (status, message, error) = match healthy {
        Some(c) if c["status"].text() == "True" => {
            ("Healthy", c["message"].text(), c["error"].text())
        }
        Some(c) => ("Unhealthy", c["message"].text(), c["error"].text()),
        None => ("Unknown", "", ""),
    };
    vec![name(v), status.into(), message.into(), error.into()]
}
