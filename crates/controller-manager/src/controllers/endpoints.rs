//! Endpoints, the older form: all addresses behind a Service in one object. What a pod has to do with a Service is here for
//! [`super::endpointslice`] as well.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::cache::Changed;
use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
    ServicePort,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use crate::pods::{is_ended, is_ready};

/// The label of what is behind a Service without an address of its own.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// Says that there are more addresses than are listed.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses of one Endpoints object.
const ENDPOINTS_MAX: usize = 1000;

/// A Service, the pods it selects, and what has been written about them.
#[derive(Debug)]
pub struct Seen {
    service: Arc<Service>,
    pods: Vec<Arc<Pod>>,
    endpoints: Option<Arc<Endpoints>>,
}

/// A pod wakes the Services that select it, before and after its change.
pub(super) fn services_of(cache: &Cache, changed: &Changed<'_>) -> Vec<Key> {
    let services = cache.find::<Service>("namespace", &changed.key.namespace);
    let of = |pod: Option<&Pod>| -> Vec<Key> {
        let Some(labels) = pod.and_then(|p| p.metadata.labels.as_ref()) else { return Vec::new() };
        let selected = services.iter().filter(|service| {
            let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
            selector
                .is_some_and(|s| !s.is_empty() && s.iter().all(|(k, v)| labels.get(k) == Some(v)))
        });
        selected.map(|service| Key::of(&service.metadata)).collect()
    };
    let mut keys = of(changed.old_as::<Pod>());
    keys.extend(of(changed.new_as::<Pod>()));
    keys.sort();
    keys.dedup();
    keys
}

/// The pods that a Service selects; none when it selects none by itself.
pub(super) fn selected(cache: &Cache, service: &Service) -> Option<Vec<Arc<Pod>>> {
    let selector = service.spec.as_ref()?.selector.clone().filter(|s| !s.is_empty())?;
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let mut pods = cache.find::<Pod>("namespace", namespace);
    pods.retain(|pod| {
        let labels = pod.metadata.labels.as_ref();
        selector.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
    });
    Some(pods)
}

/// The pod's address of a family, `IPv4` or `IPv6`.
pub(super) fn address<'a>(pod: &'a Pod, family: &str) -> Option<&'a str> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut all = all.chain(status.pod_ip.as_deref()).filter(|ip| !ip.is_empty());
    all.find(|ip| family_of(ip) == family)
}

/// The family of an address.
pub(super) fn family_of(address: &str) -> &'static str {
    if address.contains(':') { "IPv6" } else { "IPv4" }
}

/// The families of a Service's addresses, the first first.
pub(super) fn families(service: &Service) -> Vec<String> {
    let spec = service.spec.as_ref();
    let said = spec.and_then(|s| s.ip_families.clone()).filter(|f| !f.is_empty());
    let by_address = || {
        let ip = spec.and_then(|s| s.cluster_ip.as_deref()).unwrap_or_default();
        vec![family_of(ip).to_owned()]
    };
    said.unwrap_or_else(by_address)
}

/// Whether traffic goes to pods that are not ready as well.
pub(super) fn publishes_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true)
}

/// The name that a pod has below its Service's.
pub(super) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let below = spec.subdomain.as_ref() == service.metadata.name.as_ref();
    spec.hostname.clone().filter(|name| below && !name.is_empty())
}

/// A reference without its version, which would change with every change of the pod.
pub(super) fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

pub(super) fn headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// The port number a Service's port has in this pod.
fn target(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let ports =
                spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            ports
                .filter(|p| p.protocol.as_deref().unwrap_or("TCP") == protocol)
                .find(|p| p.name.as_deref() == Some(name))
                .map(|p| p.container_port)
        }
    }
}

/// Ports as a pod has them, in a form that can be compared and sorted.
pub(super) type Ports = Vec<(String, String, i32, Option<String>)>;

pub(super) fn ports_of(service: &Service, pod: &Pod) -> Ports {
    let spec = service.spec.as_ref();
    let ports = spec.and_then(|s| s.ports.as_deref()).unwrap_or_default();
    ports
        .iter()
        .filter_map(|port| {
            let number = target(pod, port)?;
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            Some((
                port.name.clone().unwrap_or_default(),
                protocol,
                number,
                port.app_protocol.clone(),
            ))
        })
        .collect()
}

/// Writes the older Endpoints objects.
#[derive(Debug)]
pub struct EndpointsObjects;

