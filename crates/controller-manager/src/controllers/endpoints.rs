//! EndpointSlices and Endpoints: which pods are behind a Service, and at which ports.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::act::controlled_by;
use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as OldPort, EndpointSubset, Endpoints, Pod, Service, ServicePort,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use crate::pods::{is_ended, is_ready};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// A Service without selector whose endpoints somebody else writes.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Endpoints of one slice.
const SLICE_ENDPOINTS_MAX: usize = 100;
/// Addresses of one Endpoints object.
const ENDPOINTS_MAX: usize = 1000;

/// A Service, the pods it selects, and what has been written about them.
#[derive(Debug)]
pub struct Seen {
    service: Arc<Service>,
    pods: Vec<Arc<Pod>>,
    slices: Vec<Arc<EndpointSlice>>,
    endpoints: Option<Arc<Endpoints>>,
}

/// A pod wakes the Services that select it, before and after its change.
fn services_of(cache: &Cache, changed: &client::cache::Changed<'_>) -> Vec<Key> {
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

fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
    let service = cache.at::<Service>(key)?;
    let selector = service.spec.as_ref()?.selector.clone().filter(|s| !s.is_empty())?;
    let mut pods = cache.find::<Pod>("namespace", &key.namespace);
    pods.retain(|pod| {
        let labels = pod.metadata.labels.as_ref();
        selector.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
    });
    let mut slices =
        cache.find::<EndpointSlice>("service", &format!("{}/{}", key.namespace, key.name));
    slices.retain(|slice| {
        slice.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == MANAGER)
    });
    slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    Some(Seen { service, pods, slices, endpoints: cache.at::<Endpoints>(key) })
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
type Ports = Vec<(String, String, i32, Option<String>)>;

fn ports_of(service: &Service, pod: &Pod) -> Ports {
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

fn address(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|ip| !ip.is_empty())
}

/// Whether traffic goes to pods that are not ready as well.
fn publishes_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true)
}

fn endpoint(service: &Service, pod: &Pod) -> Endpoint {
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = publishes_unready(service) || is_ready(pod);
    let mut endpoint = Endpoint {
        addresses: vec![address(pod).unwrap_or_default().to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publishes_unready(service) || serving && !terminating),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        target_ref: Some(reference(pod)),
        ..Endpoint::default()
    };
    let name = service.metadata.name.as_deref();
    if let Some(spec) = &pod.spec
        && spec.subdomain.as_deref() == name
    {
        endpoint.hostname.clone_from(&spec.hostname);
    }
    endpoint
}

