//! Strategic merge patch: merge rules come from the schema, exceptions from `$` directives in the patch.

use std::fmt::Write as _;

use crate::error::{ApiError, Result};
use crate::object::{Map, Value};
use crate::schema::{Field, Shape, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Merges `patch` into `target` of type `ty`.
pub fn apply(target: Value, patch: &Value, ty: &Type) -> Result<Value> {
    let (Value::Object(target), Value::Object(patch)) = (target, patch) else {
        return Err(ApiError::bad_request(
            "json: cannot unmarshal array into Go value of type map[string]interface {}",
        ));
    };
    Ok(Value::Object(merge_map(target, patch, Rule::Struct(ty))?))
}

/// What is known of the object being merged.
#[derive(Clone, Copy)]
enum Rule<'a> {
    Struct(&'a Type),
    Map(&'a Field),
    Unknown,
}

impl<'a> Rule<'a> {
    fn field(self, name: &str) -> Option<&'a Field> {
        match self {
            Rule::Struct(ty) => ty.field(name),
            Rule::Map(item) => Some(item),
            Rule::Unknown => None,
        }
    }
}

fn rule_of(f: Option<&Field>) -> Rule<'_> {
    match f.map(|f| &f.shape) {
        Some(Shape::Object(ty)) => Rule::Struct(ty),
        Some(Shape::Map(item)) => Rule::Map(item),
        _ => Rule::Unknown,
    }
}

fn merge_map(mut target: Map, patch: &Map, rule: Rule<'_>) -> Result<Map> {
    match patch.get(DIRECTIVE).map(Value::text) {
        Some("replace") => {
            let mut out = patch.clone();
            out.remove(DIRECTIVE);
            return Ok(out);
        }
        Some("delete") => return Ok(Map::new()),
        None | Some("merge") => {}
        Some(other) => return Err(unknown_directive(other, patch)),
    }
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        let keys = keys.items();
        target.retain(|k, _| keys.iter().any(|key| key.text() == k));
    }
    for (key, value) in patch.iter() {
        if key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(ORDER) {
            continue;
        }
        if let Some(list) = key.strip_prefix(DELETE_PRIMITIVES) {
            if let Some(Value::Array(items)) = target.get_mut(list) {
                items.retain(|i| !value.items().contains(i));
            }
            continue;
        }
        if value.is_null() {
            target.remove(key);
            continue;
        }
        let field = rule.field(key);
        let order = patch.get(&format!("{ORDER}{key}"));
        let merged = merge_value(target.remove(key), value, field, order)?;
        if let Some(v) = merged {
            target.insert(key, v);
        }
    }
    reorder_untouched(&mut target, patch, rule)?;
    Ok(target)
}

/// `$setElementOrder` for lists that the patch doesn't otherwise touch.
fn reorder_untouched(target: &mut Map, patch: &Map, rule: Rule<'_>) -> Result<()> {
    for (key, order) in patch.iter() {
        let Some(list) = key.strip_prefix(ORDER) else { continue };
        if patch.contains_key(list) {
            continue;
        }
        let merge_key = rule.field(list).map(|f| f.merge_key.as_ref()).unwrap_or("");
        if let Some(Value::Array(items)) = target.get_mut(list) {
            let original = items.clone();
            sort_by_order(items, order.items(), &original, merge_key);
        }
    }
    Ok(())
}

fn merge_value(
    target: Option<Value>,
    patch: &Value,
    field: Option<&Field>,
    order: Option<&Value>,
) -> Result<Option<Value>> {
    match (target, patch) {
        (Some(Value::Object(t)), Value::Object(p)) => {
            if p.get(DIRECTIVE).is_some_and(|d| d.text() == "delete") && p.len() == 1 {
                return Ok(None);
            }
            Ok(Some(Value::Object(merge_map(t, p, rule_of(field))?)))
        }
        (Some(Value::Array(t)), Value::Array(p)) if field.is_some_and(|f| f.patch_merge) => {
            let key = field.map(|f| f.merge_key.as_ref()).unwrap_or("");
            let item = match field.map(|f| &f.shape) {
                Some(Shape::List(item)) => Some(&**item),
                _ => None,
            };
            Ok(Some(Value::Array(merge_list(t, p, key, item, order)?)))
        }
        (_, Value::Object(p)) => {
            if p.get(DIRECTIVE).is_some_and(|d| d.text() == "delete") {
                return Ok(None);
            }
            Ok(Some(Value::Object(merge_map(Map::new(), p, rule_of(field))?)))
        }
        (_, Value::Array(p)) => {
            let item = match field.map(|f| &f.shape) {
                Some(Shape::List(item)) => Some(&**item),
                _ => None,
            };
            Ok(Some(Value::Array(clean_list(p, item)?)))
        }
        (_, other) => Ok(Some(other.clone())),
    }
}

