//! Rules of the kinds that make pods: deployments and the like, jobs.

use super::{
    IMMUTABLE, int_or_percent, internal, label_selector, labels, non_negative,
    not_above_100_percent, one_of, pod, reasons, selector_matches, selects_all,
};
use crate::error::{FieldErrors, FieldReason};
use crate::intstr::{int_or_zero, percent};
use crate::name;
use crate::object::Value;

const MISMATCH: &str = "`selector` does not match template `labels`";

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

fn template_rules(path: &str, template: &Value, errs: &mut FieldErrors) {
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

/// Job.
pub fn job(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    job_spec("spec", spec, errs);
    if spec["selector"].is_null() {
        errs.required("spec.selector", "");
    } else {
        label_selector("spec.selector", &spec["selector"], errs);
        let generated = spec["manualSelector"].as_bool() != Some(true);
        generated_labels(new, generated, errs);
        let found = &spec["template"]["metadata"]["labels"];
        if !selector_matches(&spec["selector"], found) {
            errs.invalid("spec.template.metadata.labels", found.clone(), MISMATCH);
        }
    }
    let Some(old) = old else { return };
    let o = &old["spec"];
    for key in [
        "completions",
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        let elastic = key == "completions"
            && spec["completionMode"].text() == "Indexed"
            && spec["completions"] == spec["parallelism"]
            && o["completions"] == o["parallelism"];
        if spec[key] != o[key] && !elastic {
            errs.invalid(format!("spec.{key}"), spec[key].clone(), IMMUTABLE);
        }
    }
    let suspended = o["suspend"].as_bool() == Some(true) && old["status"]["startTime"].is_null();
    let strip = |v: &Value| {
        let mut s = v["template"].clone();
        if suspended {
            for key in ["nodeSelector", "affinity", "tolerations", "schedulingGates"] {
                s.remove_at(&["spec", key]);
            }
            s.remove_at(&["metadata", "annotations"]);
            s.remove_at(&["metadata", "labels"]);
        }
        s
    };
    if strip(spec) != strip(o) {
        let at = if strip(spec)["spec"] == strip(o)["spec"] {
            "spec.template"
        } else {
            "spec.template.spec"
        };
        let shown =
            if at == "spec.template" { &spec["template"] } else { &spec["template"]["spec"] };
        errs.invalid(at, internal(shown), IMMUTABLE);
    }
}

/// A generated selector names the job by its uid.
fn generated_labels(new: &Value, generated: bool, errs: &mut FieldErrors) {
    if !generated {
        return;
    }
    let uid = crate::meta::uid(new);
    let key = "batch.kubernetes.io/controller-uid";
    let want = crate::json!({"matchLabels": {key: uid}});
    let found = &new["spec"]["selector"];
    if *found != want {
        errs.invalid("spec.selector", found.clone(), "`selector` not auto-generated");
    }
    let labels = &new["spec"]["template"]["metadata"]["labels"];
    if !super::selector_matches(found, labels) {
        errs.invalid("spec.template.metadata.labels", labels.clone(), MISMATCH);
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

/// What a job's status may say.
pub fn job_status(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let status = &new["status"];
    for key in ["active", "succeeded", "failed", "ready", "terminating"] {
        non_negative(&format!("status.{key}"), &status[key], errs);
    }
    let holds = |kind: &str| {
        crate::meta::condition(new, kind).is_some_and(|c| c["status"].text() == "True")
    };
    let (complete, failed) = (holds("Complete"), holds("Failed"));
    let conditions = |text: &str, errs: &mut FieldErrors| {
        errs.push("status.conditions", FieldReason::InvalidAs(String::new(), text.to_owned()));
    };
    if complete && failed {
        conditions("cannot set Complete=True and Failed=true conditions", errs);
    }
    if complete && !holds("SuccessCriteriaMet") {
        conditions(
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
            errs,
        );
    }
    if failed && !holds("FailureTarget") {
        conditions(
            "cannot set Failed=True condition without the FailureTarget=true condition",
            errs,
        );
    }
    if complete && status["completionTime"].is_null() {
        errs.required("status.completionTime", "completionTime is required for Complete jobs");
    }
    if (complete || failed) && status["startTime"].is_null() {
        errs.required("status.startTime", "startTime is required for finished job");
    }
}

fn job_spec(path: &str, spec: &Value, errs: &mut FieldErrors) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        non_negative(&format!("{path}.{key}"), &spec[key], errs);
    }
    if spec.has("completionMode") {
        let modes = ["Indexed", "NonIndexed"];
        one_of(&format!("{path}.completionMode"), &spec["completionMode"], &modes, errs);
        if spec["completionMode"].text() == "Indexed" && spec["completions"].is_null() {
            let text = "when completion mode is Indexed";
            errs.required(format!("{path}.completions"), text);
        }
    }
    template_rules(&format!("{path}.template"), &spec["template"], errs);
    let policy = spec["template"]["spec"]["restartPolicy"].text();
    let at = format!("{path}.template.spec.restartPolicy");
    match policy {
        "Always" => errs.required(at, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.has("podFailurePolicy") => {
            let text = "only \"Never\" is supported when podFailurePolicy is specified";
            errs.invalid(at, policy, text);
        }
        "OnFailure" | "Never" => {}
        _ => errs.not_supported(at, policy, &["OnFailure", "Never"]),
    }
}

/// CronJob.
pub fn cron_job(new: &Value, _: Option<&Value>, errs: &mut FieldErrors) {
    let spec = &new["spec"];
    let schedule = spec["schedule"].text();
    if schedule.is_empty() {
        errs.required("spec.schedule", "");
    } else if let Err(e) = cron(schedule) {
        errs.invalid("spec.schedule", schedule, e);
    }
    if schedule.contains("TZ") {
        let text = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errs.invalid("spec.schedule", schedule, text);
    }
    for key in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        non_negative(&format!("spec.{key}"), &spec[key], errs);
    }
    let known = ["Allow", "Forbid", "Replace"];
    one_of("spec.concurrencyPolicy", &spec["concurrencyPolicy"], &known, errs);
    if spec.has("timeZone") {
        let zone = spec["timeZone"].text();
        if zone.is_empty() {
            let text = "timeZone must be nil or non-empty string";
            errs.invalid("spec.timeZone", "", text);
        } else if zone.eq_ignore_ascii_case("local") {
            errs.invalid(
                "spec.timeZone",
                zone,
                "timeZone must be an explicit time zone as defined in \
                https://www.iana.org/time-zones",
            );
        }
    }
    job_spec("spec.jobTemplate.spec", &spec["jobTemplate"]["spec"], errs);
    let n = crate::meta::name(new);
    if n.len() > 52 {
        errs.invalid("metadata.name", n, "must be no more than 52 characters");
    }
}

/// Whether a schedule has five fields of plausible form, or is a word such as `@daily`.
fn cron(text: &str) -> Result<(), String> {
    if let Some(word) = text.strip_prefix('@') {
        let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        return if known.contains(&word) || word.starts_with("every ") {
            Ok(())
        } else {
            Err(format!("unrecognized descriptor: {text}"))
        };
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: {fields:?}", fields.len()));
    }
    let ranges = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)];
    fields.iter().zip(ranges).try_for_each(|(f, range)| cron_field(f, range))
}

fn cron_field(field: &str, (low, high): (u32, u32)) -> Result<(), String> {
    for part in field.split(',') {
        let (range, step) = part.split_once('/').unwrap_or((part, "1"));
        if !step.parse::<u32>().is_ok_and(|n| n > 0) {
            return Err(format!(
                "failed to parse int from {step}: strconv.Atoi: parsing {step:?}: invalid syntax"
            ));
        }
        if matches!(range, "*" | "?") {
            continue;
        }
        for end in range.split('-') {
            let named = end.len() == 3 && end.bytes().all(|b| b.is_ascii_alphabetic());
            match end.parse::<u32>() {
                _ if named => {}
                Ok(n) if n < low => {
                    return Err(format!("beginning of range ({n}) below minimum ({low}): {part}"));
                }
                Ok(n) if n > high => {
                    return Err(format!("end of range ({n}) above maximum ({high}): {part}"));
                }
                Ok(_) => {}
                Err(_) => {
                    return Err(format!(
                        "failed to parse int from {end}: strconv.Atoi: parsing {end:?}: invalid syntax"
                    ));
                }
            }
        }
    }
    Ok(())
}
