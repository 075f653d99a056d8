//! Rows of role-based access control.

use super::{NameRule, Row};
use crate::columns;
use crate::defaults::kinds;
use crate::rules;

pub(super) const ROWS: &[Row] = &[
    Row::cluster(
        "io.k8s.api.rbac.v1",
        ("rbac.authorization.k8s.io", "v1"),
        "ClusterRoleBinding",
        "clusterrolebindings",
        "clusterrolebinding",
    )
    .names(NameRule::PathSegment)
    .columns("Name, Role, Age, Users*, Groups*, ServiceAccounts*", columns::groups::role_binding)
    .rules(rules::rbac::cluster_role_binding)
    .create_on_update()
    .defaults(kinds::role_binding),
    Row::cluster(
        "io.k8s.api.rbac.v1",
        ("rbac.authorization.k8s.io", "v1"),
        "ClusterRole",
        "clusterroles",
        "clusterrole",
    )
    .names(NameRule::PathSegment)
    .rules(rules::rbac::cluster_role)
    .create_on_update(),
    Row::namespaced(
        "io.k8s.api.rbac.v1",
        ("rbac.authorization.k8s.io", "v1"),
        "RoleBinding",
        "rolebindings",
        "rolebinding",
    )
    .names(NameRule::PathSegment)
    .columns("Name, Role, Age, Users*, Groups*, ServiceAccounts*", columns::groups::role_binding)
    .rules(rules::rbac::role_binding)
    .create_on_update()
    .defaults(kinds::role_binding),
    Row::namespaced(
        "io.k8s.api.rbac.v1",
        ("rbac.authorization.k8s.io", "v1"),
        "Role",
        "roles",
        "role",
    )
    .names(NameRule::PathSegment)
    .rules(rules::rbac::role)
    .create_on_update(),
];
