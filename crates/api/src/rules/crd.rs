//! Rules of custom resource definitions.

use super::{IMMUTABLE, internal, one_of, one_of_if_set, reasons};
use crate::crd::names;
use crate::error::FieldErrors;
use crate::meta;
use crate::name;
use crate::object::Value;

const APPROVED: &str = "api-approved.kubernetes.io";
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const LIST_TYPES: [&str; 3] = ["atomic", "set", "map"];
/// Parts of a version that upstream keeps once for all versions while they are the same, and under which name.
const SHARED: [(&str, &str); 3] = [
    ("schema", "validation"),
    ("subresources", "subresources"),
    ("additionalPrinterColumns", "additionalPrinterColumns"),
];

/// CustomResourceDefinition.
pub fn definition(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    let (group, plural) = (spec["group"].text(), spec["names"]["plural"].text());
    if meta::name(new) != format!("{plural}.{group}") {
        let why = "must be spec.names.plural+\".\"+spec.group";
        errs.invalid("metadata.name", meta::name(new), why);
    }
    match group {
        "" => errs.required("spec.group", ""),
        _ if !name::dns_subdomain(group).is_empty() => {
            errs.invalid("spec.group", group, name::dns_subdomain(group).join(","));
        }
        _ if !group.contains('.') => {
            errs.invalid("spec.group", group, "should be a domain with at least one dot");
        }
        _ => approval(new, group, old, errs),
    }
    one_of("spec.scope", &spec["scope"], &["Cluster", "Namespaced"], errs);
    names(&spec["names"], errs);
    versions(new, errs);
    conversion(&spec["conversion"], errs);
    if let Some(old) = old.filter(|o| names::is(o, "Established")) {
        for path in [&["scope"][..], &["names", "kind"]] {
            if spec.at(path) != old["spec"].at(path) {
                let found = spec.at(path).cloned().unwrap_or_default();
                errs.invalid(format!("spec.{}", path.join(".")), found, IMMUTABLE);
            }
        }
    }
}

/// Groups of the project itself need its word.
fn approval(new: &Value, group: &str, old: Option<&Value>, errs: &mut FieldErrors) {
    let protected = ["k8s.io", "kubernetes.io"].iter().any(|own| {
        group == *own || group.strip_suffix(own).is_some_and(|rest| rest.ends_with('.'))
    });
    let value = |v: &Value| meta::annotation(v, APPROVED).map(str::to_owned);
    if !protected || old.is_some_and(|old| value(old) == value(new)) {
        return;
    }
    let field = format!("metadata.annotations[{APPROVED}]");
    match value(new).as_deref() {
        None | Some("") => errs.required(
            field,
            format!(
                "protected groups must have approval annotation {APPROVED:?}, see \
                 https://github.com/kubernetes/enhancements/pull/1111"
            ),
        ),
        Some(text) if text.starts_with("unapproved") || text.contains("://") => {}
        Some(text) => errs.invalid(
            field,
            text,
            format!(
                "protected groups must have approval annotation {APPROVED:?} with either a URL or a reason starting \
                 with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111"
            ),
        ),
    }
}

fn names(names: &Value, errs: &mut FieldErrors) {
    let label = |field: &str, text: &str, errs: &mut FieldErrors| {
        let found = name::dns_label_1035(text);
        if !text.is_empty() && !found.is_empty() {
            errs.invalid(format!("spec.names.{field}"), text, found.join(","));
        }
    };
    for field in ["plural", "singular", "kind", "listKind"] {
        let text = names[field].text();
        if text.is_empty() {
            errs.required(format!("spec.names.{field}"), "");
        }
        if field.to_lowercase().ends_with("kind") {
            let found = name::dns_label_1035(&text.to_lowercase());
            if !text.is_empty() && !found.is_empty() {
                let why = "may have mixed case, but should otherwise match: ";
                errs.invalid(
                    format!("spec.names.{field}"),
                    text,
                    format!("{why}{}", found.join(",")),
                );
            }
        } else {
            label(field, text, errs);
        }
    }
    for list in ["shortNames", "categories"] {
        for (i, item) in names[list].items().iter().enumerate() {
            label(&format!("{list}[{i}]"), item.text(), errs);
        }
    }
    let kind = names["kind"].text();
    if !kind.is_empty() && names["listKind"].text() == kind {
        errs.invalid("spec.names.listKind", kind, "kind and listKind may not be the same");
    }
}

