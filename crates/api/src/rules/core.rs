//! Rules of the core group's kinds other than pods and services.

use super::{IMMUTABLE, difference, labels, non_negative, one_of, reasons};
use crate::error::{FieldErrors, FieldReason};
use crate::meta;
use crate::name;
use crate::object::Value;
use crate::quantity::Quantity;

/// The most bytes a ConfigMap or Secret may hold.
pub const DATA_BYTES_MAX: usize = 1024 * 1024;

/// ConfigMap.
pub fn config_map(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    if let Some(old) = old.filter(|o| o["immutable"].as_bool() == Some(true)) {
        frozen(new, old, &["data", "binaryData"], errs);
    }
    let mut total = 0;
    for (key, value) in new["data"].members() {
        let at = format!("data[{key}]");
        reasons(&at, key, name::config_key(key), errs);
        if new["binaryData"].get(key).is_some() {
            errs.invalid(at, key, "duplicate of key present in binaryData");
        }
        total += value.text().len();
    }
    for (key, value) in new["binaryData"].members() {
        reasons(&format!("binaryData[{key}]"), key, name::config_key(key), errs);
        total += value.text().len() / 4 * 3;
    }
    if total > DATA_BYTES_MAX {
        errs.too_long("", DATA_BYTES_MAX);
    }
}

fn frozen(new: &Value, old: &Value, fields: &[&str], errs: &mut FieldErrors) {
    const MESSAGE: &str = "field is immutable when `immutable` is set";
    if new["immutable"].as_bool() != Some(true) {
        errs.forbidden("immutable", MESSAGE);
    }
    for f in fields {
        if new[*f] != old[*f] {
            errs.forbidden(*f, MESSAGE);
        }
    }
}

/// Secret.
pub fn secret(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    if let Some(old) = old {
        if new["type"] != old["type"] {
            errs.invalid("type", new["type"].clone(), IMMUTABLE);
        }
        if old["immutable"].as_bool() == Some(true) {
            frozen(new, old, &["data"], errs);
        }
    }
    let data = &new["data"];
    let mut total = 0;
    for (key, value) in data.members() {
        reasons(&format!("data[{key}]"), key, name::config_key(key), errs);
        total += value.text().len() / 4 * 3;
    }
    if total > DATA_BYTES_MAX {
        errs.too_long("data", DATA_BYTES_MAX);
    }
    let need = |key: &str, errs: &mut FieldErrors| {
        if data.get(key).is_none() {
            errs.required(format!("data[{key}]"), "");
        }
    };
    match new["type"].text() {
        "kubernetes.io/service-account-token"
            if meta::annotation(new, "kubernetes.io/service-account.name")
                .unwrap_or("")
                .is_empty() =>
        {
            errs.required("metadata.annotations[kubernetes.io/service-account.name]", "");
        }
        "kubernetes.io/dockercfg" => docker_config(data, ".dockercfg", errs),
        "kubernetes.io/dockerconfigjson" => docker_config(data, ".dockerconfigjson", errs),
        "kubernetes.io/basic-auth"
            if data.get("username").is_none() && data.get("password").is_none() =>
        {
            errs.required("data[username]", "");
            errs.required("data[password]", "");
        }
        "kubernetes.io/ssh-auth" if data["ssh-privatekey"].text().is_empty() => {
            errs.required("data[ssh-privatekey]", "");
        }
        "kubernetes.io/tls" => {
            need("tls.crt", errs);
            need("tls.key", errs);
        }
        _ => {}
    }
}

fn docker_config(data: &Value, key: &str, errs: &mut FieldErrors) {
    use base64::Engine as _;
    let at = format!("data[{key}]");
    let Some(text) = data.get(key).and_then(Value::as_str) else {
        errs.required(at, "");
        return;
    };
    let plain = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    if let Err(e) = crate::codec::json::parse(&plain) {
        errs.invalid(at, "<secret contents redacted>", e.message());
    }
}

/// Namespace.
pub fn namespace(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    for f in new["spec"]["finalizers"].items() {
        reasons("spec.finalizers", f.text(), name::qualified(f.text()), errs);
    }
}

/// Node.
pub fn node(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let taints =
        |errs: &mut FieldErrors| taint_list("metadata.taints", &new["spec"]["taints"], errs);
    taints(errs);
    let Some(old) = old else { return };
    taints(errs);
    for cidr in new["spec"]["podCIDRs"].items() {
        if !is_cidr(cidr.text()) {
            errs.invalid("spec.podCIDRs", cidr.clone(), CIDR);
        }
    }
    let (n, o) = (&new["spec"], &old["spec"]);
    if !o["podCIDRs"].is_empty() && n["podCIDRs"] != o["podCIDRs"] {
        errs.forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        );
    }
    if !o["providerID"].text().is_empty() && n["providerID"] != o["providerID"] {
        errs.forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        );
    }
}

