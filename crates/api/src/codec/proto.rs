//! Protobuf both ways, driven by field numbers of the schema, in the `k8s\0` envelope.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use compact_str::CompactString;

use crate::error::{ApiError, Result};
use crate::object::{Map, Value};
use crate::schema::{Field, Shape, Type};
use crate::time::{self, Timestamp};

/// The four bytes before the envelope.
pub const MAGIC: &[u8; 4] = b"k8s\0";
/// Messages nested deeper are refused.
const DEPTH_MAX: usize = 64;

/// What the envelope says about the object inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// `apiVersion` of the object.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its bytes.
    pub raw: &'a [u8],
}

fn broken(what: &str) -> ApiError {
    ApiError::BadRequest(format!("proto: {what}"))
}

/// Opens the envelope.
pub fn open(bytes: &[u8]) -> Result<Envelope<'_>> {
    let body = bytes.strip_prefix(MAGIC).ok_or_else(|| {
        broken("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    })?;
    let mut out = Envelope::default();
    for part in Parts(body) {
        match part? {
            (1, Wire::Bytes(meta)) => {
                for part in Parts(meta) {
                    match part? {
                        (1, Wire::Bytes(b)) => out.api_version = utf8(b)?.to_owned(),
                        (2, Wire::Bytes(b)) => out.kind = utf8(b)?.to_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(raw)) => out.raw = raw,
            _ => {}
        }
    }
    Ok(out)
}

/// Encodes an object of type `ty` with its envelope.
pub fn encode(value: &Value, ty: &Type) -> Vec<u8> {
    let mut meta = Vec::new();
    put_bytes(1, value["apiVersion"].text().as_bytes(), &mut meta);
    put_bytes(2, value["kind"].text().as_bytes(), &mut meta);
    let raw = message(value, ty);
    let mut out = Vec::with_capacity(raw.len() + meta.len() + 16);
    out.extend_from_slice(MAGIC);
    put_bytes(1, &meta, &mut out);
    put_bytes(2, &raw, &mut out);
    put_bytes(3, b"", &mut out);
    put_bytes(4, b"", &mut out);
    out
}

/// Encodes an object of type `ty` without envelope.
pub fn message(value: &Value, ty: &Type) -> Vec<u8> {
    let mut out = Vec::new();
    let Some(map) = value.as_object() else { return out };
    let present = |f: &&Field| f.numbers.first().is_some_and(|n| *n > 0);
    let mut fields: Vec<(&[u32], &Field, &Value)> = Vec::with_capacity(map.len());
    for f in ty.fields.iter().filter(present) {
        if let Some(v) = map.get(&f.name).filter(|v| !v.is_null()) {
            fields.push((&f.numbers, f, v));
        }
    }
    fields.sort_by(|a, b| a.0.cmp(b.0));
    put_fields(&fields, &mut out);
    out
}

/// Writes fields in number order; those that are nested in protobuf only are gathered in their message.
fn put_fields(fields: &[(&[u32], &Field, &Value)], out: &mut Vec<u8>) {
    let mut rest = fields;
    while let Some((path, field, value)) = rest.first() {
        let Some((&number, deeper)) = path.split_first() else { return };
        if deeper.is_empty() {
            put(number, value, &field.shape, out);
            rest = &rest[1..];
            continue;
        }
        let same = rest.iter().take_while(|(p, ..)| p.first() == Some(&number)).count();
        let inner: Vec<(&[u32], &Field, &Value)> =
            rest[..same].iter().map(|(p, f, v)| (&p[1..], *f, *v)).collect();
        let mut body = Vec::new();
        put_fields(&inner, &mut body);
        put_bytes(number, &body, out);
        rest = &rest[same..];
    }
}

fn put_varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push((n as u8) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn put_int(number: u32, n: i64, out: &mut Vec<u8>) {
    put_varint(u64::from(number) << 3, out);
    put_varint(n.cast_unsigned(), out);
}

fn put_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(u64::from(number) << 3 | 2, out);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put(number: u32, v: &Value, shape: &Shape, out: &mut Vec<u8>) {
    match shape {
        Shape::String => put_bytes(number, v.text().as_bytes(), out),
        Shape::Bool => put_int(number, i64::from(v.as_bool() == Some(true)), out),
        Shape::Int32 | Shape::Int64 => put_int(number, v.as_int().unwrap_or(0), out),
        Shape::Float | Shape::Number => {
            put_varint(u64::from(number) << 3 | 1, out);
            out.extend_from_slice(&v.as_float().unwrap_or(0.0).to_le_bytes());
        }
        Shape::Bytes => put_bytes(number, &STANDARD.decode(v.text()).unwrap_or_default(), out),
        Shape::List(item) => {
            v.items().iter().for_each(|i| put(number, i, &item.shape, out));
        }
        Shape::Map(item) => {
            for (key, value) in v.members() {
                let mut entry = Vec::new();
                put_bytes(1, key.as_bytes(), &mut entry);
                if let Shape::List(inner) = &item.shape {
                    let mut list = Vec::new();
                    value.items().iter().for_each(|i| put(1, i, &inner.shape, &mut list));
                    put_bytes(2, &list, &mut entry);
                } else {
                    put(2, value, &item.shape, &mut entry);
                }
                put_bytes(number, &entry, out);
            }
        }
        _ => put_bytes(number, &wrapped(v, shape), out),
    }
}

/// The body of a value that is a message in protobuf.
fn wrapped(v: &Value, shape: &Shape) -> Vec<u8> {
    let mut out = Vec::new();
    match shape {
        Shape::Object(ty) => return message(v, ty),
        Shape::Time | Shape::MicroTime => {
            if let Some(t) = time::parse(v.text()) {
                put_int(1, t.as_second(), &mut out);
                put_int(2, i64::from(t.subsec_nanosecond()), &mut out);
            }
        }
        Shape::Duration => {
            let seconds = v.text().strip_suffix('s').and_then(|text| text.parse::<f64>().ok());
            put_int(1, (seconds.unwrap_or(0.0) * 1e9) as i64, &mut out);
        }
        Shape::Quantity => put_bytes(1, v.text().as_bytes(), &mut out),
        Shape::IntOrString => match v.as_int() {
            Some(n) => {
                put_int(1, 0, &mut out);
                put_int(2, n, &mut out);
                put_bytes(3, b"", &mut out);
            }
            None => {
                put_int(1, 1, &mut out);
                put_int(2, 0, &mut out);
                put_bytes(3, v.text().as_bytes(), &mut out);
            }
        },
        _ => put_bytes(1, &v.to_bytes(), &mut out),
    }
    out
}

#[derive(Clone, Copy)]
enum Wire<'a> {
    Int(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, one after the other.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut n = 0_u64;
        for i in 0..10 {
            let (&b, rest) = self.0.split_first().ok_or_else(|| broken("unexpected EOF"))?;
            self.0 = rest;
            n |= u64::from(b & 0x7F) << (7 * i);
            if b < 0x80 {
                return Ok(n);
            }
        }
        Err(broken("integer overflow"))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n).ok_or_else(|| broken("unexpected EOF"))?;
        self.0 = rest;
        Ok(head)
    }

    fn fixed(&mut self, n: usize) -> Result<u64> {
        let mut bytes = [0_u8; 8];
        bytes[..n].copy_from_slice(self.take(n)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn part(&mut self) -> Result<(u32, Wire<'a>)> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| broken("illegal tag"))?;
        if number == 0 {
            return Err(broken("illegal tag 0"));
        }
        let wire = match tag & 7 {
            0 => Wire::Int(self.varint()?),
            1 => Wire::Fixed(self.fixed(8)?),
            2 => {
                let n = usize::try_from(self.varint()?).map_err(|_| broken("invalid length"))?;
                Wire::Bytes(self.take(n)?)
            }
            5 => Wire::Fixed(self.fixed(4)?),
            other => return Err(broken(&format!("illegal wireType {other}"))),
        };
        Ok((number, wire))
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(u32, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = self.part();
        if part.is_err() {
            self.0 = &[];
        }
        Some(part)
    }
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| broken("invalid UTF-8 in string field"))
}

/// Decodes a message of type `ty` (without envelope).
pub fn decode(raw: &[u8], ty: &Type) -> Result<Value> {
    let mut out = Map::new();
    decode_into(raw, ty, &mut Vec::new(), &mut out, 0)?;
    Ok(Value::Object(out))
}

/// Reads the part of a message of type `ty` that stands below `prefix`.
fn decode_into(
    raw: &[u8],
    ty: &Type,
    prefix: &mut Vec<u32>,
    out: &mut Map,
    depth: usize,
) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(broken("message is nested too deep"));
    }
    let at = prefix.len();
    for part in Parts(raw) {
        let (number, wire) = part?;
        let below = |f: &&Field| {
            f.numbers.len() > at && f.numbers[..at] == prefix[..] && f.numbers[at] == number
        };
        let Some(field) = ty.fields.iter().find(below) else { continue };
        if field.numbers.len() > at + 1 {
            let Wire::Bytes(inner) = wire else { return Err(broken("wrong wireType")) };
            prefix.push(number);
            decode_into(inner, ty, prefix, out, depth + 1)?;
            prefix.pop();
            continue;
        }
        store(out, field, wire, depth)?;
    }
    Ok(())
}

fn store(out: &mut Map, field: &Field, wire: Wire<'_>, depth: usize) -> Result<()> {
    match &field.shape {
        Shape::List(item) => {
            let list = out.entry(&field.name);
            if list.is_null() {
                *list = Value::Array(Vec::new());
            }
            let Value::Array(list) = list else { return Ok(()) };
            let scalar = matches!(item.shape, Shape::Int32 | Shape::Int64 | Shape::Bool);
            if let (true, Wire::Bytes(packed)) = (scalar, wire) {
                let mut parts = Parts(packed);
                while !parts.0.is_empty() {
                    let n = parts.varint()?;
                    list.push(value(Wire::Int(n), &item.shape, depth)?);
                }
            } else {
                list.push(value(wire, &item.shape, depth)?);
            }
        }
        Shape::Map(item) => {
            let Wire::Bytes(entry) = wire else { return Err(broken("wrong wireType")) };
            let (mut key, mut v) = (CompactString::default(), None);
            for part in Parts(entry) {
                match part? {
                    (1, Wire::Bytes(b)) => key = utf8(b)?.into(),
                    (2, w) => v = Some(map_value(w, item, depth)?),
                    _ => {}
                }
            }
            let v = match v {
                Some(v) => v,
                None => map_value(Wire::Bytes(&[]), item, depth)?,
            };
            out.entry(&field.name).make_object().insert(key, v);
        }
        shape => {
            let v = value(wire, shape, depth)?;
            if !v.is_null() {
                out.insert(field.name.as_ref(), v);
            }
        }
    }
    Ok(())
}

fn map_value(wire: Wire<'_>, item: &Field, depth: usize) -> Result<Value> {
    let Shape::List(inner) = &item.shape else { return value(wire, &item.shape, depth) };
    let Wire::Bytes(body) = wire else { return Err(broken("wrong wireType")) };
    let mut list = Vec::new();
    for part in Parts(body) {
        if let (1, w) = part? {
            list.push(value(w, &inner.shape, depth)?);
        }
    }
    Ok(Value::Array(list))
}

fn value(wire: Wire<'_>, shape: &Shape, depth: usize) -> Result<Value> {
    let wrong = || broken("wrong wireType");
    Ok(match (shape, wire) {
        (Shape::Bool, Wire::Int(n)) => Value::Bool(n != 0),
        (Shape::Int32, Wire::Int(n)) => Value::Int(i64::from(n.cast_signed() as i32)),
        (Shape::Int64, Wire::Int(n)) => Value::Int(n.cast_signed()),
        (Shape::Float | Shape::Number, Wire::Fixed(n)) => Value::Float(f64::from_bits(n)),
        (Shape::String, Wire::Bytes(b)) => Value::from(utf8(b)?),
        (Shape::Bytes, Wire::Bytes(b)) => Value::from(STANDARD.encode(b)),
        (Shape::Object(ty), Wire::Bytes(b)) => {
            let mut map = Map::new();
            decode_into(b, ty, &mut Vec::new(), &mut map, depth + 1)?;
            Value::Object(map)
        }
        (Shape::Time | Shape::MicroTime, Wire::Bytes(b)) => timestamp(b, shape)?,
        (Shape::Duration, Wire::Bytes(b)) => duration(b)?,
        (Shape::Quantity, Wire::Bytes(b)) => {
            let text = inner_text(b, 1)?;
            Value::from(crate::quantity::canonical(&text).unwrap_or_else(|| "0".to_owned()))
        }
        (Shape::IntOrString, Wire::Bytes(b)) => int_or_string(b)?,
        (Shape::RawObject | Shape::Json, Wire::Bytes(b)) => {
            let text = inner_text(b, 1)?;
            if text.is_empty() { Value::Null } else { super::json::parse(text.as_bytes())? }
        }
        _ => return Err(wrong()),
    })
}

fn inner_text(message: &[u8], wanted: u32) -> Result<String> {
    for part in Parts(message) {
        if let (n, Wire::Bytes(b)) = part?
            && n == wanted
        {
            return Ok(utf8(b)?.to_owned());
        }
    }
    Ok(String::new())
}

fn duration(message: &[u8]) -> Result<Value> {
    let mut nanos = 0_i64;
    for part in Parts(message) {
        if let (1, Wire::Int(n)) = part? {
            nanos = n.cast_signed();
        }
    }
    Ok(Value::from(format!("{}s", nanos as f64 / 1e9)))
}

fn timestamp(message: &[u8], shape: &Shape) -> Result<Value> {
    let (mut seconds, mut nanos) = (0_i64, 0_i32);
    if message.is_empty() {
        return Ok(Value::Null);
    }
    for part in Parts(message) {
        match part? {
            (1, Wire::Int(n)) => seconds = n.cast_signed(),
            (2, Wire::Int(n)) => nanos = n.cast_signed() as i32,
            _ => {}
        }
    }
    let t = Timestamp::new(seconds, nanos).map_err(|_| broken("time out of range"))?;
    let text = if matches!(shape, Shape::Time) { time::format(t) } else { time::format_micro(t) };
    Ok(Value::from(text))
}

fn int_or_string(message: &[u8]) -> Result<Value> {
    let (mut is_text, mut number, mut text) = (false, 0_i64, String::new());
    for part in Parts(message) {
        match part? {
            (1, Wire::Int(n)) => is_text = n == 1,
            (2, Wire::Int(n)) => number = i64::from(n.cast_signed() as i32),
            (3, Wire::Bytes(b)) => text = utf8(b)?.to_owned(),
            _ => {}
        }
    }
    Ok(if is_text { Value::from(text) } else { Value::Int(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{json, schema};
    use proptest::prelude::*;

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "labels": {"a": "b"}, "creationTimestamp": "2024-01-02T03:04:05Z",
                "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}]},
            "spec": {
                "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"cpu": "500m"}},
                    "livenessProbe": {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 3}}],
                "volumes": [{"name": "v", "configMap": {"name": "x", "defaultMode": 420}}],
                "ephemeralContainers": [{"name": "e", "targetContainerName": "c"}],
                "tolerations": [{"tolerationSeconds": -5}], "hostNetwork": true,
            },
        })
    }

    #[test]
    fn pods_survive_the_journey() {
        let ty = schema::find("io.k8s.api.core.v1.Pod").unwrap();
        let bytes = encode(&pod(), ty);
        let envelope = open(&bytes).unwrap();
        assert_eq!((envelope.api_version.as_str(), envelope.kind.as_str()), ("v1", "Pod"));
        let mut got = decode(envelope.raw, ty).unwrap();
        got.set("apiVersion", "v1");
        got.set("kind", "Pod");
        assert_eq!(got, pod());
    }

    /// A value of a shape with something in every field below it, as deep as that goes without repeating itself.
    fn whole(shape: &Shape, depth: usize) -> Option<Value> {
        Some(match shape {
            Shape::String => Value::from("text"),
            Shape::Bool => Value::Bool(true),
            Shape::Int32 => Value::Int(-7),
            Shape::Int64 => Value::Int(1 << 40),
            Shape::Float | Shape::Number => Value::Float(0.5),
            Shape::Bytes => Value::from("AAEC/w=="),
            Shape::Time => Value::from("2024-01-02T03:04:05Z"),
            Shape::MicroTime => Value::from("2024-01-02T03:04:05.678900Z"),
            Shape::Duration => Value::from("1.5s"),
            Shape::Quantity => Value::from("1500m"),
            Shape::IntOrString => Value::from("25%"),
            Shape::RawObject => json!({"apiVersion": "a/v1", "kind": "K", "x": {"y": [1, "z"]}}),
            Shape::Json => json!({"any": ["thing", 1, true]}),
            Shape::Object(ty) => return (depth > 0).then(|| whole_type(ty, depth - 1)),
            Shape::List(item) => Value::Array(vec![whole(&item.shape, depth)?]),
            Shape::Map(item) => {
                let mut map = Value::object();
                map.set("key", whole(&item.shape, depth)?);
                map
            }
        })
    }

    fn whole_type(ty: &schema::Type, depth: usize) -> Value {
        let mut v = Value::object();
        for field in ty.fields.iter().filter(|f| f.numbers.iter().any(|n| *n != 0)) {
            if let Some(inner) = whole(&field.shape, depth) {
                v.set(&field.name, inner);
            }
        }
        v
    }

    #[test]
    fn every_kind_survives_with_all_its_fields() {
        let catalog = crate::catalog::Catalog::builtin().with_metrics();
        assert!(catalog.all().len() > 60);
        for row in catalog.all() {
            let mut object = whole_type(&row.schema, 9);
            object.set("apiVersion", row.api_version());
            object.set("kind", row.kind.as_ref());
            let bytes = encode(&object, &row.schema);
            let envelope = open(&bytes).unwrap();
            assert_eq!(envelope.kind, row.kind);
            let mut got = decode(envelope.raw, &row.schema).unwrap();
            got.set("apiVersion", row.api_version());
            got.set("kind", row.kind.as_ref());
            let differs = crate::rules::difference(&object, &got);
            assert!(got == object, "{} {differs:.2000}", row.kind);
        }
    }

    #[test]
    fn numbers_are_those_of_the_wire() {
        let ty = schema::find("io.k8s.api.core.v1.ConfigMap").unwrap();
        let v = json!({"data": {"a": "b"}, "metadata": {"name": "n"}});
        assert_eq!(
            message(&v, ty),
            [0x0A, 3, 0x0A, 1, b'n', 0x12, 6, 0x0A, 1, b'a', 0x12, 1, b'b']
        );
    }

    #[test]
    fn what_is_left_out_of_a_map_is_zero() {
        let ty = schema::find("io.k8s.api.core.v1.PersistentVolumeSpec").unwrap();
        let v = decode(&[0x0A, 3, 0x0A, 1, b'a'], ty).unwrap();
        assert_eq!(v, json!({"capacity": {"a": "0"}}));
        assert_eq!(decode(&message(&v, ty), ty).unwrap(), v);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let ty = schema::find("io.k8s.api.core.v1.Pod").unwrap();
            let _ = decode(&bytes, ty);
            let _ = open(&bytes);
        }
    }
}
