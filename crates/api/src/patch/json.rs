//! JSON patch (RFC 6902), with the leniency servers have: `replace` may add a member.

use crate::error::{ApiError, Result};
use crate::object::Value;

/// The most operations one patch may have.
pub const OPERATIONS_MAX: usize = 10_000;

/// What a client hears when the patch doesn't fit.
const REJECTED: &str = "the server rejected our request due to an error in our request";

fn rejected() -> ApiError {
    ApiError::Unprocessable(REJECTED.to_owned())
}

/// Applies the operations of `patch` to `target`.
pub fn apply(mut target: Value, patch: &Value) -> Result<Value> {
    let Some(operations) = patch.as_array() else {
        let got = match patch {
            Value::Object(_) => "object",
            Value::Str(_) => "string",
            Value::Bool(_) => "bool",
            _ => "number",
        };
        return Err(ApiError::BadRequest(format!(
            "error decoding patch: json: cannot unmarshal {got} into Go value of type jsonpatch.Patch"
        )));
    };
    if operations.len() > OPERATIONS_MAX {
        return Err(ApiError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.len()
        )));
    }
    for op in operations {
        step(&mut target, op)?;
    }
    Ok(target)
}

fn step(target: &mut Value, op: &Value) -> Result<()> {
    let path = pointer(&op["path"])?;
    match op["op"].text() {
        "add" => add(target, &path, op.get("value").cloned().ok_or_else(rejected)?),
        "remove" => remove(target, &path).map(drop),
        "replace" => replace(target, &path, op.get("value").cloned().ok_or_else(rejected)?),
        "move" => {
            let from = pointer(&op["from"])?;
            if path.len() > from.len() && path.starts_with(&from) {
                return Err(rejected());
            }
            let v = remove(target, &from)?;
            add(target, &path, v)
        }
        "copy" => {
            let v = find(target, &pointer(&op["from"])?).cloned().ok_or_else(rejected)?;
            add(target, &path, v)
        }
        "test" => {
            let got = find(target, &path).unwrap_or(&Value::Null);
            if *got == op["value"] { Ok(()) } else { Err(rejected()) }
        }
        _ => Err(rejected()),
    }
}

fn pointer(v: &Value) -> Result<Vec<String>> {
    let text = v.as_str().ok_or_else(rejected)?;
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let rest = text.strip_prefix('/').ok_or_else(rejected)?;
    Ok(rest.split('/').map(|p| p.replace("~1", "/").replace("~0", "~")).collect())
}

fn index(text: &str, len: usize) -> Option<usize> {
    let i: i64 = text.parse().ok()?;
    let i = if i < 0 { i64::try_from(len).ok()?.checked_add(i)? } else { i };
    usize::try_from(i).ok()
}

fn find<'a>(v: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(v, |v, p| match v {
        Value::Object(m) => m.get(p),
        Value::Array(a) => a.get(index(p, a.len())?),
        _ => None,
    })
}

fn parent<'a, 'p>(v: &'a mut Value, path: &'p [String]) -> Result<(&'a mut Value, &'p str)> {
    let (last, parents) = path.split_last().ok_or_else(rejected)?;
    let holder = parents.iter().try_fold(v, |v, p| match v {
        Value::Object(m) => m.get_mut(p),
        Value::Array(a) => {
            let i = index(p, a.len())?;
            a.get_mut(i)
        }
        _ => None,
    });
    Ok((holder.ok_or_else(rejected)?, last))
}

fn add(target: &mut Value, path: &[String], value: Value) -> Result<()> {
    if path.is_empty() {
        *target = value;
        return Ok(());
    }
    let (holder, last) = parent(target, path)?;
    match holder {
        Value::Object(m) => {
            m.insert(last, value);
        }
        Value::Array(a) => {
            let at = if last == "-" { Some(a.len()) } else { index(last, a.len() + 1) };
            let at = at.filter(|i| *i <= a.len()).ok_or_else(rejected)?;
            a.insert(at, value);
        }
        _ => return Err(rejected()),
    }
    Ok(())
}

fn remove(target: &mut Value, path: &[String]) -> Result<Value> {
    let (holder, last) = parent(target, path)?;
    let gone = match holder {
        Value::Object(m) => m.remove(last),
        Value::Array(a) => index(last, a.len()).filter(|i| *i < a.len()).map(|i| a.remove(i)),
        _ => None,
    };
    gone.ok_or_else(rejected)
}

fn replace(target: &mut Value, path: &[String], value: Value) -> Result<()> {
    if path.is_empty() {
        *target = value;
        return Ok(());
    }
    let (holder, last) = parent(target, path)?;
    match holder {
        Value::Object(m) => {
            m.insert(last, value);
            Ok(())
        }
        Value::Array(a) => {
            let i = index(last, a.len()).filter(|i| *i < a.len()).ok_or_else(rejected)?;
            a[i] = value;
            Ok(())
        }
        _ => Err(rejected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use proptest::prelude::*;

    #[test]
    fn operations() {
        let doc = json!({"a": {"x/y": 1}, "l": [1, 2]});
        for (patch, want) in [
            (
                json!([{"op": "add", "path": "/l/-", "value": 3}]),
                Some(json!({"a": {"x/y": 1}, "l": [1, 2, 3]})),
            ),
            (
                json!([{"op": "add", "path": "/l/0", "value": 0}]),
                Some(json!({"a": {"x/y": 1}, "l": [0, 1, 2]})),
            ),
            (json!([{"op": "remove", "path": "/a/x~1y"}]), Some(json!({"a": {}, "l": [1, 2]}))),
            (
                json!([{"op": "move", "from": "/l/0", "path": "/b"}]),
                Some(json!({"a": {"x/y": 1}, "b": 1, "l": [2]})),
            ),
            (json!([{"op": "test", "path": "/l/1", "value": 2}]), Some(doc.clone())),
            (
                json!([{"op": "replace", "path": "/new", "value": 2}]),
                Some(json!({"a": {"x/y": 1}, "l": [1, 2], "new": 2})),
            ),
            (json!([{"op": "remove", "path": "/l/9"}]), None),
            (json!([{"op": "test", "path": "/l/1", "value": 3}]), None),
            (json!([{"op": "add", "path": "/no/x/y", "value": 3}]), None),
            (json!([{"op": "frob", "path": "/a"}]), None),
            (json!({"op": "add"}), None),
        ] {
            assert_eq!(apply(doc.clone(), &patch).ok(), want, "{patch}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(doc in crate::object::arbitrary(), path in "(/[a-d0-9~-]{0,2}){0,3}", v in crate::object::arbitrary()) {
            for op in ["add", "remove", "replace", "test", "move", "copy"] {
                let patch = json!([{"op": op, "path": path, "from": "/a", "value": serde_json::Value::from(&v)}]);
                let _ = apply(doc.clone(), &patch);
            }
        }
    }
}
