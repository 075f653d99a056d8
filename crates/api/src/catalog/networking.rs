//! Rows of networking, discovery, certificates and API registration.

use super::{Generation, NameRule, RW, Row};
use crate::columns;
use crate::defaults::kinds;
use crate::rules;
use crate::strategy::kinds as strategy;

pub(super) const REGISTRATION: &[Row] = &[Row::cluster(
    "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1",
    ("apiregistration.k8s.io", "v1"),
    "APIService",
    "apiservices",
    "apiservice",
)
.categories(&["api-extensions"])
.sub(&[("status", "APIService", RW)])
.status()
.prefix("apiregistration.k8s.io/apiservices")
.columns("Name, Service, Available, Age", columns::groups::api_service)
.update_needs_version()
.defaults(kinds::api_service)];

pub(super) const CERTIFICATES: &[Row] = &[Row::cluster(
    "io.k8s.api.certificates.v1",
    ("certificates.k8s.io", "v1"),
    "CertificateSigningRequest",
    "certificatesigningrequests",
    "certificatesigningrequest",
)
.short(&["csr"])
.sub(&[("approval", "CertificateSigningRequest", RW), ("status", "CertificateSigningRequest", RW)])
.status()
.selectable(&[("spec.signerName", "")])
.columns(
    "Name, Age, SignerName, Requestor, RequestedDuration, Condition",
    columns::groups::signing_request,
)
.rules(rules::certificates::signing_request)
.status_rules(rules::certificates::signing_status)
.on_update(strategy::signing_request_update)];

pub(super) const ROWS: &[Row] = &[
    Row::cluster(
        "io.k8s.api.networking.v1",
        ("networking.k8s.io", "v1"),
        "IngressClass",
        "ingressclasses",
        "ingressclass",
    )
    .generation(Generation::Spec)
    .columns("Name, Controller, Parameters, Age", columns::groups::ingress_class)
    .rules(rules::ingress::ingress_class)
    .defaults(kinds::ingress_class),
    Row::namespaced(
        "io.k8s.api.networking.v1",
        ("networking.k8s.io", "v1"),
        "Ingress",
        "ingresses",
        "ingress",
    )
    .short(&["ing"])
    .sub(&[("status", "Ingress", RW)])
    .status()
    .prefix("ingress")
    .generation(Generation::Spec)
    .columns("Name, Class, Hosts, Address, Ports, Age", columns::groups::ingress)
    .rules(rules::ingress::ingress)
    .status_rules(rules::ingress::status),
    Row::cluster(
        "io.k8s.api.networking.v1",
        ("networking.k8s.io", "v1"),
        "IPAddress",
        "ipaddresses",
        "ipaddress",
    )
    .short(&["ip"])
    .names(NameRule::Ip)
    .columns("Name, ParentRef", columns::groups::ip_address)
    .rules(rules::groups::ip_address),
    Row::namespaced(
        "io.k8s.api.networking.v1",
        ("networking.k8s.io", "v1"),
        "NetworkPolicy",
        "networkpolicies",
        "networkpolicy",
    )
    .short(&["netpol"])
    .generation(Generation::Spec)
    .columns("Name, Pod-Selector, Age", columns::groups::network_policy)
    .rules(rules::groups::network_policy)
    .defaults(kinds::network_policy),
    Row::cluster(
        "io.k8s.api.networking.v1",
        ("networking.k8s.io", "v1"),
        "ServiceCIDR",
        "servicecidrs",
        "servicecidr",
    )
    .sub(&[("status", "ServiceCIDR", RW)])
    .status()
    .columns("Name, CIDRs, Age", columns::groups::service_cidr)
    .rules(rules::groups::service_cidr),
];

pub(super) const DISCOVERY: &[Row] = &[Row::namespaced(
    "io.k8s.api.discovery.v1",
    ("discovery.k8s.io", "v1"),
    "EndpointSlice",
    "endpointslices",
    "endpointslice",
)
.generation(Generation::Spec)
.columns("Name, AddressType, Ports, Endpoints, Age", columns::groups::endpoint_slice)
.rules(rules::groups::endpoint_slice)
.defaults(kinds::endpoint_slice)];
