//! Reads and writes YAML by way of JSON trees. Only this file names the YAML parser.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::{DEPTH_MAX, DecodeError, Decoded, json};
use crate::error::{ApiError, Result};
use crate::object::{Map, Value};
use crate::schema::Type;

/// The most values one document may have, those behind aliases counted each time.
const NODES_MAX: usize = 1_000_000;

/// Parses one YAML document (JSON is YAML too); duplicate keys come back as strict complaints.
pub fn parse(bytes: &[u8]) -> Result<Decoded> {
    read(bytes).map_err(|e| ApiError::BadRequest(e.message()))
}

/// Parses one YAML document of type `ty`.
pub fn decode(bytes: &[u8], ty: &Type) -> std::result::Result<Decoded, DecodeError> {
    let raw = read(bytes)?;
    let mut typed = json::conform(raw.value, ty)?;
    typed.strict.splice(0..0, raw.strict);
    Ok(typed)
}

fn read(bytes: &[u8]) -> std::result::Result<Decoded, DecodeError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| DecodeError::Syntax("yaml: invalid UTF-8 in body".to_owned()))?;
    if text.trim_start().starts_with('{')
        && let Ok(d) = json::parse_strict(bytes)
    {
        return Ok(d);
    }
    let mut reader = Reader {
        events: Parser::new_from_str(text),
        anchors: BTreeMap::new(),
        nodes: 0,
        repeated: Vec::new(),
    };
    let value = reader.document()?;
    let mut strict = Vec::new();
    if !reader.repeated.is_empty() {
        strict.push(format!("yaml: unmarshal errors:\n{}", reader.repeated.join("\n")));
    }
    Ok(Decoded { value, strict })
}

struct Reader<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: BTreeMap<usize, (Value, usize)>,
    nodes: usize,
    repeated: Vec<String>,
}

type Read<T> = std::result::Result<T, DecodeError>;

