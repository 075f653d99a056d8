//! Rules of a pod's volumes and of where containers mount them.

use super::{one_of_if_set, reasons};
use crate::error::FieldErrors;
use crate::name;
use crate::object::Value;
use crate::quantity::Quantity;

pub(super) fn mounts(at: &str, container: &Value, volumes: &[String], errs: &mut FieldErrors) {
    let path = format!("{at}.volumeMounts");
    let (list, devices) = (container["volumeMounts"].items(), container["volumeDevices"].items());
    let among = |list: &[Value], n: &str| list.iter().any(|x| x["name"].text() == n);
    for (i, m) in list.iter().enumerate() {
        let at = format!("{path}[{i}]");
        let n = m["name"].text();
        if n.is_empty() {
            errs.required(format!("{at}.name"), "");
        }
        let mount_path = m["mountPath"].text();
        if mount_path.is_empty() {
            errs.required(format!("{at}.mountPath"), "");
        }
        if !n.is_empty() && !volumes.iter().any(|x| x == n) {
            errs.not_found(format!("{at}.name"), n);
        }
        if among(devices, n) {
            errs.invalid(format!("{at}.name"), n, "must not already exist in volumeDevices");
        }
        if list[..i].iter().any(|o| o["mountPath"].text() == mount_path) {
            errs.invalid(format!("{at}.mountPath"), mount_path, "must be unique");
        }
        for key in ["subPath", "subPathExpr"] {
            local_path(&format!("{path}.{key}"), m[key].text(), errs);
        }
        let modes = ["Bidirectional", "HostToContainer", "None"];
        one_of_if_set(&format!("{path}.mountPropagation"), &m["mountPropagation"], &modes, errs);
    }
    for (i, device) in devices.iter().enumerate() {
        let at = format!("{at}.volumeDevices[{i}]");
        let (n, device_path) = (device["name"].text(), device["devicePath"].text());
        if n.is_empty() {
            errs.required(format!("{at}.name"), "");
        } else if !volumes.iter().any(|x| x == n) {
            errs.not_found(format!("{at}.name"), n);
        }
        if device_path.is_empty() {
            errs.required(format!("{at}.devicePath"), "");
        } else if devices[..i].iter().any(|o| o["devicePath"].text() == device_path) {
            errs.invalid(format!("{at}.devicePath"), device_path, "must be unique");
        } else {
            local_path(&format!("{at}.devicePath"), device_path.trim_start_matches('/'), errs);
        }
        if devices[..i].iter().any(|o| o["name"].text() == n) {
            errs.invalid(format!("{at}.name"), n, "must be unique");
        }
        if among(list, n) {
            errs.invalid(format!("{at}.name"), n, "must not already exist in volumeMounts");
        }
    }
}

fn local_path(at: &str, text: &str, errs: &mut FieldErrors) {
    if text.starts_with('/') {
        errs.invalid(at, text, "must be a relative path");
    }
    if text.split('/').any(|p| p == "..") {
        errs.invalid(at, text, "must not contain '..'");
    }
}

/// Checks volumes and gives their names.
pub(super) fn volumes(path: &str, v: &Value, errs: &mut FieldErrors) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (i, volume) in v.items().iter().enumerate() {
        let at = format!("{path}[{i}]");
        let n = volume["name"].text();
        if n.is_empty() {
            errs.required(format!("{at}.name"), "");
        } else {
            let wrong = name::dns_label(n);
            if wrong.is_empty() && names.iter().any(|x| x == n) {
                errs.duplicate(format!("{at}.name"), n);
            }
            reasons(&format!("{at}.name"), n, wrong, errs);
        }
        let before = errs.len();
        volume_source(&at, volume, errs);
        // A volume that is wrong in itself does not count as there.
        if errs.len() == before {
            names.push(n.to_owned());
        }
    }
    names
}

fn volume_source(at: &str, v: &Value, errs: &mut FieldErrors) {
    let sources: Vec<(&str, &Value)> =
        v.members().filter(|(k, s)| *k != "name" && !s.is_null()).collect();
    if sources.is_empty() {
        errs.required(at, "must specify a volume type");
    }
    for (i, (key, s)) in sources.iter().enumerate() {
        let at = format!("{at}.{key}");
        if i > 0 {
            errs.forbidden(at, "may not specify more than 1 volume type");
            continue;
        }
        match *key {
            "hostPath" => {
                if s["path"].text().is_empty() {
                    errs.required(format!("{at}.path"), "");
                } else if s["path"].text().split('/').any(|p| p == "..") {
                    errs.invalid(format!("{at}.path"), s["path"].clone(), "must not contain '..'");
                }
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
            "secret" if s["secretName"].text().is_empty() => {
                errs.required(format!("{at}.secretName"), "")
            }
            "configMap" if s["name"].text().is_empty() => errs.required(format!("{at}.name"), ""),
            "persistentVolumeClaim" if s["claimName"].text().is_empty() => {
                errs.required(format!("{at}.claimName"), "");
            }
            "nfs" => {
                for key in ["server", "path"] {
                    if s[key].text().is_empty() {
                        errs.required(format!("{at}.{key}"), "");
                    }
                }
            }
            "emptyDir" => {
                let limit = s["sizeLimit"].as_str().and_then(|q| Quantity::parse(q).ok());
                if limit.is_some_and(Quantity::is_negative) {
                    let text = "SizeLimit field must be a valid resource quantity";
                    errs.forbidden(format!("{at}.sizeLimit"), text);
                }
            }
            "projected" => projections(&at, s, errs),
            _ => {}
        }
        if matches!(*key, "secret" | "configMap" | "downwardAPI" | "projected") {
            file_mode(&format!("{at}.defaultMode"), &s["defaultMode"], errs);
            for (j, item) in s["items"].items().iter().enumerate() {
                key_to_path(&format!("{at}.items[{j}]"), item, *key == "downwardAPI", errs);
            }
        }
    }
}

fn projections(at: &str, projected: &Value, errs: &mut FieldErrors) {
    for (i, source) in projected["sources"].items().iter().enumerate() {
        let Some(token) = source.get("serviceAccountToken") else { continue };
        let path = format!("{at}.sources[{i}].serviceAccountToken.expirationSeconds");
        let life_s = token["expirationSeconds"].as_int().unwrap_or(3600);
        if life_s < 600 {
            errs.invalid(path, life_s, "may not specify a duration less than 10 minutes");
        } else if life_s > 1 << 32 {
            errs.invalid(path, life_s, "may not specify a duration larger than 2^32 seconds");
        }
        match token["path"].text() {
            "" => errs.required(format!("{at}.path"), ""),
            text => local_path(&format!("{at}.path"), text, errs),
        }
    }
}

fn file_mode(at: &str, v: &Value, errs: &mut FieldErrors) {
    if v.as_int().is_some_and(|n| !(0..=0o777).contains(&n)) {
        let text = "must be a number between 0 and 0777 (octal), both inclusive";
        errs.invalid(at, v.clone(), text);
    }
}

fn key_to_path(at: &str, item: &Value, downward: bool, errs: &mut FieldErrors) {
    if !downward && item["key"].text().is_empty() {
        errs.required(format!("{at}.key"), "");
    }
    match item["path"].text() {
        "" => errs.required(format!("{at}.path"), ""),
        p => local_path(&format!("{at}.path"), p, errs),
    }
    file_mode(&format!("{at}.mode"), &item["mode"], errs);
}
