//! What a Job's policies say of pods that failed, and of indexes that succeeded. Pure.
//!
//! Specified by `spec.podFailurePolicy` and `spec.successPolicy` of the API reference (KEP-3329, KEP-3998).

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::Pod;

use super::indexes;

/// What becomes of a failed pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts.
    Count,
    /// It is as if it had not been.
    Ignore,
    /// Its index has failed for good.
    FailIndex,
    /// The Job has failed, for this reason.
    FailJob(String),
}

/// The first rule that means the pod.
pub(super) fn verdict(spec: &JobSpec, pod: &Pod) -> Verdict {
    let rules = spec.pod_failure_policy.iter().flat_map(|p| &p.rules).enumerate();
    for (at, rule) in rules {
        let Some(what) = by_exit_code(rule, pod).or_else(|| by_condition(rule, pod)) else {
            continue;
        };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{what} matching FailJob rule at index {at}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn key(pod: &Pod) -> String {
    client::Key::of(&pod.metadata).to_string()
}

fn by_exit_code(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let wanted = rule.on_exit_codes.as_ref()?;
    let status = pod.status.as_ref()?;
    let inits = status.init_container_statuses.iter().flatten();
    let all = status.container_statuses.iter().flatten().chain(inits);
    let named = |name: &str| wanted.container_name.as_deref().is_none_or(|n| n == name);
    all.filter(|c| named(&c.name)).find_map(|container| {
        let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
        let listed = wanted.values.contains(&code);
        let meant = code != 0 && (listed == (wanted.operator == "In"));
        meant.then(|| {
            format!(
                "Container {} for pod {} failed with exit code {code}",
                container.name,
                key(pod)
            )
        })
    })
}

fn by_condition(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let patterns = rule.on_pod_conditions.as_ref()?;
    patterns.iter().find_map(|pattern| {
        let condition = crate::pods::condition(pod, &pattern.type_)?;
        let wanted = pattern.status.as_deref().unwrap_or("True");
        (condition.status == wanted)
            .then(|| format!("Pod {} has condition {}", key(pod), pattern.type_))
    })
}

/// The message of the first rule by which these indexes are success enough.
pub(super) fn success(spec: &JobSpec, succeeded: &BTreeSet<i32>) -> Option<String> {
    let rules = spec.success_policy.as_ref()?.rules.iter().enumerate();
    for (at, rule) in rules {
        let wanted = rule.succeeded_indexes.as_deref();
        let named = wanted.map(|text| indexes::parse(Some(text), spec.completions.unwrap_or(0)));
        let count = match &named {
            Some(named) => named.intersection(succeeded).count(),
            None => succeeded.len(),
        };
        let needed = rule.succeeded_count.and_then(|n| usize::try_from(n).ok());
        let needed = needed.or_else(|| named.map(|n| n.len())).unwrap_or(usize::MAX);
        if count >= needed {
            return Some(format!("Matched rules at index {at}"));
        }
    }
    None
}
