//! ServiceCIDRs: says when the API server may give addresses from one, and keeps one that goes for as long as a Service has an
//! address of it that no other covers.
//!
//! Specified by KEP-1880.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use serde_json::json;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const READY: &str = "Ready";
/// API servers give no more addresses from a range that goes; those that have not heard of it yet get this long.
const GRACE: Duration = Duration::from_secs(10);
/// The one that the API server makes of its own range.
const DEFAULT: &str = "kubernetes";

/// What a range's fate depends on.
#[derive(Debug)]
pub struct Seen {
    cidr: Arc<ServiceCIDR>,
    /// Services have addresses of it alone.
    held: bool,
}

/// Keeps the finalizer and the condition `Ready`.
#[derive(Debug)]
pub struct ServiceCidrs;

impl Controller for ServiceCidrs {
    const NAME: &'static str = "service-cidr-controller";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[
        Wake::own("ServiceCIDR"),
        // One that goes may go on when another comes, or when an address is given back.
        Wake::keys("ServiceCIDR", |cache, _| leaving(cache)),
        Wake::keys("IPAddress", |cache, _| leaving(cache)),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let cidr = cache.at::<ServiceCIDR>(key)?;
        if cidr.metadata.deletion_timestamp.is_none() {
            return Some(Seen { cidr, held: false });
        }
        let all = cache.list::<ServiceCIDR>();
        let others: Vec<Range> = all
            .iter()
            .filter(|other| other.metadata.deletion_timestamp.is_none())
            .flat_map(|other| ranges(other))
            .collect();
        let own: Vec<Range> = ranges(&cidr).collect();
        let addresses = cache.list::<IPAddress>();
        let held = addresses
            .iter()
            .filter_map(|address| address.metadata.name.as_deref()?.parse().ok())
            .any(|ip| own.iter().any(|r| r.has(ip)) && !others.iter().any(|r| r.has(ip)));
        Some(Seen { cidr, held })
    }

    fn reconcile(Seen { cidr, held }: &Seen, now: Timestamp) -> Plan {
        let finalizers = cidr.metadata.finalizers.clone().unwrap_or_default();
        let kept = finalizers.iter().any(|f| f == FINALIZER);
        let with = |finalizers: Vec<String>| {
            Action::merge_if_unchanged(&**cidr, json!({"metadata": {"finalizers": finalizers}}))
        };
        let Some(since) = &cidr.metadata.deletion_timestamp else {
            let mut wanted = finalizers;
            wanted.push(FINALIZER.to_owned());
            return Plan::new().maybe((!kept).then(|| with(wanted))).maybe(ready(cidr, now));
        };
        if !kept {
            return Plan::new();
        }
        if *held {
            let why = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new \
                ServiceCIDR";
            return Plan::new().maybe(condition(cidr, "False", "Terminating", why, now));
        }
        let gone = Duration::try_from(now.duration_since(since.0)).unwrap_or_default();
        if gone < GRACE {
            return Plan::new().requeue_after(GRACE - gone);
        }
        Plan::new().push(with(finalizers.into_iter().filter(|f| f != FINALIZER).collect()))
    }
}

fn leaving(cache: &Cache) -> Vec<Key> {
    let all = cache.list::<ServiceCIDR>();
    let leaving = all.iter().filter(|cidr| cidr.metadata.deletion_timestamp.is_some());
    leaving.map(|cidr| Key::of(&cidr.metadata)).collect()
}

fn ready(cidr: &ServiceCIDR, now: Timestamp) -> Option<Action> {
    let default = cidr.metadata.name.as_deref() == Some(DEFAULT);
    let what = if default { "Kubernetes default Service CIDR" } else { "Kubernetes Service CIDR" };
    condition(cidr, "True", "", &format!("{what} is ready"), now)
}

/// Writes the condition, unless it stands so already.
fn condition(
    cidr: &ServiceCIDR,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Option<Action> {
    let all = cidr.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let present = all.iter().find(|c| c.type_ == READY);
    if present.is_some_and(|c| c.status == status) {
        return None;
    }
    let mut conditions: Vec<_> =
        all.iter().filter(|c| c.type_ != READY).map(|c| json!(c)).collect();
    conditions.push(json!({
        "type": READY, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": api::time::format(now),
    }));
    Some(Action::status(cidr, json!({"conditions": conditions})))
}

/// Addresses with a prefix in common, of either family.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    base: IpAddr,
    prefix: u32,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (base, prefix) = text.split_once('/')?;
        Some(Self { base: base.parse().ok()?, prefix: prefix.parse().ok()? })
    }

    fn has(&self, ip: IpAddr) -> bool {
        let (one, other, bits) = match (self.base, ip) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                (u128::from(u32::from(one)), u128::from(u32::from(other)), 32)
            }
            (IpAddr::V6(one), IpAddr::V6(other)) => (u128::from(one), u128::from(other), 128),
            _ => return false,
        };
        let rest = bits - self.prefix.min(bits);
        // A shift by all bits is none in Rust.
        rest == 128 || one >> rest == other >> rest
    }
}

fn ranges(cidr: &ServiceCIDR) -> impl Iterator<Item = Range> {
    let texts = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    texts.filter_map(|text| Range::parse(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(more: serde_json::Value) -> Arc<ServiceCIDR> {
        let mut all = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.1.0.0/24"]}});
        for (key, value) in more.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        Arc::new(serde_json::from_value(all).unwrap())
    }

    fn plan(cidr: &Arc<ServiceCIDR>, held: bool) -> String {
        let now = "2026-11-24T12:00:00Z".parse().unwrap();
        format!("{:?}", ServiceCidrs::reconcile(&Seen { cidr: cidr.clone(), held }, now))
    }

    #[test]
    fn a_new_one_is_kept_and_ready() {
        let new = plan(&cidr(json!({})), false);
        assert!(
            new.contains(FINALIZER) && new.contains("Kubernetes Service CIDR is ready"),
            "{new}"
        );
        let there = cidr(json!({
            "metadata": {"name": "more", "finalizers": [FINALIZER]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "", "message": "",
                "lastTransitionTime": "2026-11-24T11:00:00Z"}]},
        }));
        assert_eq!(plan(&there, false), format!("{:?}", Plan::new()));
    }

    #[test]
    fn one_that_goes_waits_for_its_addresses_and_for_those_who_give_them() {
        let going = |since: &str| {
            cidr(
                json!({"metadata": {"name": "more", "finalizers": [FINALIZER], "deletionTimestamp": since}}),
            )
        };
        assert!(plan(&going("2026-11-24T11:00:00Z"), true).contains("Terminating"));
        let gone = plan(&going("2026-11-24T11:00:00Z"), false);
        assert!(gone.contains("finalizers") && !gone.contains(FINALIZER), "{gone}");
        let soon = plan(&going("2026-11-24T11:59:55Z"), false);
        assert!(soon.contains("5s") && !soon.contains("finalizers"), "{soon}");
    }

    #[test]
    fn ranges_of_both_families_have_their_addresses() {
        for (range, ip, wanted) in [
            ("10.1.0.0/24", "10.1.0.255", true),
            ("10.1.0.0/24", "10.1.1.0", false),
            ("0.0.0.0/0", "10.1.1.0", true),
            ("fd00::/64", "fd00::1", true),
            ("fd00::/64", "fd00:0:0:1::1", false),
            ("::/0", "fd00::1", true),
            ("10.1.0.0/24", "fd00::1", false),
        ] {
            let range = Range::parse(range).unwrap();
            assert_eq!(range.has(ip.parse().unwrap()), wanted, "{range:?} {ip}");
        }
    }
}