fn syntax(text: impl std::fmt::Display) -> DecodeError {
    DecodeError::Syntax(format!("error converting YAML to JSON: yaml: {text}"))
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Read<(Event<'a>, Span)> {
        match self.events.next() {
            Some(Ok(e)) => Ok(e),
            Some(Err(e)) => Err(syntax(e)),
            None => Err(syntax("unexpected end of stream")),
        }
    }

    fn document(&mut self) -> Read<Value> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(Value::Null),
                (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing, _) => {}
                other => return self.node(other, 0),
            }
        }
    }

    fn count(&mut self, n: usize) -> Read<()> {
        self.nodes += n;
        if self.nodes > NODES_MAX {
            return Err(syntax("document contains excessive aliasing"));
        }
        Ok(())
    }

    fn node(&mut self, (event, _): (Event<'a>, Span), depth: usize) -> Read<Value> {
        if depth > DEPTH_MAX {
            return Err(syntax("exceeded max depth"));
        }
        let before = self.nodes;
        self.count(1)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tagged =
                    tag.as_ref().filter(|t| t.handle.contains("yaml.org") || t.handle == "!!");
                let suffix = tagged.map(|t| t.suffix.as_str());
                (scalar(&text, style, suffix), anchor)
            }
            Event::SequenceStart(anchor, _) => (self.sequence(depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.mapping(depth)?, anchor),
            Event::Alias(id) => {
                let (value, size) = self
                    .anchors
                    .get(&id)
                    .cloned()
                    .ok_or_else(|| syntax("unknown anchor referenced"))?;
                self.count(size)?;
                return Ok(value);
            }
            _ => return Err(syntax("unexpected content")),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, (value.clone(), self.nodes - before));
        }
        Ok(value)
    }

    fn sequence(&mut self, depth: usize) -> Read<Value> {
        let mut out = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::Array(out)),
                other => out.push(self.node(other, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Read<Value> {
        let mut out = Map::new();
        let mut merged: Vec<Value> = Vec::new();
        loop {
            let (key, line) = match self.next()? {
                (Event::MappingEnd, _) => break,
                (event, span) => {
                    let plain =
                        matches!(&event, Event::Scalar(t, ScalarStyle::Plain, ..) if t == "<<");
                    let key = self.node((event, span), depth + 1)?;
                    let line = span.start.line();
                    (if plain { None } else { Some(key_text(&key)?) }, line)
                }
            };
            let next = self.next()?;
            let value = self.node(next, depth + 1)?;
            match key {
                None => match value {
                    Value::Array(list) => merged.extend(list),
                    one => merged.push(one),
                },
                Some(key) => {
                    if out.contains_key(&key) {
                        self.repeated
                            .push(format!("  line {line}: key {key:?} already set in map"));
                    }
                    out.insert(key, value);
                }
            }
        }
        for m in merged {
            if let Value::Object(m) = m {
                for (k, v) in m {
                    if !out.contains_key(&k) {
                        out.insert(k, v);
                    }
                }
            }
        }
        Ok(Value::Object(out))
    }
}

fn key_text(key: &Value) -> Read<String> {
    match key {
        Value::Str(s) => Ok(s.to_string()),
        Value::Int(_) | Value::Float(_) | Value::Bool(_) => Ok(key.to_string()),
        Value::Null => Ok("null".to_owned()),
        _ => Err(syntax("unsupported map key of type object")),
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&str>) -> Value {
    if style != ScalarStyle::Plain || matches!(tag, Some("str" | "binary")) {
        return Value::from(text);
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    number(text).unwrap_or_else(|| Value::from(text))
}

fn number(text: &str) -> Option<Value> {
    let first = text.bytes().next()?;
    if !(first.is_ascii_digit() || matches!(first, b'+' | b'-' | b'.')) {
        return None;
    }
    let plain: String = text.chars().filter(|c| *c != '_').collect();
    let (negative, body) = match plain.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let radix = |digits: &str, radix| i64::from_str_radix(digits, radix).ok();
    let whole = if let Some(hex) = body.strip_prefix("0x") {
        radix(hex, 16)
    } else if let Some(octal) = body.strip_prefix("0o") {
        radix(octal, 8)
    } else if let Some(binary) = body.strip_prefix("0b") {
        radix(binary, 2)
    } else if body.len() > 1
        && body.starts_with('0')
        && body.bytes().all(|b| (b'0'..=b'7').contains(&b))
    {
        radix(body, 8)
    } else if body.bytes().all(|b| b.is_ascii_digit()) {
        body.parse().ok()
    } else {
        None
    };
    if let Some(n) = whole {
        return Some(Value::Int(if negative { -n } else { n }));
    }
    let float_like =
        body.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
            && body.bytes().any(|b| b.is_ascii_digit());
    if !float_like {
        return None;
    }
    plain.parse::<f64>().ok().filter(|f| f.is_finite()).map(Value::Float)
}

/// Writes a tree as YAML.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = String::new();
    match value {
        Value::Object(m) if !m.is_empty() => write_map(m, 0, &mut out),
        Value::Array(a) if !a.is_empty() => write_list(a, 0, &mut out),
        other => {
            write_scalar(other, 0, &mut out);
            out.push('\n');
        }
    }
    out.into_bytes()
}

fn write_map(map: &Map, indent: usize, out: &mut String) {
    for (i, (key, value)) in map.iter().enumerate() {
        if i > 0 {
            let _ = write!(out, "{:indent$}", "");
        }
        write_text(key, indent, out);
        out.push(':');
        write_member(value, indent, out);
    }
}

fn write_member(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(m) if !m.is_empty() => {
            let _ = write!(out, "\n{:width$}", "", width = indent + 2);
            write_map(m, indent + 2, out);
        }
        Value::Array(a) if !a.is_empty() => {
            let _ = write!(out, "\n{:indent$}", "");
            write_list(a, indent, out);
        }
        other => {
            out.push(' ');
            write_scalar(other, indent + 2, out);
            out.push('\n');
        }
    }
}

fn write_list(list: &[Value], indent: usize, out: &mut String) {
    for (i, item) in list.iter().enumerate() {
        if i > 0 {
            let _ = write!(out, "{:indent$}", "");
        }
        out.push_str("- ");
        match item {
            Value::Object(m) if !m.is_empty() => write_map(m, indent + 2, out),
            Value::Array(a) if !a.is_empty() => write_list(a, indent + 2, out),
            other => {
                write_scalar(other, indent + 2, out);
                out.push('\n');
            }
        }
    }
}

fn write_scalar(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Str(s) => write_text(s, indent, out),
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

/// Plain where it reads back as the same string, otherwise in JSON's quotes.
fn write_text(s: &str, _indent: usize, out: &mut String) {
    let plain_start = s
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'.'));
    let plain_rest = s.bytes().all(|b| {
        b.is_ascii_alphanumeric()
            || matches!(b, b'/' | b'_' | b'.' | b'-' | b' ' | b'+' | b'=' | b'(' | b')')
    });
    let same = matches!(scalar(s, ScalarStyle::Plain, None), Value::Str(_));
    let timelike = s.len() >= 10 && s.as_bytes()[4] == b'-' && s.as_bytes()[0].is_ascii_digit();
    if plain_start && plain_rest && same && !timelike && !s.ends_with(' ') {
        out.push_str(s);
    } else {
        let mut quoted = Vec::with_capacity(s.len() + 2);
        crate::object::write_string(s, &mut quoted);
        out.push_str(&String::from_utf8_lossy(&quoted));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use crate::schema;
    use proptest::prelude::*;

    #[test]
    fn reads_documents() {
        let text = "a: 1\nb: [x, 'y', true, 0644, 1.5, ~]\nc:\n  d: |\n    text\n  e: &x {f: g}\n  h: *x\n";
        let want = json!({"a": 1, "b": ["x", "y", true, 420, 1.5, null], "c": {"d": "text\n", "e": {"f": "g"}, "h": {"f": "g"}}});
        assert_eq!(parse(text.as_bytes()).unwrap().value, want);
    }

    #[test]
    fn repeated_keys_are_reported_with_their_line() {
        let ty = schema::find("io.k8s.api.core.v1.ConfigMap").unwrap();
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: i\ndata:\n  a: '1'\n  a: '2'\nzzz: 1\n";
        let d = decode(text.as_bytes(), ty).unwrap();
        let want = [
            "yaml: unmarshal errors:\n  line 7: key \"a\" already set in map",
            "unknown field \"zzz\"",
        ];
        assert_eq!(d.strict, want);
    }

    #[test]
    fn aliases_cannot_explode() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..12 {
            let p = i - 1;
            let _ = writeln!(
                text,
                "a{i}: &a{i} [*a{p},*a{p},*a{p},*a{p},*a{p},*a{p},*a{p},*a{p},*a{p},*a{p}]"
            );
        }
        assert!(parse(text.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "[a-c:\\-\\[\\]{}&*!#|>' \n\"]{0,40}") {
            let _ = parse(text.as_bytes());
        }

        #[test]
        fn reads_what_it_writes(v in crate::object::arbitrary()) {
            let text = encode(&v);
            let got = parse(&text);
            prop_assert!(got.is_ok(), "{}", String::from_utf8_lossy(&text));
            prop_assert_eq!(got.unwrap().value, v, "{}", String::from_utf8_lossy(&text));
        }
    }
}
