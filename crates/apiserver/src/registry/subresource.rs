//! Subresources that are more than a part of the object: binding, eviction, token, scale.

use std::sync::Arc;

use api::catalog::Resource;
use api::error::ApiError;
use api::object::{Map, Value};

use super::create::Track;
use super::update::Change;
use super::{Api, decode, list};
use crate::hooks;
use crate::request::{Action, DeleteOptions, Object, Outcome, Request, WriteOptions};

/// A row for a kind that only appears as the body of a subresource: the one of the catalog, if it has one, or a plain
/// one with the kind's schema.
pub(crate) fn kind_row(api: &Api, group: &str, version: &str, kind: &str) -> Arc<Resource> {
    let catalog = api.catalog.load();
    catalog
        .find_kind(group, version, kind)
        .cloned()
        .or_else(|| api::catalog::body_row(group, version, kind).map(Arc::new))
        // Asked for built-in kinds only, all of which have a schema.
        .unwrap_or_else(|| panic!("no schema for {kind}.{version}.{group}"))
}

impl Api {
    pub(crate) async fn subresource(&self, request: Request) -> Result<Outcome, ApiError> {
        let resource = request.resource.clone();
        let name = request.subresource.clone();
        let verb = request.action.verb();
        let Some(row) = resource.subresource(&name) else { return Err(ApiError::NoSuchPath) };
        if !row.verbs.iter().any(|v| v == verb) {
            return Err(ApiError::MethodNotAllowed);
        }
        match (resource.plural.as_ref(), name.as_str()) {
            ("pods", "binding") | ("bindings", _) => self.bind_request(&request).await,
            ("pods", "eviction") => self.evict(&request).await,
            ("serviceaccounts", "token") => hooks::token::create(self, &request).await,
            (_, "scale") => self.scale(&request).await,
            _ => self.part(&request).await,
        }
    }

    /// A subresource that is the object itself with fewer fields to write: status, finalize, approval, …
    async fn part(&self, request: &Request) -> Result<Outcome, ApiError> {
        match &request.action {
            Action::Get { version } => self.read(request, version).await,
            Action::Update { body, options } => self.update(request, body, options).await,
            Action::Patch { kind, body, force, options } => {
                self.patch(request, *kind, body, *force, options).await
            }
            _ => Err(ApiError::MethodNotAllowed),
        }
    }

    async fn bind_request(&self, request: &Request) -> Result<Outcome, ApiError> {
        let Action::Create { body, options } = &request.action else {
            return Err(ApiError::MethodNotAllowed);
        };
        let mut warnings = Vec::new();
        let row = kind_row(self, "", "v1", "Binding");
        let mut binding = decode::object(body, &row, options.validation, &mut warnings)?;
        decode::place(&mut binding, &request.namespace, &request.name)?;
        let node = binding.str_at(&["target", "name"]).unwrap_or("").to_owned();
        let kind = binding.str_at(&["target", "kind"]).unwrap_or("");
        let mut errors = api::error::FieldErrors::new();
        if !kind.is_empty() && kind != "Node" {
            errors.not_supported("target.kind", kind, &["Node", "<empty>"]);
        }
        if node.is_empty() {
            errors.required("target.name", "");
        }
        if !errors.is_empty() {
            // Upstream does not dress these.
            let each: Vec<String> =
                errors.iter().map(|e| format!("{}: {}", e.field, e.message())).collect();
            return Err(ApiError::Unexpected(match each.as_slice() {
                [one] => one.clone(),
                many => format!("[{}]", many.join(", ")),
            }));
        }
        let uid = api::meta::uid(&binding).to_owned();
        self.bind(request, &uid, &node, options).await?;
        Ok(Outcome::Status { status: success(), code: 201, warnings })
    }

