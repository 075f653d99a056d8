//! LimitRanger: a namespace's LimitRanges give containers what they leave open, and refuse what is out of bounds.
//!
//! Specified by <https://kubernetes.io/docs/concepts/policy/limit-range/>.

use std::sync::Arc;

use api::error::ApiError;
use api::object::{Map, Value};
use api::quantity::Quantity;

use super::Review;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";
const LISTS: [(&str, &str); 2] =
    [("containers", "container"), ("initContainers", "init container")];

fn ranges(review: &Review<'_>) -> Vec<Arc<Value>> {
    let shelf = review.api.cache.shelf("limitranges");
    let found = shelf.list(&format!("{}/", review.request.namespace), "");
    found.into_iter().map(|(_, entry)| entry.tree()).collect()
}

fn limits(range: &Value) -> &[Value] {
    range["spec"]["limits"].items()
}

/// Fills in requests and limits of a new pod's containers.
pub(super) fn mutate(review: &mut Review<'_>) {
    if !review.creates("", "pods") {
        return;
    }
    for range in ranges(review) {
        let containers: Vec<&Value> =
            limits(&range).iter().filter(|l| l["type"].text() == "Container").collect();
        let mut notes = Vec::new();
        for (list, word) in LISTS {
            let Some(all) = review.object.at_mut(&["spec", list]) else { continue };
            for container in all.items_mut() {
                let name = container["name"].text().to_owned();
                for (from, to, kind) in
                    [("defaultRequest", "requests", "request"), ("default", "limits", "limit")]
                {
                    let mut set: Vec<String> = Vec::new();
                    for (key, value) in containers.iter().flat_map(|l| l[from].members()) {
                        if container.at(&["resources", to, key]).is_none() {
                            container.set_at(&["resources", to, key], value.clone());
                            set.push(key.to_owned());
                        }
                    }
                    set.sort();
                    if !set.is_empty() {
                        notes.push(format!("{} {kind} for {word} {name}", set.join(", ")));
                    }
                }
            }
        }
        if !notes.is_empty() {
            let note = format!("LimitRanger plugin set: {}", notes.join("; "));
            review.object.set_at(&["metadata", "annotations", ANNOTATION], note);
        }
    }
}

/// Refuses a pod or claim out of bounds.
pub(super) fn validate(review: &Review<'_>) -> Result<(), ApiError> {
    let pod = review.creates("", "pods");
    let claim = review.is("", "persistentvolumeclaims");
    if !pod && !claim {
        return Ok(());
    }
    for range in ranges(review) {
        let errors: Vec<String> = if pod {
            limits(&range)
                .iter()
                .flat_map(|limit| pod_errors(limit, &review.object["spec"]))
                .collect()
        } else {
            let of_claims =
                limits(&range).iter().filter(|l| l["type"].text() == "PersistentVolumeClaim");
            of_claims.flat_map(|limit| claim_errors(limit, &review.object["spec"])).collect()
        };
        match errors.as_slice() {
            [] => {}
            [one] => return Err(review.forbidden(one.clone())),
            many => return Err(review.forbidden(format!("[{}]", many.join(", ")))),
        }
    }
    Ok(())
}

fn pod_errors(limit: &Value, spec: &Value) -> Vec<String> {
    match limit["type"].text() {
        "Container" => LISTS
            .iter()
            .flat_map(|(list, _)| spec[*list].items())
            .flat_map(|c| bounds(limit, &c["resources"]["requests"], &c["resources"]["limits"]))
            .collect(),
        "Pod" => bounds(limit, &pod_total(spec, "requests"), &pod_total(spec, "limits")),
        _ => Vec::new(),
    }
}

fn quantity(value: &Value) -> Option<Quantity> {
    Quantity::parse(value.as_str()?).ok()
}

/// What a pod's containers ask for together.
fn pod_total(spec: &Value, which: &str) -> Value {
    let mut total = Value::Object(Map::default());
    for (key, amount) in api::quota::pod_total(spec, which) {
        total.set(&key, amount.to_string());
    }
    total
}

