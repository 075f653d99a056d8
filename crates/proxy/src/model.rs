//! What Services ask of a node's packet rules: each address, protocol and port with the pods behind it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// A transport protocol that can be balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// Reads the API's name; an absent one is TCP.
    #[must_use]
    pub fn read(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("TCP" | "") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// The number in the IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Where traffic to a Service arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Front {
    /// At an address of its own: cluster IP, external IP or load balancer.
    Address(Ipv4Addr, Protocol, u16),
    /// At a port of every node.
    NodePort(Protocol, u16),
}

/// Where it goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Address of the pod.
    pub address: Ipv4Addr,
    /// Its port.
    pub port: u16,
}

/// The pods behind a front.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backend {
    /// In order; none means that connections are refused.
    pub targets: Vec<Target>,
    /// A client keeps its pod until it was silent for so many seconds.
    pub affinity_s: Option<u32>,
    /// Whose source address is replaced.
    pub masquerade: Masquerade,
}

/// Whose source address is replaced by the node's, so that answers come back this way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Masquerade {
    /// Pods see who asks.
    #[default]
    Never,
    /// That of all but pods.
    Outsiders,
    /// Everybody's.
    Always,
}

/// All fronts of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    /// By where traffic arrives.
    pub fronts: BTreeMap<Front, Backend>,
}

/// The part of the network this node keeps rules for.
#[derive(Debug, Clone, Copy)]
pub struct PodNetwork {
    /// Base of the cluster's pod range.
    pub base: Ipv4Addr,
    /// Bits of its prefix.
    pub prefix: u8,
}

impl PodNetwork {
    /// The prefix as a mask.
    #[must_use]
    pub fn bits(self) -> [u8; 4] {
        (u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)).to_be_bytes()
    }
}

fn ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

fn serving_while_terminating(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions.and_then(|c| c.terminating) == Some(true)
        && conditions.and_then(|c| c.serving) == Some(true)
}

/// The targets of one Service port: ready pods, or those that still serve while they end (KEP-1669).
fn targets(port: &ServicePort, slices: &[&EndpointSlice], local_to: Option<&str>) -> Vec<Target> {
    let name = port.name.as_deref().unwrap_or_default();
    let wanted = |endpoint: &&Endpoint| {
        local_to.is_none_or(|node| endpoint.node_name.as_deref() == Some(node))
    };
    let collect = |pass: fn(&Endpoint) -> bool| -> BTreeSet<Target> {
        let mut found = BTreeSet::new();
        for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
            let ports = slice.ports.iter().flatten();
            let number = ports
                .filter(|p| p.name.as_deref().unwrap_or_default() == name)
                .find_map(|p| u16::try_from(p.port?).ok());
            let Some(number) = number else { continue };
            let endpoints = slice.endpoints.iter().flatten().filter(wanted);
            for endpoint in endpoints.filter(|e| pass(e)) {
                let address = endpoint.addresses.first().and_then(|a| a.parse().ok());
                found.extend(address.map(|address| Target { address, port: number }));
            }
        }
        found
    };
    let mut found = collect(ready);
    if found.is_empty() {
        found = collect(serving_while_terminating);
    }
    found.into_iter().collect()
}

/// How long a client keeps its pod; three hours where the Service does not say.
fn affinity_timeout_s(spec: &ServiceSpec) -> u32 {
    const DEFAULT_S: u32 = 3 * 60 * 60;
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    let seconds = config.and_then(|c| c.timeout_seconds);
    seconds.and_then(|s| u32::try_from(s).ok()).filter(|s| *s > 0).unwrap_or(DEFAULT_S)
}

