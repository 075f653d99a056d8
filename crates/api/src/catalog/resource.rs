//! Rows of dynamic resource allocation.

use super::{Generation, RW, Row};
use crate::columns;
use crate::defaults::kinds;

pub(super) const ROWS: &[Row] = &[
    Row::cluster(
        "io.k8s.api.resource.v1",
        ("resource.k8s.io", "v1"),
        "DeviceClass",
        "deviceclasses",
        "deviceclass",
    )
    .generation(Generation::Spec)
    .columns("Name, Age", columns::core::aged),
    Row::namespaced(
        "io.k8s.api.resource.v1",
        ("resource.k8s.io", "v1"),
        "ResourceClaim",
        "resourceclaims",
        "resourceclaim",
    )
    .sub(&[("status", "ResourceClaim", RW)])
    .status()
    .columns("Name, State, Age", columns::groups::resource_claim)
    .rules(crate::rules::devices::claim)
    .defaults(kinds::resource_claim),
    Row::namespaced(
        "io.k8s.api.resource.v1",
        ("resource.k8s.io", "v1"),
        "ResourceClaimTemplate",
        "resourceclaimtemplates",
        "resourceclaimtemplate",
    )
    .rules(crate::rules::devices::claim_template)
    .columns("Name, Age", columns::core::aged)
    .defaults(kinds::resource_claim_template),
    Row::cluster(
        "io.k8s.api.resource.v1",
        ("resource.k8s.io", "v1"),
        "ResourceSlice",
        "resourceslices",
        "resourceslice",
    )
    .selectable(&[("spec.driver", ""), ("spec.nodeName", "")])
    .generation(Generation::Spec)
    .columns("Name, Node, Driver, Pool, Age", columns::groups::resource_slice),
];
