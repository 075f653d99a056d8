//! Rows of the core group.

use super::{Generation, NameRule, RW, Row};
use crate::columns;
use crate::defaults::{kinds, pod};
use crate::rules;
use crate::strategy::{kinds as strategy, service};

pub(super) const ROWS: &[Row] = &[
    Row::namespaced("io.k8s.api.core.v1", ("", "v1"), "Binding", "bindings", "binding")
        .transient(),
    Row::cluster("io.k8s.api.core.v1", ("", "v1"), "ComponentStatus", "componentstatuses", "componentstatus")
        .short(&["cs"])
        .verbs(&["get", "list"])
        .columns("Name, Status, Message, Error", columns::core::component_status)
        .deprecated("v1 ComponentStatus is deprecated in v1.19+"),
    Row::namespaced("io.k8s.api.core.v1", ("", "v1"), "ConfigMap", "configmaps", "configmap")
        .short(&["cm"])
        .columns("Name, Data, Age", columns::core::config_map)
        .rules(rules::core::config_map),
    Row::namespaced("io.k8s.api.core.v1", ("", "v1"), "Endpoints", "endpoints", "endpoints")
        .short(&["ep"])
        .prefix("services/endpoints")
        .columns("Name, Endpoints, Age", columns::core::endpoints)
        .rules(rules::core::endpoints)
        .create_on_update()
        .deprecated("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        .defaults(kinds::endpoints),
    Row::namespaced("io.k8s.api.core.v1", ("", "v1"), "Event", "events", "event")
        .short(&["ev"])
        .selectable(&[("involvedObject.apiVersion", ""), ("involvedObject.fieldPath", ""), ("involvedObject.kind", ""), ("involvedObject.name", ""), ("involvedObject.namespace", ""), ("involvedObject.resourceVersion", ""), ("involvedObject.uid", ""), ("reason", ""), ("reportingComponent", ""), ("source", "source.component|reportingComponent"), ("type", "")])
        .columns("Last Seen, Type, Reason, Object, Subobject*, Source*, Message, First Seen*, Count*, Name*", columns::core::event)
        .rules(rules::event::event)
        .create_on_update(),
    Row::namespaced("io.k8s.api.core.v1", ("", "v1"), "LimitRange", "limitranges", "limitrange")
        .short(&["limits"])
        .rules(rules::limits::limit_range)
        .create_on_update()
        .defaults(kinds::limit_range),
    Row::cluster("io.k8s.api.core.v1", ("", "v1"), "Namespace", "namespaces", "namespace")
        .short(&["ns"])
        .verbs(&["create", "delete", "get", "list", "patch", "update", "watch"])
        .sub(&[("finalize", "Namespace", &["update"]), ("status", "Namespace", RW)])
        .status()
        .selectable(&[("status.phase", "")])
        .names(NameRule::Label)
        .columns("Name, Status, Age", columns::core::namespace)
        .rules(rules::core::namespace)
        .on_create(strategy::namespace_create)
        .on_update(strategy::namespace_update)
        .defaults(kinds::namespace),
    Row::cluster("io.k8s.api.core.v1", ("", "v1"), "Node", "nodes", "node")
        .short(&["no"])
        .sub(&[("proxy", "NodeProxyOptions", &["create", "delete", "get", "patch", "update"]), ("status", "Node", RW)])
        .status()
        .prefix("minions")
        .selectable(&[("spec.unschedulable", "")])
        .columns("Name, Status, Roles, Age, Version, Internal-IP*, External-IP*, OS-Image*, Kernel-Version*, Container-Runtime*", columns::core::node)
        .rules(rules::core::node)
        .keeps_status()
        .defaults(kinds::node),
    Row::namespaced("io.k8s.api.core.v1", ("", "v1"), "PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim")
        .short(&["pvc"])
        .sub(&[("status", "PersistentVolumeClaim", RW)])
        .status()
        .columns("Name, Status, Volume, Capacity, Access Modes, StorageClass, VolumeAttributesClass, Age, VolumeMode*", columns::core::persistent_volume_claim)
        .rules(rules::core::persistent_volume_claim)
        .on_create(strategy::pending)
        .defaults(kinds::persistent_volume_claim),
    Row::cluster("io.k8s.api.core.v1", ("", "v1"), "PersistentVolume", "persistentvolumes", "persistentvolume")
        .short(&["pv"])
        .sub(&[("status", "PersistentVolume", RW)])
        .status()
        .columns("Name, Capacity, Access Modes, Reclaim Policy, Status, Claim, StorageClass, VolumeAttributesClass, Reason, Age, VolumeMode*", columns::core::persistent_volume)
        .rules(rules::core::persistent_volume)
        .on_create(strategy::pending)
        .defaults(kinds::persistent_volume),
    Row::namespaced("io.k8s.api.core.v1", ("", "v1"), "Pod", "pods", "pod")
        .short(&["po"])
        .categories(&["all"])
        .sub(&[("attach", "PodAttachOptions", &["create", "get"]), ("binding", "Binding", &["create"]), ("ephemeralcontainers", "Pod", RW), ("eviction", "policy/v1/Eviction", &["create"]), ("exec", "PodExecOptions", &["create", "get"]), ("log", "Pod", &["get"]), ("portforward", "PodPortForwardOptions", &["create", "get"]), ("proxy", "PodProxyOptions", &["create", "delete", "get", "patch", "update"]), ("resize", "Pod", RW), ("status", "Pod", RW)])
        .status()
        .selectable(&[("spec.host", "spec.nodeName"), ("spec.hostNetwork", ""), ("spec.nodeName", ""), ("spec.restartPolicy", ""), ("spec.schedulerName", ""), ("spec.serviceAccountName", ""), ("status.nominatedNodeName", ""), ("status.phase", ""), ("status.podIP", ""), ("status.podIPs", "")])
        .generation(Generation::Spec)
        .columns("Name, Ready, Status, Restarts, Age, IP*, Node*, Nominated Node*, Readiness Gates*", columns::workloads::pod)
        .rules(rules::pod::pod)
        .warnings(rules::pod::warnings)
        .on_create(strategy::pod_create)
        .defaults(pod::pod),
    Row::namespaced("io.k8s.api.core.v1", ("", "v1"), "PodTemplate", "podtemplates", "podtemplate")
        .generation(Generation::Spec)
        .columns("Name, Containers, Images, Pod Labels", columns::workloads::pod_template)
        .rules(rules::core::pod_template)
        .defaults(kinds::pod_template),
    Row::namespaced("io.k8s.api.core.v1", ("", "v1"), "ReplicationController", "replicationcontrollers", "replicationcontroller")
        .short(&["rc"])
        .categories(&["all"])
        .sub(&[("scale", "autoscaling/v1/Scale", RW), ("status", "ReplicationController", RW)])
        .status()
        .scale(".spec.replicas", ".status.replicas", ".spec.selector")
        .prefix("controllers")
        .selectable(&[("status.replicas", "")])
        .generation(Generation::Spec)
        .columns("Name, Desired:integer, Current:integer, Ready:integer, Age, Containers*, Images*, Selector*", columns::workloads::replication_controller)
        .rules(rules::apps::replication_controller)
        .status_rules(rules::apps::replica_counts)
        .defaults(kinds::replication_controller),
    Row::namespaced("io.k8s.api.core.v1", ("", "v1"), "ResourceQuota", "resourcequotas", "resourcequota")
        .short(&["quota"])
        .sub(&[("status", "ResourceQuota", RW)])
        .status()
        .columns("Name, Request, Limit, Age", columns::core::resource_quota)
        .rules(rules::limits::resource_quota)
        .defaults(kinds::resource_quota),
    Row::namespaced("io.k8s.api.core.v1", ("", "v1"), "Secret", "secrets", "secret")
        .selectable(&[("type", "")])
        .columns("Name, Type, Data, Age", columns::core::secret)
        .rules(rules::core::secret)
        .defaults(kinds::secret),
    Row::namespaced("io.k8s.api.core.v1", ("", "v1"), "ServiceAccount", "serviceaccounts", "serviceaccount")
        .short(&["sa"])
        .sub(&[("token", "authentication.k8s.io/v1/TokenRequest", &["create"])])
        .columns("Name, Age", columns::core::aged)
        .rules(rules::core::service_account),
    Row::namespaced("io.k8s.api.core.v1", ("", "v1"), "Service", "services", "service")
        .short(&["svc"])
        .categories(&["all"])
        .sub(&[("proxy", "ServiceProxyOptions", &["create", "delete", "get", "patch", "update"]), ("status", "Service", RW)])
        .status()
        .prefix("services/specs")
        .selectable(&[("spec.clusterIP", ""), ("spec.type", "")])
        .columns("Name, Type, Cluster-IP, External-IP, Port(s), Age, Selector*", columns::core::service)
        .on_update(service::update)
        .rules(rules::service::service)
        .create_on_update()
        .defaults(kinds::service),
];
