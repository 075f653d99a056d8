//! EndpointSlices: which pods are behind a Service, at which ports, in slices of a hundred.
//!
//! A change touches as few slices as it can ([`settle`]), since each is sent to every node. [`hints`] says which zone or node
//! an endpoint is meant for; [`mirroring`] makes slices of Endpoints that somebody wrote.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::act::controlled_by;
use client::cache::Changed;
use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use serde_json::{Value, json};

use super::endpoints::{
    HEADLESS, Ports, address, families, headless, hostname, ports_of, publishes_unready, reference,
    selected, services_of,
};
use crate::pods::{is_ended, is_ready};

mod hints;
pub mod mirroring;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Endpoints of one slice.
const SLICE_ENDPOINTS_MAX: usize = 100;
const ZONE: &str = "topology.kubernetes.io/zone";

/// A Service, the pods it selects with their nodes, and the slices there are.
#[derive(Debug)]
pub struct Seen {
    service: Arc<Service>,
    pods: Vec<(Arc<Pod>, Option<Arc<Node>>)>,
    slices: Vec<Arc<EndpointSlice>>,
    /// Processors of ready nodes by zone, in thousandths; only where hints are to follow from them.
    zones: BTreeMap<String, i64>,
}

/// The slices of a Service that `manager` keeps.
fn slices_of(cache: &Cache, key: &Key, manager: &str) -> Vec<Arc<EndpointSlice>> {
    let mut slices =
        cache.find::<EndpointSlice>("service", &format!("{}/{}", key.namespace, key.name));
    slices.retain(|slice| {
        slice.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == manager)
    });
    slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    slices
}

/// A slice wakes the Service it is of.
fn service_of(_: &Cache, changed: &Changed<'_>) -> Vec<Key> {
    let slice = changed.any_as::<EndpointSlice>();
    let labels = slice.and_then(|s| s.metadata.labels.as_ref());
    let service = labels.and_then(|l| l.get(SERVICE_NAME));
    service.map(|name| Key::new(changed.key.namespace.clone(), name.clone())).into_iter().collect()
}

/// Writes EndpointSlices.
#[derive(Debug)]
pub struct EndpointSlices;

impl Controller for EndpointSlices {
    const NAME: &'static str = "endpointslice";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[
        Wake::own("Service"),
        Wake::keys("Pod", services_of),
        Wake::keys("EndpointSlice", service_of),
        Wake::keys("Node", hints::services_of),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let service = cache.at::<Service>(key)?;
        let with_node = |pod: Arc<Pod>| {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
            (pod, node.and_then(|name| cache.get::<Node>("", &name)))
        };
        let pods = selected(cache, &service)?.into_iter().map(with_node).collect();
        let zones = hints::zones(cache, &service);
        Some(Seen { pods, slices: slices_of(cache, key, MANAGER), zones, service })
    }

    fn reconcile(seen: &Seen, _: Timestamp) -> Plan {
        let service = &*seen.service;
        if service.metadata.deletion_timestamp.is_some()
            || service.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some("ExternalName")
        {
            return Plan::new();
        }
        let mut groups: BTreeMap<(String, Ports), Vec<Endpoint>> = BTreeMap::new();
        for family in families(service) {
            let mut endpoints = Vec::new();
            for (pod, node) in seen.pods.iter().filter(|(pod, _)| !is_ended(pod)) {
                let Some(ip) = address(pod, &family) else { continue };
                endpoints
                    .push((ports_of(service, pod), endpoint(service, pod, node.as_deref(), ip)));
            }
            hints::give(service, &seen.zones, endpoints.iter_mut().map(|(_, endpoint)| endpoint));
            if endpoints.is_empty() {
                // One slice without endpoints says that there are none.
                groups.insert((family.clone(), Ports::new()), Vec::new());
            }
            for (ports, endpoint) in endpoints {
                groups.entry((family.clone(), ports)).or_default().push(endpoint);
            }
        }
        let wanted = groups.into_iter().map(|((family, ports), endpoints)| Wanted {
            family,
            ports: ports.into_iter().map(port).collect(),
            endpoints,
        });
        settle(&seen.slices, wanted.collect(), &form(service))
    }
}

fn port(
    (name, protocol, port, app_protocol): (String, String, i32, Option<String>),
) -> EndpointPort {
    EndpointPort { name: Some(name), protocol: Some(protocol), port: Some(port), app_protocol }
}

fn endpoint(service: &Service, pod: &Pod, node: Option<&Node>, ip: &str) -> Endpoint {
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = is_ready(pod);
    let labels = node.and_then(|node| node.metadata.labels.as_ref());
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publishes_unready(service) || serving && !terminating),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        zone: labels.and_then(|labels| labels.get(ZONE).cloned()),
        hostname: hostname(service, pod),
        target_ref: Some(reference(pod)),
        ..Endpoint::default()
    }
}

