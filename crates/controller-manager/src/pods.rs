//! What several controllers need to know of pods: pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::act::controlled_by;
use client::cache::Changed;
use client::transport::Object;
use client::{Action, Cache, Key, Patch, Plan};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

/// The label that tells the pods of one revision of a Deployment from those of another.
pub const TEMPLATE_HASH: &str = "pod-template-hash";

/// The condition of this type.
#[must_use]
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Says in the pod's status why it is taken away, and that it failed where a phase is given.
#[must_use]
pub fn disrupted(
    pod: &Pod,
    reason: &str,
    message: &str,
    phase: Option<&str>,
    now: Timestamp,
) -> Action {
    let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut status = json!({"conditions": [{
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": at,
    }]});
    if let Some(phase) = phase {
        status["phase"] = json!(phase);
    }
    Action::patch(pod, "status", Patch::Strategic(json!({ "status": status })))
}

/// Whether the pod's Ready condition is true.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Seconds until a ready pod counts as available (0: it does now); `None` for one that is not ready.
#[must_use]
pub fn available_in(pod: &Pod, min_ready_s: i32, now: Timestamp) -> Option<i64> {
    let ready = condition(pod, "Ready").filter(|c| c.status == "True")?;
    let since = ready.last_transition_time.as_ref().map_or(now, |t| t.0);
    Some((i64::from(min_ready_s) - (now.as_second() - since.as_second())).max(0))
}

/// `status.phase`, empty if absent.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether the pod has ended for good.
#[must_use]
pub fn is_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod counts for its owner: neither ended nor on its way out.
#[must_use]
pub fn is_active(pod: &Pod) -> bool {
    !is_ended(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// The restarts of the container that restarted most.
fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    statuses.map(|c| c.restart_count).max().unwrap_or(0)
}

/// Orders pods so that those come first whose deletion is missed least (upstream's `ActivePods`): not on a node,
/// pending, not ready, of low deletion cost, ready for a short time, often restarted, young.
pub fn rank_for_deletion(pods: &mut [&Pod]) {
    let cost = |pod: &Pod| -> i64 {
        let annotations = pod.metadata.annotations.as_ref();
        let text = annotations.and_then(|a| a.get("controller.kubernetes.io/pod-deletion-cost"));
        text.and_then(|t| t.parse().ok()).unwrap_or(0)
    };
    let phase_rank = |pod: &Pod| match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let on_node = |pod: &Pod| {
        pod.spec.as_ref().is_some_and(|s| s.node_name.as_ref().is_some_and(|n| !n.is_empty()))
    };
    let ready_since = |pod: &Pod| {
        condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0)
    };
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    pods.sort_by(|a, b| {
        (on_node(a), phase_rank(a), is_ready(a), cost(a))
            .cmp(&(on_node(b), phase_rank(b), is_ready(b), cost(b)))
            .then_with(|| ready_since(b).cmp(&ready_since(a)))
            .then_with(|| restarts(b).cmp(&restarts(a)))
            .then_with(|| created(b).cmp(&created(a)))
            .then_with(|| a.metadata.name.cmp(&b.metadata.name))
    });
}

