//! Completes objects: defaults of the schema, then those of the kind, then the canonical form.
//!
//! The canonical form is what a Go server would write back: optional values that are empty disappear unless absence
//! and emptiness differ (pointers), required ones are always there.

use crate::catalog::Resource;
use crate::object::{Map, Value};
use crate::schema::{Field, Shape, Type};

pub mod kinds;
pub mod pod;

/// Applies all defaults of `resource` and brings the object into canonical form.
pub fn apply(object: &mut Value, resource: &Resource) {
    if resource.custom {
        custom(object, &resource.schema);
        return;
    }
    if let Some(f) = resource.defaults {
        f(object);
    }
    complete(object, &resource.schema, Empties::Written);
}

/// An object of type `ty` with nothing set, as a server makes it before reading: without defaults.
pub fn zero(ty: &Type) -> Value {
    let mut v = Value::object();
    complete(&mut v, ty, Empties::Zero);
    v
}

/// Brings an object of type `ty` into canonical form, schema defaults included.
pub fn canonicalize(object: &mut Value, ty: &Type) {
    complete(object, ty, Empties::Default);
}

/// What becomes of values that are absent or empty.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Empties {
    /// Their zero value.
    Zero,
    /// Their default.
    Default,
    /// The same, but an empty list that somebody wrote where one is always shown stays until it is stored: its writer
    /// owns it.
    Written,
}

fn complete(object: &mut Value, ty: &Type, empties: Empties) {
    let Value::Object(map) = object else { return };
    // A type has many more fields than an object has members.
    map.retain(|key, v| {
        let Some(field) = ty.field(key) else { return true };
        walk(v, &field.shape, empties);
        let written = empties == Empties::Written && field.keep && v.as_array().is_some();
        let empty = (v.is_null() && !field.keep) || (!field.pointer && v.is_empty() && !written);
        !empty
    });
    let defaults = empties != Empties::Zero;
    let needed = |field: &&Field| field.keep || (defaults && !field.default.is_empty());
    for field in ty.fields.iter().filter(needed) {
        if !map.contains_key(&field.name) {
            settle_absent(map, field, empties);
        }
    }
}

/// A value that is absent or was empty becomes its default or its zero value.
fn settle_absent(map: &mut Map, field: &Field, empties: Empties) {
    if empties != Empties::Zero && !field.default.is_empty() {
        if let Ok(v) = crate::codec::json::parse(field.default.as_bytes()) {
            map.insert(field.name.as_ref(), v);
        }
        return;
    }
    let zero = match &field.shape {
        Shape::Object(ty) if !field.pointer => {
            let mut v = Value::object();
            complete(&mut v, ty, empties);
            v
        }
        Shape::String => Value::from(""),
        Shape::Bool => Value::Bool(false),
        Shape::Int32 | Shape::Int64 | Shape::IntOrString | Shape::Float | Shape::Number => {
            Value::Int(0)
        }
        Shape::Quantity => Value::from("0"),
        _ => Value::Null,
    };
    map.insert(field.name.as_ref(), zero);
}

fn walk(value: &mut Value, shape: &Shape, empties: Empties) {
    match (shape, value) {
        (Shape::Object(ty), v @ Value::Object(_)) => complete(v, ty, empties),
        (Shape::List(item), Value::Array(items)) if is_deep(&item.shape) => {
            items.iter_mut().for_each(|v| walk(v, &item.shape, empties));
        }
        (Shape::Map(item), Value::Object(map)) if is_deep(&item.shape) => {
            map.iter_mut().for_each(|(_, v)| walk(v, &item.shape, empties));
        }
        _ => {}
    }
}

fn is_deep(shape: &Shape) -> bool {
    matches!(shape, Shape::Object(_) | Shape::List(_) | Shape::Map(_))
}

/// Defaults of a custom schema: for absent members, and for `null` where that is no value.
fn custom(object: &mut Value, ty: &Type) {
    let Value::Object(map) = object else { return };
    for field in ty.fields.iter() {
        if field.name == "metadata" {
            if let (Some(v), Shape::Object(ty)) = (map.get_mut("metadata"), &field.shape) {
                canonicalize(v, ty);
            }
            continue;
        }
        let absent = match map.get(&field.name) {
            None => true,
            Some(v) => v.is_null() && !field.nullable,
        };
        if absent
            && !field.default.is_empty()
            && let Ok(v) = crate::codec::json::parse(field.default.as_bytes())
        {
            map.insert(field.name.as_ref(), v);
        }
        if let Some(v) = map.get_mut(&field.name) {
            custom_walk(v, &field.shape);
        }
    }
}

fn custom_walk(value: &mut Value, shape: &Shape) {
    match (shape, value) {
        (Shape::Object(ty), v @ Value::Object(_)) => custom(v, ty),
        (Shape::List(item), Value::Array(items)) => {
            items.iter_mut().for_each(|v| custom_walk(v, &item.shape));
        }
        (Shape::Map(item), Value::Object(map)) => {
            map.iter_mut().for_each(|(_, v)| custom_walk(v, &item.shape));
        }
        _ => {}
    }
}