    /// Says on which node a pod runs.
    pub(crate) async fn bind(
        &self,
        request: &Request,
        uid: &str,
        node: &str,
        options: &WriteOptions,
    ) -> Result<Outcome, ApiError> {
        let pods = self.resource("", "v1", "pods");
        let now = api::time::format(self.clock.now());
        let status = Request {
            resource: pods,
            subresource: "binding".into(),
            action: Action::Get { version: String::new() },
            ..request.clone()
        };
        let conflict = |message: String| ApiError::Conflict {
            resource: api::error::ResourceName::new("", "pods/binding"),
            name: request.name.clone(),
            message,
        };
        let topology = self.topology_of(node);
        let change = |old: Option<&Value>| {
            let old = old.ok_or_else(|| status.not_found())?;
            if !uid.is_empty() && api::meta::uid(old) != uid {
                return Err(conflict(format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    api::meta::uid(old)
                )));
            }
            if api::meta::deletion_timestamp(old).is_some() {
                return Err(conflict(format!(
                    "pod {} is being deleted, cannot be assigned to a host",
                    request.name
                )));
            }
            if let Some(bound) = old.str_at(&["spec", "nodeName"]).filter(|n| !n.is_empty()) {
                return Err(conflict(format!(
                    "pod {} is already assigned to node {bound:?}",
                    request.name
                )));
            }
            let mut object = old.clone();
            object.set_at(&["spec", "nodeName"], node);
            for (label, value) in &topology {
                object.set_at(&["metadata", "labels", label], value.as_str());
            }
            // It waits for no other node any more (KEP-5278).
            object.remove_at(&["status", "nominatedNodeName"]);
            let mut condition = Value::Object(Map::default());
            condition.set("type", "PodScheduled");
            condition.set("status", "True");
            condition.set("lastProbeTime", Value::Null);
            condition.set("lastTransitionTime", now.as_str());
            api::meta::set_condition(&mut object, condition);
            Ok(Change::to(object))
        };
        self.modify(&status, change, &Track::None, options.dry_run, Vec::new()).await
    }

    /// Where a node is, as its pods are labelled with it (KEP-4742).
    fn topology_of(&self, node: &str) -> Vec<(&'static str, String)> {
        let nodes = self.resource("", "v1", "nodes");
        let Some(entry) = self.shelf(&nodes).get(node) else { return Vec::new() };
        let view = entry.view(|object| super::list::view(&nodes, object));
        let labels = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];
        let held = |label| Some((label, view.str_at(&["labels", label])?.to_owned()));
        labels.into_iter().filter_map(held).collect()
    }

    /// Deletes a pod unless a disruption budget forbids it.
    async fn evict(&self, request: &Request) -> Result<Outcome, ApiError> {
        let Action::Create { body, options } = &request.action else {
            return Err(ApiError::MethodNotAllowed);
        };
        let mut warnings = Vec::new();
        let row = kind_row(self, "policy", "v1", "Eviction");
        let mut eviction = decode::object(body, &row, options.validation, &mut warnings)?;
        let own = api::meta::name(&eviction);
        if !own.is_empty() && own != request.name {
            return Err(ApiError::bad_request(
                "name in URL does not match name in Eviction object",
            ));
        }
        decode::place(&mut eviction, &request.namespace, &request.name)?;
        let text = |path: &[&str]| eviction.str_at(path).map(str::to_owned);
        let delete = DeleteOptions {
            uid: text(&["deleteOptions", "preconditions", "uid"]),
            version: text(&["deleteOptions", "preconditions", "resourceVersion"]),
            grace_s: eviction.int_at(&["deleteOptions", "gracePeriodSeconds"]),
            propagation: text(&["deleteOptions", "propagationPolicy"]),
            dry_run: options.dry_run,
            ..DeleteOptions::default()
        };
        let found = self.find(&request.resource, &request.namespace, &request.name).await?;
        let pod = found.ok_or_else(|| request.not_found())?.parse();
        self.spend_budget(request, &pod, options).await?;
        let request = Request {
            subresource: String::new(),
            action: Action::Delete(delete.clone()),
            ..request.clone()
        };
        self.delete(&request, &delete).await?;
        Ok(Outcome::Status { status: success(), code: 201, warnings })
    }

    /// Takes one disruption from the budget that covers the pod.
    async fn spend_budget(
        &self,
        request: &Request,
        pod: &Value,
        options: &WriteOptions,
    ) -> Result<(), ApiError> {
        let ended =
            matches!(pod.str_at(&["status", "phase"]), Some("Succeeded" | "Failed" | "Pending"));
        if ended || api::meta::deletion_timestamp(pod).is_some() {
            return Ok(());
        }
        let budgets = self.resource("policy", "v1", "poddisruptionbudgets");
        let shelf = self.shelf(&budgets);
        let mut covering = Vec::new();
        for (_, entry) in shelf.list(&format!("{}/", request.namespace), "") {
            let budget = entry.parse();
            let selector = budget.at(&["spec", "selector"]).cloned().unwrap_or(Value::Null);
            if api::selector::LabelSelector::from_object(&selector)?.matches(pod) {
                covering.push(budget);
            }
        }
        let Some(budget) = covering.pop() else { return Ok(()) };
        if !covering.is_empty() {
            return Err(ApiError::Internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
                    .into(),
            ));
        }
        let name = api::meta::name(&budget).to_owned();
        let now = api::time::format(self.clock.now());
        let status = Request {
            resource: budgets,
            subresource: "status".into(),
            name: name.clone(),
            ..request.clone()
        };
        let change = |old: Option<&Value>| {
            let old = old.ok_or_else(|| status.not_found())?;
            let left = old.int_at(&["status", "disruptionsAllowed"]).unwrap_or(0);
            if left <= 0 {
                return Err(ApiError::DisruptionBudget {
                    name: request.name.clone(),
                    message: "Cannot evict pod as it would violate the pod's disruption budget."
                        .into(),
                });
            }
            let mut object = old.clone();
            object.set_at(&["status", "disruptionsAllowed"], left - 1);
            object.set_at(&["status", "disruptedPods", &request.name], now.as_str());
            Ok(Change::to(object))
        };
        self.modify(&status, change, &Track::Update(options), options.dry_run, Vec::new()).await?;
        Ok(())
    }

    /// Reads or writes the number of replicas.
    async fn scale(&self, request: &Request) -> Result<Outcome, ApiError> {
        let resource = &request.resource;
        let Some(paths) = resource.scale.clone() else { return Err(ApiError::NoSuchPath) };
        let kind = Some(("autoscaling".to_owned(), "Scale".to_owned()));
        let render = |object: &Value| -> Outcome {
            let json = scale_of(object, &paths).to_bytes().into();
            Outcome::Object {
                object: Object { json, kind: kind.clone() },
                created: false,
                warnings: Vec::new(),
            }
        };
        let (patch, options) = match &request.action {
            Action::Get { version } => {
                self.reach(version).await?;
                let entry = self.shelf(resource).get(&request.key());
                let entry = entry.ok_or_else(|| request.not_found())?;
                return Ok(render(&list::parsed(resource, &entry)));
            }
            Action::Update { body, options } => {
                let row = kind_row(self, "autoscaling", "v1", "Scale");
                let mut warnings = Vec::new();
                let scale = decode::object(body, &row, options.validation, &mut warnings)?;
                (ScaleChange::Whole(scale), options)
            }
            Action::Patch { kind, body, options, .. } => {
                let patch = api::codec::json::parse(&body.bytes)?;
                (ScaleChange::Patch(*kind, patch), options)
            }
            _ => return Err(ApiError::MethodNotAllowed),
        };
        let change = |old: Option<&Value>| {
            let old = old.ok_or_else(|| request.not_found())?;
            let scale = patch.apply(scale_of(old, &paths))?;
            let replicas = scale.int_at(&["spec", "replicas"]).unwrap_or(0);
            if replicas < 0 {
                let mut errors = api::error::FieldErrors::new();
                errors.invalid("spec.replicas", replicas, "must be greater than or equal to 0");
                return Err(ApiError::invalid("autoscaling", "Scale", &request.name, errors));
            }
            let version = api::meta::resource_version(&scale).to_owned();
            let mut object = old.clone();
            let path = dotted(&paths.spec_replicas);
            object.set_at(&path, replicas);
            let pinned = !version.is_empty() && version != api::meta::resource_version(old);
            if pinned {
                api::meta::set(&mut object, "resourceVersion", version);
            }
            Ok(Change { pinned, ..Change::to(object) })
        };
        let main = Request { subresource: String::new(), ..request.clone() };
        let track = Track::Scale(options);
        match self.modify(&main, change, &track, options.dry_run, Vec::new()).await? {
            Outcome::Object { object, .. } => Ok(render(&api::codec::json::parse(&object.json)?)),
            other => Ok(other),
        }
    }
}

