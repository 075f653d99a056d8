//! Who makes a request: the caller in memory, a client certificate, a bearer token, or nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::error::ApiError;
use auth::User;
use auth::token::{Claims, Reference, Signer};
use daemon::tls::{PeerCertificates, PeerNamed};
use http::HeaderMap;
use http::request::Parts;

use crate::layers::authorize::Authorizer;
use crate::layers::rbac::Attributes;
use crate::storage::cache::Cache;

/// Why a service-account token proves nothing. Only reviews of tokens tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Not signed by us, or not for now.
    #[error("")]
    Unknown,
    #[error("service account token has expired")]
    Expired,
    #[error("token audiences {0:?} is invalid for the target audiences {1:?}")]
    Audience(Vec<String>, Vec<String>),
    /// What it is bound to is gone.
    #[error("service account token has been invalidated")]
    Unbound,
}

/// Knows the ways to prove who one is.
#[derive(Debug)]
pub(crate) struct Authenticator {
    pub(crate) cache: Arc<Cache>,
    pub(crate) signer: Arc<Signer>,
    /// Whom tokens must be for, to be taken here.
    pub(crate) audiences: Vec<String>,
    pub(crate) tokens: BTreeMap<String, User>,
    pub(crate) clock: daemon::Clock,
}

impl Authenticator {
    /// The user behind a request, before impersonation.
    ///
    /// # Errors
    /// 401 for credentials that prove nothing; without any, the user is anonymous.
    pub(crate) fn user(&self, parts: &Parts) -> Result<Arc<User>, ApiError> {
        if let Some(user) = parts.extensions.get::<Arc<User>>() {
            return Ok(user.clone());
        }
        if let Some(header) = parts.headers.get(http::header::AUTHORIZATION) {
            let text = header.to_str().unwrap_or("");
            if let Some((scheme, token)) = text.split_once(' ')
                && scheme.eq_ignore_ascii_case("bearer")
            {
                return self.bearer(token.trim()).map(Arc::new);
            }
        }
        if let Some(certificates) = parts.extensions.get::<PeerCertificates>()
            && let Some(leaf) = certificates.0.first()
        {
            let read = || User::from_certificate(leaf).map(Arc::new);
            let named = parts.extensions.get::<PeerNamed>();
            let user = named.and_then(|named| named.get_or_make(read)).unwrap_or_else(read);
            return user.ok_or(ApiError::Unauthorized);
        }
        Ok(Arc::new(User::anonymous()))
    }

    /// The user a bearer token stands for.
    ///
    /// # Errors
    /// 401 when it stands for nobody.
    pub(crate) fn bearer(&self, token: &str) -> Result<User, ApiError> {
        if let Some(user) = self.tokens.get(token) {
            return Ok(user.clone());
        }
        let found = self.service_account(token, &self.audiences);
        found.map(|(user, _)| user).map_err(|_| ApiError::Unauthorized)
    }

    /// The user and claims of a service-account token for one of `audiences`.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub(crate) fn service_account(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(User, Claims), Refusal> {
        let now = self.clock.now().as_second();
        let claims = self.signer.verify(token, now).map_err(|error| {
            if error.is_expired() { Refusal::Expired } else { Refusal::Unknown }
        })?;
        if !claims.aud.iter().any(|a| audiences.contains(a)) {
            return Err(Refusal::Audience(claims.aud, audiences.to_vec()));
        }
        if !self.bound(&claims) {
            return Err(Refusal::Unbound);
        }
        Ok((claims.user(), claims))
    }

    /// Whether everything a token is bound to still exists.
    fn bound(&self, claims: &Claims) -> bool {
        let bound = &claims.kubernetes;
        let there = |shelf: &str, key: String, uid: &str| {
            self.cache.shelf(shelf).get(&key).is_some_and(|entry| {
                entry.tree().str_at(&["metadata", "uid"]).is_some_and(|found| found == uid)
            })
        };
        let inside = |r: &Reference| format!("{}/{}", bound.namespace, r.name);
        let account = &bound.serviceaccount;
        there("serviceaccounts", inside(account), &account.uid)
            && bound.pod.as_ref().is_none_or(|pod| there("pods", inside(pod), &pod.uid))
            && bound.secret.as_ref().is_none_or(|s| there("secrets", inside(s), &s.uid))
            && bound
                .node
                .as_ref()
                .filter(|_| bound.pod.is_none())
                .is_none_or(|node| there("minions", node.name.clone(), &node.uid))
    }
}

