//! Rules of jobs and cron jobs.

use super::apps::{MISMATCH, template_rules};
use super::{IMMUTABLE, internal, label_selector, non_negative, one_of, reasons, selector_matches};
use crate::error::{FieldErrors, FieldReason};
use crate::name;
use crate::object::Value;

const INDEXED_PARALLELISM_MAX: i64 = 100_000;
const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;

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
    indexed(path, spec, errs);
    failure_policy(path, spec, errs);
    success_policy(path, spec, errs);
    let replacements: &[&str] =
        if spec.has("podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    let replaced = &spec["podReplacementPolicy"];
    if !replaced.is_null() && !replacements.contains(&replaced.text()) {
        errs.not_supported(format!("{path}.podReplacementPolicy"), replaced.clone(), replacements);
    }
    managed_by(&format!("{path}.managedBy"), &spec["managedBy"], errs);
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

/// What only jobs whose pods have numbers can ask for.
fn indexed(path: &str, spec: &Value, errs: &mut FieldErrors) {
    let number = |key: &str| spec[key].as_int();
    if spec["completionMode"].text() == "Indexed" {
        if let Some(n) = number("parallelism").filter(|n| *n > INDEXED_PARALLELISM_MAX) {
            let text = "must be less than or equal to 100000 when completion mode is Indexed";
            errs.invalid(format!("{path}.parallelism"), n, text);
        }
        let most = number("maxFailedIndexes");
        if let (Some(n), Some(completions)) = (most, number("completions"))
            && n > completions
        {
            let text = "must be less than or equal to completions";
            errs.invalid(format!("{path}.maxFailedIndexes"), n, text);
        }
        if most.is_some() && !spec.has("backoffLimitPerIndex") {
            let text = "when maxFailedIndexes is specified";
            errs.required(format!("{path}.backoffLimitPerIndex"), text);
        }
        return;
    }
    for key in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
        if let Some(v) = spec.get(key) {
            errs.invalid(format!("{path}.{key}"), internal(v), "requires indexed completion mode");
        }
    }
}

/// What the failure of a pod means.
fn failure_policy(path: &str, spec: &Value, errs: &mut FieldErrors) {
    let at = format!("{path}.podFailurePolicy.rules");
    let rules = spec["podFailurePolicy"]["rules"].items();
    if rules.len() > RULES_MAX {
        errs.too_many(&at, rules.len(), RULES_MAX);
    }
    let pod = &spec["template"]["spec"];
    let lists = ["containers", "initContainers"].into_iter().flat_map(|l| pod[l].items());
    let names: Vec<&str> = lists.map(|c| c["name"].text()).collect();
    let known = ["Count", "FailIndex", "FailJob", "Ignore"];
    for (i, rule) in rules.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let (field, action) = (format!("{at}.action"), rule["action"].text());
        match action {
            "" => errs.required(field, format!("valid values: {known:?}").replace(", ", " ")),
            "FailIndex" if !spec.has("backoffLimitPerIndex") => {
                errs.invalid(field, action, "requires the backoffLimitPerIndex to be set");
            }
            _ if !known.contains(&action) => errs.not_supported(field, action, &known),
            _ => {}
        }
        if rule.has("onExitCodes") {
            exit_codes(&format!("{at}.onExitCodes"), &rule["onExitCodes"], &names, errs);
        }
        pod_conditions(&format!("{at}.onPodConditions"), &rule["onPodConditions"], errs);
        let what = "OnExitCodes and OnPodConditions is";
        match (rule.has("onExitCodes"), rule["onPodConditions"].is_empty()) {
            (true, false) => {
                errs.invalid(at, internal(rule), format!("specifying both {what} not supported"));
            }
            (false, true) => {
                errs.invalid(at, internal(rule), format!("specifying one of {what} required"));
            }
            _ => {}
        }
    }
}

fn exit_codes(at: &str, v: &Value, names: &[&str], errs: &mut FieldErrors) {
    let (field, operator) = (format!("{at}.operator"), v["operator"].text());
    match operator {
        "" => errs.required(field, "valid values: [\"In\" \"NotIn\"]"),
        "In" | "NotIn" => {}
        other => errs.not_supported(field, other, &["In", "NotIn"]),
    }
    if v.get("containerName").is_some_and(|n| !names.contains(&n.text())) {
        let text = "must be one of the container or initContainer names in the pod template";
        errs.invalid(format!("{at}.containerName"), v["containerName"].clone(), text);
    }
    let at = format!("{at}.values");
    let values = v["values"].items();
    if values.is_empty() {
        errs.invalid(&at, Value::Array(Vec::new()), "at least one value is required");
    } else if values.len() > EXIT_CODES_MAX {
        errs.too_many(&at, values.len(), EXIT_CODES_MAX);
    }
    for (i, code) in values.iter().enumerate() {
        if code.as_int() == Some(0) && operator == "In" {
            errs.invalid(format!("{at}[{i}]"), 0, "must not be 0 for the In operator");
        }
        if values[..i].contains(code) {
            errs.duplicate(format!("{at}[{i}]"), code.clone());
        }
    }
    if !values.is_sorted_by_key(Value::as_int) {
        errs.invalid(at, v["values"].clone(), "must be ordered");
    }
}

