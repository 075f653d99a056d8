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

const ACCESS_MODES: [&str; 4] =
    ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub(crate) fn claim_spec(path: &str, spec: &Value, errs: &mut FieldErrors) {
    let modes = spec["accessModes"].items();
    if modes.is_empty() {
        errs.required(format!("{path}.accessModes"), "at least 1 access mode is required");
    }
    for m in modes {
        if !ACCESS_MODES.contains(&m.text()) {
            errs.not_supported(format!("{path}.accessModes"), m.clone(), &ACCESS_MODES);
        }
    }
    if modes.len() > 1 && modes.iter().any(|m| m.text() == "ReadWriteOncePod") {
        let text = "may not use ReadWriteOncePod with other access modes";
        errs.forbidden(format!("{path}.accessModes"), text);
    }
    match spec["resources"]["requests"]["storage"].as_str() {
        None => errs.required(format!("{path}.resources[storage]"), ""),
        Some(s) => {
            if !Quantity::parse(s).is_ok_and(|q| q > Quantity::ZERO) {
                errs.invalid(format!("{path}.resources[storage]"), s, "must be greater than zero");
            }
        }
    }
    if !spec["storageClassName"].text().is_empty() {
        let c = spec["storageClassName"].text();
        reasons(&format!("{path}.storageClassName"), c, name::dns_subdomain(c), errs);
    }
    super::one_of_if_set(
        &format!("{path}.volumeMode"),
        &spec["volumeMode"],
        &["Block", "Filesystem"],
        errs,
    );
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
    let modes = spec["accessModes"].items();
    if modes.is_empty() {
        errs.required("spec.accessModes", "");
    }
    for m in modes {
        if !ACCESS_MODES.contains(&m.text()) {
            errs.not_supported("spec.accessModes", m.clone(), &ACCESS_MODES);
        }
    }
    let capacity = &spec["capacity"];
    if capacity.is_empty() {
        errs.required("spec.capacity", "");
    }
    if capacity.get("storage").is_none() || capacity.members().count() > 1 {
        let shown = if capacity.is_null() { Value::object() } else { capacity.clone() };
        errs.not_supported("spec.capacity", shown, &["storage"]);
    }
    let known = ["Delete", "Recycle", "Retain"];
    one_of(
        "spec.persistentVolumeReclaimPolicy",
        &spec["persistentVolumeReclaimPolicy"],
        &known,
        errs,
    );
    let sources = |v: &Value| -> Vec<String> {
        let members =
            v["spec"].members().filter(|(k, v)| !VOLUME_SETTINGS.contains(k) && !v.is_null());
        members.map(|(k, _)| k.to_owned()).collect()
    };
    let list = sources(new);
    if list.is_empty() {
        errs.required("spec", "must specify a volume type");
    }
    for extra in list.iter().skip(1) {
        errs.forbidden(format!("spec.{extra}"), "may not specify more than 1 volume type");
    }
    if spec.has("local") && spec["nodeAffinity"].is_null() {
        errs.required("spec.nodeAffinity", "Local volume requires node affinity");
    }
    if spec.has("hostPath") && spec["hostPath"]["path"].text().is_empty() {
        errs.required("spec.hostPath.path", "");
    }
    if let Some(old) = old {
        let both: Vec<String> = list.into_iter().chain(sources(old)).collect();
        if both.iter().any(|k| new["spec"][k.as_str()] != old["spec"][k.as_str()]) {
            let hunk = difference(&old["spec"], &new["spec"]);
            let text = format!("spec.persistentvolumesource is immutable after creation{hunk}");
            errs.forbidden("spec.persistentvolumesource", text);
        }
        if spec["volumeMode"] != old["spec"]["volumeMode"] {
            errs.invalid("volumeMode", spec["volumeMode"].clone(), IMMUTABLE);
        }
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
