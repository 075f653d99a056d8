//! ResourceQuota: what a namespace may use. A write claims its share in its own transaction.
//!
//! The amounts in `status.used` go down again only by the controller, which counts what there is.

use api::catalog::Resource;
use api::error::ApiError;
use api::object::Value;
use api::patch::apply::Writer;
use api::quantity::Quantity;
use api::quota::{Usage, covers, unsaid, usage};

use crate::registry::Api;
use crate::registry::commit::{Claims, stored_bytes};
use crate::storage::etcd::{Expect, Write};
use crate::storage::keys;

/// Who is recorded as writing a quota's status here.
const MANAGER: &str = "kube-apiserver";

/// Adds what the write of `object` uses to the quotas that count it.
///
/// # Errors
/// 403 when a quota has not that much left, or is not counted yet.
pub(crate) fn claim(
    api: &Api,
    resource: &Resource,
    object: &Value,
    old: Option<&Value>,
    claims: &mut Claims,
) -> Result<(), ApiError> {
    let (group, plural) = (resource.group.as_ref(), resource.plural.as_ref());
    let grows = matches!(plural, "pods" | "services" | "persistentvolumeclaims");
    if !resource.namespaced || (old.is_some() && !(group.is_empty() && grows)) {
        return Ok(());
    }
    let quotas = api.resource("", "v1", "resourcequotas");
    let prefix = format!("{}/", api::meta::namespace(object));
    let found = api.shelf(&quotas).list(&prefix, "");
    if found.is_empty() {
        return Ok(());
    }
    let now = usage(group, plural, object);
    for (_, entry) in found {
        let mut quota = entry.parse();
        if !covers(&quota, plural, object) {
            continue;
        }
        let before =
            old.filter(|old| covers(&quota, plural, old)).map(|old| usage(group, plural, old));
        let wanted = more(&now, before.as_ref(), &quota["spec"]["hard"]);
        let refuse = |message: String| ApiError::Forbidden {
            resource: resource.resource_name(),
            name: api::meta::name(object).to_owned(),
            message,
            causes: Vec::new(),
        };
        let name = api::meta::name(&quota).to_owned();
        if plural == "pods"
            && old.is_none()
            && let Some(missing) = unsaid(&quota["spec"]["hard"], &object["spec"])
        {
            return Err(refuse(format!("failed quota: {name}: {missing}")));
        }
        if wanted.is_empty() {
            continue;
        }
        let used = add(&quota, &wanted).map_err(refuse)?;
        let prior = quota.clone();
        for (key, amount) in used {
            quota.set_at(&["status", "used", &key], amount.to_string());
        }
        let writer = Writer { manager: MANAGER, subresource: "status", now: api.clock.now() };
        api::patch::apply::track_update(Some(&prior), &mut quota, &quotas, writer);
        let key = keys::object(&quotas, api::meta::namespace(&quota), &name);
        claims.expect.push(Expect { key: key.clone(), revision: entry.revision });
        let value = stored_bytes(&quotas, &quota);
        claims.writes.push(Write::Put { key, value, lease: 0 });
    }
    Ok(())
}

/// What is used beyond what was used before, of the resources that the quota limits.
fn more(now: &Usage, before: Option<&Usage>, hard: &Value) -> Usage {
    let mut out = Usage::new();
    for (key, amount) in now.iter().filter(|(key, _)| hard.has(key)) {
        let had = before.and_then(|before| before.get(key)).copied().unwrap_or(Quantity::ZERO);
        let grown = amount.minus(had);
        if grown > Quantity::ZERO {
            out.insert(key.clone(), grown);
        }
    }
    out
}

/// The new totals, or why they may not be.
fn add(quota: &Value, wanted: &Usage) -> Result<Usage, String> {
    let name = api::meta::name(quota);
    let amount = |part: &str, key: &str| {
        let text = quota.str_at(&["status", part, key])?;
        Quantity::parse(text).ok()
    };
    let unknown: Vec<&str> = wanted
        .keys()
        .filter(|key| amount("hard", key).is_none() || amount("used", key).is_none())
        .map(String::as_str)
        .collect();
    if !unknown.is_empty() {
        return Err(format!("status unknown for quota: {name}, resources: {}", unknown.join(",")));
    }
    let used = |key: &str| amount("used", key).unwrap_or(Quantity::ZERO);
    let total: Usage = wanted.iter().map(|(k, more)| (k.clone(), used(k).plus(*more))).collect();
    let over: Vec<&String> = total
        .iter()
        .filter(|(key, sum)| amount("hard", key).is_some_and(|hard| **sum > hard))
        .map(|(key, _)| key)
        .collect();
    if over.is_empty() {
        return Ok(total);
    }
    let list = |of: &dyn Fn(&str) -> String| {
        over.iter().map(|key| format!("{key}={}", of(key))).collect::<Vec<_>>().join(",")
    };
    Err(format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        list(&|key| wanted[key].to_string()),
        list(&|key| used(key).to_string()),
        list(&|key| amount("hard", key).unwrap_or(Quantity::ZERO).to_string())
    ))
}

#[cfg(test)]
mod tests {
    use api::object::Map;

    use super::*;

    #[test]
    fn a_quota_says_what_is_left() {
        let mut quota = Value::Object(Map::default());
        quota.set_at(&["metadata", "name"], "q");
        let wanted = |n| Usage::from([("pods".to_owned(), Quantity::of(n))]);
        assert_eq!(
            add(&quota, &wanted(1)).unwrap_err(),
            "status unknown for quota: q, resources: pods"
        );
        quota.set_at(&["status", "hard", "pods"], "2");
        quota.set_at(&["status", "used", "pods"], "1");
        assert_eq!(add(&quota, &wanted(1)).unwrap()["pods"].to_string(), "2");
        assert_eq!(
            add(&quota, &wanted(2)).unwrap_err(),
            "exceeded quota: q, requested: pods=2, used: pods=1, limited: pods=2"
        );
    }

    #[test]
    fn only_what_grows_and_is_limited_is_claimed() {
        let usage = |n: i64| {
            Usage::from([("cpu".to_owned(), Quantity::of(n)), ("x".to_owned(), Quantity::of(n))])
        };
        let mut hard = Value::Object(Map::default());
        hard.set("cpu", "9");
        let grown =
            |now, before: Option<i64>| more(&usage(now), before.map(usage).as_ref(), &hard).len();
        assert_eq!((grown(1, None), grown(2, Some(1)), grown(1, Some(2))), (1, 1, 0));
    }
}
