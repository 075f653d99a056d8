//! Cluster roles with an aggregation rule have the rules of all roles that it selects.

use std::sync::Arc;

use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use serde_json::json;

use crate::pods::selects;

/// The controller.
#[derive(Debug)]
pub struct RoleAggregation;

/// A role and the rules it should have.
#[derive(Debug)]
pub struct Seen {
    role: Arc<ClusterRole>,
    rules: Vec<PolicyRule>,
}

impl Controller for RoleAggregation {
    const NAME: &'static str = "clusterrole-aggregation";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[
        Wake::own("ClusterRole"),
        Wake::keys("ClusterRole", |cache, _| {
            let all = cache.list::<ClusterRole>();
            all.iter()
                .filter(|r| r.aggregation_rule.is_some())
                .map(|r| Key::of(&r.metadata))
                .collect()
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let role = cache.at::<ClusterRole>(key)?;
        let rules = aggregated(&role, &cache.list::<ClusterRole>())?;
        Some(Seen { role, rules })
    }

    fn reconcile(seen: &Seen, _: Timestamp) -> Plan {
        if seen.role.rules.clone().unwrap_or_default() == seen.rules {
            return Plan::new();
        }
        Plan::new().push(Action::merge(&*seen.role, json!({"rules": seen.rules})))
    }
}

/// The rules of the roles that `role` selects, in the order of their names, each once; `None` if it selects none.
fn aggregated(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref()?;
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors {
        for other in all {
            let own = other.metadata.name == role.metadata.name;
            if own || !selects(Some(selector), other.metadata.labels.as_ref()) {
                continue;
            }
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(value: serde_json::Value) -> Arc<ClusterRole> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn a_role_takes_the_rules_it_selects_and_rests() {
        let rule = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
        let part = role(
            json!({"metadata": {"name": "part", "labels": {"to": "all"}}, "rules": [rule, rule]}),
        );
        let other = role(json!({"metadata": {"name": "other"}, "rules": [rule]}));
        let whole = |rules: serde_json::Value| {
            role(json!({"metadata": {"name": "whole", "labels": {"to": "all"}}, "rules": rules,
                "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]}}))
        };
        let plan = |whole: Arc<ClusterRole>| {
            let rules = aggregated(&whole, &[part.clone(), other.clone(), whole.clone()]).unwrap();
            RoleAggregation::reconcile(&Seen { role: whole, rules }, Timestamp::UNIX_EPOCH)
        };
        assert_eq!(plan(whole(json!([]))).actions.len(), 1);
        assert!(plan(whole(json!([rule]))).is_empty());
        assert!(aggregated(&part, &[]).is_none());
    }
}
