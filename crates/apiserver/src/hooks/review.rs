//! Kinds that are questions: access reviews, token reviews, and who am I. Nothing of them is stored.

use api::error::ApiError;
use api::object::{Map, Value};
use auth::User;

use crate::layers::rbac::{Attributes, Rule};
use crate::registry::{Api, decode};
use crate::request::{Action, Object, Outcome, Request};

/// Answers the creation of a review.
pub(crate) async fn answer(api: &Api, request: Request) -> Result<Outcome, ApiError> {
    let Action::Create { body, options } = &request.action else {
        return Err(ApiError::MethodNotAllowed);
    };
    let mut warnings = Vec::new();
    let resource = &request.resource;
    let mut object = decode::object(body, resource, options.validation, &mut warnings)?;
    api::defaults::apply(&mut object, resource);
    let now = api.clock.now();
    crate::registry::create::Track::Update(options).record(None, &mut object, &request, now);
    let namespace = request.namespace.as_str();
    if resource.namespaced {
        decode::place(&mut object, namespace, &request.name)?;
    }
    let mut errors = api::error::FieldErrors::new();
    if let Some(rules) = resource.rules {
        rules(&object, None, &mut errors);
    }
    if !errors.is_empty() {
        // Upstream names the group and no kind.
        return Err(ApiError::invalid(&resource.group, "", "", errors));
    }
    api.catch_up().await?;
    let status = match resource.kind.as_ref() {
        "TokenReview" if object.str_at(&["spec", "token"]).unwrap_or("").is_empty() => {
            return Err(ApiError::bad_request(
                "token is required for TokenReview in authentication",
            ));
        }
        "TokenReview" => token(api, &object),
        "SelfSubjectReview" => {
            let mut status = Value::Object(Map::default());
            status.set("userInfo", user_info(&request.user));
            api::meta::set(&mut object, "creationTimestamp", api::time::format(now));
            status
        }
        "SelfSubjectAccessReview" => access(api, &request.user, &object),
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            access(api, &subject(&object), &object)
        }
        "SelfSubjectRulesReview"
            if object.str_at(&["spec", "namespace"]).unwrap_or("").is_empty() =>
        {
            return Err(ApiError::bad_request("no namespace on request"));
        }
        "SelfSubjectRulesReview" => rules(api, &request.user, &object),
        _ => return Err(ApiError::MethodNotAllowed),
    };
    object.set("status", status);
    let object = Object { json: object.to_bytes().into(), kind: None };
    Ok(Outcome::Object { object, created: true, warnings })
}

fn array(items: impl IntoIterator<Item = impl AsRef<str>>) -> Value {
    Value::Array(items.into_iter().map(|s| Value::from(s.as_ref())).collect())
}

/// A user as `UserInfo`.
pub(crate) fn user_info(user: &User) -> Value {
    let mut info = Value::Object(Map::default());
    info.set("username", user.name.as_str());
    if !user.uid.is_empty() {
        info.set("uid", user.uid.as_str());
    }
    if !user.groups.is_empty() {
        info.set("groups", array(&user.groups));
    }
    for (key, values) in &user.extra {
        info.set_at(&["extra", key], array(values));
    }
    info
}

fn subject(object: &Value) -> User {
    let strings = |value: &Value| -> Vec<String> {
        value.items().iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let spec = |key: &str| object.str_at(&["spec", key]).unwrap_or("").to_owned();
    User {
        name: spec("user"),
        uid: spec("uid"),
        groups: object.at(&["spec", "groups"]).map(strings).unwrap_or_default(),
        extra: object
            .at(&["spec", "extra"])
            .map(|extra| extra.members().map(|(k, v)| (k.to_owned(), strings(v))).collect())
            .unwrap_or_default(),
    }
}

fn access(api: &Api, user: &User, object: &Value) -> Value {
    let ask = |section: &str, key: &str| object.str_at(&["spec", section, key]).unwrap_or("");
    let attributes = if object.at(&["spec", "nonResourceAttributes"]).is_some() {
        Attributes {
            verb: ask("nonResourceAttributes", "verb"),
            path: ask("nonResourceAttributes", "path"),
            ..Attributes::default()
        }
    } else {
        Attributes {
            verb: ask("resourceAttributes", "verb"),
            group: ask("resourceAttributes", "group"),
            resource: ask("resourceAttributes", "resource"),
            subresource: ask("resourceAttributes", "subresource"),
            namespace: ask("resourceAttributes", "namespace"),
            name: ask("resourceAttributes", "name"),
            path: "",
        }
    };
    let mut status = Value::Object(Map::default());
    let (allowed, reason) = api.authorizer.explain(user, &attributes);
    status.set("allowed", Value::Bool(allowed));
    if let Some(reason) = reason {
        status.set("reason", reason);
    }
    status
}

fn token(api: &Api, object: &Value) -> Value {
    let text = object.str_at(&["spec", "token"]).unwrap_or("");
    let asked: Vec<String> = object
        .at(&["spec", "audiences"])
        .map(Value::items)
        .unwrap_or_default()
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let own = &api.authenticator.audiences;
    let audiences = if asked.is_empty() { own.clone() } else { asked };
    let mut status = Value::Object(Map::default());
    let known = api.authenticator.tokens.get(text);
    let found = match known.filter(|_| audiences.iter().any(|a| own.contains(a))) {
        Some(user) => Ok((user.clone(), own.clone())),
        None => api.authenticator.service_account(text, &audiences).map(|(user, claims)| {
            (user, audiences.into_iter().filter(|a| claims.aud.contains(a)).collect())
        }),
    };
    match found {
        Ok((user, audiences)) => {
            status.set("authenticated", Value::Bool(true));
            status.set("user", user_info(&user));
            status.set("audiences", array(audiences));
        }
        Err(refusal) => {
            status.set("user", Value::Object(Map::default()));
            let detail = refusal.to_string();
            let general = "invalid bearer token".to_owned();
            let error = if detail.is_empty() { general } else { format!("[{general}, {detail}]") };
            status.set("error", error);
        }
    }
    status
}

fn rules(api: &Api, user: &User, object: &Value) -> Value {
    let namespace = object.str_at(&["spec", "namespace"]).unwrap_or("");
    let rules: Vec<Rule> = api.authorizer.with_policy(|policy| {
        let everything = Rule {
            verbs: vec!["*".into()],
            groups: vec!["*".into()],
            resources: vec!["*".into()],
            ..Rule::default()
        };
        let all_paths =
            Rule { verbs: vec!["*".into()], paths: vec!["*".into()], ..Rule::default() };
        let own = policy.rules(user, namespace).cloned();
        if user.in_group(auth::identity::MASTERS) {
            [everything, all_paths].into_iter().chain(own).collect()
        } else {
            own.collect()
        }
    });
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in &rules {
        let mut item = Value::Object(Map::default());
        item.set("verbs", array(&rule.verbs));
        if rule.paths.is_empty() {
            item.set("apiGroups", array(&rule.groups));
            item.set("resources", array(&rule.resources));
            if !rule.names.is_empty() {
                item.set("resourceNames", array(&rule.names));
            }
            resources.push(item);
        } else {
            item.set("nonResourceURLs", array(&rule.paths));
            paths.push(item);
        }
    }
    let mut status = Value::Object(Map::default());
    status.set("resourceRules", Value::Array(resources));
    status.set("nonResourceRules", Value::Array(paths));
    status.set("incomplete", Value::Bool(false));
    status
}
