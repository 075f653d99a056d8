//! Services: what an update leaves out and the server had chosen stays; what a new type has no use for goes.

use crate::object::Value;

/// Takes from the old service what only the server writes, as long as the type still needs it.
pub(crate) fn update(new: &mut Value, old: &Value) {
    let (Some(n), o) = (new.get_mut("spec"), &old["spec"]) else { return };
    keep_allocated(n, o);
    align_addresses(n, o);
    drop_unused(n, o);
}

/// A new service that names its address once, names it in the list too.
pub(crate) fn create(v: &mut Value) {
    let one = v["spec"]["clusterIP"].clone();
    if !one.is_empty() && v["spec"]["clusterIPs"].is_empty() {
        v.set_at(&["spec", "clusterIPs"], vec![one]);
    }
}

fn kind(spec: &Value) -> &str {
    spec["type"].text()
}

fn needs_address(spec: &Value) -> bool {
    kind(spec) != "ExternalName"
}

fn needs_node_port(spec: &Value) -> bool {
    kind(spec) == "NodePort"
        || (kind(spec) == "LoadBalancer"
            && spec["allocateLoadBalancerNodePorts"].as_bool() != Some(false))
}

/// Whether a port for health checks is needed.
pub(crate) fn needs_health_port(spec: &Value) -> bool {
    kind(spec) == "LoadBalancer" && spec["externalTrafficPolicy"].text() == "Local"
}

/// Whether it is reached from outside the cluster.
pub(crate) fn is_external(spec: &Value) -> bool {
    matches!(kind(spec), "LoadBalancer" | "NodePort")
        || (kind(spec) == "ClusterIP" && !spec["externalIPs"].is_empty())
}

fn keep_allocated(n: &mut Value, o: &Value) {
    if needs_address(n) && needs_address(o) {
        if n["clusterIP"].is_empty() {
            take(n, o, "clusterIP");
        }
        if n["clusterIPs"].is_empty() && n["clusterIP"] == o["clusterIP"] {
            take(n, o, "clusterIPs");
        }
        // One address keeps its family; two may become one, of which the server then decides.
        if n["clusterIPs"] == o["clusterIPs"] {
            for key in ["ipFamilies", "ipFamilyPolicy"] {
                if !n.has(key) {
                    take(n, o, key);
                }
            }
        }
    }
    if needs_node_port(n) && needs_node_port(o) {
        keep_node_ports(n, o);
    }
    if needs_health_port(n) && needs_health_port(o) && n["healthCheckNodePort"].is_empty() {
        take(n, o, "healthCheckNodePort");
    }
}

/// Ports are told apart by name; a number that another port of the new service has is not given twice.
fn keep_node_ports(n: &mut Value, o: &Value) {
    let number = |p: &Value| p["nodePort"].as_int().unwrap_or(0);
    let mut used: Vec<i64> = n["ports"].items().iter().map(number).filter(|p| *p != 0).collect();
    let Some(ports) = n.get_mut("ports") else { return };
    for port in ports.items_mut().iter_mut().filter(|p| number(p) == 0) {
        let twin = o["ports"].items().iter().find(|p| p["name"].text() == port["name"].text());
        if let Some(kept) = twin.map(number).filter(|p| *p != 0 && !used.contains(p)) {
            port.set("nodePort", kept);
            used.push(kept);
        }
    }
}

/// Clients that know only one of the two fields change only that one.
fn align_addresses(n: &mut Value, o: &Value) {
    if n["clusterIP"] == o["clusterIP"] || n["clusterIPs"] != o["clusterIPs"] {
        return;
    }
    match n["clusterIP"].clone() {
        one if one.is_empty() => {
            n.remove("clusterIPs");
        }
        one => n.set("clusterIPs", vec![one]),
    }
}

