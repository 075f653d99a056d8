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
    hints(new, errs);
    if let Some(old) = old {
        update(new, old, errs);
    }
}

const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const MODE: &str = "service.kubernetes.io/topology-mode";
const RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Annotations that say what fields say now.
fn hints(new: &Value, errs: &mut FieldErrors) {
    if let (Some(old_way), Some(mode)) = (meta::annotation(new, HINTS), meta::annotation(new, MODE))
        && old_way != mode
    {
        let text = format!("must match annotations[{HINTS}] when both are specified");
        errs.invalid(format!("metadata.annotations[{MODE}]"), mode, text);
    }
    let spec = &new["spec"];
    let Some(ranges) = meta::annotation(new, RANGES) else { return };
    if !spec["loadBalancerSourceRanges"].is_empty() {
        return;
    }
    let at = format!("metadata.annotations[{RANGES}]");
    if spec["type"].text() != "LoadBalancer" {
        errs.forbidden(&at, "may only be used when `type` is 'LoadBalancer'");
    }
    let each = ranges.split(',').map(str::trim).filter(|_| !ranges.trim().is_empty());
    for range in each.filter(|range| !is_cidr(range)) {
        errs.invalid(&at, range, super::core::CIDR);
    }
}

/// What the status of a balancer says of its addresses.
pub fn balancer_status(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let at = "status.loadBalancer.ingress";
    let list = new["status"]["loadBalancer"]["ingress"].items();
    let kind = new["spec"]["type"].text();
    if !list.is_empty() && !matches!(kind, "" | "LoadBalancer") {
        errs.forbidden(at, "may only be used when `spec.type` is 'LoadBalancer'");
        return;
    }
    for (i, ingress) in list.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let (ip, host) = (ingress["ip"].text(), ingress["hostname"].text());
        if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
            errs.invalid(format!("{at}.ip"), ip, IP);
        }
        match ingress.get("ipMode") {
            None if !ip.is_empty() && kind == "LoadBalancer" => {
                errs.required(format!("{at}.ipMode"), "must be specified when `ip` is set");
            }
            Some(_) if ip.is_empty() => {
                let text = "may not be specified when `ip` is not set";
                errs.forbidden(format!("{at}.ipMode"), text);
            }
            Some(mode) => {
                one_of_if_set(&format!("{at}.ipMode"), mode, &["Proxy", "VIP"], errs);
            }
            None => {}
        }
        if !host.is_empty() {
            reasons(&format!("{at}.hostname"), host, name::dns_subdomain(host), errs);
            if host.parse::<std::net::IpAddr>().is_ok() {
                let text = "must be a DNS name, not an IP address";
                errs.invalid(format!("{at}.hostname"), host, text);
            }
        }
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
    for key in ["ipFamilies", "ipFamilyPolicy"].iter().filter(|key| spec.has(key)) {
        errs.forbidden(format!("spec.{key}"), "may not be set for ExternalName services");
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
        if let Some(protocol) = p.get("appProtocol") {
            let found = name::qualified(protocol.text());
            reasons(&format!("{at}.appProtocol"), protocol.text(), found, errs);
        }
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
    let at = "spec.clusterIPs";
    let ips = spec["clusterIPs"].items();
    let first = spec["clusterIP"].text();
    match ips.first() {
        Some(_) if first.is_empty() => {
            let text = "must be empty when `clusterIP` is not specified";
            errs.invalid(at, spec["clusterIPs"].clone(), text);
        }
        Some(ip) if ip.text() != first => {
            errs.invalid(at, spec["clusterIPs"].clone(), "first value must match `clusterIP`");
        }
        _ => {}
    }
    let families = spec["ipFamilies"].items();
    for (i, f) in families.iter().enumerate() {
        let at = format!("spec.ipFamilies[{i}]");
        if !matches!(f.text(), "IPv4" | "IPv6") {
            errs.not_supported(&at, f.clone(), &["IPv4", "IPv6"]);
        }
        if families[..i].contains(f) {
            errs.duplicate(at, f.clone());
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    one_of_if_set("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], &policies, errs);
    let mut good = true;
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && ip.text() == "None" {
            if ips.len() > 1 {
                good = false;
                let text = "'None' must be the first and only value";
                errs.invalid(at, spec["clusterIPs"].clone(), text);
            }
        } else if ip.text().parse::<std::net::IpAddr>().is_err() {
            good = false;
            errs.invalid(format!("{at}[{i}]"), ip.text(), IP);
        }
    }
    if ips.len() > 2 {
        errs.invalid(at, spec["clusterIPs"].clone(), "may only hold up to 2 values");
    }
    if good && first != "None" {
        two_families(spec, ips, families, errs);
    }
}

/// Two addresses are of two families, in the order that is asked for.
fn two_families(spec: &Value, ips: &[Value], families: &[Value], errs: &mut FieldErrors) {
    let is_six = |ip: &Value| ip.text().contains(':');
    let both = ips.len() == 2 && is_six(&ips[0]) != is_six(&ips[1]);
    if ips.len() > 1 && !both {
        let text = "may specify no more than one IP for each IP family";
        errs.invalid("spec.clusterIPs", spec["clusterIPs"].clone(), text);
    }
    for (i, (ip, family)) in ips.iter().zip(families).enumerate() {
        let found = if is_six(ip) { "IPv6" } else { "IPv4" };
        if matches!(family.text(), "IPv4" | "IPv6") && family.text() != found {
            let text =
                format!("expected an {} value as indicated by `ipFamilies[{i}]`", family.text());
            errs.invalid(format!("spec.clusterIPs[{i}]"), ip.clone(), text);
        }
    }
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
        if crate::strategy::service::is_external(spec) {
            one_of("spec.externalTrafficPolicy", external, &["Cluster", "Local"], errs);
        } else {
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
    if health != 0 && crate::strategy::service::needs_health_port(spec) {
        port_number("spec.healthCheckNodePort", &spec["healthCheckNodePort"], errs);
    } else if health != 0 {
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
    } else if let Some(class) = spec.get("loadBalancerClass") {
        let found = name::qualified(class.text());
        reasons("spec.loadBalancerClass", class.text(), found, errs);
    }
}

fn update(new: &Value, old: &Value, errs: &mut FieldErrors) {
    let (n, o) = (&new["spec"], &old["spec"]);
    let once = "may not change once set";
    if n["type"].text() != "ExternalName" && o["type"].text() != "ExternalName" {
        address_update(n, o, errs);
    }
    let both_lb = n["type"].text() == "LoadBalancer" && o["type"].text() == "LoadBalancer";
    if both_lb && n["loadBalancerClass"] != o["loadBalancerClass"] {
        errs.invalid("spec.loadBalancerClass", n["loadBalancerClass"].clone(), once);
    }
    let health = crate::strategy::service::needs_health_port;
    if health(n) && health(o) && n["healthCheckNodePort"] != o["healthCheckNodePort"] {
        errs.forbidden("spec.healthCheckNodePort", super::IMMUTABLE);
    }
}

/// Addresses and families may be added or dropped behind the first, and neither changes.
fn address_update(n: &Value, o: &Value, errs: &mut FieldErrors) {
    let once = "may not change once set";
    let headless = |spec: &Value| spec["clusterIP"].text() == "None";
    let single = n["ipFamilyPolicy"].text() == "SingleStack";
    let lists = [
        ("clusterIPs", "secondary clusterIP", "primary clusterIP"),
        ("ipFamilies", "secondary ipFamily", "primary ipFamily"),
    ];
    for (key, second, first) in lists {
        let skip = if key == "clusterIPs" {
            headless(n) && headless(o)
        } else {
            headless(n) || headless(o)
        };
        if skip {
            continue;
        }
        let (new, old) = (n[key].items(), o[key].items());
        let at = format!("spec.{key}[0]");
        if new.is_empty() && !old.is_empty() {
            errs.invalid(&at, n[key].clone(), format!("{first} can not be unset"));
        } else if new.len() == old.len() {
            for (i, _) in new.iter().zip(old).enumerate().filter(|(_, (a, b))| a != b) {
                let at = if key == "clusterIPs" { format!("spec.{key}[{i}]") } else { at.clone() };
                errs.invalid(at, n[key].clone(), once);
            }
        } else if !old.is_empty() && new[0] != old[0] {
            errs.invalid(&at, n[key].clone(), once);
        }
        if new.len() == 1 && old.len() == 2 && !single {
            let text = format!("must be set to 'SingleStack' when releasing the {second}");
            errs.invalid("spec.ipFamilyPolicy", n["ipFamilyPolicy"].clone(), text);
        }
    }
}
