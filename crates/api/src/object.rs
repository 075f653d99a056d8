//! The object tree: a small JSON value with sorted maps, integers and floats kept apart.
//!
//! Owns the in-memory form every other module walks and its canonical bytes. Knows no kinds and no schema.

use std::fmt;
use std::ops::Index;

use compact_str::CompactString;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

/// One JSON value.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// `null`.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number written without fraction or exponent that fits 64 bits.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A string.
    Str(CompactString),
    /// An array.
    Array(Vec<Value>),
    /// An object.
    Object(Map),
}

static NULL: Value = Value::Null;

/// Most objects are no longer than this.
const TYPICAL_BYTES: usize = 4096;

/// Members of a map that are looked through one by one.
const SCANNED_MAX: usize = 16;

/// An object's members, sorted by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Map<V = Value> {
    entries: Vec<(CompactString, V)>,
}

impl<V> Map<V> {
    /// An empty map.
    pub const fn new() -> Self {
        Self { entries: Vec::new() }
    }

    /// An empty map with room for `n` members.
    pub fn with_capacity(n: usize) -> Self {
        Self { entries: Vec::with_capacity(n) }
    }

    /// Builds a map from members in any order; a later duplicate wins.
    pub fn from_unsorted(mut entries: Vec<(CompactString, V)>) -> Self {
        if entries.windows(2).any(|w| w[0].0 >= w[1].0) {
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            let mut out: Vec<(CompactString, V)> = Vec::with_capacity(entries.len());
            for entry in entries {
                match out.last_mut() {
                    Some(last) if last.0 == entry.0 => last.1 = entry.1,
                    _ => out.push(entry),
                }
            }
            entries = out;
        }
        Self { entries }
    }

    fn find(&self, key: &str) -> Result<usize, usize> {
        self.entries.binary_search_by(|(k, _)| k.as_str().cmp(key))
    }

    /// Where `key` is. Few members are looked through: most keys differ in length already, which is cheaper to see than
    /// which of two comes first.
    fn position(&self, key: &str) -> Option<usize> {
        if self.entries.len() > SCANNED_MAX {
            return self.find(key).ok();
        }
        self.entries
            .iter()
            .position(|(k, _)| k.len() == key.len() && k.as_bytes() == key.as_bytes())
    }

    /// The member named `key`.
    pub fn get(&self, key: &str) -> Option<&V> {
        self.position(key).map(|i| &self.entries[i].1)
    }

