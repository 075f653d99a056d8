//! Requests for certificates (PKCS#10): what they ask for, and signing them.

use std::time::Duration;

use rcgen::{
    CertificateSigningRequestParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use crate::pki::{Authority, PkiError, lifetime};

/// A request whose signature was checked.
#[derive(Debug)]
pub struct CertificateRequest {
    /// Common name.
    pub name: String,
    /// Organizations.
    pub groups: Vec<String>,
    /// Alternative names that are DNS names or addresses.
    pub hosts: usize,
    /// Alternative names of other sorts: mail addresses and URIs.
    pub others: usize,
    params: CertificateSigningRequestParams,
}

/// What a certificate may be used for, as requests of the API name it, and as certificates say it.
const KEY_USAGES: [(&str, KeyUsagePurpose); 9] = [
    ("digital signature", KeyUsagePurpose::DigitalSignature),
    ("signing", KeyUsagePurpose::DigitalSignature),
    ("content commitment", KeyUsagePurpose::ContentCommitment),
    ("key encipherment", KeyUsagePurpose::KeyEncipherment),
    ("data encipherment", KeyUsagePurpose::DataEncipherment),
    ("key agreement", KeyUsagePurpose::KeyAgreement),
    ("cert sign", KeyUsagePurpose::KeyCertSign),
    ("crl sign", KeyUsagePurpose::CrlSign),
    ("decipher only", KeyUsagePurpose::DecipherOnly),
];
const EXTENDED_USAGES: [(&str, ExtendedKeyUsagePurpose); 6] = [
    ("any", ExtendedKeyUsagePurpose::Any),
    ("server auth", ExtendedKeyUsagePurpose::ServerAuth),
    ("client auth", ExtendedKeyUsagePurpose::ClientAuth),
    ("code signing", ExtendedKeyUsagePurpose::CodeSigning),
    ("email protection", ExtendedKeyUsagePurpose::EmailProtection),
    ("timestamping", ExtendedKeyUsagePurpose::TimeStamping),
];

impl CertificateRequest {
    /// Reads a request and checks that who made it has the key.
    ///
    /// # Errors
    /// When the text holds no request, its signature is wrong, or it asks for what is not known here.
    pub fn parse(pem: &[u8]) -> Result<Self, PkiError> {
        let bad = |error: &dyn std::fmt::Display| PkiError::Pem(error.to_string());
        let der = CertificateSigningRequestDer::from_pem_slice(pem).map_err(|e| bad(&e))?;
        let params = CertificateSigningRequestParams::from_der(&der)?;
        let (_, request) = X509CertificationRequest::from_der(&der).map_err(|e| bad(&e))?;
        let subject = &request.certification_request_info.subject;
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().map(str::to_owned).map_err(|e| bad(&e))
        };
        let name = subject.iter_common_name().next().map(text).transpose()?.unwrap_or_default();
        let groups = subject.iter_organization().map(text).collect::<Result<_, _>>()?;
        let names = &params.params.subject_alt_names;
        let is_host = |san: &&SanType| matches!(san, SanType::DnsName(_) | SanType::IpAddress(_));
        let hosts = names.iter().filter(is_host).count();
        Ok(Self { name, groups, hosts, others: names.len() - hosts, params })
    }
}

