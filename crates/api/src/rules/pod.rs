//! Rules of pods and pod templates.

use super::scheduling::{affinity, spread, tolerations};
use super::security::{operating_system, security};
use super::volumes::{mounts, volumes};
use super::{labels, non_negative, one_of, one_of_if_set, port, port_number, reasons};
use crate::error::{FieldErrors, FieldReason};
use crate::name;
use crate::object::Value;
use crate::quantity::Quantity;

/// `Guaranteed`, `Burstable` or `BestEffort`, by the requests and limits of cpu and memory.
pub fn qos_class(spec: &Value) -> &'static str {
    let whole = &spec["resources"];
    let pod_level = !whole["requests"].is_empty() || !whole["limits"].is_empty();
    let all: Vec<&Value> = if pod_level {
        vec![whole]
    } else {
        let lists = [&spec["containers"], &spec["initContainers"]];
        lists.into_iter().flat_map(Value::items).map(|c| &c["resources"]).collect()
    };
    let set = |r: &Value, list: &str, key: &str| {
        let q = r[list][key].as_str().and_then(|s| crate::quantity::Quantity::parse(s).ok());
        q.filter(|q| !q.is_zero())
    };
    let mut any = false;
    let mut guaranteed = !all.is_empty();
    for r in all {
        for key in ["cpu", "memory"] {
            let (request, limit) = (set(r, "requests", key), set(r, "limits", key));
            any |= request.is_some() || limit.is_some();
            let same = request.is_none() || request == limit;
            guaranteed &= limit.is_some() && same;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Pod.
pub fn pod(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    if let Some(old) = old {
        super::pod_update::update(new, old, errs);
        return;
    }
    if !new["spec"]["ephemeralContainers"].is_empty() {
        errs.forbidden("spec.ephemeralContainers", "cannot be set on create");
    }
    spec("spec", &new["spec"], errs);
}

/// A pod's spec at `path`.
pub fn spec(path: &str, s: &Value, errs: &mut FieldErrors) {
    let volumes = volumes(&format!("{path}.volumes"), &s["volumes"], errs);
    let claims: Vec<&str> = s["resourceClaims"].items().iter().map(|c| c["name"].text()).collect();
    let seen = Seen { volumes: &volumes, claims: &claims };
    let mut names: Vec<String> = Vec::new();
    let list = s["containers"].items();
    if list.is_empty() {
        errs.required(format!("{path}.containers"), "");
    }
    containers(&format!("{path}.containers"), list, &seen, &mut names, false, errs);
    containers(
        &format!("{path}.initContainers"),
        s["initContainers"].items(),
        &seen,
        &mut names,
        true,
        errs,
    );
    operating_system(path, s, errs);
    host_port_conflicts(path, list, errs);
    one_of(
        &format!("{path}.restartPolicy"),
        &s["restartPolicy"],
        &["Always", "OnFailure", "Never"],
        errs,
    );
    let dns = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(&format!("{path}.dnsPolicy"), &s["dnsPolicy"], &dns, errs);
    dns_config(path, s, errs);
    labels(&format!("{path}.nodeSelector"), &s["nodeSelector"], errs);
    resource_claims(path, s, errs);
    tolerations(&format!("{path}.tolerations"), &s["tolerations"], errs);
    affinity(&format!("{path}.affinity"), &s["affinity"], errs);
    spread(&format!("{path}.topologySpreadConstraints"), &s["topologySpreadConstraints"], errs);
    names_of_others(path, s, errs);
    numbers(path, s, errs);
    security(&format!("{path}.securityContext"), &s["securityContext"], errs);
    if s.has("os") {
        one_of(&format!("{path}.os"), &s["os"]["name"], &["linux", "windows"], errs);
    }
    let policies = ["Never", "PreemptLowerPriority"];
    one_of_if_set(&format!("{path}.preemptionPolicy"), &s["preemptionPolicy"], &policies, errs);
}

fn names_of_others(path: &str, s: &Value, errs: &mut FieldErrors) {
    for key in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        let text = s[key].text();
        if !text.is_empty() {
            reasons(&format!("{path}.{key}"), text, name::dns_subdomain(text), errs);
        }
    }
    for key in ["hostname", "subdomain"] {
        let text = s[key].text();
        if !text.is_empty() {
            reasons(&format!("{path}.{key}"), text, name::dns_label(text), errs);
        }
    }
    let gates = s["schedulingGates"].items();
    for (i, g) in gates.iter().enumerate() {
        let at = format!("{path}.schedulingGates[{i}]");
        let n = g["name"].text();
        reasons(&at, n, name::qualified(n), errs);
        if gates[..i].contains(g) {
            errs.duplicate(at, n);
        }
    }
    for (i, g) in s["readinessGates"].items().iter().enumerate() {
        let n = g["conditionType"].text();
        reasons(&format!("{path}.readinessGates[{i}].conditionType"), n, name::qualified(n), errs);
    }
    for (i, a) in s["hostAliases"].items().iter().enumerate() {
        if a["ip"].text().parse::<std::net::IpAddr>().is_err() {
            errs.invalid(format!("{path}.hostAliases[{i}].ip"), a["ip"].text(), super::core::IP);
        }
        for (j, h) in a["hostnames"].items().iter().enumerate() {
            let at = format!("{path}.hostAliases[{i}].hostnames[{j}]");
            reasons(&at, h.text(), name::dns_subdomain(h.text()), errs);
        }
    }
}

fn numbers(path: &str, s: &Value, errs: &mut FieldErrors) {
    if let Some(n) = s["activeDeadlineSeconds"].as_int()
        && !(1..=i64::from(i32::MAX)).contains(&n)
    {
        errs.invalid(
            format!("{path}.activeDeadlineSeconds"),
            n,
            format!("must be between 1 and {}, inclusive", i32::MAX),
        );
    }
    non_negative(
        &format!("{path}.terminationGracePeriodSeconds"),
        &s["terminationGracePeriodSeconds"],
        errs,
    );
}

fn dns_config(path: &str, s: &Value, errs: &mut FieldErrors) {
    let d = &s["dnsConfig"];
    let servers = d["nameservers"].items();
    if s["dnsPolicy"].text() == "None" && d.is_null() {
        let text = "must provide `dnsConfig` when `dnsPolicy` is None";
        errs.required(format!("{path}.dnsConfig"), text);
    } else if s["dnsPolicy"].text() == "None" && servers.is_empty() {
        errs.required(
            format!("{path}.dnsConfig.nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        );
    }
    if servers.len() > 3 {
        errs.invalid(
            format!("{path}.dnsConfig.nameservers"),
            d["nameservers"].clone(),
            "must not have more than 3 nameservers",
        );
    }
    for (i, n) in servers.iter().enumerate() {
        if n.text().parse::<std::net::IpAddr>().is_err() {
            errs.invalid(format!("{path}.dnsConfig.nameservers[{i}]"), n.clone(), super::core::IP);
        }
    }
    for (i, search) in d["searches"].items().iter().enumerate() {
        // One dot may stand at the end, and one alone means none.
        let text = search.text().strip_suffix('.').unwrap_or(search.text());
        if !text.is_empty() {
            let found = name::search_domain(text);
            reasons(&format!("{path}.dnsConfig.searches[{i}]"), text, found, errs);
        }
    }
    for (i, o) in d["options"].items().iter().enumerate() {
        if o["name"].text().is_empty() {
            errs.required(format!("{path}.dnsConfig.options[{i}]"), "must not be empty");
        }
    }
}

fn resource_claims(path: &str, s: &Value, errs: &mut FieldErrors) {
    let list = s["resourceClaims"].items();
    for (i, c) in list.iter().enumerate() {
        let at = format!("{path}.resourceClaims[{i}]");
        let n = c["name"].text();
        if n.is_empty() {
            errs.required(format!("{at}.name"), "");
        } else if list[..i].iter().any(|o| o["name"].text() == n) {
            errs.duplicate(format!("{at}.name"), n);
        } else {
            reasons(&format!("{at}.name"), n, name::dns_label(n), errs);
        }
        match (c.has("resourceClaimName"), c.has("resourceClaimTemplateName")) {
            (true, true) => errs.invalid(
                at,
                super::internal(c),
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
            (false, false) => errs.invalid(
                at,
                super::internal(c),
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            _ => {}
        }
    }
}

/// What containers may refer to.
struct Seen<'a> {
    volumes: &'a [String],
    claims: &'a [&'a str],
}

fn containers(
    path: &str,
    list: &[Value],
    seen: &Seen<'_>,
    names: &mut Vec<String>,
    init: bool,
    errs: &mut FieldErrors,
) {
    for (i, c) in list.iter().enumerate() {
        let at = format!("{path}[{i}]");
        container(&at, c, seen, errs);
        let n = c["name"].text().to_owned();
        if !n.is_empty() && names.contains(&n) {
            errs.duplicate(format!("{at}.name"), n.as_str());
        }
        names.push(n);
        let sidecar = c["restartPolicy"].text() == "Always";
        if init && !sidecar {
            for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if c.has(key) {
                    let text = "may not be set for init containers without restartPolicy=Always";
                    errs.forbidden(format!("{at}.{key}"), text);
                }
            }
        }
    }
}

fn container(at: &str, c: &Value, seen: &Seen<'_>, errs: &mut FieldErrors) {
    match c["name"].text() {
        "" => errs.required(format!("{at}.name"), ""),
        n => reasons(&format!("{at}.name"), n, name::dns_label(n), errs),
    }
    let image = c["image"].text();
    if image.is_empty() {
        errs.required(format!("{at}.image"), "");
    } else if image.trim() != image && at.starts_with("spec.") && !at.contains("template") {
        let text = "must not have leading or trailing whitespace";
        errs.invalid(format!("{at}.image"), image, text);
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    one_of(&format!("{at}.imagePullPolicy"), &c["imagePullPolicy"], &policies, errs);
    let messages = ["File", "FallbackToLogsOnError"];
    one_of(
        &format!("{at}.terminationMessagePolicy"),
        &c["terminationMessagePolicy"],
        &messages,
        errs,
    );
    ports(&format!("{at}.ports"), &c["ports"], errs);
    env(&format!("{at}.env"), &c["env"], errs);
    env_from(&format!("{at}.envFrom"), &c["envFrom"], errs);
    mounts(at, c, seen.volumes, errs);
    for (key, liveness) in
        [("livenessProbe", true), ("readinessProbe", false), ("startupProbe", true)]
    {
        probe(&format!("{at}.{key}"), &c[key], liveness, errs);
    }
    for hook in ["postStart", "preStop"] {
        let runs_to_end = at.contains("initContainers") && c["restartPolicy"].text() != "Always";
        if c["lifecycle"].has(hook) && !runs_to_end {
            handler(&format!("{at}.lifecycle.{hook}"), &c["lifecycle"][hook], errs);
        }
    }
    resources(&format!("{at}.resources"), &c["resources"], errs);
    for (i, claim) in c["resources"]["claims"].items().iter().enumerate() {
        let n = claim["name"].text();
        if !seen.claims.contains(&n) {
            let text = format!("must be one of the names in pod.spec.resourceClaims: {}", {
                let mut names = seen.claims.to_vec();
                names.sort_unstable();
                names.dedup();
                names.join(", ")
            });
            let reason = FieldReason::NotFoundIn(Value::from(n), text);
            errs.push(format!("{at}.resources.claims[{i}]"), reason);
        }
    }
    security(&format!("{at}.securityContext"), &c["securityContext"], errs);
}

fn ports(path: &str, v: &Value, errs: &mut FieldErrors) {
    let list = v.items();
    for (i, p) in list.iter().enumerate() {
        let at = format!("{path}[{i}]");
        let n = p["name"].text();
        if !n.is_empty() {
            let wrong = name::port_name(n);
            if wrong.is_empty() && list[..i].iter().any(|o| o["name"].text() == n) {
                errs.duplicate(format!("{at}.name"), n);
            }
            reasons(&format!("{at}.name"), n, wrong, errs);
        }
        match p["containerPort"].as_int() {
            None | Some(0) => errs.required(format!("{at}.containerPort"), ""),
            _ => port_number(&format!("{at}.containerPort"), &p["containerPort"], errs),
        }
        if p["hostPort"].as_int().unwrap_or(0) != 0 {
            port_number(&format!("{at}.hostPort"), &p["hostPort"], errs);
        }
        one_of(&format!("{at}.protocol"), &p["protocol"], &["SCTP", "TCP", "UDP"], errs);
    }
}

fn host_port_conflicts(path: &str, list: &[Value], errs: &mut FieldErrors) {
    let mut used: Vec<String> = Vec::new();
    for (i, c) in list.iter().enumerate() {
        for (j, p) in c["ports"].items().iter().enumerate() {
            let port = p["hostPort"].as_int().unwrap_or(0);
            if port == 0 {
                continue;
            }
            let text = format!("{}/{}/{port}", p["protocol"].text(), p["hostIP"].text());
            if used.contains(&text) {
                errs.duplicate(
                    format!("{path}.containers[{i}].ports[{j}].hostPort"),
                    text.as_str(),
                );
            }
            used.push(text);
        }
    }
}

const FIELD_REFS: [&str; 10] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.hostname",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn env(path: &str, v: &Value, errs: &mut FieldErrors) {
    for (i, e) in v.items().iter().enumerate() {
        let at = format!("{path}[{i}]");
        match e["name"].text() {
            "" => errs.required(format!("{at}.name"), ""),
            n => reasons(&format!("{at}.name"), n, name::env_name(n), errs),
        }
        let from = &e["valueFrom"];
        if from.is_null() {
            continue;
        }
        let at = format!("{at}.valueFrom");
        let sources = from.members().filter(|(_, v)| !v.is_null()).count();
        if !e["value"].text().is_empty() {
            if sources > 0 {
                errs.invalid(&at, "", "may not be specified when `value` is not empty");
            }
        } else if sources > 1 {
            errs.invalid(&at, "", "may not have more than one field specified at a time");
        }
        if sources == 0 {
            errs.invalid(
                &at,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, \
                `secretKeyRef` or `fileKeyRef`",
            );
        }
        if from.has("fieldRef") {
            field_ref(&format!("{at}.fieldRef"), &from["fieldRef"], &FIELD_REFS, errs);
        }
        for key in ["configMapKeyRef", "secretKeyRef"] {
            if from.has(key) {
                if from[key]["name"].text().is_empty() {
                    errs.required(format!("{at}.{key}.name"), "");
                }
                match from[key]["key"].text() {
                    "" => errs.required(format!("{at}.{key}.key"), ""),
                    k => reasons(&format!("{at}.{key}.key"), k, name::config_key(k), errs),
                }
            }
        }
        if from.has("resourceFieldRef") && from["resourceFieldRef"]["resource"].text().is_empty() {
            errs.required(format!("{at}.resourceFieldRef.resource"), "");
        }
    }
}

fn field_ref(at: &str, r: &Value, known: &[&str], errs: &mut FieldErrors) {
    let field = r["fieldPath"].text();
    if field.is_empty() {
        errs.required(format!("{at}.fieldPath"), "");
        return;
    }
    let subscript =
        field.split_once("['").and_then(|(p, rest)| Some((p, rest.strip_suffix("']")?)));
    match subscript {
        Some(("metadata.annotations" | "metadata.labels", key)) => {
            let key = key.to_lowercase();
            reasons(at, &key, name::qualified(&key), errs);
        }
        Some(_) => {
            errs.invalid(format!("{at}.fieldPath"), field, "does not support subscript");
        }
        None if !known.contains(&field) => {
            let text = format!("error converting fieldPath: field label not supported: {field}");
            errs.invalid(format!("{at}.fieldPath"), field, text);
        }
        None => {}
    }
}

fn env_from(path: &str, v: &Value, errs: &mut FieldErrors) {
    for (i, e) in v.items().iter().enumerate() {
        let at = format!("{path}[{i}]");
        let prefix = e["prefix"].text();
        if !prefix.is_empty() {
            reasons(&format!("{at}.prefix"), prefix, name::env_name(prefix), errs);
        }
        let mut sources = 0;
        for key in ["configMapRef", "secretRef"] {
            if e.has(key) {
                sources += 1;
                if e[key]["name"].text().is_empty() {
                    errs.required(format!("{at}.{key}.name"), "");
                }
            }
        }
        match sources {
            0 => errs.invalid(at, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errs.invalid(at, "", "may not have more than one field specified at a time"),
        }
    }
}

fn probe(at: &str, p: &Value, single_success: bool, errs: &mut FieldErrors) {
    if p.is_null() {
        return;
    }
    handler(at, p, errs);
    for key in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        non_negative(&format!("{at}.{key}"), &p[key], errs);
    }
    if p["terminationGracePeriodSeconds"].as_int().is_some_and(|n| n <= 0) {
        let shown = p["terminationGracePeriodSeconds"].clone();
        errs.invalid(
            format!("{at}.terminationGracePeriodSeconds"),
            shown,
            "must be greater than 0",
        );
    }
    if single_success && p["successThreshold"].as_int().unwrap_or(1) != 1 {
        errs.invalid(format!("{at}.successThreshold"), p["successThreshold"].clone(), "must be 1");
    }
}

fn handler(at: &str, h: &Value, errs: &mut FieldErrors) {
    let mut kinds = 0;
    for key in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        if !h.has(key) {
            continue;
        }
        kinds += 1;
        let at = format!("{at}.{key}");
        if kinds > 1 {
            errs.forbidden(&at, "may not specify more than 1 handler type");
            continue;
        }
        match key {
            "exec" if h[key]["command"].is_empty() => errs.required(format!("{at}.command"), ""),
            "httpGet" => {
                if h[key]["path"].text().is_empty() {
                    errs.required(format!("{at}.path"), "");
                }
                port(&format!("{at}.port"), &h[key]["port"], errs);
                one_of(&format!("{at}.scheme"), &h[key]["scheme"], &["HTTP", "HTTPS"], errs);
            }
            "tcpSocket" => port(&format!("{at}.port"), &h[key]["port"], errs),
            "grpc" => port_number(&format!("{at}.port"), &h[key]["port"], errs),
            _ => {}
        }
    }
    if kinds == 0 {
        errs.required(at, "must specify a handler type");
    }
}

const STANDARD: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Requests and limits.
pub(super) fn resources(at: &str, r: &Value, errs: &mut FieldErrors) {
    for list in ["limits", "requests"] {
        for (key, v) in r[list].members() {
            let at = format!("{at}.{list}[{key}]");
            reasons(&at, key, name::qualified(key), errs);
            let standard =
                STANDARD.contains(&key) || key.starts_with("hugepages-") || key.contains('/');
            if !standard && name::qualified(key).is_empty() {
                errs.invalid(&at, key, "must be a standard resource type or fully qualified");
                errs.invalid(&at, key, "must be a standard resource for containers");
            }
            let Ok(q) = Quantity::parse(v.text()) else { continue };
            if q.is_negative() {
                errs.invalid(&at, v.clone(), super::NON_NEGATIVE);
            }
            if key.contains('/') && !q.is_whole() {
                errs.invalid(&at, v.clone(), "must be an integer");
            }
        }
    }
    for (key, v) in r["requests"].members() {
        let (Ok(request), Some(limit)) = (Quantity::parse(v.text()), r["limits"][key].as_str())
        else {
            if key.contains('/') && !r["limits"].has(key) {
                errs.required(
                    format!("{at}.limits"),
                    "Limit must be set for non overcommitable resources",
                );
            }
            continue;
        };
        let Ok(limit) = Quantity::parse(limit) else { continue };
        let extended = key.contains('/') || key.starts_with("hugepages-");
        if extended && request != limit {
            let text = format!("must be equal to {key} limit of {limit}");
            errs.invalid(format!("{at}.requests"), v.clone(), text);
        } else if !extended && request > limit {
            let text = format!("must be less than or equal to {key} limit of {limit}");
            errs.invalid(format!("{at}.requests"), v.clone(), text);
        }
    }
}

/// Warnings about a pod: variables that hide others.
pub fn warnings(new: &Value, _: Option<&Value>, out: &mut Vec<String>) {
    spec_warnings("spec", &new["spec"], out);
}

/// Warnings about the template of a workload.
pub fn template_warnings(new: &Value, _: Option<&Value>, out: &mut Vec<String>) {
    spec_warnings("spec.template.spec", &new["spec"]["template"]["spec"], out);
}

fn spec_warnings(path: &str, spec: &Value, out: &mut Vec<String>) {
    for list in ["containers", "initContainers"] {
        for (i, c) in spec[list].items().iter().enumerate() {
            let env = c["env"].items();
            for (j, e) in env.iter().enumerate() {
                let name = e["name"].text();
                if env[..j].iter().any(|o| o["name"].text() == name) {
                    out.push(format!(
                        "{path}.{list}[{i}].env[{j}]: hides previous definition of {name:?}, which may be \
                         dropped when using apply"
                    ));
                }
            }
        }
    }
}