pub(crate) const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

pub(crate) fn is_cidr(text: &str) -> bool {
    let Some((ip, bits)) = text.split_once('/') else { return false };
    let Ok(bits) = bits.parse::<u8>() else { return false };
    match ip.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => bits <= 32,
        Ok(std::net::IpAddr::V6(_)) => bits <= 128,
        Err(_) => false,
    }
}

fn taint_list(path: &str, v: &Value, errs: &mut FieldErrors) {
    let list = v.items();
    for (i, t) in list.iter().enumerate() {
        let at = format!("{path}[{i}]");
        let key = t["key"].text();
        reasons(&format!("{at}.key"), key, name::qualified(key), errs);
        let value = t["value"].text();
        reasons(&format!("{at}.value"), value, name::label_value(value), errs);
        let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        one_of(&format!("{at}.effect"), &t["effect"], &known, errs);
        let twin = |o: &&Value| o["key"] == t["key"] && o["effect"] == t["effect"];
        if list[..i].iter().any(|o| twin(&o)) {
            let text = "taints must be unique by key and effect pair".to_owned();
            errs.push(at, FieldReason::DuplicateOf(super::internal(t), text));
        }
    }
}

/// Endpoints.
pub fn endpoints(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    for (i, subset) in new["subsets"].items().iter().enumerate() {
        let at = format!("subsets[{i}]");
        let both = [
            ("addresses", &subset["addresses"]),
            ("notReadyAddresses", &subset["notReadyAddresses"]),
        ];
        if both.iter().all(|(_, l)| l.items().is_empty()) {
            errs.required(&at, "must specify `addresses` or `notReadyAddresses`");
        }
        for (list, addresses) in both {
            for (j, a) in addresses.items().iter().enumerate() {
                endpoint_address(&format!("{at}.{list}[{j}]"), a, errs);
            }
        }
        let ports = subset["ports"].items();
        for (j, p) in ports.iter().enumerate() {
            let at = format!("{at}.ports[{j}]");
            if p["name"].text().is_empty() {
                if ports.len() > 1 {
                    errs.required(format!("{at}.name"), "");
                }
            } else {
                let n = p["name"].text();
                reasons(&format!("{at}.name"), n, name::dns_label(n), errs);
            }
            super::port_number(&format!("{at}.port"), &p["port"], errs);
            one_of(&format!("{at}.protocol"), &p["protocol"], &["SCTP", "TCP", "UDP"], errs);
        }
    }
}

pub(crate) const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

fn endpoint_address(at: &str, a: &Value, errs: &mut FieldErrors) {
    let ip = a["ip"].text();
    match ip.parse::<std::net::IpAddr>() {
        Err(_) => errs.invalid(format!("{at}.ip"), ip, IP),
        Ok(ip) => endpoint_ip(&format!("{at}.ip"), ip, errs),
    }
    if !a["hostname"].text().is_empty() {
        let h = a["hostname"].text();
        reasons(&format!("{at}.hostname"), h, name::dns_label(h), errs);
    }
    if a.has("nodeName") {
        let n = a["nodeName"].text();
        reasons(&format!("{at}.nodeName"), n, name::dns_subdomain(n), errs);
    }
}

