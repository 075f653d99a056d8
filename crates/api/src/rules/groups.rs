//! Rules of the small groups: policy, networking, storage, scheduling, node, discovery, autoscaling.

use super::core::{CIDR, IP, is_cidr};
use super::{
    IMMUTABLE, NON_NEGATIVE, int_or_percent, label_selector, non_negative, one_of, one_of_if_set,
    port, reasons,
};
use crate::error::FieldErrors;
use crate::meta;
use crate::name;
use crate::object::Value;
use crate::quantity::Quantity;

/// Each of these fields keeps its value.
fn fixed(new: &Value, old: Option<&Value>, fields: &[&str], errs: &mut FieldErrors) {
    let Some(old) = old else { return };
    for f in fields {
        if new[*f] != old[*f] {
            errs.invalid(*f, new[*f].clone(), IMMUTABLE);
        }
    }
}

/// PodDisruptionBudget.
pub fn disruption_budget(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    if spec.has("minAvailable") && spec.has("maxUnavailable") {
        errs.invalid(
            "spec",
            super::internal(spec),
            "minAvailable and maxUnavailable cannot be both set",
        );
    }
    for key in ["minAvailable", "maxUnavailable"] {
        int_or_percent(&format!("spec.{key}"), &spec[key], errs);
        super::not_above_100_percent(&format!("spec.{key}"), &spec[key], errs);
    }
    label_selector("spec.selector", &spec["selector"], errs);
    let known = ["AlwaysAllow", "IfHealthyBudget"];
    one_of_if_set(
        "spec.unhealthyPodEvictionPolicy",
        &spec["unhealthyPodEvictionPolicy"],
        &known,
        errs,
    );
}

/// NetworkPolicy.
pub fn network_policy(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    label_selector("spec.podSelector", &spec["podSelector"], errs);
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in spec[list].items().iter().enumerate() {
            let at = format!("spec.{list}[{i}]");
            for (j, p) in rule["ports"].items().iter().enumerate() {
                policy_port(&format!("{at}.ports[{j}]"), p, errs);
            }
            for (j, p) in rule[peers].items().iter().enumerate() {
                policy_peer(&format!("{at}.{peers}[{j}]"), p, errs);
            }
        }
    }
    let types = spec["policyTypes"].items();
    if types.len() > 2 {
        let text = "may not specify more than two policyTypes";
        errs.invalid("spec.policyTypes", spec["policyTypes"].clone(), text);
        return;
    }
    for (i, t) in types.iter().enumerate() {
        if !matches!(t.text(), "Ingress" | "Egress") {
            errs.not_supported(format!("spec.policyTypes[{i}]"), t.clone(), &["Egress", "Ingress"]);
        }
    }
}

fn policy_port(at: &str, p: &Value, errs: &mut FieldErrors) {
    let known = ["TCP", "UDP", "SCTP"];
    one_of_if_set(&format!("{at}.protocol"), &p["protocol"], &known, errs);
    if p.has("port") {
        port(&format!("{at}.port"), &p["port"], errs);
        if let (Some(end), Some(start)) = (p["endPort"].as_int(), p["port"].as_int()) {
            if end < start {
                let text = "must be greater than or equal to `port`";
                errs.invalid(format!("{at}.endPort"), start, text);
            }
            super::port_number(&format!("{at}.endPort"), &p["endPort"], errs);
        } else if p.has("endPort") {
            let text = "may not be specified when `port` is non-numeric";
            errs.invalid(format!("{at}.endPort"), p["endPort"].clone(), text);
        }
    } else if p.has("endPort") {
        let text = "may not be specified when `port` is not specified";
        errs.invalid(format!("{at}.endPort"), p["endPort"].clone(), text);
    }
}

fn policy_peer(at: &str, p: &Value, errs: &mut FieldErrors) {
    let selectors = ["podSelector", "namespaceSelector"];
    let selected = selectors.iter().filter(|k| p.has(k)).count();
    for key in selectors {
        label_selector(&format!("{at}.{key}"), &p[key], errs);
    }
    let block = &p["ipBlock"];
    if block.is_null() {
        if selected == 0 {
            errs.required(at, "must specify a peer");
        }
        return;
    }
    let cidr = block["cidr"].text();
    if !is_cidr(cidr) {
        errs.invalid(format!("{at}.ipBlock.cidr"), cidr, CIDR);
    } else {
        for (i, e) in block["except"].items().iter().enumerate() {
            let at = format!("{at}.ipBlock.except[{i}]");
            if !is_cidr(e.text()) {
                errs.invalid(at, e.clone(), CIDR);
            } else if !strictly_within(e.text(), cidr) {
                errs.invalid(at, e.clone(), "must be a strict subset of `cidr`");
            }
        }
    }
    if selected > 0 {
        errs.forbidden(at, "may not specify both ipBlock and another peer");
    }
}

