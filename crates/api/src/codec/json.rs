//! Reads JSON, checking types against a schema while parsing.
//!
//! A wrong type ends the reading; an unknown or repeated field is pruned (the last one wins) and reported.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use compact_str::CompactString;

use super::{DEPTH_MAX, DecodeError, Decoded};
use crate::error::{ApiError, Result};
use crate::object::{Map, Value};
use crate::quantity::{self, Quantity};
use crate::schema::{Shape, Type};
use crate::time;

/// Parses JSON without a schema.
pub fn parse(bytes: &[u8]) -> Result<Value> {
    match parse_with(bytes, None) {
        Ok(d) => Ok(d.value),
        Err(e) => Err(ApiError::BadRequest(e.message())),
    }
}

/// Parses JSON without a schema, reporting repeated fields.
pub fn parse_strict(bytes: &[u8]) -> std::result::Result<Decoded, DecodeError> {
    parse_with(bytes, None)
}

/// Parses JSON of type `ty`: prunes unknown fields, refuses wrong types.
pub fn decode(bytes: &[u8], ty: &Type) -> std::result::Result<Decoded, DecodeError> {
    parse_with(bytes, Some(ty))
}

fn parse_with(bytes: &[u8], ty: Option<&Type>) -> std::result::Result<Decoded, DecodeError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| DecodeError::Syntax("invalid UTF-8 in body".to_owned()))?;
    let (strict, path, members) = (Vec::new(), Vec::new(), Vec::new());
    let mut p = Parser { text, at: 0, depth: 0, strict, path, members };
    p.space();
    let value = match ty {
        Some(ty) => p.typed_object(ty)?,
        None => p.any()?,
    };
    p.space();
    if p.at < bytes.len() {
        return Err(p.unexpected("after top-level value"));
    }
    Ok(Decoded { value, strict: p.strict.into_iter().map(Complaint::render).collect() })
}

/// Checks an already parsed tree against `ty`, as `decode` does, for patched objects.
pub fn conform(value: Value, ty: &Type) -> std::result::Result<Decoded, DecodeError> {
    let mut c = Conformer { strict: Vec::new(), path: Vec::new() };
    let value = c.object(value, ty)?;
    Ok(Decoded { value, strict: c.strict.into_iter().map(Complaint::render).collect() })
}

/// Something a strict reader objects to; its path grows from the inside out.
struct Complaint {
    duplicate: bool,
    path: String,
}

impl Complaint {
    fn render(self) -> String {
        let what = if self.duplicate { "duplicate" } else { "unknown" };
        format!("{what} field \"{}\"", self.path)
    }
}

