//! Rows of authentication and authorization: questions that are answered, never stored.

use super::Row;
use crate::rules::review;

pub(super) const ROWS: &[Row] = &[
    Row::cluster(
        "io.k8s.api.authentication.v1",
        ("authentication.k8s.io", "v1"),
        "SelfSubjectReview",
        "selfsubjectreviews",
        "selfsubjectreview",
    )
    .transient(),
    Row::cluster(
        "io.k8s.api.authentication.v1",
        ("authentication.k8s.io", "v1"),
        "TokenReview",
        "tokenreviews",
        "tokenreview",
    )
    .transient(),
    Row::namespaced(
        "io.k8s.api.authorization.v1",
        ("authorization.k8s.io", "v1"),
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
    )
    .rules(review::of_local)
    .transient(),
    Row::cluster(
        "io.k8s.api.authorization.v1",
        ("authorization.k8s.io", "v1"),
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
    )
    .rules(review::of_self)
    .transient(),
    Row::cluster(
        "io.k8s.api.authorization.v1",
        ("authorization.k8s.io", "v1"),
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
    )
    .transient(),
    Row::cluster(
        "io.k8s.api.authorization.v1",
        ("authorization.k8s.io", "v1"),
        "SubjectAccessReview",
        "subjectaccessreviews",
        "subjectaccessreview",
    )
    .rules(review::of_subject)
    .transient(),
];
