//! Everything an API request can fail with, and the one table from failures to `Status` objects.
//!
//! Variants carry data; text is rendered in `to_status` only.

use std::fmt;

use crate::object::{Map, Value};

/// Why one field was refused.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldReason {
    /// A value was needed and is missing.
    Required(String),
    /// The value breaks a rule.
    Invalid(Value, String),
    /// As `Invalid`, with the value as text that is shown as it is.
    InvalidAs(String, String),
    /// The value is none of those that are known.
    NotSupported(Value, Vec<String>),
    /// The field may not be set here.
    Forbidden(String),
    /// The value occurs twice.
    Duplicate(Value),
    /// The value occurs twice, with a word on why that matters.
    DuplicateOf(Value, String),
    /// What the value names does not exist.
    NotFound(Value),
    /// What the value names does not exist, with a word on where it was sought.
    NotFoundIn(Value, String),
    /// More bytes than allowed.
    TooLong(usize),
    /// More items than allowed.
    TooMany(usize, usize),
    /// The value has the wrong type.
    TypeInvalid(Value, String),
    /// The server failed at checking the field.
    Internal(String),
}

/// One refused field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// The field, as `spec.containers[0].image`.
    pub field: String,
    /// What is wrong with it.
    pub reason: FieldReason,
}

impl FieldError {
    /// The cause's reason word.
    pub fn reason_name(&self) -> &'static str {
        match self.reason {
            FieldReason::Required(_) => "FieldValueRequired",
            FieldReason::Invalid(..) | FieldReason::InvalidAs(..) => "FieldValueInvalid",
            FieldReason::NotSupported(..) => "FieldValueNotSupported",
            FieldReason::Forbidden(_) => "FieldValueForbidden",
            FieldReason::Duplicate(_) | FieldReason::DuplicateOf(..) => "FieldValueDuplicate",
            FieldReason::NotFound(_) | FieldReason::NotFoundIn(..) => "FieldValueNotFound",
            FieldReason::TooLong(_) => "FieldValueTooLong",
            FieldReason::TooMany(..) => "FieldValueTooMany",
            FieldReason::TypeInvalid(..) => "FieldValueTypeInvalid",
            FieldReason::Internal(_) => "InternalError",
        }
    }

    /// The cause's message, without the field.
    pub fn message(&self) -> String {
        match &self.reason {
            FieldReason::Required(d) => with_detail("Required value", d),
            FieldReason::Forbidden(d) => with_detail("Forbidden", d),
            FieldReason::Internal(d) => with_detail("Internal error", d),
            FieldReason::Invalid(Value::Str(text), d) => {
                with_detail(&format!("Invalid value: {}", quoted(text)), d)
            }
            FieldReason::Invalid(v, d) => with_detail(&format!("Invalid value: {v}"), d),
            FieldReason::InvalidAs(text, d) if text.is_empty() => with_detail("Invalid value", d),
            FieldReason::InvalidAs(text, d) => with_detail(&format!("Invalid value: {text}"), d),
            FieldReason::TypeInvalid(v, d) => with_detail(&format!("Invalid value: {v}"), d),
            FieldReason::Duplicate(v) => format!("Duplicate value: {v}"),
            FieldReason::DuplicateOf(v, d) => with_detail(&format!("Duplicate value: {v}"), d),
            FieldReason::NotFound(v) => format!("Not found: {v}"),
            FieldReason::NotFoundIn(v, d) => with_detail(&format!("Not found: {v}"), d),
            FieldReason::TooLong(max) => {
                format!("Too long: may not be more than {max} bytes")
            }
            FieldReason::TooMany(n, max) => {
                format!("Too many: {n}: must have at most {max} items")
            }
            FieldReason::NotSupported(v, known) => {
                let list: Vec<String> = known.iter().map(|k| format!("\"{k}\"")).collect();
                format!("Unsupported value: {v}: supported values: {}", list.join(", "))
            }
        }
    }
}

