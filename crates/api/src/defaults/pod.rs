//! Defaults of pods and of the pod templates in other kinds.

use crate::object::Value;
use crate::quantity::Quantity;

/// A pod.
pub fn pod(v: &mut Value) {
    let spec = v.make_object().entry("spec");
    if spec.is_null() {
        *spec = Value::object();
    }
    requests_from_limits(spec, true);
    spec.default_to("enableServiceLinks", true);
    if spec["hostNetwork"].as_bool() == Some(true) {
        host_ports(spec);
    }
    pod_spec(spec);
}

/// A pod template, as deployments and the like hold it.
pub fn template(v: &mut Value) {
    if let Some(spec) = v.make_object().entry("spec").make_object_if_null() {
        if spec["hostNetwork"].as_bool() == Some(true) {
            host_ports(spec);
        }
        pod_spec(spec);
    }
}

/// The template at `path`, which is made if the parent exists.
pub fn template_at(v: &mut Value, path: &[&str]) {
    let Some((last, parents)) = path.split_last() else { return };
    if let Some(parent) = v.at_mut(parents)
        && parent.as_object().is_some()
    {
        let t = parent.make_object().entry(last);
        if t.is_null() {
            *t = Value::object();
        }
        template(t);
    }
}

fn pod_spec(spec: &mut Value) {
    spec.default_to("dnsPolicy", "ClusterFirst");
    spec.default_to("restartPolicy", "Always");
    spec.default_to("securityContext", Value::object());
    spec.default_to("terminationGracePeriodSeconds", 30_i64);
    spec.default_to("schedulerName", "default-scheduler");
    for (key, fallback) in [
        ("dnsPolicy", "ClusterFirst"),
        ("restartPolicy", "Always"),
        ("schedulerName", "default-scheduler"),
    ] {
        if spec[key].text().is_empty() {
            spec.set(key, fallback);
        }
    }
    service_account_alias(spec);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        if let Some(items) = spec.get_mut(list) {
            items.items_mut().iter_mut().for_each(container);
        }
    }
    if let Some(volumes) = spec.get_mut("volumes") {
        volumes.items_mut().iter_mut().for_each(volume);
    }
    if let Some(r) = spec.get_mut("resources") {
        resources(r);
    }
    if let Some(overhead) = spec.get_mut("overhead") {
        resource_list(overhead);
    }
}

/// The old field `serviceAccount` always says the same as `serviceAccountName`.
fn service_account_alias(spec: &mut Value) {
    let name = match spec["serviceAccountName"].text() {
        "" => spec["serviceAccount"].text(),
        name => name,
    };
    if !name.is_empty() {
        let name = name.to_owned();
        spec.set("serviceAccount", name.as_str());
        spec.set("serviceAccountName", name);
    }
}

fn host_ports(spec: &mut Value) {
    for list in ["containers", "initContainers"] {
        let Some(items) = spec.get_mut(list) else { continue };
        for port in items
            .items_mut()
            .iter_mut()
            .flat_map(|c| c.get_mut("ports").map(Value::items_mut).unwrap_or(&mut []))
        {
            if port["hostPort"].as_int().unwrap_or(0) == 0
                && let Some(p) = port["containerPort"].as_int()
            {
                port.set("hostPort", p);
            }
        }
    }
}

/// What is limited and not requested is requested up to its limit.
fn requests_from_limits(spec: &mut Value, with_pod: bool) {
    let fill = |holder: &mut Value| {
        let Some(resources) = holder.get_mut("resources") else { return };
        let limits = resources["limits"].clone();
        for (key, limit) in limits.members() {
            let requests = resources.make_object().entry("requests").make_object();
            if !requests.contains_key(key) {
                requests.insert(key, limit.clone());
            }
        }
    };
    for list in ["containers", "initContainers"] {
        if let Some(items) = spec.get_mut(list) {
            items.items_mut().iter_mut().for_each(fill);
        }
    }
    if with_pod {
        pod_level_requests(spec);
    }
}

/// Requests of the pod as a whole: what containers ask for, else the pod's limit.
fn pod_level_requests(spec: &mut Value) {
    if !spec["resources"].has("limits") && !spec["resources"].has("requests") {
        return;
    }
    let limits = spec["resources"]["limits"].clone();
    for (key, limit) in limits.members() {
        if spec["resources"]["requests"].has(key) {
            continue;
        }
        let mut sum = Quantity::ZERO;
        let mut asked = false;
        for c in spec["containers"].items() {
            if let Some(q) = c.str_at(&["resources", "requests", key])
                && let Ok(q) = Quantity::parse(q)
            {
                sum = sum.plus(q);
                asked = true;
            }
        }
        let request = if asked { Value::from(sum.to_string()) } else { limit.clone() };
        spec.set_at(&["resources", "requests", key], request);
    }
}

