//! Rows of dynamic resource allocation.

use super::{Generation, RW, Row};
use crate::defaults::kinds;

pub(super) const ROWS: &[Row] = &[
    Row::cluster(
        "io.k8s.api.resource.v1",
        ("resource.k8s.io", "v1"),
        "DeviceClass",
        "deviceclasses",
        "deviceclass",
    ),
    Row::namespaced(
        "io.k8s.api.resource.v1",
        ("resource.k8s.io", "v1"),
        "ResourceClaim",
        "resourceclaims",
        "resourceclaim",
    )
    .sub(&[("status", "ResourceClaim", RW)])
    .status()
    .defaults(kinds::resource_claim),
    Row::namespaced(
        "io.k8s.api.resource.v1",
        ("resource.k8s.io", "v1"),
        "ResourceClaimTemplate",
        "resourceclaimtemplates",
        "resourceclaimtemplate",
    )
    .defaults(kinds::resource_claim_template),
    Row::cluster(
        "io.k8s.api.resource.v1",
        ("resource.k8s.io", "v1"),
        "ResourceSlice",
        "resourceslices",
        "resourceslice",
    )
    .selectable(&[("spec.driver", ""), ("spec.nodeName", "")])
    .generation(Generation::Spec),
];
