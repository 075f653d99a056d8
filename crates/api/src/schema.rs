//! What the fields of an object are: one structure for built-in types (static, from the text tables) and for
//! custom ones (built at run time).
//!
//! Codecs, defaults, pruning, strategic merge, apply and OpenAPI all walk it.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

use crate::object::Value;

/// A string that is static in the tables and owned in a custom schema.
pub type Str = Cow<'static, str>;

/// A reference into the static tables or to a part of a custom schema.
#[derive(Debug)]
pub enum Ref<T: 'static> {
    /// Built in.
    Static(&'static T),
    /// Made at run time.
    Shared(Arc<T>),
}

impl<T> Clone for Ref<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Static(t) => Self::Static(t),
            Self::Shared(t) => Self::Shared(Arc::clone(t)),
        }
    }
}

impl<T> Deref for Ref<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Static(t) => t,
            Self::Shared(t) => t,
        }
    }
}

impl<T> From<T> for Ref<T> {
    fn from(t: T) -> Self {
        Self::Shared(Arc::new(t))
    }
}

/// The form of a value.
#[derive(Clone, Debug)]
pub enum Shape {
    /// A string.
    String,
    /// A boolean.
    Bool,
    /// A 32-bit integer.
    Int32,
    /// A 64-bit integer.
    Int64,
    /// A double.
    Float,
    /// Base64 text; bytes in protobuf.
    Bytes,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// Seconds, as `1.5s`.
    Duration,
    /// A quantity such as `100m`.
    Quantity,
    /// An integer or a string.
    IntOrString,
    /// Any object, kept as it is (RawExtension, FieldsV1).
    RawObject,
    /// Any JSON (a schema's default, enum and example).
    Json,
    /// A custom number: an integer or a float.
    Number,
    /// An object with known fields.
    Object(Ref<Type>),
    /// A list.
    List(Ref<Field>),
    /// A map from strings.
    Map(Ref<Field>),
}

/// How a list is merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// As a whole.
    #[default]
    Atomic,
    /// By value.
    Set,
    /// By key fields.
    Map(Cow<'static, [Str]>),
}

/// A field of a type, or the element of a list or map.
#[derive(Clone, Debug)]
pub struct Field {
    /// JSON name; empty for an element.
    pub name: Str,
    /// Protobuf numbers: of the field, before it those of the messages it is nested in where JSON is flat; a single 0
    /// when it has none.
    pub numbers: Cow<'static, [u32]>,
    /// What it holds.
    pub shape: Shape,
    /// Required by OpenAPI.
    pub required: bool,
    /// A Go pointer: a zero value differs from an absent one and is kept.
    pub pointer: bool,
    /// Written even when empty.
    pub keep: bool,
    /// `null` is a value of its own (custom schemas).
    pub nullable: bool,
    /// Merge rule of a list.
    pub list: ListType,
    /// The schema says `atomic` in so many words.
    pub declared_atomic: bool,
    /// A map or object that is owned and replaced as a whole.
    pub atomic: bool,
    /// Not atomic here although its type is.
    pub granular: bool,
    /// Strategic merge: lists are merged (by `merge_key` or as a set).
    pub patch_merge: bool,
    /// Strategic merge: absent members are dropped.
    pub patch_retain_keys: bool,
    /// Strategic merge: the key of a merged list.
    pub merge_key: Str,
    /// Default as JSON text; empty for none.
    pub default: Str,
    /// Values the field may take, as OpenAPI lists them.
    pub values: Cow<'static, [Str]>,
}

impl Field {
    /// A plain optional field.
    pub const fn new(name: Str, shape: Shape) -> Self {
        Self {
            name,
            numbers: Cow::Borrowed(&[]),
            shape,
            required: false,
            pointer: false,
            keep: false,
            nullable: false,
            list: ListType::Atomic,
            declared_atomic: false,
            atomic: false,
            granular: false,
            patch_merge: false,
            patch_retain_keys: false,
            merge_key: Cow::Borrowed(""),
            default: Cow::Borrowed(""),
            values: Cow::Borrowed(&[]),
        }
    }
}

/// The fields of a type, sorted by name.
///
/// They are asked for by name for every member of every object that is read, and far apart in memory: their names' marks
/// lie side by side and are looked through first.
#[derive(Clone, Debug)]
pub struct Fields {
    list: Cow<'static, [Field]>,
    marks: Cow<'static, [u32]>,
}

/// A number that tells most names of a type apart: the length and the bytes at the ends and in the middle.
const fn mark(name: &str) -> u32 {
    let name = name.as_bytes();
    let n = name.len();
    if n == 0 {
        return 0;
    }
    u32::from_le_bytes([n as u8, name[0], name[n / 2], name[n - 1]])
}

impl Fields {
    /// Fields in any order.
    pub fn of(mut list: Vec<Field>) -> Self {
        list.sort_by(|a, b| a.name.cmp(&b.name));
        let marks = list.iter().map(|f| mark(&f.name)).collect();
        Self { list: Cow::Owned(list), marks: Cow::Owned(marks) }
    }

    fn find(&self, name: &str) -> Option<&Field> {
        let wanted = mark(name);
        let alike = self.marks.iter().zip(self.list.iter()).filter(|(mark, _)| **mark == wanted);
        alike.map(|(_, field)| field).find(|field| field.name == name)
    }
}

impl Deref for Fields {
    type Target = [Field];

    fn deref(&self) -> &[Field] {
        &self.list
    }
}

/// An object type.
#[derive(Clone, Debug)]
pub struct Type {
    /// Full name, as `io.k8s.api.apps.v1.Deployment`.
    pub name: Str,
    /// What it may have.
    pub fields: Fields,
    /// Unknown fields are kept.
    pub preserve_unknown: bool,
    /// `apiVersion`, `kind` and `metadata` stand inside (x-kubernetes-embedded-resource).
    pub embedded: bool,
    /// The whole object is owned and replaced as one.
    pub atomic: bool,
    /// Group, version and kind if the type is an object of its own (the first, if of several).
    pub gvk: Option<(Str, Str, Str)>,
    /// Made from a custom resource definition: types are checked by `crd::validate`, not while decoding.
    pub custom: bool,
    /// The OpenAPI text of a custom resource, for validation; `Null` for built-in types.
    pub openapi: Value,
}

impl Type {
    /// The field named `name`.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.find(name)
    }

    /// The last part of the name.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or("")
    }
}

include!(concat!(env!("OUT_DIR"), "/schema.rs"));

/// All built-in types, sorted by name.
pub fn all() -> &'static [Type] {
    &TYPES
}

/// The built-in type with this full name.
pub fn find(name: &str) -> Option<&'static Type> {
    TYPES.binary_search_by(|t| t.name.as_ref().cmp(name)).ok().map(|i| &TYPES[i])
}
