//! Rules of the kinds that make pods: deployments and the like, jobs.

use super::{
    IMMUTABLE, int_or_percent, internal, label_selector, labels, non_negative,
    not_above_100_percent, pod, reasons, selector_matches, selects_all,
};
use crate::error::FieldErrors;
use crate::intstr::{int_or_zero, percent};
use crate::name;
use crate::object::Value;

pub(super) const MISMATCH: &str = "`selector` does not match template `labels`";

/// Selector and template of a workload. `kind` names it in the message about an empty selector.
fn selector_and_template(new: &Value, kind: &str, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    let selector = &spec["selector"];
    if selector.is_null() {
        errs.required("spec.selector", "");
    } else {
        label_selector("spec.selector", selector, errs);
        if crate::selector::LabelSelector::from_object(selector).is_err() {
            errs.invalid("spec.selector", selector.clone(), "invalid label selector");
            template_rules("spec.template", &spec["template"], errs);
            return;
        }
        if selects_all(selector) {
            errs.invalid(
                "spec.selector",
                selector.clone(),
                format!("empty selector is invalid for {kind}"),
            );
        }
    }
    let template = &spec["template"];
    let found = &template["metadata"]["labels"];
    let unselected =
        selector.is_null() || (!selects_all(selector) && !selector_matches(selector, found));
    if unselected {
        errs.invalid("spec.template.metadata.labels", found.clone(), MISMATCH);
    }
    template_rules("spec.template", template, errs);
}

pub(super) fn template_rules(path: &str, template: &Value, errs: &mut FieldErrors) {
    labels(&format!("{path}.labels"), &template["metadata"]["labels"], errs);
    for (key, _) in template["metadata"]["annotations"].members() {
        let lower = key.to_lowercase();
        reasons(&format!("{path}.annotations"), key, name::qualified(&lower), errs);
    }
    pod::spec(&format!("{path}.spec"), &template["spec"], errs);
}

fn always(template: &Value, errs: &mut FieldErrors) {
    let policy = &template["spec"]["restartPolicy"];
    if policy.text() != "Always" {
        errs.not_supported("spec.template.spec.restartPolicy", policy.clone(), &["Always"]);
    }
    if template["spec"].has("activeDeadlineSeconds") {
        let text = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errs.forbidden("spec.template.spec.activeDeadlineSeconds", text);
    }
}

fn fixed_selector(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    if let Some(old) = old
        && new["spec"]["selector"] != old["spec"]["selector"]
    {
        errs.invalid("spec.selector", new["spec"]["selector"].clone(), IMMUTABLE);
    }
}

/// Deployment.
pub fn deployment(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    non_negative("spec.replicas", &spec["replicas"], errs);
    selector_and_template(new, "deployment", errs);
    always(&spec["template"], errs);
    deployment_strategy(&spec["strategy"], errs);
    non_negative("spec.minReadySeconds", &spec["minReadySeconds"], errs);
    non_negative("spec.revisionHistoryLimit", &spec["revisionHistoryLimit"], errs);
    if let Some(n) = spec["progressDeadlineSeconds"].as_int() {
        non_negative("spec.progressDeadlineSeconds", &spec["progressDeadlineSeconds"], errs);
        if n <= spec["minReadySeconds"].as_int().unwrap_or(0) {
            errs.invalid("spec.progressDeadlineSeconds", n, "must be greater than minReadySeconds");
        }
    }
    fixed_selector(new, old, errs);
}

fn deployment_strategy(s: &Value, errs: &mut FieldErrors) {
    let rolling = &s["rollingUpdate"];
    match s["type"].text() {
        "Recreate" => {
            if !rolling.is_null() {
                errs.forbidden(
                    "spec.strategy.rollingUpdate",
                    "may not be specified when strategy `type` is 'Recreate'",
                );
            }
        }
        "RollingUpdate" => {
            if rolling.is_null() {
                errs.required(
                    "spec.strategy.rollingUpdate",
                    "this should be defaulted and never be nil",
                );
                return;
            }
            let path = "spec.strategy.rollingUpdate";
            let (unavailable, surge) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
            int_or_percent(&format!("{path}.maxUnavailable"), unavailable, errs);
            int_or_percent(&format!("{path}.maxSurge"), surge, errs);
            let zero =
                |v: &Value| percent(v).unwrap_or_else(|| int_or_zero(v)) == 0 && well_formed(v);
            if zero(unavailable) && zero(surge) {
                let text = "may not be 0 when `maxSurge` is 0";
                errs.invalid(format!("{path}.maxUnavailable"), unavailable.clone(), text);
            }
            not_above_100_percent(&format!("{path}.maxUnavailable"), unavailable, errs);
        }
        _ => errs.not_supported("spec.strategy", internal(s), &["Recreate", "RollingUpdate"]),
    }
}

fn well_formed(v: &Value) -> bool {
    v.as_str().is_none() || percent(v).is_some()
}

/// ReplicaSet.
pub fn replica_set(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    non_negative("spec.replicas", &spec["replicas"], errs);
    non_negative("spec.minReadySeconds", &spec["minReadySeconds"], errs);
    selector_and_template(new, "deployment", errs);
    always(&spec["template"], errs);
    fixed_selector(new, old, errs);
}