/// The user to act as: the one that `Impersonate-*` headers name, if `user` may do that; for everything, or
/// (KEP-5284) for what is asked here.
///
/// # Errors
/// 403 when it may not, 400 when the headers name no user.
pub(crate) fn impersonate(
    user: Arc<User>,
    headers: &HeaderMap,
    authorizer: &Authorizer,
    ask: &Attributes<'_>,
) -> Result<Arc<User>, ApiError> {
    let all = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter();
        values.filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
    };
    let names = all("impersonate-user");
    let mut groups = all("impersonate-group");
    let uid = all("impersonate-uid").into_iter().next().unwrap_or_default();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in headers.keys() {
        if let Some(key) = name.as_str().strip_prefix("impersonate-extra-") {
            let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy().into_owned();
            extra.insert(key, all(name.as_str()));
        }
    }
    let Some(name) = names.into_iter().next().filter(|n| !n.is_empty()) else {
        if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            return Ok(user);
        }
        let groups: Vec<String> = groups.iter().map(|g| format!("{g:?}")).collect();
        return Err(ApiError::BadRequest(format!(
            "requested &user.DefaultInfo{{Name:\"\", UID:{uid:?}, Groups:[]string{{{}}}, \
             Extra:map[string][]string(nil)}} without impersonating a user name",
            groups.join(", ")
        )));
    };
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let wanted = Wanted { name: &name, account, groups: &groups, uid: &uid, extra: &extra };
    let mode = if account.is_some() { "serviceaccount" } else { "user-info" };
    let on_behalf = format!("impersonate-on:{mode}:{}", ask.verb);
    let on_behalf = Attributes { verb: &on_behalf, ..*ask };
    let limited = || {
        authorizer.check(&user, &on_behalf)?;
        let identity = format!("impersonate:{mode}");
        wanted.check(&user, authorizer, &identity, "authentication.k8s.io")
    };
    if wanted.check(&user, authorizer, "impersonate", "").is_err() {
        limited()?;
    }
    if groups.is_empty()
        && let Some((namespace, _)) = account
    {
        groups = vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
        ];
    }
    let class = if name == "system:anonymous" {
        auth::identity::UNAUTHENTICATED
    } else {
        auth::identity::AUTHENTICATED
    };
    if !groups.iter().any(|g| g == class) {
        groups.push(class.to_owned());
    }
    Ok(Arc::new(User { name, uid, groups, extra }))
}

/// Whom somebody wants to be.
struct Wanted<'a> {
    name: &'a str,
    /// Namespace and name of a service account.
    account: Option<(&'a str, &'a str)>,
    groups: &'a [String],
    uid: &'a str,
    extra: &'a BTreeMap<String, Vec<String>>,
}

impl Wanted<'_> {
    /// Whether `user` may be all of that; `group` is where users, groups and accounts are asked for.
    fn check(
        &self,
        user: &User,
        authorizer: &Authorizer,
        verb: &str,
        group: &str,
    ) -> Result<(), ApiError> {
        let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
            let ask = Attributes { verb, group, resource, subresource, namespace, name, path: "" };
            authorizer.check(user, &ask)
        };
        match self.account {
            Some((namespace, name)) => may(group, "serviceaccounts", "", namespace, name)?,
            None => may(group, "users", "", "", self.name)?,
        }
        for name in self.groups {
            may(group, "groups", "", "", name)?;
        }
        if !self.uid.is_empty() {
            may("authentication.k8s.io", "uids", "", "", self.uid)?;
        }
        for (key, values) in self.extra {
            for value in values {
                may("authentication.k8s.io", "userextras", key, "", value)?;
            }
        }
        Ok(())
    }
}
