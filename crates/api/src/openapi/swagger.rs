//! The same in OpenAPI v2, for clients that know no newer one: all groups in one document.

use super::{SCHEMAS, document};
use crate::catalog::Catalog;
use crate::json;
use crate::object::{Map, Value};

const DEFINITIONS: &str = "#/definitions/";
/// Words of v3 that v2 does not know.
const NEWER: [&str; 4] = ["anyOf", "oneOf", "not", "nullable"];

/// The document of everything that is served.
pub fn swagger(catalog: &Catalog) -> Value {
    let (mut paths, mut definitions) = (Map::new(), Map::new());
    for group in catalog.groups() {
        for version in &group.versions {
            let mut one = document(catalog, &group.name, version);
            for (path, operations) in members(one.remove("paths")) {
                paths.insert(path, older_operations(operations));
            }
            let schemas = one.get_mut("components").and_then(|c| c.remove("schemas"));
            for (name, schema) in members(schemas) {
                definitions.insert(name, older(schema));
            }
        }
    }
    let mut out = json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}});
    out.set("paths", paths);
    out.set("definitions", definitions);
    out
}

fn members(v: Option<Value>) -> Vec<(String, Value)> {
    match v {
        Some(Value::Object(map)) => map.into_iter().map(|(k, v)| (k.to_string(), v)).collect(),
        _ => Vec::new(),
    }
}

/// A schema with its references where v2 has them, and without what it cannot say.
fn older(schema: Value) -> Value {
    match schema {
        Value::Array(items) => Value::Array(items.into_iter().map(older).collect()),
        Value::Object(_) => {
            let mut out = Map::new();
            for (key, v) in members(Some(schema)) {
                match (key.as_str(), &v) {
                    // Here keys are names, whatever they look like.
                    ("properties", Value::Object(_)) => {
                        let each = members(Some(v)).into_iter().map(|(name, v)| (name, older(v)));
                        out.insert("properties", each.collect::<Map>());
                    }
                    ("$ref", _) => {
                        out.insert("$ref", v.text().replace(SCHEMAS, DEFINITIONS));
                    }
                    // v3 wraps a reference to say more beside it.
                    ("allOf", Value::Array(items)) if items.len() == 1 => {
                        let inner = older(items[0].clone());
                        members(Some(inner)).into_iter().for_each(|(k, v)| {
                            out.insert(k, v);
                        });
                    }
                    (key, _) if NEWER.contains(&key) && !matches!(v, Value::Object(_)) => {}
                    ("default", _) => {
                        out.insert(key, v);
                    }
                    _ => {
                        out.insert(key, older(v));
                    }
                }
            }
            // A number or a text is a text here.
            if out.get("format").map(Value::text) == Some("int-or-string") {
                out.insert("type", "string");
            }
            Value::Object(out)
        }
        other => other,
    }
}

fn older_operations(operations: Value) -> Value {
    let mut out = Map::new();
    for (method, operation) in members(Some(operations)) {
        let operation = if method == "parameters" {
            older_parameters(operation)
        } else {
            older_operation(operation)
        };
        out.insert(method, operation);
    }
    Value::Object(out)
}

fn older_parameters(list: Value) -> Value {
    let each = list.items().iter().map(|p| {
        let mut p = p.clone();
        let schema = p.remove("schema");
        for (key, v) in members(schema) {
            p.set(&key, v);
        }
        p
    });
    Value::Array(each.collect())
}

fn older_operation(mut op: Value) -> Value {
    let mut parameters = older_parameters(op["parameters"].clone()).items().to_vec();
    let schema =
        |content: &Value| content.members().next().map(|(_, c)| older(c["schema"].clone()));
    if let Some(body) = op.remove("requestBody") {
        let mut parameter = json!({"in": "body", "name": "body", "required": true});
        if let Some(schema) = schema(&body["content"]) {
            parameter.set("schema", schema);
        }
        let consumed = body["content"].members().map(|(kind, _)| Value::from(kind));
        op.set("consumes", consumed.collect::<Vec<_>>());
        parameters.push(parameter);
    }
    if !parameters.is_empty() {
        op.set("parameters", parameters);
    }
    for (_, response) in
        op.get_mut("responses").and_then(Value::as_object_mut).into_iter().flat_map(Map::iter_mut)
    {
        if let Some(content) = response.remove("content")
            && let Some(schema) = schema(&content)
        {
            response.set("schema", schema);
        }
    }
    op.set("schemes", vec![Value::from("https")]);
    op
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reference of a value.
    fn references<'v>(v: &'v Value, out: &mut Vec<&'v str>) {
        match v {
            Value::Array(items) => items.iter().for_each(|item| references(item, out)),
            Value::Object(map) => map.iter().for_each(|(key, inner)| match inner {
                Value::Str(text) if key == "$ref" => out.push(text),
                inner => references(inner, out),
            }),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_nothing_newer_is_said() {
        let doc = swagger(&Catalog::builtin());
        let mut all = Vec::new();
        references(&doc, &mut all);
        assert!(all.len() > 1000, "{}", all.len());
        for text in all {
            let name = text.strip_prefix(DEFINITIONS).unwrap();
            assert!(doc["definitions"].has(name), "{name}");
        }
        let pod = &doc["definitions"]["io.k8s.api.core.v1.Pod"];
        assert_eq!(pod["x-kubernetes-group-version-kind"].items()[0]["kind"].text(), "Pod");
        let post = &doc["paths"]["/api/v1/namespaces/{namespace}/pods"]["post"];
        let body = post["parameters"].items().iter().find(|p| p["in"].text() == "body").unwrap();
        assert_eq!(body["schema"]["$ref"].text(), "#/definitions/io.k8s.api.core.v1.Pod");
        assert!(!post.has("requestBody"));
        assert!(post["responses"]["200"].has("schema"));
    }
}
