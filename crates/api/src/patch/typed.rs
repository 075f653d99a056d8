//! Walks objects by the schema's merge rules: comparing, merging, collecting and removing fields.

use compact_str::CompactString;

use super::fields::{Set, field};
use crate::object::{Map, Value};
use crate::schema::{Field, ListType, Shape, Type};

/// How a value is merged.
#[derive(Clone, Copy)]
pub(super) enum Kind<'a> {
    /// Known fields.
    Struct(&'a Type),
    /// A map of this element.
    Map(&'a Field),
    /// A list whose items have identity: the list's rule and its element.
    List(&'a ListType, &'a Field),
    /// Owned as a whole; with the shape it must have.
    Leaf(Option<&'a Shape>),
    /// Without a schema: objects are maps, all else is a leaf.
    Deduced,
}

/// The merge rule of a field.
fn kind_of(f: &Field) -> Kind<'_> {
    match &f.shape {
        Shape::Object(ty) if f.atomic || (ty.atomic && !f.granular) => Kind::Leaf(Some(&f.shape)),
        Shape::Object(ty) => Kind::Struct(ty),
        Shape::Map(_) if f.atomic => Kind::Leaf(Some(&f.shape)),
        Shape::Map(item) => Kind::Map(item),
        Shape::List(_) if f.list == ListType::Atomic => Kind::Leaf(Some(&f.shape)),
        Shape::List(item) => Kind::List(&f.list, item),
        _ => Kind::Leaf(Some(&f.shape)),
    }
}

impl<'a> Kind<'a> {
    /// The rule of a member, and whether the schema names it.
    fn member(self, name: &str) -> (Kind<'a>, bool) {
        match self {
            Kind::Struct(ty) => match ty.field(name) {
                Some(f) => (kind_of(f), true),
                None => (Kind::Deduced, false),
            },
            Kind::Map(item) => (kind_of(item), false),
            _ => (Kind::Deduced, false),
        }
    }

    fn is_leaf_for(self, v: Option<&Value>) -> bool {
        match self {
            Kind::Leaf(_) => true,
            Kind::Deduced => !matches!(v, Some(Value::Object(_))),
            Kind::Struct(_) | Kind::Map(_) => {
                !matches!(v, None | Some(Value::Object(_) | Value::Null))
            }
            Kind::List(..) => !matches!(v, None | Some(Value::Array(_) | Value::Null)),
        }
    }
}

/// The element that names `item` in its list; `None` if it lacks a key.
fn element(rule: &ListType, item_field: &Field, item: &Value) -> Option<CompactString> {
    match rule {
        ListType::Map(keys) => {
            let mut key = Map::with_capacity(keys.len());
            for k in keys.iter() {
                let value = match item.get(k) {
                    Some(v) => v.clone(),
                    None => default_key(item_field, k)?,
                };
                key.insert(k.as_ref(), value);
            }
            Some(compact_str::format_compact!("k:{}", Value::Object(key)))
        }
        _ => Some(compact_str::format_compact!("v:{item}")),
    }
}

fn default_key(item: &Field, key: &str) -> Option<Value> {
    let Shape::Object(ty) = &item.shape else { return None };
    let f = ty.field(key)?;
    if f.default.is_empty() {
        // A key that may be absent stands as null only where the schema says so; upstream defaults such keys.
        return None;
    }
    crate::codec::json::parse(f.default.as_bytes()).ok()
}

/// What changed between two objects.
#[derive(Default)]
pub(super) struct Comparison {
    pub(super) added: Set,
    pub(super) modified: Set,
    pub(super) removed: Set,
}

/// Compares two objects.
pub(super) fn compare(
    kind: Kind<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    out: &mut Comparison,
) {
    let mut path = Vec::new();
    walk_compare(kind, old, new, &mut path, out);
}

type Path = Vec<CompactString>;

fn mark(set: &mut Set, path: &Path) {
    let mut here = set;
    for e in path {
        here = here.child(e);
    }
    here.here = true;
}

fn add(set: &mut Set, path: &Path, what: Set) {
    let mut here = set;
    for e in path {
        here = here.child(e);
    }
    if here.is_empty() {
        *here = what;
    } else {
        here.union(what);
    }
}

fn leaf(old: Option<&Value>, new: Option<&Value>, path: &Path, out: &mut Comparison) {
    if old != new {
        mark(&mut out.modified, path);
    }
}

fn has_content(v: Option<&Value>) -> bool {
    match v {
        Some(Value::Object(m)) => !m.is_empty(),
        Some(Value::Array(a)) => !a.is_empty(),
        _ => false,
    }
}

fn walk_compare(
    kind: Kind<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Path,
    out: &mut Comparison,
) {
    match (old, new) {
        (None, Some(new)) => return add(&mut out.added, path, whole(kind, new)),
        (Some(old), None) => return add(&mut out.removed, path, whole(kind, old)),
        _ => {}
    }
    let empty = !has_content(old) && !has_content(new);
    let as_leaf = match kind {
        Kind::Deduced => new.or(old).is_some() && (kind.is_leaf_for(new.or(old)) || empty),
        _ => kind.is_leaf_for(old) || kind.is_leaf_for(new) || empty,
    };
    if as_leaf {
        leaf(old, new, path, out);
        return;
    }
    match kind {
        Kind::List(rule, item) => compare_lists(rule, item, old, new, path, out),
        _ => compare_maps(kind, old, new, path, out),
    }
    // A set that was null is new as a whole.
    let set = matches!(kind, Kind::List(ListType::Set, _));
    let there = |v: &&Value| !(set && v.is_null());
    match (old.filter(there), new.filter(there)) {
        (None, Some(_)) => mark(&mut out.added, path),
        (Some(_), None) => mark(&mut out.removed, path),
        _ => {}
    }
}

fn compare_maps(
    kind: Kind<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Path,
    out: &mut Comparison,
) {
    let olds = old.and_then(Value::as_object);
    let news = new.and_then(Value::as_object);
    if let Some(olds) = olds {
        for (k, o) in olds.iter() {
            let n = news.and_then(|m| m.get(k));
            // Most of an object is unchanged: equal parts need no walk.
            if n.is_some_and(|n| n == o) {
                continue;
            }
            path.push(field(k));
            walk_compare(kind.member(k).0, Some(o), n, path, out);
            path.pop();
        }
    }
    if let Some(news) = news {
        for (k, n) in news.iter().filter(|(k, _)| olds.is_none_or(|m| !m.contains_key(k))) {
            path.push(field(k));
            walk_compare(kind.member(k).0, None, Some(n), path, out);
            path.pop();
        }
    }
}

fn compare_lists(
    rule: &ListType,
    item: &Field,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Path,
    out: &mut Comparison,
) {
    let (olds, news) = (named(rule, item, old), named(rule, item, new));
    for (e, o) in &olds {
        let n = news.iter().find(|(k, _)| k == e).map(|(_, v)| *v);
        path.push(e.clone());
        walk_compare(kind_of(item), Some(*o), n, path, out);
        path.pop();
    }
    for (e, n) in news.iter().filter(|(e, _)| !olds.iter().any(|(k, _)| k == e)) {
        path.push(e.clone());
        walk_compare(kind_of(item), None, Some(*n), path, out);
        path.pop();
    }
}

/// The items of a list that have a name, with it.
fn named<'v>(
    rule: &ListType,
    item: &Field,
    list: Option<&'v Value>,
) -> Vec<(CompactString, &'v Value)> {
    let items = list.map(Value::items).unwrap_or(&[]).iter();
    items.filter_map(|i| Some((element(rule, item, i)?, i))).collect()
}