    /// The member named `key`, to change.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        self.position(key).map(|i| &mut self.entries[i].1)
    }

    /// Whether there is a member named `key`.
    pub fn contains_key(&self, key: &str) -> bool {
        self.position(key).is_some()
    }

    /// Sets `key`, handing back what was there.
    pub fn insert(&mut self, key: impl Into<CompactString>, value: impl Into<V>) -> Option<V> {
        let key = key.into();
        let value = value.into();
        match self.find(&key) {
            Ok(i) => Some(std::mem::replace(&mut self.entries[i].1, value)),
            Err(i) => {
                self.entries.insert(i, (key, value));
                None
            }
        }
    }

    /// Takes `key` out.
    pub fn remove(&mut self, key: &str) -> Option<V> {
        self.position(key).map(|i| self.entries.remove(i).1)
    }

    /// The member named `key`, made empty (`null`) first when it is absent.
    pub fn entry(&mut self, key: &str) -> &mut V
    where
        V: Default,
    {
        let i = match self.find(key) {
            Ok(i) => i,
            Err(i) => {
                self.entries.insert(i, (key.into(), V::default()));
                i
            }
        };
        &mut self.entries[i].1
    }

    /// Members in key order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &V)> + ExactSizeIterator {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Members in key order, values to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut V)> {
        self.entries.iter_mut().map(|(k, v)| (k.as_str(), v))
    }

    /// Keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(k, _)| k.as_str())
    }

    /// Values in key order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.iter().map(|(_, v)| v)
    }

    /// Keeps the members for which `keep` says yes.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &mut V) -> bool) {
        self.entries.retain_mut(|(k, v)| keep(k.as_str(), v));
    }

    /// How many members.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<V> IntoIterator for Map<V> {
    type Item = (CompactString, V);
    type IntoIter = std::vec::IntoIter<(CompactString, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

impl<K: Into<CompactString>, T: Into<V>, V> FromIterator<(K, T)> for Map<V> {
    fn from_iter<I: IntoIterator<Item = (K, T)>>(iter: I) -> Self {
        Self::from_unsorted(iter.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

impl Value {
    /// An empty object.
    pub const fn object() -> Self {
        Self::Object(Map::new())
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The string inside.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(s) => Some(s),
            _ => None,
        }
    }

    /// The integer inside.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(i) => Some(*i),
            _ => None,
        }
    }

    /// The number inside, as a float.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Int(i) => Some(*i as f64),
            Self::Float(f) => Some(*f),
            _ => None,
        }
    }

    /// The boolean inside.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// The array inside.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(a) => Some(a),
            _ => None,
        }
    }

    /// The array inside, to change.
    pub fn as_array_mut(&mut self) -> Option<&mut Vec<Value>> {
        match self {
            Self::Array(a) => Some(a),
            _ => None,
        }
    }

    /// The object inside.
    pub fn as_object(&self) -> Option<&Map> {
        match self {
            Self::Object(m) => Some(m),
            _ => None,
        }
    }

    /// The object inside, to change.
    pub fn as_object_mut(&mut self) -> Option<&mut Map> {
        match self {
            Self::Object(m) => Some(m),
            _ => None,
        }
    }

    /// The items of an array; none for anything else.
    pub fn items(&self) -> &[Value] {
        self.as_array().unwrap_or(&[])
    }

    /// The items of an array, to change; none for anything else.
    pub fn items_mut(&mut self) -> &mut [Value] {
        match self {
            Self::Array(a) => a,
            _ => &mut [],
        }
    }

    /// The members of an object; none for anything else.
    pub fn members(&self) -> impl DoubleEndedIterator<Item = (&str, &Value)> {
        self.as_object().into_iter().flat_map(Map::iter)
    }

    /// The string inside, empty for anything else.
    pub fn text(&self) -> &str {
        self.as_str().unwrap_or("")
    }

    /// The member named `key` of an object.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.as_object().and_then(|m| m.get(key))
    }

    /// The member named `key` of an object, to change.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.as_object_mut().and_then(|m| m.get_mut(key))
    }

    /// Whether `key` is a member and not `null`.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| !v.is_null())
    }

    /// The value at a path of member names.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(self, |v, key| v.get(key))
    }

    /// The value at a path of member names, to change.
    pub fn at_mut(&mut self, path: &[&str]) -> Option<&mut Value> {
        path.iter().try_fold(self, |v, key| v.get_mut(key))
    }

    /// The string at a path.
    pub fn str_at(&self, path: &[&str]) -> Option<&str> {
        self.at(path).and_then(Value::as_str)
    }

    /// The integer at a path.
    pub fn int_at(&self, path: &[&str]) -> Option<i64> {
        self.at(path).and_then(Value::as_int)
    }

    /// The boolean at a path.
    pub fn bool_at(&self, path: &[&str]) -> Option<bool> {
        self.at(path).and_then(Value::as_bool)
    }

    /// Sets the value at a path, making objects on the way (whatever else stood there is replaced).
    pub fn set_at(&mut self, path: &[&str], value: impl Into<Value>) {
        let mut here = self;
        for key in path {
            here = here.make_object().entry(key);
        }
        *here = value.into();
    }

    /// Takes the value at a path out.
    pub fn remove_at(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        self.at_mut(parents)?.as_object_mut()?.remove(last)
    }

    /// Turns this into an object if it is none, and gives its members.
    pub fn make_object(&mut self) -> &mut Map {
        if !matches!(self, Self::Object(_)) {
            *self = Self::object();
        }
        match self {
            Self::Object(m) => m,
            _ => unreachable!("just made an object"),
        }
    }

    /// Turns `null` into an empty object; gives the value if it is an object now.
    pub fn make_object_if_null(&mut self) -> Option<&mut Value> {
        if self.is_null() {
            *self = Self::object();
        }
        matches!(self, Self::Object(_)).then_some(self)
    }

    /// Turns this into an object if it is none, and gives it.
    pub fn make_object_in_place(&mut self) -> &mut Value {
        self.make_object();
        self
    }

    /// Sets member `key` if it is absent or `null`.
    pub fn default_to(&mut self, key: &str, value: impl Into<Value>) {
        if !self.has(key) {
            self.make_object().insert(key, value);
        }
    }

    /// Sets member `key`.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.make_object().insert(key, value);
    }

    /// Takes member `key` out.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        self.as_object_mut().and_then(|m| m.remove(key))
    }

    /// Whether this is what Go would call empty: null, false, zero, or a string, list or map without content.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(b) => !b,
            Self::Int(i) => *i == 0,
            Self::Float(f) => *f == 0.0,
            Self::Str(s) => s.is_empty(),
            Self::Array(a) => a.is_empty(),
            Self::Object(m) => m.is_empty(),
        }
    }

    /// The canonical JSON: sorted keys, no spaces, Go's escapes and float forms.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(TYPICAL_BYTES);
        self.write_to(&mut out);
        out
    }

    /// Appends the canonical JSON to `out`.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::Int(i) => write_int(*i, out),
            Self::Float(f) => out.extend_from_slice(format_float(*f).as_bytes()),
            Self::Str(s) => write_string(s, out),
            Self::Array(items) => {
                out.push(b'[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    item.write_to(out);
                }
                out.push(b']');
            }
            Self::Object(map) => {
                out.push(b'{');
                for (i, (key, value)) in map.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    write_string(key, out);
                    out.push(b':');
                    value.write_to(out);
                }
                out.push(b'}');
            }
        }
    }
}