/// Puts `head` before the paths of complaints made since there were `from`.
fn prefix(list: &mut [Complaint], from: usize, head: &str) {
    for c in &mut list[from..] {
        let dot = if c.path.starts_with('[') { "" } else { "." };
        c.path = format!("{head}{dot}{}", c.path);
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    strict: Vec<Complaint>,
    path: Vec<CompactString>,
    /// Members of all objects that are still open, the innermost last: how many there will be is not known before.
    members: Vec<(CompactString, Value)>,
}

/// Room for what defaults and the server add to an object.
const SPARE_MEMBERS: usize = 3;

type Parse<T> = std::result::Result<T, DecodeError>;

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn unexpected(&self, place: &str) -> DecodeError {
        DecodeError::Syntax(match self.text[self.at..].chars().next() {
            Some(c) => format!("invalid character '{c}' {place}"),
            None => "unexpected end of JSON input".to_owned(),
        })
    }

    fn enter(&mut self) -> Parse<()> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(DecodeError::Syntax("exceeded max depth".to_owned()));
        }
        self.at += 1;
        self.space();
        Ok(())
    }

    /// After a member or item: true if another follows.
    fn more(&mut self, close: u8, place: &str) -> Parse<bool> {
        self.space();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                self.space();
                Ok(true)
            }
            Some(b) if b == close => {
                self.at += 1;
                self.depth -= 1;
                Ok(false)
            }
            _ => Err(self.unexpected(place)),
        }
    }

    /// At the start of an object or array: true if it is empty.
    fn closed(&mut self, close: u8) -> bool {
        let closed = self.peek() == Some(close);
        if closed {
            self.at += 1;
            self.depth -= 1;
        }
        closed
    }

    fn key(&mut self) -> Parse<CompactString> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("looking for beginning of object key string"));
        }
        let key = self.string()?;
        self.space();
        if self.peek() != Some(b':') {
            return Err(self.unexpected("after object key"));
        }
        self.at += 1;
        self.space();
        Ok(key)
    }

    fn any(&mut self) -> Parse<Value> {
        match self.peek() {
            Some(b'{') => self.members(|p, key| {
                let (from, path_key) = (p.strict.len(), key.clone());
                let v = p.any()?;
                prefix(&mut p.strict, from, &path_key);
                Ok(Some(v))
            }),
            Some(b'[') => self.list(|p| p.any()),
            _ => self.scalar(),
        }
    }

    fn members(
        &mut self,
        mut member: impl FnMut(&mut Self, &CompactString) -> Parse<Option<Value>>,
    ) -> Parse<Value> {
        self.enter()?;
        if self.closed(b'}') {
            return Ok(Value::object());
        }
        let (first, mut sorted) = (self.members.len(), true);
        loop {
            let key = self.key()?;
            if let Some(value) = member(self, &key)? {
                let own = &self.members[first..];
                sorted = sorted && own.last().is_none_or(|(last, _)| *last < key);
                let repeated = (!sorted).then(|| own.iter().position(|(k, _)| *k == key)).flatten();
                if let Some(at) = repeated {
                    self.strict.push(Complaint { duplicate: true, path: key.to_string() });
                    self.members.remove(first + at);
                }
                self.members.push((key, value));
            }
            if !self.more(b'}', "after object key:value pair")? {
                let mut out = Vec::with_capacity(self.members.len() - first + SPARE_MEMBERS);
                out.extend(self.members.drain(first..));
                return Ok(Value::Object(Map::from_unsorted(out)));
            }
        }
    }

    fn list(&mut self, mut item: impl FnMut(&mut Self) -> Parse<Value>) -> Parse<Value> {
        self.enter()?;
        let mut out = Vec::new();
        if self.closed(b']') {
            return Ok(Value::Array(out));
        }
        loop {
            let from = self.strict.len();
            let v = item(self)?;
            if self.strict.len() > from {
                prefix(&mut self.strict, from, &format!("[{}]", out.len()));
            }
            out.push(v);
            if !self.more(b']', "after array element")? {
                return Ok(Value::Array(out));
            }
        }
    }

    fn typed_object(&mut self, ty: &Type) -> Parse<Value> {
        if self.peek() != Some(b'{') {
            let got = self.any()?;
            return mismatch(&got, ty.custom, &self.path, ty.short_name());
        }
        let free = ty.preserve_unknown;
        self.members(|p, key| {
            let from = p.strict.len();
            let value = match ty.field(key) {
                Some(field) => {
                    p.path.push(key.clone());
                    let v = p.shaped(&field.shape, ty.custom && !is_metadata(key))?;
                    p.path.pop();
                    (!v.is_null() || field.nullable || ty.custom).then_some(v)
                }
                None if free => Some(p.any()?),
                None => {
                    p.any()?;
                    p.strict.truncate(from);
                    p.strict.push(Complaint { duplicate: false, path: key.to_string() });
                    return Ok(None);
                }
            };
            prefix(&mut p.strict, from, key);
            Ok(value)
        })
    }

    fn shaped(&mut self, shape: &Shape, custom: bool) -> Parse<Value> {
        match (shape, self.peek()) {
            (Shape::Object(ty), Some(b'{')) => self.typed_object(ty),
            (Shape::List(item), Some(b'[')) => self.list(|p| {
                let v = p.shaped(&item.shape, custom)?;
                Ok(if v.is_null() && !custom { zero(&item.shape) } else { v })
            }),
            (Shape::Map(item), Some(b'{')) => self.members(|p, key| {
                let from = p.strict.len();
                p.path.push(key.clone());
                let v = p.shaped(&item.shape, custom)?;
                p.path.pop();
                prefix(&mut p.strict, from, key);
                Ok(Some(if v.is_null() && !custom { zero(&item.shape) } else { v }))
            }),
            _ => {
                let v = self.any()?;
                leaf(v, shape, custom, &self.path)
            }
        }
    }

    fn scalar(&mut self) -> Parse<Value> {
        match self.peek() {
            Some(b'"') => Ok(Value::Str(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                for (word, value) in [
                    ("true", Value::Bool(true)),
                    ("false", Value::Bool(false)),
                    ("null", Value::Null),
                ] {
                    if self.text[self.at..].starts_with(word) {
                        self.at += word.len();
                        return Ok(value);
                    }
                }
                Err(self.unexpected("looking for beginning of value"))
            }
        }
    }

    fn number(&mut self) -> Parse<Value> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let digits = |mut at: usize| {
            let from = at;
            while bytes.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
            (at, at > from)
        };
        let after_sign = start + usize::from(bytes[start] == b'-');
        let (mut at, some) = digits(after_sign);
        let mut ok = some && !(bytes[after_sign] == b'0' && at > after_sign + 1);
        let mut whole = true;
        if bytes.get(at) == Some(&b'.') {
            let (next, some) = digits(at + 1);
            (at, ok, whole) = (next, ok && some, false);
        }
        if matches!(bytes.get(at), Some(b'e' | b'E')) {
            let signed = matches!(bytes.get(at + 1), Some(b'+' | b'-'));
            let (next, some) = digits(at + 1 + usize::from(signed));
            (at, ok, whole) = (next, ok && some, false);
        }
        if !ok {
            self.at = at;
            return Err(self.unexpected("in numeric literal"));
        }
        self.at = at;
        let text = &self.text[start..at];
        if whole && let Ok(i) = text.parse::<i64>() {
            return Ok(Value::Int(i));
        }
        match text.parse::<f64>() {
            Ok(f) if f.is_finite() => Ok(Value::Float(f)),
            _ => Err(DecodeError::Type(format!(
                "json: cannot unmarshal number {text} into Go value of type float64"
            ))),
        }
    }

    fn string(&mut self) -> Parse<CompactString> {
        self.at += 1;
        let bytes = self.text.as_bytes();
        let start = self.at;
        while let Some(&b) = bytes.get(self.at) {
            match b {
                b'"' => {
                    let s = CompactString::new(&self.text[start..self.at]);
                    self.at += 1;
                    return Ok(s);
                }
                b'\\' => return self.escaped(start),
                0..0x20 => return Err(self.unexpected("in string literal")),
                _ => self.at += 1,
            }
        }
        Err(self.unexpected("in string literal"))
    }

    fn escaped(&mut self, start: usize) -> Parse<CompactString> {
        let mut out = String::from(&self.text[start..self.at]);
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out.into());
                }
                Some(b'\\') => {
                    self.at += 1;
                    let c = self.escape()?;
                    out.push(c);
                }
                Some(0x20..) => {
                    let from = self.at;
                    while matches!(self.peek(), Some(b) if b >= 0x20 && b != b'"' && b != b'\\') {
                        self.at += 1;
                    }
                    out.push_str(&self.text[from..self.at]);
                }
                _ => return Err(self.unexpected("in string literal")),
            }
        }
    }

    fn escape(&mut self) -> Parse<char> {
        let b = self.peek();
        let c = match b {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => return Err(self.unexpected("in string escape code")),
        };
        self.at += 1;
        Ok(c)
    }

    fn unicode(&mut self) -> Parse<char> {
        let first = self.hex4()?;
        if (0xD800..0xDC00).contains(&first) && self.text[self.at..].starts_with("\\u") {
            let back = self.at;
            self.at += 1;
            let second = self.hex4()?;
            if (0xDC00..0xE000).contains(&second) {
                let code = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                return Ok(char::from_u32(code).unwrap_or('\u{FFFD}'));
            }
            self.at = back;
        }
        Ok(char::from_u32(first).unwrap_or('\u{FFFD}'))
    }

    fn hex4(&mut self) -> Parse<u32> {
        self.at += 1;
        let digits = self.text.get(self.at..self.at + 4).unwrap_or("");
        if digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            self.at += 4;
            return Ok(u32::from_str_radix(digits, 16).unwrap_or(0));
        }
        Err(self.unexpected("in \\u hexadecimal character escape"))
    }
}

