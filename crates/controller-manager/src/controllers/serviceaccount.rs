//! Every namespace has a ServiceAccount `default`, and a ConfigMap with the cluster's authority.

use std::sync::{Arc, OnceLock};

use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use serde_json::json;

/// Name of the account.
const DEFAULT: &str = "default";
/// Name of the ConfigMap.
const ROOT_CA: &str = "kube-root-ca.crt";

fn live(cache: &Cache, key: &Key) -> Option<Arc<Namespace>> {
    cache.at::<Namespace>(key).filter(|ns| ns.metadata.deletion_timestamp.is_none())
}

/// Makes the account.
#[derive(Debug)]
pub struct ServiceAccounts;

impl Controller for ServiceAccounts {
    const NAME: &'static str = "serviceaccount";
    type Seen = Key;
    const WAKES: &'static [Wake] = &[
        Wake::own("Namespace"),
        Wake::keys("ServiceAccount", |_, changed| {
            vec![Key::new("", changed.key.namespace.clone())]
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Key> {
        live(cache, key)?;
        let there = cache.get::<ServiceAccount>(&key.name, DEFAULT).is_some();
        (!there).then(|| key.clone())
    }

    fn reconcile(seen: &Key, _: Timestamp) -> Plan {
        let mut account = ServiceAccount::default();
        account.metadata.name = Some(DEFAULT.into());
        account.metadata.namespace = Some(seen.name.clone());
        Plan::new().push(Action::create(&account))
    }
}

/// The authority's certificate, given once when the controllers start: the trait's functions see only the cache.
static CERTIFICATE: OnceLock<String> = OnceLock::new();

/// Says which certificate [`RootCas`] publishes.
pub fn publish(certificate: &str) {
    // A second call in one process is the restart of a daemon inside `up`, with the same certificate.
    let _ = CERTIFICATE.set(certificate.to_owned());
}

/// Makes and mends the ConfigMap.
#[derive(Debug)]
pub struct RootCas;

impl Controller for RootCas {
    const NAME: &'static str = "root-ca-certificate-publisher";
    type Seen = (Key, Option<Arc<ConfigMap>>);
    const WAKES: &'static [Wake] = &[
        Wake::own("Namespace"),
        Wake::keys("ConfigMap", |_, changed| {
            if changed.key.name == ROOT_CA {
                vec![Key::new("", changed.key.namespace.clone())]
            } else {
                Vec::new()
            }
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Self::Seen> {
        live(cache, key)?;
        Some((key.clone(), cache.get::<ConfigMap>(&key.name, ROOT_CA)))
    }

    fn reconcile((key, present): &Self::Seen, _: Timestamp) -> Plan {
        let Some(certificate) = CERTIFICATE.get() else { return Plan::new() };
        let data = json!({"ca.crt": certificate});
        match present {
            Some(map) if json!(map.data) == data => Plan::new(),
            Some(map) => Plan::new().push(Action::merge(&**map, json!({ "data": data }))),
            None => {
                let mut map = ConfigMap::default();
                map.metadata.name = Some(ROOT_CA.into());
                map.metadata.namespace = Some(key.name.clone());
                map.data = Some([("ca.crt".to_owned(), certificate.clone())].into());
                Plan::new().push(Action::create(&map))
            }
        }
    }
}