fn strictly_within(inner: &str, outer: &str) -> bool {
    let parse = |s: &str| {
        let (ip, bits) = s.split_once('/')?;
        let bits: u32 = bits.parse().ok()?;
        match ip.parse().ok()? {
            std::net::IpAddr::V4(v4) => Some((u128::from(v4.to_bits()), bits, 32)),
            std::net::IpAddr::V6(v6) => Some((v6.to_bits(), bits, 128)),
        }
    };
    let (Some((a, a_bits, a_size)), Some((b, b_bits, b_size))) = (parse(inner), parse(outer))
    else {
        return false;
    };
    let mask = |v: u128| if b_bits == 0 { 0 } else { v >> (b_size - b_bits) };
    a_size == b_size && a_bits > b_bits && mask(a) == mask(b)
}

/// EndpointSlice.
pub fn endpoint_slice(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let kind = new["addressType"].text();
    let known = ["FQDN", "IPv4", "IPv6"];
    if kind.is_empty() {
        errs.required("addressType", "");
    } else if !known.contains(&kind) {
        errs.not_supported("addressType", kind, &known);
    }
    let endpoints = new["endpoints"].items();
    if endpoints.len() > 1000 {
        errs.too_many("endpoints", endpoints.len(), 1000);
    }
    for (i, e) in endpoints.iter().enumerate() {
        let at = format!("endpoints[{i}]");
        let list = e["addresses"].items();
        if list.is_empty() {
            errs.required(format!("{at}.addresses"), "must contain at least 1 address");
        }
        if list.len() > 100 {
            errs.too_many(format!("{at}.addresses"), list.len(), 100);
        }
        for (j, a) in list.iter().enumerate() {
            let at = format!("{at}.addresses[{j}]");
            match (kind, a.text().parse::<std::net::IpAddr>()) {
                ("IPv4", Ok(ip)) if ip.is_ipv4() => super::core::endpoint_ip(&at, ip, errs),
                ("IPv6", Ok(ip)) if ip.is_ipv6() => super::core::endpoint_ip(&at, ip, errs),
                ("IPv4", Ok(_)) => errs.invalid(at, a.clone(), "must be an IPv4 address"),
                ("IPv6", Ok(_)) => errs.invalid(at, a.clone(), "must be an IPv6 address"),
                ("IPv4" | "IPv6", Err(_)) => errs.invalid(at, a.clone(), IP),
                ("FQDN", _) => domain(&at, a.text(), errs),
                _ => {}
            }
        }
        if let Some(host) = e.get("hostname") {
            let wrong = name::dns_label(host.text());
            reasons(&format!("{at}.hostname"), host.text(), wrong, errs);
        }
        if let Some(node) = e.get("nodeName") {
            let wrong = name::dns_subdomain(node.text());
            reasons(&format!("{at}.nodeName"), node.text(), wrong, errs);
        }
        topology_hints(&format!("{at}.hints"), &e["hints"], errs);
    }
    let ports = new["ports"].items();
    if ports.len() > 20_000 {
        errs.too_many("ports", ports.len(), 20_000);
        return;
    }
    for (i, p) in ports.iter().enumerate() {
        let at = format!("ports[{i}]");
        if let Some(protocol) = p.get("appProtocol") {
            let wrong = name::qualified(protocol.text());
            reasons(&format!("{at}.appProtocol"), protocol.text(), wrong, errs);
        }
        let n = p["name"].text();
        if ports[..i].iter().any(|o| o["name"].text() == n) {
            errs.duplicate(format!("{at}.name"), n);
        }
        if !n.is_empty() {
            reasons(&format!("{at}.name"), n, name::dns_label(n), errs);
        }
        one_of(&format!("{at}.protocol"), &p["protocol"], &["SCTP", "TCP", "UDP"], errs);
    }
    if let Some(old) = old
        && new["addressType"] != old["addressType"]
    {
        errs.invalid("addressType", new["addressType"].clone(), IMMUTABLE);
    }
}

