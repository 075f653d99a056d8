//! Bootstrap tokens ([`auth::bootstrap`]): those that have expired are deleted, and the others sign what a machine that joins
//! reads first, the ConfigMap `cluster-info` of `kube-public`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use auth::bootstrap::{SECRET_PREFIX, SECRET_TYPE, sign_detached};
use client::{Action, Cache, Client, Controller, Executor, Key, Plan, Select, Wake, controller};
use daemon::Context;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const TOKENS: &str = "kube-system";
const INFO: &str = "cluster-info";
const INFO_NAMESPACE: &str = "kube-public";
const KUBECONFIG: &str = "kubeconfig";
/// What the names of signatures begin with; the token's id follows.
const SIGNATURE: &str = "jws-kubeconfig-";

/// Runs both controllers on a cache of their own: nobody else here reads Secrets.
pub async fn run(client: Client, executor: Executor, ctx: Context, leading: CancellationToken) {
    let cache = Cache::builder(client)
        .kind::<Secret>(Select::all().namespace(TOKENS).fields(&format!("type={SECRET_TYPE}")))
        .kind::<ConfigMap>(
            Select::all().namespace(INFO_NAMESPACE).fields(&format!("metadata.name={INFO}")),
        )
        .start(&ctx);
    tokio::join!(
        controller::run::<TokenCleaner>(
            cache.clone(),
            executor.clone(),
            ctx.clone(),
            leading.clone()
        ),
        controller::run::<BootstrapSigner>(cache, executor, ctx.clone(), leading),
    );
}

fn text<'s>(secret: &'s Secret, key: &str) -> &'s str {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    bytes.and_then(|bytes| std::str::from_utf8(&bytes.0).ok()).unwrap_or_default()
}

/// How long a token is still good for: for ever, a time, or no longer, also where its expiry cannot be read.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    Ever,
    For(Duration),
    Nothing,
}

fn left(secret: &Secret, now: Timestamp) -> Left {
    let expiration = text(secret, "expiration");
    if expiration.is_empty() {
        return Left::Ever;
    }
    let end = expiration.parse::<Timestamp>().ok();
    let left = end.and_then(|end| Duration::try_from(end.duration_since(now)).ok());
    left.filter(|left| !left.is_zero()).map_or(Left::Nothing, Left::For)
}

/// Deletes tokens when their time is over.
#[derive(Debug)]
pub struct TokenCleaner;

impl Controller for TokenCleaner {
    const NAME: &'static str = "token-cleaner";
    type Seen = Arc<Secret>;
    const WAKES: &'static [Wake] = &[Wake::own("Secret")];

    fn observe(cache: &Cache, key: &Key) -> Option<Arc<Secret>> {
        cache.at::<Secret>(key)
    }

    fn reconcile(secret: &Arc<Secret>, now: Timestamp) -> Plan {
        match left(secret, now) {
            Left::Ever => Plan::new(),
            Left::For(time) => Plan::new().requeue_after(time),
            Left::Nothing => Plan::new().push(Action::delete(&**secret)),
        }
    }
}

/// Keeps the signatures of `cluster-info`: one by each token that is meant for it, and no other.
#[derive(Debug)]
pub struct BootstrapSigner;

impl Controller for BootstrapSigner {
    const NAME: &'static str = "bootstrap-signer";
    type Seen = (Arc<ConfigMap>, Vec<Arc<Secret>>);
    const WAKES: &'static [Wake] = &[
        Wake::own("ConfigMap"),
        Wake::keys("Secret", |_, _| vec![Key::new(INFO_NAMESPACE, INFO)]),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Self::Seen> {
        Some((cache.at::<ConfigMap>(key)?, cache.list::<Secret>()))
    }

    fn reconcile((info, tokens): &Self::Seen, now: Timestamp) -> Plan {
        let empty = BTreeMap::new();
        let data = info.data.as_ref().unwrap_or(&empty);
        let Some(kubeconfig) = data.get(KUBECONFIG).filter(|text| !text.is_empty()) else {
            return Plan::new();
        };
        let signatures: BTreeMap<String, String> = tokens
            .iter()
            .filter_map(|token| signing(token, now))
            .filter_map(|(id, secret)| {
                let made = sign_detached(kubeconfig.as_bytes(), id, secret);
                Some((format!("{SIGNATURE}{id}"), made.ok()?))
            })
            .collect();
        let mut change = serde_json::Map::new();
        for stale in data.keys().filter(|k| k.starts_with(SIGNATURE)) {
            if !signatures.contains_key(stale) {
                change.insert(stale.clone(), Value::Null);
            }
        }
        for (name, signature) in signatures {
            if data.get(&name) != Some(&signature) {
                change.insert(name, signature.into());
            }
        }
        if change.is_empty() {
            return Plan::new();
        }
        Plan::new().push(Action::merge_if_unchanged(&**info, json!({"data": change})))
    }
}

