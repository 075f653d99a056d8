//! Bearer tokens: service-account tokens (signed JWTs, KEP-1205) and static token files.

use std::collections::BTreeMap;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::identity::{AUTHENTICATED, User};

/// Why a token is not accepted, or a key not usable.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not a token of ours, or changed, or expired.
    #[error("token: {0}")]
    Invalid(#[from] jsonwebtoken::errors::Error),
    /// A key that cannot be read or made.
    #[error("signing key: {0}")]
    Key(String),
    /// A line of a static token file.
    #[error("token file, line {line}: {reason}")]
    File {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// The claims of a bound service-account token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Whom it is for.
    pub aud: Vec<String>,
    /// Unix seconds after which it is refused.
    pub exp: i64,
    /// Unix seconds of issue.
    pub iat: i64,
    /// The issuer's URL.
    pub iss: String,
    /// Unique id of the token.
    pub jti: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Bound,
    /// Unix seconds before which it is refused.
    pub nbf: i64,
    /// `system:serviceaccount:<namespace>:<name>`
    pub sub: String,
}

/// The objects a token is bound to; it dies with them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Of the service account.
    pub namespace: String,
    /// The node of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// The pod it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The secret it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// Whose token it is.
    pub serviceaccount: Reference,
}

/// An object by name, and by uid so that its successor is not taken for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// metadata.name
    pub name: String,
    /// metadata.uid
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

impl Claims {
    /// The user that presents this token.
    #[must_use]
    pub fn user(&self) -> User {
        let bound = &self.kubernetes;
        let mut extra = BTreeMap::new();
        let mut say = |key: &str, value: &str| {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        };
        say("credential-id", &format!("JTI={}", self.jti));
        if let Some(node) = &bound.node {
            say("node-name", &node.name);
            say("node-uid", &node.uid);
        }
        if let Some(pod) = &bound.pod {
            say("pod-name", &pod.name);
            say("pod-uid", &pod.uid);
        }
        User {
            name: self.sub.clone(),
            uid: bound.serviceaccount.uid.clone(),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{}", bound.namespace),
                AUTHENTICATED.into(),
            ],
            extra,
        }
    }
}

/// The key pair that signs and checks service-account tokens (RS256).
pub struct Signer {
    key_pem: String,
    key_id: String,
    issuer: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl Signer {
    /// Makes a new 2048-bit RSA key and returns it as PKCS#8 PEM.
    ///
    /// # Errors
    /// When the machine has no randomness.
    pub fn generate_key() -> Result<String, TokenError> {
        let key =
            KeyPair::generate(KeySize::Rsa2048).map_err(|e| TokenError::Key(e.to_string()))?;
        let der: Pkcs8V1Der<'_> = key.as_der().map_err(|e| TokenError::Key(e.to_string()))?;
        let text = STANDARD.encode(der.as_ref());
        let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
        for line in text.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        Ok(pem)
    }

    /// Reads the key from PKCS#8 PEM; tokens name `issuer`.
    ///
    /// # Errors
    /// When the text holds no RSA key.
    pub fn load(key_pem: &str, issuer: &str) -> Result<Self, TokenError> {
        let body: String = key_pem.lines().filter(|l| !l.starts_with("-----")).collect();
        let bad = |e: &dyn std::fmt::Display| TokenError::Key(e.to_string());
        let der = STANDARD.decode(body.trim()).map_err(|e| bad(&e))?;
        let key = KeyPair::from_pkcs8(&der).map_err(|e| bad(&e))?;
        let public = key.public_key();
        let (modulus, exponent) = (public.modulus(), public.exponent());
        let modulus = modulus.big_endian_without_leading_zero().to_vec();
        let exponent = exponent.big_endian_without_leading_zero().to_vec();
        let spki: PublicKeyX509Der<'_> = public.as_der().map_err(|e| bad(&e))?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, spki.as_ref());
        Ok(Self {
            key_id: URL_SAFE_NO_PAD.encode(digest.as_ref()),
            issuer: issuer.to_owned(),
            encoding: EncodingKey::from_rsa_pem(key_pem.as_bytes())?,
            decoding: DecodingKey::from_rsa_raw_components(&modulus, &exponent),
            key_pem: key_pem.to_owned(),
            modulus,
            exponent,
        })
    }

    /// The issuer that tokens name.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The key as it was loaded.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Signs `claims`.
    ///
    /// # Errors
    /// When the key refuses, which a loaded one does not.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let mut header = Header::new(Algorithm::RS256);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        Ok(jsonwebtoken::encode(&header, claims, &self.encoding)?)
    }

