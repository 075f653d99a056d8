//! Hints: which zone or node an endpoint is meant for.
//!
//! `spec.trafficDistribution` gives each endpoint the hint of its own zone or node. The older annotation
//! `service.kubernetes.io/topology-mode: Auto` deals endpoints out to zones by their share of processors, and gives no hints
//! where that would overload a zone (KEP-2433, KEP-4444).

use std::collections::BTreeMap;

use api::quantity::Quantity;
use client::cache::Changed;
use client::{Cache, Key};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForNode, ForZone};

use super::ZONE;
use crate::controllers::nodes::ready_status;

const MODES: [&str; 2] =
    ["service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"];
const CONTROL_PLANE: [&str; 2] =
    ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
/// How much more than its share an endpoint may get, in hundredths.
const OVERLOAD_PERCENT: i64 = 20;

/// Where a Service's endpoints are meant to be used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nowhere,
    OwnZone,
    OwnNode,
    Shares,
}

fn mode(service: &Service) -> Mode {
    let annotations = service.metadata.annotations.as_ref();
    let asked = MODES.iter().find_map(|name| annotations.and_then(|a| a.get(*name)));
    if asked.is_some_and(|mode| ["Auto", "auto"].contains(&mode.as_str())) {
        return Mode::Shares;
    }
    match service.spec.as_ref().and_then(|s| s.traffic_distribution.as_deref()) {
        Some("PreferClose" | "PreferSameZone") => Mode::OwnZone,
        Some("PreferSameNode") => Mode::OwnNode,
        _ => Mode::Nowhere,
    }
}

fn zone_of(node: &Node) -> Option<&String> {
    node.metadata.labels.as_ref()?.get(ZONE)
}

/// What of a node counts for shares.
fn weight(node: &Node) -> Option<(&String, i64)> {
    let labels = node.metadata.labels.as_ref()?;
    let zone = labels.get(ZONE)?;
    let manages = CONTROL_PLANE.iter().any(|label| labels.contains_key(*label));
    if manages || ready_status(node) != "True" {
        return None;
    }
    let cpu = node.status.as_ref()?.allocatable.as_ref()?.get("cpu")?;
    Some((zone, Quantity::parse(&cpu.0).ok()?.milli_value()))
}

/// Processors of ready nodes by zone, for Services whose hints follow from them; else nothing.
pub(super) fn zones(cache: &Cache, service: &Service) -> BTreeMap<String, i64> {
    let mut zones = BTreeMap::new();
    if mode(service) == Mode::Shares {
        for node in cache.list::<Node>() {
            if let Some((zone, cpu)) = weight(&node) {
                *zones.entry(zone.clone()).or_default() += cpu;
            }
        }
    }
    zones
}

/// A node whose weight or zone changes wakes the Services to which that matters.
pub(super) fn services_of(cache: &Cache, changed: &Changed<'_>) -> Vec<Key> {
    let (old, new) = (changed.old_as::<Node>(), changed.new_as::<Node>());
    let moved = old.and_then(zone_of) != new.and_then(zone_of);
    let weighs = old.and_then(weight) != new.and_then(weight);
    if !moved && !weighs {
        return Vec::new();
    }
    let services = cache.list::<Service>();
    let woken = services.iter().filter(|service| moved || mode(service) == Mode::Shares);
    woken.map(|service| Key::of(&service.metadata)).collect()
}

/// Gives hints to the endpoints of a Service that are of one family.
pub(super) fn give<'a>(
    service: &Service,
    zones: &BTreeMap<String, i64>,
    endpoints: impl Iterator<Item = &'a mut Endpoint>,
) {
    let ready = |e: &Endpoint| e.conditions.as_ref().and_then(|c| c.ready) == Some(true);
    let mut ready: Vec<&mut Endpoint> = endpoints.filter(|e| ready(e)).collect();
    match mode(service) {
        Mode::Nowhere => {}
        Mode::OwnZone => ready.iter_mut().for_each(|e| e.hints = own_zone(e)),
        Mode::OwnNode => {
            for endpoint in ready {
                let Some(name) = endpoint.node_name.clone() else { continue };
                let mut hints = own_zone(endpoint).unwrap_or_default();
                hints.for_nodes = Some(vec![ForNode { name }]);
                endpoint.hints = Some(hints);
            }
        }
        Mode::Shares => {
            let homes: Vec<Option<String>> = ready.iter().map(|e| e.zone.clone()).collect();
            for (endpoint, zone) in ready.iter_mut().zip(deal(zones, &homes).unwrap_or_default()) {
                endpoint.hints = Some(for_zone(zone));
            }
        }
    }
}