/// A token's id and secret, if it may sign.
fn signing(token: &Secret, now: Timestamp) -> Option<(&str, &str)> {
    let (id, secret) = (text(token, "token-id"), text(token, "token-secret"));
    let name = token.metadata.name.as_deref().unwrap_or_default();
    let plain = |text: &str, length| {
        text.len() == length
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let good = plain(id, 6)
        && !secret.is_empty()
        && name.strip_prefix(SECRET_PREFIX) == Some(id)
        && text(token, "usage-bootstrap-signing") == "true"
        && token.metadata.deletion_timestamp.is_none()
        && left(token, now) != Left::Nothing;
    good.then_some((id, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: &str, more: &[(&str, &str)]) -> Arc<Secret> {
        let mut secret = Secret::default();
        secret.metadata.name = Some(format!("{SECRET_PREFIX}{id}"));
        secret.metadata.namespace = Some(TOKENS.to_owned());
        let all = [("token-id", id), ("token-secret", "0123456789abcdef")];
        let all = all.iter().chain(more);
        let bytes = |text: &str| k8s_openapi::ByteString(text.as_bytes().to_vec());
        secret.data = Some(all.map(|(k, v)| ((*k).to_owned(), bytes(v))).collect());
        Arc::new(secret)
    }

    fn now() -> Timestamp {
        "2026-11-24T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_token_goes_when_its_time_is_over() {
        for (expiration, wanted) in [
            ("", Left::Ever),
            ("2026-11-24T12:00:05Z", Left::For(Duration::from_secs(5))),
            ("2026-11-24T12:00:00Z", Left::Nothing),
            ("2026-11-24T14:00:00+02:00", Left::Nothing),
            ("soon", Left::Nothing),
        ] {
            let token = token("abcdef", &[("expiration", expiration)]);
            assert_eq!(left(&token, now()), wanted, "{expiration}");
            let plan = TokenCleaner::reconcile(&token, now());
            assert_eq!(plan.is_empty(), wanted != Left::Nothing, "{expiration}");
        }
    }

    #[test]
    fn only_tokens_that_may_sign_do() {
        let signs = ("usage-bootstrap-signing", "true");
        for (token, wanted) in [
            (token("abcdef", &[signs]), true),
            (token("abcdef", &[]), false),
            (token("abcdef", &[signs, ("expiration", "2026-11-24T11:00:00Z")]), false),
            (token("Abcdef", &[signs]), false),
            (token("abcde", &[signs]), false),
            (token("abcdef", &[signs, ("token-id", "ghijkl")]), false),
            (token("abcdef", &[signs, ("token-secret", "")]), false),
        ] {
            assert_eq!(signing(&token, now()).is_some(), wanted, "{token:?}");
        }
    }

    #[test]
    fn signatures_follow_tokens_and_what_they_sign() {
        let map = |data: &[(&str, &str)]| {
            let mut map = ConfigMap::default();
            map.metadata.name = Some(INFO.to_owned());
            map.metadata.namespace = Some(INFO_NAMESPACE.to_owned());
            map.data = Some(data.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect());
            Arc::new(map)
        };
        let good = vec![token("abcdef", &[("usage-bootstrap-signing", "true")])];
        let jws = sign_detached(b"x", "abcdef", "0123456789abcdef").unwrap();
        let signed = [("kubeconfig", "x"), ("jws-kubeconfig-abcdef", jws.as_str())];
        let plan = |data: &[(&str, &str)], tokens: &[Arc<Secret>]| {
            format!("{:?}", BootstrapSigner::reconcile(&(map(data), tokens.to_vec()), now()))
        };
        let nothing = format!("{:?}", Plan::new());
        assert_eq!(plan(&signed, &good), nothing);
        assert_eq!(plan(&[], &good), nothing);
        assert!(plan(&[("kubeconfig", "x")], &good).contains(&jws));
        assert!(plan(&[("kubeconfig", "y"), signed[1]], &good).contains("jws-kubeconfig-abcdef"));
        let gone = plan(&signed, &[]);
        assert!(gone.contains("jws-kubeconfig-abcdef") && gone.contains("Null"), "{gone}");
    }
}
