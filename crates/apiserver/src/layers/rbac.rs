//! Who may do what: RBAC rules and bindings as an index by subject. Pure.
//!
//! Specified by <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>.

use std::collections::HashMap;
use std::sync::Arc;

use api::object::Value;
use auth::User;

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Attributes<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    /// Plural name; empty for a path that is no resource.
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    /// Where there is no resource.
    pub(crate) path: &'a str,
}

/// One `PolicyRule`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) verbs: Vec<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) resources: Vec<String>,
    pub(crate) names: Vec<String>,
    pub(crate) paths: Vec<String>,
}

fn strings(value: &Value, key: &str) -> Vec<String> {
    let items = value.get(key).map(Value::items).unwrap_or_default();
    items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Rule {
    /// Reads one element of a role's `rules`.
    pub(crate) fn read(value: &Value) -> Self {
        Self {
            verbs: strings(value, "verbs"),
            groups: strings(value, "apiGroups"),
            resources: strings(value, "resources"),
            names: strings(value, "resourceNames"),
            paths: strings(value, "nonResourceURLs"),
        }
    }

    /// Whether the rule grants what is asked for.
    pub(crate) fn allows(&self, ask: &Attributes<'_>) -> bool {
        if !has(&self.verbs, ask.verb) {
            return false;
        }
        if ask.resource.is_empty() {
            return self.paths.iter().any(|path| path_covers(path, ask.path));
        }
        has(&self.groups, ask.group)
            && self.resources.iter().any(|r| resource_covers(r, ask.resource, ask.subresource))
            && (self.names.is_empty() || self.names.iter().any(|n| n == ask.name))
    }

    /// Whether one of `rules` together grant all that this rule does.
    pub(crate) fn covered_by(&self, rules: &[&Rule]) -> bool {
        self.pieces().all(|piece| {
            rules.iter().any(|rule| {
                has(&rule.verbs, piece.verb)
                    && if piece.resource.is_empty() {
                        rule.paths.iter().any(|p| p == piece.path || path_covers(p, piece.path))
                    } else {
                        has(&rule.groups, piece.group)
                            && rule
                                .resources
                                .iter()
                                .any(|r| resource_covers(r, piece.resource, piece.subresource))
                            && (rule.names.is_empty() || rule.names.iter().any(|n| n == piece.name))
                    }
            })
        })
    }

    /// Every single permission the rule names.
    fn pieces(&self) -> impl Iterator<Item = Attributes<'_>> {
        let names: Vec<&str> = if self.names.is_empty() {
            vec![""]
        } else {
            self.names.iter().map(String::as_str).collect()
        };
        self.verbs.iter().flat_map(move |verb| {
            let names = names.clone();
            let resources = self.groups.iter().flat_map(move |group| {
                let names = names.clone();
                self.resources.iter().flat_map(move |resource| {
                    let (resource, subresource) =
                        resource.split_once('/').unwrap_or((resource.as_str(), ""));
                    names.clone().into_iter().map(move |name| Attributes {
                        verb,
                        group,
                        resource,
                        subresource,
                        name,
                        ..Attributes::default()
                    })
                })
            });
            let paths = self.paths.iter().map(move |path| Attributes {
                verb,
                path,
                ..Attributes::default()
            });
            resources.chain(paths)
        })
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

fn path_covers(rule: &str, path: &str) -> bool {
    rule == path || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

fn resource_covers(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some(("*", sub)) => sub == subresource,
        Some((name, sub)) => name == resource && sub == subresource,
    }
}

/// A role's rules where a binding makes them hold.
#[derive(Debug, Clone)]
struct Grant {
    /// Empty: everywhere.
    namespace: String,
    rules: Arc<Vec<Rule>>,
    /// Binding, role and subject, as reviews name them.
    source: Arc<str>,
}

/// All bindings, by whom they bind.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
    roles: HashMap<(String, String), Arc<Vec<Rule>>>,
}

/// The objects a policy is made of.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) cluster_roles: Vec<Value>,
    pub(crate) roles: Vec<Value>,
    pub(crate) cluster_role_bindings: Vec<Value>,
    pub(crate) role_bindings: Vec<Value>,
}

fn meta<'a>(object: &'a Value, key: &str) -> &'a str {
    object.str_at(&["metadata", key]).unwrap_or("")
}

impl Policy {
    /// Indexes roles and bindings.
    pub(crate) fn new(objects: &Objects) -> Self {
        let mut policy = Self::default();
        for role in objects.cluster_roles.iter().chain(&objects.roles) {
            let rules = role.get("rules").map(Value::items).unwrap_or_default();
            let rules = Arc::new(rules.iter().map(Rule::read).collect());
            policy
                .roles
                .insert((meta(role, "namespace").to_owned(), meta(role, "name").to_owned()), rules);
        }
        for binding in objects.cluster_role_bindings.iter().chain(&objects.role_bindings) {
            policy.bind(binding);
        }
        policy
    }

