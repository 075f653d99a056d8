//! Who we are to an image's registry, by the pull secrets of a pod.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

use crate::images::full_name;

/// User and password for the registry of `image`, from the secret that names the longest part of
/// its path.
#[must_use]
pub fn login(image: &str, secrets: &[Secret]) -> Option<(String, String)> {
    let image = full_name(image);
    let entries = secrets.iter().flat_map(registries);
    let matching = entries.filter(|(place, _)| covers(place, &image));
    let (_, entry) = matching.max_by_key(|(place, _)| place.len())?;
    credentials(&entry)
}

/// The registries a secret is for, each with what is known of it.
fn registries(secret: &Secret) -> Vec<(String, Value)> {
    let file = |key: &str| {
        let bytes = secret.data.as_ref()?.get(key)?;
        serde_json::from_slice::<Value>(&bytes.0).ok()
    };
    let whole = file(".dockerconfigjson").map(|whole| whole["auths"].clone());
    let Some(Value::Object(map)) = whole.or_else(|| file(".dockercfg")) else { return Vec::new() };
    map.into_iter().map(|(place, entry)| (plain(&place), entry)).collect()
}

/// A registry without scheme, version path and trailing slash; the old name of Docker's is
/// today's.
fn plain(place: &str) -> String {
    let place = place.trim_start_matches("https://").trim_start_matches("http://");
    let place = place.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
    if place == "index.docker.io" { "docker.io".to_owned() } else { place.to_owned() }
}

fn covers(place: &str, image: &str) -> bool {
    image.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'))
}

fn credentials(entry: &Value) -> Option<(String, String)> {
    let text = |key: &str| entry[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    if let Some(pair) = text("username").zip(text("password")) {
        return Some(pair);
    }
    let decoded = STANDARD.decode(text("auth")?).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn the_longest_matching_place_counts() {
        let auth = STANDARD.encode("ann:two:parts");
        let file = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"username":"u","password":"p"}},
            "r.example":{{"username":"r","password":"x"}},"r.example/team":{{"auth":"{auth}"}}}}}}"#
        );
        let data = [(".dockerconfigjson".to_owned(), ByteString(file.into_bytes()))];
        let secret = Secret { data: Some(data.into()), ..Secret::default() };
        let of = |image: &str| login(image, std::slice::from_ref(&secret)).map(|(user, _)| user);
        assert_eq!(of("busybox").as_deref(), Some("u"));
        assert_eq!(of("r.example/team/a:1").as_deref(), Some("ann"));
        assert_eq!(of("r.example/other/a:1").as_deref(), Some("r"));
        assert_eq!(of("r.example.org/a:1"), None);
    }
}
