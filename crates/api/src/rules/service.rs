//! Rules of services.

use super::core::{IP, is_cidr};
use super::{labels, one_of, one_of_if_set, port, port_number, reasons};
use crate::error::FieldErrors;
use crate::meta;
use crate::name;
use crate::object::Value;

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const CLIENT_IP_SECONDS_MAX: i64 = 86_400;

/// Service.
pub fn service(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    let kind = spec["type"].text();
    reasons("metadata.name", meta::name(new), name_reasons(meta::name(new)), errs);
    let headless = spec["clusterIP"].text() == "None";
    let ports = spec["ports"].items();
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errs.required("spec.ports", "");
    }
    match kind {
        "LoadBalancer" if headless => {
            errs.invalid(
                "spec.clusterIPs[0]",
                "None",
                "may not be set to 'None' for LoadBalancer services",
            );
        }
        "NodePort" if headless => {
            errs.invalid(
                "spec.clusterIPs[0]",
                "None",
                "may not be set to 'None' for NodePort services",
            );
        }
        "ExternalName" => external_name(spec, errs),
        _ => {}
    }
    service_ports(ports, kind, errs);
    labels("spec.selector", &spec["selector"], errs);
    one_of("spec.sessionAffinity", &spec["sessionAffinity"], &["ClientIP", "None"], errs);
    session_affinity(spec, errs);
    if kind != "ExternalName" {
        cluster_ips(spec, errs);
    }
    for (i, ip) in spec["externalIPs"].items().iter().enumerate() {
        let at = format!("spec.externalIPs[{i}]");
        match ip.text().parse() {
            Ok(ip) => super::core::endpoint_ip(&at, ip, errs),
            Err(_) => errs.invalid(at, ip.clone(), IP),
        }
    }
    if !TYPES.contains(&kind) {
        errs.not_supported("spec.type", spec["type"].clone(), &TYPES);
    }
    traffic(spec, kind, errs);
    if let Some(old) = old {
        update(new, old, errs);
    }
}

/// Labels of 63 characters at most; a leading digit is allowed.
fn name_reasons(n: &str) -> Vec<String> {
    if name::dns_subdomain(n).is_empty() { name::dns_label(n) } else { Vec::new() }
}

fn external_name(spec: &Value, errs: &mut FieldErrors) {
    if !spec["clusterIPs"].is_empty() || !spec["clusterIP"].text().is_empty() {
        errs.forbidden("spec.clusterIPs", "may not be set for ExternalName services");
    }
    match spec["externalName"].text().strip_suffix('.').unwrap_or(spec["externalName"].text()) {
        "" => errs.required("spec.externalName", ""),
        n => reasons("spec.externalName", n, name::dns_subdomain(n), errs),
    }
}

