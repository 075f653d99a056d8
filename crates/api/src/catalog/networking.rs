//! Rows of networking, discovery, certificates and API registration.

use super::{Generation, NameRule, RW, Row};
use crate::defaults::kinds;

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
.selectable(&[("spec.signerName", "")])];

pub(super) const ROWS: &[Row] = &[
    Row::cluster(
        "io.k8s.api.networking.v1",
        ("networking.k8s.io", "v1"),
        "IngressClass",
        "ingressclasses",
        "ingressclass",
    )
    .generation(Generation::Spec)
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
    .generation(Generation::Spec),
    Row::cluster(
        "io.k8s.api.networking.v1",
        ("networking.k8s.io", "v1"),
        "IPAddress",
        "ipaddresses",
        "ipaddress",
    )
    .short(&["ip"])
    .names(NameRule::Ip),
    Row::namespaced(
        "io.k8s.api.networking.v1",
        ("networking.k8s.io", "v1"),
        "NetworkPolicy",
        "networkpolicies",
        "networkpolicy",
    )
    .short(&["netpol"])
    .generation(Generation::Spec)
    .defaults(kinds::network_policy),
    Row::cluster(
        "io.k8s.api.networking.v1",
        ("networking.k8s.io", "v1"),
        "ServiceCIDR",
        "servicecidrs",
        "servicecidr",
    )
    .sub(&[("status", "ServiceCIDR", RW)])
    .status(),
];

pub(super) const DISCOVERY: &[Row] = &[Row::namespaced(
    "io.k8s.api.discovery.v1",
    ("discovery.k8s.io", "v1"),
    "EndpointSlice",
    "endpointslices",
    "endpointslice",
)
.generation(Generation::Spec)
.defaults(kinds::endpoint_slice)];