fn pod_conditions(at: &str, v: &Value, errs: &mut FieldErrors) {
    let list = v.items();
    if list.len() > RULES_MAX {
        errs.too_many(at, list.len(), RULES_MAX);
    }
    for (i, c) in list.iter().enumerate() {
        let kind = c["type"].text();
        reasons(&format!("{at}[{i}].type"), kind, name::qualified(kind), errs);
        let known = ["False", "True", "Unknown"];
        one_of(&format!("{at}[{i}].status"), &c["status"], &known, errs);
    }
}

/// When some of the indexes are enough.
fn success_policy(path: &str, spec: &Value, errs: &mut FieldErrors) {
    if !spec.has("successPolicy") || spec["completionMode"].text() != "Indexed" {
        return;
    }
    let at = format!("{path}.successPolicy.rules");
    let rules = spec["successPolicy"]["rules"].items();
    if rules.is_empty() {
        let text = "at least one rules must be specified when the successPolicy is specified";
        errs.required(&at, text);
    }
    if rules.len() > RULES_MAX {
        errs.too_many(&at, rules.len(), RULES_MAX);
    }
    let completions = spec["completions"].as_int().unwrap_or(0);
    for (i, rule) in rules.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let (count, indexes) = (rule["succeededCount"].as_int(), rule["succeededIndexes"].as_str());
        if count.is_none() && indexes.is_none() {
            let text = "at least one of succeededCount or succeededIndexes must be specified";
            errs.required(&at, text);
        }
        let many = indexes.map(|text| index_count(text, completions));
        if let Some(Err(text)) = &many {
            errs.invalid(
                format!("{at}.succeededIndexes"),
                rule["succeededIndexes"].clone(),
                format!("error parsing succeededIndexes: {text}"),
            );
        }
        let Some(count) = count else { continue };
        let field = format!("{at}.succeededCount");
        non_negative(&field, &rule["succeededCount"], errs);
        let numbered = "(the number of specified completions)";
        let indexed = "(the number of indexes in the specified succeededIndexes field)";
        if count > completions {
            let text = format!("must be less than or equal to {completions} {numbered}");
            errs.invalid(&field, count, text);
        }
        if let Some(Ok(many)) = many
            && count > many
        {
            errs.invalid(&field, count, format!("must be less than or equal to {many} {indexed}"));
        }
    }
}

/// How many indexes a text like `1,3-5` names.
fn index_count(text: &str, completions: i64) -> Result<i64, String> {
    let (mut count, mut last) = (0, -1);
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            text.parse::<i64>()
                .map_err(|_| format!("cannot convert string to integer for index: {text:?}"))
        };
        let (first, end) = (number(from)?, number(to)?);
        if end >= completions {
            return Err(format!("too large index: {to:?}"));
        }
        if first <= last || (part.contains('-') && first >= end) {
            return Err(format!("non-increasing order, previous: {last}, current: {first}"));
        }
        count += end - first + 1;
        last = end;
    }
    Ok(count)
}

/// Whose the job is, if not the built-in controller's.
fn managed_by(at: &str, v: &Value, errs: &mut FieldErrors) {
    if v.is_null() {
        return;
    }
    let text = v.text();
    super::domain_path(at, text, errs);
    if text.len() > 63 {
        errs.too_long(at, 63);
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
    let job = &spec["jobTemplate"]["spec"];
    job_spec("spec.jobTemplate.spec", job, errs);
    if job.has("selector") {
        let at = "spec.jobTemplate.spec.selector";
        errs.invalid(at, job["selector"].clone(), "`selector` will be auto-generated");
    }
    if job["manualSelector"].as_bool() == Some(true) {
        let at = "spec.jobTemplate.spec.manualSelector";
        errs.not_supported(at, true, &["nil", "false"]);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_counted_in_order() {
        assert_eq!(index_count("1,3-5", 6), Ok(4));
        assert_eq!(index_count("", 6), Ok(0));
        assert!(index_count("3-5", 5).is_err());
        assert!(index_count("3,1", 5).is_err());
        assert!(index_count("x", 5).is_err());
    }

    #[test]
    fn a_policy_about_failures_is_read_closely() {
        let spec = crate::json!({"podFailurePolicy": {"rules": [
            {"action": "Foo", "onExitCodes": {"operator": "In", "values": [3, 0]}},
            {"action": "FailIndex"}
        ]}});
        let mut errs = FieldErrors::new();
        failure_policy("s", &spec, &mut errs);
        let fields: Vec<String> =
            errs.iter().map(|e| e.field.replace("s.podFailurePolicy.rules", "r")).collect();
        let wanted = [
            "r[0].action",
            "r[0].onExitCodes.values[1]",
            "r[0].onExitCodes.values",
            "r[1].action",
            "r[1]",
        ];
        assert_eq!(fields, wanted);
    }
}