/// A text in quotes, with the signs of markup as they are.
fn quoted(text: &str) -> String {
    let mut out = Value::from(text).to_string();
    for (escaped, sign) in [("\\u003c", "<"), ("\\u003e", ">"), ("\\u0026", "&")] {
        out = out.replace(escaped, sign);
    }
    out
}

fn with_detail(head: &str, detail: &str) -> String {
    if detail.is_empty() { head.to_owned() } else { format!("{head}: {detail}") }
}

/// The refused fields of one object, gathered while it is validated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldErrors {
    list: Vec<FieldError>,
}

impl FieldErrors {
    /// None so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing was refused.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many fields were refused.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// The refused fields in the order they were found.
    pub fn iter(&self) -> impl Iterator<Item = &FieldError> {
        self.list.iter()
    }

    /// Adds one.
    pub fn push(&mut self, field: impl Into<String>, reason: FieldReason) {
        self.list.push(FieldError { field: field.into(), reason });
    }

    /// Adds another list.
    pub fn extend(&mut self, other: FieldErrors) {
        self.list.extend(other.list);
    }

    /// A value is missing.
    pub fn required(&mut self, field: impl Into<String>, detail: impl Into<String>) {
        self.push(field, FieldReason::Required(detail.into()));
    }

    /// A value breaks a rule.
    pub fn invalid(
        &mut self,
        field: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) {
        self.push(field, FieldReason::Invalid(value.into(), detail.into()));
    }

    /// A field may not be set.
    pub fn forbidden(&mut self, field: impl Into<String>, detail: impl Into<String>) {
        self.push(field, FieldReason::Forbidden(detail.into()));
    }

    /// A value is none of those known.
    pub fn not_supported(
        &mut self,
        field: impl Into<String>,
        value: impl Into<Value>,
        known: &[&str],
    ) {
        let known = known.iter().map(|s| (*s).to_owned()).collect();
        self.push(field, FieldReason::NotSupported(value.into(), known));
    }

    /// A value occurs twice.
    pub fn duplicate(&mut self, field: impl Into<String>, value: impl Into<Value>) {
        self.push(field, FieldReason::Duplicate(value.into()));
    }

    /// A value names nothing.
    pub fn not_found(&mut self, field: impl Into<String>, value: impl Into<Value>) {
        self.push(field, FieldReason::NotFound(value.into()));
    }

    /// A value has too many bytes.
    pub fn too_long(&mut self, field: impl Into<String>, max: usize) {
        self.push(field, FieldReason::TooLong(max));
    }

    /// A list has too many items.
    pub fn too_many(&mut self, field: impl Into<String>, n: usize, max: usize) {
        self.push(field, FieldReason::TooMany(n, max));
    }
}

/// One field that an apply would take from another manager.
#[derive(Clone, Debug, PartialEq)]
pub struct ApplyConflict {
    /// The other manager's name as clients see it, e.g. `"kubectl" using apps/v1`.
    pub manager: String,
    /// The field, as `.spec.replicas`.
    pub field: String,
}

/// Group and plural of a resource, for messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceName {
    /// API group, empty for core.
    pub group: String,
    /// Plural name; `kind` for option types.
    pub resource: String,
}