/// ReplicationController.
pub fn replication_controller(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    non_negative("spec.minReadySeconds", &spec["minReadySeconds"], errs);
    if spec["selector"].is_empty() {
        errs.required("spec.selector", "");
    }
    non_negative("spec.replicas", &spec["replicas"], errs);
    let template = &spec["template"];
    if template.is_null() {
        errs.required("spec.template", "");
        return;
    }
    let found = &template["metadata"]["labels"];
    let selector = crate::selector::LabelSelector::from_map(&spec["selector"]);
    if !selector.is_empty() && !selector.matches_labels(found) {
        errs.invalid("spec.template.metadata.labels", found.clone(), MISMATCH);
    }
    template_rules("spec.template", template, errs);
    always(template, errs);
}

/// DaemonSet.
pub fn daemon_set(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    selector_and_template(new, "daemonset", errs);
    always(&spec["template"], errs);
    non_negative("spec.minReadySeconds", &spec["minReadySeconds"], errs);
    let strategy = &spec["updateStrategy"];
    match strategy["type"].text() {
        "OnDelete" => {}
        "RollingUpdate" => daemon_set_rolling(&strategy["rollingUpdate"], errs),
        _ => errs.not_supported(
            "spec.updateStrategy",
            internal(strategy),
            &["OnDelete", "RollingUpdate"],
        ),
    }
    non_negative("spec.revisionHistoryLimit", &spec["revisionHistoryLimit"], errs);
    fixed_selector(new, old, errs);
}

fn daemon_set_rolling(r: &Value, errs: &mut FieldErrors) {
    let path = "spec.updateStrategy.rollingUpdate";
    if r.is_null() {
        errs.required(path, "");
        return;
    }
    let (unavailable, surge) = (&r["maxUnavailable"], &r["maxSurge"]);
    for (key, v) in [("maxUnavailable", unavailable), ("maxSurge", surge)] {
        let at = format!("{path}.{key}");
        int_or_percent(&at, v, errs);
        not_above_100_percent(&at, v, errs);
    }
    let some = |v: &Value| percent(v).unwrap_or_else(|| int_or_zero(v)) != 0;
    match (some(unavailable), some(surge)) {
        (true, true) => {
            let text = "may not be set when maxUnavailable is non-zero";
            errs.invalid(format!("{path}.maxSurge"), surge.clone(), text);
        }
        (false, false) => {
            errs.required(format!("{path}.maxUnavailable"), "cannot be 0 when maxSurge is 0");
        }
        _ => {}
    }
}

const STATEFUL_ALLOWED: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

/// StatefulSet.
pub fn stateful_set(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    let policy = spec["podManagementPolicy"].text();
    if !matches!(policy, "OrderedReady" | "Parallel") {
        let text = "must be 'OrderedReady' or 'Parallel'";
        errs.invalid("spec.podManagementPolicy", policy, text);
    }
    let service = spec["serviceName"].text();
    if old.is_none() && !service.is_empty() {
        super::reasons("spec.serviceName", service, crate::name::dns_label(service), errs);
    }
    for (i, claim) in
        spec["volumeClaimTemplates"].items().iter().enumerate().filter(|_| old.is_none())
    {
        super::core::claim_spec(
            &format!("spec.volumeClaimTemplates[{i}].spec"),
            &claim["spec"],
            errs,
        );
    }
    let strategy = &spec["updateStrategy"];
    match strategy["type"].text() {
        "OnDelete" => {
            if !strategy["rollingUpdate"].is_null() {
                let text = "only allowed for updateStrategy 'RollingUpdate'";
                errs.invalid(
                    "spec.updateStrategy.rollingUpdate",
                    strategy["rollingUpdate"].clone(),
                    text,
                );
            }
        }
        "RollingUpdate" => {
            let r = &strategy["rollingUpdate"];
            non_negative("spec.updateStrategy.rollingUpdate.partition", &r["partition"], errs);
            int_or_percent(
                "spec.updateStrategy.rollingUpdate.maxUnavailable",
                &r["maxUnavailable"],
                errs,
            );
        }
        _ => errs.invalid(
            "spec.updateStrategy",
            internal(strategy),
            "must be 'RollingUpdate' or 'OnDelete'",
        ),
    }
    non_negative("spec.replicas", &spec["replicas"], errs);
    non_negative("spec.minReadySeconds", &spec["minReadySeconds"], errs);
    non_negative("spec.ordinals.start", &spec["ordinals"]["start"], errs);
    selector_and_template(new, "statefulset", errs);
    always(&spec["template"], errs);
    non_negative("spec.revisionHistoryLimit", &spec["revisionHistoryLimit"], errs);
    if let Some(old) = old {
        let bare = |v: &Value| {
            let mut s = v["spec"].clone();
            STATEFUL_ALLOWED.iter().for_each(|k| drop(s.remove(k)));
            s
        };
        if bare(new) != bare(old) {
            errs.forbidden(
                "spec",
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                 'minReadySeconds' are forbidden",
            );
        }
    }
}

/// Numbers in the status of what runs replicas.
pub fn replica_counts(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let status = &new["status"];
    let count = |key: &str| status[key].as_int().unwrap_or(0);
    for key in ["replicas", "observedGeneration", "unavailableReplicas", "terminatingReplicas"] {
        non_negative(&format!("status.{key}"), &status[key], errs);
    }
    let parts = [
        "fullyLabeledReplicas",
        "updatedReplicas",
        "currentReplicas",
        "readyReplicas",
        "availableReplicas",
    ];
    for key in parts {
        let at = format!("status.{key}");
        non_negative(&at, &status[key], errs);
        if status.has(key) && count(key) > count("replicas") {
            errs.invalid(&at, count(key), "cannot be greater than status.replicas");
        }
        if key == "availableReplicas" && count(key) > count("readyReplicas") {
            errs.invalid(&at, count(key), "cannot be greater than readyReplicas");
        }
    }
}