/// Writes an integer in decimal.
fn write_int(i: i64, out: &mut Vec<u8>) {
    let mut buf = [0_u8; 20];
    let mut at = buf.len();
    let mut rest = i.unsigned_abs();
    loop {
        at -= 1;
        buf[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if i < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&buf[at..]);
}

/// A float as Go's encoding/json writes it, but for a zero below zero: it would be read back as an integer without a sign.
pub fn format_float(f: f64) -> String {
    let abs = f.abs();
    if abs == 0.0 {
        return "0".to_owned();
    }
    if !(1e-6..1e21).contains(&abs) {
        let s = format!("{f:e}");
        return match s.split_once('e') {
            Some((m, e)) if !e.starts_with('-') => format!("{m}e+{e}"),
            _ => s,
        };
    }
    format!("{f}")
}

/// Writes a quoted JSON string with the escapes Go uses, those for HTML included.
pub fn write_string(s: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    if s.bytes().any(|b| SPECIAL[usize::from(b)]) {
        write_escaped(s, out);
    } else {
        out.extend_from_slice(s.as_bytes());
    }
    out.push(b'"');
}

/// Bytes that are escaped, or may begin what is.
const SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let mut b = 0;
    while b < 256 {
        special[b] = b < 0x20 || matches!(b as u8, b'"' | b'\\' | b'<' | b'>' | b'&' | 0xE2);
        b += 1;
    }
    special
};

fn write_escaped(s: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = s.as_bytes();
    let mut start = 0;
    for (i, &b) in bytes.iter().enumerate() {
        let separator = b == 0xE2
            && bytes.get(i + 1) == Some(&0x80)
            && matches!(bytes.get(i + 2), Some(0xA8 | 0xA9));
        if b >= 0x20 && !matches!(b, b'"' | b'\\' | b'<' | b'>' | b'&') && !separator {
            continue;
        }
        if start < i {
            out.extend_from_slice(&bytes[start..i]);
        }
        start = i + 1;
        match b {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0C => out.extend_from_slice(b"\\f"),
            0xE2 => {
                out.extend_from_slice(if bytes[i + 2] == 0xA8 { b"\\u2028" } else { b"\\u2029" });
                start = i + 3;
            }
            _ => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(b >> 4)]);
                out.push(HEX[usize::from(b & 15)]);
            }
        }
    }
    out.extend_from_slice(&bytes[start..]);
}

impl Index<&str> for Value {
    type Output = Value;

    /// The member named `key`, or `null`.
    fn index(&self, key: &str) -> &Value {
        self.get(key).unwrap_or(&NULL)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.to_bytes()))
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => s.serialize_unit(),
            Self::Bool(b) => s.serialize_bool(*b),
            Self::Int(i) => s.serialize_i64(*i),
            Self::Float(f) => s.serialize_f64(*f),
            Self::Str(v) => s.serialize_str(v),
            Self::Array(items) => {
                let mut seq = s.serialize_seq(Some(items.len()))?;
                for item in items {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
            Self::Object(map) => {
                let mut out = s.serialize_map(Some(map.len()))?;
                for (k, v) in map.iter() {
                    out.serialize_entry(k, v)?;
                }
                out.end()
            }
        }
    }
}

