//! Sets of field paths and their `fieldsV1` form.
//!
//! A path element is kept as clients see it: `f:name`, `k:{"name":"c"}`, `v:"x"`.

use compact_str::CompactString;

use crate::object::{Map, Value};

/// A set of paths, as a tree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set {
    /// The path that leads here is in the set.
    pub here: bool,
    /// What continues the path.
    pub below: Map<Set>,
}

/// The element of a member.
pub fn field(name: &str) -> CompactString {
    let mut out = CompactString::with_capacity(2 + name.len());
    out.push_str("f:");
    out.push_str(name);
    out
}

impl Set {
    /// Whether no path is in it.
    pub fn is_empty(&self) -> bool {
        !self.here && self.below.values().all(Set::is_empty)
    }

    /// The set below `element`, made if absent.
    pub fn child(&mut self, element: &str) -> &mut Set {
        self.below.entry(element)
    }

    /// The set of what `members` say, in any order.
    pub fn of(mut members: Vec<(CompactString, Set)>) -> Set {
        members.sort_by(|a, b| a.0.cmp(&b.0));
        members.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1.union(std::mem::take(&mut next.1));
            }
            same
        });
        Set { here: false, below: Map::from_unsorted(members) }
    }

    /// All paths of both.
    pub fn union(&mut self, other: Set) {
        let here = self.here || other.here;
        let own = std::mem::take(&mut self.below);
        let all = match (own.is_empty(), other.below.is_empty()) {
            (_, true) => own,
            (true, false) => other.below,
            (false, false) => Set::of(own.into_iter().chain(other.below).collect()).below,
        };
        *self = Set { here, below: all };
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
            (!both.is_empty()).then_some((k, both))
        });
        Set { here: self.here && other.here, below: below.collect() }
    }

    /// Drops a path and all below it.
    pub fn cut(&mut self, path: &[&str]) {
        match path {
            [] => *self = Set::default(),
            [last] => {
                self.below.remove(last);
            }
            [first, rest @ ..] => {
                if let Some(s) = self.below.get_mut(first) {
                    s.cut(rest);
                    if s.is_empty() {
                        self.below.remove(first);
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
                if let Some(s) = self.below.get_mut(first) {
                    s.drop_path(rest);
                    if s.is_empty() {
                        self.below.remove(first);
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
        for (k, s) in self.below.iter() {
            if !s.below.is_empty() {
                s.render_into(&format!("{prefix}{}", render_element(k)), out);
            }
        }
    }

    /// The `fieldsV1` form.
    pub fn into_value(self) -> Value {
        let own = (self.here && !self.below.is_empty()).then(|| (".".into(), Value::object()));
        let below = self.below.into_iter().map(|(k, s)| (k, s.into_value()));
        // The dot comes before all elements.
        Value::Object(Map::from_unsorted(own.into_iter().chain(below).collect()))
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
        assert_eq!(s.clone().into_value(), v);
        assert_eq!(s.render(), [".a", ".b", ".b[x=1].y", ".c[=\"q\"]"]);
    }

    #[test]
    fn algebra() {
        let set = |v| Set::from_value(&v);
        let mut a = set(json!({"f:a": {}, "f:b": {"f:c": {}, "f:d": {}}}));
        let b = set(json!({"f:b": {"f:c": {}}}));
        assert_eq!(a.intersection(&b), b);
        a.subtract(&b);
        assert_eq!(a.clone().into_value(), json!({"f:a": {}, "f:b": {"f:d": {}}}));
        a.union(b.clone());
        assert_eq!(a.into_value(), json!({"f:a": {}, "f:b": {"f:c": {}, "f:d": {}}}));
        let stored = json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}});
        assert!(covers(&stored, &b) && !disjoint(&stored, &b));
        assert!(covers(&stored, &set(json!({"f:b": {".": {}, "f:c": {}}}))));
        assert!(!covers(&stored, &set(json!({"f:a": {"f:x": {}}}))));
        assert!(disjoint(&stored, &set(json!({"f:a": {"f:x": {}}, "f:e": {}}))));
    }
}
