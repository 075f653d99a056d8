//! Rules of ingresses and their classes.

use super::{IMMUTABLE, reasons};
use crate::error::FieldErrors;
use crate::meta;
use crate::name;
use crate::object::Value;

const CLASS: &str = "kubernetes.io/ingress.class";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which \
must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. \
'*.example.com', regex used for validation is \
'\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

/// Ingress.
pub fn ingress(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    if spec["rules"].is_empty() && spec["defaultBackend"].is_null() {
        errs.invalid(
            "spec",
            spec["rules"].clone(),
            "either `defaultBackend` or `rules` must be specified",
        );
    }
    if spec.has("defaultBackend") {
        ingress_backend("spec.defaultBackend", &spec["defaultBackend"], errs);
    }
    for (i, r) in spec["rules"].items().iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        let host = r["host"].text();
        if !host.is_empty() {
            if host.parse::<std::net::IpAddr>().is_ok() {
                errs.invalid(format!("{at}.host"), host, "must be a DNS name, not an IP address");
            }
            host_name(&format!("{at}.host"), host, errs);
        }
        if r.has("http") {
            let paths = r["http"]["paths"].items();
            if paths.is_empty() {
                errs.required(format!("{at}.http.paths"), "");
            }
            for (j, p) in paths.iter().enumerate() {
                ingress_path(&format!("{at}.http.paths[{j}]"), p, errs);
            }
        }
    }
    for (i, t) in spec["tls"].items().iter().enumerate() {
        for (j, h) in t["hosts"].items().iter().enumerate() {
            host_name(&format!("spec.tls[{i}].hosts[{j}]"), h.text(), errs);
        }
        let secret = t["secretName"].text();
        if !secret.is_empty() {
            let at = format!("spec.tls[{i}].secretName");
            reasons(&at, secret, name::dns_subdomain(secret), errs);
        }
    }
    if spec.has("ingressClassName") {
        let n = spec["ingressClassName"].text();
        reasons("spec.ingressClassName", n, name::dns_subdomain(n), errs);
        let old_way = meta::annotation(new, CLASS);
        if let Some(class) = old_way.filter(|class| old.is_none() && *class != n) {
            let text = "must match `ingressClassName` when both are specified";
            errs.invalid(format!("annotations.{CLASS}"), class, text);
        }
    }
}

/// A name that may begin with a star for all below it.
fn host_name(at: &str, host: &str, errs: &mut FieldErrors) {
    if !host.contains('*') {
        reasons(at, host, name::dns_subdomain(host), errs);
    } else if host.strip_prefix("*.").is_none_or(|rest| !name::dns_subdomain(rest).is_empty()) {
        errs.invalid(at, host, WILDCARD);
    }
}

/// The status of an ingress says where it is reached.
pub fn status(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    for (i, ingress) in new["status"]["loadBalancer"]["ingress"].items().iter().enumerate() {
        let at = format!("status.loadBalancer.ingress[{i}]");
        let (ip, host) = (ingress["ip"].text(), ingress["hostname"].text());
        if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
            errs.invalid(format!("{at}.ip"), ip, super::core::IP);
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

fn ingress_path(at: &str, p: &Value, errs: &mut FieldErrors) {
    match p["pathType"].text() {
        "" => {
            errs.required(format!("{at}.pathType"), "pathType must be specified");
            return;
        }
        "Exact" | "Prefix" => {
            let path = p["path"].text();
            let field = format!("{at}.path");
            if !path.starts_with('/') {
                errs.invalid(&field, path, "must be an absolute path");
            }
            for bad in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|b| path.contains(**b)) {
                errs.invalid(&field, path, format!("must not contain '{bad}'"));
            }
            for bad in ["/..", "/."].iter().filter(|b| path.ends_with(**b)) {
                errs.invalid(&field, path, format!("cannot end with '{bad}'"));
            }
        }
        "ImplementationSpecific" => {
            if !p["path"].text().is_empty() && !p["path"].text().starts_with('/') {
                errs.invalid(format!("{at}.path"), p["path"].clone(), "must be an absolute path");
            }
        }
        other => {
            let known = ["Exact", "ImplementationSpecific", "Prefix"];
            errs.not_supported(format!("{at}.pathType"), other, &known);
        }
    }
    ingress_backend(&format!("{at}.backend"), &p["backend"], errs);
}

fn ingress_backend(at: &str, b: &Value, errs: &mut FieldErrors) {
    match (b.has("service"), b.has("resource")) {
        (true, true) => errs.invalid(at, "", "cannot set both resource and service backends"),
        (false, false) => errs.invalid(at, "", "resource or service backend is required"),
        (true, false) => {
            let s = &b["service"];
            match s["name"].text() {
                "" => errs.required(format!("{at}.service.name"), ""),
                n => reasons(&format!("{at}.service.name"), n, name::dns_label(n), errs),
            }
            let (named, number) =
                (s["port"]["name"].text(), s["port"]["number"].as_int().unwrap_or(0));
            if named.is_empty() && number == 0 {
                errs.required(at, "port name or number is required");
            } else if !named.is_empty() && number != 0 {
                errs.invalid(at, "", "cannot set both port name & port number");
            } else if number != 0 {
                super::port_number(
                    &format!("{at}.service.port.number"),
                    &s["port"]["number"],
                    errs,
                );
            } else {
                reasons(&format!("{at}.service.port.name"), named, name::port_name(named), errs);
            }
        }
        (false, true) => typed_reference(&format!("{at}.resource"), &b["resource"], errs),
    }
}

fn typed_reference(at: &str, r: &Value, errs: &mut FieldErrors) {
    if let Some(group) = r.get("apiGroup") {
        let wrong = name::dns_subdomain(group.text());
        reasons(&format!("{at}.apiGroup"), group.text(), wrong, errs);
    }
    for key in ["kind", "name"] {
        match r[key].text() {
            "" => errs.required(format!("{at}.{key}"), ""),
            text => reasons(&format!("{at}.{key}"), text, name::path_segment(text), errs),
        }
    }
}

/// IngressClass.
pub fn ingress_class(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    if let Some(old) = old
        && new["spec"]["controller"] != old["spec"]["controller"]
    {
        errs.invalid("spec.controller", new["spec"]["controller"].clone(), IMMUTABLE);
    }
    let controller = new["spec"]["controller"].text();
    if controller.len() > 250 {
        errs.too_long("spec.controller", 250);
    }
    super::domain_path("spec.controller", controller, errs);
    let (at, r) = ("spec.parameters", &new["spec"]["parameters"]);
    if r.is_null() {
        return;
    }
    typed_reference(at, r, errs);
    let scopes = ["Cluster", "Namespace"];
    let (scope, field) = (r["scope"].text(), format!("{at}.namespace"));
    if !scopes.contains(&scope) {
        errs.not_supported(format!("{at}.scope"), r["scope"].clone(), &scopes);
    }
    match (scope, r.get("namespace")) {
        ("Namespace", None) => {
            errs.required(field, "`parameters.scope` is set to 'Namespace'");
        }
        ("Namespace", Some(n)) => reasons(&field, n.text(), name::dns_label(n.text()), errs),
        ("Cluster", Some(_)) => errs.forbidden(field, "`parameters.scope` is set to 'Cluster'"),
        _ => {}
    }
}
