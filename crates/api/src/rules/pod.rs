//! Rules of pods and pod templates.

use super::amounts::resources;
use super::env::{env, env_from, resize_policies};
use super::scheduling::{affinity, spread, tolerations};
use super::security::{host_users, operating_system, pod_security, security};
use super::volumes::{mounts, volumes};
use super::{labels, non_negative, one_of, one_of_if_set, port, port_number, reasons};
use crate::error::{FieldErrors, FieldReason};
use crate::meta;
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
    let s = &new["spec"];
    if !s["ephemeralContainers"].is_empty() {
        errs.forbidden("spec.ephemeralContainers", "cannot be set on create");
    }
    if !s["nodeName"].text().is_empty() && !s["schedulingGates"].is_empty() {
        let text = "cannot be set until all schedulingGates have been cleared";
        errs.forbidden("spec.nodeName", text);
    }
    whole(new, errs);
}

/// All that is asked of a pod, new or not, beside what is asked of its spec in a template.
pub(super) fn whole(new: &Value, errs: &mut FieldErrors) {
    let s = &new["spec"];
    checked_spec("spec", s, Of::Pod(meta::name(new)), errs);
    annotations("metadata.annotations", new, s, errs);
    if !s["serviceAccountName"].text().is_empty() {
        return;
    }
    for (i, volume) in s["volumes"].items().iter().enumerate() {
        for (j, source) in volume["projected"]["sources"].items().iter().enumerate() {
            if source.has("serviceAccountToken") {
                errs.forbidden(
                    format!("spec.volumes[{i}].projected.sources[{j}].serviceAccountToken"),
                    "must not be specified when serviceAccountName is not set",
                );
            }
        }
    }
}

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Annotations that mean something to the server, of a pod or a template.
pub(super) fn annotations(at: &str, holder: &Value, spec: &Value, errs: &mut FieldErrors) {
    if let Some(cost) = meta::annotation(holder, DELETION_COST)
        && (cost.parse::<i32>().is_err()
            || cost.starts_with('+')
            || (cost.len() > 1 && cost.starts_with('0')))
    {
        errs.invalid(format!("{at}[{DELETION_COST}]"), cost, "must be a 32bit integer");
    }
    if let Some(mirror) = meta::annotation(holder, MIRROR)
        && !mirror.is_empty()
        && spec["nodeName"].text().is_empty()
    {
        let text = "must set spec.nodeName if mirror pod annotation is set";
        errs.invalid(format!("{at}[{MIRROR}]"), mirror, text);
    }
}

/// What a spec is of: some rules are older for templates.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of<'a> {
    /// A pod of this name.
    Pod(&'a str),
    Template,
}

/// The spec of a template at `path`.
pub fn spec(path: &str, s: &Value, errs: &mut FieldErrors) {
    checked_spec(path, s, Of::Template, errs);
    if !s["ephemeralContainers"].is_empty() {
        let text = "ephemeral containers not allowed in pod template";
        errs.forbidden(format!("{path}.ephemeralContainers"), text);
    }
}

fn checked_spec(path: &str, s: &Value, of: Of<'_>, errs: &mut FieldErrors) {
    let pod = if let Of::Pod(name) = of { name } else { "" };
    let volumes = volumes(&format!("{path}.volumes"), &s["volumes"], pod, errs);
    let claims: Vec<&str> = s["resourceClaims"].items().iter().map(|c| c["name"].text()).collect();
    let seen = Seen { volumes: &volumes, claims: &claims, spec: s, pod: of != Of::Template };
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
    host_port_conflicts(&format!("{path}.containers"), list, errs);
    for c in s["initContainers"].items() {
        host_port_conflicts(&format!("{path}.initContainers"), std::slice::from_ref(c), errs);
    }
    host_network(path, s, of != Of::Template, errs);
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
    pod_security(&format!("{path}.securityContext"), s, errs);
    host_users(path, s, errs);
    pod_resources(path, s, errs);
    if s["os"].get("name").is_some_and(|n| !n.text().is_empty()) {
        one_of(&format!("{path}.os"), &s["os"]["name"], &["linux", "windows"], errs);
    } else if s.has("os") {
        errs.required(format!("{path}.os.name"), "cannot be empty");
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
    volumes: &'a [&'a Value],
    claims: &'a [&'a str],
    spec: &'a Value,
    /// Of a pod, not of a template.
    pod: bool,
}

