//! From the bytes of a body to an object of the request's kind.

use api::catalog::Resource;
use api::codec::{Decoded, json, proto, strict_error, yaml};
use api::error::ApiError;
use api::object::Value;

use crate::request::{Body, FieldValidation, Format};

/// How much of a body is shown in an error.
const SHOWN_CHARS: usize = 30;

/// Reads a body as an object of `resource`'s kind (or of `kind`, for a subresource's own). What a strict reader would
/// object to is refused or added to `warnings`, as the client asked.
pub(crate) fn object(
    body: &Body,
    resource: &Resource,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let mut decoded = decode(body, resource)?;
    strictness(&decoded.strict, resource, validation, warnings)?;
    if resource.custom {
        say_kind(&decoded.value, body, resource)?;
    } else {
        assume_kind(&mut decoded.value, resource);
    }
    check_kind(&decoded.value, resource)?;
    Ok(decoded.value)
}

/// What a typed object does not say of its kind is what the path says: many clients leave it out.
fn assume_kind(value: &mut Value, resource: &Resource) {
    let (version, kind) = api::meta::type_meta(value);
    let (no_version, no_kind) = (version.is_empty(), kind.is_empty());
    if no_version {
        value.set("apiVersion", resource.api_version());
    }
    if no_kind {
        value.set("kind", resource.kind.as_ref());
    }
}

/// A custom object has to say it.
fn say_kind(value: &Value, body: &Body, resource: &Resource) -> Result<(), ApiError> {
    let missing = match api::meta::type_meta(value) {
        (_, "") => "Kind",
        ("", _) => "apiVersion",
        _ => return Ok(()),
    };
    let text = String::from_utf8_lossy(&body.bytes);
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    let more = if shown.len() < text.len() { " ..." } else { "" };
    Err(ApiError::BadRequest(format!(
        "the object provided is unrecognized (must be of type {}): Object '{missing}' is missing in '{text}' \
         ({shown}{more})",
        resource.kind
    )))
}

/// Refuses or reports what a strict reader objects to.
pub(crate) fn strictness(
    strict: &[String],
    resource: &Resource,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    match validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => warnings.extend_from_slice(strict),
        FieldValidation::Strict if strict.is_empty() => {}
        FieldValidation::Strict => {
            return Err(strict_error(&resource.version, &resource.kind, strict));
        }
    }
    Ok(())
}

fn decode(body: &Body, resource: &Resource) -> Result<Decoded, ApiError> {
    let result = match body.format {
        Format::Json => json::decode(&body.bytes, &resource.schema),
        Format::Yaml => yaml::decode(&body.bytes, &resource.schema),
        Format::Protobuf => {
            let envelope = proto::open(&body.bytes)?;
            let mut value = proto::decode(envelope.raw, &resource.schema)?;
            value.set("apiVersion", envelope.api_version);
            value.set("kind", envelope.kind);
            Ok(Decoded { value, strict: Vec::new() })
        }
    };
    result.map_err(|error| error.for_body(&resource.version, &resource.kind))
}

/// The object's own words about its kind have to agree with the path.
fn check_kind(value: &Value, resource: &Resource) -> Result<(), ApiError> {
    let (version, kind) = api::meta::type_meta(value);
    let expected = resource.api_version();
    if kind == resource.kind && version == expected {
        return Ok(());
    }
    if version.is_empty() || version != expected {
        return Err(ApiError::BadRequest(format!(
            "the API version in the data ({version}) does not match the expected API version ({expected})"
        )));
    }
    Err(ApiError::BadRequest(format!(
        "the kind in the data ({kind}) does not match the expected kind ({})",
        resource.kind
    )))
}

/// Name and namespace of the object agree with the path, or are taken from it.
pub(crate) fn place(value: &mut Value, namespace: &str, name: &str) -> Result<(), ApiError> {
    let own = api::meta::namespace(value);
    if !own.is_empty() && own != namespace {
        return Err(ApiError::BadRequest(
            "the namespace of the provided object does not match the namespace sent on the request"
                .into(),
        ));
    }
    if own.is_empty() && !namespace.is_empty() {
        api::meta::set(value, "namespace", namespace);
    }
    if !name.is_empty() {
        let own = api::meta::name(value);
        if own.is_empty() {
            api::meta::set(value, "name", name);
        } else if own != name {
            return Err(ApiError::BadRequest(format!(
                "the name of the object ({own}) does not match the name on the URL ({name})"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, resource: &Resource) -> Result<Value, String> {
        let body = Body { bytes: text.to_owned().into(), format: Format::Json };
        let read = object(&body, resource, FieldValidation::Strict, &mut Vec::new());
        read.map_err(|error| error.to_string())
    }

    #[test]
    fn a_typed_object_need_not_say_what_it_is_and_a_custom_one_must() {
        let catalog = api::catalog::Catalog::builtin();
        let mut row = (**catalog.find("apps", "v1", "deployments").unwrap()).clone();
        for text in [
            r#"{"metadata":{"name":"a"}}"#,
            r#"{"apiVersion":"apps/v1"}"#,
            r#"{"kind":"Deployment"}"#,
        ] {
            let read = read(text, &row).unwrap();
            assert_eq!(api::meta::type_meta(&read), ("apps/v1", "Deployment"));
        }
        assert!(
            read(r#"{"kind":"Pod"}"#, &row).unwrap_err().contains("the kind in the data (Pod)")
        );
        assert!(read(r#"{"apiVersion":"v1"}"#, &row).unwrap_err().contains("API version"));
        row.custom = true;
        let refused = read(r#"{"apiVersion":"apps/v1","metadata":{}}"#, &row).unwrap_err();
        assert!(refused.contains("Object 'Kind' is missing in '{"), "{refused}");
        assert!(refused.ends_with(r#"({"apiVersion":"apps/v1","metad ...)"#), "{refused}");
        let refused = read(r#"{"kind":"Deployment"}"#, &row).unwrap_err();
        assert!(refused.contains("Object 'apiVersion' is missing in "), "{refused}");
    }
}
