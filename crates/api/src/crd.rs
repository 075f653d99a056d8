//! Turns a CustomResourceDefinition into catalogue rows and validates custom objects by its schema.

pub mod names;

use std::borrow::Cow;

use crate::catalog::{
    ALL_VERBS, Generation, NameRule, Resource, ScalePaths, SelectableField, Subresource,
};
use crate::columns::Column;
use crate::error::{FieldErrors, FieldReason};
use crate::jsonpath::Path;
use crate::object::Value;
use crate::schema::{self, Field, Fields, ListType, Ref, Shape, Str, Type};

/// Schemas nested deeper are cut off: what lies below is kept as it is.
const SCHEMA_DEPTH_MAX: usize = 64;

fn owned(s: &str) -> Str {
    Cow::Owned(s.to_owned())
}

/// What can be done with objects whose definition is being deleted.
const LAST_VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "watch"];

/// Rows for the served versions of a definition that was granted names, with those names.
pub fn resources(crd: &Value) -> Vec<Resource> {
    if !names::is_served(crd) {
        return Vec::new();
    }
    let spec = &crd["spec"];
    let names = &crd["status"]["acceptedNames"];
    let versions = spec["versions"].items();
    let storage = versions.iter().find(|v| v["storage"].as_bool() == Some(true));
    let storage = storage.map(|v| v["name"].text()).unwrap_or("");
    let served = versions.iter().filter(|v| v["served"].as_bool() == Some(true));
    let mut rows: Vec<Resource> = served.map(|v| resource(spec, names, v, storage)).collect();
    if names::is(crd, "Terminating") {
        rows.iter_mut()
            .for_each(|row| row.verbs = LAST_VERBS.iter().map(|v| Str::Borrowed(v)).collect());
    }
    rows
}

/// Finalizers that another writer could mean something else by.
fn finalizer_warnings(new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
    let known: Vec<&str> = old.into_iter().flat_map(crate::meta::finalizers).collect();
    for name in crate::meta::finalizers(new).filter(|f| !f.contains('/') && !known.contains(f)) {
        out.push(format!(
            "metadata.finalizers: {name:?}: prefer a domain-qualified finalizer name including a path (/) to avoid \
             accidental conflicts with other finalizer writers"
        ));
    }
}

fn resource(spec: &Value, names: &Value, version: &Value, storage: &str) -> Resource {
    let list = |key: &str| names[key].items().iter().map(|s| owned(s.text())).collect();
    let (group, plural) = (spec["group"].text(), names["plural"].text());
    let kind = names["kind"].text();
    let has_status = version["subresources"].has("status");
    let scale = &version["subresources"]["scale"];
    let openapi = &version["schema"]["openAPIV3Schema"];
    Resource {
        group: owned(group),
        version: owned(version["name"].text()),
        kind: owned(kind),
        list_kind: owned(names["listKind"].text()),
        plural: owned(plural),
        singular: owned(names["singular"].text()),
        short_names: list("shortNames"),
        categories: list("categories"),
        namespaced: spec["scope"].text() == "Namespaced",
        verbs: ALL_VERBS.iter().map(|v| Str::Borrowed(v)).collect(),
        subresources: subresources(has_status, !scale.is_null(), kind),
        scale: (!scale.is_null()).then(|| ScalePaths {
            spec_replicas: owned(scale["specReplicasPath"].text()),
            status_replicas: owned(scale["statusReplicasPath"].text()),
            selector: owned(scale["labelSelectorPath"].text()),
        }),
        stored: true,
        storage_version: owned(storage),
        storage_group: owned(group),
        to_storage: None,
        from_storage: None,
        storage_prefix: owned(&format!("{group}/{plural}")),
        schema: Ref::from(root_type(kind, openapi)),
        selectable: selectable(version, spec["scope"].text() == "Namespaced"),
        columns: columns(version),
        cells: None,
        immutable: Vec::new(),
        name_rule: NameRule::Subdomain,
        generation: Generation::Spec,
        status_reset: has_status,
        resets_status_on_create: true,
        on_create: None,
        on_update: None,
        create_on_update: false,
        update_needs_version: true,
        defaults: None,
        rules: None,
        status_rules: None,
        warnings: Some(finalizer_warnings),
        deprecation: deprecation(spec, version, kind),
        custom: true,
    }
}

