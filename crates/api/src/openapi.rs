//! Builds the OpenAPI v3 documents from catalogue and schema.
//!
//! Pure functions; who serves them caches the result and its hash.

use std::collections::BTreeMap;

use crate::catalog::{Catalog, Resource};
use crate::json;
use crate::object::{Map, Value};
use crate::schema::{self, Field, ListType, Shape, Type};

mod swagger;
pub use swagger::swagger;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const SCHEMAS: &str = "#/components/schemas/";

/// The path of a group and version: `api/v1` or `apis/apps/v1`.
pub fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The v3 index: each document's path and relative URL. `hash` gives the hash of the document at a path.
pub fn index(catalog: &Catalog, hash: &dyn Fn(&str) -> String) -> Value {
    let mut paths = Map::new();
    let mut add = |path: &str| {
        let url = format!("/openapi/v3/{path}?hash={}", hash(path));
        paths.insert(path, json!({ "serverRelativeURL": url }));
    };
    for fixed in [".well-known/openid-configuration", "api", "apis", "openid/v1/jwks", "version"] {
        add(fixed);
    }
    for group in catalog.groups() {
        if !group.name.is_empty() {
            add(&format!("apis/{}", group.name));
        }
        for version in &group.versions {
            add(&path_of(&group.name, version));
        }
    }
    json!({ "paths": serde_json::Value::from(&Value::Object(paths)) })
}

/// The document of one group and version.
pub fn document(catalog: &Catalog, group: &str, version: &str) -> Value {
    let mut parts = Parts::default();
    let base = format!("/{}", path_of(group, version));
    parts.paths.insert(format!("{base}/"), json!({"get": {"operationId": "getAPIResources"}}));
    for resource in catalog.of_version(group, version) {
        parts.resource(&base, resource);
    }
    for name in ["Status", "DeleteOptions", "Patch", "APIResourceList"] {
        parts.need(&format!("{META}.{name}"));
    }
    parts.finish()
}

/// The documents of paths that are no group and version (`version`, `api`, …): empty of operations.
pub fn plain_document(path: &str) -> Value {
    let mut parts = Parts::default();
    parts.paths.insert(format!("/{path}/"), json!({"get": {}}));
    parts.finish()
}

#[derive(Default)]
struct Parts {
    paths: BTreeMap<String, Value>,
    schemas: BTreeMap<String, Value>,
}

