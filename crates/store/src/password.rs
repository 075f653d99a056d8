//! Passwords as they are kept: never themselves, and slow to guess.

use std::num::NonZeroU32;

use aws_lc_rs::pbkdf2::{PBKDF2_HMAC_SHA512, derive, verify};

/// Rounds of a new hash. A hash says its own, so that the number can rise.
const ROUNDS: u32 = 210_000;
/// Bytes of a salt.
pub const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

/// The text to keep of a password. Takes a tenth of a second, on purpose.
#[must_use]
pub fn hash(password: &str, salt: [u8; SALT_BYTES]) -> String {
    let rounds = NonZeroU32::new(ROUNDS).unwrap_or(NonZeroU32::MIN);
    let mut out = [0; HASH_BYTES];
    derive(PBKDF2_HMAC_SHA512, rounds, &salt, password.as_bytes(), &mut out);
    format!("pbkdf2-sha512:{ROUNDS}:{}:{}", hex(&salt), hex(&out))
}

/// Whether a password is the one that was kept.
#[must_use]
pub fn matches(password: &str, kept: &str) -> bool {
    let mut parts = kept.split(':');
    let (kind, rounds) = (parts.next(), parts.next().and_then(|n| n.parse().ok()));
    let (salt, hash) = (parts.next().and_then(unhex), parts.next().and_then(unhex));
    let (Some("pbkdf2-sha512"), Some(rounds), Some(salt), Some(hash)) = (kind, rounds, salt, hash)
    else {
        return false;
    };
    verify(PBKDF2_HMAC_SHA512, rounds, &salt, password.as_bytes(), &hash).is_ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    digits.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_itself_matches() {
        let kept = hash("secret", [7; SALT_BYTES]);
        assert!(kept.starts_with("pbkdf2-sha512:210000:07070707"));
        assert!(matches("secret", &kept));
        assert!(!matches("Secret", &kept));
        assert!(!matches("", ""));
        assert!(!matches("secret", &kept.replace("210000", "0")));
    }
}
