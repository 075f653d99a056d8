//! PodSecurity: holds a namespace's pods to the level its labels ask for, or warns of those that break it.
//!
//! Specified by <https://kubernetes.io/docs/concepts/security/pod-security-admission/>. The rules are
//! [`api::pod_security`].

use api::error::{ApiError, FieldErrors};
use api::object::Value;
use api::pod_security::{self, Level, Violation, violations};

use super::Review;
use crate::request::Action;

const PREFIX: &str = "pod-security.kubernetes.io/";
/// Pods looked at, when a namespace becomes stricter.
const PODS_MAX: usize = 3000;

/// A level of a namespace as its labels give it, with the version named.
fn level(namespace: &Value, mode: &str) -> (Level, String) {
    let label = |key: &str| api::meta::label(namespace, &format!("{PREFIX}{key}"));
    let level = label(mode).map_or(Level::Privileged, |text| {
        // What cannot be read is held to the strictest.
        Level::parse(text).unwrap_or(if mode == "enforce" {
            Level::Restricted
        } else {
            Level::Privileged
        })
    });
    (level, label(&format!("{mode}-version")).unwrap_or("latest").to_owned())
}

/// Where a kind keeps the template of its pods.
fn template<'a>(review: &'a Review<'_>) -> Option<&'a Value> {
    let path: &[&str] = match (review.resource.group.as_ref(), review.resource.plural.as_ref()) {
        ("", "podtemplates") => &["template"],
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => &["spec", "template"],
        ("batch", "cronjobs") => &["spec", "jobTemplate", "spec", "template"],
        _ => return None,
    };
    review.object.at(path)
}

fn detail(all: &[Violation]) -> String {
    let each = all.iter().map(|v| match v.detail.as_str() {
        "" => v.reason.to_owned(),
        detail => format!("{} ({detail})", v.reason),
    });
    each.collect::<Vec<_>>().join(", ")
}

/// Checks a pod, a template of pods, or a namespace.
pub(super) fn validate(review: &mut Review<'_>) -> Result<(), ApiError> {
    if matches!(review.request.action, Action::Get { .. }) {
        return Ok(());
    }
    if review.is("", "namespaces") {
        return namespace(review);
    }
    let pod = review.resource.group.is_empty() && review.resource.plural == "pods";
    let watched = if pod {
        matches!(review.request.subresource.as_str(), "" | "ephemeralcontainers") && changed(review)
    } else {
        review.request.subresource.is_empty()
    };
    let subject = if pod { Some(&*review.object) } else { template(review) };
    let Some(subject) = subject.filter(|_| watched) else { return Ok(()) };
    let shelf = review.api.cache.shelf("namespaces");
    let Some(entry) = shelf.get(&review.request.namespace) else { return Ok(()) };
    let namespace = entry.tree();
    let broken = |level, version: &str| {
        violations(level, minor(version), &subject["metadata"], &subject["spec"])
    };
    let (enforced, version) = level(&namespace, "enforce");
    if pod {
        let broken = broken(enforced, &version);
        if !broken.is_empty() {
            return Err(review.forbidden(format!(
                "violates PodSecurity \"{}:{version}\": {}",
                enforced.name(),
                detail(&broken)
            )));
        }
    }
    let (warned, version) = level(&namespace, "warn");
    let broken = broken(warned, &version);
    if !broken.is_empty() {
        review.warnings.push(format!(
            "would violate PodSecurity \"{}:{version}\": {}",
            warned.name(),
            detail(&broken)
        ));
    }
    Ok(())
}

/// Whether an update of a pod touches what the rules look at.
fn changed(review: &Review<'_>) -> bool {
    let Some(old) = review.old else { return true };
    let part = |pod: &Value| {
        ["initContainers", "containers", "ephemeralContainers"].map(|list| {
            let images = pod["spec"][list].items().iter();
            images
                .map(|c| (c["name"].text().to_owned(), c["image"].text().to_owned()))
                .collect::<Vec<_>>()
        })
    };
    part(old) != part(review.object)
}