/// A reference without its version, which would change with every change of the pod.
fn reference(pod: &Pod) -> k8s_openapi::api::core::v1::ObjectReference {
    k8s_openapi::api::core::v1::ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

fn headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// The labels of a Service's slices: its own, and whose they are.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    labels
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
        Wake::keys("EndpointSlice", |_, changed| {
            let slice = changed.any_as::<EndpointSlice>();
            let labels = slice.and_then(|s| s.metadata.labels.as_ref());
            let service = labels.and_then(|l| l.get(SERVICE_NAME));
            service
                .map(|s| Key::new(changed.key.namespace.clone(), s.clone()))
                .into_iter()
                .collect()
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        observe(cache, key)
    }

    fn reconcile(seen: &Seen, _: Timestamp) -> Plan {
        let service = &*seen.service;
        if service.metadata.deletion_timestamp.is_some()
            || service.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some("ExternalName")
        {
            return Plan::new();
        }
        let mut groups: BTreeMap<Ports, Vec<Endpoint>> = BTreeMap::new();
        for pod in seen.pods.iter().filter(|pod| !is_ended(pod) && address(pod).is_some()) {
            let ports = ports_of(service, pod);
            groups.entry(ports).or_default().push(endpoint(service, pod));
        }
        if groups.is_empty() {
            // One slice without endpoints says that there are none.
            groups.insert(Ports::new(), Vec::new());
        }
        let mut left: Vec<&Arc<EndpointSlice>> = seen.slices.iter().collect();
        let mut plan = Plan::new();
        for (ports, mut endpoints) in groups {
            endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
            let mut chunks: Vec<&[Endpoint]> = endpoints.chunks(SLICE_ENDPOINTS_MAX).collect();
            if chunks.is_empty() {
                chunks.push(&[]);
            }
            for chunk in chunks {
                let wanted = slice(service, &ports, chunk);
                // A slice of the same ports is changed; else any that is left over.
                let same = left.iter().position(|s| s.ports == wanted.ports);
                match same.or(if left.is_empty() { None } else { Some(0) }) {
                    Some(index) => plan = plan.maybe(changed(left.remove(index), &wanted)),
                    None => plan = plan.push(Action::create(&wanted)),
                }
            }
        }
        plan.each(left, |slice| Action::delete(&**slice))
    }
}

fn slice(service: &Service, ports: &Ports, endpoints: &[Endpoint]) -> EndpointSlice {
    let mut slice = EndpointSlice::default();
    let name = service.metadata.name.as_deref().unwrap_or_default();
    slice.metadata.generate_name = Some(format!("{name}-"));
    slice.metadata.namespace.clone_from(&service.metadata.namespace);
    slice.metadata.labels = Some(labels(service));
    slice.metadata.owner_references = Some(vec![controlled_by(service)]);
    slice.address_type = "IPv4".into();
    slice.endpoints = Some(endpoints.to_vec());
    let ports = ports.iter().map(|(name, protocol, port, app_protocol)| EndpointPort {
        name: Some(name.clone()),
        protocol: Some(protocol.clone()),
        port: Some(*port),
        app_protocol: app_protocol.clone(),
    });
    let ports: Vec<EndpointPort> = ports.collect();
    slice.ports = Some(ports).filter(|p| !p.is_empty());
    slice
}

fn endpoints(slice: &EndpointSlice) -> Vec<Endpoint> {
    slice.endpoints.clone().unwrap_or_default()
}

/// The patch that makes `old` what is wanted, if it is not.
fn changed(old: &Arc<EndpointSlice>, wanted: &EndpointSlice) -> Option<Action> {
    let same = old.endpoints.clone().unwrap_or_default() == endpoints(wanted)
        && old.ports.clone().unwrap_or_default() == wanted.ports.clone().unwrap_or_default()
        && old.metadata.labels == wanted.metadata.labels;
    if same {
        return None;
    }
    let change = json!({
        "metadata": {"labels": wanted.metadata.labels},
        "endpoints": wanted.endpoints,
        "ports": wanted.ports,
    });
    Some(Action::merge(&**old, change))
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
        observe(cache, key)
    }

    fn reconcile(seen: &Seen, _: Timestamp) -> Plan {
        let service = &*seen.service;
        if service.metadata.deletion_timestamp.is_some() {
            return Plan::new();
        }
        let subsets = subsets(seen);
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.insert("endpoints.kubernetes.io/managed-by".into(), "endpoint-controller".into());
        if headless(service) {
            labels.insert(HEADLESS.into(), String::new());
        }
        match &seen.endpoints {
            Some(old) => {
                let same = old.subsets.clone().unwrap_or_default() == subsets
                    && old.metadata.labels.as_ref() == Some(&labels);
                if same {
                    return Plan::new();
                }
                let change = json!({"metadata": {"labels": labels}, "subsets": subsets});
                Plan::new().push(Action::merge(&**old, change))
            }
            None => {
                let mut endpoints = Endpoints::default();
                endpoints.metadata.name.clone_from(&service.metadata.name);
                endpoints.metadata.namespace.clone_from(&service.metadata.namespace);
                endpoints.metadata.labels = Some(labels);
                endpoints.subsets = Some(subsets);
                Plan::new().push(Action::create(&endpoints))
            }
        }
    }
}

