//! Cells of the kinds outside the core and workload groups.

use super::{age, int, or, selector};
use crate::meta;
use crate::object::Value;
use crate::quantity::Quantity;
use crate::time::{self, Timestamp};

fn name(v: &Value) -> Value {
    meta::name(v).into()
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

/// APIService.
pub fn api_service(v: &Value, now: Timestamp) -> Vec<Value> {
    let service = match &v["spec"]["service"] {
        s if s.is_null() => "Local".to_owned(),
        s => format!("{}/{}", s["namespace"].text(), s["name"].text()),
    };
    let available = match meta::condition(v, "Available") {
        Some(c) if c["status"].text() == "True" => "True".to_owned(),
        Some(c) => format!("{} ({})", c["status"].text(), c["reason"].text()),
        None => "Unknown".to_owned(),
    };
    vec![name(v), service.into(), available.into(), age(v, now)]
}

/// HorizontalPodAutoscaler v2.
pub fn autoscaler_v2(v: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &v["spec"];
    let reference = &spec["scaleTargetRef"];
    let current = v["status"]["currentMetrics"].items();
    let targets: Vec<String> = spec["metrics"]
        .items()
        .iter()
        .enumerate()
        .map(|(i, m)| metric(m, current.get(i)))
        .collect();
    let shown = match targets.len() {
        0 => "<none>".to_owned(),
        n if n > 2 => format!("{} + {} more...", targets[..2].join(", "), n - 2),
        _ => targets.join(", "),
    };
    vec![
        name(v),
        format!("{}/{}", reference["kind"].text(), reference["name"].text()).into(),
        shown.into(),
        or(&spec["minReplicas"], "<unset>"),
        int(&spec["maxReplicas"]),
        int(&v["status"]["currentReplicas"]),
        age(v, now),
    ]
}

fn metric(m: &Value, current: Option<&Value>) -> String {
    let (source, key) = match m["type"].text() {
        "External" => ("external", ""),
        "Pods" => ("pods", ""),
        "Object" => ("object", ""),
        "Resource" => ("resource", "name"),
        "ContainerResource" => ("containerResource", "name"),
        _ => return "<unknown type>".to_owned(),
    };
    let target = &m[source]["target"];
    let label = if key.is_empty() { String::new() } else { format!("{}: ", m[source][key].text()) };
    let now = current.map(|c| &c[source]["current"]);
    let read = |field: &str| {
        let v = now.map(|n| n[field].clone()).unwrap_or_default();
        if v.is_null() { None } else { Some(or(&v, "").text().to_owned()) }
    };
    let unknown = || "<unknown>".to_owned();
    if let Some(p) = target["averageUtilization"].as_int() {
        let now = read("averageUtilization").map(|v| format!("{v}%")).unwrap_or_else(unknown);
        return format!("{label}{now}/{p}%");
    }
    if target.has("averageValue") {
        let now = read("averageValue").unwrap_or_else(unknown);
        let average = if label.is_empty() && source != "pods" { " (avg)" } else { "" };
        return format!("{label}{now}/{}{average}", target["averageValue"].text());
    }
    let now = read("value").unwrap_or_else(unknown);
    format!("{label}{now}/{}", target["value"].text())
}

/// HorizontalPodAutoscaler v1.
pub fn autoscaler_v1(v: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &v["spec"];
    let reference = &spec["scaleTargetRef"];
    let targets = match spec["targetCPUUtilizationPercentage"].as_int() {
        Some(t) => match v["status"]["currentCPUUtilizationPercentage"].as_int() {
            Some(c) => format!("cpu: {c}%/{t}%"),
            None => format!("cpu: <unknown>/{t}%"),
        },
        None => "<none>".to_owned(),
    };
    vec![
        name(v),
        format!("{}/{}", reference["kind"].text(), reference["name"].text()).into(),
        targets.into(),
        or(&spec["minReplicas"], "<unset>"),
        int(&spec["maxReplicas"]),
        int(&v["status"]["currentReplicas"]),
        age(v, now),
    ]
}

/// CertificateSigningRequest.
pub fn signing_request(v: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &v["spec"];
    let duration = match spec["expirationSeconds"].as_int() {
        Some(s) => time::human_duration(s),
        None => "<none>".to_owned(),
    };
    let has = |kind: &str| meta::condition(v, kind).is_some();
    let mut state = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !v["status"]["certificate"].text().is_empty() {
        state.push_str(",Issued");
    }
    vec![
        name(v),
        age(v, now),
        or(&spec["signerName"], "<none>"),
        spec["username"].text().into(),
        duration.into(),
        state.into(),
    ]
}

/// IngressClass.
pub fn ingress_class(v: &Value, now: Timestamp) -> Vec<Value> {
    let p = &v["spec"]["parameters"];
    let parameters = if p.is_null() {
        "<none>".to_owned()
    } else {
        let group = p["apiGroup"].text();
        let dot = if group.is_empty() { "" } else { "." };
        format!("{}{dot}{group}/{}", p["kind"].text(), p["name"].text())
    };
    vec![name(v), v["spec"]["controller"].text().into(), parameters.into(), age(v, now)]
}

/// Ingress.
pub fn ingress(v: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &v["spec"];
    let hosts =
        joined(spec["rules"].items().iter().map(|r| r["host"].text()).filter(|h| !h.is_empty()));
    let address =
        joined(v["status"]["loadBalancer"]["ingress"].items().iter().map(
            |i| match i["ip"].text() {
                "" => i["hostname"].text(),
                ip => ip,
            },
        ));
    let ports = if spec["tls"].items().is_empty() { "80" } else { "80, 443" };
    let hosts = if hosts.is_empty() { "*".to_owned() } else { hosts };
    vec![
        name(v),
        or(&spec["ingressClassName"], "<none>"),
        hosts.into(),
        address.into(),
        ports.into(),
        age(v, now),
    ]
}

/// IPAddress.
pub fn ip_address(v: &Value, _: Timestamp) -> Vec<Value> {
    let p = &v["spec"]["parentRef"];
    let mut parts = vec![p["resource"].text().to_owned()];
    if !p["group"].text().is_empty() {
        parts[0].push_str(&format!(".{}", p["group"].text()));
    }
    if !p["namespace"].text().is_empty() {
        parts.push(p["namespace"].text().to_owned());
    }
    parts.push(p["name"].text().to_owned());
    vec![name(v), parts.join("/").into()]
}

/// NetworkPolicy.
pub fn network_policy(v: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(v), selector(&v["spec"]["podSelector"]), age(v, now)]
}

