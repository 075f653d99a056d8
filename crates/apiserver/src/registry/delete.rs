//! DELETE of one object and of many: at once, gracefully, or when its finalizers are done.

use std::sync::Arc;

use api::catalog::Resource;
use api::error::{ApiError, FieldErrors, ResourceName};
use api::object::{Map, Value};

use super::commit::Committed;
use super::{Api, list};
use crate::admission;
use crate::hooks;
use crate::request::{Action, DeleteOptions, List, ListOptions, Object, Outcome, Request};
use crate::storage::entry::Entry;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Attempts against concurrent writers.
const TRIES_MAX: usize = 64;

/// Whether an object that is being deleted is held by nothing any more.
pub(crate) fn released(resource: &Resource, object: &Value) -> bool {
    api::meta::deletion_timestamp(object).is_some()
        && api::meta::finalizers(object).next().is_none()
        && object.int_at(&["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) == 0
        && !hooks::holds(resource, object)
}

/// What a deletion does to an object.
enum Step {
    /// It goes now; the object as it is shown for the last time.
    Remove(Box<Value>),
    /// It stays for the moment, changed like this.
    Mark(Box<Value>),
    /// It is on its way already.
    Nothing,
}

impl Api {
    pub(crate) async fn delete(
        &self,
        request: &Request,
        options: &DeleteOptions,
    ) -> Result<Outcome, ApiError> {
        check(options)?;
        let (entry, gone) = self.delete_one(request, options).await?;
        let resource = &request.resource;
        let unsaid = options.propagation.is_none() && options.orphan.is_none();
        let warning = hooks::orphan_warning(resource).filter(|_| unsaid);
        let warnings: Vec<String> = warning.map(str::to_owned).into_iter().collect();
        if gone && !hooks::returns_deleted(resource) {
            let uid = api::meta::uid(&entry.parse()).to_owned();
            let status = success(resource, &request.name, &uid);
            return Ok(Outcome::Status { status, code: 200, warnings });
        }
        let object = Object { json: self.serve(resource, &entry), kind: None };
        Ok(Outcome::Object { object, created: false, warnings })
    }

    /// Deletes one object; the object as it last was, and whether it is gone.
    async fn delete_one(
        &self,
        request: &Request,
        options: &DeleteOptions,
    ) -> Result<(Arc<Entry>, bool), ApiError> {
        let resource = &request.resource;
        let mut current = self.shelf(resource).get(&request.key());
        let mut fresh = false;
        for _ in 0..TRIES_MAX {
            let decided = match &current {
                None => Err(request.not_found()),
                Some(entry) => self.deletion(request, options, entry).await,
            };
            let (step, old) = match decided {
                Err(_) if !fresh => {
                    current = self.stored(resource, &request.namespace, &request.name).await?;
                    fresh = true;
                    continue;
                }
                decided => decided?,
            };
            let Some(entry) = current.clone() else { return Err(request.not_found()) };
            let (committed, gone) = match step {
                Step::Nothing => (Committed::Done(entry.clone()), false),
                Step::Remove(object) if options.dry_run => {
                    let bytes = super::commit::stored_bytes(resource, &object);
                    (Committed::Done(Entry::new(&bytes, entry.revision)), true)
                }
                Step::Mark(object) if options.dry_run => {
                    let bytes = super::commit::stored_bytes(resource, &object);
                    (Committed::Done(Entry::new(&bytes, entry.revision)), false)
                }
                Step::Remove(object) => {
                    let claims = hooks::on_delete(self, resource, &old);
                    let (namespace, name) = (api::meta::namespace(&old), api::meta::name(&old));
                    let removed = self.remove(resource, namespace, name, &entry, claims).await?;
                    let shown = match removed {
                        Committed::Done(gone) => {
                            let bytes = super::commit::stored_bytes(resource, &object);
                            Committed::Done(Entry::new(&bytes, gone.revision))
                        }
                        other => other,
                    };
                    (shown, true)
                }
                Step::Mark(object) => {
                    let claims = super::commit::Claims::default();
                    let marked = self.put(resource, &object, entry.revision, claims).await?;
                    if let Committed::Done(now) = &marked
                        && released(resource, &object)
                    {
                        // Watchers see that its time is over before they see it gone.
                        current = Some(now.clone());
                        fresh = true;
                        continue;
                    }
                    (marked, false)
                }
            };
            match committed {
                Committed::Done(entry) => return Ok((entry, gone)),
                Committed::Changed(now) => {
                    current = now;
                    fresh = true;
                }
                Committed::ClaimTaken => {}
            }
        }
        Err(ApiError::modified(resource.resource_name(), &request.name))
    }

    /// What this deletion does to the object of `entry`.
    async fn deletion(
        &self,
        request: &Request,
        options: &DeleteOptions,
        entry: &Arc<Entry>,
    ) -> Result<(Step, Value), ApiError> {
        let resource = &request.resource;
        let old = list::parsed(resource, entry);
        preconditions(resource, &old, options)?;
        let mut warnings = Vec::new();
        let mut object = old.clone();
        let mut review = admission::Review {
            api: self,
            request,
            resource,
            object: &mut object,
            old: Some(&old),
            warnings: &mut warnings,
        };
        admission::validate(&mut review).await?;
        let step = decide(resource, object, &old, options, self.clock.now());
        Ok((step, old))
    }

    pub(crate) async fn delete_collection(
        &self,
        request: &Request,
        selection: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<Outcome, ApiError> {
        if request.resource.namespaced && request.namespace.is_empty() {
            return Err(ApiError::MethodNotAllowed);
        }
        check(options)?;
        let page = self.entries(request, selection).await?;
        let mut items = Vec::with_capacity(page.entries.len());
        for (_, entry) in &page.entries {
            let object = entry.parse();
            let one = Request {
                namespace: api::meta::namespace(&object).to_owned(),
                name: api::meta::name(&object).to_owned(),
                action: Action::Delete(options.clone()),
                ..request.clone()
            };
            match self.delete_one(&one, options).await {
                // Shown as it was found.
                Ok(_) => items.push(list::serve(&request.resource, entry)),
                Err(ApiError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Outcome::List(List {
            revision: page.revision,
            items,
            continue_token: page.continue_token,
            remaining: page.remaining,
        }))
    }
}

fn decide(
    resource: &Resource,
    mut object: Value,
    before: &Value,
    options: &DeleteOptions,
    now: jiff::Timestamp,
) -> Step {
    hooks::on_ask(resource, &mut object, now);
    propagate(resource, &mut object, options);
    let graceful = hooks::grace_s(resource, &object, options.grace_s);
    let grace_s = graceful.unwrap_or(0);
    let deleting = api::meta::deletion_timestamp(&object).is_some();
    let held = api::meta::finalizers(&object).next().is_some() || hooks::holds(resource, &object);
    if deleting {
        let left = object.int_at(&["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0);
        if grace_s < left {
            let began = api::meta::deletion_timestamp(&object).and_then(api::time::parse);
            mark(&mut object, began.unwrap_or(now), left, grace_s);
        }
    } else if graceful.is_some() || held {
        mark(&mut object, now, 0, grace_s);
        if api::meta::generation(&object) > 0 {
            let generation = api::meta::generation(&object) + 1;
            api::meta::set(&mut object, "generation", generation);
        }
    }
    hooks::on_mark(resource, &mut object);
    let left = object.int_at(&["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0);
    let changed = object != *before;
    let cut_short = deleting && !held && changed && !options.dry_run;
    // What is stored has no revision.
    object.remove_at(&["metadata", "resourceVersion"]);
    if !held && left == 0 && !cut_short {
        return Step::Remove(Box::new(object));
    }
    if changed { Step::Mark(Box::new(object)) } else { Step::Nothing }
}

/// Sets when the object is to be gone. `began` is when a grace period of `left` seconds ends.
fn mark(object: &mut Value, began: jiff::Timestamp, left: i64, grace_s: i64) {
    let shift = jiff::SignedDuration::from_secs(grace_s - left);
    let end = began.checked_add(shift).unwrap_or(began);
    api::meta::set(object, "deletionTimestamp", api::time::format(end));
    api::meta::metadata_mut(object).set("deletionGracePeriodSeconds", grace_s);
}

/// Finalizers that tell the garbage collector what to do with dependents.
fn propagate(resource: &Resource, object: &mut Value, options: &DeleteOptions) {
    let asked = options.propagation.as_deref();
    let older = options.orphan.map(|orphan| if orphan { "Orphan" } else { "Background" });
    let policy = match asked.or(older) {
        Some(policy) => policy,
        None if api::meta::finalizers(object).any(|f| f == ORPHAN || f == FOREGROUND) => return,
        None if hooks::orphans_by_default(resource) => "Orphan",
        None => "Background",
    };
    let wanted = match policy {
        "Orphan" => Some(ORPHAN),
        "Foreground" => Some(FOREGROUND),
        _ => None,
    };
    let mut finalizers: Vec<Value> = api::meta::finalizers(object)
        .filter(|f| *f != ORPHAN && *f != FOREGROUND)
        .map(Value::from)
        .collect();
    if let Some(wanted) = wanted {
        finalizers.push(Value::from(wanted));
    }
    let metadata = api::meta::metadata_mut(object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.set("finalizers", Value::Array(finalizers));
    }
}

fn preconditions(
    resource: &Resource,
    object: &Value,
    options: &DeleteOptions,
) -> Result<(), ApiError> {
    let conflict = |message: String| ApiError::Conflict {
        resource: ResourceName::new(resource.group.as_ref(), resource.kind.as_ref()),
        name: api::meta::name(object).to_owned(),
        message,
    };
    let (uid, version) = (api::meta::uid(object), api::meta::resource_version(object));
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        return Err(conflict(format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have \
             been deleted and then recreated"
        )));
    }
    if let Some(wanted) = options.version.as_deref().filter(|wanted| *wanted != version) {
        return Err(conflict(format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record \
             ({version}). The object might have been modified"
        )));
    }
    Ok(())
}

fn check(options: &DeleteOptions) -> Result<(), ApiError> {
    let mut errors = FieldErrors::new();
    if options.orphan.is_some()
        && let Some(policy) = &options.propagation
    {
        errors.invalid(
            "propagationPolicy",
            policy.as_str(),
            "orphanDependents and deletionPropagation cannot be both set",
        );
    }
    if options.dry_run_given.iter().any(|d| d != "All") {
        let given = options.dry_run_given.iter().map(|d| Value::from(d.as_str())).collect();
        errors.not_supported("dryRun", Value::Array(given), &["All"]);
    }
    if let Some(policy) = &options.propagation
        && !matches!(policy.as_str(), "Orphan" | "Background" | "Foreground")
    {
        errors.not_supported(
            "propagationPolicy",
            policy.as_str(),
            &["Foreground", "Background", "Orphan", "nil"],
        );
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", errors))
}

/// The `Status` of a deletion that is done.
fn success(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = Value::Object(Map::default());
    details.set("name", name);
    if !resource.group.is_empty() {
        details.set("group", resource.group.as_ref());
    }
    details.set("kind", resource.plural.as_ref());
    details.set("uid", uid);
    let mut status = Value::Object(Map::default());
    status.set("kind", "Status");
    status.set("apiVersion", "v1");
    status.set("metadata", Value::Object(Map::default()));
    status.set("status", "Success");
    status.set("details", details);
    status
}