fn service_ports(ports: &[Value], kind: &str, errs: &mut FieldErrors) {
    for (i, p) in ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        let n = p["name"].text();
        if n.is_empty() {
            if ports.len() > 1 {
                errs.required(format!("{at}.name"), "");
            }
        } else {
            reasons(&format!("{at}.name"), n, name::dns_label(n), errs);
            if ports[..i].iter().any(|o| o["name"].text() == n) {
                errs.duplicate(format!("{at}.name"), n);
            }
        }
        port_number(&format!("{at}.port"), &p["port"], errs);
        one_of(&format!("{at}.protocol"), &p["protocol"], &["SCTP", "TCP", "UDP"], errs);
        port(&format!("{at}.targetPort"), &p["targetPort"], errs);
        let node_port = p["nodePort"].as_int().unwrap_or(0);
        if kind == "ClusterIP" && node_port != 0 {
            errs.forbidden(format!("{at}.nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
        let twin = |o: &Value| o["port"] == p["port"] && o["protocol"] == p["protocol"];
        if ports[..i].iter().any(twin) {
            let shown =
                crate::json!({"port": p["port"].as_int(), "protocol": p["protocol"].text()});
            errs.duplicate(&at, super::internal(&shown));
        }
        let same_node = |o: &Value| {
            o["nodePort"].as_int().unwrap_or(0) == node_port && o["protocol"] == p["protocol"]
        };
        if node_port != 0 && ports[..i].iter().any(same_node) {
            errs.duplicate(format!("{at}.nodePort"), node_port);
        }
    }
}

fn session_affinity(spec: &Value, errs: &mut FieldErrors) {
    let path = "spec.sessionAffinityConfig";
    match spec["sessionAffinity"].text() {
        "ClientIP" => {
            let seconds = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
            if !seconds.as_int().is_some_and(|n| n > 0 && n <= CLIENT_IP_SECONDS_MAX) {
                errs.invalid(
                    format!("{path}.clientIP.timeoutSeconds"),
                    seconds.clone(),
                    format!("must be greater than 0 and less than {CLIENT_IP_SECONDS_MAX}"),
                );
            }
        }
        "None" if spec.has("sessionAffinityConfig") => {
            errs.forbidden(path, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

fn cluster_ips(spec: &Value, errs: &mut FieldErrors) {
    let ips = spec["clusterIPs"].items();
    let first = spec["clusterIP"].text();
    if !ips.is_empty() && ips[0].text() != first && !first.is_empty() {
        errs.invalid(
            "spec.clusterIPs",
            spec["clusterIPs"].clone(),
            "first value must match `clusterIP`",
        );
    }
    let listed: Vec<&str> = if ips.is_empty() && !first.is_empty() {
        vec![first]
    } else {
        ips.iter().map(Value::text).collect()
    };
    for (i, ip) in listed.iter().enumerate() {
        let ok = *ip == "None" || ip.parse::<std::net::IpAddr>().is_ok();
        if !ok {
            errs.invalid(format!("spec.clusterIPs[{i}]"), *ip, IP);
        }
    }
    for (i, f) in spec["ipFamilies"].items().iter().enumerate() {
        if !matches!(f.text(), "IPv4" | "IPv6") {
            errs.not_supported(format!("spec.ipFamilies[{i}]"), f.clone(), &["IPv4", "IPv6"]);
        }
    }
    let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
    one_of_if_set("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], &policies, errs);
}

fn traffic(spec: &Value, kind: &str, errs: &mut FieldErrors) {
    one_of_if_set(
        "spec.internalTrafficPolicy",
        &spec["internalTrafficPolicy"],
        &["Cluster", "Local"],
        errs,
    );
    let external = &spec["externalTrafficPolicy"];
    if !external.text().is_empty() {
        if matches!(kind, "NodePort" | "LoadBalancer") {
            one_of("spec.externalTrafficPolicy", external, &["Cluster", "Local"], errs);
        } else if spec["externalIPs"].items().is_empty() {
            errs.invalid(
                "spec.externalTrafficPolicy",
                external.clone(),
                "may only be set for externally-accessible services",
            );
        }
    }
    let known = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    one_of_if_set("spec.trafficDistribution", &spec["trafficDistribution"], &known, errs);
    for (i, c) in spec["loadBalancerSourceRanges"].items().iter().enumerate() {
        if !is_cidr(c.text().trim()) {
            let at = format!("spec.LoadBalancerSourceRanges[{i}]");
            errs.invalid(at, c.clone(), super::core::CIDR);
        }
    }
    if kind != "LoadBalancer" && !spec["loadBalancerSourceRanges"].is_empty() {
        let text = "may only be used when `type` is 'LoadBalancer'";
        errs.forbidden("spec.LoadBalancerSourceRanges", text);
    }
    let health = spec["healthCheckNodePort"].as_int().unwrap_or(0);
    if health != 0 && !(kind == "LoadBalancer" && external.text() == "Local") {
        let text =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errs.invalid("spec.healthCheckNodePort", health, text);
    }
    if kind != "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec.has(key) {
                let text = "may only be used when `type` is 'LoadBalancer'";
                errs.forbidden(format!("spec.{key}"), text);
            }
        }
    }
}

fn update(new: &Value, old: &Value, errs: &mut FieldErrors) {
    let (n, o) = (&new["spec"], &old["spec"]);
    let kept = n["type"].text() != "ExternalName" && o["type"].text() != "ExternalName";
    if kept && !o["clusterIP"].text().is_empty() && n["clusterIP"] != o["clusterIP"] {
        errs.invalid("spec.clusterIPs[0]", n["clusterIP"].clone(), "may not change once set");
    }
    let both_lb = n["type"].text() == "LoadBalancer" && o["type"].text() == "LoadBalancer";
    if both_lb && n["loadBalancerClass"] != o["loadBalancerClass"] {
        errs.invalid(
            "spec.loadBalancerClass",
            n["loadBalancerClass"].clone(),
            "may not change once set",
        );
    }
}
