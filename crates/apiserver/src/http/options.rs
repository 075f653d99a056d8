//! Options of requests, from their query, headers and body.

use std::time::Duration;

use api::error::ApiError;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, header};

use super::query::Query;
use super::{negotiate, render};
use crate::request::{DeleteOptions, FieldValidation, ListOptions, WatchOptions, WriteOptions};

pub(crate) fn list(query: &Query) -> Result<ListOptions, ApiError> {
    Ok(ListOptions {
        labels: query.text("labelSelector"),
        fields: query.text("fieldSelector"),
        limit: usize::try_from(query.int("limit")?.unwrap_or(0)).unwrap_or(0),
        continue_token: query.text("continue"),
        version: query.text("resourceVersion"),
        version_match: query.text("resourceVersionMatch"),
    })
}

pub(crate) fn watch(query: &Query) -> Result<WatchOptions, ApiError> {
    let timeout = query.int("timeoutSeconds")?.filter(|s| *s > 0).unwrap_or_else(|| {
        // Spread, so that watches of one start do not all end at once.
        rand::random_range(1800..3600)
    });
    Ok(WatchOptions {
        list: list(query)?,
        bookmarks: query.flag("allowWatchBookmarks"),
        initial_events: query.flag("sendInitialEvents"),
        timeout: u64::try_from(timeout).ok().map(Duration::from_secs),
    })
}

pub(crate) fn write(parts: &Parts, query: &Query) -> Result<WriteOptions, ApiError> {
    let mut errors = api::error::FieldErrors::new();
    let kind = match parts.method {
        Method::POST => "CreateOptions",
        Method::PUT => "UpdateOptions",
        _ => "PatchOptions",
    };
    let dry_run = query.all("dryRun");
    if dry_run.iter().any(|d| d != "All") {
        let value: Vec<api::Value> = dry_run.iter().map(|d| d.as_str().into()).collect();
        errors.not_supported("dryRun", api::Value::Array(value), &["All"]);
    }
    let validation = match query.text("fieldValidation").as_str() {
        "" | "Warn" => FieldValidation::Warn,
        "Ignore" => FieldValidation::Ignore,
        "Strict" => FieldValidation::Strict,
        other => {
            errors.not_supported("fieldValidation", other, &["", "Ignore", "Strict", "Warn"]);
            FieldValidation::Warn
        }
    };
    let given = query.text("fieldManager");
    if given.len() > 128 {
        errors.too_long("fieldManager", 128);
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid("meta.k8s.io", kind, "", errors));
    }
    let agent = parts.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let manager_given = !given.is_empty();
    let manager =
        if manager_given { given } else { agent.split('/').next().unwrap_or("").to_owned() };
    let manager = if manager.is_empty() { "unknown".to_owned() } else { manager };
    Ok(WriteOptions { dry_run: !dry_run.is_empty(), manager, manager_given, validation })
}

/// Deletion options come in the body, or in the query where there is none.
pub(crate) fn delete(
    query: &Query,
    body: Bytes,
    content: Option<&str>,
) -> Result<DeleteOptions, ApiError> {
    let mut options = DeleteOptions {
        grace_s: query.int("gracePeriodSeconds")?,
        propagation: Some(query.text("propagationPolicy")).filter(|p| !p.is_empty()),
        orphan: query.get("orphanDependents").map(|orphan| orphan == "true"),
        dry_run_given: query.all("dryRun"),
        ..DeleteOptions::default()
    };
    if !body.is_empty() {
        let format = negotiate::content(content)?;
        let value = render::delete_body(&body, format)?;
        let text = |path: &[&str]| value.str_at(path).map(str::to_owned);
        options.uid = text(&["preconditions", "uid"]);
        options.version = text(&["preconditions", "resourceVersion"]);
        options.grace_s = value.int_at(&["gracePeriodSeconds"]).or(options.grace_s);
        options.propagation = text(&["propagationPolicy"]).or(options.propagation);
        options.orphan = value.bool_at(&["orphanDependents"]).or(options.orphan);
        let given = value.at(&["dryRun"]).map(api::Value::items).unwrap_or_default();
        let given = given.iter().filter_map(api::Value::as_str);
        options.dry_run_given.extend(given.map(str::to_owned));
    }
    options.dry_run = !options.dry_run_given.is_empty();
    Ok(options)
}