fn bounds(limit: &Value, requests: &Value, limits: &Value) -> Vec<String> {
    let kind = limit["type"].text();
    let mut errors = Vec::new();
    let known =
        |list: &Value, key: &str| list.get(key).and_then(quantity).map(|q| (q, list[key].clone()));
    for (key, bound) in limit["min"].members() {
        let Some(least) = quantity(bound) else { continue };
        let head = format!("minimum {key} usage per {kind} is {}", bound.text());
        match (known(requests, key), known(limits, key)) {
            (None, _) => errors.push(format!("{head}. No request is specified")),
            (Some((q, shown)), _) if q < least => {
                errors.push(format!("{head}, but request is {}", shown.text()));
            }
            (_, Some((q, shown))) if q < least => {
                errors.push(format!("{head}, but limit is {}", shown.text()));
            }
            _ => {}
        }
    }
    for (key, bound) in limit["max"].members() {
        let Some(most) = quantity(bound) else { continue };
        let head = format!("maximum {key} usage per {kind} is {}", bound.text());
        match (known(limits, key), known(requests, key)) {
            (None, _) => errors.push(format!("{head}. No limit is specified")),
            (Some((q, shown)), _) if q > most => {
                errors.push(format!("{head}, but limit is {}", shown.text()));
            }
            (_, Some((q, shown))) if q > most => {
                errors.push(format!("{head}, but request is {}", shown.text()));
            }
            _ => {}
        }
    }
    for (key, bound) in limit["maxLimitRequestRatio"].members() {
        let Some(most) = quantity(bound) else { continue };
        let head = format!("{key} max limit to request ratio per {kind} is {}", bound.text());
        let positive = |list| known(list, key).map(|(q, _)| q.as_f64()).filter(|n| *n > 0.0);
        match (positive(requests), positive(limits)) {
            (None, _) => {
                errors.push(format!("{head}, but no request is specified or request is 0"))
            }
            (_, None) => errors.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) if limit / request > most.as_f64() => {
                errors.push(format!("{head}, but provided ratio is {:.6}", limit / request));
            }
            _ => {}
        }
    }
    errors
}

fn claim_errors(limit: &Value, spec: &Value) -> Vec<String> {
    let requests = &spec["resources"]["requests"];
    let mut errors = Vec::new();
    for (field, word) in [("min", "minimum"), ("max", "maximum")] {
        for (key, bound) in limit[field].members() {
            let Some(edge) = quantity(bound) else { continue };
            let head = format!("{word} {key} usage per PersistentVolumeClaim is {}", bound.text());
            match requests.get(key).and_then(quantity) {
                None => errors.push(format!("{head}. No request is specified")),
                Some(q) if (field == "min" && q < edge) || (field == "max" && q > edge) => {
                    errors.push(format!("{head}, but request is {}", requests[key].text()));
                }
                Some(_) => {}
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Value {
        api::codec::json::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn each_bound_has_its_words() {
        let limit = parse(
            r#"{"type":"Container","min":{"cpu":"50m"},"max":{"cpu":"1"},"maxLimitRequestRatio":{"cpu":"5"}}"#,
        );
        let check = |requests: &str, limits: &str| bounds(&limit, &parse(requests), &parse(limits));
        assert!(check(r#"{"cpu":"100m"}"#, r#"{"cpu":"500m"}"#).is_empty());
        let head = "cpu max limit to request ratio per Container is 5, but";
        let cases = [
            (
                "{}",
                r#"{"cpu":"1"}"#,
                vec![
                    "minimum cpu usage per Container is 50m. No request is specified".to_owned(),
                    format!("{head} no request is specified or request is 0"),
                ],
            ),
            (
                r#"{"cpu":"10m"}"#,
                r#"{"cpu":"20m"}"#,
                vec!["minimum cpu usage per Container is 50m, but request is 10m".to_owned()],
            ),
            (
                r#"{"cpu":"2"}"#,
                r#"{"cpu":"2"}"#,
                vec!["maximum cpu usage per Container is 1, but limit is 2".to_owned()],
            ),
            (
                r#"{"cpu":"50m"}"#,
                r#"{"cpu":"1"}"#,
                vec![format!("{head} provided ratio is 20.000000")],
            ),
        ];
        for (requests, limits, wanted) in cases {
            assert_eq!(check(requests, limits), wanted, "{requests} {limits}");
        }
    }
}
