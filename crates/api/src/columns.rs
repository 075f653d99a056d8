//! Table columns and cells, as `kubectl get` shows them.
//!
//! A built-in row names its columns in one line of text and one function for its cells; a custom one has a JSONPath
//! per column.

use crate::catalog::Resource;
use crate::json;
use crate::jsonpath::Path;
use crate::meta;
use crate::object::{Map, Value};
use crate::schema::Str;
use crate::time::{self, Timestamp};

pub mod core;
pub mod groups;
pub mod workloads;

/// The cells of an object, one for each column.
pub type Cells = fn(&Value, Timestamp) -> Vec<Value>;

/// One column of a table.
#[derive(Clone, Debug)]
pub struct Column {
    /// Heading.
    pub name: Str,
    /// `string`, `integer`, `date`, …
    pub kind: Str,
    /// `name` for the name column.
    pub format: Str,
    /// What it means.
    pub description: Str,
    /// 0 is always shown, more only in wide output.
    pub priority: i64,
    /// Where a custom column finds its cell.
    pub path: Option<Path>,
}

/// Reads columns from their line: `Name, Ready, Desired:integer, IP*`, where `*` marks wide ones and `!` further names.
pub fn parse(line: &'static str) -> Vec<Column> {
    line.split(", ").filter(|c| !c.is_empty()).map(column).collect()
}

fn column(text: &'static str) -> Column {
    let (text, wide) = match text.strip_suffix('*') {
        Some(text) => (text, 1),
        None => (text, 0),
    };
    let (text, named) = match text.strip_suffix('!') {
        Some(text) => (text, true),
        None => (text, text == "Name"),
    };
    let (name, kind) = text.split_once(':').unwrap_or((text, "string"));
    Column {
        name: name.into(),
        kind: kind.into(),
        format: if named { "name".into() } else { "".into() },
        description: "".into(),
        priority: wide,
        path: None,
    }
}

/// Columns of kinds that have none of their own.
pub(crate) const PLAIN: &str = "Name, Created At:date";

/// Cells for `PLAIN`.
pub(crate) fn plain(v: &Value, _: Timestamp) -> Vec<Value> {
    vec![meta::name(v).into(), v["metadata"]["creationTimestamp"].clone()]
}

/// Definitions of the columns of `resource`, as `Table.columnDefinitions`.
pub fn definitions(resource: &Resource) -> Value {
    let one = |c: &Column| {
        let mut m = Map::with_capacity(5);
        m.insert("name", c.name.as_ref());
        m.insert("type", c.kind.as_ref());
        m.insert("format", c.format.as_ref());
        m.insert("description", c.description.as_ref());
        m.insert("priority", c.priority);
        Value::Object(m)
    };
    Value::Array(resource.columns.iter().map(one).collect())
}

/// The cells of one object.
pub fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    match resource.cells {
        Some(f) => f(object, now),
        None if resource.custom => {
            resource.columns.iter().map(|c| custom_cell(c, object, now)).collect()
        }
        None => plain(object, now),
    }
}

fn custom_cell(c: &Column, object: &Value, now: Timestamp) -> Value {
    let Some(path) = &c.path else {
        return Value::from(meta::name(object));
    };
    let found = path.find(object);
    let Some(first) = found.first() else { return Value::Null };
    match (c.kind.as_ref(), *first) {
        ("integer", Value::Int(_)) | ("number", Value::Int(_) | Value::Float(_)) => {
            (*first).clone()
        }
        ("integer", Value::Float(f)) => Value::Int(*f as i64),
        ("boolean", Value::Bool(_)) => (*first).clone(),
        ("integer" | "number" | "boolean", _) => Value::Null,
        ("date", Value::Str(s)) => match time::parse(s) {
            Some(_) => Value::from(time::age(Some(s), now)),
            None => Value::from("<invalid>"),
        },
        (_, Value::Str(s)) => Value::Str(s.clone()),
        (_, Value::Null) => Value::Null,
        (_, other) => Value::from(other.to_string()),
    }
}

/// A whole row: cells and the object as the client asked for it (`metadata`, `object` or `none`).
pub fn row(resource: &Resource, object: &Value, now: Timestamp, include: Include) -> Value {
    let mut row = Map::with_capacity(2);
    row.insert("cells", cells(resource, object, now));
    match include {
        Include::None => {}
        Include::Metadata => {
            row.insert("object", meta::partial(object));
        }
        Include::Object => {
            row.insert("object", object.clone());
        }
    }
    Value::Object(row)
}

/// How much of the object goes into a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata (the default).
    Metadata,
    /// All of it.
    Object,
}

/// A table without rows.
pub fn table(resource: &Resource, metadata: Value, rows: Vec<Value>, with_columns: bool) -> Value {
    let columns = if with_columns { definitions(resource) } else { Value::Array(Vec::new()) };
    let mut t = json!({"apiVersion": "meta.k8s.io/v1", "kind": "Table"});
    t.set("metadata", metadata);
    t.set("columnDefinitions", columns);
    t.set("rows", rows);
    t
}

/// Age by creation time.
fn age(v: &Value, now: Timestamp) -> Value {
    Value::from(time::age(meta::creation_timestamp(v), now))
}

/// The text, or `fallback` where there is none.
fn or(v: &Value, fallback: &str) -> Value {
    match v {
        Value::Str(s) if !s.is_empty() => v.clone(),
        Value::Int(_) | Value::Float(_) | Value::Bool(_) => Value::from(v.to_string()),
        _ => Value::from(fallback),
    }
}

/// A number, 0 where there is none.
fn int(v: &Value) -> Value {
    Value::Int(v.as_int().unwrap_or(0))
}

/// Names of containers and their images, joined by commas.
fn containers(spec: &Value) -> (Value, Value) {
    let join = |key: &str| {
        let parts: Vec<&str> = spec["containers"].items().iter().map(|c| c[key].text()).collect();
        Value::from(parts.join(","))
    };
    (join("name"), join("image"))
}

/// A label selector as people write it; `<none>` for an empty one.
fn selector(v: &Value) -> Value {
    if v.is_null() {
        return Value::from("<none>");
    }
    match crate::selector::LabelSelector::from_object(v) {
        Ok(s) if s.requirements.is_empty() => Value::from("<none>"),
        Ok(s) => Value::from(s.to_string()),
        Err(_) => Value::from("<error>"),
    }
}

/// A map of labels as `a=b,c=d`; `<none>` for an empty one.
fn label_map(v: &Value) -> Value {
    let parts: Vec<String> = v.members().map(|(k, v)| format!("{k}={}", v.text())).collect();
    if parts.is_empty() { Value::from("<none>") } else { Value::from(parts.join(",")) }
}
