//! The forms names may have: DNS labels and subdomains, qualified names, path segments; and generated names.
//!
//! Each check gives the reasons a text is refused, in the words clients know.

/// Letters of generated name endings.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const GENERATED_PREFIX_MAX: usize = 63 - 5;

const LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
'[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
'-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035_MESSAGE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start \
with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_MESSAGE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', \
'_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY_MESSAGE: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME_MESSAGE: &str = "a valid environment variable name must consist only of printable ASCII characters \
other than '='";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn too_long_characters(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && b.iter().all(|b| lower_alnum(*b) || *b == b'-')
        && b.first().copied().is_some_and(lower_alnum)
        && b.last().copied().is_some_and(lower_alnum)
}

/// Why `s` is no DNS label (RFC 1123).
pub fn dns_label(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 63 {
        out.push(too_long_characters(63));
    }
    if !is_label(s) {
        out.push(LABEL_MESSAGE.to_owned());
    }
    out
}

/// Why `s` is no DNS label that starts with a letter (RFC 1035).
pub fn dns_label_1035(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 63 {
        out.push(too_long_characters(63));
    }
    if !is_label(s) || !s.as_bytes()[0].is_ascii_lowercase() {
        out.push(LABEL_1035_MESSAGE.to_owned());
    }
    out
}

/// Why `s` is no DNS subdomain (RFC 1123).
pub fn dns_subdomain(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 253 {
        out.push(too_long_characters(253));
    }
    if !s.split('.').all(is_label) {
        out.push(SUBDOMAIN_MESSAGE.to_owned());
    }
    out
}

const SEARCH_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', \
'-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
'_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const HEADER_MESSAGE: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. \
'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
const SYSCTL_MESSAGE: &str = "must have at most 253 characters and match regex \
^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

/// A label that may have underscores inside.
fn is_loose_label(s: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    edge(s.as_bytes().first()) && edge(s.as_bytes().last()) && s.bytes().all(inner)
}

/// Why `s` is no name of an HTTP header.
pub fn header(s: &str) -> Vec<String> {
    let good = !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if good { Vec::new() } else { vec![HEADER_MESSAGE.to_owned()] }
}

/// Why `s` is no search domain of a resolver.
pub fn search_domain(s: &str) -> Vec<String> {
    let good = s.split('.').all(|part| is_loose_label(part.strip_prefix('_').unwrap_or(part)));
    if good && s.len() <= 253 { Vec::new() } else { vec![SEARCH_MESSAGE.to_owned()] }
}

/// Why `s` is no kernel parameter.
pub fn sysctl(s: &str) -> Vec<String> {
    let good = s.split(['.', '/']).all(is_loose_label);
    if good && s.len() <= 253 { Vec::new() } else { vec![SYSCTL_MESSAGE.to_owned()] }
}

/// Why `s` cannot stand in a path.
pub fn path_segment(s: &str) -> Vec<String> {
    if s == "." || s == ".." {
        return vec![format!("may not be '{s}'")];
    }
    let bad = s.chars().find(|c| matches!(c, '/' | '%'));
    bad.map(|c| format!("may not contain '{c}'")).into_iter().collect()
}

fn is_name_part(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && b.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && b[0].is_ascii_alphanumeric()
        && b[b.len() - 1].is_ascii_alphanumeric()
}

/// Why `s` is no qualified name (`example.com/my-name` or `my-name`).
pub fn qualified(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut parts = s.split('/');
    let (name, prefix) = match (parts.next().unwrap_or(""), parts.next(), parts.next()) {
        (name, None, _) => (name, None),
        (prefix, Some(name), None) => (name, Some(prefix)),
        _ => {
            return vec![format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. \
                 'example.com/MyName')",
                QUALIFIED_MESSAGE
            )];
        }
    };
    match prefix {
        Some("") => out.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => {
            out.extend(dns_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")))
        }
        None => {}
    }
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        out.push(format!("name part {}", too_long(63)));
    }
    if !is_name_part(name) {
        out.push(format!("name part {QUALIFIED_MESSAGE}"));
    }
    out
}

/// Why `s` is no label value.
pub fn label_value(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 63 {
        out.push(too_long(63));
    }
    if !s.is_empty() && !is_name_part(s) {
        out.push(LABEL_VALUE_MESSAGE.to_owned());
    }
    out
}

/// Why `s` is no key of a ConfigMap or Secret.
pub fn config_key(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 253 {
        out.push(too_long_characters(253));
    }
    if s.is_empty()
        || !s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        out.push(CONFIG_KEY_MESSAGE.to_owned());
    }
    out.extend(dots(s));
    out
}

fn dots(s: &str) -> Option<String> {
    match s {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        s if s.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// Why `s` is no name of an environment variable.
pub fn env_name(s: &str) -> Vec<String> {
    if s.is_empty() || !s.bytes().all(|b| (0x20..0x7F).contains(&b) && b != b'=') {
        return vec![ENV_NAME_MESSAGE.to_owned()];
    }
    Vec::new()
}

/// Why `s` is no port name.
pub fn port_name(s: &str) -> Vec<String> {
    let b = s.as_bytes();
    let mut out = Vec::new();
    if b.len() > 15 {
        out.push(too_long_characters(15));
    }
    if b.is_empty() || !b.iter().all(|c| lower_alnum(*c) || *c == b'-') {
        out.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !b.iter().any(u8::is_ascii_lowercase) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if s.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if b.first() == Some(&b'-') || b.last() == Some(&b'-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

/// A name from `generateName` and five random bytes.
pub fn generate(prefix: &str, random: [u8; 5]) -> String {
    let mut end = prefix.len().min(GENERATED_PREFIX_MAX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = prefix[..end].to_owned();
    out.extend(
        random.iter().map(|b| SUFFIX_LETTERS[usize::from(*b) % SUFFIX_LETTERS.len()] as char),
    );
    out
}

/// Orders API versions, the preferred first: v2, v1, v1beta2, v1alpha1, then others by name.
pub fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    match (rank(a), rank(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

fn rank(v: &str) -> Option<(u8, u32, u32)> {
    let rest = v.strip_prefix('v')?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let major = rest[..digits].parse().ok()?;
    let stage = &rest[digits..];
    if stage.is_empty() {
        return Some((2, major, 0));
    }
    if let Some(n) = stage.strip_prefix("beta") {
        return Some((1, major, n.parse().ok()?));
    }
    Some((0, major, stage.strip_prefix("alpha")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(dns_subdomain("a.b-c.d1").is_empty());
        assert_eq!(dns_subdomain("a..b").len(), 1);
        assert_eq!(dns_label("a.b").len(), 1);
        assert!(qualified("example.com/My_name").is_empty());
        assert_eq!(qualified("").len(), 2);
        assert_eq!(qualified("a/b/c").len(), 1);
        assert!(label_value("").is_empty());
        assert_eq!(label_value("has space").len(), 1);
        assert_eq!(config_key("..").len(), 1);
    }

    #[test]
    fn versions_order() {
        let mut v = ["v1alpha1", "v1", "foo", "v2beta1", "v10", "v2"];
        v.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(v, ["v10", "v2", "v1", "v2beta1", "v1alpha1", "foo"]);
    }
}
