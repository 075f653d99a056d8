//! The Service by which a cluster's DNS is known: `kube-dns` in `kube-system`, as tools look for it.
//!
//! Every node answers at the Service's own address, so the one endpoint is that address: a query never leaves its node.

use std::net::SocketAddr;

use client::{Action, Plan};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

pub(crate) const NAMESPACE: &str = "kube-system";
pub(crate) const NAME: &str = "kube-dns";

/// What makes the Service and its endpoint as they should be, for a server that listens at `address`.
pub(crate) fn plan(address: SocketAddr) -> Plan {
    let (ip, port) = (address.ip().to_string(), address.port());
    let labels = json!({"k8s-app": NAME, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"});
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": NAMESPACE, "name": NAME, "labels": labels},
        "spec": {"clusterIP": ip, "ports": [
            {"name": "dns", "protocol": "UDP", "port": port, "targetPort": port},
            {"name": "dns-tcp", "protocol": "TCP", "port": port, "targetPort": port},
        ]},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": NAMESPACE, "name": NAME, "labels": {
            "kubernetes.io/service-name": NAME, "endpointslice.kubernetes.io/managed-by": "ironclad-dns",
        }},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        "ports": [
            {"name": "dns", "protocol": "UDP", "port": port},
            {"name": "dns-tcp", "protocol": "TCP", "port": port},
        ],
    });
    let service: Service = serde_json::from_value(service).expect("a Service as written above");
    let slice: EndpointSlice = serde_json::from_value(slice).expect("a slice as written above");
    Plan::new().push(Action::apply(&service)).push(Action::apply(&slice))
}