/// The same checks on a tree.
struct Conformer {
    strict: Vec<Complaint>,
    path: Vec<CompactString>,
}

impl Conformer {
    fn object(&mut self, value: Value, ty: &Type) -> Parse<Value> {
        let Value::Object(map) = value else {
            return mismatch(&value, ty.custom, &self.path, ty.short_name());
        };
        let mut out = Vec::with_capacity(map.len());
        for (key, v) in map {
            let Some(field) = ty.field(&key) else {
                if ty.preserve_unknown {
                    out.push((key, v));
                } else {
                    self.strict.push(Complaint { duplicate: false, path: key.into() });
                }
                continue;
            };
            let from = self.strict.len();
            self.path.push(key.clone());
            let v = self.shaped(v, &field.shape, ty.custom && !is_metadata(&key))?;
            self.path.pop();
            prefix(&mut self.strict, from, &key);
            if !v.is_null() || field.nullable || ty.custom {
                out.push((key, v));
            }
        }
        Ok(Value::Object(Map::from_unsorted(out)))
    }

    fn shaped(&mut self, value: Value, shape: &Shape, custom: bool) -> Parse<Value> {
        match (shape, value) {
            (Shape::Object(ty), v @ Value::Object(_)) => self.object(v, ty),
            (Shape::List(item), Value::Array(list)) => {
                let mut out = Vec::with_capacity(list.len());
                for (i, v) in list.into_iter().enumerate() {
                    let from = self.strict.len();
                    let v = self.shaped(v, &item.shape, custom)?;
                    if self.strict.len() > from {
                        prefix(&mut self.strict, from, &format!("[{i}]"));
                    }
                    out.push(if v.is_null() && !custom { zero(&item.shape) } else { v });
                }
                Ok(Value::Array(out))
            }
            (Shape::Map(item), Value::Object(map)) => {
                let mut out = Vec::with_capacity(map.len());
                for (key, v) in map {
                    let from = self.strict.len();
                    self.path.push(key.clone());
                    let v = self.shaped(v, &item.shape, custom)?;
                    self.path.pop();
                    prefix(&mut self.strict, from, &key);
                    let v = if v.is_null() && !custom { zero(&item.shape) } else { v };
                    out.push((key, v));
                }
                Ok(Value::Object(Map::from_unsorted(out)))
            }
            (_, v) => leaf(v, shape, custom, &self.path),
        }
    }
}