/// A whole domain name.
fn domain(at: &str, text: &str, errs: &mut FieldErrors) {
    let bare = text.strip_suffix('.').unwrap_or(text);
    let wrong = name::dns_subdomain(bare);
    if wrong.is_empty() && !bare.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        errs.invalid(at, text, why);
    }
    reasons(at, text, wrong, errs);
}

/// For which zones and nodes an endpoint is meant.
fn topology_hints(at: &str, hints: &Value, errs: &mut FieldErrors) {
    for list in ["forZones", "forNodes"] {
        let at = format!("{at}.{list}");
        let items = hints[list].items();
        if items.len() > 8 {
            errs.too_many(&at, items.len(), 8);
            continue;
        }
        for (i, item) in items.iter().enumerate() {
            let field = format!("{at}[{i}].name");
            let n = item["name"].text();
            if items[..i].iter().any(|o| o["name"].text() == n) {
                errs.duplicate(&field, n);
            }
            let wrong =
                if list == "forZones" { name::label_value(n) } else { name::dns_subdomain(n) };
            reasons(&field, n, wrong, errs);
        }
    }
}

/// PriorityClass.
pub fn priority_class(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let n = meta::name(new);
    let value = new["value"].as_int().unwrap_or(0);
    if n.starts_with("system-") && !matches!(n, "system-node-critical" | "system-cluster-critical")
    {
        let text = "priority class names with 'system-' prefix are reserved for system use only. error: system- \
            prefix is reserved";
        errs.forbidden("metadata.name", text);
    } else if value > 1_000_000_000 && !n.starts_with("system-") {
        let text = "maximum allowed value of a user defined priority is 1000000000";
        errs.forbidden("value", text);
    }
    let known = ["Never", "PreemptLowerPriority"];
    one_of_if_set("preemptionPolicy", &new["preemptionPolicy"], &known, errs);
    if let Some(old) = old {
        if new["value"] != old["value"] {
            errs.forbidden("value", "may not be changed in an update.");
        }
        if new["preemptionPolicy"] != old["preemptionPolicy"] {
            errs.invalid("preemptionPolicy", new["preemptionPolicy"].clone(), IMMUTABLE);
        }
    }
}

/// StorageClass.
pub fn storage_class(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    match new["provisioner"].text() {
        "" => errs.required("provisioner", ""),
        p => reasons("provisioner", p, name::qualified(&p.to_lowercase()), errs),
    }
    if new["parameters"].members().any(|(k, _)| k.is_empty()) {
        errs.invalid("parameters", "", "field can not be empty.");
    }
    one_of_if_set("reclaimPolicy", &new["reclaimPolicy"], &["Delete", "Retain"], errs);
    let modes = ["Immediate", "WaitForFirstConsumer"];
    one_of("volumeBindingMode", &new["volumeBindingMode"], &modes, errs);
    fixed(new, old, &["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"], errs);
}

/// CSIDriver.
pub fn csi_driver(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    one_of_if_set("spec.fsGroupPolicy", &spec["fsGroupPolicy"], &policies, errs);
    let tokens = spec["tokenRequests"].items();
    for (i, t) in tokens.iter().enumerate() {
        let at = format!("spec.tokenRequests[{i}]");
        if tokens[..i].iter().any(|o| o["audience"] == t["audience"]) {
            errs.duplicate(format!("{at}.audience"), t["audience"].clone());
        }
        if t["expirationSeconds"].as_int().is_some_and(|n| n < 600) {
            let text = "may not specify a duration less than 10 minutes";
            errs.invalid(format!("{at}.expirationSeconds"), t["expirationSeconds"].clone(), text);
        }
    }
    let modes = ["Persistent", "Ephemeral"];
    for m in spec["volumeLifecycleModes"].items() {
        if !modes.contains(&m.text()) {
            errs.not_supported("spec.volumeLifecycleModes", m.clone(), &modes);
        }
    }
    if let Some(old) = old {
        for (key, shown) in [
            ("attachRequired", "attachedRequired"),
            ("volumeLifecycleModes", "volumeLifecycleModes"),
        ] {
            if spec[key] != old["spec"][key] {
                errs.invalid(format!("spec.{shown}"), spec[key].clone(), IMMUTABLE);
            }
        }
    }
}