/// Whether labels fulfil a selector; an absent selector selects nothing.
#[must_use]
pub fn selects(
    selector: Option<&LabelSelector>,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    let Some(selector) = selector else { return false };
    let get = |key: &str| labels.and_then(|l| l.get(key));
    let plain = selector.match_labels.iter().flatten().all(|(k, v)| get(k) == Some(v));
    let holds = |r: &LabelSelectorRequirement| {
        let value = get(&r.key);
        let values = r.values.as_deref().unwrap_or_default();
        match r.operator.as_str() {
            "In" => value.is_some_and(|v| values.contains(v)),
            "NotIn" => value.is_none_or(|v| !values.contains(v)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    };
    plain && selector.match_expressions.iter().flatten().all(holds)
}

/// The way to take the pods that are selected and controlled by nobody for `owner`'s own, and to let go of those that
/// it no longer selects; and the pods that are its own until then.
pub fn claim<T: Object>(
    plan: Plan,
    owner: &T,
    selector: Option<&LabelSelector>,
    own: &[Arc<Pod>],
    orphans: &[Arc<Pod>],
) -> (Plan, Vec<Arc<Pod>>) {
    let (kept, lost): (Vec<_>, Vec<_>) =
        own.iter().cloned().partition(|pod| selects(selector, pod.metadata.labels.as_ref()));
    if owner.metadata().deletion_timestamp.is_some() {
        return (plan, kept);
    }
    let plan = plan.each(orphans, |pod| {
        let owners = json!({"metadata": {"ownerReferences": [controlled_by(owner)]}});
        Action::merge(&**pod, owners)
    });
    let plan = plan.each(lost, |pod| {
        let owners = json!([{"$patch": "delete", "uid": owner.metadata().uid}]);
        Action::strategic(&*pod, json!({"metadata": {"ownerReferences": owners}}))
    });
    (plan, kept)
}

/// The objects of kind `T` in a pod's namespace that select it, if nobody controls it: they may take it over.
pub fn adopters<T: Object>(
    cache: &Cache,
    changed: &Changed<'_>,
    selects: fn(&T, &Pod) -> bool,
) -> Vec<Key> {
    let Some(pod) = changed.any_as::<Pod>() else { return Vec::new() };
    if pod.metadata.owner_references.iter().flatten().any(|o| o.controller == Some(true)) {
        return Vec::new();
    }
    let owners = cache.find::<T>("namespace", &changed.key.namespace);
    let wanted = owners.iter().filter(|owner| selects(owner, pod));
    wanted.map(|owner| Key::of(owner.metadata())).collect()
}

/// The pods of a namespace that a selector selects and that nobody controls.
pub fn orphans(cache: &Cache, namespace: &str, selector: Option<&LabelSelector>) -> Vec<Arc<Pod>> {
    let mut orphans = cache.find::<Pod>("orphans", namespace);
    orphans.retain(|pod| is_active(pod) && selects(selector, pod.metadata.labels.as_ref()));
    orphans
}

/// A count, or a share of `whole` in percent, rounded up; `or` if there is none or it can't be read.
#[must_use]
pub fn share(of: Option<&IntOrString>, whole: i32, or: i32) -> i32 {
    match of {
        Some(IntOrString::Int(count)) => *count,
        Some(IntOrString::String(text)) => {
            let percent = text.trim_end_matches('%').parse::<i64>().ok();
            let share = percent.map(|p| (p * i64::from(whole) + 99) / 100);
            share.and_then(|n| i32::try_from(n).ok()).unwrap_or(or)
        }
        None => or,
    }
}

/// Whether a selector selects a pod.
#[must_use]
pub fn picks(selector: Option<&LabelSelector>, pod: &Pod) -> bool {
    selects(selector, pod.metadata.labels.as_ref())
}

/// Letters that cannot form words, as generated names use them.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short name for a pod template: the same for the same template and collision count.
#[must_use]
pub fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    let mut eat = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    // A struct of the API is always JSON, and its maps are sorted.
    eat(&serde_json::to_vec(template).unwrap_or_default());
    if let Some(collisions) = collisions {
        eat(&collisions.to_le_bytes());
    }
    let digits = hash.to_string();
    digits.bytes().map(|b| SAFE[usize::from(b) % SAFE.len()] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_select_as_the_api_says() {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let requirement = |operator: &str| LabelSelector {
            match_labels: None,
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "app".into(),
                operator: operator.into(),
                values: Some(vec!["web".into()]),
            }]),
        };
        assert!(selects(Some(&requirement("In")), Some(&labels)));
        assert!(!selects(Some(&requirement("NotIn")), Some(&labels)));
        assert!(selects(Some(&LabelSelector::default()), None));
        assert!(!selects(None, Some(&labels)));
    }

    #[test]
    fn the_hash_changes_with_the_template_and_the_collisions() {
        let template = PodTemplateSpec::default();
        assert_eq!(template_hash(&template, None), template_hash(&template, None));
        assert_ne!(template_hash(&template, None), template_hash(&template, Some(1)));
    }

    #[test]
    fn pods_that_no_node_has_go_first() {
        let mut placed = Pod::default();
        placed.spec.get_or_insert_default().node_name = Some("n".into());
        let loose = Pod::default();
        let mut pods = vec![&placed, &loose];
        rank_for_deletion(&mut pods);
        assert!(pods[0].spec.is_none());
    }
}