/// ServiceCIDR.
pub fn service_cidr(v: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(v), joined(v["spec"]["cidrs"].items().iter().map(Value::text)).into(), age(v, now)]
}

/// What a node uses.
pub fn node_metrics(v: &Value, _: Timestamp) -> Vec<Value> {
    let used = |name: &str| v.str_at(&["usage", name]).unwrap_or("0").to_owned();
    vec![name(v), used("cpu").into(), used("memory").into(), window(v)]
}

/// What all containers of a pod use.
pub fn pod_metrics(v: &Value, _: Timestamp) -> Vec<Value> {
    let used = |name: &str| {
        let containers = v.at(&["containers"]).map(Value::items).unwrap_or_default();
        let each = containers.iter().filter_map(|c| c.str_at(&["usage", name]));
        let sum = each
            .filter_map(|text| Quantity::parse(text).ok())
            .reduce(Quantity::plus)
            .map_or_else(|| "0".to_owned(), |sum| sum.to_string());
        Value::from(sum)
    };
    vec![name(v), used("cpu"), used("memory"), window(v)]
}

fn window(v: &Value) -> Value {
    v.str_at(&["window"]).unwrap_or_default().into()
}

/// PodDisruptionBudget.
pub fn disruption_budget(v: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(v),
        or(&v["spec"]["minAvailable"], "N/A"),
        or(&v["spec"]["maxUnavailable"], "N/A"),
        int(&v["status"]["disruptionsAllowed"]),
        age(v, now),
    ]
}

