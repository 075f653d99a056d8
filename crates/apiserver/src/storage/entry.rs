//! One object at one revision: its bytes with the revision spliced in, and what selectors ask of it.

use std::sync::{Arc, OnceLock};

use api::object::Value;
use bytes::Bytes;

use super::etcd::Stored;

/// An object as it is served. Shared by every reader.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The revision that wrote it (for the last state of a deleted object: that deleted it).
    pub(crate) revision: i64,
    /// Canonical JSON with `metadata.resourceVersion`.
    pub(crate) bytes: Bytes,
    labels: OnceLock<Arc<Value>>,
    tree: OnceLock<Arc<Value>>,
}

impl Entry {
    /// The object as the store keeps it, read at `revision`.
    pub(crate) fn new(stored: &[u8], revision: i64) -> Arc<Self> {
        Arc::new(Self {
            revision,
            bytes: splice_revision(stored, revision),
            labels: OnceLock::new(),
            tree: OnceLock::new(),
        })
    }

    /// From a key read from the store.
    pub(crate) fn of(stored: &Stored) -> Arc<Self> {
        Self::new(&stored.value, stored.revision)
    }

    /// The same object under another revision: the last state of one that was deleted then.
    pub(crate) fn at(&self, revision: i64) -> Arc<Self> {
        let bytes = respliced(&self.bytes, revision).unwrap_or_else(|| {
            let mut value = self.parse();
            value.set_at(&["metadata", "resourceVersion"], revision.to_string());
            value.to_bytes().into()
        });
        Arc::new(Self { revision, bytes, labels: OnceLock::new(), tree: OnceLock::new() })
    }

    /// The object as a tree, parsed anew. An object that does not parse, which nothing of ours
    /// writes, is `Null`.
    pub(crate) fn parse(&self) -> Value {
        api::codec::json::parse(&self.bytes).unwrap_or(Value::Null)
    }

    /// The object as a tree that is kept: for the few objects that every request of some kind asks (its namespace, its
    /// account).
    pub(crate) fn tree(&self) -> Arc<Value> {
        Arc::clone(self.tree.get_or_init(|| Arc::new(self.parse())))
    }

    /// What selectors look at: parsed once per entry, and kept.
    pub(crate) fn view(&self, extract: impl FnOnce(&Value) -> Value) -> &Arc<Value> {
        self.labels.get_or_init(|| Arc::new(extract(&self.parse())))
    }
}

/// Puts `metadata.resourceVersion` into an object's JSON without parsing the object: right behind
/// the brace of the top-level `metadata`.
pub(crate) fn splice_revision(json: &[u8], revision: i64) -> Bytes {
    let mut number = itoa::Buffer::new();
    let number = number.format(revision);
    let Some(brace) = metadata_brace(json) else { return Bytes::copy_from_slice(json) };
    let empty = json.get(brace + 1) == Some(&b'}');
    let mut out = Vec::with_capacity(json.len() + 40);
    out.extend_from_slice(&json[..=brace]);
    out.extend_from_slice(b"\"resourceVersion\":\"");
    out.extend_from_slice(number.as_bytes());
    out.push(b'"');
    if !empty {
        out.push(b',');
    }
    out.extend_from_slice(&json[brace + 1..]);
    out.into()
}

/// The same bytes with another revision where [`splice_revision`] has put one; none if it is not there.
fn respliced(json: &[u8], revision: i64) -> Option<Bytes> {
    const MEMBER: &[u8] = b"\"resourceVersion\":\"";
    let from = metadata_brace(json)? + 1;
    let rest = json[from..].strip_prefix(MEMBER)?;
    let end = rest.iter().position(|b| *b == b'"')?;
    let mut number = itoa::Buffer::new();
    Some([&json[..from], MEMBER, number.format(revision).as_bytes(), &rest[end..]].concat().into())
}

/// The position of the `{` that opens the top-level member `metadata`.
fn metadata_brace(json: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0, 0_usize);
    while at < json.len() {
        match json[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b'"' => {
                let end = string_end(json, at)?;
                if depth == 1 && &json[at..=end] == b"\"metadata\"" {
                    let rest = json[end + 1..].iter().position(|b| !b.is_ascii_whitespace())?;
                    if json[end + 1 + rest] == b':' {
                        let from = end + 2 + rest;
                        let open = json[from..].iter().position(|b| !b.is_ascii_whitespace())?;
                        return (json[from + open] == b'{').then_some(from + open);
                    }
                }
                at = end;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The position of the quote that closes the string opened at `start`.
fn string_end(json: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    while at < json.len() {
        match json[at] {
            b'\\' => at += 2,
            b'"' => return Some(at),
            _ => at += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spliced(json: &str) -> String {
        String::from_utf8(splice_revision(json.as_bytes(), 42).to_vec()).unwrap()
    }

    #[test]
    fn the_revision_goes_into_the_top_level_metadata_only() {
        assert_eq!(
            spliced(r#"{"data":{"metadata":{"x":"\"}"}},"kind":"K","metadata":{"name":"a"}}"#),
            r#"{"data":{"metadata":{"x":"\"}"}},"kind":"K","metadata":{"resourceVersion":"42","name":"a"}}"#
        );
    }

    #[test]
    fn the_last_state_of_a_deleted_object_has_the_revision_of_its_end() {
        let entry = |json: &str| Entry::new(json.as_bytes(), 7).at(1234);
        let last = entry(r#"{"data":{"resourceVersion":"7"},"metadata":{"name":"a"}}"#);
        let want =
            r#"{"data":{"resourceVersion":"7"},"metadata":{"resourceVersion":"1234","name":"a"}}"#;
        assert_eq!((last.revision, last.bytes.as_ref()), (1234, want.as_bytes()));
    }

    #[test]
    fn a_value_called_metadata_is_not_the_member() {
        assert_eq!(
            spliced(r#"{"a":"metadata","metadata":{}}"#),
            r#"{"a":"metadata","metadata":{"resourceVersion":"42"}}"#
        );
    }

    #[test]
    fn an_object_without_metadata_stays_as_it_is() {
        assert_eq!(spliced(r#"{"kind":"K"}"#), r#"{"kind":"K"}"#);
    }
}