/// All fields of a value that came or went as a whole.
fn whole(kind: Kind<'_>, v: &Value) -> Set {
    let mut out = Set { here: true, ..Set::default() };
    if kind.is_leaf_for(Some(v)) || !has_content(Some(v)) {
        return out;
    }
    if let Kind::List(rule, item) = kind {
        let items = named(rule, item, Some(v)).into_iter();
        out.below = Set::of(items.map(|(e, i)| (e, whole(kind_of(item), i))).collect()).below;
    } else {
        let below = v.members().map(|(k, child)| (field(k), whole(kind.member(k).0, child)));
        out.below = below.collect();
    }
    out
}

/// All fields an apply configuration sets.
pub(super) fn to_set(kind: Kind<'_>, v: &Value) -> Set {
    let mut out = Set::default();
    if kind.is_leaf_for(Some(v)) {
        out.here = true;
        return out;
    }
    match (kind, v) {
        (Kind::List(rule, item), Value::Array(items)) => {
            let mut below = Vec::with_capacity(items.len());
            for i in items {
                let Some(e) = element(rule, item, i) else { continue };
                let mut s = to_set(kind_of(item), i);
                s.here = true;
                below.push((e, s));
            }
            out.below = Map::from_unsorted(below);
        }
        (_, Value::Object(map)) => {
            for (k, child) in map.iter() {
                let (kind, named) = kind.member(k);
                let mut s = to_set(kind, child);
                let empty = child.is_null() || child.as_object().is_some_and(Map::is_empty);
                s.here |= empty || !named;
                // An empty list has no path: it would be read back as a field that is owned.
                if !s.is_empty() {
                    out.below.insert(field(k), s);
                }
            }
        }
        _ => {}
    }
    out
}