impl Model {
    /// What `services` and their `slices` ask of the node called `node`.
    #[must_use]
    pub fn new(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>], node: &str) -> Self {
        let mut by_service: BTreeMap<(String, String), Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in slices {
            let labels = slice.metadata.labels.as_ref();
            if let Some(name) = labels.and_then(|l| l.get("kubernetes.io/service-name")) {
                let namespace = slice.metadata.namespace.clone().unwrap_or_default();
                by_service.entry((namespace, name.clone())).or_default().push(slice);
            }
        }
        let mut model = Self::default();
        for service in services {
            let key = (
                service.metadata.namespace.clone().unwrap_or_default(),
                service.metadata.name.clone().unwrap_or_default(),
            );
            let slices = by_service.get(&key).map(Vec::as_slice).unwrap_or_default();
            model.add(service, slices, node);
        }
        model
    }

    fn add(&mut self, service: &Service, slices: &[&EndpointSlice], node: &str) {
        let Some(spec) = &service.spec else { return };
        let cluster_ip = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok());
        let Some(cluster_ip) = cluster_ip.filter(|_| spec.type_.as_deref() != Some("ExternalName"))
        else {
            return;
        };
        let inside = (spec.internal_traffic_policy.as_deref() == Some("Local")).then_some(node);
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        let outside = local.then_some(node);
        let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
        let affinity_s = sticky.then(|| affinity_timeout_s(spec));
        let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        let balancers = status.iter().flat_map(|l| l.ingress.iter().flatten());
        let balancers = balancers.filter_map(|i| i.ip.as_deref()?.parse::<Ipv4Addr>().ok());
        let external = spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok());
        let external: Vec<Ipv4Addr> = external.chain(balancers).collect();
        for port in spec.ports.iter().flatten() {
            let Some(protocol) = Protocol::read(port.protocol.as_deref()) else { continue };
            let Ok(number) = u16::try_from(port.port) else { continue };
            let backend = |local_to: Option<&str>, masquerade: Masquerade| Backend {
                targets: targets(port, slices, local_to),
                affinity_s,
                masquerade,
            };
            let from_outside = if local { Masquerade::Never } else { Masquerade::Always };
            let front = Front::Address(cluster_ip, protocol, number);
            self.fronts.insert(front, backend(inside, Masquerade::Outsiders));
            for address in &external {
                let front = Front::Address(*address, protocol, number);
                self.fronts.insert(front, backend(outside, from_outside));
            }
            let node_port = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
            if let Some(number) = node_port {
                self.fronts
                    .insert(Front::NodePort(protocol, number), backend(outside, from_outside));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn model(endpoints: serde_json::Value, more: serde_json::Value) -> Model {
        let mut service = json!({
            "metadata": {"name": "web", "namespace": "ns"},
            "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30080}]}
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            service["spec"][key] = value.clone();
        }
        let slice = json!({
            "metadata": {"name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080}],
            "endpoints": endpoints
        });
        Model::new(
            &[Arc::new(serde_json::from_value(service).unwrap())],
            &[Arc::new(serde_json::from_value(slice).unwrap())],
            "n1",
        )
    }

    fn addresses(model: &Model, front: Front) -> Vec<String> {
        model.fronts[&front].targets.iter().map(|t| t.address.to_string()).collect()
    }

    const CLUSTER: Front = Front::Address(Ipv4Addr::new(10, 96, 0, 9), Protocol::Tcp, 80);

    #[test]
    fn only_ready_pods_are_behind_a_service() {
        let model = model(
            json!([
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}
            ]),
            json!({}),
        );
        assert_eq!(addresses(&model, CLUSTER), ["10.0.0.1"]);
        assert_eq!(addresses(&model, Front::NodePort(Protocol::Tcp, 30080)), ["10.0.0.1"]);
    }

    #[test]
    fn when_all_are_ending_those_that_still_serve_are_used() {
        let model = model(
            json!([{"addresses": ["10.0.0.1"],
                    "conditions": {"ready": false, "serving": true, "terminating": true}}]),
            json!({}),
        );
        assert_eq!(addresses(&model, CLUSTER), ["10.0.0.1"]);
    }

    #[test]
    fn local_traffic_stays_on_the_node() {
        let model = model(
            json!([
                {"addresses": ["10.0.0.1"], "nodeName": "n1"},
                {"addresses": ["10.0.0.2"], "nodeName": "n2"}
            ]),
            json!({"externalTrafficPolicy": "Local"}),
        );
        assert_eq!(addresses(&model, CLUSTER).len(), 2);
        let front = Front::NodePort(Protocol::Tcp, 30080);
        assert_eq!(addresses(&model, front), ["10.0.0.1"]);
        assert_eq!(model.fronts[&front].masquerade, Masquerade::Never);
    }
}