    /// Checks signature, issuer and times (at `now`, Unix seconds) and returns the claims. The
    /// caller checks the audience and that the bound objects still exist.
    ///
    /// # Errors
    /// When the token is not ours or not valid now.
    pub fn verify(&self, token: &str, now: i64) -> Result<Claims, TokenError> {
        let mut rules = Validation::new(Algorithm::RS256);
        rules.validate_aud = false;
        // Times are checked below against the clock we were given.
        rules.validate_exp = false;
        rules.validate_nbf = false;
        rules.set_issuer(&[&self.issuer]);
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &rules)?.claims;
        if now >= claims.exp {
            return Err(jsonwebtoken::errors::ErrorKind::ExpiredSignature.into_error());
        }
        if now < claims.nbf - 60 {
            return Err(jsonwebtoken::errors::ErrorKind::ImmatureSignature.into_error());
        }
        Ok(claims)
    }

    /// The public key as a JSON Web Key Set, for `/openid/v1/jwks`.
    #[must_use]
    pub fn jwks(&self) -> serde_json::Value {
        serde_json::json!({"keys": [{
            "use": "sig",
            "kty": "RSA",
            "kid": self.key_id,
            "alg": "RS256",
            "n": URL_SAFE_NO_PAD.encode(&self.modulus),
            "e": URL_SAFE_NO_PAD.encode(&self.exponent),
        }]})
    }
}

impl TokenError {
    /// Whether the token was good once.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        let expired = jsonwebtoken::errors::ErrorKind::ExpiredSignature;
        matches!(self, Self::Invalid(error) if *error.kind() == expired)
    }
}

trait IntoError {
    fn into_error(self) -> TokenError;
}

impl IntoError for jsonwebtoken::errors::ErrorKind {
    fn into_error(self) -> TokenError {
        TokenError::Invalid(self.into())
    }
}

/// Reads a static token file: lines of `token,user,uid[,"group,group"]`.
///
/// # Errors
/// Names the line that is not of this form.
pub fn static_tokens(text: &str) -> Result<BTreeMap<String, User>, TokenError> {
    let mut users = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let bad = |reason| TokenError::File { line: index + 1, reason };
        if line.trim().is_empty() {
            continue;
        }
        let mut fields = line.splitn(4, ',').map(|f| f.trim().trim_matches('"'));
        let (Some(token), Some(name), Some(uid)) = (fields.next(), fields.next(), fields.next())
        else {
            return Err(bad("needs token, user and uid"));
        };
        if token.is_empty() || name.is_empty() {
            return Err(bad("token and user must not be empty"));
        }
        let groups: Vec<&str> = fields
            .next()
            .map(|g| g.split(',').map(str::trim).filter(|g| !g.is_empty()).collect())
            .unwrap_or_default();
        let user = User { uid: uid.into(), ..User::authenticated(name, &groups) };
        users.insert(token.to_owned(), user);
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(exp: i64) -> Claims {
        Claims {
            aud: vec!["api".into()],
            exp,
            iat: 0,
            iss: "https://issuer".into(),
            jti: "id".into(),
            kubernetes: Bound {
                namespace: "ns".into(),
                serviceaccount: Reference { name: "sa".into(), uid: "u".into() },
                ..Bound::default()
            },
            nbf: 0,
            sub: "system:serviceaccount:ns:sa".into(),
        }
    }

    #[test]
    fn a_token_is_good_until_it_expires_and_only_unchanged() {
        let key = Signer::generate_key().unwrap();
        let signer = Signer::load(&key, "https://issuer").unwrap();
        let token = signer.sign(&claims(100)).unwrap();
        assert_eq!(signer.verify(&token, 99).unwrap(), claims(100));
        assert!(signer.verify(&token, 100).is_err());
        let mut changed = token.clone();
        let middle = token.len() / 2;
        let other = if token.as_bytes()[middle] == b'A' { "B" } else { "A" };
        changed.replace_range(middle..=middle, other);
        assert!(signer.verify(&changed, 50).is_err());
        let other = Signer::load(&Signer::generate_key().unwrap(), "https://issuer").unwrap();
        assert!(other.verify(&token, 50).is_err());
    }

    #[test]
    fn token_files_name_users_and_groups() {
        let users = static_tokens("t1,ann,u1,\"a,b\"\n\nt2,bob,u2\n").unwrap();
        assert!(users["t1"].in_group("b") && users["t1"].in_group(AUTHENTICATED));
        assert_eq!(users["t2"].name, "bob");
        assert!(static_tokens("lonely").is_err());
    }
}