/// CSINode.
pub fn csi_node(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let drivers = new["spec"]["drivers"].items();
    for (i, d) in drivers.iter().enumerate() {
        let at = format!("spec.drivers[{i}]");
        let n = d["name"].text();
        if n.is_empty() {
            errs.required(&at, "");
        }
        reasons(&at, n, name::qualified(&n.to_lowercase()), errs);
        if d["nodeID"].text().is_empty() {
            errs.required(format!("{at}.nodeID"), "");
        }
        non_negative(&format!("{at}.allocatable.count"), &d["allocatable"]["count"], errs);
        let keys = d["topologyKeys"].items();
        for (j, key) in keys.iter().enumerate() {
            if key.text().is_empty() {
                errs.required(&at, "");
            }
            if keys[..j].contains(key) {
                errs.duplicate(&at, key.clone());
            }
            reasons(&at, key.text(), name::qualified(key.text()), errs);
        }
        if drivers[..i].iter().any(|o| o["name"].text() == n) {
            errs.duplicate(format!("{at}.name"), n);
        }
    }
}

/// VolumeAttachment.
pub fn volume_attachment(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    match spec["attacher"].text() {
        "" => errs.required("spec.attacher", ""),
        a => reasons("spec.attacher", a, name::qualified(&a.to_lowercase()), errs),
    }
    let node = spec["nodeName"].text();
    reasons("spec.nodeName", node, name::dns_subdomain(node), errs);
    let source = &spec["source"];
    match (source.has("persistentVolumeName"), source.has("inlineVolumeSpec")) {
        (false, false) => {
            let text = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errs.required("spec.source", text);
        }
        (true, true) => {
            let text = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errs.invalid("spec.source", super::internal(source), text);
        }
        _ => {}
    }
    if let Some(old) = old
        && new["spec"] != old["spec"]
    {
        errs.invalid("spec", super::internal(&new["spec"]), IMMUTABLE);
    }
}

/// VolumeAttributesClass.
pub fn volume_attributes_class(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    match new["driverName"].text() {
        "" => errs.required("driverName", ""),
        d => reasons("driverName", d, name::qualified(&d.to_lowercase()), errs),
    }
    if new["parameters"].is_empty() {
        errs.required("parameters", "must contain at least one key/value pair");
    }
    fixed(new, old, &["driverName", "parameters"], errs);
}

/// RuntimeClass.
pub fn runtime_class(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let handler = new["handler"].text();
    reasons("handler", handler, name::dns_label(handler), errs);
    for (key, v) in new["overhead"]["podFixed"].members() {
        if Quantity::parse(v.text()).is_ok_and(Quantity::is_negative) {
            errs.invalid(format!("overhead.limits[{key}]"), v.clone(), NON_NEGATIVE);
        }
    }
    fixed(new, old, &["handler"], errs);
}

/// ServiceCIDR.
pub fn service_cidr(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let cidrs = new["spec"]["cidrs"].items();
    if cidrs.is_empty() {
        errs.required("spec.cidrs", "at least one CIDR required");
    }
    if cidrs.len() > 2 {
        errs.invalid("spec.cidrs", super::internal(&new["spec"]), "may only hold up to 2 values");
        return;
    }
    for (i, c) in cidrs.iter().enumerate() {
        if !is_cidr(c.text()) {
            errs.invalid(format!("spec.cidrs[{i}]"), c.clone(), CIDR);
        }
    }
    if let Some(old) = old
        && new["spec"]["cidrs"] != old["spec"]["cidrs"]
    {
        errs.invalid("spec.cidrs[0]", new["spec"]["cidrs"].clone(), IMMUTABLE);
    }
}

/// IPAddress.
pub fn ip_address(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let n = meta::name(new);
    match n.parse::<std::net::IpAddr>() {
        Err(_) => errs.invalid("metadata.name", n, IP),
        Ok(ip) if ip.to_string() != n => {
            errs.invalid("metadata.name", n, "must be in canonical form");
        }
        Ok(_) => {}
    }
    let parent = &new["spec"]["parentRef"];
    if parent.is_null() {
        errs.required("spec.parentRef", "");
        return;
    }
    for key in ["resource", "name"] {
        if parent[key].text().is_empty() {
            errs.required(format!("spec.parentRef.{key}"), "");
        }
    }
}