impl ResourceName {
    /// Names a resource.
    pub fn new(group: impl Into<String>, resource: impl Into<String>) -> Self {
        Self { group: group.into(), resource: resource.into() }
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.resource)
        } else {
            write!(f, "{}.{}", self.resource, self.group)
        }
    }
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq)]
pub enum ApiError {
    /// 400: the request cannot be understood.
    BadRequest(String),
    /// 401: nobody known.
    Unauthorized,
    /// 403: `message` is what follows `<resource> "<name>" is forbidden: `.
    Forbidden {
        /// What was asked for.
        resource: ResourceName,
        /// Object name, empty when there is none yet.
        name: String,
        /// Why not.
        message: String,
        /// Causes as `(reason, message, field)`.
        causes: Vec<(String, String, String)>,
    },
    /// 403 on a path that is no resource.
    ForbiddenPath(String),
    /// 404: no such object.
    NotFound {
        /// Which resource.
        resource: ResourceName,
        /// Which name.
        name: String,
    },
    /// 404: no such path or resource type.
    NoSuchPath,
    /// 405.
    MethodNotAllowed,
    /// 406.
    NotAcceptable(String),
    /// 409: the name is taken.
    AlreadyExists {
        /// Which resource.
        resource: ResourceName,
        /// Which name.
        name: String,
    },
    /// 409: a generated name is taken; the client may try again.
    GeneratedNameTaken {
        /// Which resource.
        resource: ResourceName,
        /// Which name.
        name: String,
    },
    /// 409: `message` follows `Operation cannot be fulfilled on <resource> "<name>": `.
    Conflict {
        /// Which resource.
        resource: ResourceName,
        /// Which name.
        name: String,
        /// Why not.
        message: String,
    },
    /// 409: fields belong to others.
    ApplyConflicts(Vec<ApplyConflict>),
    /// 410: the resource version is too old.
    Expired(String),
    /// 410 without a fresh start being possible by a new list.
    Gone(String),
    /// 413.
    TooLarge(String),
    /// 415.
    UnsupportedMediaType,
    /// 422: fields were refused. `kind` holds group and kind.
    Invalid {
        /// Group and kind, both empty for a patch that cannot be applied.
        kind: ResourceName,
        /// Object name.
        name: String,
        /// The fields.
        errors: FieldErrors,
    },
    /// 422 without fields: a patch does not fit the object.
    Unprocessable(String),
    /// 429: try later.
    TooManyRequests {
        /// What to tell.
        message: String,
        /// Seconds to wait.
        retry_after_s: u32,
    },
    /// 429: a disruption budget is in the way.
    DisruptionBudget {
        /// Pod name.
        name: String,
        /// What to tell.
        message: String,
    },
    /// 500 with a message clients may see, no reason.
    Unexpected(String),
    /// 500, `InternalError`.
    Internal(String),
    /// 503.
    Unavailable(String),
    /// 504.
    Timeout {
        /// What to tell.
        message: String,
        /// Seconds to wait, if trying again helps.
        retry_after_s: Option<u32>,
    },
    /// 504: the resource version lies in the future.
    VersionTooLarge {
        /// What was asked for.
        asked: u64,
        /// What there is.
        current: u64,
    },
    /// A `Status` made elsewhere, e.g. by a webhook or a node.
    Status(Box<Value>),
}

/// What most conflicts say.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// Result of anything a request does.
pub type Result<T> = std::result::Result<T, ApiError>;