/// Drops what the old type needed and the new one does not, unless the client changed it.
fn drop_unused(n: &mut Value, o: &Value) {
    let external_name = needs_address(o) && !needs_address(n);
    let balanced = kind(o) == "LoadBalancer" && kind(n) != "LoadBalancer";
    for (gone, keys) in [
        (external_name, &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"][..]),
        (needs_health_port(o) && !needs_health_port(n), &["healthCheckNodePort"]),
        (balanced, &["allocateLoadBalancerNodePorts", "loadBalancerClass"]),
        (is_external(o) && !is_external(n), &["externalTrafficPolicy"]),
    ] {
        for key in keys.iter().filter(|_| gone) {
            if n[*key] == o[*key] {
                n.remove(key);
            }
        }
    }
    let numbers = |spec: &Value| -> Vec<i64> {
        spec["ports"].items().iter().map(|p| p["nodePort"].as_int().unwrap_or(0)).collect()
    };
    if needs_node_port(o) && !needs_node_port(n) && numbers(n) == numbers(o) {
        for port in n.get_mut("ports").map(Value::items_mut).unwrap_or_default() {
            port.remove("nodePort");
        }
    }
}

fn take(n: &mut Value, o: &Value, key: &str) {
    if let Some(value) = o.get(key) {
        n.set(key, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn updated(new: &str, old: &str) -> String {
        let parse = |text: &str| crate::codec::json::parse(text.as_bytes()).unwrap();
        let (mut n, mut o) = (Value::object(), Value::object());
        n.set("spec", parse(new));
        o.set("spec", parse(old));
        update(&mut n, &o);
        n["spec"].to_string()
    }

    #[test]
    fn what_was_given_stays_and_what_is_of_no_use_goes() {
        let cases = [
            (
                r#"{"type":"ClusterIP"}"#,
                r#"{"clusterIP":"10.0.0.9","clusterIPs":["10.0.0.9"],"type":"ClusterIP"}"#,
                r#"{"clusterIP":"10.0.0.9","clusterIPs":["10.0.0.9"],"type":"ClusterIP"}"#,
            ),
            (
                r#"{"type":"ClusterIP"}"#,
                r#"{"clusterIPs":["1"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack"}"#,
                r#"{"clusterIPs":["1"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","type":"ClusterIP"}"#,
            ),
            (
                r#"{"ports":[{"name":"a"},{"name":"b","nodePort":1}],"type":"NodePort"}"#,
                r#"{"ports":[{"name":"a","nodePort":2},{"name":"b","nodePort":3}],"type":"NodePort"}"#,
                r#"{"ports":[{"name":"a","nodePort":2},{"name":"b","nodePort":1}],"type":"NodePort"}"#,
            ),
            (
                r#"{"clusterIP":"10.0.0.9","clusterIPs":["10.0.0.9"],"type":"ExternalName"}"#,
                r#"{"clusterIP":"10.0.0.9","clusterIPs":["10.0.0.9"],"type":"ClusterIP"}"#,
                r#"{"type":"ExternalName"}"#,
            ),
            (
                r#"{"externalTrafficPolicy":"Local","healthCheckNodePort":7,"ports":[{"nodePort":1}],"type":"ClusterIP"}"#,
                r#"{"externalTrafficPolicy":"Local","healthCheckNodePort":7,"ports":[{"nodePort":1}],"type":"LoadBalancer"}"#,
                r#"{"ports":[{}],"type":"ClusterIP"}"#,
            ),
        ];
        for (new, old, wanted) in cases {
            assert_eq!(updated(new, old), wanted);
        }
    }

    #[test]
    fn what_the_server_chose_is_kept_and_goes_with_its_type() {
        let node_port = r#"{"type":"NodePort","clusterIP":"10.0.0.9","clusterIPs":["10.0.0.9"],"externalTrafficPolicy":"Cluster",
            "ports":[{"name":"a","port":1,"nodePort":30001},{"name":"b","port":2,"nodePort":30002}]}"#;
        let cases = [
            // Replaced from a file.
            (
                node_port,
                r#"{"type":"NodePort","ports":[{"name":"b","port":3},{"name":"c","port":4},{"name":"a","port":1}]}"#,
                r#"{"type":"NodePort","clusterIP":"10.0.0.9","clusterIPs":["10.0.0.9"],
                "ports":[{"name":"b","port":3,"nodePort":30002},{"name":"c","port":4},{"name":"a","port":1,"nodePort":30001}]}"#,
            ),
            // A port that moved to another entry is not given twice.
            (
                node_port,
                r#"{"type":"NodePort","ports":[{"name":"a","port":1},{"name":"b","port":2,"nodePort":30001}]}"#,
                r#"{"type":"NodePort","clusterIP":"10.0.0.9","clusterIPs":["10.0.0.9"],
                "ports":[{"name":"a","port":1},{"name":"b","port":2,"nodePort":30001}]}"#,
            ),
            // Another type, by a patch that says nothing else.
            (
                node_port,
                r#"{"type":"ClusterIP","clusterIP":"10.0.0.9","clusterIPs":["10.0.0.9"],"externalTrafficPolicy":"Cluster",
                "ports":[{"name":"a","port":1,"nodePort":30001},{"name":"b","port":2,"nodePort":30002}]}"#,
                r#"{"type":"ClusterIP","clusterIP":"10.0.0.9","clusterIPs":["10.0.0.9"],
                "ports":[{"name":"a","port":1},{"name":"b","port":2}]}"#,
            ),
            (
                r#"{"type":"ClusterIP","clusterIP":"10.0.0.9","clusterIPs":["10.0.0.9"]}"#,
                r#"{"type":"ExternalName","externalName":"x.example","clusterIP":"10.0.0.9","clusterIPs":["10.0.0.9"]}"#,
                r#"{"type":"ExternalName","externalName":"x.example"}"#,
            ),
            // A change of the address is left for validation to refuse.
            (
                r#"{"clusterIP":"10.0.0.9","clusterIPs":["10.0.0.9"]}"#,
                r#"{"clusterIP":"10.0.0.8","clusterIPs":["10.0.0.9"]}"#,
                r#"{"clusterIP":"10.0.0.8","clusterIPs":["10.0.0.8"]}"#,
            ),
        ];
        let service = |spec: &str| {
            let mut service = Value::object();
            service.set("spec", crate::codec::json::parse(spec.as_bytes()).unwrap());
            service
        };
        for (old, new, wanted) in cases {
            let mut got = service(new);
            update(&mut got, &service(old));
            assert_eq!(got, service(wanted), "{new}");
        }
    }
}
