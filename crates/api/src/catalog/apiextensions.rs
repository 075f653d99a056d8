//! The row of custom resource definitions.

use super::{Generation, RW, Row};
use crate::defaults::kinds;
use crate::strategy::kinds as strategy;

pub(super) const ROWS: &[Row] = &[Row::cluster(
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1",
    ("apiextensions.k8s.io", "v1"),
    "CustomResourceDefinition",
    "customresourcedefinitions",
    "customresourcedefinition",
)
.short(&["crd", "crds"])
.categories(&["api-extensions"])
.sub(&[("status", "CustomResourceDefinition", RW)])
.status()
.prefix("apiextensions.k8s.io/customresourcedefinitions")
.generation(Generation::Spec)
.update_needs_version()
.rules(crate::rules::crd::definition)
.on_create(strategy::definition_create)
.on_update(strategy::definition_update)
.defaults(kinds::custom_resource_definition)];