/// What all slices of a Service have in common: its labels, and whose they are.
fn form(service: &Service) -> EndpointSlice {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    let name = service.metadata.name.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    let mut form = EndpointSlice::default();
    form.metadata.generate_name = Some(format!("{name}-"));
    form.metadata.namespace.clone_from(&service.metadata.namespace);
    form.metadata.labels = Some(labels);
    form.metadata.owner_references = Some(vec![controlled_by(service)]);
    form
}

/// The endpoints of one family that have the same ports.
#[derive(Debug)]
struct Wanted {
    family: String,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
}

/// What an endpoint is known by while what is said of it changes.
fn identity(endpoint: &Endpoint) -> (Vec<String>, Option<String>) {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    (endpoint.addresses.clone(), uid)
}

/// Makes `slices` say what is wanted. Endpoints stay in their slices; new ones go to slices that change anyway, then to
/// those with room.
fn settle(slices: &[Arc<EndpointSlice>], wanted: Vec<Wanted>, form: &EndpointSlice) -> Plan {
    let mut left: Vec<&Arc<EndpointSlice>> = slices.iter().collect();
    let mut plan = Plan::new();
    for group in wanted {
        let alike = |slice: &EndpointSlice| {
            let ports = slice.ports.as_deref().unwrap_or_default();
            slice.address_type == group.family
                && ports.len() == group.ports.len()
                && ports.iter().all(|port| group.ports.contains(port))
        };
        let (same, others) = left.into_iter().partition(|slice| alike(slice));
        left = others;
        if group.endpoints.is_empty() {
            // Any slice of the family will do.
            let any = left.iter().position(|slice| slice.address_type == group.family);
            let kept = same.first().copied().or_else(|| any.map(|at| left.remove(at)));
            left.extend(same.into_iter().skip(1));
            let empty = filled(form, &group.family, &[], Vec::new());
            plan = match kept {
                Some(kept) => plan.maybe(changed(kept, &empty)),
                None => plan.push(Action::create(&empty)),
            };
            continue;
        }
        plan = distribute(plan, &same, group, form);
    }
    plan.each(left, |slice| Action::delete(&**slice))
}

fn distribute(
    mut plan: Plan,
    same: &[&Arc<EndpointSlice>],
    group: Wanted,
    form: &EndpointSlice,
) -> Plan {
    let mut new: BTreeMap<_, Endpoint> =
        group.endpoints.into_iter().map(|endpoint| (identity(&endpoint), endpoint)).collect();
    let mut kept: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>, bool)> = Vec::new();
    for slice in same {
        let old = slice.endpoints.as_deref().unwrap_or_default();
        let stay: Vec<Endpoint> = old.iter().filter_map(|e| new.remove(&identity(e))).collect();
        let changes = stay != old;
        kept.push((slice, stay, changes));
    }
    // Those that change anyway come first, the fuller ones before the emptier.
    kept.sort_by_key(|(_, stay, changes)| (!changes, std::cmp::Reverse(stay.len())));
    let mut new: Vec<Endpoint> = new.into_values().collect();
    for (slice, mut endpoints, _) in kept {
        let room = SLICE_ENDPOINTS_MAX.saturating_sub(endpoints.len()).min(new.len());
        endpoints.extend(new.drain(..room));
        plan = if endpoints.is_empty() {
            plan.push(Action::delete(&**slice))
        } else {
            plan.maybe(changed(slice, &filled(form, &group.family, &group.ports, endpoints)))
        };
    }
    plan.each(new.chunks(SLICE_ENDPOINTS_MAX), |chunk| {
        Action::create(&filled(form, &group.family, &group.ports, chunk.to_vec()))
    })
}

fn filled(
    form: &EndpointSlice,
    family: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        address_type: family.to_owned(),
        ports: Some(ports.to_vec()).filter(|p| !p.is_empty()),
        endpoints: Some(endpoints),
        ..form.clone()
    }
}

/// The patch that makes `old` what is wanted, if it is not.
fn changed(old: &Arc<EndpointSlice>, wanted: &EndpointSlice) -> Option<Action> {
    let of = |slice: &EndpointSlice| {
        (
            slice.endpoints.clone().unwrap_or_default(),
            slice.ports.clone().unwrap_or_default(),
            slice.metadata.labels.clone().unwrap_or_default(),
        )
    };
    if of(old) == of(wanted) && old.metadata.annotations == wanted.metadata.annotations {
        return None;
    }
    let replaced = |old: &Option<BTreeMap<String, String>>,
                    new: &Option<BTreeMap<String, String>>| {
        let mut map = json!(new.clone().unwrap_or_default());
        for name in old.iter().flatten().map(|(name, _)| name) {
            if !new.as_ref().is_some_and(|new| new.contains_key(name)) {
                map[name] = Value::Null;
            }
        }
        map
    };
    let change = json!({
        "metadata": {
            "labels": replaced(&old.metadata.labels, &wanted.metadata.labels),
            "annotations": replaced(&old.metadata.annotations, &wanted.metadata.annotations),
        },
        "endpoints": wanted.endpoints,
        "ports": wanted.ports,
    });
    Some(Action::merge(&**old, change))
}

#[cfg(test)]
mod tests;