fn versions(new: &Value, errs: &mut FieldErrors) {
    let given = &new["spec"]["versions"];
    let all = given.items();
    for (i, version) in all.iter().enumerate() {
        let text = version["name"].text();
        let at = format!("spec.versions[{i}]");
        reasons(&format!("{at}.name"), text, name::dns_label_1035(text), errs);
        if version["schema"]["openAPIV3Schema"].is_null() {
            errs.required(format!("{at}.schema.openAPIV3Schema"), "");
        }
    }
    let named = |v: &Value| v["name"].clone();
    let unique = (1..all.len()).all(|i| !all[..i].iter().any(|o| named(o) == named(&all[i])));
    if !unique {
        errs.invalid("spec.versions", internal(given), "must contain unique version names");
    }
    let stored: Vec<&Value> = all.iter().filter(|v| v["storage"].as_bool() == Some(true)).collect();
    if stored.len() != 1 {
        let why = "must have exactly one version marked as storage version";
        errs.invalid("spec.versions", internal(given), why);
    }
    let kept = &new["status"]["storedVersions"];
    match stored.last() {
        _ if kept.is_empty() => {
            errs.invalid(
                "status.storedVersions",
                Value::Null,
                "must have at least one stored version",
            );
        }
        Some(last) if !kept.items().contains(&last["name"]) => {
            let why = format!("must have the storage version {}", last["name"].text());
            errs.invalid("status.storedVersions", kept.clone(), why);
        }
        _ => {}
    }
    for (part, shared) in SHARED {
        let same = all.iter().all(|v| v[part] == all[0][part]);
        let count = if same { all.len().min(1) } else { all.len() };
        for (i, version) in all.iter().take(count).enumerate() {
            let at =
                if same { format!("spec.{shared}") } else { format!("spec.versions[{i}].{part}") };
            match part {
                "schema" => schema(
                    &format!("{at}.openAPIV3Schema"),
                    &version[part]["openAPIV3Schema"],
                    errs,
                ),
                "subresources" => scale(&format!("{at}.scale"), &version[part]["scale"], errs),
                _ => columns(&at, &version[part], errs),
            }
        }
    }
}

/// The root of a structural schema.
fn schema(at: &str, root: &Value, errs: &mut FieldErrors) {
    if root.is_null() {
        return;
    }
    match root["type"].text() {
        "" => errs.required(format!("{at}.type"), "must not be empty at the root"),
        "object" => {}
        other => errs.invalid(format!("{at}.type"), other, "must be object at the root"),
    }
    node(at, root, errs);
    let metadata = &root["properties"]["metadata"];
    let plain = |key: &str| matches!(key, "name" | "generateName");
    let more =
        metadata.members().any(|(key, _)| !matches!(key, "type" | "properties" | "description"))
            || metadata["properties"].members().any(|(key, _)| !plain(key));
    if more {
        errs.forbidden(
            format!("{at}.properties[metadata]"),
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        );
    }
}

/// One node and those below.
fn node(at: &str, v: &Value, errs: &mut FieldErrors) {
    one_of_if_set(&format!("{at}.type"), &v["type"], &TYPES, errs);
    if v["type"].text() == "array" && v["items"].is_null() {
        errs.required(format!("{at}.items"), "must be specified");
    }
    let list = &v["x-kubernetes-list-type"];
    one_of_if_set(&format!("{at}.x-kubernetes-list-type"), list, &LIST_TYPES, errs);
    let keys = &v["x-kubernetes-list-map-keys"];
    let keys_at = format!("{at}.x-kubernetes-list-map-keys");
    match (list.text() == "map", keys.is_empty()) {
        (true, true) => {
            errs.required(keys_at, "must not be empty if x-kubernetes-list-type is map");
        }
        (false, false) => {
            errs.forbidden(keys_at, "must not be set if x-kubernetes-list-type is not map");
        }
        _ => {}
    }
    let typed = |at: &str, v: &Value, what: &str, errs: &mut FieldErrors| {
        let free = ["x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"];
        if v["type"].text().is_empty() && !free.iter().any(|f| v[*f].as_bool() == Some(true)) {
            errs.required(format!("{at}.type"), format!("must not be empty for specified {what}"));
        }
    };
    for (key, inner) in v["properties"].members() {
        let at = format!("{at}.properties[{key}]");
        typed(&at, inner, "object fields", errs);
        node(&at, inner, errs);
    }
    for (field, what) in [("items", "array items"), ("additionalProperties", "object fields")] {
        if let Some(inner) = v.get(field).filter(|i| i.as_object().is_some()) {
            let at = format!("{at}.{field}");
            typed(&at, inner, what, errs);
            node(&at, inner, errs);
        }
    }
}