/// Merges an apply configuration into an object.
pub(super) fn merge(kind: Kind<'_>, live: Option<&Value>, config: &Value) -> Value {
    if kind.is_leaf_for(Some(config)) || live.is_none_or(|l| kind.is_leaf_for(Some(l))) {
        return config.clone();
    }
    match (kind, live, config) {
        (Kind::List(rule, item), Some(Value::Array(live)), Value::Array(config)) => {
            Value::Array(merge_lists(rule, item, live, config))
        }
        (Kind::List(..), _, _) => config.clone(),
        (_, Some(Value::Object(live)), Value::Object(config)) => {
            let mut out = live.clone();
            for (k, c) in config.iter() {
                let merged = merge(kind.member(k).0, live.get(k), c);
                out.insert(k, merged);
            }
            Value::Object(out)
        }
        // A null in the configuration leaves an object as it is only if it is absent there.
        _ => config.clone(),
    }
}

/// Both orders are kept: the configuration's among its items, the object's among the others.
fn merge_lists(rule: &ListType, item: &Field, live: &[Value], config: &[Value]) -> Vec<Value> {
    let name = |list: &[Value]| -> Vec<Option<CompactString>> {
        list.iter().map(|v| element(rule, item, v)).collect()
    };
    let (lefts, rights) = (name(live), name(config));
    let shared: Vec<&Option<CompactString>> = rights.iter().filter(|r| lefts.contains(r)).collect();
    let mut next_shared = shared.into_iter().peekable();
    let merged = |r: usize| match lefts.iter().position(|l| *l == rights[r]) {
        Some(l) => merge(kind_of(item), Some(&live[l]), &config[r]),
        None => config[r].clone(),
    };
    let (mut l, mut r) = (0, 0);
    let mut out = Vec::with_capacity(live.len() + config.len());
    while l < live.len() || r < config.len() {
        if l < live.len() && r < config.len() {
            if lefts[l] == rights[r] {
                out.push(merged(r));
                next_shared.next();
                (l, r) = (l + 1, r + 1);
                continue;
            }
            if rights.contains(&lefts[l]) && next_shared.peek().is_none_or(|s| **s != lefts[l]) {
                // It comes later, at the place the configuration gives it.
                l += 1;
                continue;
            }
        }
        if l < live.len() {
            if !rights.contains(&lefts[l]) {
                out.push(live[l].clone());
                l += 1;
                continue;
            }
            if r >= config.len() {
                l += 1;
                continue;
            }
        }
        if r < config.len() {
            out.push(merged(r));
            if next_shared.peek().is_some_and(|s| **s == rights[r]) {
                next_shared.next();
            }
            r += 1;
        }
    }
    out
}

/// Removes from `v` what is in `last` and neither itself nor below in `keep`.
pub(super) fn prune(kind: Kind<'_>, v: &mut Value, last: &Set, keep: &Set) {
    let none = Set::default();
    match (kind, v) {
        (Kind::List(rule, item), Value::Array(items)) => {
            items.retain_mut(|i| {
                let Some(e) = element(rule, item, i) else { return true };
                let Some(last) = last.below.get(&e) else { return true };
                let keep = keep.below.get(&e).unwrap_or(&none);
                if keep.is_empty() {
                    return false;
                }
                prune(kind_of(item), i, last, keep);
                true
            });
        }
        (_, Value::Object(map)) => {
            map.retain(|k, child| {
                let e = field(k);
                let Some(last) = last.below.get(&e) else { return true };
                let keep = keep.below.get(&e).unwrap_or(&none);
                if keep.is_empty() {
                    return false;
                }
                prune(kind.member(k).0, child, last, keep);
                true
            });
        }
        _ => {}
    }
}