impl Controller for EndpointsObjects {
    const NAME: &'static str = "endpoints";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[
        Wake::own("Service"),
        Wake::keys("Pod", services_of),
        Wake::keys("Endpoints", |_, changed| vec![changed.key.clone()]),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let service = cache.at::<Service>(key)?;
        let pods = selected(cache, &service)?;
        Some(Seen { service, pods, endpoints: cache.at::<Endpoints>(key) })
    }

    fn reconcile(seen: &Seen, _: Timestamp) -> Plan {
        let service = &*seen.service;
        if service.metadata.deletion_timestamp.is_some() {
            return Plan::new();
        }
        let (subsets, cut) = subsets(seen);
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.insert(MANAGED_BY.into(), "endpoint-controller".into());
        if headless(service) {
            labels.insert(HEADLESS.into(), String::new());
        }
        let Some(old) = &seen.endpoints else {
            let mut endpoints = Endpoints::default();
            endpoints.metadata.name.clone_from(&service.metadata.name);
            endpoints.metadata.namespace.clone_from(&service.metadata.namespace);
            endpoints.metadata.labels = Some(labels);
            endpoints.metadata.annotations =
                cut.then(|| BTreeMap::from([(OVER_CAPACITY.into(), "truncated".into())]));
            endpoints.subsets = Some(subsets);
            return Plan::new().push(Action::create(&endpoints));
        };
        let marked = old.metadata.annotations.as_ref().and_then(|a| a.get(OVER_CAPACITY));
        let same = old.subsets.clone().unwrap_or_default() == subsets
            && old.metadata.labels.as_ref() == Some(&labels)
            && marked.is_some() == cut;
        if same {
            return Plan::new();
        }
        // Labels that the Service has lost go.
        let mut merged = json!(labels);
        for name in old.metadata.labels.iter().flatten().map(|(name, _)| name) {
            if !labels.contains_key(name) {
                merged[name] = Value::Null;
            }
        }
        let mark = if cut { json!("truncated") } else { Value::Null };
        let change = json!({
            "metadata": {"labels": merged, "annotations": {OVER_CAPACITY: mark}},
            "subsets": subsets,
        });
        Plan::new().push(Action::merge(&**old, change))
    }
}

/// The addresses by ports, and whether there were too many.
fn subsets(seen: &Seen) -> (Vec<EndpointSubset>, bool) {
    let service = &*seen.service;
    let families = families(service);
    let family = families.first().map_or("IPv4", String::as_str);
    let address = |pod: &Pod| address(pod, family).map(str::to_owned);
    let mut groups: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let mut pods: Vec<&Arc<Pod>> = seen
        .pods
        .iter()
        .filter(|pod| !is_ended(pod) && address(pod).is_some())
        .filter(|pod| publishes_unready(service) || pod.metadata.deletion_timestamp.is_none())
        .collect();
    pods.sort_by_cached_key(|pod| address(pod));
    let cut = pods.len() > ENDPOINTS_MAX;
    for pod in pods.into_iter().take(ENDPOINTS_MAX) {
        let entry = EndpointAddress {
            ip: address(pod).unwrap_or_default(),
            hostname: hostname(service, pod),
            node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
            target_ref: Some(reference(pod)),
        };
        let (ready, unready) = groups.entry(ports_of(service, pod)).or_default();
        if publishes_unready(service) || is_ready(pod) { ready } else { unready }.push(entry);
    }
    let some = |list: Vec<EndpointAddress>| Some(list).filter(|l| !l.is_empty());
    let subsets = groups
        .into_iter()
        .map(|(ports, (ready, unready))| EndpointSubset {
            addresses: some(ready),
            not_ready_addresses: some(unready),
            ports: Some(
                ports
                    .into_iter()
                    .map(|(name, protocol, port, app_protocol)| EndpointPort {
                        name: Some(name).filter(|n| !n.is_empty()),
                        protocol: Some(protocol),
                        port,
                        app_protocol,
                    })
                    .collect::<Vec<_>>(),
            )
            .filter(|p: &Vec<EndpointPort>| !p.is_empty()),
        })
        .collect();
    (subsets, cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(pods: usize) -> Plan {
        let service = json!({"metadata": {"name": "web", "namespace": "ns"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "None", "ports": [{"port": 80}]}});
        let pod = |nth: usize| {
            json!({"metadata": {"name": format!("p{nth}"), "namespace": "ns"},
                "spec": {"containers": [], "hostname": "h", "subdomain": "web"},
                "status": {"podIP": format!("10.0.{}.{}", nth / 256, nth % 256),
                    "conditions": [{"type": "Ready", "status": if nth == 0 { "False" } else { "True" }}]}})
        };
        let pods: Vec<Value> = (0..pods).map(pod).collect();
        let seen = Seen {
            service: serde_json::from_value(service).unwrap(),
            pods: serde_json::from_value(json!(pods)).unwrap(),
            endpoints: None,
        };
        EndpointsObjects::reconcile(&seen, Timestamp::UNIX_EPOCH)
    }

    fn made(plan: &Plan) -> Endpoints {
        match &plan.actions[0].op {
            client::act::Op::Create { body, .. } => serde_json::from_value(body.clone()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn addresses_are_ready_or_not_and_have_their_names() {
        let subset = made(&plan(2)).subsets.unwrap().remove(0);
        let ips = |list: Option<Vec<EndpointAddress>>| list.unwrap()[0].ip.clone();
        assert_eq!(subset.addresses.as_ref().unwrap()[0].hostname.as_deref(), Some("h"));
        assert_eq!(ips(subset.addresses), "10.0.0.1");
        assert_eq!(ips(subset.not_ready_addresses), "10.0.0.0");
    }

    #[test]
    fn more_than_a_thousand_are_cut_and_said_to_be() {
        let few = made(&plan(1000));
        let many = made(&plan(1001));
        assert_eq!(few.metadata.annotations, None);
        assert_eq!(many.metadata.annotations.unwrap()[OVER_CAPACITY], "truncated");
        assert_eq!(many.subsets.unwrap()[0].addresses.as_ref().unwrap().len(), 999);
    }
}
