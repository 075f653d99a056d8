//! Nobody grants what they do not hold: roles and bindings are checked against the rules of their author.
//!
//! Specified by <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#privilege-escalation-prevention-and-bootstrapping>.

use api::error::ApiError;
use api::object::Value;

use super::Review;
use crate::layers::rbac::{Attributes, Rule};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks a role's rules, or those that a binding hands out.
pub(super) fn validate(review: &mut Review<'_>) -> Result<(), ApiError> {
    if review.resource.group != GROUP {
        return Ok(());
    }
    let read = |object: &Value| -> Vec<Rule> {
        object.get("rules").map(Value::items).unwrap_or_default().iter().map(Rule::read).collect()
    };
    match review.resource.plural.as_ref() {
        "roles" | "clusterroles" => {
            let unchanged = review.old.is_some_and(|old| read(old) == read(review.object));
            if unchanged
                || may(review, "escalate", &review.resource.plural, api::meta::name(review.object))
            {
                return Ok(());
            }
            covered(review, &read(review.object))
        }
        "rolebindings" | "clusterrolebindings" => {
            let kind = review.object.str_at(&["roleRef", "kind"]).unwrap_or("");
            let name = review.object.str_at(&["roleRef", "name"]).unwrap_or("").to_owned();
            let (plural, namespace) = if kind == "Role" {
                ("roles", review.request.namespace.as_str())
            } else {
                ("clusterroles", "")
            };
            if may(review, "bind", plural, &name) {
                return Ok(());
            }
            let rules = review.api.authorizer.with_policy(|policy| policy.role(namespace, &name));
            let rules = rules.ok_or_else(|| ApiError::NotFound {
                resource: api::error::ResourceName::new(GROUP, plural),
                name: name.clone(),
            })?;
            covered(review, &rules)
        }
        _ => Ok(()),
    }
}

fn may(review: &Review<'_>, verb: &str, resource: &str, name: &str) -> bool {
    let namespace = review.request.namespace.as_str();
    let ask = Attributes { verb, group: GROUP, resource, namespace, name, ..Attributes::default() };
    review.api.authorizer.allows(&review.request.user, &ask)
}

fn covered(review: &Review<'_>, rules: &[Rule]) -> Result<(), ApiError> {
    let user = &review.request.user;
    let missing: Vec<String> = review.api.authorizer.with_policy(|policy| {
        let held: Vec<&Rule> = policy.rules(user, &review.request.namespace).collect();
        rules.iter().filter(|rule| !rule.covered_by(&held)).map(show).collect()
    });
    if missing.is_empty() {
        return Ok(());
    }
    let groups: Vec<String> = user.groups.iter().map(|g| format!("{g:?}")).collect();
    Err(review.forbidden(format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        groups.join(" "),
        missing.join("\n")
    )))
}

/// A rule as upstream's message shows it.
fn show(rule: &Rule) -> String {
    let mut parts = Vec::new();
    let lists = [
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.names),
        ("NonResourceURLs", &rule.paths),
        ("Verbs", &rule.verbs),
    ];
    for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        let items: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
        parts.push(format!("{name}:[{}]", items.join(" ")));
    }
    format!("{{{}}}", parts.join(", "))
}
