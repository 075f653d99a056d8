//! From the bytes of a body to an object of the request's kind.

use api::catalog::Resource;
use api::codec::{Decoded, json, proto, strict_error, yaml};
use api::error::ApiError;
use api::object::Value;

use crate::request::{Body, FieldValidation, Format};

/// Reads a body as an object of `resource`'s kind (or of `kind`, for a subresource's own). What a strict reader would
/// object to is refused or added to `warnings`, as the client asked.
pub(crate) fn object(
    body: &Body,
    resource: &Resource,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let decoded = decode(body, resource)?;
    strictness(&decoded.strict, resource, validation, warnings)?;
    check_kind(&decoded.value, resource)?;
    Ok(decoded.value)
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
    if kind.is_empty() {
        return Err(ApiError::BadRequest(
            "Object 'Kind' is missing in the request body".to_owned(),
        ));
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
