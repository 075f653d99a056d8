//! Label and field selectors: parsed once, matched often.

use crate::catalog::Resource;
use crate::error::{ApiError, Result};
use crate::name;
use crate::object::Value;

/// The longest selector text read.
pub const SELECTOR_BYTES_MAX: usize = 256 * 1024;

/// How one requirement compares.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Value is one of these.
    In(Vec<String>),
    /// Value is none of these, or absent.
    NotIn(Vec<String>),
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
    /// An integer above.
    GreaterThan(i64),
    /// An integer below.
    LessThan(i64),
}

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// Comparison.
    pub op: Op,
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.op {
            Op::In(list) => value.is_some_and(|v| list.iter().any(|x| x == v)),
            Op::NotIn(list) => value.is_none_or(|v| list.iter().all(|x| x != v)),
            Op::Exists => value.is_some(),
            Op::DoesNotExist => value.is_none(),
            Op::GreaterThan(n) => number().is_some_and(|v| v > *n),
            Op::LessThan(n) => number().is_some_and(|v| v < *n),
        }
    }
}

/// A label selector: all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    /// Requirements, by key.
    pub requirements: Vec<Requirement>,
    /// Matches nothing at all (an absent selector object).
    pub nothing: bool,
}

impl LabelSelector {
    /// Reads the query form, `a=b,c in (d,e),!f`.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(ApiError::bad_request("label selector is too long"));
        }
        let mut parser = Parser { tokens: tokens(text), at: 0 };
        let mut requirements = parser.all()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// Reads the object form with matchLabels and matchExpressions; an absent one matches nothing, an empty one all.
    pub fn from_object(v: &Value) -> Result<Self> {
        if v.is_null() {
            return Ok(Self { requirements: Vec::new(), nothing: true });
        }
        let mut out = Self::from_map(&v["matchLabels"]);
        for e in v["matchExpressions"].items() {
            let values = || e["values"].items().iter().map(|v| v.text().to_owned()).collect();
            let op = match e["operator"].text() {
                "In" => Op::In(values()),
                "NotIn" => Op::NotIn(values()),
                "Exists" => Op::Exists,
                "DoesNotExist" => Op::DoesNotExist,
                other => {
                    return Err(ApiError::bad_request(format!(
                        "{other:?} is not a valid label selector operator"
                    )));
                }
            };
            out.requirements.push(Requirement { key: e["key"].text().to_owned(), op });
        }
        out.requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(out)
    }

    /// Reads a plain map of labels (services, replication controllers); an empty one matches all.
    pub fn from_map(v: &Value) -> Self {
        let requirements = v
            .members()
            .map(|(k, v)| Requirement { key: k.to_owned(), op: Op::In(vec![v.text().to_owned()]) });
        Self { requirements: requirements.collect(), nothing: false }
    }

    /// Whether these labels fulfil all requirements. `get` finds a label by key.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.holds(get(&r.key)))
    }

    /// Whether the object's labels fulfil all requirements.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.matches_with(|key| labels.get(key).and_then(Value::as_str))
    }

    /// Whether a map of labels fulfils all requirements.
    pub fn matches_labels(&self, labels: &Value) -> bool {
        self.matches_with(|key| labels.get(key).and_then(Value::as_str))
    }

    /// Whether it has no requirements.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }
}

impl std::fmt::Display for LabelSelector {
    /// The query form.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let key = &r.key;
            match &r.op {
                Op::In(v) if v.len() == 1 => write!(f, "{key}={}", v[0])?,
                Op::NotIn(v) if v.len() == 1 => write!(f, "{key}!={}", v[0])?,
                Op::In(v) => write!(f, "{key} in ({})", v.join(","))?,
                Op::NotIn(v) => write!(f, "{key} notin ({})", v.join(","))?,
                Op::Exists => f.write_str(key)?,
                Op::DoesNotExist => write!(f, "!{key}")?,
                Op::GreaterThan(n) => write!(f, "{key}>{n}")?,
                Op::LessThan(n) => write!(f, "{key}<{n}")?,
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Sign(&'a str),
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    const SIGNS: [&str; 10] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<", "\0"];
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(sign) = SIGNS.iter().find(|s| rest.starts_with(**s)) {
            out.push(Token::Sign(&rest[..sign.len()]));
            rest = rest[sign.len()..].trim_start();
            continue;
        }
        let end =
            rest.find(|c: char| c.is_whitespace() || "=!(),<>".contains(c)).unwrap_or(rest.len());
        out.push(Token::Word(&rest[..end.max(1).min(rest.len())]));
        rest = rest[end.max(1).min(rest.len())..].trim_start();
    }
    out
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    fn next(&mut self) -> Option<Token<'a>> {
        let t = self.peek();
        self.at += 1;
        t
    }