/// RoleBinding and ClusterRoleBinding.
pub fn role_binding(v: &Value, now: Timestamp) -> Vec<Value> {
    let of = |kind: &str| {
        let subjects = v["subjects"].items().iter().filter(|s| s["kind"].text() == kind);
        let names: Vec<String> = subjects
            .map(|s| match (kind, s["namespace"].text()) {
                ("ServiceAccount", ns) if !ns.is_empty() => format!("{ns}/{}", s["name"].text()),
                _ => s["name"].text().to_owned(),
            })
            .collect();
        Value::from(names.join(", "))
    };
    let role = &v["roleRef"];
    vec![
        name(v),
        format!("{}/{}", role["kind"].text(), role["name"].text()).into(),
        age(v, now),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]
}

/// CSIDriver.
pub fn csi_driver(v: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &v["spec"];
    let flag = |key: &str| Value::Bool(spec[key].as_bool().unwrap_or(key == "attachRequired"));
    let tokens = joined(spec["tokenRequests"].items().iter().map(|t| t["audience"].text()));
    let tokens =
        if spec["tokenRequests"].items().is_empty() { "<unset>".to_owned() } else { tokens };
    vec![
        name(v),
        flag("attachRequired"),
        flag("podInfoOnMount"),
        flag("storageCapacity"),
        tokens.into(),
        flag("requiresRepublish"),
        joined(spec["volumeLifecycleModes"].items().iter().map(Value::text)).into(),
        age(v, now),
    ]
}

/// CSINode.
pub fn csi_node(v: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(v), Value::Int(v["spec"]["drivers"].items().len() as i64), age(v, now)]
}

/// StorageClass.
pub fn storage_class(v: &Value, now: Timestamp) -> Vec<Value> {
    let is_default = [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ]
    .iter()
    .any(|a| meta::annotation(v, a) == Some("true"));
    let mark = if is_default { " (default)" } else { "" };
    vec![
        format!("{}{mark}", meta::name(v)).into(),
        v["provisioner"].clone(),
        or(&v["reclaimPolicy"], "Delete"),
        or(&v["volumeBindingMode"], "Immediate"),
        Value::Bool(v["allowVolumeExpansion"].as_bool().unwrap_or(false)),
        age(v, now),
    ]
}

/// VolumeAttachment.
pub fn volume_attachment(v: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &v["spec"];
    vec![
        name(v),
        spec["attacher"].clone(),
        spec["source"]["persistentVolumeName"].text().into(),
        spec["nodeName"].text().into(),
        Value::Bool(v["status"]["attached"].as_bool().unwrap_or(false)),
        age(v, now),
    ]
}

/// VolumeAttributesClass.
pub fn volume_attributes_class(v: &Value, now: Timestamp) -> Vec<Value> {
    let is_default =
        meta::annotation(v, "volumeattributesclass.alpha.kubernetes.io/is-default-class");
    let mark = if is_default == Some("true") { " (default)" } else { "" };
    vec![format!("{}{mark}", meta::name(v)).into(), v["driverName"].clone(), age(v, now)]
}

/// Webhook configurations.
pub fn webhooks(v: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(v), Value::Int(v["webhooks"].items().len() as i64), age(v, now)]
}

/// ValidatingAdmissionPolicy and MutatingAdmissionPolicy.
pub fn admission_policy(v: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &v["spec"];
    let n = spec["validations"].items().len() + spec["mutations"].items().len();
    let p = &spec["paramKind"];
    let param = if p.is_null() {
        "<unset>".to_owned()
    } else {
        format!("{}/{}", p["apiVersion"].text(), p["kind"].text())
    };
    vec![name(v), Value::Int(n as i64), param.into(), age(v, now)]
}