impl Authority {
    /// Signs a request for these usages (words of the API) and returns the certificate as PEM. Of what it asks for, name,
    /// groups and alternative names are granted.
    ///
    /// # Errors
    /// When a usage is not known, or there are more groups than can be written.
    pub fn sign(
        &self,
        request: &CertificateRequest,
        usages: &[String],
        now: i64,
        life: Duration,
    ) -> Result<String, PkiError> {
        let mut signed = request.params.clone();
        let params = &mut signed.params;
        params.distinguished_name = name(request)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = Vec::new();
        params.extended_key_usages = Vec::new();
        params.custom_extensions = Vec::<CustomExtension>::new();
        params.use_authority_key_identifier_extension = true;
        for usage in usages {
            let key = KEY_USAGES.iter().find(|(word, _)| word == usage);
            let extended = EXTENDED_USAGES.iter().find(|(word, _)| word == usage);
            match (key, extended) {
                (Some((_, purpose)), _) => {
                    if !params.key_usages.contains(purpose) {
                        params.key_usages.push(*purpose);
                    }
                }
                (_, Some((_, purpose))) => params.extended_key_usages.push(purpose.clone()),
                _ => return Err(PkiError::Pem(format!("usage {usage:?} is not offered"))),
            }
        }
        lifetime(params, now, life)?;
        Ok(signed.signed_by(self.issuer())?.pem())
    }
}

/// The subject: rcgen writes no attribute twice, so that a second organization goes by its number.
fn name(request: &CertificateRequest) -> Result<DistinguishedName, PkiError> {
    const ORGANIZATION: &[u64] = &[2, 5, 4, 10];
    let mut name = DistinguishedName::new();
    let mut kinds =
        [DnType::OrganizationName, DnType::CustomDnType(ORGANIZATION.to_vec())].into_iter();
    for group in &request.groups {
        let kind = kinds.next().ok_or_else(|| {
            PkiError::Name(format!("{}: more than two organizations", request.groups.join(", ")))
        })?;
        name.push(kind, group.as_str());
    }
    if !request.name.is_empty() {
        name.push(DnType::CommonName, request.name.as_str());
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::identity::User;
    use crate::pki::der;

    const NOW: i64 = 1_790_000_000;

    fn pem(groups: &[&str], hosts: &[&str]) -> String {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        let wanted = CertificateRequest {
            name: "jane".into(),
            groups: groups.iter().map(ToString::to_string).collect(),
            hosts: 0,
            others: 0,
            params: CertificateSigningRequestParams::from_pem(
                &CertificateParams::default()
                    .serialize_request(&KeyPair::generate().unwrap())
                    .unwrap()
                    .pem()
                    .unwrap(),
            )
            .unwrap(),
        };
        params.distinguished_name = name(&wanted).unwrap();
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn a_signed_request_is_a_user_with_groups() {
        let request =
            CertificateRequest::parse(pem(&["dev", "ops"], &["a.example", "10.0.0.1"]).as_bytes())
                .unwrap();
        assert_eq!((request.name.as_str(), request.hosts, request.others), ("jane", 2, 0));
        assert_eq!(request.groups, ["dev", "ops"]);
        let authority = Authority::generate("ca", NOW).unwrap();
        let usages = ["client auth".to_owned(), "digital signature".to_owned()];
        let cert = authority.sign(&request, &usages, NOW, Duration::from_secs(3600)).unwrap();
        let user = User::from_certificate(&der(&cert).unwrap()).unwrap();
        assert_eq!(user.name, "jane");
        assert!(user.in_group("dev") && user.in_group("ops"), "{user:?}");
    }

    #[test]
    fn what_is_no_request_or_was_changed_is_refused() {
        assert!(CertificateRequest::parse(b"-----BEGIN NOTHING-----").is_err());
        let good = pem(&[], &[]);
        let der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap();
        let mut bytes = der.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        use base64::Engine as _;
        let coded = base64::engine::general_purpose::STANDARD.encode(bytes);
        let bad = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{coded}\n-----END CERTIFICATE REQUEST-----\n"
        );
        assert!(CertificateRequest::parse(bad.as_bytes()).is_err());
    }

    #[test]
    fn unknown_usages_are_refused() {
        let request = CertificateRequest::parse(pem(&[], &[]).as_bytes()).unwrap();
        let authority = Authority::generate("ca", NOW).unwrap();
        let refused =
            authority.sign(&request, &["ipsec user".into()], NOW, Duration::from_secs(60));
        assert!(refused.is_err());
    }
}
