//! Label and field selectors: parsed once, matched often.

use crate::catalog::Resource;
use crate::error::{ApiError, Result};
use crate::object::Value;

/// How one requirement compares.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// Comparison.
    pub op: Op,
}

/// A label selector: all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// Requirements, by key.
    pub requirements: Vec<Requirement>,
    /// Matches nothing at all (an absent selector object).
    pub nothing: bool,
}

impl LabelSelector {
    /// Reads the query form, `a=b,c in (d,e),!f`.
    pub fn parse(text: &str) -> Result<Self> {
        let _ = text;
        Err(ApiError::bad_request(""))
    }

    /// Reads the object form with matchLabels and matchExpressions; an absent one matches nothing, an empty one all.
    pub fn from_object(v: &Value) -> Result<Self> {
        let _ = v;
        Ok(Self::default())
    }

    /// Reads a plain map of labels (services, replication controllers); an empty one matches all.
    pub fn from_map(v: &Value) -> Self {
        let _ = v;
        Self::default()
    }

    /// Whether these labels fulfil all requirements. `get` finds a label by key.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        let _ = get;
        true
    }

    /// Whether the object's labels fulfil all requirements.
    pub fn matches(&self, object: &Value) -> bool {
        self.matches_with(|key| crate::meta::label(object, key))
    }

    /// Whether it has no requirements.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }
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
    /// Reads `a=b,c!=d`.
    pub fn parse(text: &str) -> Result<Self> {
        let _ = text;
        Ok(Self::default())
    }

    /// Refuses fields that `resource` doesn't offer.
    pub fn check(&self, resource: &Resource) -> Result<()> {
        let _ = resource;
        Ok(())
    }

    /// Whether the object's fields fulfil all requirements.
    pub fn matches(&self, resource: &Resource, object: &Value) -> bool {
        let _ = (resource, object);
        true
    }

    /// The value a field must have, if the selector pins it (for reads by name).
    pub fn pinned(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equals && r.field == field).map(|r| r.value.as_str())
    }
}

/// The text of a selectable field in an object.
pub fn field_text(resource: &Resource, object: &Value, label: &str) -> String {
    let _ = (resource, object, label);
    String::new()
}