fn own_zone(endpoint: &Endpoint) -> Option<EndpointHints> {
    endpoint.zone.clone().map(for_zone)
}

fn for_zone(zone: String) -> EndpointHints {
    EndpointHints { for_zones: Some(vec![ForZone { name: zone }]), ..EndpointHints::default() }
}

/// Deals endpoints, each with the zone it is in, out to zones by their share of processors; none where that cannot be
/// done without overloading one.
fn deal(zones: &BTreeMap<String, i64>, homes: &[Option<String>]) -> Option<Vec<String>> {
    let total: i64 = zones.values().sum();
    let count = homes.len() as i64;
    if zones.len() < 2 || total == 0 || count < zones.len() as i64 {
        return None;
    }
    // What each zone is due at the least: so many endpoints that none gets more than its share and a bit.
    let mut due: BTreeMap<&String, i64> = BTreeMap::new();
    for (zone, cpu) in zones {
        let exact = cpu * count * 100;
        let per_endpoint = total * (100 + OVERLOAD_PERCENT);
        due.insert(zone, ((exact + per_endpoint - 1) / per_endpoint).max(1));
    }
    if due.values().sum::<i64>() > count {
        return None;
    }
    let mut dealt: Vec<Option<&String>> = vec![None; homes.len()];
    // First at home, then from where there are more than needed.
    for (at, home) in homes.iter().enumerate() {
        let home = home.as_ref().and_then(|home| due.get_key_value(home)).map(|(zone, _)| *zone);
        if let Some(left) = home.and_then(|home| due.get_mut(home)).filter(|left| **left > 0) {
            *left -= 1;
            dealt[at] = home;
        }
    }
    for away in dealt.iter_mut().filter(|zone| zone.is_none()) {
        if let Some((zone, left)) = due.iter_mut().find(|(_, left)| **left > 0) {
            *left -= 1;
            *away = Some(zone);
        }
    }
    // Whoever is left over stays at home, or goes to the first zone.
    let first = zones.keys().next()?;
    let rest = homes.iter().map(|home| home.as_ref().filter(|h| zones.contains_key(*h)));
    Some(
        dealt
            .into_iter()
            .zip(rest)
            .map(|(zone, home)| zone.or(home).unwrap_or(first).clone())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dealt(zones: &[(&str, i64)], homes: &[&str]) -> Option<Vec<String>> {
        let zones = zones.iter().map(|(zone, cpu)| ((*zone).to_owned(), *cpu)).collect();
        let homes: Vec<Option<String>> =
            homes.iter().map(|home| Some((*home).to_owned())).collect();
        deal(&zones, &homes)
    }

    #[test]
    fn endpoints_stay_in_their_zones_as_far_as_shares_allow() {
        let even = [("a", 1000), ("b", 1000)];
        assert_eq!(dealt(&even, &["a", "b"]).unwrap(), ["a", "b"]);
        assert_eq!(dealt(&even, &["a", "a", "a", "b"]).unwrap(), ["a", "a", "b", "b"]);
        assert_eq!(dealt(&even, &["a", "a", "a", "a"]).unwrap(), ["a", "a", "b", "b"]);
        assert_eq!(
            dealt(&[("a", 3000), ("b", 1000)], &["a", "a", "a", "b"]).unwrap(),
            ["a", "a", "a", "b"]
        );
    }

    #[test]
    fn too_few_endpoints_get_no_hints() {
        assert_eq!(dealt(&[("a", 1000), ("b", 1000)], &["a"]), None);
        assert_eq!(dealt(&[("a", 1000)], &["a", "a"]), None);
        assert_eq!(dealt(&[("a", 1000), ("b", 1000), ("c", 4000)], &["a", "b", "c"]), None);
    }
}