/// Checks an apply configuration against the schema; the first error is reported.
pub(super) fn check(kind: Kind<'_>, v: &Value, path: &str) -> Result<(), String> {
    if v.is_null() {
        return Ok(());
    }
    let wrong = |what: &str| Err(format!("{path}: expected {what}, got &{{{v}}}"));
    match (kind, v) {
        (Kind::Deduced, _) => Ok(()),
        (Kind::Struct(ty), Value::Object(map)) => map.iter().try_for_each(|(k, child)| {
            let here = format!("{path}.{k}");
            if ty.field(k).is_none() && !ty.preserve_unknown {
                return Err(format!("{here}: field not declared in schema"));
            }
            check(kind.member(k).0, child, &here)
        }),
        (Kind::Map(item), Value::Object(map)) => {
            map.iter().try_for_each(|(k, c)| check(kind_of(item), c, &format!("{path}.{k}")))
        }
        (Kind::Struct(_) | Kind::Map(_), _) => wrong("map"),
        (Kind::List(rule, item), Value::Array(items)) => {
            let mut seen: Vec<CompactString> = Vec::with_capacity(items.len());
            for (i, child) in items.iter().enumerate() {
                let Some(e) = element(rule, item, child) else {
                    return Err(missing_key(rule, item, child, path, i));
                };
                let shown = Set::of(vec![(e.clone(), Set { here: true, ..Set::default() })]);
                let shown = shown.render().concat();
                if seen.contains(&e) {
                    return Err(format!("{path}: duplicate entries for key {shown}"));
                }
                check(kind_of(item), child, &format!("{path}{shown}"))?;
                seen.push(e);
            }
            Ok(())
        }
        (Kind::List(..), _) => wrong("list"),
        (Kind::Leaf(Some(shape)), _) => check_leaf(shape, v, path),
        (Kind::Leaf(None), _) => Ok(()),
    }
}

fn missing_key(rule: &ListType, item: &Field, v: &Value, path: &str, i: usize) -> String {
    let ListType::Map(keys) = rule else { return String::new() };
    let lost = keys.iter().find(|k| v.get(k).is_none() && default_key(item, k).is_none());
    format!(
        "{path}: element {i}: associative list with keys has an element that omits key field {:?} \
         (and doesn't have default value)",
        lost.map(AsRef::as_ref).unwrap_or("")
    )
}

fn check_leaf(shape: &Shape, v: &Value, path: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{path}: expected {what}, got &{{{v}}}"));
    match (shape, v) {
        (
            Shape::String | Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Duration,
            Value::Str(_),
        )
        | (Shape::Bool, Value::Bool(_))
        | (
            Shape::Int32 | Shape::Int64 | Shape::Float | Shape::Number,
            Value::Int(_) | Value::Float(_),
        )
        | (Shape::Quantity | Shape::IntOrString, Value::Str(_) | Value::Int(_) | Value::Float(_))
        | (Shape::Json | Shape::RawObject, _) => Ok(()),
        (Shape::String | Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Duration, _) => {
            wrong("string")
        }
        (Shape::Bool, _) => wrong("boolean"),
        (Shape::Int32 | Shape::Int64 | Shape::Float | Shape::Number, _) => {
            wrong("numeric (int or float)")
        }
        (Shape::Quantity | Shape::IntOrString, _) => wrong("scalar"),
        (Shape::Object(ty), Value::Object(_)) => check(Kind::Struct(ty), v, path),
        (Shape::Map(item), Value::Object(_)) => check(Kind::Map(item), v, path),
        (Shape::Object(_) | Shape::Map(_), _) => wrong("map"),
        (Shape::List(item), Value::Array(items)) => items
            .iter()
            .enumerate()
            .try_for_each(|(i, c)| check(kind_of(item), c, &format!("{path}[{i}]"))),
        (Shape::List(_), _) => wrong("list"),
    }
}