/// What clients of a deprecated version are told.
fn deprecation(spec: &Value, version: &Value, kind: &str) -> Str {
    if version["deprecated"].as_bool() != Some(true) {
        return "".into();
    }
    match version["deprecationWarning"].as_str() {
        Some(text) => owned(text),
        None => {
            let (group, name) = (spec["group"].text(), version["name"].text());
            owned(&format!("{group}/{name} {kind} is deprecated"))
        }
    }
}

fn subresources(status: bool, scale: bool, kind: &str) -> Vec<Subresource> {
    let verbs = || ["get", "patch", "update"].map(Str::Borrowed).to_vec();
    let mut out = Vec::new();
    if scale {
        out.push(Subresource {
            name: "scale".into(),
            group: "autoscaling".into(),
            version: "v1".into(),
            kind: "Scale".into(),
            verbs: verbs(),
        });
    }
    if status {
        let (group, version) = ("".into(), "".into());
        out.push(Subresource {
            name: "status".into(),
            group,
            version,
            kind: owned(kind),
            verbs: verbs(),
        });
    }
    out
}

fn selectable(version: &Value, namespaced: bool) -> Vec<SelectableField> {
    let field = |label: &str| SelectableField {
        label: owned(label),
        paths: vec![label.split('.').map(owned).collect()],
    };
    let mut out = vec![field("metadata.name")];
    if namespaced {
        out.push(field("metadata.namespace"));
    }
    for f in version["selectableFields"].items() {
        out.push(field(f["jsonPath"].text().trim_start_matches('.')));
    }
    out
}

fn columns(version: &Value) -> Vec<Column> {
    let column = |name: &str, kind: &str| Column {
        name: owned(name),
        kind: owned(kind),
        format: "".into(),
        description: "".into(),
        priority: 0,
        path: None,
    };
    let mut out = vec![Column { format: "name".into(), ..column("Name", "string") }];
    let given = version["additionalPrinterColumns"].items();
    for c in given {
        out.push(Column {
            format: owned(c["format"].text()),
            description: owned(c["description"].text()),
            priority: c["priority"].as_int().unwrap_or(0),
            path: Path::parse(c["jsonPath"].text()).ok(),
            ..column(c["name"].text(), c["type"].text())
        });
    }
    if given.is_empty() {
        let path = Path::parse(".metadata.creationTimestamp").ok();
        out.push(Column { path, ..column("Age", "date") });
    }
    out
}

/// The type of a whole custom object.
fn root_type(kind: &str, openapi: &Value) -> Type {
    let mut ty = object_type(kind, openapi, 0);
    add_identity(&mut ty);
    ty.openapi = openapi.clone();
    ty
}

/// `apiVersion`, `kind` and `metadata`, which every object has.
fn add_identity(ty: &mut Type) {
    let mut fields = ty.fields.to_vec();
    fields.retain(|f| !matches!(f.name.as_ref(), "apiVersion" | "kind" | "metadata"));
    for name in ["apiVersion", "kind"] {
        fields.push(Field::new(name.into(), Shape::String));
    }
    if let Some(meta) = schema::find("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") {
        fields.push(Field::new("metadata".into(), Shape::Object(Ref::Static(meta))));
    }
    ty.fields = Fields::of(fields);
}

fn object_type(name: &str, s: &Value, depth: usize) -> Type {
    let fields = s["properties"].members().map(|(k, p)| field(k, p, depth + 1)).collect();
    let mut ty = Type {
        name: owned(name),
        fields: Fields::of(fields),
        preserve_unknown: s["x-kubernetes-preserve-unknown-fields"].as_bool() == Some(true),
        embedded: s["x-kubernetes-embedded-resource"].as_bool() == Some(true),
        atomic: s["x-kubernetes-map-type"].text() == "atomic",
        gvk: None,
        custom: true,
        openapi: Value::Null,
    };
    if ty.embedded {
        add_identity(&mut ty);
    }
    ty
}