    fn bind(&mut self, binding: &Value) {
        let namespace = meta(binding, "namespace");
        let kind = binding.str_at(&["roleRef", "kind"]).unwrap_or("");
        let name = binding.str_at(&["roleRef", "name"]).unwrap_or("");
        let Some(rules) = self.role(if kind == "Role" { namespace } else { "" }, name) else {
            return;
        };
        let place = if namespace.is_empty() { String::new() } else { format!("/{namespace}") };
        let bound = if namespace.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" };
        let binding_name = format!("{}{place}", meta(binding, "name"));
        for subject in binding.get("subjects").map(Value::items).unwrap_or_default() {
            let who = subject.str_at(&["name"]).unwrap_or("").to_owned();
            let subject_kind = subject.str_at(&["kind"]).unwrap_or("");
            let home = subject.str_at(&["namespace"]).unwrap_or(namespace);
            let (index, key, shown) = match subject_kind {
                "User" => (&mut self.users, who.clone(), who),
                "Group" => (&mut self.groups, who.clone(), who),
                "ServiceAccount" => {
                    let user = format!("system:serviceaccount:{home}:{who}");
                    (&mut self.users, user, format!("{who}/{home}"))
                }
                _ => continue,
            };
            let source =
                format!("{bound} {binding_name:?} of {kind} {name:?} to {subject_kind} {shown:?}");
            let grant = Grant {
                namespace: namespace.to_owned(),
                rules: rules.clone(),
                source: source.into(),
            };
            index.entry(key).or_default().push(grant);
        }
    }

    /// The rules of a role; an empty namespace means a ClusterRole.
    pub(crate) fn role(&self, namespace: &str, name: &str) -> Option<Arc<Vec<Rule>>> {
        self.roles.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    fn grants(&self, user: &User) -> impl Iterator<Item = &Grant> {
        let own = self.users.get(&user.name).into_iter().flatten();
        own.chain(user.groups.iter().filter_map(|g| self.groups.get(g)).flatten())
    }

    /// All rules that hold for `user` in `namespace` (empty: those that hold everywhere).
    pub(crate) fn rules<'a>(
        &'a self,
        user: &'a User,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Rule> {
        self.grants(user)
            .filter(move |grant| grant.namespace.is_empty() || grant.namespace == namespace)
            .flat_map(|grant| grant.rules.iter())
    }

    /// Whether some binding lets `user` do this.
    pub(crate) fn allows(&self, user: &User, ask: &Attributes<'_>) -> bool {
        user.in_group(auth::identity::MASTERS) || self.source(user, ask).is_some()
    }

    /// The binding that lets `user` do this, in words.
    pub(crate) fn source(&self, user: &User, ask: &Attributes<'_>) -> Option<Arc<str>> {
        let holds = |grant: &&Grant| grant.namespace.is_empty() || grant.namespace == ask.namespace;
        let found = self
            .grants(user)
            .filter(holds)
            .find(|grant| grant.rules.iter().any(|rule| rule.allows(ask)));
        found.map(|grant| grant.source.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Rule {
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        Rule {
            verbs: own(verbs),
            groups: own(groups),
            resources: own(resources),
            ..Rule::default()
        }
    }

    fn ask<'a>(verb: &'a str, resource: &'a str, subresource: &'a str) -> Attributes<'a> {
        Attributes { verb, resource, subresource, namespace: "ns", ..Attributes::default() }
    }

    #[test]
    fn a_rule_covers_its_resources_and_not_their_subresources() {
        let pods = rule(&["get"], &[""], &["pods", "*/scale"]);
        assert!(pods.allows(&ask("get", "pods", "")));
        assert!(!pods.allows(&ask("get", "pods", "log")));
        assert!(pods.allows(&ask("get", "deployments", "scale")));
        assert!(!pods.allows(&ask("list", "pods", "")));
        assert!(rule(&["*"], &["*"], &["*"]).allows(&ask("get", "pods", "log")));
    }

    #[test]
    fn paths_match_whole_or_by_a_trailing_star() {
        let rule = Rule { paths: vec!["/healthz/*".into()], ..rule(&["get"], &[], &[]) };
        let path = |path| Attributes { verb: "get", path, ..Attributes::default() };
        assert!(rule.allows(&path("/healthz/ping")));
        assert!(!rule.allows(&path("/metrics")));
    }

    #[test]
    fn a_role_binding_holds_in_its_namespace_only() {
        let parse = |text: &str| api::codec::json::parse(text.as_bytes()).unwrap();
        let policy = Policy::new(&Objects {
            cluster_roles: vec![parse(
                r#"{"metadata":{"name":"r"},"rules":[{"apiGroups":[""],"resources":["pods"],"verbs":["get"]}]}"#,
            )],
            role_bindings: vec![parse(
                r#"{"metadata":{"name":"b","namespace":"ns"},"roleRef":{"kind":"ClusterRole","name":"r"},
                    "subjects":[{"kind":"ServiceAccount","name":"sa","namespace":"home"}]}"#,
            )],
            ..Objects::default()
        });
        let user = User::authenticated("system:serviceaccount:home:sa", &[]);
        assert!(policy.allows(&user, &ask("get", "pods", "")));
        assert_eq!(
            policy.source(&user, &ask("get", "pods", "")).as_deref(),
            Some(r#"RoleBinding "b/ns" of ClusterRole "r" to ServiceAccount "sa/home""#)
        );
        let elsewhere = Attributes { namespace: "other", ..ask("get", "pods", "") };
        assert!(!policy.allows(&user, &elsewhere));
    }

    #[test]
    fn a_rule_is_covered_only_if_each_permission_is() {
        let wanted = rule(&["get", "list"], &[""], &["pods"]);
        let (get, list) = (rule(&["get"], &[""], &["*"]), rule(&["list"], &["*"], &["pods"]));
        assert!(wanted.covered_by(&[&get, &list]));
        assert!(!wanted.covered_by(&[&get]));
    }
}