impl Parts {
    fn finish(self) -> Value {
        let mut out =
            json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}});
        out.set("paths", self.paths.into_iter().collect::<Map>());
        out.set_at(&["components", "schemas"], self.schemas.into_iter().collect::<Map>());
        out
    }

    /// Adds a built-in type and all it refers to.
    fn need(&mut self, name: &str) {
        if self.schemas.contains_key(name) {
            return;
        }
        if let Some(special) = special(name) {
            self.schemas.insert(name.to_owned(), special);
        } else if let Some(ty) = schema::find(name) {
            self.schemas.insert(name.to_owned(), Value::Null);
            let v = type_schema(ty, &mut |n| self.need(n));
            self.schemas.insert(name.to_owned(), v);
        }
    }

    fn resource(&mut self, base: &str, r: &Resource) {
        let name = if r.custom {
            let name = format!("{}.{}.{}", reversed(&r.group), r.version, r.kind);
            self.custom(&name, r);
            name
        } else {
            self.need(&r.schema.name);
            self.need(&format!("{}List", r.schema.name));
            r.schema.name.to_string()
        };
        let list = format!("{name}List");
        let plain = format!("{base}/{}", r.plural);
        let (collection, item) = if r.namespaced {
            let path = format!("{base}/namespaces/{{namespace}}/{}", r.plural);
            (path.clone(), format!("{path}/{{name}}"))
        } else {
            (plain.clone(), format!("{plain}/{{name}}"))
        };
        let op = |verb, suffix: &str| operation(r, verb, suffix, &name, &list);
        let mut on_list = Map::new();
        let mut on_item = Map::new();
        for (verb, method, of_item) in [
            ("list", "get", false),
            ("create", "post", false),
            ("deletecollection", "delete", false),
            ("get", "get", true),
            ("update", "put", true),
            ("patch", "patch", true),
            ("delete", "delete", true),
        ] {
            if r.has_verb(verb) {
                let target = if of_item { &mut on_item } else { &mut on_list };
                target.insert(method, op(verb, ""));
            }
        }
        let parameters = |item: bool| {
            let mut list = Vec::new();
            if r.namespaced {
                list.push(parameter("namespace", "path", "string"));
            }
            if item {
                list.insert(0, parameter("name", "path", "string"));
            }
            Value::Array(list)
        };
        on_list.insert("parameters", parameters(false));
        self.paths.insert(collection, Value::Object(on_list));
        if !on_item.is_empty() {
            on_item.insert("parameters", parameters(true));
            self.paths.insert(item.clone(), Value::Object(on_item));
        }
        if r.namespaced && r.has_verb("list") {
            let all = json!({"get": serde_json::Value::from(&op("listall", ""))});
            self.paths.insert(plain, all);
        }
        for s in &r.subresources {
            let mut ops = Map::new();
            for (verb, method) in [
                ("get", "get"),
                ("create", "post"),
                ("update", "put"),
                ("patch", "patch"),
                ("delete", "delete"),
            ] {
                if s.verbs.iter().any(|v| v == verb) {
                    ops.insert(method, op(verb, &s.name));
                }
            }
            ops.insert("parameters", parameters(true));
            self.paths.insert(format!("{item}/{}", s.name), Value::Object(ops));
        }
    }

    fn custom(&mut self, name: &str, r: &Resource) {
        self.need(&format!("{META}.ObjectMeta"));
        self.need(&format!("{META}.ListMeta"));
        let gvk = gvk(&r.group, &r.version, &r.kind);
        let mut v = r.schema.openapi.clone();
        if !v.has("type") {
            v.set("type", "object");
        }
        if v["properties"].is_null() && !v.has("x-kubernetes-preserve-unknown-fields") {
            v.set("properties", Value::object());
        }
        for key in ["apiVersion", "kind"] {
            v.set_at(&["properties", key], json!({"type": "string"}));
        }
        let meta = json!({"allOf": [{"$ref": format!("{SCHEMAS}{META}.ObjectMeta")}]});
        v.set_at(&["properties", "metadata"], meta);
        v.set("x-kubernetes-group-version-kind", vec![gvk]);
        self.schemas.insert(name.to_owned(), v);
        let mut list = json!({
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "items": {"type": "array", "items": {"$ref": format!("{SCHEMAS}{name}")}},
                "metadata": {"allOf": [{"$ref": format!("{SCHEMAS}{META}.ListMeta")}]},
            },
        });
        let list_gvk = self::gvk(&r.group, &r.version, &r.list_kind);
        list.set("x-kubernetes-group-version-kind", vec![list_gvk]);
        self.schemas.insert(format!("{name}List"), list);
    }
}

fn reversed(group: &str) -> String {
    group.rsplit('.').collect::<Vec<_>>().join(".")
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn parameter(name: &str, place: &str, kind: &str) -> Value {
    let mut p = json!({"name": name, "in": place, "schema": {"type": kind, "uniqueItems": true}});
    if place == "path" {
        p.set("required", true);
    }
    p
}

/// Types whose JSON form is not their fields.
fn special(name: &str) -> Option<Value> {
    Some(match name.rsplit('.').next()? {
        "Quantity" => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        "IntOrString" => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        "Time" | "MicroTime" => json!({"type": "string", "format": "date-time"}),
        "RawExtension" | "FieldsV1" | "Patch" => json!({"type": "object"}),
        "JSON"
        | "JSONSchemaPropsOrArray"
        | "JSONSchemaPropsOrBool"
        | "JSONSchemaPropsOrStringArray" => Value::object(),
        _ => return None,
    })
}

/// The OpenAPI form of a built-in type; `need` hears of each type it refers to.
pub fn type_schema(ty: &Type, need: &mut dyn FnMut(&str)) -> Value {
    let mut out = json!({"type": "object"});
    let mut required: Vec<&Field> = ty.fields.iter().filter(|f| f.required).collect();
    required.sort_by(|a, b| a.numbers.cmp(&b.numbers));
    if !required.is_empty() {
        let names: Vec<Value> = required.iter().map(|f| Value::from(f.name.as_ref())).collect();
        out.set("required", names);
    }
    let mut properties = Map::with_capacity(ty.fields.len());
    for f in ty.fields.iter() {
        properties.insert(f.name.as_ref(), field_schema(f, need));
    }
    if !properties.is_empty() {
        out.set("properties", properties);
    }
    if ty.atomic {
        out.set("x-kubernetes-map-type", "atomic");
    }
    if let Some((group, version, kind)) = &ty.gvk {
        out.set("x-kubernetes-group-version-kind", vec![gvk(group, version, kind)]);
    }
    out
}

fn field_schema(f: &Field, need: &mut dyn FnMut(&str)) -> Value {
    let mut v = shape_schema(&f.shape, &f.name, need);
    let reference = v.has("$ref");
    if reference {
        let mut all = Value::object();
        all.set("allOf", vec![v]);
        v = all;
    }
    if !f.default.is_empty() {
        v.set("default", crate::codec::json::parse(f.default.as_bytes()).unwrap_or_default());
    } else if f.keep {
        match &f.shape {
            Shape::Object(_) if !f.pointer => v.set("default", Value::object()),
            Shape::String if f.required => v.set("default", ""),
            Shape::Bool if f.required => v.set("default", false),
            Shape::Int32 | Shape::Int64 if f.required => v.set("default", 0_i64),
            _ => {}
        }
    }
    if !f.values.is_empty() {
        let values: Vec<Value> = f.values.iter().map(|s| Value::from(s.as_ref())).collect();
        v.set("enum", values);
    }
    match &f.list {
        ListType::Map(keys) => {
            v.set("x-kubernetes-list-type", "map");
            let keys: Vec<Value> = keys.iter().map(|k| Value::from(k.as_ref())).collect();
            v.set("x-kubernetes-list-map-keys", keys);
        }
        ListType::Set => v.set("x-kubernetes-list-type", "set"),
        ListType::Atomic if f.declared_atomic => v.set("x-kubernetes-list-type", "atomic"),
        ListType::Atomic => {}
    }
    if f.atomic {
        v.set("x-kubernetes-map-type", "atomic");
    } else if f.granular {
        v.set("x-kubernetes-map-type", "granular");
    }
    let strategy = match (f.patch_merge, f.patch_retain_keys) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        (false, true) => "retainKeys",
        (false, false) => "",
    };
    if !strategy.is_empty() {
        v.set("x-kubernetes-patch-strategy", strategy);
    }
    if !f.merge_key.is_empty() {
        v.set("x-kubernetes-patch-merge-key", f.merge_key.as_ref());
    }
    v
}