fn field(name: &str, s: &Value, depth: usize) -> Field {
    let mut f = Field::new(owned(name), shape(name, s, depth));
    f.pointer = true;
    f.nullable = s["nullable"].as_bool() == Some(true);
    f.atomic = s["x-kubernetes-map-type"].text() == "atomic";
    f.list = match s["x-kubernetes-list-type"].text() {
        "set" => ListType::Set,
        "map" => {
            let keys = s["x-kubernetes-list-map-keys"].items().iter();
            ListType::Map(Cow::Owned(keys.map(|k| owned(k.text())).collect()))
        }
        _ => ListType::Atomic,
    };
    if let Some(default) = s.get("default") {
        f.default = Cow::Owned(default.to_string());
    }
    f
}

fn shape(name: &str, s: &Value, depth: usize) -> Shape {
    if depth > SCHEMA_DEPTH_MAX {
        return Shape::Json;
    }
    if s["x-kubernetes-int-or-string"].as_bool() == Some(true) {
        return Shape::IntOrString;
    }
    match s["type"].text() {
        "string" => Shape::String,
        "integer" => Shape::Int64,
        "number" => Shape::Number,
        "boolean" => Shape::Bool,
        "array" => Shape::List(Ref::from(field("", &s["items"], depth + 1))),
        "object" => match &s["additionalProperties"] {
            v @ Value::Object(_) => Shape::Map(Ref::from(field("", v, depth + 1))),
            Value::Bool(true) => {
                let mut free = object_type(name, s, depth);
                free.preserve_unknown = true;
                Shape::Object(Ref::from(free))
            }
            _ => Shape::Object(Ref::from(object_type(name, s, depth))),
        },
        _ if s["x-kubernetes-preserve-unknown-fields"].as_bool() == Some(true) => {
            Shape::Object(Ref::from(object_type(name, s, depth)))
        }
        _ => Shape::Json,
    }
}

/// Checks a custom object against its version's OpenAPI schema.
pub fn validate(resource: &Resource, object: &Value, errs: &mut FieldErrors) {
    let s = &resource.schema.openapi;
    for (name, property) in s["properties"].members() {
        if let Some(v) = object.get(name)
            && !matches!(name, "metadata" | "apiVersion" | "kind")
        {
            check(name, property, v, errs, 0);
        }
    }
    for r in s["required"].items() {
        if object.get(r.text()).is_none() {
            errs.required(r.text(), "");
        }
    }
}

