//! Rules of volumes, of pods and of the cluster, and of where containers mount them.

use super::{one_of_if_set, reasons};
use crate::error::FieldErrors;
use crate::name;
use crate::object::Value;
use crate::quantity::Quantity;

const MORE: &str = "may not specify more than 1 volume type";

/// The volume of this name.
fn named<'v>(volumes: &[&'v Value], name: &str) -> Option<&'v Value> {
    volumes.iter().copied().find(|v| v["name"].text() == name)
}

pub(super) fn mounts(at: &str, container: &Value, volumes: &[&Value], errs: &mut FieldErrors) {
    let path = format!("{at}.volumeMounts");
    let (list, devices) = (container["volumeMounts"].items(), container["volumeDevices"].items());
    for (i, m) in list.iter().enumerate() {
        let at = format!("{path}[{i}]");
        let (n, mount_path) = (m["name"].text(), m["mountPath"].text());
        if n.is_empty() {
            errs.required(format!("{at}.name"), "");
        }
        if mount_path.is_empty() {
            errs.required(format!("{at}.mountPath"), "");
        }
        let volume = named(volumes, n);
        if !n.is_empty() && volume.is_none() {
            errs.not_found(format!("{at}.name"), n);
        }
        if devices.iter().any(|d| d["name"].text() == n) {
            errs.invalid(format!("{at}.name"), n, "must not already exist in volumeDevices");
        }
        if devices.iter().any(|d| d["devicePath"].text() == mount_path) {
            let text = "must not already exist as a path in volumeDevices";
            errs.invalid(format!("{at}.mountPath"), mount_path, text);
        }
        if list[..i].iter().any(|o| o["mountPath"].text() == mount_path) {
            errs.invalid(format!("{at}.mountPath"), mount_path, "must be unique");
        }
        for key in ["subPath", "subPathExpr"] {
            descending_path(&format!("{path}.{key}"), m[key].text(), errs);
        }
        if !m["subPath"].text().is_empty() && !m["subPathExpr"].text().is_empty() {
            let text = "subPathExpr and subPath are mutually exclusive";
            errs.invalid(format!("{at}.subPathExpr"), m["subPathExpr"].text(), text);
        }
        propagation(&path, m, container, errs);
    }
    volume_devices(&format!("{at}.volumeDevices"), devices, list, volumes, errs);
}