fn container(c: &mut Value) {
    if !c.has("imagePullPolicy") || c["imagePullPolicy"].text().is_empty() {
        let policy = pull_policy(c["image"].text());
        c.set("imagePullPolicy", policy);
    }
    c.default_to("terminationMessagePath", "/dev/termination-log");
    c.default_to("terminationMessagePolicy", "File");
    if c["terminationMessagePath"].text().is_empty() {
        c.set("terminationMessagePath", "/dev/termination-log");
    }
    if c["terminationMessagePolicy"].text().is_empty() {
        c.set("terminationMessagePolicy", "File");
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = c.get_mut(probe) {
            self::probe(p);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(h) = c.at_mut(&["lifecycle", hook, "httpGet"]) {
            http_get(h);
        }
    }
    if let Some(env) = c.get_mut("env") {
        for e in env.items_mut() {
            field_ref(e.at_mut(&["valueFrom", "fieldRef"]));
        }
    }
    if let Some(r) = c.get_mut("resources") {
        resources(r);
    }
}

/// `Always` for images without a tag or with `latest`.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        _ => "Always",
    }
}

fn probe(p: &mut Value) {
    for (key, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        if p[key].as_int().unwrap_or(0) == 0 {
            p.set(key, value as i64);
        }
    }
    if let Some(h) = p.get_mut("httpGet") {
        http_get(h);
    }
    if let Some(g) = p.get_mut("grpc") {
        g.default_to("service", "");
    }
}

fn http_get(h: &mut Value) {
    if h["path"].text().is_empty() {
        h.set("path", "/");
    }
    if h["scheme"].text().is_empty() {
        h.set("scheme", "HTTP");
    }
}

fn field_ref(v: Option<&mut Value>) {
    if let Some(v) = v
        && v["apiVersion"].text().is_empty()
    {
        v.set("apiVersion", "v1");
    }
}

fn resources(r: &mut Value) {
    for list in ["limits", "requests"] {
        if let Some(l) = r.get_mut(list) {
            resource_list(l);
        }
    }
}

/// Quantities of resources are rounded up to thousandths.
pub fn resource_list(list: &mut Value) {
    let Some(map) = list.as_object_mut() else { return };
    for (_, v) in map.iter_mut() {
        let Ok(q) = Quantity::parse(v.text()) else { continue };
        let rounded = q.round_up_to_milli();
        if rounded != q {
            *v = Value::from(rounded.to_string());
        }
    }
}

const SOURCES_WITH_MODE: [&str; 4] = ["secret", "configMap", "downwardAPI", "projected"];

fn volume(v: &mut Value) {
    let has_source = v.members().any(|(k, source)| k != "name" && !source.is_null());
    if !has_source {
        v.set("emptyDir", Value::object());
    }
    for source in SOURCES_WITH_MODE {
        if let Some(s) = v.get_mut(source) {
            s.default_to("defaultMode", 420_i64);
        }
    }
    if let Some(items) = v.at_mut(&["downwardAPI", "items"]) {
        items.items_mut().iter_mut().for_each(|i| field_ref(i.get_mut("fieldRef")));
    }
    if let Some(sources) = v.at_mut(&["projected", "sources"]) {
        sources.items_mut().iter_mut().for_each(projection);
    }
    if let Some(h) = v.get_mut("hostPath") {
        h.default_to("type", "");
    }
    if let Some(image) = v.get_mut("image")
        && image["pullPolicy"].text().is_empty()
    {
        let policy = pull_policy(image["reference"].text());
        image.set("pullPolicy", policy);
    }
    if let Some(spec) = v.at_mut(&["ephemeral", "volumeClaimTemplate", "spec"]) {
        spec.default_to("volumeMode", "Filesystem");
    }
    if let Some(d) = v.get_mut("azureDisk") {
        for (key, value) in [("cachingMode", "ReadWrite"), ("kind", "Shared"), ("fsType", "ext4")] {
            d.default_to(key, value);
        }
        d.default_to("readOnly", false);
    }
}

fn projection(source: &mut Value) {
    if let Some(t) = source.get_mut("serviceAccountToken") {
        t.default_to("expirationSeconds", 3600_i64);
    }
    if let Some(items) = source.at_mut(&["downwardAPI", "items"]) {
        items.items_mut().iter_mut().for_each(|i| field_ref(i.get_mut("fieldRef")));
    }
    if let Some(p) = source.get_mut("podCertificate") {
        p.default_to("maxExpirationSeconds", 86_400_i64);
    }
}