fn type_of(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Int(_) => "integer",
        Value::Float(_) => "number",
        Value::Str(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn type_fits(s: &Value, v: &Value) -> bool {
    let want = s["type"].text();
    match v {
        Value::Null => s["nullable"].as_bool() == Some(true) || want.is_empty(),
        _ if s["x-kubernetes-int-or-string"].as_bool() == Some(true) => {
            matches!(v, Value::Int(_) | Value::Str(_))
        }
        Value::Int(_) => matches!(want, "" | "integer" | "number"),
        Value::Float(f) => matches!(want, "" | "number") || (want == "integer" && f.fract() == 0.0),
        _ => want.is_empty() || want == type_of(v),
    }
}

fn check(path: &str, s: &Value, v: &Value, errs: &mut FieldErrors, depth: usize) {
    if depth > SCHEMA_DEPTH_MAX {
        return;
    }
    if !type_fits(s, v) {
        let got = type_of(v);
        let want = if s["x-kubernetes-int-or-string"].as_bool() == Some(true) {
            "integer,string"
        } else {
            s["type"].text()
        };
        let text = format!("{path} in body must be of type {want}: \"{got}\"");
        errs.push(path, FieldReason::TypeInvalid(Value::from(got), text));
        return;
    }
    if v.is_null() {
        return;
    }
    let known = s["enum"].items();
    if !known.is_empty() && !known.contains(v) {
        let words = known.iter().map(|k| k.as_str().map_or_else(|| k.to_string(), str::to_owned));
        errs.push(path, FieldReason::NotSupported(v.clone(), words.collect()));
    }
    match v {
        Value::Str(text) => check_string(path, s, text, errs),
        Value::Int(_) | Value::Float(_) => check_number(path, s, v, errs),
        Value::Array(items) => check_list(path, s, items, errs, depth),
        Value::Object(_) => check_object(path, s, v, errs, depth),
        Value::Null | Value::Bool(_) => {}
    }
    check_logic(path, s, v, errs, depth);
}

fn check_string(path: &str, s: &Value, text: &str, errs: &mut FieldErrors) {
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    if let Some(max) = s["maxLength"].as_int()
        && length > max
    {
        errs.too_long(path, usize::try_from(max).unwrap_or(0));
    }
    if let Some(min) = s["minLength"].as_int()
        && length < min
    {
        errs.invalid(path, text, format!("{path} in body should be at least {min} chars long"));
    }
    if let Some(pattern) = s["pattern"].as_str()
        && let Ok(re) = regex::RegexBuilder::new(pattern).size_limit(1 << 20).build()
        && !re.is_match(text)
    {
        errs.invalid(path, text, format!("{path} in body should match '{pattern}'"));
    }
    let fits = match s["format"].text() {
        "date-time" => crate::time::parse(text).is_some(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "uuid" => text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'),
        _ => true,
    };
    if !fits {
        let format = s["format"].text();
        let text_value = Value::from(text);
        let detail = format!("{path} in body must be of type {format}: {text_value}");
        errs.invalid(path, text, detail);
    }
}

fn check_number(path: &str, s: &Value, v: &Value, errs: &mut FieldErrors) {
    let n = v.as_float().unwrap_or(0.0);
    if let Some(max) = s["maximum"].as_float() {
        let exclusive = s["exclusiveMaximum"].as_bool() == Some(true);
        if n > max || (exclusive && n >= max) {
            let or = if exclusive { "" } else { " or equal to" };
            let bound = &s["maximum"];
            errs.invalid(
                path,
                v.clone(),
                format!("{path} in body should be less than{or} {bound}"),
            );
        }
    }
    if let Some(min) = s["minimum"].as_float() {
        let exclusive = s["exclusiveMinimum"].as_bool() == Some(true);
        if n < min || (exclusive && n <= min) {
            let or = if exclusive { "" } else { " or equal to" };
            let bound = &s["minimum"];
            errs.invalid(
                path,
                v.clone(),
                format!("{path} in body should be greater than{or} {bound}"),
            );
        }
    }
    if let Some(of) = s["multipleOf"].as_float()
        && of != 0.0
        && (n / of).fract() != 0.0
    {
        let bound = &s["multipleOf"];
        errs.invalid(path, v.clone(), format!("{path} in body should be a multiple of {bound}"));
    }
}

fn check_list(path: &str, s: &Value, items: &[Value], errs: &mut FieldErrors, depth: usize) {
    let n = i64::try_from(items.len()).unwrap_or(i64::MAX);
    if let Some(max) = s["maxItems"].as_int()
        && n > max
    {
        errs.too_many(path, items.len(), usize::try_from(max).unwrap_or(0));
    }
    if let Some(min) = s["minItems"].as_int()
        && n < min
    {
        let text = format!("{path} in body should have at least {min} items");
        errs.invalid(path, n, text);
    }
    for (i, v) in items.iter().enumerate() {
        check(&format!("{path}[{i}]"), &s["items"], v, errs, depth + 1);
    }
    let keys = s["x-kubernetes-list-map-keys"].items();
    let identity = |v: &Value| match s["x-kubernetes-list-type"].text() {
        "set" => Some(v.clone()),
        "map" => {
            Some(Value::Object(keys.iter().map(|k| (k.text(), v[k.text()].clone())).collect()))
        }
        _ => None,
    };
    for (i, v) in items.iter().enumerate() {
        let Some(id) = identity(v) else { return };
        if items[..i].iter().any(|o| identity(o).as_ref() == Some(&id)) {
            errs.duplicate(format!("{path}[{i}]"), id);
        }
    }
}

fn check_object(path: &str, s: &Value, v: &Value, errs: &mut FieldErrors, depth: usize) {
    for r in s["required"].items() {
        if v.get(r.text()).is_none() {
            errs.required(format!("{path}.{}", r.text()), "");
        }
    }
    let n = i64::try_from(v.members().count()).unwrap_or(i64::MAX);
    if let Some(max) = s["maxProperties"].as_int()
        && n > max
    {
        let count = usize::try_from(n).unwrap_or(0);
        errs.too_many(path, count, usize::try_from(max).unwrap_or(0));
    }
    if let Some(min) = s["minProperties"].as_int()
        && n < min
    {
        errs.invalid(path, n, format!("{path} in body should have at least {min} properties"));
    }
    let rest = &s["additionalProperties"];
    for (key, child) in v.members() {
        let at = format!("{path}.{key}");
        match s["properties"].get(key) {
            Some(p) => check(&at, p, child, errs, depth + 1),
            None if rest.as_object().is_some() => check(&at, rest, child, errs, depth + 1),
            None => {}
        }
    }
}

fn check_logic(path: &str, s: &Value, v: &Value, errs: &mut FieldErrors, depth: usize) {
    let valid = |s: &Value| {
        let mut inner = FieldErrors::new();
        check(path, s, v, &mut inner, depth + 1);
        inner.is_empty()
    };
    let mut refuse = |text: String| errs.invalid(path, "", text);
    let any = s["anyOf"].items();
    if !any.is_empty() && !any.iter().any(valid) {
        refuse(format!("\"{path}\" must validate at least one schema (anyOf)"));
    }
    let one = s["oneOf"].items();
    if !one.is_empty() {
        match one.iter().filter(|s| valid(s)).count() {
            1 => {}
            0 => refuse(format!(
                "\"{path}\" must validate one and only one schema (oneOf). Found none valid"
            )),
            n => refuse(format!(
                "\"{path}\" must validate one and only one schema (oneOf). Found {n} valid alternatives"
            )),
        }
    }
    let all = s["allOf"].items();
    if !all.is_empty() && !all.iter().all(valid) {
        refuse(format!("\"{path}\" must validate all the schemas (allOf)"));
    }
    if s.has("not") && valid(&s["not"]) {
        refuse(format!("\"{path}\" must not validate the schema (not)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    fn thing() -> Resource {
        let crd = json!({"spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"kind": "Thing", "listKind": "ThingList", "plural": "things", "singular": "thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "required": ["a"], "properties": {
                        "a": {"type": "string", "pattern": "^x"},
                        "n": {"type": "integer", "minimum": 1, "default": 3},
                    }}}}}}],
        }});
        let now = crate::time::parse("2026-01-01T00:00:00Z").unwrap();
        resources(&names::settled(&crd, &[], now).unwrap()).remove(0)
    }

    #[test]
    fn custom_objects_are_pruned_defaulted_and_checked() {
        let r = thing();
        let body = br#"{"apiVersion":"example.com/v1","kind":"Thing","metadata":{"name":"t"},"spec":{"a":"y","zzz":1}}"#;
        let d = crate::codec::json::decode(body, &r.schema).unwrap();
        assert_eq!(d.strict, ["unknown field \"spec.zzz\""]);
        let mut v = d.value;
        crate::defaults::apply(&mut v, &r);
        assert_eq!(v["spec"], json!({"a": "y", "n": 3}));
        let mut errs = FieldErrors::new();
        validate(&r, &v, &mut errs);
        let text: Vec<String> =
            errs.iter().map(|e| format!("{}: {}", e.field, e.message())).collect();
        assert_eq!(text, ["spec.a: Invalid value: \"y\": spec.a in body should match '^x'"]);
    }

    #[test]
    fn wrong_types_are_named() {
        let mut errs = FieldErrors::new();
        validate(&thing(), &json!({"spec": {"n": "x"}}), &mut errs);
        let text: Vec<String> =
            errs.iter().map(|e| format!("{}: {}", e.field, e.message())).collect();
        assert_eq!(
            text,
            [
                "spec.a: Required value",
                "spec.n: Invalid value: \"string\": spec.n in body must be of type integer: \"string\"",
            ]
        );
    }
}
