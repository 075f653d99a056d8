//! PUT and PATCH: read, change, compare and swap, and again if somebody else was faster.

use std::sync::Arc;

use api::catalog::Resource;
use api::error::ApiError;
use api::object::Value;
use api::strategy;

use super::commit::Committed;
use super::create::Track;
use super::{Api, decode};
use crate::admission;
use crate::hooks;
use crate::request::{
    Body, FieldValidation, Format, Object, Outcome, PatchType, Request, WriteOptions,
};
use crate::storage::entry::Entry;

/// Attempts of one update against concurrent writers.
const TRIES_MAX: usize = 64;
/// Attempts of an update that names the revision it expects: one, and one more if our own view was old.
const PINNED_TRIES: usize = 2;

/// What a change asks for.
#[derive(Debug)]
pub(crate) struct Change {
    /// The object as it should be, before strategy and defaults.
    pub(crate) object: Value,
    /// The resourceVersion the client expects, if it named one.
    pub(crate) pinned: bool,
    /// What the client should hear of it.
    pub(crate) warnings: Vec<String>,
}

impl Change {
    /// A change of which there is nothing more to say.
    pub(crate) fn to(object: Value) -> Self {
        Self { object, pinned: false, warnings: Vec::new() }
    }
}

impl Api {
    pub(crate) async fn update(
        &self,
        request: &Request,
        body: &Body,
        options: &WriteOptions,
    ) -> Result<Outcome, ApiError> {
        let mut warnings = Vec::new();
        let resource = &request.resource;
        let mut object = decode::object(body, resource, options.validation, &mut warnings)?;
        let namespace = if resource.namespaced { request.namespace.as_str() } else { "" };
        if api::meta::name(&object).is_empty() {
            return Err(ApiError::BadRequest(format!(
                "the name of the object ({} based on URL) was undeterminable: name must be provided",
                request.name
            )));
        }
        decode::place(&mut object, namespace, &request.name)?;
        let version = api::meta::resource_version(&object).to_owned();
        if version.is_empty() && resource.update_needs_version {
            return Err(needs_version(request));
        }
        if !version.is_empty() && version.parse::<u64>().is_err() {
            return Err(ApiError::Unexpected(format!(
                "strconv.ParseUint: parsing {version:?}: invalid syntax"
            )));
        }
        let uid = api::meta::uid(&object).to_owned();
        let track = Track::Update(options);
        let change = |old: Option<&Value>| match old {
            None if resource.create_on_update && request.subresource.is_empty() => {
                if !uid.is_empty() {
                    return Err(uid_conflict(request, &uid, ""));
                }
                Ok(Change::to(object.clone()))
            }
            None => Err(request.not_found()),
            Some(old) => {
                if !uid.is_empty() && uid != api::meta::uid(old) {
                    return Err(uid_conflict(request, &uid, api::meta::uid(old)));
                }
                Ok(Change { pinned: !version.is_empty(), ..Change::to(object.clone()) })
            }
        };
        self.modify(request, change, &track, options.dry_run, warnings).await
    }

