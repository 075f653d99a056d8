//! The part of JSONPath that printer columns, scale paths and selectable fields use.

use crate::object::Value;

/// The most steps one path may have.
const STEPS_MAX: usize = 64;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Member(String),
    Index(i64),
    All,
    /// Items of a list whose member at a path compares so.
    Filter {
        path: Vec<String>,
        op: Compare,
        value: Value,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Equal,
    NotEqual,
    Exists,
}

impl Path {
    /// Parses `.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status`, `.a['b.c'][0]`, `.list[*].x`; the
    /// whole may stand in braces.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("unrecognized JSONPath {text:?}");
        let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        let mut rest = inner.strip_prefix('$').unwrap_or(inner);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if steps.len() >= STEPS_MAX {
                return Err(bad());
            }
            if let Some(after) = rest.strip_prefix('[') {
                let end = bracket_end(after).ok_or_else(bad)?;
                steps.push(bracket(&after[..end]).ok_or_else(bad)?);
                rest = &after[end + 1..];
            } else {
                let after = rest.strip_prefix('.').unwrap_or(rest);
                let (name, next) = member(after);
                match name.as_str() {
                    "" if next.starts_with('[') || next.is_empty() => {}
                    "" => return Err(bad()),
                    "*" => steps.push(Step::All),
                    _ => steps.push(Step::Member(name)),
                }
                if next.len() == rest.len() {
                    return Err(bad());
                }
                rest = next;
            }
        }
        Ok(Self { steps })
    }

    /// All values the path finds.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut here = vec![value];
        for step in &self.steps {
            here = here.into_iter().flat_map(|v| take(step, v)).collect();
        }
        here
    }

    /// The member names of a path without brackets, for those who write to it.
    pub fn members(&self) -> Option<Vec<&str>> {
        let name = |s: &'_ Step| matches!(s, Step::Member(_));
        if !self.steps.iter().all(name) {
            return None;
        }
        let names = self.steps.iter().filter_map(|s| match s {
            Step::Member(n) => Some(n.as_str()),
            _ => None,
        });
        Some(names.collect())
    }
}

/// A name up to `.` or `[`; a backslash takes the next character as it is.
fn member(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '.' | '[' => return (name, &text[i..]),
            '\\' => {
                if let Some((_, c)) = chars.next() {
                    name.push(c);
                }
            }
            c => name.push(c),
        }
    }
    (name, "")
}

/// Where the bracket closes, quotes and parentheses respected.
fn bracket_end(text: &str) -> Option<usize> {
    let (mut quote, mut depth) = (None, 0_i32);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, ']') if depth <= 0 => return Some(i),
            _ => {}
        }
    }
    None
}

fn unquote(text: &str) -> Option<&str> {
    let by = |q: char| text.strip_prefix(q).and_then(|t| t.strip_suffix(q));
    by('\'').or_else(|| by('"'))
}

fn bracket(text: &str) -> Option<Step> {
    let text = text.trim();
    if text == "*" {
        return Some(Step::All);
    }
    if let Some(name) = unquote(text) {
        return Some(Step::Member(name.to_owned()));
    }
    if let Ok(i) = text.parse() {
        return Some(Step::Index(i));
    }
    let condition = text.strip_prefix("?(")?.strip_suffix(')')?.trim();
    let (left, op, right) = match condition.split_once("==") {
        Some((l, r)) => (l, Compare::Equal, r),
        None => match condition.split_once("!=") {
            Some((l, r)) => (l, Compare::NotEqual, r),
            None => (condition, Compare::Exists, ""),
        },
    };
    let path = left.trim().strip_prefix('@')?;
    let path = path.split('.').filter(|p| !p.is_empty()).map(str::to_owned).collect();
    let right = right.trim();
    let value = match unquote(right) {
        Some(s) => Value::from(s),
        None if right.is_empty() => Value::Null,
        None => crate::codec::json::parse(right.as_bytes()).ok()?,
    };
    Some(Step::Filter { path, op, value })
}

fn take<'a>(step: &Step, v: &'a Value) -> Vec<&'a Value> {
    match (step, v) {
        (Step::Member(name), v) => v.get(name).into_iter().collect(),
        (Step::Index(i), Value::Array(a)) => {
            let len = i64::try_from(a.len()).unwrap_or(i64::MAX);
            let i = if *i < 0 { i.saturating_add(len) } else { *i };
            usize::try_from(i).ok().and_then(|i| a.get(i)).into_iter().collect()
        }
        (Step::All, Value::Array(a)) => a.iter().collect(),
        (Step::All, Value::Object(m)) => m.values().collect(),
        (Step::Filter { path, op, value }, Value::Array(a)) => {
            let keep = |item: &&Value| {
                let found = path.iter().try_fold(*item, |v, k| v.get(k));
                match op {
                    Compare::Equal => found == Some(value),
                    Compare::NotEqual => found != Some(value),
                    Compare::Exists => found.is_some(),
                }
            };
            a.iter().filter(keep).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use proptest::prelude::*;

    #[test]
    fn finds_values() {
        let v = json!({"a": {"b.c": [{"t": "x", "v": 1}, {"t": "y", "v": 2}]}});
        for (path, want) in [
            (".a['b.c'][0].v", "[1]"),
            (".a.b\\.c[*].v", "[1,2]"),
            ("{.a['b.c'][?(@.t==\"y\")].v}", "[2]"),
            (".a['b.c'][-1].t", "[\"y\"]"),
            (".nothing.here", "[]"),
        ] {
            let found: Vec<Value> =
                Path::parse(path).unwrap().find(&v).into_iter().cloned().collect();
            assert_eq!(Value::Array(found).to_string(), want, "{path}");
        }
        assert!(Path::parse(".a[").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "[a.\\[\\]'\"?(@)=*{}$0-]{0,16}") {
            if let Ok(p) = Path::parse(&text) {
                p.find(&json!({"a": [{"a": 1}]}));
            }
        }
    }
}
