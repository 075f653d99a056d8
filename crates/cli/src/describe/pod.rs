//! Pods, and what makes them from a template. Pure.

use api::object::Value;

use super::page::Page;
use super::{items, joined, pairs, plain, text};

pub(super) fn pod(page: &mut Page, pod: &Value) {
    page.head(pod);
    page.put(0, "Priority", pod.int_at(&["spec", "priority"]).unwrap_or(0).to_string());
    if let Some(class) = pod.str_at(&["spec", "priorityClassName"]) {
        page.put(0, "Priority Class Name", class);
    }
    page.put(0, "Service Account", text(pod, &["spec", "serviceAccountName"]));
    let host = pod.str_at(&["status", "hostIP"]).unwrap_or_default();
    match pod.str_at(&["spec", "nodeName"]) {
        Some(node) => page.put(0, "Node", format!("{node}/{host}")),
        None => page.put(0, "Node", "<none>"),
    }
    if let Some(start) = pod.at(&["status", "startTime"]) {
        page.moment(0, "Start Time", Some(start));
    }
    page.labels(0, pod);
    page.annotations(0, pod);
    match api::meta::deletion_timestamp(pod) {
        Some(_) => {
            let grace = pod.int_at(&["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0);
            page.put(0, "Status", "Terminating");
            page.put(0, "Termination Grace Period", format!("{grace}s"));
        }
        None => page.put(0, "Status", text(pod, &["status", "phase"])),
    }
    for (heading, field) in [("Reason", "reason"), ("Message", "message")] {
        if let Some(said) = pod.str_at(&["status", field]).filter(|s| !s.is_empty()) {
            page.put(0, heading, said);
        }
    }
    page.put(0, "IP", pod.str_at(&["status", "podIP"]).unwrap_or_default());
    let addresses = items(pod, &["status", "podIPs"]);
    if addresses.is_empty() {
        page.put(0, "IPs", "");
    } else {
        page.line(0, &["IPs:"]);
    }
    for address in addresses {
        page.put(1, "IP", text(address, &["ip"]));
    }
    if let Some(owner) = api::meta::controller(pod) {
        let (kind, name) = (text(owner, &["kind"]), text(owner, &["name"]));
        page.put(0, "Controlled By", format!("{kind}/{name}"));
    }
    containers(page, 0, pod, Some(pod));
    page.conditions(pod, &[("Type", "type"), ("Status", "status")]);
    volumes(page, 0, pod);
    page.put(0, "QoS Class", text(pod, &["status", "qosClass"]));
    page.list(0, "Node-Selectors", &pairs(pod, &["spec", "nodeSelector"]));
    page.list(0, "Tolerations", &tolerations(pod));
}

/// The containers of a pod or template; with the state that `status` has of them.
fn containers(page: &mut Page, level: usize, owner: &Value, status: Option<&Value>) {
    for (heading, list, states) in [
        ("Init Containers", "initContainers", "initContainerStatuses"),
        ("Containers", "containers", "containerStatuses"),
        ("Ephemeral Containers", "ephemeralContainers", "ephemeralContainerStatuses"),
    ] {
        let found = items(owner, &["spec", list]);
        if !found.is_empty() {
            page.line(level, &[&format!("{heading}:")]);
        }
        for container in found {
            let name = container.str_at(&["name"]).unwrap_or_default();
            let state = status.and_then(|pod| {
                let mut all = items(pod, &["status", states]).iter();
                all.find(|s| s.str_at(&["name"]) == Some(name))
            });
            page.line(level + 1, &[&format!("{name}:")]);
            one(page, level + 2, container, state);
        }
    }
}

fn one(page: &mut Page, level: usize, container: &Value, status: Option<&Value>) {
    if let Some(status) = status {
        page.put(level, "Container ID", status.str_at(&["containerID"]).unwrap_or_default());
    }
    page.put(level, "Image", text(container, &["image"]));
    if let Some(status) = status {
        page.put(level, "Image ID", status.str_at(&["imageID"]).unwrap_or_default());
    }
    let ports = items(container, &["ports"]);
    for (heading, field) in [("Port", "containerPort"), ("Host Port", "hostPort")] {
        let shown: Vec<String> = ports
            .iter()
            .map(|p| format!("{}/{}", p.int_at(&[field]).unwrap_or(0), text(p, &["protocol"])))
            .collect();
        let heading = if shown.len() > 1 { format!("{heading}s") } else { heading.to_owned() };
        page.put(level, &heading, shown.join(", "));
    }
    for (heading, field) in [("Command", "command"), ("Args", "args")] {
        let words = items(container, &[field]);
        if !words.is_empty() {
            page.line(level, &[&format!("{heading}:")]);
        }
        for word in words {
            word.text().lines().for_each(|line| page.line(level + 1, &[line]));
        }
    }
    if let Some(status) = status {
        state(page, level, "State", status.get("state"));
        if status.get("lastState").is_some_and(|last| !last.is_empty()) {
            state(page, level, "Last State", status.get("lastState"));
        }
        let ready = status.bool_at(&["ready"]).unwrap_or(false);
        page.put(level, "Ready", if ready { "True" } else { "False" });
        let restarts = status.int_at(&["restartCount"]).unwrap_or(0);
        page.put(level, "Restart Count", restarts.to_string());
    }
    for (heading, field) in [("Limits", "limits"), ("Requests", "requests")] {
        let Some(amounts) = container.at(&["resources", field]) else { continue };
        page.line(level, &[&format!("{heading}:")]);
        amounts.members().for_each(|(name, amount)| page.put(level + 1, name, plain(amount)));
    }
    for (heading, field) in [
        ("Liveness", "livenessProbe"),
        ("Readiness", "readinessProbe"),
        ("Startup", "startupProbe"),
    ] {
        if let Some(probe) = container.get(field) {
            page.put(level, heading, probe_line(probe));
        }
    }
    for source in items(container, &["envFrom"]) {
        let kinds = [("configMapRef", "ConfigMap"), ("secretRef", "Secret")];
        let found = kinds.iter().find_map(|(f, kind)| Some((source.str_at(&[f, "name"])?, kind)));
        if let Some((name, kind)) = found {
            page.put(level, "Environment Variables from", format!("{name}  {kind}"));
        }
    }
    environment(page, level, container);
    mounts(page, level, container);
}

fn state(page: &mut Page, level: usize, heading: &str, state: Option<&Value>) {
    let Some((name, detail)) = state.and_then(|s| s.members().next()) else {
        page.put(level, heading, "Waiting");
        return;
    };
    let mut title = name.to_owned();
    title[..1].make_ascii_uppercase();
    page.put(level, heading, title);
    for (heading, field) in [("Reason", "reason"), ("Message", "message")] {
        if let Some(said) = detail.str_at(&[field]) {
            page.put(level + 1, heading, said.trim());
        }
    }
    if name == "terminated" {
        let code = detail.int_at(&["exitCode"]).unwrap_or(0);
        page.put(level + 1, "Exit Code", code.to_string());
        if let Some(signal) = detail.int_at(&["signal"]).filter(|s| *s != 0) {
            page.put(level + 1, "Signal", signal.to_string());
        }
    }
    for (heading, field) in [("Started", "startedAt"), ("Finished", "finishedAt")] {
        if let Some(at) = detail.get(field) {
            page.moment(level + 1, heading, Some(at));
        }
    }
}

fn probe_line(probe: &Value) -> String {
    let number = |field: &str, usual: i64| probe.int_at(&[field]).unwrap_or(usual);
    let how = if let Some(http) = probe.get("httpGet") {
        let scheme = http.str_at(&["scheme"]).unwrap_or("HTTP").to_lowercase();
        let host = http.str_at(&["host"]).unwrap_or_default();
        let (port, path) = (text(http, &["port"]), http.str_at(&["path"]).unwrap_or("/"));
        format!("http-get {scheme}://{host}:{port}{path}")
    } else if let Some(exec) = probe.get("exec") {
        format!("exec [{}]", joined(exec, &["command"], " "))
    } else if let Some(tcp) = probe.get("tcpSocket") {
        format!("tcp-socket {}:{}", tcp.str_at(&["host"]).unwrap_or(""), text(tcp, &["port"]))
    } else if let Some(grpc) = probe.get("grpc") {
        format!("grpc <pod>:{} {}", text(grpc, &["port"]), grpc.str_at(&["service"]).unwrap_or(""))
    } else {
        "unknown".to_owned()
    };
    format!(
        "{how} delay={}s timeout={}s period={}s #success={} #failure={}",
        number("initialDelaySeconds", 0),
        number("timeoutSeconds", 1),
        number("periodSeconds", 10),
        number("successThreshold", 1),
        number("failureThreshold", 3)
    )
}

fn environment(page: &mut Page, level: usize, container: &Value) {
    let variables = items(container, &["env"]);
    if variables.is_empty() {
        page.put(level, "Environment", "");
        return;
    }
    page.line(level, &["Environment:"]);
    for variable in variables {
        let name = text(variable, &["name"]);
        let Some(from) = variable.get("valueFrom") else {
            let value = variable.str_at(&["value"]).unwrap_or_default().replace('\n', " ");
            page.line(level + 1, &[&format!("{name}:"), &value]);
            continue;
        };
        let key = |field: &str, kind: &str| {
            let source = from.get(field)?;
            let optional = source.bool_at(&["optional"]).unwrap_or(false);
            let (key, of) = (text(source, &["key"]), text(source, &["name"]));
            Some(format!("<set to the key '{key}' of {kind} '{of}'>  Optional: {optional}"))
        };
        let field = || {
            let source = from.get("fieldRef")?;
            Some(format!("({}:{})", text(source, &["apiVersion"]), text(source, &["fieldPath"])))
        };
        let resource = || Some(text(from.get("resourceFieldRef")?, &["resource"]));
        let shown = key("configMapKeyRef", "config map")
            .or_else(|| key("secretKeyRef", "secret"))
            .or_else(field)
            .or_else(resource);
        page.put(level + 1, &name, shown.unwrap_or_default());
    }
}

fn mounts(page: &mut Page, level: usize, container: &Value) {
    let mut mounts: Vec<String> = items(container, &["volumeMounts"])
        .iter()
        .map(|mount| {
            let mode = if mount.bool_at(&["readOnly"]) == Some(true) { "ro" } else { "rw" };
            let path = mount.str_at(&["subPath"]).map(|p| format!(",path={p:?}"));
            let path = path.unwrap_or_default();
            format!(
                "{} from {} ({mode}{path})",
                text(mount, &["mountPath"]),
                text(mount, &["name"])
            )
        })
        .collect();
    mounts.sort();
    if mounts.is_empty() {
        page.put(level, "Mounts", "");
        return;
    }
    page.line(level, &["Mounts:"]);
    mounts.iter().for_each(|mount| page.line(level + 1, &[mount]));
}

/// Each volume with its source's fields.
fn volumes(page: &mut Page, level: usize, owner: &Value) {
    let volumes = items(owner, &["spec", "volumes"]);
    if volumes.is_empty() {
        page.put(level, "Volumes", "");
        return;
    }
    page.line(level, &["Volumes:"]);
    for volume in volumes {
        page.line(level + 1, &[&format!("{}:", text(volume, &["name"]))]);
        for (kind, source) in volume.members().filter(|(key, _)| *key != "name") {
            let mut title = kind.to_owned();
            title[..1].make_ascii_uppercase();
            page.put(level + 2, "Type", title);
            for (field, value) in source.members() {
                let value = match value {
                    Value::Array(list) if field == "sources" => list
                        .iter()
                        .flat_map(|s| s.members().map(|(kind, _)| kind.to_owned()))
                        .collect::<Vec<_>>()
                        .join(", "),
                    value => plain(value),
                };
                let mut heading = field.to_owned();
                heading[..1].make_ascii_uppercase();
                page.put(level + 2, &heading, value);
            }
        }
    }
}

fn tolerations(pod: &Value) -> Vec<String> {
    let one = |t: &Value| {
        let mut line = t.str_at(&["key"]).unwrap_or_default().to_owned();
        if let Some(value) = t.str_at(&["value"]).filter(|v| !v.is_empty()) {
            line = format!("{line}={value}");
        }
        if let Some(effect) = t.str_at(&["effect"]).filter(|e| !e.is_empty()) {
            line = format!("{line}:{effect}");
        }
        if t.str_at(&["operator"]) == Some("Exists") {
            line = format!("{line} op=Exists").trim_start().to_owned();
        }
        if let Some(seconds) = t.int_at(&["tolerationSeconds"]) {
            line = format!("{line} for {seconds}s");
        }
        line
    };
    let mut lines: Vec<String> = items(pod, &["spec", "tolerations"]).iter().map(one).collect();
    lines.sort();
    lines
}

pub(super) fn deployment(page: &mut Page, object: &Value, sets: &[Value]) {
    page.head(object);
    page.moment(0, "CreationTimestamp", object.at(&["metadata", "creationTimestamp"]));
    page.labels(0, object);
    page.annotations(0, object);
    page.put(0, "Selector", crate::target::selector(object).unwrap_or_default());
    let count = |field: &str| object.int_at(&["status", field]).unwrap_or(0);
    page.put(
        0,
        "Replicas",
        format!(
            "{} desired | {} updated | {} total | {} available | {} unavailable",
            object.int_at(&["spec", "replicas"]).unwrap_or(1),
            count("updatedReplicas"),
            count("replicas"),
            count("availableReplicas"),
            count("unavailableReplicas")
        ),
    );
    page.put(0, "StrategyType", text(object, &["spec", "strategy", "type"]));
    let seconds = object.int_at(&["spec", "minReadySeconds"]).unwrap_or(0);
    page.put(0, "MinReadySeconds", seconds.to_string());
    if let Some(rolling) = object.at(&["spec", "strategy", "rollingUpdate"]) {
        let (down, up) = (text(rolling, &["maxUnavailable"]), text(rolling, &["maxSurge"]));
        page.put(0, "RollingUpdateStrategy", format!("{down} max unavailable, {up} max surge"));
    }
    if let Some(template) = object.at(&["spec", "template"]) {
        page.line(0, &["Pod Template:"]);
        page.labels(1, template);
        if template.at(&["metadata", "annotations"]).is_some() {
            page.annotations(1, template);
        }
        containers(page, 1, template, None);
        volumes(page, 1, template);
        page.list(1, "Node-Selectors", &pairs(template, &["spec", "nodeSelector"]));
        page.list(1, "Tolerations", &tolerations(template));
    }
    page.conditions(object, &[("Type", "type"), ("Status", "status"), ("Reason", "reason")]);
    let (new, old) = replica_sets(object, sets);
    page.put(0, "OldReplicaSets", old);
    page.put(0, "NewReplicaSet", new);
}

/// The ReplicaSet of the newest revision, and those before it that still have pods or once had.
fn replica_sets(deployment: &Value, sets: &[Value]) -> (String, String) {
    let revision = |set: &Value| -> i64 {
        let text = api::meta::annotation(set, "deployment.kubernetes.io/revision");
        text.and_then(|t| t.parse().ok()).unwrap_or(0)
    };
    let owned = |set: &&Value| {
        let owner = api::meta::controller(set).and_then(|c| c.str_at(&["uid"]));
        owner == Some(api::meta::uid(deployment))
    };
    let mut sets: Vec<&Value> = sets.iter().filter(owned).collect();
    sets.sort_by_key(|set| revision(set));
    let line = |set: &Value| {
        let made = set.int_at(&["status", "replicas"]).unwrap_or(0);
        let wanted = set.int_at(&["spec", "replicas"]).unwrap_or(0);
        format!("{} ({made}/{wanted} replicas created)", api::meta::name(set))
    };
    let newest = sets.pop().map(line).unwrap_or_default();
    (newest, sets.into_iter().map(line).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        api::codec::json::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_pod_is_described() {
        let mut page = Page::new(api::time::parse("2024-01-01T00:10:00Z").unwrap());
        pod(
            &mut page,
            &value(
                r#"{"kind":"Pod","metadata":{"name":"web","namespace":"d"},"spec":{"nodeName":"n",
                "containers":[{"name":"c","image":"i","command":["a"],"env":[{"name":"X","value":"1"}],
                "livenessProbe":{"httpGet":{"port":80,"path":"/z"}}}],
                "tolerations":[{"key":"k","operator":"Exists","effect":"NoExecute","tolerationSeconds":3}]},
                "status":{"phase":"Running","hostIP":"1.2.3.4","containerStatuses":[{"name":"c",
                "state":{"terminated":{"exitCode":3,"reason":"Error"}},"restartCount":2}]}}"#,
            ),
        );
        // How wide columns are is tested with the page.
        let text = page.text();
        let lines: Vec<String> =
            text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for want in [
            "Node: n/1.2.3.4",
            "State: Terminated",
            "Exit Code: 3",
            "Restart Count: 2",
            "Liveness: http-get http://:80/z delay=0s timeout=1s period=10s #success=1 #failure=3",
            "X: 1",
            "Tolerations: k:NoExecute op=Exists for 3s",
        ] {
            assert!(lines.iter().any(|line| line == want), "{want:?} in\n{text}");
        }
    }
}