    pub(crate) async fn patch(
        &self,
        request: &Request,
        kind: PatchType,
        body: &Body,
        force: bool,
        options: &WriteOptions,
    ) -> Result<Outcome, ApiError> {
        if kind == PatchType::Apply {
            return self.apply(request, body, force, options).await;
        }
        let resource = &request.resource;
        if kind == PatchType::Strategic && resource.custom {
            return Err(ApiError::UnsupportedMediaType);
        }
        let patch = api::codec::json::parse(&body.bytes).map_err(|error| {
            ApiError::BadRequest(format!("error decoding patch: {}", error.message()))
        })?;
        let change = |old: Option<&Value>| {
            let old = old.ok_or_else(|| request.not_found())?;
            let patched = || -> Result<Value, ApiError> {
                Ok(match kind {
                    PatchType::Json => api::patch::json::apply(old.clone(), &patch)?,
                    PatchType::Strategic => {
                        api::patch::strategic::apply(old.clone(), &patch, &resource.schema)?
                    }
                    PatchType::Merge | PatchType::Apply => {
                        let mut target = old.clone();
                        api::patch::merge::apply(&mut target, patch.clone());
                        target
                    }
                })
            };
            // Once more, to be shown as it was before it was read as its kind.
            let badly = |detail| match patched() {
                Ok(shown) => patched_badly(&shown, detail),
                Err(error) => error,
            };
            let decoded =
                api::codec::json::conform(patched()?, &resource.schema).map_err(|error| {
                    let detail = match &error {
                        api::codec::DecodeError::Mismatch { wanted, .. }
                            if kind == PatchType::Strategic =>
                        {
                            format!("unrecognized type: {wanted}")
                        }
                        other => other.message(),
                    };
                    badly(detail)
                })?;
            let mut warnings = Vec::new();
            if options.validation == FieldValidation::Strict && !decoded.strict.is_empty() {
                let all = decoded.strict.join(", ");
                return Err(badly(format!("strict decoding error: {all}")));
            }
            decode::strictness(&decoded.strict, resource, options.validation, &mut warnings)?;
            let version = api::meta::resource_version(&decoded.value);
            let pinned = version != api::meta::resource_version(old);
            let mut object = decoded.value;
            same_kind(&mut object, old, resource)?;
            decode::place(&mut object, api::meta::namespace(old), api::meta::name(old))?;
            Ok(Change { object, pinned, warnings })
        };
        let track = Track::Update(options);
        self.modify(request, change, &track, options.dry_run, Vec::new()).await
    }

    async fn apply(
        &self,
        request: &Request,
        body: &Body,
        force: bool,
        options: &WriteOptions,
    ) -> Result<Outcome, ApiError> {
        let resource = &request.resource;
        if !options.manager_given {
            return Err(no_manager());
        }
        let mut warnings = Vec::new();
        let decoded = match body.format {
            Format::Json | Format::Protobuf => api::codec::json::parse(&body.bytes)
                .map(|value| api::codec::Decoded { value, strict: Vec::new() }),
            Format::Yaml => api::codec::yaml::parse(&body.bytes),
        }
        .map_err(|error| {
            ApiError::BadRequest(format!("error decoding YAML: {}", error.message()))
        })?;
        if options.validation == FieldValidation::Strict && !decoded.strict.is_empty() {
            return Err(ApiError::BadRequest(format!(
                "error strict decoding YAML: error converting YAML to JSON: {}",
                decoded.strict.join(", ")
            )));
        }
        decode::strictness(&decoded.strict, resource, options.validation, &mut warnings)?;
        let patch = decoded.value;
        check_applied(&patch, resource)?;
        let track = Track::Apply;
        let now = self.clock.now();
        let change = |old: Option<&Value>| {
            if old.is_none()
                && (!request.subresource.is_empty() || !api::meta::uid(&patch).is_empty())
            {
                return Err(match api::meta::uid(&patch) {
                    "" => request.not_found(),
                    uid => no_such_uid(request, uid),
                });
            }
            let writer = api::patch::apply::Writer {
                manager: &options.manager,
                subresource: &request.subresource,
                now,
            };
            let mut object = api::patch::apply::apply(old, &patch, resource, writer, force)?;
            let namespace = if resource.namespaced { request.namespace.as_str() } else { "" };
            decode::place(&mut object, namespace, &request.name)?;
            let version = api::meta::resource_version(&patch);
            if !version.is_empty() {
                api::meta::set(&mut object, "resourceVersion", version);
            }
            Ok(Change { pinned: !version.is_empty(), ..Change::to(object) })
        };
        self.modify(request, change, &track, options.dry_run, warnings).await
    }