fn propagation(path: &str, m: &Value, container: &Value, errs: &mut FieldErrors) {
    let modes = ["Bidirectional", "HostToContainer", "None"];
    let (at, mode) = (format!("{path}.mountPropagation"), &m["mountPropagation"]);
    one_of_if_set(&at, mode, &modes, errs);
    let privileged = container["securityContext"]["privileged"].as_bool() == Some(true);
    if mode.text() == "Bidirectional" && !privileged {
        let text = "Bidirectional mount propagation is available only to privileged containers";
        errs.forbidden(at, text);
    }
    let at = format!("{path}.recursiveReadOnly");
    match m["recursiveReadOnly"].text() {
        "" | "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if m["readOnly"].as_bool() != Some(true) {
                errs.forbidden(&at, "may only be specified when readOnly is true");
            }
            if !matches!(mode.text(), "" | "None") {
                let text = "may only be specified when mountPropagation is None or not specified";
                errs.forbidden(at, text);
            }
        }
        other => errs.not_supported(at, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn volume_devices(
    path: &str,
    devices: &[Value],
    mounts: &[Value],
    volumes: &[&Value],
    errs: &mut FieldErrors,
) {
    for (i, device) in devices.iter().enumerate() {
        let at = format!("{path}[{i}]");
        let (n, device_path) = (device["name"].text(), device["devicePath"].text());
        match named(volumes, n) {
            _ if n.is_empty() => errs.required(format!("{at}.name"), ""),
            None => errs.not_found(format!("{at}.name"), n),
            Some(v) if !v.has("persistentVolumeClaim") && !v.has("ephemeral") => errs.invalid(
                format!("{at}.name"),
                n,
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            ),
            Some(_) => {}
        }
        if device_path.is_empty() {
            errs.required(format!("{at}.devicePath"), "");
        } else if device_path.split('/').any(|part| part == "..") {
            let text = "can not contain backsteps ('..')";
            errs.invalid(format!("{at}.devicePath"), device_path, text);
        } else if devices[..i].iter().any(|o| o["devicePath"].text() == device_path) {
            errs.invalid(format!("{at}.devicePath"), device_path, "must be unique");
        }
        if mounts.iter().any(|m| m["mountPath"].text() == device_path) {
            let text = "must not already exist as a path in volumeMounts";
            errs.invalid(format!("{at}.devicePath"), device_path, text);
        }
        if devices[..i].iter().any(|o| o["name"].text() == n) {
            errs.invalid(format!("{at}.name"), n, "must be unique");
        }
        if mounts.iter().any(|m| m["name"].text() == n) {
            errs.invalid(format!("{at}.name"), n, "must not already exist in volumeMounts");
        }
    }
}

/// A path that stays below where it begins.
pub(super) fn descending_path(at: &str, text: &str, errs: &mut FieldErrors) {
    if text.starts_with('/') {
        errs.invalid(at, text, "must be a relative path");
    }
    no_backsteps(at, text, errs);
}

pub(super) fn no_backsteps(at: &str, text: &str, errs: &mut FieldErrors) {
    if text.split('/').any(|part| part == "..") {
        errs.invalid(at, text, "must not contain '..'");
    }
}

/// The same for names of files that the node writes, which keeps those that begin with two dots for itself.
fn file_path(at: &str, text: &str, errs: &mut FieldErrors) {
    descending_path(at, text, errs);
    if text.starts_with("..") && !text.split('/').any(|part| part == "..") {
        errs.invalid(at, text, "must not start with '..'");
    }
}

/// Checks volumes and gives those that are good in themselves. `pod` names the pod they are of, if it is one.
pub(super) fn volumes<'v>(
    path: &str,
    v: &'v Value,
    pod: &str,
    errs: &mut FieldErrors,
) -> Vec<&'v Value> {
    let mut good: Vec<&Value> = Vec::new();
    for (i, volume) in v.items().iter().enumerate() {
        let at = format!("{path}[{i}]");
        let n = volume["name"].text();
        if n.is_empty() {
            errs.required(format!("{at}.name"), "");
        } else {
            let wrong = name::dns_label(n);
            if wrong.is_empty() && named(&good, n).is_some() {
                errs.duplicate(format!("{at}.name"), n);
            }
            reasons(&format!("{at}.name"), n, wrong, errs);
        }
        let before = errs.len();
        sources(&at, volume, false, errs);
        if volume.has("ephemeral") && !pod.is_empty() && !n.is_empty() {
            let claim = format!("{pod}-{n}");
            for reason in name::dns_subdomain(&claim) {
                errs.invalid(format!("{at}.name"), n, format!("PVC name {claim:?}: {reason}"));
            }
        }
        // A volume that is wrong in itself does not count as there.
        if errs.len() == before {
            good.push(volume);
        }
    }
    good
}