fn is_metadata(key: &str) -> bool {
    matches!(key, "metadata" | "apiVersion" | "kind")
}

/// What Go has where JSON says `null`.
fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::String | Shape::Bytes | Shape::Duration => Value::from(""),
        Shape::Bool => Value::Bool(false),
        Shape::Int32 | Shape::Int64 | Shape::IntOrString => Value::Int(0),
        Shape::Float | Shape::Number => Value::Float(0.0),
        Shape::Quantity => Value::from("0"),
        Shape::Object(_) | Shape::Map(_) => Value::object(),
        Shape::List(_) | Shape::Time | Shape::MicroTime | Shape::RawObject | Shape::Json => {
            Value::Null
        }
    }
}

/// Checks a value that is not walked further and brings it into canonical form.
fn leaf(value: Value, shape: &Shape, custom: bool, path: &[CompactString]) -> Parse<Value> {
    if value.is_null() || custom {
        return Ok(value);
    }
    let ok = match (shape, &value) {
        (Shape::Json, _)
        | (Shape::String | Shape::Duration, Value::Str(_))
        | (Shape::Bool, Value::Bool(_))
        | (Shape::Int64, Value::Int(_))
        | (Shape::Float | Shape::Number, Value::Int(_) | Value::Float(_))
        | (Shape::RawObject, Value::Object(_)) => return Ok(value),
        (Shape::IntOrString, Value::Str(_)) => return Ok(value),
        (Shape::Int32 | Shape::IntOrString, Value::Int(i)) => i32::try_from(*i).is_ok(),
        (Shape::Quantity, Value::Str(s)) => return quantity_text(s),
        (Shape::Quantity, Value::Int(_) | Value::Float(_)) => {
            return quantity_text(&value.to_string());
        }
        (Shape::Bytes, Value::Str(s)) => return base64_text(s),
        (Shape::Time, Value::Str(s)) => {
            return time_text(s, time::format, "2006-01-02T15:04:05Z07:00");
        }
        (Shape::MicroTime, Value::Str(s)) => {
            return time_text(s, time::format_micro, "2006-01-02T15:04:05.000000Z07:00");
        }
        _ => false,
    };
    if ok { Ok(value) } else { mismatch(&value, custom, path, go_type(shape)) }
}

fn go_type(shape: &Shape) -> &str {
    match shape {
        Shape::String => "string",
        Shape::Bool => "bool",
        Shape::Int32 => "int32",
        Shape::Int64 => "int64",
        Shape::Float | Shape::Number => "float64",
        Shape::Bytes => "[]uint8",
        Shape::Time => "v1.Time",
        Shape::MicroTime => "v1.MicroTime",
        Shape::Duration => "v1.Duration",
        Shape::Quantity => "resource.Quantity",
        Shape::IntOrString => "intstr.IntOrString",
        Shape::RawObject | Shape::Json => "map[string]interface {}",
        Shape::Object(ty) => ty.short_name(),
        Shape::List(item) if matches!(item.shape, Shape::String) => "[]string",
        Shape::List(_) => "[]interface {}",
        Shape::Map(_) => "map[string]string",
    }
}

