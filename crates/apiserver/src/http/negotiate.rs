//! Which encoding and form of an object the client takes, and which it sends.

use api::error::ApiError;

use crate::request::{Format, PatchType};

/// The form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The object itself.
    Plain,
    /// `meta.k8s.io/v1` (or v1beta1) Table.
    Table { beta: bool },
    /// PartialObjectMetadata, or its list.
    Metadata { beta: bool },
    /// Aggregated discovery.
    Discovery { beta: bool },
}

/// What the client takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) format: Format,
    pub(crate) form: Form,
}

const PLAIN: Accepted = Accepted { format: Format::Json, form: Form::Plain };

fn refused() -> ApiError {
    ApiError::NotAcceptable(
        "only the following media types are accepted: application/json, application/yaml, \
         application/vnd.kubernetes.protobuf"
            .into(),
    )
}

/// Reads an Accept header: the first clause we can serve, in the order of their weights.
///
/// # Errors
/// 406 when there is none.
pub(crate) fn accept(header: Option<&str>) -> Result<Accepted, ApiError> {
    let header = header.unwrap_or("").trim();
    if header.is_empty() {
        return Ok(PLAIN);
    }
    let mut clauses: Vec<(f32, &str)> = header.split(',').map(|c| (weight(c), c)).collect();
    clauses.sort_by(|a, b| b.0.total_cmp(&a.0));
    clauses.iter().find_map(|(_, clause)| clause_form(clause)).ok_or_else(refused)
}

fn weight(clause: &str) -> f32 {
    clause
        .split(';')
        .filter_map(|p| p.trim().strip_prefix("q="))
        .find_map(|q| q.trim().parse().ok())
        .unwrap_or(1.0)
}

fn clause_form(clause: &str) -> Option<Accepted> {
    let mut parts = clause.split(';').map(str::trim);
    let format = match parts.next()? {
        "application/json" | "application/*" | "*/*" => Format::Json,
        "application/yaml" => Format::Yaml,
        "application/vnd.kubernetes.protobuf" => Format::Protobuf,
        _ => return None,
    };
    let (mut kind, mut version, mut group) = ("", "", "");
    for parameter in parts {
        match parameter.split_once('=') {
            Some(("as", value)) => kind = value,
            Some(("v", value)) => version = value,
            Some(("g", value)) => group = value,
            _ => {}
        }
    }
    let form = match (kind, group, version) {
        ("", _, _) => Form::Plain,
        ("Table", "meta.k8s.io", "v1") => Form::Table { beta: false },
        ("Table", "meta.k8s.io", "v1beta1") => Form::Table { beta: true },
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
            Form::Metadata { beta: false }
        }
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1beta1") => {
            Form::Metadata { beta: true }
        }
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => Form::Discovery { beta: false },
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") => {
            Form::Discovery { beta: true }
        }
        _ => return None,
    };
    Some(Accepted { format, form })
}

/// Reads the Content-Type of a request that carries an object.
///
/// # Errors
/// 415 for a type we do not read.
pub(crate) fn content(header: Option<&str>) -> Result<Format, ApiError> {
    match media_type(header) {
        "" | "application/json" => Ok(Format::Json),
        "application/yaml" => Ok(Format::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Format::Protobuf),
        _ => Err(ApiError::UnsupportedMediaType),
    }
}

/// Reads the Content-Type of a patch.
///
/// # Errors
/// 415 for a type that is no patch.
pub(crate) fn patch(header: Option<&str>) -> Result<(PatchType, Format), ApiError> {
    match media_type(header) {
        "application/json-patch+json" => Ok((PatchType::Json, Format::Json)),
        "application/merge-patch+json" => Ok((PatchType::Merge, Format::Json)),
        "application/strategic-merge-patch+json" => Ok((PatchType::Strategic, Format::Json)),
        "application/apply-patch+yaml" => Ok((PatchType::Apply, Format::Yaml)),
        _ => Err(ApiError::UnsupportedMediaType),
    }
}

fn media_type(header: Option<&str>) -> &str {
    header.unwrap_or("").split(';').next().unwrap_or("").trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_servable_clause_by_weight_wins() {
        let form = |header| accept(Some(header)).map(|a| (a.format, a.form)).ok();
        assert_eq!(form("text/html,application/json;q=0.8"), Some((Format::Json, Form::Plain)));
        assert_eq!(
            form("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
            Some((Format::Json, Form::Table { beta: false }))
        );
        assert_eq!(
            form("application/json;q=0.1, application/vnd.kubernetes.protobuf"),
            Some((Format::Protobuf, Form::Plain))
        );
        assert_eq!(form("application/json;as=Table;v=v9;g=meta.k8s.io"), None);
        assert_eq!(form("text/html"), None);
    }

    #[test]
    fn patches_need_a_patch_type() {
        assert!(patch(Some("application/json")).is_err());
        assert_eq!(patch(Some("application/json-patch+json")).unwrap().0, PatchType::Json);
    }
}
