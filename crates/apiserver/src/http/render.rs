//! Outcomes and errors as responses, in the encoding and form the client takes.

use std::sync::Arc;

use api::catalog::Resource;
use api::codec::{json, proto, yaml};
use api::columns;
use api::error::ApiError;
use api::object::{Map, Value};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

use super::negotiate::{Accepted, Form};
use super::query::Query;
use super::{HttpResponse, full, gather};
use crate::registry::Api;
use crate::request::{Format, List, Outcome, Request};

/// What a table row carries of its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

/// An error as the client takes it.
pub(crate) fn error(error: &ApiError, accept: Option<&str>) -> HttpResponse {
    let (code, _) = error.status();
    let format = super::negotiate::accept(accept).map_or(Format::Json, |a| a.format);
    let status = error.to_status();
    let mut response = encode_status(&status, code, format);
    if let Some(seconds) = error.retry_after_s() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn encode_status(status: &Value, code: u16, format: Format) -> HttpResponse {
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match format {
        Format::Json => full(code, "application/json", status.to_bytes()),
        Format::Yaml => full(code, "application/yaml", yaml::encode(status)),
        Format::Protobuf => match api::schema::find(STATUS_TYPE) {
            Some(ty) => full(code, PROTOBUF, proto::encode(status, ty)),
            None => full(code, "application/json", status.to_bytes()),
        },
    }
}

const STATUS_TYPE: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Adds `Warning` headers (RFC 7234 code 299).
pub(crate) fn warn(response: &mut HttpResponse, warnings: &[String]) {
    let mut seen: Vec<&str> = Vec::new();
    for warning in warnings {
        if seen.contains(&warning.as_str()) {
            continue;
        }
        seen.push(warning);
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// Anything but a watch.
pub(crate) fn outcome(
    api: &Arc<Api>,
    request: &Request,
    outcome: Outcome,
    accepted: Accepted,
    query: &Query,
    mut warnings: Vec<String>,
) -> Result<HttpResponse, ApiError> {
    let mut response = match outcome {
        Outcome::Object { object, created, warnings: more } => {
            warnings.extend(more);
            let code = if created { StatusCode::CREATED } else { StatusCode::OK };
            if object.kind.is_some() {
                let value = json::parse(&object.json)?;
                encode(&value, request, code, accepted.format)
            } else {
                one(api, request, &object.json, code, accepted, query)?
            }
        }
        Outcome::List(list) => self::list(api, request, list, accepted, query)?,
        Outcome::Status { status, code, warnings: more } => {
            warnings.extend(more);
            encode_status(&status, code, accepted.format)
        }
        Outcome::Watch(_) => return Err(ApiError::Internal("a watch is no single answer".into())),
    };
    warn(&mut response, &warnings);
    Ok(response)
}

/// Any tree of the request's kind, or one that has a schema of its own.
fn encode(value: &Value, request: &Request, code: StatusCode, format: Format) -> HttpResponse {
    match format {
        Format::Json => full(code, "application/json", value.to_bytes()),
        Format::Yaml => full(code, "application/yaml", yaml::encode(value)),
        Format::Protobuf => {
            let (version, kind) = api::meta::type_meta(value);
            let (group, version) = api::catalog::split_api_version(version);
            let row = api::catalog::body_row(group, version, kind);
            let ty = row.as_ref().map_or(&request.resource.schema, |row| &row.schema);
            full(code, PROTOBUF, proto::encode(value, ty))
        }
    }
}

fn one(
    api: &Arc<Api>,
    request: &Request,
    bytes: &Bytes,
    code: StatusCode,
    accepted: Accepted,
    query: &Query,
) -> Result<HttpResponse, ApiError> {
    if accepted.form == Form::Plain && accepted.format == Format::Json {
        return Ok(full(code, "application/json", bytes.clone()));
    }
    let value = json::parse(bytes)?;
    let resource = &request.resource;
    let rendered = match accepted.form {
        Form::Metadata { beta } => partial(&value, beta),
        Form::Table { beta } => {
            let mut table = table_head(beta);
            if let Some(version) = value.at(&["metadata", "resourceVersion"]) {
                table.set_at(&["metadata", "resourceVersion"], version.clone());
            }
            table.set("columnDefinitions", columns::definitions(resource));
            let row = row(resource, &value, api.clock.now(), include(query)?);
            table.set("rows", Value::Array(vec![row]));
            table
        }
        Form::Plain | Form::Discovery { .. } => {
            return Ok(encode(&value, request, code, accepted.format));
        }
    };
    Ok(match accepted.format {
        Format::Yaml => full(code, "application/yaml", yaml::encode(&rendered)),
        _ => full(code, "application/json", rendered.to_bytes()),
    })
}

/// `includeObject` of a table request.
fn include(query: &Query) -> Result<Include, ApiError> {
    match query.text("includeObject").as_str() {
        "" | "Metadata" => Ok(Include::Metadata),
        "None" => Ok(Include::None),
        "Object" => Ok(Include::Object),
        other => {
            let mut errors = api::error::FieldErrors::new();
            errors.not_supported("includeObject", other, &["Metadata", "None", "Object"]);
            Err(ApiError::invalid("meta.k8s.io", "TableOptions", "", errors))
        }
    }
}

/// The beginning of every table.
pub(crate) fn table_head(beta: bool) -> Value {
    let mut table = Value::Object(Map::default());
    table.set("kind", "Table");
    table.set("apiVersion", if beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" });
    table.set("metadata", Value::Object(Map::default()));
    table
}

/// One row of a table.
pub(crate) fn row(
    resource: &Resource,
    object: &Value,
    now: jiff::Timestamp,
    include: Include,
) -> Value {
    let mut row = Value::Object(Map::default());
    row.set("cells", Value::Array(columns::cells(resource, object, now)));
    match include {
        Include::None => row.set("object", Value::Null),
        Include::Metadata => row.set("object", partial(object, false)),
        Include::Object => row.set("object", object.clone()),
    }
    row
}

/// The object's metadata as an object.
pub(crate) fn partial(object: &Value, beta: bool) -> Value {
    let mut partial = api::meta::partial(object);
    if beta {
        partial.set("apiVersion", "meta.k8s.io/v1beta1");
    }
    partial
}

fn list_metadata(list: &List) -> Value {
    let mut metadata = Value::Object(Map::default());
    metadata.set("resourceVersion", list.revision.to_string());
    if !list.continue_token.is_empty() {
        metadata.set("continue", list.continue_token.as_str());
    }
    if let Some(remaining) = list.remaining {
        metadata.set("remainingItemCount", remaining);
    }
    metadata
}

fn list(
    api: &Arc<Api>,
    request: &Request,
    list: List,
    accepted: Accepted,
    query: &Query,
) -> Result<HttpResponse, ApiError> {
    let resource = &request.resource;
    if accepted.form == Form::Plain && accepted.format == Format::Json {
        let head = list_metadata(&list).to_bytes();
        return Ok(gather::answer(resource, &head, list.items));
    }
    let items = list.items.iter().map(|item| json::parse(item)).collect::<Result<Vec<_>, _>>()?;
    let mut value = Value::Object(Map::default());
    match accepted.form {
        Form::Table { beta } => {
            value = table_head(beta);
            value.set("columnDefinitions", columns::definitions(resource));
            let (now, include) = (api.clock.now(), include(query)?);
            let rows = items.iter().map(|item| row(resource, item, now, include)).collect();
            value.set("rows", Value::Array(rows));
        }
        Form::Metadata { beta } => {
            value.set("kind", "PartialObjectMetadataList");
            value.set("apiVersion", if beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" });
            let items = items.iter().map(|item| partial(item, beta)).collect();
            value.set("items", Value::Array(items));
        }
        Form::Plain | Form::Discovery { .. } => {
            value.set("kind", resource.list_kind.as_ref());
            value.set("apiVersion", resource.api_version());
            let strip = |mut item: Value| {
                if !resource.custom {
                    item.remove("kind");
                    item.remove("apiVersion");
                }
                item
            };
            value.set("items", Value::Array(items.into_iter().map(strip).collect()));
        }
    }
    value.set("metadata", list_metadata(&list));
    Ok(match (accepted.format, accepted.form) {
        (Format::Protobuf, Form::Plain) => {
            full(StatusCode::OK, PROTOBUF, protobuf_list(resource, &value)?)
        }
        (Format::Yaml, _) => full(StatusCode::OK, "application/yaml", yaml::encode(&value)),
        _ => full(StatusCode::OK, "application/json", value.to_bytes()),
    })
}

/// A list in protobuf, as the list kind's own message.
fn protobuf_list(resource: &Resource, value: &Value) -> Result<Vec<u8>, ApiError> {
    let name = format!("{}List", resource.schema.name);
    let ty = api::schema::find(&name).ok_or_else(|| {
        ApiError::NotAcceptable(
            "only the following media types are accepted: application/json, application/yaml"
                .into(),
        )
    })?;
    Ok(proto::encode(value, ty))
}

/// One watch event in protobuf, with its length in front.
pub(crate) fn protobuf_event(kind: &str, json_bytes: &[u8], resource: &Resource) -> Vec<u8> {
    let value = json::parse(json_bytes).unwrap_or(Value::Null);
    frame_event(kind, &proto::encode(&value, &resource.schema))
}

/// An error event in protobuf.
pub(crate) fn protobuf_status_event(status: &Value) -> Vec<u8> {
    let raw = api::schema::find(STATUS_TYPE).map(|ty| proto::encode(status, ty));
    frame_event("ERROR", &raw.unwrap_or_default())
}

/// `meta.v1.WatchEvent`: type is field 1, object field 2, a RawExtension whose field 1 are the bytes. Its length goes
/// in front, in four bytes.
fn frame_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut extension = Vec::with_capacity(object.len() + 8);
    field(1, object, &mut extension);
    let mut event = Vec::with_capacity(extension.len() + 24);
    field(1, kind.as_bytes(), &mut event);
    field(2, &extension, &mut event);
    let mut framed = u32::try_from(event.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    framed.extend_from_slice(&event);
    framed
}

fn field(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, out);
    prost::encoding::encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// The body of a DELETE: DeleteOptions, in either encoding.
pub(crate) fn delete_body(body: &Bytes, format: Format) -> Result<Value, ApiError> {
    const TYPE: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
    let Some(ty) = api::schema::find(TYPE) else {
        return Err(ApiError::Internal("no schema for DeleteOptions".into()));
    };
    let value = match format {
        Format::Json => {
            json::decode(body, ty).map_err(|e| ApiError::BadRequest(e.message()))?.value
        }
        Format::Yaml => {
            yaml::decode(body, ty).map_err(|e| ApiError::BadRequest(e.message()))?.value
        }
        Format::Protobuf => return proto::decode(proto::open(body)?.raw, ty),
    };
    let kind = value.str_at(&["kind"]).unwrap_or("DeleteOptions");
    if kind != "DeleteOptions" {
        let version = value.str_at(&["apiVersion"]).unwrap_or("");
        return Err(ApiError::BadRequest(format!(
            "no kind {kind:?} is registered for version {version:?} in scheme \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\""
        )));
    }
    Ok(value)
}
