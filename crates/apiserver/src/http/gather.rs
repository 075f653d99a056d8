//! A list as a response: the items' own bytes, put together while they are sent.
//!
//! Only the piece that is on its way is a copy, so any number of clients may read the largest list at once.

use std::convert::Infallible;

use api::catalog::Resource;
use api::codec::json;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::Frame;
use http_body_util::StreamBody;

use super::{HttpBody, HttpResponse, full};

/// What is put together at once.
const PIECE_BYTES: usize = 64 << 10;

/// The JSON of a plain list whose `metadata` is given.
pub(super) fn answer(resource: &Resource, metadata: &[u8], items: Vec<Bytes>) -> HttpResponse {
    let mut pieces = Pieces::new(resource, metadata, items);
    let first = pieces.next().unwrap_or_default();
    if pieces.ended {
        return full(StatusCode::OK, "application/json", first);
    }
    let all = std::iter::once(first).chain(pieces);
    let frames = all.map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let body = StreamBody::new(futures::stream::iter(frames));
    let mut response = full(StatusCode::OK, "application/json", Bytes::new());
    *response.body_mut() = HttpBody::new(body);
    response
}

/// The text of a list, piece by piece.
struct Pieces {
    items: std::vec::IntoIter<Bytes>,
    /// What is before the first item.
    head: Vec<u8>,
    /// How items begin, and where their kind is; empty for custom kinds, whose items keep both.
    version: Vec<u8>,
    kind: Vec<u8>,
    ended: bool,
}

impl Pieces {
    fn new(resource: &Resource, metadata: &[u8], items: Vec<Bytes>) -> Self {
        let (list, version) = (&resource.list_kind, resource.api_version());
        let mut head = format!("{{\"kind\":\"{list}\",\"apiVersion\":\"{version}\",\"metadata\":");
        head.push_str(&String::from_utf8_lossy(metadata));
        head.push_str(",\"items\":[");
        let (version, kind) = if resource.custom {
            (Vec::new(), Vec::new())
        } else {
            let kind = format!("\"kind\":\"{}\",", resource.kind);
            (format!("{{\"apiVersion\":\"{version}\",").into(), kind.into())
        };
        Self { items: items.into_iter(), head: head.into(), version, kind, ended: false }
    }

    fn item(&self, item: &[u8], out: &mut BytesMut) {
        if self.kind.is_empty() {
            out.extend_from_slice(item);
        } else if !strip_into(item, &self.version, &self.kind, out) {
            match json::parse(item) {
                Ok(mut value) => {
                    value.remove("kind");
                    value.remove("apiVersion");
                    out.extend_from_slice(&value.to_bytes());
                }
                Err(_) => out.extend_from_slice(item),
            }
        }
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut size = 0;
        let fits = |item: &&Bytes| {
            let fits = size < PIECE_BYTES;
            size += item.len() + 1;
            fits
        };
        let count = self.items.as_slice().iter().take_while(fits).count();
        let mut out = BytesMut::with_capacity(self.head.len() + size + 2);
        let mut between = self.head.is_empty();
        out.extend_from_slice(&std::mem::take(&mut self.head));
        for _ in 0..count {
            let Some(item) = self.items.next() else { break };
            if std::mem::replace(&mut between, true) {
                out.extend_from_slice(b",");
            }
            self.item(&item, &mut out);
        }
        if self.items.as_slice().is_empty() {
            out.extend_from_slice(b"]}");
            self.ended = true;
        }
        Some(out.freeze())
    }
}

/// Writes an object without its apiVersion and kind, as lists of built-in kinds have it. Canonical bytes begin with
/// the one, and have the other right before the metadata; false where that is not so.
fn strip_into(item: &[u8], version: &[u8], kind: &[u8], out: &mut BytesMut) -> bool {
    const METADATA: &[u8] = b"\"metadata\":{";
    let Some(rest) = item.strip_prefix(version) else { return false };
    let mut kinds = memchr::memmem::find_iter(rest, kind);
    let Some(at) = kinds.find(|at| rest[at + kind.len()..].starts_with(METADATA)) else {
        return false;
    };
    out.extend_from_slice(b"{");
    out.extend_from_slice(&rest[..at]);
    out.extend_from_slice(&rest[at + kind.len()..]);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: Vec<Bytes>) -> (usize, String) {
        let catalog = api::catalog::Catalog::builtin();
        let resource = catalog.find("", "v1", "configmaps").unwrap();
        let pieces: Vec<Bytes> = Pieces::new(resource, b"{}", items).collect();
        (pieces.len(), String::from_utf8(pieces.concat()).unwrap())
    }

    #[test]
    fn items_lose_their_kind_without_being_parsed() {
        let mut out = BytesMut::new();
        let item = br#"{"apiVersion":"v1","data":{"kind":"ConfigMap","x":"y"},"kind":"ConfigMap","metadata":{"name":"a"}}"#;
        assert!(strip_into(item, b"{\"apiVersion\":\"v1\",", b"\"kind\":\"ConfigMap\",", &mut out));
        let bare = br#"{"data":{"kind":"ConfigMap","x":"y"},"metadata":{"name":"a"}}"#;
        assert_eq!(&out[..], bare);
    }

    #[test]
    fn a_list_in_pieces_reads_as_one() {
        let head = r#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{},"items":["#;
        assert_eq!(list(Vec::new()), (1, format!("{head}]}}")));
        let item = |i: usize| {
            let fill = "x".repeat(30_000);
            format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{i}{fill}"}}}}"#)
        };
        let (pieces, text) = list((0..7).map(|i| item(i).into()).collect());
        assert!(pieces > 1);
        let bare = |i| item(i).replace(r#""apiVersion":"v1","kind":"ConfigMap","#, "");
        let items: Vec<String> = (0..7).map(bare).collect();
        assert_eq!(text, format!("{head}{}]}}", items.join(",")));
    }
}
