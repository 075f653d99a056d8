//! Services: what the server gave one is kept by a write that does not say it, and goes with the type that needed it.
//!
//! Specified by `pkg/registry/core/service/strategy.go` of Kubernetes.

use crate::object::Value;

/// Prepares the update of a Service. Who replaces one from a file does not know what the server chose.
pub(crate) fn update(new: &mut Value, old: &Value) {
    if let (Some(new), Some(old)) = (new.at_mut(&["spec"]), old.get("spec")) {
        keep_addresses(new, old);
        keep_ports(new, old);
        agree(new, old);
        drop_unneeded(new, old);
    }
}

fn kind(spec: &Value) -> &str {
    Some(spec["type"].text()).filter(|given| !given.is_empty()).unwrap_or("ClusterIP")
}

fn needs_address(spec: &Value) -> bool {
    kind(spec) != "ExternalName"
}

fn needs_ports(spec: &Value) -> bool {
    matches!(kind(spec), "NodePort" | "LoadBalancer")
}

fn needs_health_port(spec: &Value) -> bool {
    is_balanced(spec) && spec["externalTrafficPolicy"].text() == "Local"
}

fn needs_traffic_policy(spec: &Value) -> bool {
    needs_ports(spec) || (kind(spec) == "ClusterIP" && !spec["externalIPs"].is_empty())
}

fn is_balanced(spec: &Value) -> bool {
    kind(spec) == "LoadBalancer"
}

fn node_port(entry: &Value) -> i64 {
    entry["nodePort"].as_int().unwrap_or(0)
}

fn node_ports(spec: &Value) -> Vec<i64> {
    spec["ports"].items().iter().map(node_port).collect()
}

fn keep_addresses(new: &mut Value, old: &Value) {
    if !needs_address(new) || !needs_address(old) {
        return;
    }
    if new["clusterIP"].text().is_empty() && new["clusterIPs"].is_empty() {
        new.set("clusterIP", old["clusterIP"].clone());
    }
    if new["clusterIPs"].is_empty() && new["clusterIP"] == old["clusterIP"] {
        new.set("clusterIPs", old["clusterIPs"].clone());
    }
}

/// An entry without a node port gets that of the entry of its name, unless another has taken it.
fn keep_ports(new: &mut Value, old: &Value) {
    if needs_ports(new) && needs_ports(old) {
        let mut taken = node_ports(new);
        let entries = new.at_mut(&["ports"]).map(Value::items_mut).into_iter().flatten();
        for entry in entries.filter(|entry| node_port(entry) == 0) {
            let name = entry["name"].text();
            let before = old["ports"].items().iter().find(|old| old["name"].text() == name);
            let port = before.map_or(0, node_port);
            if port != 0 && !taken.contains(&port) {
                entry.set("nodePort", port);
                taken.push(port);
            }
        }
    }
    let health = "healthCheckNodePort";
    let missing = new[health].as_int().unwrap_or(0) == 0;
    if missing && needs_health_port(new) && needs_health_port(old) {
        new.set(health, old[health].clone());
    }
}

/// Who knows only `clusterIP` changes or clears `clusterIPs` with it.
fn agree(new: &mut Value, old: &Value) {
    if new["clusterIP"] == old["clusterIP"] || new["clusterIPs"] != old["clusterIPs"] {
        return;
    }
    let address = new["clusterIP"].clone();
    if address.text().is_empty() {
        new.remove("clusterIPs");
    } else {
        new.set("clusterIPs", Value::Array(vec![address]));
    }
}

/// What only the old type needed goes, unless this write says something new about it.
fn drop_unneeded(new: &mut Value, old: &Value) {
    let gone = |new: &Value, needs: fn(&Value) -> bool| needs(old) && !needs(new);
    if gone(new, needs_ports) && node_ports(new) == node_ports(old) {
        for entry in new.at_mut(&["ports"]).map(Value::items_mut).into_iter().flatten() {
            entry.remove("nodePort");
        }
    }
    let unneeded = [
        (gone(new, needs_address), &["clusterIP", "clusterIPs"][..]),
        (gone(new, needs_health_port), &["healthCheckNodePort"]),
        (gone(new, needs_traffic_policy), &["externalTrafficPolicy"]),
        (gone(new, is_balanced), &["allocateLoadBalancerNodePorts"]),
        (gone(new, is_balanced), &["loadBalancerClass"]),
    ];
    for (_, fields) in unneeded.iter().filter(|(unneeded, _)| *unneeded) {
        if fields.iter().all(|field| new[*field] == old[*field]) {
            fields.iter().for_each(|field| drop(new.remove(field)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::json::parse;

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
            service.set("spec", parse(spec.as_bytes()).unwrap());
            service
        };
        for (old, new, wanted) in cases {
            let mut got = service(new);
            update(&mut got, &service(old));
            assert_eq!(got, service(wanted), "{new}");
        }
    }
}