impl ApiError {
    /// A request that cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::BadRequest(message.into())
    }

    /// Refused fields of an object of this group and kind.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: FieldErrors) -> Self {
        Self::Invalid { kind: ResourceName::new(group, kind), name: name.to_owned(), errors }
    }

    /// A write that lost the race.
    pub fn modified(resource: ResourceName, name: &str) -> Self {
        Self::Conflict { resource, name: name.to_owned(), message: MODIFIED.to_owned() }
    }

    /// HTTP code and `Status.reason`.
    pub fn status(&self) -> (u16, &'static str) {
        match self {
            Self::BadRequest(_) => (400, "BadRequest"),
            Self::Unauthorized => (401, "Unauthorized"),
            Self::Forbidden { .. } | Self::ForbiddenPath(_) => (403, "Forbidden"),
            Self::NotFound { .. } | Self::NoSuchPath => (404, "NotFound"),
            Self::MethodNotAllowed => (405, "MethodNotAllowed"),
            Self::NotAcceptable(_) => (406, "NotAcceptable"),
            Self::AlreadyExists { .. } | Self::GeneratedNameTaken { .. } => (409, "AlreadyExists"),
            Self::Conflict { .. } | Self::ApplyConflicts(_) => (409, "Conflict"),
            Self::Expired(_) => (410, "Expired"),
            Self::Gone(_) => (410, "Gone"),
            Self::TooLarge(_) => (413, "RequestEntityTooLarge"),
            Self::UnsupportedMediaType => (415, "UnsupportedMediaType"),
            Self::Invalid { .. } => (422, "Invalid"),
            Self::Unprocessable(_) => (422, "Invalid"),
            Self::TooManyRequests { .. } | Self::DisruptionBudget { .. } => {
                (429, "TooManyRequests")
            }
            Self::Unexpected(_) => (500, ""),
            Self::Internal(_) => (500, "InternalError"),
            Self::Unavailable(_) => (503, "ServiceUnavailable"),
            Self::Timeout { .. } | Self::VersionTooLarge { .. } => (504, "Timeout"),
            Self::Status(v) => {
                let code = v["code"].as_int().and_then(|c| u16::try_from(c).ok()).unwrap_or(500);
                (code, "")
            }
        }
    }

    /// Seconds after which the client may try again (`Retry-After`).
    pub fn retry_after_s(&self) -> Option<u32> {
        match self {
            Self::TooManyRequests { retry_after_s, .. } => Some(*retry_after_s),
            Self::Timeout { retry_after_s, .. } => *retry_after_s,
            Self::GeneratedNameTaken { .. } | Self::VersionTooLarge { .. } => Some(1),
            Self::Status(v) => {
                v.int_at(&["details", "retryAfterSeconds"]).and_then(|s| u32::try_from(s).ok())
            }
            _ => None,
        }
    }

    /// The sentence a person reads.
    pub fn message(&self) -> String {
        match self {
            Self::BadRequest(m)
            | Self::NotAcceptable(m)
            | Self::Expired(m)
            | Self::Gone(m)
            | Self::TooLarge(m)
            | Self::Unprocessable(m)
            | Self::Unexpected(m)
            | Self::Unavailable(m)
            | Self::TooManyRequests { message: m, .. }
            | Self::DisruptionBudget { message: m, .. } => m.clone(),
            Self::Internal(m) => format!("Internal error occurred: {m}"),
            Self::Unauthorized => "Unauthorized".to_owned(),
            Self::ForbiddenPath(m) => format!("forbidden: {m}"),
            Self::Forbidden { resource, name, message, .. } if name.is_empty() => {
                format!("{resource} is forbidden: {message}")
            }
            Self::Forbidden { resource, name, message, .. } => {
                format!("{resource} \"{name}\" is forbidden: {message}")
            }
            Self::NotFound { resource, name } => format!("{resource} \"{name}\" not found"),
            Self::NoSuchPath => "the server could not find the requested resource".to_owned(),
            Self::MethodNotAllowed => {
                "the server does not allow this method on the requested resource".to_owned()
            }
            Self::AlreadyExists { resource, name } => {
                format!("{resource} \"{name}\" already exists")
            }
            Self::GeneratedNameTaken { resource, name } => format!(
                "{resource} \"{name}\" already exists, the server was not able to generate a \
                 unique name for the object"
            ),
            Self::Conflict { resource, name, message } => {
                format!("Operation cannot be fulfilled on {resource} \"{name}\": {message}")
            }
            Self::ApplyConflicts(list) => conflicts_message(list),
            Self::UnsupportedMediaType => "415: Unsupported Media Type".to_owned(),
            Self::Invalid { kind, name, errors } => invalid_message(kind, name, errors),
            Self::Timeout { message, .. } => format!("Timeout: {message}"),
            Self::VersionTooLarge { asked, current } => {
                format!("Timeout: Too large resource version: {asked}, current: {current}")
            }
            Self::Status(v) => v["message"].text().to_owned(),
        }
    }

    /// The `Status` object a client receives.
    pub fn to_status(&self) -> Value {
        if let Self::Status(v) = self {
            return (**v).clone();
        }
        let (code, reason) = self.status();
        let mut out = Map::with_capacity(8);
        out.insert("apiVersion", "v1");
        out.insert("code", i64::from(code));
        if let Some(details) = self.details() {
            out.insert("details", details);
        }
        out.insert("kind", "Status");
        out.insert("message", self.message());
        out.insert("metadata", Value::object());
        if !reason.is_empty() {
            out.insert("reason", reason);
        }
        out.insert("status", "Failure");
        Value::Object(out)
    }

    fn details(&self) -> Option<Value> {
        let mut d = Map::new();
        match self {
            Self::Forbidden { resource, name, causes, .. } => {
                name_details(&mut d, resource, name);
                set_causes(&mut d, causes.iter().map(|(r, m, f)| cause(r, m, f)).collect());
            }
            Self::NotFound { resource, name }
            | Self::AlreadyExists { resource, name }
            | Self::Conflict { resource, name, .. } => name_details(&mut d, resource, name),
            Self::GeneratedNameTaken { resource, name } => {
                name_details(&mut d, resource, name);
                d.insert("retryAfterSeconds", 1_i64);
            }
            Self::ApplyConflicts(list) => {
                let causes = list.iter().map(|c| {
                    let message = format!("conflict with {}", c.manager);
                    cause("FieldManagerConflict", &message, &c.field)
                });
                set_causes(&mut d, causes.collect());
            }
            Self::Invalid { kind, name, errors } => {
                name_details(&mut d, kind, name);
                let causes = errors.iter().map(|e| cause(e.reason_name(), &e.message(), &e.field));
                set_causes(&mut d, causes.collect());
            }
            Self::TooManyRequests { retry_after_s, .. } => {
                d.insert("retryAfterSeconds", *retry_after_s);
            }
            Self::DisruptionBudget { message, .. } => {
                set_causes(&mut d, vec![cause("DisruptionBudget", message, "")]);
            }
            Self::Timeout { retry_after_s: Some(s), .. } => {
                d.insert("retryAfterSeconds", *s);
            }
            Self::VersionTooLarge { .. } => {
                set_causes(
                    &mut d,
                    vec![cause("ResourceVersionTooLarge", "Too large resource version", "")],
                );
                d.insert("retryAfterSeconds", 1_i64);
            }
            Self::Internal(m) => set_causes(&mut d, vec![cause("", m, "")]),
            Self::MethodNotAllowed
            | Self::NoSuchPath
            | Self::UnsupportedMediaType
            | Self::ForbiddenPath(_)
            | Self::Unprocessable(_) => {}
            _ => return None,
        }
        Some(Value::Object(d))
    }
}