/// What a client sends to `scale`.
enum ScaleChange {
    Whole(Value),
    Patch(crate::request::PatchType, Value),
}

impl ScaleChange {
    fn apply(&self, mut scale: Value) -> Result<Value, ApiError> {
        match self {
            Self::Whole(whole) => Ok(whole.clone()),
            Self::Patch(crate::request::PatchType::Json, patch) => {
                api::patch::json::apply(scale, patch)
            }
            Self::Patch(_, patch) => {
                api::patch::merge::apply(&mut scale, patch.clone());
                Ok(scale)
            }
        }
    }
}

fn dotted(path: &str) -> Vec<&str> {
    path.split('.').filter(|part| !part.is_empty()).collect()
}

/// The `Scale` of an object.
fn scale_of(object: &Value, paths: &api::catalog::ScalePaths) -> Value {
    let mut scale = Value::Object(Map::default());
    scale.set("apiVersion", "autoscaling/v1");
    scale.set("kind", "Scale");
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.at(&["metadata", field]) {
            scale.set_at(&["metadata", field], value.clone());
        }
    }
    let number = |path: &str| object.int_at(&dotted(path)).unwrap_or(0);
    match number(&paths.spec_replicas) {
        0 => scale.set("spec", Value::Object(Map::default())),
        replicas => scale.set_at(&["spec", "replicas"], replicas),
    }
    scale.set_at(&["status", "replicas"], number(&paths.status_replicas));
    let selector = object.at(&dotted(&paths.selector));
    if let Some(text) = selector.map(selector_text).filter(|t| !t.is_empty()) {
        scale.set_at(&["status", "selector"], text);
    }
    scale
}

/// A selector in its query form.
fn selector_text(selector: &Value) -> String {
    if let Some(text) = selector.as_str() {
        return text.to_owned();
    }
    let plain = selector.get("matchLabels").unwrap_or(selector);
    let mut parts: Vec<String> = plain
        .members()
        .filter_map(|(key, value)| value.as_str().map(|value| format!("{key}={value}")))
        .collect();
    for item in selector.get("matchExpressions").map(Value::items).unwrap_or_default() {
        let key = item.str_at(&["key"]).unwrap_or("");
        let values: Vec<&str> = item
            .get("values")
            .map(Value::items)
            .unwrap_or_default()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        parts.push(match item.str_at(&["operator"]) {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.join(",")
}

fn success() -> Value {
    let mut status = Value::Object(Map::default());
    status.set("kind", "Status");
    status.set("apiVersion", "v1");
    status.set("metadata", Value::Object(Map::default()));
    status.set("status", "Success");
    status.set("code", 201);
    status
}