fn scale(at: &str, scale: &Value, errs: &mut FieldErrors) {
    if scale.is_null() {
        return;
    }
    let parts = [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")];
    for (field, prefix) in parts {
        let (path, at) = (scale[field].text(), format!("{at}.{field}"));
        if path.is_empty() {
            errs.required(at, "");
        } else if !path.starts_with(prefix) {
            let section = prefix.trim_end_matches('.');
            errs.invalid(at, path, format!("should be a json path under {section}"));
        }
    }
    let path = scale["labelSelectorPath"].text();
    if !path.is_empty() && !path.starts_with(".spec.") && !path.starts_with(".status.") {
        let why = "should be a json path under either .spec or .status";
        errs.invalid(format!("{at}.labelSelectorPath"), path, why);
    }
}

fn columns(at: &str, columns: &Value, errs: &mut FieldErrors) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    for (i, column) in columns.items().iter().enumerate() {
        let at = format!("{at}[{i}]");
        if column["name"].text().is_empty() {
            errs.required(format!("{at}.name"), "");
        }
        one_of(&format!("{at}.type"), &column["type"], &TYPES, errs);
        match column["jsonPath"].text() {
            "" => errs.required(format!("{at}.jsonPath"), ""),
            path if !path.starts_with('.') => {
                errs.invalid(
                    format!("{at}.jsonPath"),
                    path,
                    "is not a JSON path: it must begin with '.'",
                );
            }
            _ => {}
        }
    }
}

fn conversion(conversion: &Value, errs: &mut FieldErrors) {
    let at = "spec.conversion";
    if conversion.is_null() {
        return;
    }
    one_of(&format!("{at}.strategy"), &conversion["strategy"], &["None", "Webhook"], errs);
    let webhook = &conversion["webhook"];
    if conversion["strategy"].text() != "Webhook" {
        if !webhook["clientConfig"].is_null() {
            let why = "should not be set when strategy is not set to Webhook";
            errs.forbidden(format!("{at}.webhookClientConfig"), why);
        }
        return;
    }
    if webhook["clientConfig"].is_null() {
        let why = "required when strategy is set to Webhook";
        errs.required(format!("{at}.webhookClientConfig"), why);
    }
    if webhook["conversionReviewVersions"].is_empty() {
        errs.required(format!("{at}.conversionReviewVersions"), "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(change: impl Fn(&mut Value)) -> Vec<String> {
        let mut crd = crate::json!({
            "metadata": {"name": "foos.ex.com"},
            "spec": {"group": "ex.com", "scope": "Namespaced",
                "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"},
                "versions": [{"name": "v1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {}}}}]},
            "status": {"storedVersions": ["v1"]}
        });
        change(&mut crd);
        let mut errs = FieldErrors::new();
        definition(&crd, None, &mut errs);
        errs.iter().map(|e| e.field.clone()).collect()
    }

    fn with_property(schema: Value) -> Vec<String> {
        fields(|crd| {
            let versions = crd.at_mut(&["spec", "versions"]).map(Value::items_mut).unwrap();
            versions[0].set_at(&["schema", "openAPIV3Schema", "properties", "p"], schema.clone());
        })
    }

    #[test]
    fn a_definition_is_refused_for_what_is_wrong_with_it() {
        assert!(fields(|_| {}).is_empty());
        let set = |path: &'static [&'static str], value: &'static str| {
            fields(move |crd| crd.set_at(path, value))
        };
        assert_eq!(set(&["spec", "scope"], "Foo"), ["spec.scope"]);
        assert_eq!(set(&["spec", "names", "listKind"], "Foo"), ["spec.names.listKind"]);
        assert_eq!(
            set(&["spec", "conversion", "strategy"], "Webhook"),
            ["spec.conversion.webhookClientConfig", "spec.conversion.conversionReviewVersions"]
        );
        let protected = fields(|crd| {
            crd.set_at(&["spec", "group"], "foo.k8s.io");
            crd.set_at(&["metadata", "name"], "foos.foo.k8s.io");
        });
        assert_eq!(protected, ["metadata.annotations[api-approved.kubernetes.io]"]);
    }

    #[test]
    fn a_schema_has_to_be_structural() {
        let at = "spec.validation.openAPIV3Schema.properties[p]";
        let cases = [
            (crate::json!({"type": "string"}), None),
            (crate::json!({"x-kubernetes-int-or-string": true}), None),
            (crate::json!({}), Some("type")),
            (crate::json!({"type": "foo"}), Some("type")),
            (crate::json!({"type": "array"}), Some("items")),
            (
                crate::json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"}),
                Some("x-kubernetes-list-map-keys"),
            ),
        ];
        for (schema, field) in cases {
            let wanted: Vec<String> = field.into_iter().map(|f| format!("{at}.{f}")).collect();
            assert_eq!(with_property(schema.clone()), wanted, "{schema}");
        }
    }
}