    /// Runs `change` on the object as it is and stores the result, again while others write at the same time.
    pub(crate) async fn modify(
        &self,
        request: &Request,
        change: impl Fn(Option<&Value>) -> Result<Change, ApiError>,
        track: &Track<'_>,
        dry_run: bool,
        mut warnings: Vec<String>,
    ) -> Result<Outcome, ApiError> {
        let resource = &request.resource;
        let mut current = self.shelf(resource).get(&request.key());
        let mut fresh = false;
        if current.is_none() {
            // Perhaps it is newer than the cache.
            current = self.stored(resource, &request.namespace, &request.name).await?;
            fresh = true;
        }
        let keep = warnings.len();
        for attempt in 0..TRIES_MAX {
            warnings.truncate(keep);
            let old = current.as_ref().map(|entry| super::list::parsed(resource, entry));
            let decided = self.decide(request, old.as_ref(), &change, track, &mut warnings).await;
            let decided = match decided {
                Err(_) if !fresh => {
                    // The cache may be behind: decide again on what the store has.
                    current = self.stored(resource, &request.namespace, &request.name).await?;
                    fresh = true;
                    continue;
                }
                decided => decided?,
            };
            let Decided { object, pinned } = decided;
            let (Some(entry), Some(old)) = (&current, &old) else {
                return self.insert_instead(request, object, track, dry_run, warnings).await;
            };
            let unchanged = same(&object, old);
            let committed = if unchanged {
                if !fresh && !dry_run {
                    current = self.stored(resource, &request.namespace, &request.name).await?;
                    fresh = true;
                    continue;
                }
                Committed::Done(entry.clone())
            } else if dry_run {
                let bytes = super::commit::stored_bytes(resource, &object);
                Committed::Done(Entry::new(&bytes, entry.revision))
            } else {
                self.swap(resource, object, old, entry).await?
            };
            match committed {
                Committed::Done(entry) => {
                    let json = self.serve(resource, &entry);
                    let object = Object { json, kind: None };
                    return Ok(Outcome::Object { object, created: false, warnings });
                }
                Committed::Changed(now) => {
                    current = now;
                    fresh = true;
                }
                Committed::ClaimTaken => {
                    self.catch_up().await?;
                }
            }
            if pinned && attempt + 1 >= PINNED_TRIES {
                break;
            }
        }
        Err(ApiError::modified(resource.resource_name(), &request.name))
    }

    /// Stores the new state, or removes the object if nothing holds it any more.
    async fn swap(
        &self,
        resource: &Resource,
        mut object: Value,
        old: &Value,
        entry: &Arc<Entry>,
    ) -> Result<Committed, ApiError> {
        object.remove_at(&["metadata", "resourceVersion"]);
        if super::delete::released(resource, &object) {
            let claims = hooks::on_delete(self, resource, old);
            let (namespace, name) = (api::meta::namespace(old), api::meta::name(old));
            // The answer shows the object as this write left it.
            return Ok(match self.remove(resource, namespace, name, entry, claims).await? {
                Committed::Done(gone) => {
                    let bytes = super::commit::stored_bytes(resource, &object);
                    Committed::Done(Entry::new(&bytes, gone.revision))
                }
                other => other,
            });
        }
        let claims = hooks::on_write(self, resource, &mut object, Some(old)).await?;
        self.put(resource, &object, entry.revision, claims).await
    }

    async fn insert_instead(
        &self,
        request: &Request,
        object: Value,
        track: &Track<'_>,
        dry_run: bool,
        mut warnings: Vec<String>,
    ) -> Result<Outcome, ApiError> {
        let create = crate::layers::rbac::Attributes { verb: "create", ..request.attributes() };
        self.authorizer.check(&request.user, &create)?;
        let entry = self.insert(request, object, track, dry_run, &mut warnings).await?;
        let object = Object { json: self.serve(&request.resource, &entry), kind: None };
        Ok(Outcome::Object { object, created: true, warnings })
    }

