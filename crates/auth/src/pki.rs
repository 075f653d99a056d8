//! The cluster's certificate authority, and the certificates its parts carry.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// How long the authority lives.
pub const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 86400);
/// How long a certificate of a part of the cluster lives.
pub const LEAF_LIFE: Duration = Duration::from_secs(365 * 86400);
/// Certificates are valid from a little before they are made, since clocks differ.
const BACKDATE: Duration = Duration::from_secs(300);

/// Why a key or certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// From the certificate library.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A name that cannot stand in a certificate.
    #[error("{0:?} is neither a DNS name nor an IP address")]
    Name(String),
    /// Text without the PEM block asked for.
    #[error("no usable PEM block: {0}")]
    Pem(String),
}

/// A certificate and its key as PEM text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Certificate.
    pub cert: String,
    /// Private key (PKCS#8).
    pub key: String,
}

/// What a certificate says.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// Common name: the user.
    pub name: String,
    /// Organization: the group. One, since rcgen writes no name attribute twice.
    pub group: Option<String>,
    /// Names and addresses under which it may serve; none for a mere client.
    pub hosts: Vec<String>,
}

impl Subject {
    /// A client named `name`, in `group` if there is one.
    #[must_use]
    pub fn client(name: &str, group: Option<&str>) -> Self {
        Self { name: name.into(), group: group.map(Into::into), hosts: Vec::new() }
    }

    /// The same, also a server reachable as `hosts`.
    #[must_use]
    pub fn serving(mut self, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.hosts.extend(hosts.into_iter().map(Into::into));
        self
    }
}

/// A certificate authority with its key.
#[derive(Debug)]
pub struct Authority {
    pair: Pair,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority called `name`, valid from `now` (Unix seconds).
    ///
    /// # Errors
    /// When no key can be generated.
    pub fn generate(name: &str, now: i64) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = params(name, None, now, CA_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let cert = params.self_signed(&key)?;
        Self::load(&Pair { cert: cert.pem(), key: key.serialize_pem() })
    }

    /// Reads an authority from PEM text.
    ///
    /// # Errors
    /// When the text holds no certificate or no key.
    pub fn load(pair: &Pair) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(&pair.key)?;
        let issuer = Issuer::from_ca_cert_pem(&pair.cert, key)?;
        Ok(Self { pair: pair.clone(), issuer })
    }

    /// The authority's certificate and key.
    #[must_use]
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// Issues a certificate for `subject`: for clients, and for servers where it has hosts.
    ///
    /// # Errors
    /// When a host cannot stand in a certificate.
    pub fn issue(&self, subject: &Subject, now: i64, life: Duration) -> Result<Pair, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = params(&subject.name, subject.group.as_deref(), now, life)?;
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !subject.hosts.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        for host in &subject.hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(
                    host.as_str().try_into().map_err(|_| PkiError::Name(host.clone()))?,
                ),
            });
        }
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
    }
}

fn params(
    name: &str,
    group: Option<&str>,
    now: i64,
    life: Duration,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    lifetime(&mut params, now, life)?;
    Ok(params)
}

/// Sets from when until when a certificate holds.
pub(crate) fn lifetime(
    params: &mut CertificateParams,
    now: i64,
    life: Duration,
) -> Result<(), PkiError> {
    let at = |seconds: i64| {
        time::OffsetDateTime::from_unix_timestamp(seconds)
            .map_err(|_| PkiError::Pem("time out of range".into()))
    };
    let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    params.not_before = at(now.saturating_sub(seconds(BACKDATE)))?;
    params.not_after = at(now.saturating_add(seconds(life)))?;
    Ok(())
}

/// The DER form of the first certificate in `pem`.
///
/// # Errors
/// When there is none.
pub fn der(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| PkiError::Pem(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{AUTHENTICATED, User};

    const NOW: i64 = 1_790_000_000;

    #[test]
    fn a_certificate_names_its_user_and_groups() {
        let ca = Authority::generate("test-ca", NOW).unwrap();
        let subject = Subject::client("system:node:n1", Some("system:nodes"))
            .serving(["n1.example", "10.0.0.7"]);
        let pair = ca.issue(&subject, NOW, LEAF_LIFE).unwrap();
        let user = User::from_certificate(&der(&pair.cert).unwrap()).unwrap();
        assert_eq!(user.name, "system:node:n1");
        assert_eq!(user.node(), Some("n1"));
        assert!(user.in_group(AUTHENTICATED), "{user:?}");
    }

    #[test]
    fn an_authority_survives_being_written_down() {
        let ca = Authority::generate("test-ca", NOW).unwrap();
        let again = Authority::load(ca.pair()).unwrap();
        assert!(again.issue(&Subject::client("x", None), NOW, LEAF_LIFE).is_ok());
    }

    #[test]
    fn a_name_that_cannot_be_a_host_is_refused() {
        let ca = Authority::generate("test-ca", NOW).unwrap();
        let subject = Subject::client("x", None).serving(["sch\u{f6}n"]);
        assert!(ca.issue(&subject, NOW, LEAF_LIFE).is_err());
    }
}