impl From<serde_json::Value> for Value {
    fn from(v: serde_json::Value) -> Self {
        match v {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(b) => Self::Bool(b),
            serde_json::Value::Number(n) => match n.as_i64() {
                Some(i) => Self::Int(i),
                None => Self::Float(n.as_f64().unwrap_or(0.0)),
            },
            serde_json::Value::String(s) => Self::Str(s.into()),
            serde_json::Value::Array(a) => Self::Array(a.into_iter().map(Self::from).collect()),
            serde_json::Value::Object(m) => Self::Object(m.into_iter().collect()),
        }
    }
}

impl From<&Value> for serde_json::Value {
    fn from(v: &Value) -> Self {
        match v {
            Value::Null => Self::Null,
            Value::Bool(b) => Self::Bool(*b),
            Value::Int(i) => Self::from(*i),
            Value::Float(f) => Self::from(*f),
            Value::Str(s) => Self::from(s.as_str()),
            Value::Array(a) => Self::Array(a.iter().map(Self::from).collect()),
            Value::Object(m) => {
                Self::Object(m.iter().map(|(k, v)| (k.to_owned(), Self::from(v))).collect())
            }
        }
    }
}

macro_rules! from {
    ($($t:ty => |$v:ident| $e:expr;)*) => {$(
        impl From<$t> for Value {
            fn from($v: $t) -> Self { $e }
        }
    )*};
}
from! {
    bool => |v| Self::Bool(v);
    i64 => |v| Self::Int(v);
    i32 => |v| Self::Int(v.into());
    u32 => |v| Self::Int(v.into());
    u16 => |v| Self::Int(v.into());
    f64 => |v| Self::Float(v);
    &str => |v| Self::Str(v.into());
    String => |v| Self::Str(v.into());
    &String => |v| Self::Str(v.as_str().into());
    CompactString => |v| Self::Str(v);
    Map => |v| Self::Object(v);
    Vec<Value> => |v| Self::Array(v);
    Vec<String> => |v| Self::Array(v.into_iter().map(Self::from).collect());
    &[&str] => |v| Self::Array(v.iter().map(|s| Self::from(*s)).collect());
}

/// Builds a [`Value`] from JSON-like syntax; for tests, statuses and other cold paths.
#[macro_export]
macro_rules! json {
    ($($tokens:tt)+) => {
        $crate::object::Value::from($crate::object::serde_json_for_macro::json!($($tokens)+))
    };
}

#[doc(hidden)]
pub use serde_json as serde_json_for_macro;

/// Any tree, for tests of properties.
#[cfg(test)]
pub(crate) fn arbitrary() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (-1.0e9..1.0e9_f64)
            .prop_filter("whole floats read back as integers", |f| f.fract() != 0.0)
            .prop_map(Value::Float),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec(("[a-d]{1,2}", inner), 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_bytes_sort_and_escape() {
        let v = json!({"b": [1, 2.5, "<&>\n\u{2028}"], "a": null});
        let text = String::from_utf8(v.to_bytes()).unwrap();
        assert_eq!(text, r#"{"a":null,"b":[1,2.5,"\u003c\u0026\u003e\n\u2028"]}"#);
    }

    #[test]
    fn floats_look_like_go() {
        for (f, want) in [
            (1e21, "1e+21"),
            (0.1, "0.1"),
            (1e-7, "1e-7"),
            (100.0, "100"),
            (-2.5, "-2.5"),
            (-0.0, "0"),
        ] {
            assert_eq!(format_float(f), want);
        }
    }

    #[test]
    fn integers_print_in_full() {
        for i in [0, -1, 42, i64::MAX, i64::MIN] {
            assert_eq!(Value::Int(i).to_bytes(), i.to_string().into_bytes());
        }
    }

    #[test]
    fn paths_make_their_way() {
        let mut v = Value::Null;
        v.set_at(&["metadata", "labels", "a.b/c"], "x");
        assert_eq!(v.str_at(&["metadata", "labels", "a.b/c"]), Some("x"));
        assert_eq!(v["metadata"]["none"], Value::Null);
        assert!(v.remove_at(&["metadata", "labels", "a.b/c"]).is_some());
    }
}