fn shape_schema(shape: &Shape, name: &str, need: &mut dyn FnMut(&str)) -> Value {
    let mut reference = |target: &str| {
        need(target);
        json!({ "$ref": format!("{SCHEMAS}{target}") })
    };
    match shape {
        Shape::String | Shape::Duration => json!({"type": "string"}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Int32 => json!({"type": "integer", "format": "int32"}),
        Shape::Int64 => json!({"type": "integer", "format": "int64"}),
        Shape::Float | Shape::Number => json!({"type": "number", "format": "double"}),
        Shape::Bytes => json!({"type": "string", "format": "byte"}),
        Shape::Time => reference(&format!("{META}.Time")),
        Shape::MicroTime => reference(&format!("{META}.MicroTime")),
        Shape::Quantity => reference("io.k8s.apimachinery.pkg.api.resource.Quantity"),
        Shape::IntOrString => reference("io.k8s.apimachinery.pkg.util.intstr.IntOrString"),
        Shape::RawObject if name == "fieldsV1" => reference(&format!("{META}.FieldsV1")),
        Shape::RawObject => reference("io.k8s.apimachinery.pkg.runtime.RawExtension"),
        Shape::Json => reference("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON"),
        Shape::Object(ty) => reference(&ty.name),
        Shape::List(item) => {
            let mut v = json!({"type": "array"});
            v.set("items", shape_schema(&item.shape, "", need));
            v
        }
        Shape::Map(item) => {
            let mut v = json!({"type": "object"});
            v.set("additionalProperties", shape_schema(&item.shape, "", need));
            v
        }
    }
}

const MEDIA: [&str; 3] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

fn content(schema: &str, kinds: &[&str]) -> Value {
    let body = json!({"schema": {"$ref": format!("{SCHEMAS}{schema}")}});
    Value::Object(kinds.iter().map(|k| (*k, body.clone())).collect())
}

fn operation(r: &Resource, verb: &str, subresource: &str, name: &str, list: &str) -> Value {
    let (word, action) = match verb {
        "get" => ("read", "get"),
        "list" | "listall" => ("list", "list"),
        "create" => ("create", if subresource.is_empty() { "post" } else { "connect" }),
        "update" => ("replace", "put"),
        "patch" => ("patch", "patch"),
        "deletecollection" => ("delete", "deletecollection"),
        _ => ("delete", "delete"),
    };
    let action = if verb == "create"
        && !matches!(subresource, "" | "exec" | "attach" | "portforward" | "proxy")
    {
        "post"
    } else {
        action
    };
    let group: String = match r.group.as_ref() {
        "" => "Core".to_owned(),
        g => g.strip_suffix(".k8s.io").unwrap_or(g).split('.').map(capital).collect(),
    };
    let scope = if r.namespaced && verb != "listall" { "Namespaced" } else { "" };
    let collection = if verb == "deletecollection" { "Collection" } else { "" };
    let everywhere = if verb == "listall" { "ForAllNamespaces" } else { "" };
    let id = format!(
        "{word}{group}{}{collection}{scope}{}{}{everywhere}",
        capital(&r.version),
        r.kind,
        capital(subresource)
    );
    let mut op = json!({"operationId": id, "x-kubernetes-action": action});
    let sub = r.subresource(subresource).filter(|s| !s.kind.is_empty());
    let kind = match sub {
        Some(s) if !s.version.is_empty() => gvk(&s.group, &s.version, &s.kind),
        Some(s) => gvk(&r.group, &r.version, &s.kind),
        None => gvk(&r.group, &r.version, &r.kind),
    };
    op.set("x-kubernetes-group-version-kind", kind);
    op.set("parameters", parameters(verb));
    let answer = match verb {
        "list" | "listall" => list,
        "deletecollection" | "delete" => "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
        _ => name,
    };
    let body = match verb {
        "create" | "update" => Some(content(name, &["*/*"])),
        "patch" => {
            let kinds: &[&str] = if r.custom {
                &[
                    "application/apply-patch+yaml",
                    "application/json-patch+json",
                    "application/merge-patch+json",
                ]
            } else {
                &[
                    "application/apply-patch+yaml",
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    "application/strategic-merge-patch+json",
                ]
            };
            Some(content(&format!("{META}.Patch"), kinds))
        }
        "delete" | "deletecollection" => Some(content(&format!("{META}.DeleteOptions"), &["*/*"])),
        _ => None,
    };
    if let Some(body) = body {
        op.set_at(&["requestBody", "content"], body);
    }
    let mut responses = Map::new();
    let codes: &[&str] = if verb == "create" { &["200", "201", "202"] } else { &["200"] };
    for code in codes {
        let mut answer_body = json!({"description": "OK"});
        answer_body.set("content", content(answer, &MEDIA));
        responses.insert(*code, answer_body);
    }
    responses.insert("401", json!({"description": "Unauthorized"}));
    op.set("responses", responses);
    op
}

fn capital(s: &str) -> String {
    let mut chars = s.chars();
    chars.next().map(|c| c.to_ascii_uppercase().to_string() + chars.as_str()).unwrap_or_default()
}

fn parameters(verb: &str) -> Value {
    let names: &[(&str, &str)] = match verb {
        "list" | "listall" => &[
            ("allowWatchBookmarks", "boolean"),
            ("continue", "string"),
            ("fieldSelector", "string"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("pretty", "string"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("sendInitialEvents", "boolean"),
            ("timeoutSeconds", "integer"),
            ("watch", "boolean"),
        ],
        "create" | "update" => &[
            ("dryRun", "string"),
            ("fieldManager", "string"),
            ("fieldValidation", "string"),
            ("pretty", "string"),
        ],
        "patch" => &[
            ("dryRun", "string"),
            ("fieldManager", "string"),
            ("fieldValidation", "string"),
            ("force", "boolean"),
            ("pretty", "string"),
        ],
        "delete" | "deletecollection" => &[
            ("dryRun", "string"),
            ("gracePeriodSeconds", "integer"),
            ("orphanDependents", "boolean"),
            ("pretty", "string"),
            ("propagationPolicy", "string"),
        ],
        _ => &[("pretty", "string")],
    };
    Value::Array(names.iter().map(|(n, t)| parameter(n, "query", t)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_closed() {
        let catalog = Catalog::builtin();
        for g in catalog.groups() {
            for v in &g.versions {
                let doc = document(&catalog, &g.name, v);
                let text = doc.to_string();
                for part in text.split(SCHEMAS).skip(1) {
                    let name = part.split('"').next().unwrap();
                    assert!(doc["components"]["schemas"].has(name), "{name}");
                }
            }
        }
    }

    #[test]
    fn fields_carry_their_merge_rules() {
        let doc = document(&Catalog::builtin(), "", "v1");
        let ports =
            &doc["components"]["schemas"]["io.k8s.api.core.v1.Container"]["properties"]["ports"];
        assert_eq!(
            *ports,
            json!({"items": {"$ref": "#/components/schemas/io.k8s.api.core.v1.ContainerPort"}, "type": "array",
                "x-kubernetes-list-map-keys": ["containerPort", "protocol"], "x-kubernetes-list-type": "map",
                "x-kubernetes-patch-merge-key": "containerPort", "x-kubernetes-patch-strategy": "merge"})
        );
        let log =
            &doc["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/log"]["get"]["operationId"];
        assert_eq!(log.text(), "readCoreV1NamespacedPodLog");
    }
}
