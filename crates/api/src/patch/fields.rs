//! Sets of field paths and their `fieldsV1` form.
//!
//! A path element is kept as clients see it: `f:name`, `k:{"name":"c"}`, `v:"x"`.

use std::collections::BTreeMap;

use compact_str::CompactString;

use crate::object::{Map, Value};

/// A set of paths, as a tree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set {
    /// The path that leads here is in the set.
    pub here: bool,
    /// What continues the path.
    pub below: BTreeMap<CompactString, Set>,
}

/// The element of a member.
pub fn field(name: &str) -> CompactString {
    compact_str::format_compact!("f:{name}")
}

impl Set {
    /// Whether no path is in it.
    pub fn is_empty(&self) -> bool {
        !self.here && self.below.values().all(Set::is_empty)
    }

    /// The set below `element`, made if absent.
    pub fn child(&mut self, element: &str) -> &mut Set {
        self.below.entry(element.into()).or_default()
    }

    /// All paths of both.
    pub fn union(&mut self, other: &Set) {
        self.here |= other.here;
        for (k, o) in &other.below {
            match self.below.get_mut(k) {
                Some(s) => s.union(o),
                None => {
                    self.below.insert(k.clone(), o.clone());
                }
            }
        }
    }

    /// Without the paths of `other`.
    pub fn subtract(&mut self, other: &Set) {
        self.here &= !other.here;
        self.below.retain(|k, s| {
            if let Some(o) = other.below.get(k) {
                s.subtract(o);
            }
            !s.is_empty()
        });
    }

    /// Only the paths that both have.
    #[must_use]
    pub fn intersection(&self, other: &Set) -> Set {
        let below = self.below.iter().filter_map(|(k, s)| {
            let both = s.intersection(other.below.get(k)?);
            (!both.is_empty()).then(|| (k.clone(), both))
        });
        Set { here: self.here && other.here, below: below.collect() }
    }

    /// Drops a path and all below it.
    pub fn cut(&mut self, path: &[&str]) {
        match path {
            [] => *self = Set::default(),
            [last] => {
                self.below.remove(*last);
            }
            [first, rest @ ..] => {
                if let Some(s) = self.below.get_mut(*first) {
                    s.cut(rest);
                    if s.is_empty() {
                        self.below.remove(*first);
                    }
                }
            }
        }
    }

    /// Drops one path, keeping what is below it.
    pub fn drop_path(&mut self, path: &[&str]) {
        match path {
            [] => self.here = false,
            [first, rest @ ..] => {
                if let Some(s) = self.below.get_mut(*first) {
                    s.drop_path(rest);
                    if s.is_empty() {
                        self.below.remove(*first);
                    }
                }
            }
        }
    }

    /// The paths as people read them, `.spec.ports[port=80]`: direct members first, then what lies deeper.
    pub fn render(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.render_into("", &mut out);
        out
    }

    fn render_into(&self, prefix: &str, out: &mut Vec<String>) {
        for (k, _) in self.below.iter().filter(|(_, s)| s.here) {
            out.push(format!("{prefix}{}", render_element(k)));
        }
        for (k, s) in &self.below {
            if !s.below.is_empty() {
                s.render_into(&format!("{prefix}{}", render_element(k)), out);
            }
        }
    }

    /// The `fieldsV1` form.
    pub fn to_value(&self) -> Value {
        let mut out = Map::with_capacity(self.below.len() + 1);
        if self.here && !self.below.is_empty() {
            out.insert(".", Value::object());
        }
        for (k, s) in &self.below {
            out.insert(k.clone(), s.to_value());
        }
        Value::Object(out)
    }

    /// Reads the `fieldsV1` form.
    pub fn from_value(v: &Value) -> Set {
        let mut out = Set::default();
        for (k, child) in v.members() {
            if k == "." {
                out.here = true;
                continue;
            }
            let mut s = Set::from_value(child);
            if s.below.is_empty() {
                s.here = true;
            }
            out.below.insert(normal(k), s);
        }
        out
    }
}

/// Whether `fieldsV1` has all paths of `set`.
pub fn covers(v: &Value, set: &Set) -> bool {
    (!set.here || is_path(v))
        && set.below.iter().all(|(k, s)| v.get(k).is_some_and(|child| covers(child, s)))
}

/// Whether `fieldsV1` has no path of `set`.
pub fn disjoint(v: &Value, set: &Set) -> bool {
    !(set.here && is_path(v))
        && set.below.iter().all(|(k, s)| v.get(k).is_none_or(|child| disjoint(child, s)))
}

/// Whether the path that leads to this part of `fieldsV1` is in the set itself.
fn is_path(v: &Value) -> bool {
    v.members().next().is_none() || v.get(".").is_some()
}

/// Key and value elements are compared as canonical JSON.
fn normal(element: &str) -> CompactString {
    if let Some((kind @ ("k" | "v"), text)) = element.split_once(':')
        && let Ok(v) = crate::codec::json::parse(text.as_bytes())
    {
        return compact_str::format_compact!("{kind}:{v}");
    }
    element.into()
}

fn render_element(e: &str) -> String {
    match e.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", text)) => match crate::codec::json::parse(text.as_bytes()) {
            Ok(Value::Object(m)) => {
                let parts: Vec<String> = m.iter().map(|(k, v)| format!("{k}={v}")).collect();
                format!("[{}]", parts.join(","))
            }
            _ => format!("[{text}]"),
        },
        Some(("v", text)) => format!("[={text}]"),
        Some((_, text)) => format!("[{text}]"),
        None => e.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn sets_read_what_they_write() {
        let v = json!({"f:a": {}, "f:b": {".": {}, "k:{\"x\":1}": {"f:y": {}}}, "f:c": {"v:\"q\"": {}}});
        let s = Set::from_value(&v);
        assert_eq!(s.to_value(), v);
        assert_eq!(s.render(), [".a", ".b", ".b[x=1].y", ".c[=\"q\"]"]);
    }

    #[test]
    fn algebra() {
        let set = |v| Set::from_value(&v);
        let mut a = set(json!({"f:a": {}, "f:b": {"f:c": {}, "f:d": {}}}));
        let b = set(json!({"f:b": {"f:c": {}}}));
        assert_eq!(a.intersection(&b), b);
        a.subtract(&b);
        assert_eq!(a.to_value(), json!({"f:a": {}, "f:b": {"f:d": {}}}));
        a.union(&b);
        assert_eq!(a.to_value(), json!({"f:a": {}, "f:b": {"f:c": {}, "f:d": {}}}));
        let stored = json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}});
        assert!(covers(&stored, &b) && !disjoint(&stored, &b));
        assert!(covers(&stored, &set(json!({"f:b": {".": {}, "f:c": {}}}))));
        assert!(!covers(&stored, &set(json!({"f:a": {"f:x": {}}}))));
        assert!(disjoint(&stored, &set(json!({"f:a": {"f:x": {}}, "f:e": {}}))));
    }
}
