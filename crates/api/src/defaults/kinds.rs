//! Defaults of single kinds, named in their catalogue rows.

use super::pod::{resource_list, template_at};
use crate::object::Value;

/// The spec, made if it is absent.
fn spec(v: &mut Value) -> &mut Value {
    let s = v.make_object().entry("spec");
    if s.is_null() {
        *s = Value::object();
    }
    s
}

/// Sets `key` where it is absent or the empty string.
fn text(v: &mut Value, key: &str, value: &str) {
    if v[key].text().is_empty() && !matches!(v[key], Value::Object(_) | Value::Array(_)) {
        v.set(key, value);
    }
}

/// Labels of the template become the object's where it has none.
fn labels_from_template(v: &mut Value, template: &[&str]) {
    let labels = v.at(template).map(|t| t["metadata"]["labels"].clone()).unwrap_or_default();
    if v["metadata"]["labels"].is_empty() && !labels.is_empty() {
        v.set_at(&["metadata", "labels"], labels);
    }
}

/// Deployment.
pub fn deployment(v: &mut Value) {
    let s = spec(v);
    s.default_to("replicas", 1_i64);
    s.default_to("revisionHistoryLimit", 10_i64);
    s.default_to("progressDeadlineSeconds", 600_i64);
    let strategy = s.make_object().entry("strategy").make_object_in_place();
    text(strategy, "type", "RollingUpdate");
    if strategy["type"].text() == "RollingUpdate" {
        strategy.default_to("rollingUpdate", Value::object());
        if let Some(r) = strategy.get_mut("rollingUpdate") {
            r.default_to("maxUnavailable", "25%");
            r.default_to("maxSurge", "25%");
        }
    }
    template_at(v, &["spec", "template"]);
}

/// DaemonSet.
pub fn daemon_set(v: &mut Value) {
    let s = spec(v);
    s.default_to("revisionHistoryLimit", 10_i64);
    let strategy = s.make_object().entry("updateStrategy").make_object_in_place();
    text(strategy, "type", "RollingUpdate");
    if strategy["type"].text() == "RollingUpdate" {
        strategy.default_to("rollingUpdate", Value::object());
        if let Some(r) = strategy.get_mut("rollingUpdate") {
            r.default_to("maxUnavailable", 1_i64);
            r.default_to("maxSurge", 0_i64);
        }
    }
    template_at(v, &["spec", "template"]);
    let generation = ["metadata", "annotations", TEMPLATE_GENERATION];
    if v.at(&generation).is_none() {
        v.set_at(&generation, "0");
    }
}

/// Where daemon sets count the changes of their template.
pub const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// StatefulSet.
pub fn stateful_set(v: &mut Value) {
    let s = spec(v);
    s.default_to("replicas", 1_i64);
    s.default_to("revisionHistoryLimit", 10_i64);
    text(s, "podManagementPolicy", "OrderedReady");
    let strategy = s.make_object().entry("updateStrategy").make_object_in_place();
    text(strategy, "type", "RollingUpdate");
    if strategy["type"].text() == "RollingUpdate" {
        strategy.default_to("rollingUpdate", Value::object());
        if let Some(r) = strategy.get_mut("rollingUpdate") {
            r.default_to("partition", 0_i64);
        }
    }
    let retention =
        s.make_object().entry("persistentVolumeClaimRetentionPolicy").make_object_in_place();
    text(retention, "whenDeleted", "Retain");
    text(retention, "whenScaled", "Retain");
    if let Some(claims) = s.get_mut("volumeClaimTemplates") {
        for claim in claims.items_mut() {
            claim.set("apiVersion", "v1");
            claim.set("kind", "PersistentVolumeClaim");
            claim_defaults(claim);
        }
    }
    template_at(v, &["spec", "template"]);
}

/// ReplicaSet.
pub fn replica_set(v: &mut Value) {
    spec(v).default_to("replicas", 1_i64);
    template_at(v, &["spec", "template"]);
}

