//! Table columns and cells, as `kubectl get` shows them.

use crate::catalog::Resource;
use crate::object::Value;
use crate::schema::Str;
use crate::time::Timestamp;

/// What a cell function sees.
#[derive(Clone, Copy, Debug)]
pub struct CellContext {
    /// Now, for ages.
    pub now: Timestamp,
}

/// Where a column's cell comes from.
#[derive(Clone, Debug)]
pub enum Cell {
    /// A function of the object.
    Fn(fn(&Value, &CellContext) -> Value),
    /// A JSONPath (custom resources).
    Path(crate::jsonpath::Path),
}

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
    /// The cell.
    pub cell: Cell,
}

/// Definitions of the columns of `resource`, as `Table.columnDefinitions`.
pub fn definitions(resource: &Resource) -> Value {
    let _ = resource;
    Value::Array(Vec::new())
}

/// The cells of one object.
pub fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    let _ = (resource, object, now);
    Vec::new()
}