fn subsets(seen: &Seen) -> Vec<EndpointSubset> {
    let service = &*seen.service;
    let mut groups: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let mut pods: Vec<&Arc<Pod>> = seen
        .pods
        .iter()
        .filter(|pod| !is_ended(pod) && address(pod).is_some())
        .filter(|pod| publishes_unready(service) || pod.metadata.deletion_timestamp.is_none())
        .collect();
    pods.sort_by_key(|pod| address(pod).map(str::to_owned));
    for pod in pods.into_iter().take(ENDPOINTS_MAX) {
        let entry = EndpointAddress {
            ip: address(pod).unwrap_or_default().to_owned(),
            node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
            target_ref: Some(reference(pod)),
            ..Default::default()
        };
        let (ready, unready) = groups.entry(ports_of(service, pod)).or_default();
        if publishes_unready(service) || is_ready(pod) { ready } else { unready }.push(entry);
    }
    let some = |list: Vec<EndpointAddress>| Some(list).filter(|l| !l.is_empty());
    groups
        .into_iter()
        .map(|(ports, (ready, unready))| EndpointSubset {
            addresses: some(ready),
            not_ready_addresses: some(unready),
            ports: Some(
                ports
                    .into_iter()
                    .map(|(name, protocol, port, app_protocol)| OldPort {
                        name: Some(name).filter(|n| !n.is_empty()),
                        protocol: Some(protocol),
                        port,
                        app_protocol,
                    })
                    .collect::<Vec<_>>(),
            )
            .filter(|p: &Vec<OldPort>| !p.is_empty()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pods: serde_json::Value, slices: Vec<EndpointSlice>) -> Seen {
        Seen {
            service: Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": "web", "namespace": "ns", "uid": "s"},
                    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}
                }))
                .unwrap(),
            ),
            pods: serde_json::from_value(pods).unwrap(),
            slices: slices.into_iter().map(Arc::new).collect(),
            endpoints: None,
        }
    }

    fn pod(name: &str, ip: &str, ready: &str) -> serde_json::Value {
        json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}
        })
    }

    fn created(plan: &Plan) -> EndpointSlice {
        match &plan.actions[0].op {
            client::act::Op::Create { body, .. } => serde_json::from_value(body.clone()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ready_pods_are_ready_endpoints_at_their_own_ports() {
        let pods = json!([pod("b", "10.0.0.2", "False"), pod("a", "10.0.0.1", "True")]);
        let slice = created(&EndpointSlices::reconcile(&seen(pods, vec![]), Timestamp::UNIX_EPOCH));
        let ready: Vec<Option<bool>> =
            endpoints(&slice).iter().map(|e| e.conditions.as_ref().and_then(|c| c.ready)).collect();
        assert_eq!(ready, [Some(true), Some(false)]);
        assert_eq!(slice.ports.unwrap()[0].port, Some(8080));
    }

    #[test]
    fn a_slice_that_says_it_all_is_left_alone() {
        let pods = json!([pod("a", "10.0.0.1", "True")]);
        let slice =
            created(&EndpointSlices::reconcile(&seen(pods.clone(), vec![]), Timestamp::UNIX_EPOCH));
        let plan = EndpointSlices::reconcile(&seen(pods, vec![slice]), Timestamp::UNIX_EPOCH);
        assert!(plan.is_empty(), "{plan:?}");
    }

    #[test]
    fn the_last_pod_gone_leaves_an_empty_slice() {
        let pods = json!([pod("a", "10.0.0.1", "True")]);
        let slice = created(&EndpointSlices::reconcile(&seen(pods, vec![]), Timestamp::UNIX_EPOCH));
        let plan = EndpointSlices::reconcile(&seen(json!([]), vec![slice]), Timestamp::UNIX_EPOCH);
        assert_eq!(plan.actions.len(), 1);
        assert!(plan.actions[0].to_string().starts_with("patch"));
    }
}