/// On the host's network a container's port is the host's.
fn host_network(path: &str, s: &Value, pod: bool, errs: &mut FieldErrors) {
    if s["hostNetwork"].as_bool() != Some(true) {
        return;
    }
    for (i, c) in s["containers"].items().iter().enumerate() {
        for (j, p) in c["ports"].items().iter().enumerate() {
            let host = p["hostPort"].as_int().unwrap_or(0);
            if (pod || host != 0) && host != p["containerPort"].as_int().unwrap_or(0) {
                let at = format!("{path}.containers[{i}].ports[{j}].hostPort");
                errs.invalid(at, host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

/// What the pod as a whole asks for holds what its containers ask for.
fn pod_resources(path: &str, s: &Value, errs: &mut FieldErrors) {
    if s.has("overhead") {
        let mut overhead = Value::object();
        overhead.set("limits", s["overhead"].clone());
        resources(&format!("{path}.overhead"), &overhead, errs);
    }
    let (at, whole) = (format!("{path}.resources"), &s["resources"]);
    if whole.is_null() {
        return;
    }
    if whole.has("claims") {
        let text = "claims cannot be set for Resources at pod-level";
        errs.forbidden(format!("{at}.claims"), text);
    }
    resources(&at, whole, errs);
    let read = |v: &Value| v.as_str().and_then(|text| Quantity::parse(text).ok());
    for (key, v) in whole["requests"].members() {
        let each = s["containers"].items().iter();
        let sum = each.filter_map(|c| read(&c["resources"]["requests"][key]));
        let sum = sum.fold(Quantity::ZERO, Quantity::plus);
        if read(v).is_some_and(|request| sum > request) {
            let why =
                format!("must be greater than or equal to aggregate container requests of {sum}");
            errs.invalid(format!("{at}.requests[{key}]"), v.clone(), why);
        }
    }
    for (i, c) in s["containers"].items().iter().enumerate() {
        for (key, v) in c["resources"]["limits"].members() {
            let most = read(&whole["limits"][key]);
            if let (Some(limit), Some(most)) = (read(v), most)
                && limit > most
            {
                let field = format!("{at}.containers[{i}][{key}].limits");
                let why = format!("must be less than or equal to pod limits of {most}");
                errs.invalid(field, v.clone(), why);
            }
        }
    }
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
    } else if image.trim() != image && seen.pod {
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
    let runs_to_end = at.contains("initContainers") && c["restartPolicy"].text() != "Always";
    let grace_s = seen.spec["terminationGracePeriodSeconds"].as_int();
    for (key, liveness) in
        [("livenessProbe", true), ("readinessProbe", false), ("startupProbe", true)]
    {
        probe(&format!("{at}.{key}"), &c[key], liveness, errs);
    }
    for hook in ["postStart", "preStop"] {
        if c["lifecycle"].has(hook) && !runs_to_end {
            let h = &c["lifecycle"][hook];
            handler(&format!("{at}.lifecycle.{hook}"), h, grace_s, errs);
        }
    }
    let restarts = ["Always", "Never", "OnFailure"];
    one_of_if_set(&format!("{at}.restartPolicy"), &c["restartPolicy"], &restarts, errs);
    let never = seen.spec["restartPolicy"].text() == "Never";
    resize_policies(&format!("{at}.resizePolicy"), &c["resizePolicy"], never, errs);
    resources(&format!("{at}.resources"), &c["resources"], errs);
    claimed(&format!("{at}.resources.claims"), &c["resources"]["claims"], seen.claims, errs);
    let host_users = seen.spec["hostUsers"].as_bool() != Some(false);
    security(&format!("{at}.securityContext"), &c["securityContext"], host_users, errs);
}

/// The devices that a container uses are among those of the pod.
fn claimed(path: &str, v: &Value, known: &[&str], errs: &mut FieldErrors) {
    let list = v.items();
    for (i, claim) in list.iter().enumerate() {
        let (at, n, request) =
            (format!("{path}[{i}]"), claim["name"].text(), claim["request"].text());
        if n.is_empty() {
            errs.required(at, "");
            continue;
        }
        let same = |o: &&Value| o["name"].text() == n;
        let all = |o: &Value| o["request"].text().is_empty();
        if list[..i].iter().filter(same).any(|o| all(o) || request.is_empty()) {
            errs.duplicate(&at, n);
        } else if list[..i].iter().filter(same).any(|o| o["request"].text() == request) {
            errs.duplicate(&at, format!("{n}/{request}"));
        }
        if !request.is_empty() {
            reasons(&format!("{at}.request"), request, name::dns_label(request), errs);
        }
        if !known.contains(&n) {
            let mut names = known.to_vec();
            names.sort_unstable();
            names.dedup();
            let list = match names.join(", ") {
                none if none.is_empty() => " which is empty".to_owned(),
                list => format!(": {list}"),
            };
            let text = format!("must be one of the names in pod.spec.resourceClaims{list}");
            errs.push(at, FieldReason::NotFoundIn(Value::from(n), text));
        }
    }
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
                errs.duplicate(format!("{path}[{i}].ports[{j}].hostPort"), text.as_str());
            }
            used.push(text);
        }
    }
}

fn probe(at: &str, p: &Value, single_success: bool, errs: &mut FieldErrors) {
    if p.is_null() {
        return;
    }
    handler(at, p, None, errs);
    for key in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        non_negative(&format!("{at}.{key}"), &p[key], errs);
    }
    if !single_success && p.has("terminationGracePeriodSeconds") {
        let shown = p["terminationGracePeriodSeconds"].clone();
        let text = "must not be set for readinessProbes";
        errs.invalid(format!("{at}.terminationGracePeriodSeconds"), shown, text);
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

/// One handler; a hook may sleep for as long as a pod has to end.
fn handler(at: &str, h: &Value, grace_s: Option<i64>, errs: &mut FieldErrors) {
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
                for header in h[key]["httpHeaders"].items() {
                    let n = header["name"].text();
                    reasons(&format!("{at}.httpHeaders"), n, name::header(n), errs);
                }
            }
            "tcpSocket" => port(&format!("{at}.port"), &h[key]["port"], errs),
            "grpc" => port_number(&format!("{at}.port"), &h[key]["port"], errs),
            "sleep" => {
                let seconds = h[key]["seconds"].as_int().unwrap_or(0);
                if let Some(grace_s) = grace_s.filter(|most| !(0..=*most).contains(&seconds)) {
                    let why = format!(
                        "must be non-negative and less than terminationGracePeriodSeconds ({grace_s})"
                    );
                    errs.invalid(at, seconds, why);
                }
            }
            _ => {}
        }
    }
    if kinds == 0 {
        errs.required(at, "must specify a handler type");
    }
}