/// Refuses labels that mean nothing, and names pods that a stricter level would not have let in.
fn namespace(review: &mut Review<'_>) -> Result<(), ApiError> {
    if review.deletes() || !review.request.subresource.is_empty() {
        return Ok(());
    }
    let errors = label_errors(review.object);
    if !errors.is_empty() && review.old.is_none_or(|old| label_errors(old) != errors) {
        return Err(ApiError::invalid("", "Namespace", api::meta::name(review.object), errors));
    }
    let Some(old) = review.old else { return Ok(()) };
    let (now, before) = (level(review.object, "enforce"), level(old, "enforce"));
    if now.0 == Level::Privileged || now == before || (now.1 == before.1 && now.0 < before.0) {
        return Ok(());
    }
    let name = api::meta::name(review.object).to_owned();
    let pods = review.api.cache.shelf("pods").list(&format!("{name}/"), "");
    // By what they break: the first pod's name and how many there are.
    let mut groups: std::collections::BTreeMap<String, (String, usize)> =
        std::collections::BTreeMap::new();
    for (_, entry) in pods.into_iter().take(PODS_MAX) {
        let pod = entry.parse();
        let broken = violations(now.0, minor(&now.1), &pod["metadata"], &pod["spec"]);
        if broken.is_empty() {
            continue;
        }
        let reasons: Vec<&str> = broken.iter().map(|v| v.reason).collect();
        let first = || (api::meta::name(&pod).to_owned(), 0);
        groups.entry(reasons.join(", ")).or_insert_with(first).1 += 1;
    }
    if groups.is_empty() {
        return Ok(());
    }
    let mut lines: Vec<String> = groups
        .into_iter()
        .map(|(reasons, (pod, count))| match count {
            1 => format!("{pod}: {reasons}"),
            2 => format!("{pod} (and 1 other pod): {reasons}"),
            n => format!("{pod} (and {} other pods): {reasons}", n - 1),
        })
        .collect();
    lines.sort();
    review.warnings.push(format!(
        "existing pods in namespace {name:?} violate the new PodSecurity enforce level \"{}:{}\"",
        now.0.name(),
        now.1
    ));
    review.warnings.extend(lines);
    Ok(())
}

fn label_errors(namespace: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    for mode in ["enforce", "audit", "warn"] {
        let key = format!("{PREFIX}{mode}");
        if let Some(text) = api::meta::label(namespace, &key).filter(|t| Level::parse(t).is_none())
        {
            let field = format!("metadata.labels[{key}]");
            errors.invalid(field, text, "must be one of privileged, baseline, restricted");
        }
        let key = format!("{key}-version");
        if let Some(text) =
            api::meta::label(namespace, &key).filter(|t| pod_security::version(t).is_none())
        {
            let field = format!("metadata.labels[{key}]");
            errors.invalid(field, text, "must be \"latest\" or \"v1.x\"");
        }
    }
    errors
}

/// The minor version of the standards; the newest where the text names none.
fn minor(version: &str) -> u32 {
    pod_security::version(version).unwrap_or(pod_security::LATEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_give_levels_and_say_what_they_cannot_mean() {
        let namespace = api::codec::json::parse(
            br#"{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"x",
                "pod-security.kubernetes.io/warn":"baseline","pod-security.kubernetes.io/warn-version":"v1.30"}}}"#,
        )
        .unwrap();
        assert_eq!(level(&namespace, "enforce").0, Level::Restricted);
        assert_eq!(level(&namespace, "warn"), (Level::Baseline, "v1.30".to_owned()));
        assert_eq!(level(&namespace, "audit").0, Level::Privileged);
        assert_eq!(label_errors(&namespace).len(), 1);
        assert_eq!((minor("v1.24"), minor("latest"), minor("1.24")), (24, u32::MAX, u32::MAX));
    }
}