/// A list that has no counterpart: directives are carried out on nothing.
fn clean_list(patch: &[Value], item: Option<&Field>) -> Result<Vec<Value>> {
    let mut out = Vec::with_capacity(patch.len());
    for p in patch {
        match p {
            Value::Object(m) => {
                if m.get(DIRECTIVE).is_some_and(|d| matches!(d.text(), "delete" | "replace")) {
                    if m.len() > 1 && m.get(DIRECTIVE).is_some_and(|d| d.text() == "replace") {
                        let mut m = m.clone();
                        m.remove(DIRECTIVE);
                        out.push(Value::Object(m));
                    }
                    continue;
                }
                out.push(Value::Object(merge_map(Map::new(), m, rule_of(item))?));
            }
            other => out.push(other.clone()),
        }
    }
    Ok(out)
}

fn merge_list(
    target: Vec<Value>,
    patch: &[Value],
    merge_key: &str,
    item: Option<&Field>,
    order: Option<&Value>,
) -> Result<Vec<Value>> {
    if merge_key.is_empty() {
        return Ok(merge_primitives(target, patch, order));
    }
    check_order(patch, order, merge_key)?;
    let original = target.clone();
    let mut out = target;
    if patch.iter().any(|p| p.get(DIRECTIVE).is_some_and(|d| d.text() == "replace")) {
        let kept = patch.iter().filter(|p| p.get(DIRECTIVE).is_none());
        return Ok(kept.cloned().collect());
    }
    for p in patch {
        let Value::Object(map) = p else {
            return Err(ApiError::Unexpected(format!(
                "expected an object in a list with merge key {merge_key}"
            )));
        };
        let Some(key) = map.get(merge_key) else {
            return Err(ApiError::Unexpected(format!(
                "map: {} does not contain declared merge key: {merge_key}",
                go_print(p)
            )));
        };
        match map.get(DIRECTIVE).map(Value::text) {
            Some("delete") => {
                out.retain(|v| v.get(merge_key) != Some(key));
                continue;
            }
            None | Some("merge") => {}
            Some(other) => return Err(unknown_directive(other, map)),
        }
        match out.iter_mut().find(|v| v.get(merge_key) == Some(key)) {
            Some(slot) => {
                if let Value::Object(t) = std::mem::take(slot) {
                    *slot = Value::Object(merge_map(t, map, rule_of(item))?);
                }
            }
            None => out.push(Value::Object(merge_map(Map::new(), map, rule_of(item))?)),
        }
    }
    match order {
        Some(order) => sort_by_order(&mut out, order.items(), &original, merge_key),
        None => sort_by_order(&mut out, patch, &original, merge_key),
    }
    Ok(out)
}

fn merge_primitives(mut target: Vec<Value>, patch: &[Value], order: Option<&Value>) -> Vec<Value> {
    let original = target.clone();
    for p in patch {
        if !target.contains(p) {
            target.push(p.clone());
        }
    }
    let order = order.map_or(patch, Value::items);
    sort_by_order(&mut target, order, &original, "");
    target
}

fn identity<'a>(v: &'a Value, merge_key: &str) -> &'a Value {
    if merge_key.is_empty() { v } else { &v[merge_key] }
}

/// Items named in `order` (the patch itself, where it gives none) stand in that order; the others stay near their old neighbours.
fn sort_by_order(items: &mut Vec<Value>, order: &[Value], original: &[Value], merge_key: &str) {
    let rank =
        |v: &Value| order.iter().position(|o| identity(o, merge_key) == identity(v, merge_key));
    let (mut named, rest): (Vec<Value>, Vec<Value>) =
        std::mem::take(items).into_iter().partition(|v| rank(v).is_some());
    named.sort_by_key(|v| rank(v));
    *items = interleave(named, rest, original, merge_key);
}

