//! POST: a new object.

use api::catalog::Resource;
use api::error::ApiError;
use api::object::Value;
use api::patch::apply::Writer;
use api::strategy::{self, Birth};

use super::commit::Committed;
use super::{Api, decode};
use crate::admission;
use crate::hooks;
use crate::request::{Body, Object, Outcome, Request, WriteOptions};
use crate::storage::entry::Entry;

/// Names tried for one `generateName`.
const GENERATE_TRIES: usize = 8;
/// Times a claim (an address, a port) is tried again after somebody else took it.
const CLAIM_TRIES: usize = 64;

impl Api {
    pub(crate) async fn create(
        &self,
        request: &Request,
        body: &Body,
        options: &WriteOptions,
    ) -> Result<Outcome, ApiError> {
        let mut warnings = Vec::new();
        let resource = &request.resource;
        if resource.namespaced && request.namespace.is_empty() {
            return Err(ApiError::MethodNotAllowed);
        }
        let mut object = decode::object(body, resource, options.validation, &mut warnings)?;
        let namespace = if resource.namespaced { request.namespace.as_str() } else { "" };
        decode::place(&mut object, namespace, &request.name)?;
        let track = Track::Update(options);
        let entry = self.insert(request, object, &track, options.dry_run, &mut warnings).await?;
        let json = self.serve(resource, &entry);
        Ok(Outcome::Object { object: Object { json, kind: None }, created: true, warnings })
    }

    /// Completes, checks and stores a new object.
    pub(crate) async fn insert(
        &self,
        request: &Request,
        mut object: Value,
        track: &Track<'_>,
        dry_run: bool,
        warnings: &mut Vec<String>,
    ) -> Result<std::sync::Arc<Entry>, ApiError> {
        let resource = &request.resource;
        let generated =
            api::meta::name(&object).is_empty() && !api::meta::generate_name(&object).is_empty();
        for _ in 0..GENERATE_TRIES {
            // Only a name that was made up is worth another try.
            let new = if generated { object.clone() } else { std::mem::take(&mut object) };
            let candidate = self.prepare(request, new, track, warnings).await?;
            if dry_run {
                if self.exists(resource, &candidate).await? {
                    return Err(taken(resource, &candidate));
                }
                // Shows what it would get; nothing is claimed.
                let mut shown = candidate;
                hooks::on_write(self, resource, &mut shown, None).await?;
                return Ok(Entry::new(&super::commit::stored_bytes(resource, &shown), 0));
            }
            let conflict = taken(resource, &candidate);
            match self.store_new(resource, candidate).await? {
                Some(entry) => return Ok(entry),
                None if generated => warnings.clear(),
                None => return Err(conflict),
            }
        }
        Err(taken(resource, &object))
    }

    async fn exists(&self, resource: &Resource, object: &Value) -> Result<bool, ApiError> {
        let (namespace, name) = (api::meta::namespace(object), api::meta::name(object));
        Ok(self.find(resource, namespace, name).await?.is_some())
    }

    /// Stores a checked new object with its claims; `None` when the name is taken.
    async fn store_new(
        &self,
        resource: &Resource,
        mut object: Value,
    ) -> Result<Option<std::sync::Arc<Entry>>, ApiError> {
        // As it was before anything was chosen for it.
        let blank = hooks::chooses(resource).then(|| object.clone());
        for _ in 0..CLAIM_TRIES {
            let claims = hooks::on_write(self, resource, &mut object, None).await?;
            match self.put(resource, &object, 0, claims).await? {
                Committed::Done(entry) => return Ok(Some(entry)),
                Committed::Changed(_) => return Ok(None),
                // Somebody else took it: look again when we can see that.
                Committed::ClaimTaken => {
                    self.catch_up().await?;
                    if let Some(blank) = &blank {
                        object.clone_from(blank);
                    }
                }
            }
        }
        Err(ApiError::Internal("could not claim what the object needs; try again".into()))
    }

    /// Everything between the body and the transaction.
    async fn prepare(
        &self,
        request: &Request,
        mut object: Value,
        track: &Track<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Value, ApiError> {
        let resource = &request.resource;
        if !api::meta::resource_version(&object).is_empty() {
            return Err(ApiError::Unexpected(
                "resourceVersion should not be set on objects to be created".into(),
            ));
        }
        api::defaults::apply(&mut object, resource);
        let now = self.clock.now();
        track.record(None, &mut object, request, now);
        if api::meta::name(&object).is_empty() && !api::meta::generate_name(&object).is_empty() {
            let name = api::name::generate(api::meta::generate_name(&object), rand::random());
            api::meta::set(&mut object, "name", name);
        }
        let mut review = admission::Review {
            api: self,
            request,
            resource,
            object: &mut object,
            old: None,
            warnings,
        };
        admission::mutate(&mut review).await?;
        let uid = uuid::Uuid::new_v4().to_string();
        let namespace = if resource.namespaced { request.namespace.as_str() } else { "" };
        let birth = Birth { uid: &uid, now, namespace, random: rand::random() };
        strategy::prepare_for_create(&mut object, resource, birth);
        api::defaults::apply(&mut object, resource);
        hooks::complete(self, resource, &mut object, None);
        hooks::sign(request, &mut object);
        let errors = api::rules::validate_create(resource, &object);
        if !errors.is_empty() {
            let name = match api::meta::name(&object) {
                "" => api::meta::generate_name(&object),
                name => name,
            };
            return Err(ApiError::invalid(&resource.storage_group, &resource.kind, name, errors));
        }
        warnings.extend(api::rules::warnings(resource, &object, None));
        let mut review = admission::Review {
            api: self,
            request,
            resource,
            object: &mut object,
            old: None,
            warnings,
        };
        admission::validate(&mut review).await?;
        Ok(object)
    }

    /// The bytes of an entry as this resource serves them.
    pub(crate) fn serve(&self, resource: &Resource, entry: &Entry) -> bytes::Bytes {
        if entry.revision == 0 {
            // Never stored: a dry run has no revision to show.
            let mut value = entry.parse();
            value.remove_at(&["metadata", "resourceVersion"]);
            return value.to_bytes().into();
        }
        super::list::serve(resource, entry)
    }
}

/// How a write is recorded in managedFields.
#[derive(Debug)]
pub(crate) enum Track<'a> {
    /// As an update by this manager.
    Update(&'a WriteOptions),
    /// As an apply, which has recorded itself.
    Apply,
    /// As an update through `scale`, which is one of the object itself.
    Scale(&'a WriteOptions),
    /// Not at all, as upstream's binding.
    None,
}

impl Track<'_> {
    /// Records the write of an object that has its defaults, before admission.
    pub(crate) fn record(
        &self,
        old: Option<&Value>,
        new: &mut Value,
        request: &Request,
        now: jiff::Timestamp,
    ) {
        let through = match self {
            Self::Update(options) => Some((options, request.subresource.as_str())),
            Self::Scale(options) => Some((options, "scale")),
            Self::Apply | Self::None => None,
        };
        if let Some((options, subresource)) = through {
            let writer = Writer { manager: &options.manager, subresource, now };
            api::patch::apply::track_update(old, new, &request.resource, writer);
        }
    }
}

fn taken(resource: &Resource, object: &Value) -> ApiError {
    let name = api::meta::name(object).to_owned();
    let resource = resource.resource_name();
    if api::meta::generate_name(object).is_empty() {
        return ApiError::AlreadyExists { resource, name };
    }
    ApiError::GeneratedNameTaken { resource, name }
}