/// ReplicationController.
pub fn replication_controller(v: &mut Value) {
    spec(v).default_to("replicas", 1_i64);
    if v["spec"].has("template") {
        let labels = v["spec"]["template"]["metadata"]["labels"].clone();
        if v["spec"]["selector"].is_empty() && !labels.is_empty() {
            v.set_at(&["spec", "selector"], labels);
        }
        labels_from_template(v, &["spec", "template"]);
        template_at(v, &["spec", "template"]);
    }
}

/// PodTemplate.
pub fn pod_template(v: &mut Value) {
    template_at(v, &["template"]);
}

/// Job.
pub fn job(v: &mut Value) {
    let s = spec(v);
    if !s.has("completions") && !s.has("parallelism") {
        s.set("completions", 1_i64);
    }
    s.default_to("parallelism", 1_i64);
    let limit = if s.has("backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 };
    s.default_to("backoffLimit", limit);
    s.default_to("completionMode", "NonIndexed");
    s.default_to("suspend", false);
    s.default_to("manualSelector", false);
    let replacement = if s.has("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    s.default_to("podReplacementPolicy", replacement);
    if let Some(rules) = s.at_mut(&["podFailurePolicy", "rules"]) {
        for rule in rules.items_mut() {
            if let Some(list) = rule.get_mut("onPodConditions") {
                list.items_mut().iter_mut().for_each(|p| text(p, "status", "True"));
            }
        }
    }
    labels_from_template(v, &["spec", "template"]);
    template_at(v, &["spec", "template"]);
}

/// CronJob.
pub fn cron_job(v: &mut Value) {
    let s = spec(v);
    text(s, "concurrencyPolicy", "Allow");
    s.default_to("suspend", false);
    s.default_to("successfulJobsHistoryLimit", 3_i64);
    s.default_to("failedJobsHistoryLimit", 1_i64);
    template_at(v, &["spec", "jobTemplate", "spec", "template"]);
}

/// Service.
pub fn service(v: &mut Value) {
    let s = spec(v);
    text(s, "sessionAffinity", "None");
    text(s, "type", "ClusterIP");
    match s["sessionAffinity"].text() {
        "None" => {
            s.remove("sessionAffinityConfig");
        }
        "ClientIP" => {
            let client = s.make_object().entry("sessionAffinityConfig").make_object_in_place();
            let client = client.make_object().entry("clientIP").make_object_in_place();
            client.default_to("timeoutSeconds", 10_800_i64);
        }
        _ => {}
    }
    let kind = s["type"].text().to_owned();
    if let Some(ports) = s.get_mut("ports") {
        for p in ports.items_mut() {
            text(p, "protocol", "TCP");
            if p["targetPort"].is_empty() {
                let port = p["port"].clone();
                p.set("targetPort", port);
            }
        }
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        text(s, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        s.default_to("internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        s.default_to("allocateLoadBalancerNodePorts", true);
    }
    if let Some(ingress) = v.at_mut(&["status", "loadBalancer", "ingress"]) {
        for i in ingress.items_mut() {
            if !i["ip"].text().is_empty() {
                i.default_to("ipMode", "VIP");
            }
        }
    }
}

/// Endpoints.
pub fn endpoints(v: &mut Value) {
    for subset in v.get_mut("subsets").map(Value::items_mut).unwrap_or(&mut []) {
        if let Some(ports) = subset.get_mut("ports") {
            ports.items_mut().iter_mut().for_each(|p| text(p, "protocol", "TCP"));
        }
    }
}

/// EndpointSlice.
pub fn endpoint_slice(v: &mut Value) {
    if let Some(ports) = v.get_mut("ports") {
        for p in ports.items_mut() {
            p.default_to("name", "");
            p.default_to("protocol", "TCP");
        }
    }
}

/// Secret: `stringData` is written into `data`.
pub fn secret(v: &mut Value) {
    use base64::Engine as _;
    text(v, "type", "Opaque");
    if let Some(Value::Object(plain)) = v.remove("stringData") {
        for (key, value) in plain {
            let coded = base64::engine::general_purpose::STANDARD.encode(value.text());
            v.make_object().entry("data").make_object().insert(key, coded);
        }
    }
}

/// Namespace.
pub fn namespace(v: &mut Value) {
    let name = crate::meta::name(v).to_owned();
    if !name.is_empty() {
        v.set_at(&["metadata", "labels", "kubernetes.io/metadata.name"], name);
    }
    let status = v.make_object().entry("status").make_object_in_place();
    text(status, "phase", "Active");
}

/// Node.
pub fn node(v: &mut Value) {
    let (one, list) = (v["spec"]["podCIDR"].clone(), v["spec"]["podCIDRs"].clone());
    if list.is_empty() && !one.is_empty() {
        v.set_at(&["spec", "podCIDRs"], vec![one]);
    } else if let Some(first) = list.items().first() {
        v.set_at(&["spec", "podCIDR"], first.clone());
    }
    if let Some(status) = v.get_mut("status") {
        if status["allocatable"].is_empty() && !status["capacity"].is_empty() {
            let capacity = status["capacity"].clone();
            status.set("allocatable", capacity);
        }
        for list in ["allocatable", "capacity"] {
            if let Some(l) = status.get_mut(list) {
                resource_list(l);
            }
        }
    }
}

/// PersistentVolume.
pub fn persistent_volume(v: &mut Value) {
    let s = spec(v);
    text(s, "persistentVolumeReclaimPolicy", "Retain");
    s.default_to("volumeMode", "Filesystem");
    if let Some(h) = s.get_mut("hostPath") {
        h.default_to("type", "");
    }
    if let Some(d) = s.get_mut("azureDisk") {
        for (key, value) in [("cachingMode", "ReadWrite"), ("kind", "Shared"), ("fsType", "ext4")] {
            d.default_to(key, value);
        }
        d.default_to("readOnly", false);
    }
    let status = v.make_object().entry("status").make_object_in_place();
    text(status, "phase", "Pending");
}

/// PersistentVolumeClaim.
pub fn persistent_volume_claim(v: &mut Value) {
    claim_defaults(v);
}

fn claim_defaults(v: &mut Value) {
    let status = v.make_object().entry("status").make_object_in_place();
    text(status, "phase", "Pending");
    let s = spec(v);
    s.default_to("volumeMode", "Filesystem");
    for field in ["dataSource", "dataSourceRef"] {
        if let Some(d) = s.get_mut(field) {
            d.default_to("apiGroup", "");
            if d["apiGroup"].text().is_empty() {
                d.remove("apiGroup");
            }
        }
    }
    for list in ["limits", "requests"] {
        if let Some(l) = s.at_mut(&["resources", list]) {
            resource_list(l);
        }
    }
}

/// LimitRange: limits and requests of containers follow from each other.
pub fn limit_range(v: &mut Value) {
    for item in v.at_mut(&["spec", "limits"]).map(Value::items_mut).unwrap_or(&mut []) {
        for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            if let Some(l) = item.get_mut(list) {
                resource_list(l);
            }
        }
        if item["type"].text() != "Container" {
            continue;
        }
        for (target, source) in
            [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")]
        {
            for (key, value) in item[source].clone().members() {
                let list = item.make_object().entry(target).make_object();
                if !list.contains_key(key) {
                    list.insert(key, value.clone());
                }
            }
        }
    }
}

/// ResourceQuota.
pub fn resource_quota(v: &mut Value) {
    if let Some(hard) = v.at_mut(&["spec", "hard"]) {
        resource_list(hard);
    }
}

/// StorageClass.
pub fn storage_class(v: &mut Value) {
    v.default_to("reclaimPolicy", "Delete");
    v.default_to("volumeBindingMode", "Immediate");
}

/// CSIDriver.
pub fn csi_driver(v: &mut Value) {
    let s = spec(v);
    s.default_to("attachRequired", true);
    s.default_to("podInfoOnMount", false);
    s.default_to("storageCapacity", false);
    s.default_to("fsGroupPolicy", "ReadWriteOnceWithFSType");
    s.default_to("requiresRepublish", false);
    s.default_to("seLinuxMount", false);
    if s["volumeLifecycleModes"].is_empty() {
        s.set("volumeLifecycleModes", vec![Value::from("Persistent")]);
    }
}

/// IngressClass.
pub fn ingress_class(v: &mut Value) {
    if let Some(p) = v.at_mut(&["spec", "parameters"]) {
        p.default_to("scope", "Cluster");
    }
}

/// NetworkPolicy.
pub fn network_policy(v: &mut Value) {
    let s = spec(v);
    for (list, _) in [("ingress", "from"), ("egress", "to")] {
        for rule in s.get_mut(list).map(Value::items_mut).unwrap_or(&mut []) {
            if let Some(ports) = rule.get_mut("ports") {
                ports.items_mut().iter_mut().for_each(|p| p.default_to("protocol", "TCP"));
            }
        }
    }
    if s["policyTypes"].is_empty() {
        let mut types = vec![Value::from("Ingress")];
        if !s["egress"].is_empty() {
            types.push(Value::from("Egress"));
        }
        s.set("policyTypes", types);
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";

/// RoleBinding and ClusterRoleBinding.
pub fn role_binding(v: &mut Value) {
    let role = v.make_object().entry("roleRef").make_object_in_place();
    text(role, "apiGroup", RBAC);
    for s in v.get_mut("subjects").map(Value::items_mut).unwrap_or(&mut []) {
        if matches!(s["kind"].text(), "User" | "Group") {
            text(s, "apiGroup", RBAC);
        }
    }
}

/// HorizontalPodAutoscaler v2.
pub fn autoscaler_v2(v: &mut Value) {
    let s = spec(v);
    s.default_to("minReplicas", 1_i64);
    if s["metrics"].is_empty() {
        s.set(
            "metrics",
            crate::json!([{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 80}}}]),
        );
    }
    if let Some(b) = s.get_mut("behavior") {
        let rules = |window: Option<i64>| {
            let mut r = crate::json!({"selectPolicy": "Max", "policies": []});
            if let Some(w) = window {
                r.set("stabilizationWindowSeconds", w);
            }
            r
        };
        let percent = crate::json!({"type": "Percent", "value": 100, "periodSeconds": 15});
        let pods = crate::json!({"type": "Pods", "value": 4, "periodSeconds": 15});
        for (key, window, policies) in
            [("scaleUp", Some(0), vec![pods, percent.clone()]), ("scaleDown", None, vec![percent])]
        {
            b.default_to(key, rules(window));
            if let Some(r) = b.get_mut(key) {
                r.default_to("selectPolicy", "Max");
                if let Some(w) = window {
                    r.default_to("stabilizationWindowSeconds", w);
                }
                if r["policies"].is_empty() {
                    r.set("policies", policies);
                }
            }
        }
    }
}

/// HorizontalPodAutoscaler v1.
pub fn autoscaler_v1(v: &mut Value) {
    spec(v).default_to("minReplicas", 1_i64);
}

fn match_resources(m: &mut Value) {
    m.default_to("matchPolicy", "Equivalent");
    m.default_to("namespaceSelector", Value::object());
    m.default_to("objectSelector", Value::object());
    for list in ["resourceRules", "excludeResourceRules"] {
        if let Some(rules) = m.get_mut(list) {
            rules.items_mut().iter_mut().for_each(|r| r.default_to("scope", "*"));
        }
    }
}

/// ValidatingWebhookConfiguration.
pub fn validating_webhooks(v: &mut Value) {
    webhooks(v, false);
}

/// MutatingWebhookConfiguration.
pub fn mutating_webhooks(v: &mut Value) {
    webhooks(v, true);
}

fn webhooks(v: &mut Value, mutating: bool) {
    for w in v.get_mut("webhooks").map(Value::items_mut).unwrap_or(&mut []) {
        w.default_to("failurePolicy", "Fail");
        w.default_to("matchPolicy", "Equivalent");
        w.default_to("namespaceSelector", Value::object());
        w.default_to("objectSelector", Value::object());
        w.default_to("timeoutSeconds", 10_i64);
        if mutating {
            w.default_to("reinvocationPolicy", "Never");
        }
        if let Some(s) = w.at_mut(&["clientConfig", "service"]) {
            s.default_to("port", 443_i64);
        }
        if let Some(rules) = w.get_mut("rules") {
            rules.items_mut().iter_mut().for_each(|r| r.default_to("scope", "*"));
        }
    }
}

/// ValidatingAdmissionPolicy and MutatingAdmissionPolicy.
pub fn admission_policy(v: &mut Value) {
    let s = spec(v);
    s.default_to("failurePolicy", "Fail");
    if let Some(m) = s.get_mut("matchConstraints") {
        match_resources(m);
    }
}

/// Bindings of admission policies.
pub fn admission_policy_binding(v: &mut Value) {
    let s = spec(v);
    if let Some(m) = s.get_mut("matchResources") {
        match_resources(m);
    }
    if let Some(p) = s.get_mut("paramRef") {
        p.default_to("parameterNotFoundAction", "Deny");
    }
}

/// PriorityClass.
pub fn priority_class(v: &mut Value) {
    v.default_to("preemptionPolicy", "PreemptLowerPriority");
}

/// FlowSchema.
pub fn flow_schema(v: &mut Value) {
    let s = spec(v);
    if s["matchingPrecedence"].as_int().unwrap_or(0) == 0 {
        s.set("matchingPrecedence", 1000_i64);
    }
}

/// PriorityLevelConfiguration.
pub fn priority_level(v: &mut Value) {
    let s = spec(v);
    if let Some(e) = s.get_mut("exempt") {
        e.default_to("nominalConcurrencyShares", 0_i64);
        e.default_to("lendablePercent", 0_i64);
    }
    if let Some(l) = s.get_mut("limited") {
        l.default_to("nominalConcurrencyShares", 30_i64);
        l.default_to("lendablePercent", 0_i64);
        if let Some(q) = l.at_mut(&["limitResponse", "queuing"]) {
            for (key, value) in [("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)] {
                if q[key].as_int().unwrap_or(0) == 0 {
                    q.set(key, value as i64);
                }
            }
        }
    }
}

/// CustomResourceDefinition.
pub fn custom_resource_definition(v: &mut Value) {
    let s = spec(v);
    if let Some(names) = s.get_mut("names") {
        let kind = names["kind"].text().to_owned();
        if !kind.is_empty() {
            text(names, "singular", &kind.to_lowercase());
            text(names, "listKind", &format!("{kind}List"));
        }
    }
    s.default_to("conversion", crate::json!({"strategy": "None"}));
    if let Some(service) = s.at_mut(&["conversion", "webhook", "clientConfig", "service"]) {
        service.default_to("port", 443_i64);
    }
}

/// APIService.
pub fn api_service(v: &mut Value) {
    if let Some(s) = v.at_mut(&["spec", "service"]) {
        s.default_to("port", 443_i64);
    }
}

/// ResourceClaim.
pub fn resource_claim(v: &mut Value) {
    device_claim(v.at_mut(&["spec", "devices"]));
}

/// ResourceClaimTemplate.
pub fn resource_claim_template(v: &mut Value) {
    device_claim(v.at_mut(&["spec", "spec", "devices"]));
}

fn device_claim(devices: Option<&mut Value>) {
    let Some(requests) = devices.and_then(|d| d.get_mut("requests")) else { return };
    for r in requests.items_mut() {
        if let Some(exact) = r.get_mut("exactly") {
            device_request(exact);
        }
        if let Some(list) = r.get_mut("firstAvailable") {
            list.items_mut().iter_mut().for_each(device_request);
        }
    }
}

fn device_request(r: &mut Value) {
    text(r, "allocationMode", "ExactCount");
    if r["allocationMode"].text() == "ExactCount" && r["count"].as_int().unwrap_or(0) == 0 {
        r.set("count", 1_i64);
    }
    for t in r.get_mut("tolerations").map(Value::items_mut).unwrap_or(&mut []) {
        text(t, "operator", "Equal");
    }
}

/// TokenRequest.
pub fn token_request(v: &mut Value) {
    spec(v).default_to("expirationSeconds", 3600_i64);
}