fn mismatch(got: &Value, custom: bool, path: &[CompactString], want: &str) -> Parse<Value> {
    if custom {
        return Ok(got.clone());
    }
    let kind = match got {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Int(_) if !want.starts_with("int") => "number".to_owned(),
        Value::Int(_) | Value::Float(_) => format!("number {got}"),
        Value::Str(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    };
    let place = if path.is_empty() {
        "Go value".to_owned()
    } else {
        format!("Go struct field .{}", path.join("."))
    };
    Err(DecodeError::Mismatch { found: format!("{kind} into {place}"), wanted: want.to_owned() })
}

fn quantity_text(s: &str) -> Parse<Value> {
    // The common short forms are canonical already: digits without a leading zero or trailing zeros of three.
    match Quantity::parse(s) {
        Ok(q) => Ok(Value::from(q.to_string())),
        Err(_) => Err(DecodeError::Type(quantity::PARSE_ERROR.to_owned())),
    }
}

fn base64_text(s: &str) -> Parse<Value> {
    let clean: CompactString = s.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    match STANDARD.decode(clean.as_bytes()) {
        Ok(_) => Ok(Value::Str(clean)),
        Err(_) => {
            let alphabet = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
            let bad = clean.bytes().position(|b| !alphabet(b)).unwrap_or(clean.len() / 4 * 4);
            Err(DecodeError::Type(format!("illegal base64 data at input byte {bad}")))
        }
    }
}

fn time_text(s: &str, format: fn(time::Timestamp) -> String, layout: &str) -> Parse<Value> {
    match time::parse(s) {
        Some(t) => Ok(Value::from(format(t))),
        None => Err(DecodeError::Type(format!(
            "parsing time \"{s}\" as \"{layout}\": cannot parse \"{s}\" as \"2006\""
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use crate::schema;
    use proptest::prelude::*;

    fn read(ty: &str, text: &str) -> Parse<Decoded> {
        decode(text.as_bytes(), schema::find(ty).unwrap())
    }

    #[test]
    fn unknown_and_repeated_fields_are_reported_with_their_path() {
        let text = r#"{"foo":1,"metadata":{"bad":1,"name":"a","name":"b"},"spec":{"containers":[{"x":1}]}}"#;
        let d = read("io.k8s.api.core.v1.Pod", text).unwrap();
        let want = [
            "unknown field \"foo\"",
            "unknown field \"metadata.bad\"",
            "duplicate field \"metadata.name\"",
            "unknown field \"spec.containers[0].x\"",
        ];
        assert_eq!(d.strict, want);
        assert_eq!(d.value, json!({"metadata": {"name": "b"}, "spec": {"containers": [{}]}}));
    }

    #[test]
    fn wrong_types_are_refused() {
        let cm = "io.k8s.api.core.v1.ConfigMap";
        for (text, want) in [
            (
                r#"{"data":{"a":1}}"#,
                "json: cannot unmarshal number into Go struct field .data.a of type string",
            ),
            (
                r#"{"data":[]}"#,
                "json: cannot unmarshal array into Go struct field .data of type map[string]string",
            ),
            (r#"{"binaryData":{"a":"-"}}"#, "illegal base64 data at input byte 0"),
        ] {
            assert_eq!(read(cm, text).map_err(|e| e.message()), Err(want.to_owned()));
        }
    }

    #[test]
    fn leaves_become_canonical() {
        let text = r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":0.5,"memory":"1024Ki"}}}],"hostname":null}}"#;
        let d = read("io.k8s.api.core.v1.Pod", text).unwrap();
        let limits = &d.value["spec"]["containers"].items()[0]["resources"]["limits"];
        assert_eq!(*limits, json!({"cpu": "500m", "memory": "1Mi"}));
        assert!(!d.value["spec"].has("hostname"));
    }

    #[test]
    fn broken_text_is_refused() {
        for bad in ["", "{", "[1,]", "01", "1.", "\"\\x\"", "\"\u{1}\"", "{\"a\" 1}", "nul", "{} x"]
        {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,64}") {
            let _ = parse(text.as_bytes());
            let _ = read("io.k8s.api.core.v1.Pod", &text);
        }

        #[test]
        fn reads_what_it_writes(v in crate::object::arbitrary()) {
            prop_assert_eq!(parse(&v.to_bytes()).unwrap(), v);
        }
    }
}