    /// Everything between the change and the transaction.
    async fn decide(
        &self,
        request: &Request,
        old: Option<&Value>,
        change: &impl Fn(Option<&Value>) -> Result<Change, ApiError>,
        track: &Track<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Decided, ApiError> {
        let resource = &request.resource;
        let Change { mut object, pinned, warnings: more } = change(old)?;
        warnings.extend(more);
        let Some(old) = old else { return Ok(Decided { object, pinned }) };
        if pinned && api::meta::resource_version(&object) != api::meta::resource_version(old) {
            return Err(ApiError::modified(resource.resource_name(), &request.name));
        }
        api::defaults::apply(&mut object, resource);
        let now = self.clock.now();
        track.record(Some(old), &mut object, request, now);
        let mut review = admission::Review {
            api: self,
            request,
            resource,
            object: &mut object,
            old: Some(old),
            warnings,
        };
        admission::mutate(&mut review).await?;
        match request.subresource.as_str() {
            "" => strategy::prepare_for_update(&mut object, old, resource),
            "status" => strategy::prepare_for_status_update(&mut object, old, resource),
            _ => hooks::prepare_subresource(request, &mut object, old)?,
        }
        api::defaults::apply(&mut object, resource);
        hooks::complete(self, resource, &mut object, Some(old));
        if matches!(track, Track::Apply) {
            api::patch::apply::settle_unchanged(Some(old), &mut object);
        }
        let errors = match request.subresource.as_str() {
            "" => api::rules::validate_update(resource, &object, old),
            // What these write is not the client's own choice.
            "binding" | "finalize" => api::error::FieldErrors::new(),
            _ => {
                let mut errors = api::rules::validate_status_update(resource, &object, old);
                hooks::check_subresource(request, &object, old, &mut errors);
                errors
            }
        };
        if !errors.is_empty() {
            let group = &resource.storage_group;
            return Err(ApiError::invalid(group, &resource.kind, &request.name, errors));
        }
        warnings.extend(api::rules::warnings(resource, &object, Some(old)));
        let mut review = admission::Review {
            api: self,
            request,
            resource,
            object: &mut object,
            old: Some(old),
            warnings,
        };
        admission::validate(&mut review).await?;
        Ok(Decided { object, pinned })
    }
}

struct Decided {
    object: Value,
    pinned: bool,
}

/// Whether a write would change nothing. The record of owners keeps its times then.
fn same(new: &Value, old: &Value) -> bool {
    api::meta::same_but(new, old, "resourceVersion")
}

fn same_kind(object: &mut Value, old: &Value, resource: &Resource) -> Result<(), ApiError> {
    let (version, kind) = api::meta::type_meta(object);
    let (expected_version, expected) = api::meta::type_meta(old);
    if kind != expected {
        return Err(ApiError::BadRequest(format!(
            "the kind in the data ({kind}) does not match the expected kind ({expected})"
        )));
    }
    if version != expected_version {
        return Err(ApiError::BadRequest(format!(
            "the API version in the data ({version}) does not match the expected API version ({})",
            resource.api_version()
        )));
    }
    Ok(())
}

/// A patch whose result is no object of its kind; the result is shown as text, as upstream does.
fn patched_badly(patched: &Value, detail: String) -> ApiError {
    let mut errors = api::error::FieldErrors::new();
    errors.invalid("patch", patched.to_string(), detail);
    ApiError::invalid("", "", "", errors)
}

/// What an apply configuration must and must not say of itself.
fn check_applied(patch: &Value, resource: &Resource) -> Result<(), ApiError> {
    let (version, kind) = api::meta::type_meta(patch);
    if kind != resource.kind || version != resource.api_version() {
        let (group, version) = api::catalog::split_api_version(version);
        return Err(ApiError::BadRequest(format!(
            "invalid object type: {group}/{version}, Kind={kind}"
        )));
    }
    if patch.at(&["metadata", "managedFields"]).is_some_and(|m| !m.items().is_empty()) {
        return Err(ApiError::BadRequest("metadata.managedFields must be nil".into()));
    }
    Ok(())
}

fn no_such_uid(request: &Request, uid: &str) -> ApiError {
    ApiError::Conflict {
        resource: request.resource.resource_name(),
        name: request.name.clone(),
        message: format!(
            "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
        ),
    }
}

fn no_manager() -> ApiError {
    let mut errors = api::error::FieldErrors::new();
    errors.required("fieldManager", "is required for apply patch");
    ApiError::invalid("meta.k8s.io", "PatchOptions", "", errors)
}

fn needs_version(request: &Request) -> ApiError {
    let mut errors = api::error::FieldErrors::new();
    errors.invalid("metadata.resourceVersion", 0, "must be specified for an update");
    let resource = &request.resource;
    ApiError::invalid(&resource.group, &resource.plural, &request.name, errors)
}

fn uid_conflict(request: &Request, asked: &str, found: &str) -> ApiError {
    let key = crate::storage::keys::object(&request.resource, &request.namespace, &request.name);
    ApiError::Conflict {
        resource: request.resource.resource_name(),
        name: request.name.clone(),
        message: format!(
            "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: Precondition \
             failed: UID in precondition: {asked}, UID in object meta: {found}",
            String::from_utf8_lossy(&key)
        ),
    }
}
