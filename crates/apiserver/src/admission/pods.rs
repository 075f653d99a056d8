//! Small plugins around pods and nodes: TaintNodesByCondition, Priority, DefaultTolerationSeconds.

use api::error::ApiError;
use api::object::{Map, Value};

use super::Review;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const TOLERATION_S: i64 = 300;

pub(super) fn push(object: &mut Value, path: &[&str], item: Value) {
    let mut items = object.at(path).map(Value::items).unwrap_or_default().to_vec();
    items.push(item);
    object.set_at(path, Value::Array(items));
}

/// A new node is not ready until the node controller has seen it ready.
pub(super) fn taint_new_nodes(review: &mut Review<'_>) {
    if !review.creates("", "nodes") {
        return;
    }
    let taints = review.object.at(&["spec", "taints"]).map(Value::items).unwrap_or_default();
    if taints.iter().any(|t| t.str_at(&["key"]) == Some(NOT_READY)) {
        return;
    }
    let mut taint = Value::Object(Map::default());
    taint.set("key", NOT_READY);
    taint.set("effect", "NoSchedule");
    push(review.object, &["spec", "taints"], taint);
}

/// The number behind a pod's priority class.
pub(super) fn priority(review: &mut Review<'_>) -> Result<(), ApiError> {
    if !review.is("", "pods") {
        return Ok(());
    }
    if let Some(old) = review.old {
        for key in ["priority", "preemptionPolicy"] {
            if let (None, Some(kept)) = (review.object["spec"].get(key), old["spec"].get(key)) {
                review.object.set_at(&["spec", key], kept.clone());
            }
        }
        return Ok(());
    }
    let shelf = review.api.cache.shelf("priorityclasses");
    let named = review.object.str_at(&["spec", "priorityClassName"]).unwrap_or("").to_owned();
    let class = if named.is_empty() {
        let all = shelf.list("", "").into_iter().map(|(_, entry)| entry.tree());
        all.filter(|c| c.bool_at(&["globalDefault"]) == Some(true))
            .min_by_key(|c| c.int_at(&["value"]).unwrap_or(0))
    } else {
        let Some(class) = shelf.get(&named) else {
            return Err(review.forbidden(format!("no PriorityClass with name {named} was found")));
        };
        Some(class.tree())
    };
    let value = class.as_ref().and_then(|c| c.int_at(&["value"])).unwrap_or(0);
    let policy = class
        .as_ref()
        .and_then(|c| c.str_at(&["preemptionPolicy"]))
        .unwrap_or("PreemptLowerPriority")
        .to_owned();
    if let Some(given) = review.object.int_at(&["spec", "priority"]).filter(|g| *g != value) {
        return Err(review.forbidden(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {value} from the given PriorityClass name"
        )));
    }
    if let Some(class) = class.filter(|_| named.is_empty()) {
        let name = api::meta::name(&class).to_owned();
        review.object.set_at(&["spec", "priorityClassName"], name);
    }
    review.object.set_at(&["spec", "priority"], value);
    match review.object.str_at(&["spec", "preemptionPolicy"]) {
        Some(given) if given != policy => Err(review.forbidden(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        ))),
        _ => {
            review.object.set_at(&["spec", "preemptionPolicy"], policy);
            Ok(())
        }
    }
}

/// Only one priority class may be the default.
pub(super) fn one_default_priority(review: &Review<'_>) -> Result<(), ApiError> {
    let marked = |class: &Value| class.bool_at(&["globalDefault"]) == Some(true);
    if !review.is("scheduling.k8s.io", "priorityclasses") || !marked(review.object) {
        return Ok(());
    }
    let own = api::meta::name(review.object);
    let shelf = review.api.cache.shelf("priorityclasses");
    let all = shelf.list("", "").into_iter().map(|(_, entry)| entry.tree());
    match all.into_iter().find(|class| marked(class) && api::meta::name(class) != own) {
        Some(other) => Err(review.forbidden(format!(
            "PriorityClass {} is already marked as default. Only one default can exist",
            api::meta::name(&other)
        ))),
        None => Ok(()),
    }
}

/// A pod is resized only on a node that is there to say what it can do.
pub(super) fn validate_resize(review: &Review<'_>) -> Result<(), ApiError> {
    let resized = review.resource.plural == "pods" && review.request.subresource == "resize";
    let Some(old) = review.old.filter(|_| resized) else { return Ok(()) };
    let node = review.object.str_at(&["spec", "nodeName"]).unwrap_or("");
    let there = || review.api.cache.shelf("minions").get(node).is_some();
    if node.is_empty() || old.get("spec") == review.object.get("spec") || there() {
        return Ok(());
    }
    Err(review.forbidden(format!("node {node:?} not found")))
}

/// Pods stay five minutes on a node that is lost, unless they say otherwise.
pub(super) fn default_tolerations(review: &mut Review<'_>) {
    if !review.is("", "pods") || review.deletes() {
        return;
    }
    for key in [NOT_READY, UNREACHABLE] {
        let present = review.object.at(&["spec", "tolerations"]).map(Value::items);
        let covered = present.unwrap_or_default().iter().any(|t| {
            let own = t.str_at(&["key"]).unwrap_or("");
            let effect = t.str_at(&["effect"]).unwrap_or("");
            (own.is_empty() || own == key) && (effect.is_empty() || effect == "NoExecute")
        });
        if covered {
            continue;
        }
        let mut toleration = Value::Object(Map::default());
        toleration.set("key", key);
        toleration.set("operator", "Exists");
        toleration.set("effect", "NoExecute");
        toleration.set("tolerationSeconds", TOLERATION_S);
        push(review.object, &["spec", "tolerations"], toleration);
    }
}
