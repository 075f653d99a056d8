//! Rows of admission configuration.

use super::{Generation, RW, Row};
use crate::columns;
use crate::defaults::kinds;

pub(super) const ROWS: &[Row] = &[
    Row::cluster(
        "io.k8s.api.admissionregistration.v1",
        ("admissionregistration.k8s.io", "v1"),
        "MutatingAdmissionPolicy",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicy",
    )
    .categories(&["api-extensions"])
    .generation(Generation::Spec)
    .columns("Name, Mutations:integer, ParamKind, Age", columns::groups::admission_policy)
    .defaults(kinds::admission_policy),
    Row::cluster(
        "io.k8s.api.admissionregistration.v1",
        ("admissionregistration.k8s.io", "v1"),
        "MutatingAdmissionPolicyBinding",
        "mutatingadmissionpolicybindings",
        "mutatingadmissionpolicybinding",
    )
    .categories(&["api-extensions"])
    .generation(Generation::Spec)
    .columns("Name, PolicyName, ParamRef, Age", columns::groups::policy_binding)
    .rules(crate::rules::admission::mutating_binding)
    .defaults(kinds::admission_policy_binding),
    Row::cluster(
        "io.k8s.api.admissionregistration.v1",
        ("admissionregistration.k8s.io", "v1"),
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        "mutatingwebhookconfiguration",
    )
    .categories(&["api-extensions"])
    .generation(Generation::Spec)
    .columns("Name, Webhooks:integer, Age", columns::groups::webhooks)
    .rules(crate::rules::webhooks::configuration)
    .defaults(kinds::mutating_webhooks),
    Row::cluster(
        "io.k8s.api.admissionregistration.v1",
        ("admissionregistration.k8s.io", "v1"),
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        "validatingadmissionpolicy",
    )
    .categories(&["api-extensions"])
    .sub(&[("status", "ValidatingAdmissionPolicy", RW)])
    .status()
    .generation(Generation::Spec)
    .columns("Name, Validations:integer, ParamKind, Age", columns::groups::admission_policy)
    .defaults(kinds::admission_policy),
    Row::cluster(
        "io.k8s.api.admissionregistration.v1",
        ("admissionregistration.k8s.io", "v1"),
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        "validatingadmissionpolicybinding",
    )
    .categories(&["api-extensions"])
    .generation(Generation::Spec)
    .columns("Name, PolicyName, ParamRef, Age", columns::groups::policy_binding)
    .rules(crate::rules::admission::validating_binding)
    .defaults(kinds::admission_policy_binding),
    Row::cluster(
        "io.k8s.api.admissionregistration.v1",
        ("admissionregistration.k8s.io", "v1"),
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        "validatingwebhookconfiguration",
    )
    .categories(&["api-extensions"])
    .generation(Generation::Spec)
    .columns("Name, Webhooks:integer, Age", columns::groups::webhooks)
    .rules(crate::rules::webhooks::configuration)
    .defaults(kinds::validating_webhooks),
];