fn name_details(d: &mut Map, resource: &ResourceName, name: &str) {
    for (key, value) in
        [("group", resource.group.as_str()), ("kind", &resource.resource), ("name", name)]
    {
        if !value.is_empty() {
            d.insert(key, value);
        }
    }
}

fn set_causes(d: &mut Map, causes: Vec<Value>) {
    if !causes.is_empty() {
        d.insert("causes", causes);
    }
}

fn cause(reason: &str, message: &str, field: &str) -> Value {
    let mut c = Map::new();
    for (key, value) in [("field", field), ("message", message), ("reason", reason)] {
        if !value.is_empty() {
            c.insert(key, value);
        }
    }
    Value::Object(c)
}

fn invalid_message(kind: &ResourceName, name: &str, errors: &FieldErrors) -> String {
    let mut seen: Vec<String> = Vec::new();
    for e in errors.iter() {
        let text = format!("{}: {}", e.field, e.message());
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    let list = match seen.as_slice() {
        [] => return format!("{kind} \"{name}\" is invalid"),
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    format!("{kind} \"{name}\" is invalid: {list}")
}

fn conflicts_message(list: &[ApplyConflict]) -> String {
    if let [one] = list {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager, one.field
        );
    }
    let mut managers: Vec<&str> = list.iter().map(|c| c.manager.as_str()).collect();
    managers.sort_unstable();
    managers.dedup();
    let mut parts = Vec::new();
    for m in managers {
        parts.push(format!("conflicts with {m}:"));
        parts.extend(list.iter().filter(|c| c.manager == m).map(|c| format!("- {}", c.field)));
    }
    format!("Apply failed with {} conflicts: {}", list.len(), parts.join("\n"))
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for ApiError {}