/// Bindings of admission policies.
pub fn policy_binding(v: &Value, now: Timestamp) -> Vec<Value> {
    let p = &v["spec"]["paramRef"];
    let param = match (p["namespace"].text(), p["name"].text()) {
        _ if p.is_null() => "<unset>".to_owned(),
        ("", "") => format!("*/{}", selector(&p["selector"]).text()),
        ("", n) => n.to_owned(),
        (ns, "") => format!("{ns}/{}", selector(&p["selector"]).text()),
        (ns, n) => format!("{ns}/{n}"),
    };
    vec![name(v), v["spec"]["policyName"].text().into(), param.into(), age(v, now)]
}

/// PriorityClass.
pub fn priority_class(v: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(v),
        int(&v["value"]),
        Value::Bool(v["globalDefault"].as_bool().unwrap_or(false)),
        age(v, now),
        v["preemptionPolicy"].text().into(),
    ]
}

/// Lease.
pub fn lease(v: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(v), v["spec"]["holderIdentity"].text().into(), age(v, now)]
}

/// RuntimeClass.
pub fn runtime_class(v: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(v), v["handler"].text().into(), age(v, now)]
}

/// EndpointSlice.
pub fn endpoint_slice(v: &Value, now: Timestamp) -> Vec<Value> {
    const SHOWN_MAX: usize = 3;
    let shorten = |list: Vec<String>, none: &str| match list.len() {
        0 => none.to_owned(),
        n if n > SHOWN_MAX => {
            format!("{} + {} more...", list[..SHOWN_MAX].join(","), n - SHOWN_MAX)
        }
        _ => list.join(","),
    };
    let ports = v["ports"].items().iter().map(|p| match p["port"].as_int() {
        Some(n) => n.to_string(),
        None => "*".to_owned(),
    });
    let addresses = v["endpoints"].items().iter().flat_map(|e| e["addresses"].items());
    let addresses = addresses.map(|a| a.text().to_owned()).collect();
    vec![
        name(v),
        v["addressType"].text().into(),
        shorten(ports.collect(), "<unset>").into(),
        shorten(addresses, "<unset>").into(),
        age(v, now),
    ]
}

/// ResourceClaim.
pub fn resource_claim(v: &Value, now: Timestamp) -> Vec<Value> {
    let mut states = Vec::new();
    if meta::deletion_timestamp(v).is_some() {
        states.push("deleted");
    }
    if !v["status"].has("allocation") {
        if states.is_empty() {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        if !v["status"]["reservedFor"].items().is_empty() {
            states.push("reserved");
        }
    }
    vec![name(v), states.join(",").into(), age(v, now)]
}

/// ResourceSlice.
pub fn resource_slice(v: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &v["spec"];
    let node = if spec.has("nodeName") {
        or(&spec["nodeName"], "<unset>")
    } else if spec.has("nodeSelector") {
        "<selector>".into()
    } else if spec["allNodes"].as_bool() == Some(true) {
        "<all>".into()
    } else {
        "<unset>".into()
    };
    vec![
        name(v),
        node,
        spec["driver"].text().into(),
        spec["pool"]["name"].text().into(),
        age(v, now),
    ]
}

/// FlowSchema.
pub fn flow_schema(v: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &v["spec"];
    let missing = match meta::condition(v, "Dangling") {
        Some(c) => c["status"].text(),
        None => "?",
    };
    vec![
        name(v),
        spec["priorityLevelConfiguration"]["name"].text().into(),
        int(&spec["matchingPrecedence"]),
        or(&spec["distinguisherMethod"]["type"], "<none>"),
        age(v, now),
        missing.into(),
    ]
}

/// PriorityLevelConfiguration.
pub fn priority_level(v: &Value, now: Timestamp) -> Vec<Value> {
    let limited = &v["spec"]["limited"];
    let queuing = &limited["limitResponse"]["queuing"];
    let number = |v: &Value| if v.is_null() { Value::from("<none>") } else { v.clone() };
    vec![
        name(v),
        v["spec"]["type"].text().into(),
        number(&limited["nominalConcurrencyShares"]),
        number(&queuing["queues"]),
        number(&queuing["handSize"]),
        number(&queuing["queueLengthLimit"]),
        age(v, now),
    ]
}
