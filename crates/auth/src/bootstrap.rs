//! Bootstrap tokens: a Secret `bootstrap-token-ID` of `kube-system`, by which a machine and a cluster trust each other before
//! the machine has a certificate.
//!
//! Specified by <https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};

/// The type of such Secrets.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// What their names begin with; the token's id follows.
pub const SECRET_PREFIX: &str = "bootstrap-token-";

/// Signs `content` with a token: a JWS (RFC 7515) by HMAC-SHA256 whose payload is left out, as kubeadm checks it.
///
/// # Errors
/// When the crypto library fails.
pub fn sign_detached(content: &[u8], id: &str, secret: &str) -> anyhow::Result<String> {
    let head = serde_json::json!({"alg": "HS256", "kid": id}).to_string();
    let head = BASE64_URL_SAFE_NO_PAD.encode(head);
    let signed = format!("{head}.{}", BASE64_URL_SAFE_NO_PAD.encode(content));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256)?;
    Ok(format!("{head}..{signature}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signature was made by OpenSSL: `printf HEAD.PAYLOAD | openssl dgst -sha256 -hmac SECRET -binary`.
    #[test]
    fn a_signature_is_what_others_make() {
        let jws = sign_detached(b"apiVersion: v1\n", "abcdef", "0123456789abcdef").unwrap();
        assert_eq!(
            jws,
            "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..K1chermAQEq0rdqy-ehj0VDfmA_ytv8Wzh9g26FldrE"
        );
    }
}