/// Addresses that are never those of an endpoint.
pub(crate) fn endpoint_ip(at: &str, ip: std::net::IpAddr, errs: &mut FieldErrors) {
    let text = ip.to_string();
    let link_local = match ip {
        std::net::IpAddr::V4(v4) => v4.is_link_local(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let multicast_link_local = match ip {
        std::net::IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        std::net::IpAddr::V6(v6) => v6.segments()[0] == 0xff02,
    };
    if ip.is_unspecified() {
        errs.invalid(at, text.as_str(), format!("may not be unspecified ({text})"));
    }
    if ip.is_loopback() {
        errs.invalid(at, text.as_str(), "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        errs.invalid(
            at,
            text.as_str(),
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        );
    }
    if multicast_link_local {
        errs.invalid(
            at,
            text.as_str(),
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        );
    }
}

/// ServiceAccount has nothing to check beyond metadata.
pub fn service_account(_: &Value, _: Option<&Value>, _: &mut FieldErrors) {}

/// PersistentVolumeClaim.
pub fn persistent_volume_claim(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    claim_spec("spec", spec, errs);
    let Some(old) = old else { return };
    let mut n = spec.clone();
    let bound = old["status"]["phase"].text() == "Bound";
    if bound {
        n.set_at(&["resources", "requests"], old["spec"]["resources"]["requests"].clone());
    }
    if old["spec"]["volumeName"].is_null() {
        n.remove("volumeName");
    }
    if bound || old["spec"]["volumeAttributesClassName"].is_null() {
        let kept = old["spec"]["volumeAttributesClassName"].clone();
        if kept.is_null() {
            n.remove("volumeAttributesClassName");
        } else {
            n.set("volumeAttributesClassName", kept)
        }
    }
    let mut o = old["spec"].clone();
    if old["spec"]["volumeName"].is_null() {
        o.remove("volumeName");
    }
    if n != o {
        let text = "spec is immutable after creation except resources.requests and volumeAttributesClassName for \
                    bound claims";
        errs.forbidden("spec", format!("{text}{}", difference(&o, &n)));
    }
    let storage = |v: &Value| {
        v["resources"]["requests"]["storage"].as_str().and_then(|s| Quantity::parse(s).ok())
    };
    let capacity =
        old["status"]["capacity"]["storage"].as_str().and_then(|s| Quantity::parse(s).ok());
    if let (Some(a), Some(b)) = (storage(spec), storage(&old["spec"]))
        && a < b
        && capacity.is_none_or(|c| a < c)
    {
        errs.forbidden(
            "spec.resources.requests.storage",
            "field can not be less than status.capacity",
        );
    }
}

fn access_modes(at: &str, modes: &[Value], errs: &mut FieldErrors) {
    for m in modes {
        if !ACCESS_MODES.contains(&m.text()) {
            errs.not_supported(at, m.clone(), &ACCESS_MODES);
        }
    }
    let alone = |m: &Value| m.text() == "ReadWriteOncePod";
    if modes.iter().any(alone)
        && modes.iter().any(|m| !alone(m) && ACCESS_MODES.contains(&m.text()))
    {
        errs.forbidden(at, "may not use ReadWriteOncePod with other access modes");
    }
}

/// Classes and mode, of claims and volumes alike.
fn volume_classes(path: &str, spec: &Value, errs: &mut FieldErrors) {
    for key in ["storageClassName", "volumeAttributesClassName"] {
        let class = spec[key].text();
        if !class.is_empty() {
            reasons(&format!("{path}.{key}"), class, name::dns_subdomain(class), errs);
        }
    }
    let (mode, known) = (&spec["volumeMode"], ["Block", "Filesystem"]);
    super::one_of_if_set(&format!("{path}.volumeMode"), mode, &known, errs);
}

/// Where the content of a new volume comes from.
fn data_sources(path: &str, spec: &Value, errs: &mut FieldErrors) {
    for key in ["dataSource", "dataSourceRef"] {
        let Some(source) = spec.get(key) else { continue };
        let at = format!("{path}.{key}");
        for field in ["name", "kind"].iter().filter(|f| source[**f].text().is_empty()) {
            errs.required(format!("{at}.{field}"), "");
        }
        let (group, kind) = (source["apiGroup"].text(), source["kind"].text());
        if !group.is_empty() {
            reasons(&format!("{at}.apiGroup"), group, name::dns_subdomain(group), errs);
        } else if kind != "PersistentVolumeClaim" {
            let text = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errs.invalid(&at, kind, text);
        }
        let namespace = source["namespace"].text();
        if !namespace.is_empty() {
            let field = format!("{at}.namespace");
            reasons(&field, namespace, name::dns_label(namespace), errs);
        }
    }
    let (one, other) = (&spec["dataSource"], &spec["dataSourceRef"]);
    let same = ["apiGroup", "kind", "name"].iter().all(|key| one[*key] == other[*key]);
    if !one.is_null() && !other["namespace"].text().is_empty() {
        let text = "may not be specified when dataSourceRef.namespace is specified";
        errs.invalid(path, format!("{path}.dataSource"), text);
    } else if !one.is_null() && !other.is_null() && !same {
        errs.invalid(path, format!("{path}.dataSource"), "must match dataSourceRef");
    }
}

const ACCESS_MODES: [&str; 4] =
    ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub(crate) fn claim_spec(path: &str, spec: &Value, errs: &mut FieldErrors) {
    let modes = spec["accessModes"].items();
    if modes.is_empty() {
        errs.required(format!("{path}.accessModes"), "at least 1 access mode is required");
    }
    access_modes(&format!("{path}.accessModes"), modes, errs);
    match spec["resources"]["requests"]["storage"].as_str() {
        None => errs.required(format!("{path}.resources[storage]"), ""),
        Some(s) => {
            if !Quantity::parse(s).is_ok_and(|q| q > Quantity::ZERO) {
                errs.invalid(format!("{path}.resources[storage]"), s, "must be greater than zero");
            }
        }
    }
    volume_classes(path, spec, errs);
    data_sources(path, spec, errs);
    if spec.has("selector") {
        super::label_selector(&format!("{path}.selector"), &spec["selector"], errs);
    }
}

const VOLUME_SETTINGS: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// PersistentVolume.
pub fn persistent_volume(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    if spec["accessModes"].is_empty() {
        errs.required("spec.accessModes", "");
    }
    access_modes("spec.accessModes", spec["accessModes"].items(), errs);
    let capacity = &spec["capacity"];
    if capacity.is_empty() {
        errs.required("spec.capacity", "");
    }
    if capacity.get("storage").is_none() || capacity.members().count() > 1 {
        let shown = if capacity.is_null() { Value::object() } else { capacity.clone() };
        errs.not_supported("spec.capacity", shown, &["storage"]);
    }
    for (key, v) in capacity.members() {
        if Quantity::parse(v.text()).is_ok_and(|q| q <= Quantity::ZERO) {
            errs.invalid(format!("spec.capacity[{key}]"), v.clone(), "must be greater than zero");
        }
    }
    let (policy, root) = (&spec["persistentVolumeReclaimPolicy"], spec["hostPath"]["path"].text());
    let known = ["Delete", "Recycle", "Retain"];
    one_of("spec.persistentVolumeReclaimPolicy", policy, &known, errs);
    if spec.has("nodeAffinity") {
        let required = &spec["nodeAffinity"]["required"];
        if required.is_null() {
            let text = "must specify required node constraints";
            errs.required("spec.nodeAffinity.required", text);
        } else {
            super::scheduling::node_selector("spec.nodeAffinity.required", required, errs);
        }
    }
    super::volumes::sources("spec", spec, true, errs);
    if spec.has("local") && spec["nodeAffinity"].is_null() {
        errs.required("spec.nodeAffinity", "Local volume requires node affinity");
    }
    if policy.text() == "Recycle" && !root.is_empty() && root.trim_matches('/').is_empty() {
        let text = "may not be 'recycle' for a hostPath mount of '/'";
        errs.forbidden("spec.persistentVolumeReclaimPolicy", text);
    }
    volume_classes("spec", spec, errs);
    if spec.has("volumeAttributesClassName") {
        if spec["volumeAttributesClassName"].text().is_empty() {
            let text = "an empty string is disallowed";
            errs.required("spec.volumeAttributesClassName", text);
        }
        if !spec.has("csi") {
            let text = "has to be specified when using volumeAttributesClassName";
            errs.required("spec.csi", text);
        }
    }
    if let Some(old) = old {
        volume_update(new, old, errs);
    }
}

fn volume_update(new: &Value, old: &Value, errs: &mut FieldErrors) {
    let source = |v: &Value, other: &Value| {
        let mut spec = v["spec"].clone();
        VOLUME_SETTINGS.iter().for_each(|key| drop(spec.remove(key)));
        // A secret for growing may come later.
        let grow = ["csi", "controllerExpandSecretRef"];
        if other["spec"].has("csi") && !other["spec"]["csi"].has(grow[1]) {
            spec.remove_at(&grow);
        }
        spec
    };
    let (n, o) = (&new["spec"], &old["spec"]);
    if source(new, old) != source(old, old) {
        let hunk = difference(o, n);
        let text = format!("spec.persistentvolumesource is immutable after creation{hunk}");
        errs.forbidden("spec.persistentvolumesource", text);
    }
    if n["volumeMode"] != o["volumeMode"] {
        errs.invalid("volumeMode", n["volumeMode"].clone(), IMMUTABLE);
    }
    if o.has("nodeAffinity") && n["nodeAffinity"] != o["nodeAffinity"] {
        let text = format!("{IMMUTABLE}, except for updating from beta label to GA");
        errs.invalid("nodeAffinity", super::internal(&n["nodeAffinity"]), text);
    }
    if o.has("volumeAttributesClassName") && !n.has("volumeAttributesClassName") {
        let text = "update from non-nil value to nil is forbidden";
        errs.forbidden("spec.volumeAttributesClassName", text);
    }
}

/// PodTemplate.
pub fn pod_template(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    labels("template.labels", &new["template"]["metadata"]["labels"], errs);
    super::pod::spec("template.spec", &new["template"]["spec"], errs);
}

/// Lease.
pub fn lease(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    if spec["leaseDurationSeconds"].as_int().is_some_and(|n| n <= 0) {
        errs.invalid(
            "spec.leaseDurationSeconds",
            spec["leaseDurationSeconds"].clone(),
            "must be greater than 0",
        );
    }
    non_negative("spec.leaseTransitions", &spec["leaseTransitions"], errs);
}