    fn take(&mut self, sign: &str) -> bool {
        let found = self.peek() == Some(Token::Sign(sign));
        self.at += usize::from(found);
        found
    }

    fn expected(&self, got: Option<Token<'_>>, what: &str) -> ApiError {
        let got = match got {
            Some(Token::Word(w) | Token::Sign(w)) => w,
            None => "",
        };
        ApiError::BadRequest(format!("found '{got}', expected: {what}"))
    }

    fn all(&mut self) -> Result<Vec<Requirement>> {
        let mut out = Vec::new();
        if self.peek().is_none() {
            return Ok(out);
        }
        loop {
            match self.peek() {
                Some(Token::Word(_) | Token::Sign("!")) => out.push(self.requirement()?),
                other => return Err(self.expected(other, "!, identifier, or 'end of string'")),
            }
            match self.next() {
                None => return Ok(out),
                Some(Token::Sign(",")) => {
                    if !matches!(self.peek(), Some(Token::Word(_) | Token::Sign("!"))) {
                        return Err(self.expected(self.peek(), "identifier after ','"));
                    }
                }
                other => return Err(self.expected(other, "',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement> {
        let absent = self.take("!");
        let key = match self.next() {
            Some(Token::Word(w)) => w.to_owned(),
            other => return Err(self.expected(other, "identifier")),
        };
        check_key(&key)?;
        if absent {
            return Ok(Requirement { key, op: Op::DoesNotExist });
        }
        let op = match self.peek() {
            None | Some(Token::Sign(",")) => Op::Exists,
            Some(Token::Sign(sign @ ("=" | "==" | "!="))) => {
                self.at += 1;
                let value = self.value(&key)?;
                if sign == "!=" { Op::NotIn(vec![value]) } else { Op::In(vec![value]) }
            }
            Some(Token::Sign(sign @ (">" | "<"))) => {
                self.at += 1;
                let value = self.value(&key)?;
                let n = value.parse().map_err(|_| {
                    ApiError::BadRequest(format!(
                        "values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, \
                         the value must be an integer"
                    ))
                })?;
                if sign == ">" { Op::GreaterThan(n) } else { Op::LessThan(n) }
            }
            Some(Token::Word("in")) => {
                self.at += 1;
                Op::In(self.values(&key)?)
            }
            Some(Token::Word("notin")) => {
                self.at += 1;
                Op::NotIn(self.values(&key)?)
            }
            other => {
                return Err(self.expected(other, "in, notin, =, ==, !=, gt, lt"));
            }
        };
        Ok(Requirement { key, op })
    }

    fn value(&mut self, key: &str) -> Result<String> {
        let value = match self.peek() {
            Some(Token::Word(w)) => {
                self.at += 1;
                w.to_owned()
            }
            None | Some(Token::Sign(",")) => String::new(),
            other => return Err(self.expected(other, "identifier")),
        };
        check_value(key, 0, &value)?;
        Ok(value)
    }

    fn values(&mut self, key: &str) -> Result<Vec<String>> {
        if !self.take("(") {
            return Err(self.expected(self.peek(), "'('"));
        }
        let mut out = Vec::new();
        if self.take(")") {
            out.push(String::new());
            return Ok(out);
        }
        loop {
            match self.peek() {
                Some(Token::Word(w)) => {
                    self.at += 1;
                    out.push(w.to_owned());
                }
                Some(Token::Sign("," | ")")) => out.push(String::new()),
                other => return Err(self.expected(other, "',', ')' or identifier")),
            }
            match self.next() {
                Some(Token::Sign(",")) => {}
                Some(Token::Sign(")")) => break,
                other => return Err(self.expected(other, "',' or ')'")),
            }
        }
        for (i, v) in out.iter().enumerate() {
            check_value(key, i, v)?;
        }
        out.sort();
        out.dedup();
        Ok(out)
    }
}

fn check_key(key: &str) -> Result<()> {
    let errs = name::qualified(key);
    if errs.is_empty() {
        return Ok(());
    }
    Err(ApiError::BadRequest(format!("key: Invalid value: {key:?}: {}", errs.join("; "))))
}

fn check_value(key: &str, i: usize, value: &str) -> Result<()> {
    let errs = name::label_value(value);
    if errs.is_empty() {
        return Ok(());
    }
    Err(ApiError::BadRequest(format!(
        "values[{i}][{key}]: Invalid value: {value:?}: {}",
        errs.join("; ")
    )))
}

/// One requirement on a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// Field label, as `spec.nodeName`.
    pub field: String,
    /// Wanted value.
    pub value: String,
    /// `=` rather than `!=`.
    pub equals: bool,
}

/// A field selector: all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Requirements in the order written.
    pub requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Reads `a=b,c!=d`; `\` escapes `,`, `=` and itself.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(ApiError::bad_request("field selector is too long"));
        }
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let bad = || {
                ApiError::BadRequest(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                ))
            };
            let (field, op, value) = split_operator(term).ok_or_else(bad)?;
            requirements.push(FieldRequirement {
                field: field.to_owned(),
                value: unescape(value).ok_or_else(bad)?,
                equals: op != "!=",
            });
        }
        Ok(Self { requirements })
    }

    /// Refuses fields that `resource` doesn't offer.
    pub fn check(&self, resource: &Resource) -> Result<()> {
        for r in &self.requirements {
            if resource.selectable.iter().any(|f| f.label == r.field) {
                continue;
            }
            // Kinds that offer more than their name have their own, shorter message.
            let own = resource.custom || resource.has_own_field_labels();
            return Err(ApiError::BadRequest(if own {
                format!("field label not supported: {}", r.field)
            } else {
                format!(
                    "{:?} is not a known field selector: only \"metadata.name\", \
                     \"metadata.namespace\"",
                    r.field
                )
            }));
        }
        Ok(())
    }

    /// Whether the object's fields fulfil all requirements.
    pub fn matches(&self, resource: &Resource, object: &Value) -> bool {
        self.requirements
            .iter()
            .all(|r| (field_text(resource, object, &r.field) == r.value) == r.equals)
    }

    /// The value a field must have, if the selector pins it (for reads by name).
    pub fn pinned(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equals && r.field == field).map(|r| r.value.as_str())
    }

    /// Whether it has no requirements.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

fn split_operator(term: &str) -> Option<(&str, &str, &str)> {
    let i = term.find(['=', '!'])?;
    let op = ["==", "!=", "="].into_iter().find(|op| term[i..].starts_with(op))?;
    Some((&term[..i], op, &term[i + op.len()..]))
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                c @ ('\\' | ',' | '=') => out.push(c),
                _ => return None,
            },
            ',' | '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

/// The text of a selectable field in an object.
pub fn field_text(resource: &Resource, object: &Value, label: &str) -> String {
    let Some(field) = resource.selectable.iter().find(|f| f.label == label) else {
        return String::new();
    };
    for path in &field.paths {
        let found = path.iter().try_fold(object, |v, key| v.get(key));
        match found {
            Some(Value::Str(s)) if !s.is_empty() => return s.to_string(),
            Some(v @ (Value::Bool(_) | Value::Int(_))) => return v.to_string(),
            Some(Value::Array(ips)) => {
                let first = ips.first().map(|ip| ip["ip"].text().to_owned());
                return first.unwrap_or_default();
            }
            _ => {}
        }
    }
    // What is absent reads as the zero value of its type.
    match field.paths.first().and_then(|p| shape_at(resource, p)) {
        Some("bool") => "false".to_owned(),
        Some("int") => "0".to_owned(),
        _ => String::new(),
    }
}

fn shape_at(resource: &Resource, path: &[crate::schema::Str]) -> Option<&'static str> {
    use crate::schema::Shape;
    let mut ty = &*resource.schema;
    for (i, name) in path.iter().enumerate() {
        let f = ty.field(name)?;
        match &f.shape {
            Shape::Object(inner) => ty = inner,
            Shape::Bool if i + 1 == path.len() => return Some("bool"),
            Shape::Int32 | Shape::Int64 if i + 1 == path.len() => return Some("int"),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use proptest::prelude::*;

    #[test]
    fn labels_match() {
        let labels = json!({"a": "b", "n": "5"});
        for (text, want) in [
            ("a=b", true),
            ("a==b", true),
            ("a!=b", false),
            ("c!=b", true),
            ("a", true),
            ("!a", false),
            ("!c", true),
            ("a in (x,b)", true),
            ("a notin (x,b)", false),
            ("n>4", true),
            ("n<4", false),
            ("a=b,c", false),
            ("", true),
            ("a = b , n", true),
            ("c notin (x)", true),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches_labels(&labels), want, "{text}");
        }
    }

    #[test]
    fn bad_label_selectors_are_refused() {
        for (text, want) in [
            ("(", "found '(', expected: !, identifier, or 'end of string'"),
            ("a,", "found '', expected: identifier after ','"),
            ("a in b", "found 'b', expected: '('"),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap_err().message(), want);
        }
    }

    #[test]
    fn field_selectors_parse() {
        let s = FieldSelector::parse("a=b\\,c,d!=e").unwrap();
        assert_eq!(s.pinned("a"), Some("b,c"));
        assert!(!s.requirements[1].equals);
        assert!(FieldSelector::parse("abc").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "[a-c=!(),<> \\\\inot]{0,24}") {
            let _ = FieldSelector::parse(&text);
            if let Ok(s) = LabelSelector::parse(&text) {
                prop_assert_eq!(LabelSelector::parse(&s.to_string()).unwrap(), s);
            }
        }
    }
}