/// Puts `rest` among `named` as they stood in the original, before what stood after them.
fn interleave(
    named: Vec<Value>,
    rest: Vec<Value>,
    original: &[Value],
    merge_key: &str,
) -> Vec<Value> {
    let place =
        |v: &Value| original.iter().position(|o| identity(o, merge_key) == identity(v, merge_key));
    let mut out = Vec::with_capacity(named.len() + rest.len());
    let mut rest = rest.into_iter().peekable();
    for n in named {
        while let Some(r) = rest.peek() {
            match (place(r), place(&n)) {
                (Some(r), Some(n)) if r < n => out.extend(rest.next()),
                _ => break,
            }
        }
        out.push(n);
    }
    out.extend(rest);
    out
}

/// The patch's items must come in the order the directive gives.
fn check_order(patch: &[Value], order: Option<&Value>, merge_key: &str) -> Result<()> {
    let Some(order) = order.map(Value::items) else { return Ok(()) };
    let mut at = 0;
    let live = patch.iter().filter(|p| p.get(DIRECTIVE).is_none());
    for p in live {
        let found = order[at..].iter().position(|o| o.get(merge_key) == p.get(merge_key));
        match found {
            Some(i) => at += i + 1,
            None => {
                return Err(ApiError::Unexpected(format!(
                    "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                    go_print_list(patch),
                    go_print_list(order)
                )));
            }
        }
    }
    Ok(())
}

fn unknown_directive(directive: &str, map: &Map) -> ApiError {
    let shown = go_print(&Value::Object(map.clone()));
    ApiError::Unexpected(format!("unknown patch type: {directive} in map: {shown}"))
}

/// A value as Go's `%v` prints it, which is what these messages contain.
fn go_print(v: &Value) -> String {
    match v {
        Value::Str(s) => s.to_string(),
        Value::Array(a) => go_print_list(a),
        Value::Object(m) => {
            let mut out = String::from("map[");
            for (i, (k, v)) in m.iter().enumerate() {
                let space = if i > 0 { " " } else { "" };
                let _ = write!(out, "{space}{k}:{}", go_print(v));
            }
            out + "]"
        }
        Value::Null => "<nil>".to_owned(),
        other => other.to_string(),
    }
}

fn go_print_list(list: &[Value]) -> String {
    let items: Vec<String> = list.iter().map(go_print).collect();
    format!("[{}]", items.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use crate::schema;

    fn pod_spec(target: Value, patch: Value) -> Result<Value> {
        apply(target, &patch, schema::find("io.k8s.api.core.v1.PodSpec").unwrap())
    }

    #[test]
    fn lists_merge_by_key() {
        let target = json!({"containers": [{"name": "c", "image": "1", "env": [{"name": "A", "value": "1"}]}, {"name": "d"}]});
        let patch = json!({"containers": [{"name": "c", "image": "2", "env": [{"name": "B", "value": "2"}]}, {"name": "d", "$patch": "delete"}]});
        let want = json!({"containers": [{"name": "c", "image": "2", "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "1"}]}]});
        assert_eq!(pod_spec(target, patch).unwrap(), want);
    }

    #[test]
    fn order_is_set_and_checked() {
        let target = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let patch = json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "image": "x"}]});
        let want = json!({"containers": [{"name": "b", "image": "x"}, {"name": "a"}]});
        assert_eq!(pod_spec(target.clone(), patch).unwrap(), want);
        let patch = json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a"}, {"name": "b"}]});
        assert!(pod_spec(target, patch).is_err());
    }

    #[test]
    fn directives() {
        let target = json!({"tolerations": [{"key": "a"}], "nodeSelector": {"a": "b"}});
        let patch =
            json!({"tolerations": [{"key": "b"}], "nodeSelector": {"$patch": "replace", "c": "d"}});
        let want = json!({"tolerations": [{"key": "b"}], "nodeSelector": {"c": "d"}});
        assert_eq!(pod_spec(target, patch).unwrap(), want);
        let bad = pod_spec(
            json!({"containers": [{"name": "a"}]}),
            json!({"containers": [{"image": "x"}]}),
        );
        assert_eq!(
            bad.unwrap_err().message(),
            "map: map[image:x] does not contain declared merge key: name"
        );
    }
}
