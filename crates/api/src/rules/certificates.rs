//! Rules of requests for certificates.

use crate::error::FieldErrors;
use crate::name;
use crate::object::Value;

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
const LIFE_S_MIN: i64 = 600;

/// CertificateSigningRequest. The request itself cannot be changed later.
pub fn signing_request(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    conditions(new, errs);
    if old.is_some() {
        return;
    }
    let spec = &new["spec"];
    if !is_request(spec["request"].text()) {
        let text = "PEM block type must be CERTIFICATE REQUEST";
        errs.invalid("spec.request", spec["request"].clone(), text);
    }
    let usages = spec["usages"].items();
    if usages.is_empty() {
        errs.required("spec.usages", "");
    }
    for (i, usage) in usages.iter().enumerate() {
        let at = format!("spec.usages[{i}]");
        if !USAGES.contains(&usage.text()) {
            errs.not_supported(&at, usage.clone(), &USAGES);
        }
        if usages[..i].contains(usage) {
            errs.duplicate(at, usage.clone());
        }
    }
    match spec["signerName"].text() {
        "kubernetes.io/legacy-unknown" => errs.invalid(
            "spec.signerName",
            "kubernetes.io/legacy-unknown",
            "the legacy signerName is not allowed via this API version",
        ),
        n => signer_name("spec.signerName", n, errs),
    }
    if spec["expirationSeconds"].as_int().is_some_and(|n| n < LIFE_S_MIN) {
        let text = "may not specify a duration less than 600 seconds (10 minutes)";
        errs.invalid("spec.expirationSeconds", spec["expirationSeconds"].clone(), text);
    }
}

/// The status of one, by approval or by its signer.
pub fn signing_status(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    conditions(new, errs);
}

/// Whether this is the text form of a request, in base64.
fn is_request(coded: &str) -> bool {
    use base64::Engine as _;
    let plain = base64::engine::general_purpose::STANDARD.decode(coded).unwrap_or_default();
    let text = String::from_utf8_lossy(&plain);
    text.contains("-----BEGIN CERTIFICATE REQUEST-----")
        && text.contains("-----END CERTIFICATE REQUEST-----")
}

/// A domain and a path below it.
pub(super) fn signer_name(at: &str, n: &str, errs: &mut FieldErrors) {
    if n.is_empty() {
        errs.required(at, "");
    }
    let parts: Vec<&str> = n.split('/').collect();
    let [domain, path] = parts.as_slice() else {
        let text =
            "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errs.invalid(at, n, text);
        return;
    };
    if domain.len() > 253 {
        errs.too_long(at, 253);
    }
    for label in domain.split('.') {
        for wrong in name::dns_label(label) {
            errs.invalid(at, *domain, format!("validating label {label:?}: {wrong}"));
        }
    }
    if !domain.contains('.') {
        let text = "should be a domain with at least two segments separated by dots";
        errs.invalid(at, *domain, text);
    }
    for label in path.split('.') {
        for wrong in name::dns_subdomain(label) {
            errs.invalid(at, *path, format!("validating label {label:?}: {wrong}"));
        }
    }
}

fn conditions(new: &Value, errs: &mut FieldErrors) {
    let path = "status.conditions";
    let list = new["status"]["conditions"].items();
    let mut decided: Vec<&str> = Vec::new();
    for (i, c) in list.iter().enumerate() {
        let (at, kind, status) = (format!("{path}[{i}]"), c["type"].text(), &c["status"]);
        if kind.is_empty() {
            errs.required(format!("{at}.type"), "");
        }
        let known: &[&str] = match kind {
            "Approved" | "Denied" | "Failed" => &["True"],
            _ => &["True", "False", "Unknown"],
        };
        let field = format!("{at}.status");
        if status.text().is_empty() {
            errs.required(field, "");
        } else if !known.contains(&status.text()) {
            errs.not_supported(field, status.clone(), known);
        }
        if matches!(kind, "Approved" | "Denied") {
            if decided.iter().any(|other| *other != kind) {
                let text = "Approved and Denied conditions are mutually exclusive";
                errs.invalid(format!("{at}.type"), kind, text);
            }
            decided.push(kind);
        }
        if list[..i].iter().any(|o| o["type"].text() == kind) {
            errs.duplicate(format!("{at}.type"), kind);
        }
    }
    let certificate = &new["status"]["certificate"];
    if !certificate.is_empty() && !is_certificate(certificate.text()) {
        let text = "must contain at least one CERTIFICATE PEM block";
        errs.invalid("status.certificate", "<certificate data>", text);
    }
}

fn is_certificate(coded: &str) -> bool {
    use base64::Engine as _;
    let plain = base64::engine::general_purpose::STANDARD.decode(coded).unwrap_or_default();
    String::from_utf8_lossy(&plain).contains("-----BEGIN CERTIFICATE-----")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signers_have_a_domain() {
        let cases = [
            ("kubernetes.io/kube-apiserver-client", 0),
            ("example.com/a.b", 0),
            ("", 2),
            ("local/a", 1),
            ("example.com", 1),
            ("Example.com/a", 1),
        ];
        for (n, wanted) in cases {
            let mut errs = FieldErrors::new();
            signer_name("s", n, &mut errs);
            assert_eq!(errs.len(), wanted, "{n}");
        }
    }
}