/// The kinds of volumes in the order upstream looks at them, what each needs to have, and the number it may have up
/// to 255.
type Source = (&'static str, &'static [&'static str], &'static str);

const SOURCES: [Source; 31] = [
    ("emptyDir", &[], ""),
    ("hostPath", &["path"], ""),
    ("gitRepo", &["repository"], ""),
    ("gcePersistentDisk", &["pdName"], "partition"),
    ("awsElasticBlockStore", &["volumeID"], "partition"),
    ("secret", &["secretName"], ""),
    ("nfs", &["server", "path"], ""),
    ("iscsi", &["targetPortal", "iqn"], "lun"),
    ("glusterfs", &["endpoints", "path"], ""),
    ("flocker", &[], ""),
    ("persistentVolumeClaim", &["claimName"], ""),
    ("rbd", &["monitors", "image"], ""),
    ("cinder", &["volumeID"], ""),
    ("cephfs", &["monitors"], ""),
    ("quobyte", &["volume"], ""),
    ("downwardAPI", &[], ""),
    ("fc", &[], ""),
    ("flexVolume", &["driver"], ""),
    ("configMap", &["name"], ""),
    ("azureFile", &["secretName", "shareName"], ""),
    ("vsphereVolume", &["volumePath"], ""),
    ("photonPersistentDisk", &["pdID"], ""),
    ("portworxVolume", &["volumeID"], ""),
    ("azureDisk", &["diskName", "diskURI"], ""),
    ("storageos", &["volumeName"], ""),
    ("projected", &[], ""),
    ("scaleIO", &["gateway", "system", "volumeName"], ""),
    ("local", &["path"], ""),
    ("csi", &["driver"], ""),
    ("ephemeral", &["volumeClaimTemplate"], ""),
    ("image", &[], ""),
];

/// The one source that a volume has; `persistent` for a volume of the cluster.
pub(super) fn sources(at: &str, v: &Value, persistent: bool, errs: &mut FieldErrors) {
    let mut found = SOURCES.iter().filter(|(key, ..)| v.has(key));
    let Some(first) = found.next() else {
        errs.required(at, "must specify a volume type");
        return;
    };
    source(at, first, v, persistent, errs);
    for (key, ..) in found {
        let shown = match *key {
            "downwardAPI" => "downwarAPI",
            "cephfs" => "cephFS",
            key => key,
        };
        errs.forbidden(format!("{at}.{shown}"), MORE);
    }
}

fn source(at: &str, of: &Source, v: &Value, persistent: bool, errs: &mut FieldErrors) {
    let (key, needed, byte) = *of;
    let s = &v[key];
    let at = if key == "gcePersistentDisk" {
        format!("{at}.persistentDisk")
    } else {
        format!("{at}.{key}")
    };
    for field in needed.iter().filter(|field| s[**field].is_empty()) {
        errs.required(format!("{at}.{field}"), "");
    }
    if s[byte].as_int().is_some_and(|n| !(0..=255).contains(&n)) {
        let why = if byte == "lun" {
            "must be between 0 and 255, inclusive"
        } else {
            "must be a number between 0 and 255"
        };
        errs.invalid(format!("{at}.{byte}"), s[byte].clone(), why);
    }
    match key {
        "emptyDir" => empty_dir(&at, s, errs),
        "hostPath" => host_path(&at, s, errs),
        "local" => no_backsteps(&format!("{at}.path"), s["path"].text(), errs),
        "gitRepo" => descending_path(&format!("{at}.directory"), s["directory"].text(), errs),
        "nfs" if !s["path"].text().starts_with('/') => {
            errs.invalid(format!("{at}.path"), s["path"].text(), "must be an absolute path");
        }
        "iscsi" => iscsi(&at, s, persistent, errs),
        "fc" => fibre(&at, s, errs),
        "flocker" => flocker(&at, s, errs),
        "quobyte" => quobyte(&at, s, errs),
        "flexVolume" => flex(&at, s, errs),
        "azureDisk" => azure_disk(&at, s, errs),
        "azureFile" if persistent && s.get("secretNamespace").is_some_and(|n| n.is_empty()) => {
            errs.required(format!("{at}.secretNamespace"), "");
        }
        "storageos" => {
            for field in ["volumeName", "volumeNamespace"] {
                let text = s[field].text();
                if !text.is_empty() {
                    reasons(&format!("{at}.{field}"), text, name::dns_label(text), errs);
                }
            }
        }
        "cinder" => secret_ref(&format!("{at}.secretRef"), &s["secretRef"], persistent, errs),
        "projected" => projections(&at, s, errs),
        "csi" => csi(&at, s, persistent, errs),
        "ephemeral" if s.has("volumeClaimTemplate") => {
            let spec = &s["volumeClaimTemplate"]["spec"];
            super::core::claim_spec(&format!("{at}.volumeClaimTemplate.spec"), spec, errs);
        }
        _ => {}
    }
    if matches!(key, "secret" | "configMap" | "downwardAPI" | "projected") {
        file_mode(&format!("{at}.defaultMode"), &s["defaultMode"], errs);
    }
    if matches!(key, "secret" | "configMap") {
        key_paths(&at, s, errs);
    }
    if key == "downwardAPI" {
        s["items"].items().iter().for_each(|file| downward_file(&at, file, errs));
    }
}

fn empty_dir(at: &str, s: &Value, errs: &mut FieldErrors) {
    let limit = s["sizeLimit"].as_str().and_then(|q| Quantity::parse(q).ok());
    if limit.is_some_and(Quantity::is_negative) {
        let text = "SizeLimit field must be a valid resource quantity";
        errs.forbidden(format!("{at}.sizeLimit"), text);
    }
}

fn host_path(at: &str, s: &Value, errs: &mut FieldErrors) {
    if s["path"].text().is_empty() {
        return;
    }
    no_backsteps(&format!("{at}.path"), s["path"].text(), errs);
    let known = [
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    one_of_if_set(&format!("{at}.type"), &s["type"], &known, errs);
}

fn iscsi(at: &str, s: &Value, persistent: bool, errs: &mut FieldErrors) {
    let secure = ["chapAuthDiscovery", "chapAuthSession"];
    if secure.iter().any(|key| s[*key].as_bool() == Some(true)) && s["secretRef"].is_null() {
        errs.required(format!("{at}.secretRef"), "");
    }
    if persistent && s.has("secretRef") && s["secretRef"]["name"].text().is_empty() {
        errs.required(format!("{at}.secretRef.name"), "");
    }
    for (key, field) in [("iqn", "iqn"), ("initiatorName", "initiatorname")] {
        let text = s[key].text();
        if !text.is_empty() && !["iqn", "eui", "naa"].iter().any(|p| text.starts_with(p)) {
            let short = persistent && key == "iqn";
            let why = if short { "" } else { " starting with iqn, eui, or naa" };
            errs.invalid(format!("{at}.{field}"), text, format!("must be valid format{why}"));
        }
    }
}

fn fibre(at: &str, s: &Value, errs: &mut FieldErrors) {
    let (names, ids) = (&s["targetWWNs"], &s["wwids"]);
    let field = format!("{at}.targetWWNs");
    match (names.is_empty(), ids.is_empty()) {
        (true, true) => {
            errs.required(field, "must specify either targetWWNs or wwids, but not both");
        }
        (false, false) => errs.invalid(
            field,
            names.clone(),
            "targetWWNs and wwids can not be specified simultaneously",
        ),
        _ => {}
    }
    match s["lun"].as_int() {
        _ if names.is_empty() => {}
        None => errs.required(format!("{at}.lun"), "lun is required if targetWWNs is specified"),
        Some(n) if !(0..=255).contains(&n) => {
            errs.invalid(format!("{at}.lun"), n, "must be between 0 and 255, inclusive");
        }
        Some(_) => {}
    }
}

fn flocker(at: &str, s: &Value, errs: &mut FieldErrors) {
    let (name, uuid) = (s["datasetName"].text(), s["datasetUUID"].text());
    match (name.is_empty(), uuid.is_empty()) {
        (true, true) => errs.required(at, "one of datasetName and datasetUUID is required"),
        (false, false) => errs.invalid(
            at,
            "resource",
            "datasetName and datasetUUID can not be specified simultaneously",
        ),
        _ => {}
    }
    if name.contains('/') {
        errs.invalid(format!("{at}.datasetName"), name, "must not contain '/'");
    }
}

fn quobyte(at: &str, s: &Value, errs: &mut FieldErrors) {
    let text = "must be a host:port pair or multiple pairs separated by commas";
    let registry = s["registry"].text();
    if registry.is_empty() {
        errs.required(format!("{at}.registry"), text);
    } else if s["tenant"].text().len() > 64 {
        let text = "must be a UUID and may not exceed a length of 64 characters";
        errs.required(format!("{at}.tenant"), text);
    } else {
        for _ in registry.split(',').filter(|pair| !pair.contains(':')) {
            errs.invalid(format!("{at}.registry"), registry, text);
        }
    }
}

fn flex(at: &str, s: &Value, errs: &mut FieldErrors) {
    for (key, _) in s["options"].members() {
        let owner = format!(".{}", key.split('/').next().unwrap_or(key).to_lowercase());
        if owner.ends_with(".kubernetes.io") || owner.ends_with(".k8s.io") {
            let text = "kubernetes.io and k8s.io namespaces are reserved";
            errs.invalid(format!("{at}.options[{key}]"), key, text);
        }
    }
}

fn azure_disk(at: &str, s: &Value, errs: &mut FieldErrors) {
    let modes = ["None", "ReadOnly", "ReadWrite"];
    one_of_if_set(&format!("{at}.cachingMode"), &s["cachingMode"], &modes, errs);
    let kinds = ["Dedicated", "Managed", "Shared"];
    one_of_if_set(&format!("{at}.kind"), &s["kind"], &kinds, errs);
    let (begin, shown) = if s["kind"].text() == "Managed" {
        (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        )
    } else {
        (
            "https://",
            "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd",
        )
    };
    if s.has("kind") && !s["diskURI"].text().starts_with(begin) {
        errs.not_supported(format!("{at}.diskURI"), s["diskURI"].clone(), &[shown]);
    }
}

fn csi(at: &str, s: &Value, persistent: bool, errs: &mut FieldErrors) {
    let driver = s["driver"].text();
    csi_name(&format!("{at}.driver"), driver, errs);
    if !persistent {
        let secret = &s["nodePublishSecretRef"];
        let n = secret["name"].text();
        match secret.is_null() {
            true => {}
            false if n.is_empty() => errs.required(format!("{at}.nodePublishSecretRef.name"), ""),
            false => reasons(&format!("{at}.name"), n, name::dns_subdomain(n), errs),
        }
        return;
    }
    if s["volumeHandle"].text().is_empty() {
        errs.required(format!("{at}.volumeHandle"), "");
    }
    for key in [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ] {
        let at = format!("{at}.{key}");
        secret_ref(&at, &s[key], true, errs);
        let (n, ns) = (s[key]["name"].text(), s[key]["namespace"].text());
        if !n.is_empty() {
            reasons(&format!("{at}.name"), n, name::dns_subdomain(n), errs);
        }
        if !ns.is_empty() {
            reasons(&format!("{at}.namespace"), ns, name::dns_label(ns), errs);
        }
    }
}

/// The name of a driver; that there is one is checked elsewhere.
pub(super) fn csi_name(at: &str, driver: &str, errs: &mut FieldErrors) {
    if driver.len() > 63 {
        errs.too_long(at, 63);
    }
    reasons(at, driver, name::dns_subdomain(&driver.to_lowercase()), errs);
}

fn secret_ref(at: &str, s: &Value, namespaced: bool, errs: &mut FieldErrors) {
    let fields = if namespaced { &["name", "namespace"][..] } else { &["name"] };
    for field in fields.iter().filter(|field| !s.is_null() && s[**field].text().is_empty()) {
        errs.required(format!("{at}.{field}"), "");
    }
}

fn projections(at: &str, projected: &Value, errs: &mut FieldErrors) {
    let mut paths: Vec<&str> = Vec::new();
    for (i, source) in projected["sources"].items().iter().enumerate() {
        let here = format!("{at}.sources[{i}]");
        for key in ["secret", "configMap"] {
            let Some(s) = source.get(key) else { continue };
            if s["name"].text().is_empty() {
                errs.required(format!("{here}.{key}.name"), "");
            }
            key_paths(&format!("{here}.{key}"), s, errs);
            for item in s["items"].items() {
                claim_path(&mut paths, at, item["path"].text(), s["name"].text(), errs);
            }
        }
        for file in source["downwardAPI"]["items"].items() {
            downward_file(&format!("{here}.downwardAPI"), file, errs);
            let path = file["path"].text();
            claim_path(&mut paths, at, path, path, errs);
        }
        if let Some(token) = source.get("serviceAccountToken") {
            account_token(at, &here, token, errs);
        }
        if let Some(bundle) = source.get("clusterTrustBundle") {
            trust_bundle(&format!("{here}.clusterTrustBundle"), bundle, errs);
            let path = bundle["path"].text();
            claim_path(&mut paths, at, path, path, errs);
        }
        if source.members().filter(|(_, s)| !s.is_null()).count() > 1 {
            errs.forbidden(here, "may not specify more than 1 volume type per source");
        }
    }
}

/// Two sources cannot write the same file.
fn claim_path<'p>(
    paths: &mut Vec<&'p str>,
    at: &str,
    path: &'p str,
    shown: &str,
    errs: &mut FieldErrors,
) {
    if path.is_empty() {
        return;
    }
    if paths.contains(&path) {
        errs.invalid(at, shown, "conflicting duplicate paths");
    }
    paths.push(path);
}

fn account_token(at: &str, here: &str, token: &Value, errs: &mut FieldErrors) {
    let path = format!("{here}.serviceAccountToken.expirationSeconds");
    let life_s = token["expirationSeconds"].as_int().unwrap_or(3600);
    if life_s < 600 {
        errs.invalid(path, life_s, "may not specify a duration less than 10 minutes");
    } else if life_s > 1 << 32 {
        errs.invalid(path, life_s, "may not specify a duration larger than 2^32 seconds");
    }
    match token["path"].text() {
        "" => errs.required(format!("{at}.path"), ""),
        text => file_path(&format!("{at}.path"), text, errs),
    }
}

fn trust_bundle(at: &str, bundle: &Value, errs: &mut FieldErrors) {
    match (bundle.get("name"), bundle.get("signerName")) {
        (Some(_), Some(_)) => {
            let text = "only one of name and signerName may be used";
            errs.invalid(at, super::internal(bundle), text);
        }
        (Some(n), None) => {
            if n.text().is_empty() {
                errs.required(format!("{at}.name"), "must be a valid object name");
            }
            if bundle.has("labelSelector") {
                let text = "labelSelector must be unset if name is specified";
                let shown = super::internal(&bundle["labelSelector"]);
                errs.invalid(format!("{at}.labelSelector"), shown, text);
            }
        }
        (None, Some(n)) if n.text().is_empty() => {
            errs.required(format!("{at}.signerName"), "must be a valid signer name");
        }
        (None, Some(_)) => {
            let selector = &bundle["labelSelector"];
            super::label_selector(&format!("{at}.labelSelector"), selector, errs);
        }
        (None, None) => errs.required(at, "either name or signerName must be specified"),
    }
    match bundle["path"].text() {
        "" => errs.required(format!("{at}.path"), ""),
        text => file_path(&format!("{at}.path"), text, errs),
    }
}

fn file_mode(at: &str, v: &Value, errs: &mut FieldErrors) {
    if v.as_int().is_some_and(|n| !(0..=0o777).contains(&n)) {
        let text = "must be a number between 0 and 0777 (octal), both inclusive";
        errs.invalid(at, v.clone(), text);
    }
}

fn key_paths(at: &str, s: &Value, errs: &mut FieldErrors) {
    for (i, item) in s["items"].items().iter().enumerate() {
        let at = format!("{at}.items[{i}]");
        if item["key"].text().is_empty() {
            errs.required(format!("{at}.key"), "");
        }
        match item["path"].text() {
            "" => errs.required(format!("{at}.path"), ""),
            p => file_path(&format!("{at}.path"), p, errs),
        }
        file_mode(&format!("{at}.mode"), &item["mode"], errs);
    }
}

const FILE_REFS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// A file of the downward API. Upstream does not say which of the list it is.
fn downward_file(at: &str, file: &Value, errs: &mut FieldErrors) {
    match file["path"].text() {
        "" => errs.required(format!("{at}.path"), ""),
        p => file_path(&format!("{at}.path"), p, errs),
    }
    match (file.has("fieldRef"), file.has("resourceFieldRef")) {
        (true, both) => {
            let field = format!("{at}.fieldRef");
            super::env::field_ref(&field, &file["fieldRef"], &FILE_REFS, errs);
            if both {
                let text = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errs.invalid(at, "resource", text);
            }
        }
        (false, true) => {
            let field = format!("{at}.resourceFieldRef");
            super::env::resource_ref(&field, &file["resourceFieldRef"], true, errs);
        }
        (false, false) => errs.required(at, "one of fieldRef and resourceFieldRef is required"),
    }
    file_mode(&format!("{at}.mode"), &file["mode"], errs);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(volume: Value, persistent: bool) -> Vec<String> {
        let mut errs = FieldErrors::new();
        sources("v", &volume, persistent, &mut errs);
        errs.iter().map(|e| e.field.clone()).collect()
    }

    #[test]
    fn each_source_needs_what_it_cannot_be_found_without() {
        for source in &SOURCES {
            let mut volume = Value::object();
            volume.set(source.0, Value::object());
            let found = fields(volume, false);
            let needs = matches!(source.0, "flocker" | "fc") || !source.1.is_empty();
            assert_eq!(!found.is_empty(), needs, "{} {found:?}", source.0);
        }
        assert_eq!(fields(Value::object(), false), ["v"]);
    }

    #[test]
    fn sources_are_checked_in_upstreams_order() {
        let two = crate::json!({"configMap": {"name": "c"}, "emptyDir": {}});
        assert_eq!(fields(two, false), ["v.configMap"]);
        let cases = [
            (crate::json!({"csi": {"driver": "d"}}), true, vec!["v.csi.volumeHandle"]),
            (crate::json!({"csi": {"driver": "d"}}), false, vec![]),
            (crate::json!({"fc": {"targetWWNs": ["a"], "lun": 300}}), true, vec!["v.fc.lun"]),
            (
                crate::json!({"projected": {"sources": [{"secret": {"name": "s", "items": [{"key": "k", "path": "../p"}]}}]}}),
                false,
                vec!["v.projected.sources[0].secret.items[0].path"],
            ),
            (
                crate::json!({"downwardAPI": {"items": [{"path": "..x", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels"}}]}}),
                false,
                vec!["v.downwardAPI.path"],
            ),
        ];
        for (volume, persistent, wanted) in cases {
            assert_eq!(fields(volume.clone(), persistent), wanted, "{volume}");
        }
    }
}
