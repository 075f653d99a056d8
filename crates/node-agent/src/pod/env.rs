//! The environment of a container: its variables, and the `$(VAR)` in commands and values.
//!
//! Pure: ConfigMaps, Secrets and Services come in as values. What a pod refers to is named by
//! [`needs`], so that the shell can have it at hand. The downward API's fields are here too, since
//! variables and volumes share them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, Pod, ResourceFieldSelector, Secret, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use super::spec::NodeFacts;
use super::{Waiting, containers, ephemeral_containers, host_network, name, namespace, uid};

/// What a pod's variables come from, as far as it is there.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// ConfigMaps of the pod's namespace, by name.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// Secrets of the pod's namespace, by name.
    pub secrets: BTreeMap<String, Secret>,
    /// Services of the pod's namespace, and `default/kubernetes`.
    pub services: Vec<Arc<Service>>,
    /// The pod's addresses; on the node's network the node's count.
    pub pod_ips: Vec<String>,
}

/// The names of what a pod's variables refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// ConfigMaps.
    pub config_maps: BTreeSet<String>,
    /// Secrets.
    pub secrets: BTreeSet<String>,
}

/// What the variables of all containers of a pod refer to, optional or not.
#[must_use]
pub fn needs(pod: &Pod) -> Needs {
    let mut needs = Needs::default();
    let Some(spec) = &pod.spec else { return needs };
    let added = ephemeral_containers(spec);
    for container in containers(spec).map(|(_, c)| c).chain(&added) {
        for from in container.env_from.iter().flatten() {
            needs.config_maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
            needs.secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            needs.config_maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
            needs.secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
        }
    }
    needs
}

type Variables = BTreeMap<String, String>;

/// The variables of a container, by name.
///
/// # Errors
/// `CreateContainerConfigError` with Kubernetes' words, when something it needs is not there.
pub fn environment(
    pod: &Pod,
    container: &Container,
    node: &NodeFacts,
    sources: &Sources,
) -> Result<Vec<(String, String)>, Waiting> {
    let mut own = Variables::new();
    from_whole_objects(container, sources, &mut own).map_err(config_error)?;
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let services = service_variables(namespace(pod), &sources.services, links);
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => {
                let text = variable.value.as_deref().unwrap_or_default();
                let known = |name: &str| own.get(name).or_else(|| services.get(name)).cloned();
                Some(fill(text, known))
            }
            Some(source) => {
                value_from(pod, container, source, node, sources).map_err(config_error)?
            }
        };
        if let Some(value) = value {
            own.insert(variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        own.entry(name).or_insert(value);
    }
    Ok(own.into_iter().collect())
}

fn config_error(message: String) -> Waiting {
    Waiting { reason: "CreateContainerConfigError".to_owned(), message }
}

/// A command or argument with the variables of its container filled in.
#[must_use]
pub fn expand(text: &str, variables: &[(String, String)]) -> String {
    let known = |name: &str| {
        let found = variables.binary_search_by(|(known, _)| known.as_str().cmp(name));
        found.ok().map(|at| variables[at].1.clone())
    };
    fill(text, known)
}

/// Replaces `$(NAME)` by what `known` gives; unknown names stay, `$$` is a plain `$`.
fn fill(text: &str, known: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match known(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

fn from_whole_objects(
    container: &Container,
    sources: &Sources,
    out: &mut Variables,
) -> Result<(), String> {
    let usable = |key: &str| !key.is_empty() && !key.contains('=');
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(r) = &from.config_map_ref {
            match sources.config_maps.get(&r.name) {
                Some(map) => {
                    let data = map.data.iter().flatten().filter(|(key, _)| usable(key));
                    out.extend(data.map(|(key, value)| (format!("{prefix}{key}"), value.clone())));
                }
                None if r.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", r.name)),
            }
        }
        if let Some(r) = &from.secret_ref {
            match sources.secrets.get(&r.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten().filter(|(key, _)| usable(key))
                    {
                        let value = String::from_utf8_lossy(&value.0).into_owned();
                        out.insert(format!("{prefix}{key}"), value);
                    }
                }
                None if r.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", r.name)),
            }
        }
    }
    Ok(())
}

fn value_from(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    node: &NodeFacts,
    sources: &Sources,
) -> Result<Option<String>, String> {
    if let Some(r) = &source.field_ref {
        let unsupported = || format!("unsupported fieldPath: {}", r.field_path);
        return field(pod, &r.field_path, node, &sources.pod_ips).map(Some).ok_or_else(unsupported);
    }
    if let Some(r) = &source.resource_field_ref {
        let unsupported = || format!("unsupported container resource : {}", r.resource);
        return resource_field(pod, container, r, node).map(Some).ok_or_else(unsupported);
    }
    let ns = namespace(pod);
    if let Some(r) = &source.config_map_key_ref {
        let Some(map) = sources.config_maps.get(&r.name) else {
            let missing = format!("configmap {:?} not found", r.name);
            return if r.optional == Some(true) { Ok(None) } else { Err(missing) };
        };
        return match map.data.as_ref().and_then(|data| data.get(&r.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if r.optional == Some(true) => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {ns}/{}", r.key, r.name)),
        };
    }
    if let Some(r) = &source.secret_key_ref {
        let Some(secret) = sources.secrets.get(&r.name) else {
            let missing = format!("secret {:?} not found", r.name);
            return if r.optional == Some(true) { Ok(None) } else { Err(missing) };
        };
        return match secret.data.as_ref().and_then(|data| data.get(&r.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if r.optional == Some(true) => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {ns}/{}", r.key, r.name)),
        };
    }
    Ok(Some(String::new()))
}

/// A field of the downward API: `metadata.name`, `metadata.labels['x']`, `spec.nodeName`,
/// `status.podIP` and so on; none when there is no such field.
#[must_use]
pub fn field(pod: &Pod, path: &str, node: &NodeFacts, pod_ips: &[String]) -> Option<String> {
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.annotations" => &pod.metadata.annotations,
            "metadata.labels" => &pod.metadata.labels,
            _ => return None,
        };
        return Some(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let spec = pod.spec.as_ref();
    let ips = if host_network(pod) { &node.ips } else { pod_ips };
    Some(match path {
        "metadata.name" => name(pod).to_owned(),
        "metadata.namespace" => namespace(pod).to_owned(),
        "metadata.uid" => uid(pod).to_owned(),
        "metadata.labels" => formatted_map(pod.metadata.labels.as_ref()),
        "metadata.annotations" => formatted_map(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default()
        }
        "status.hostIP" => node.ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => node.ips.join(","),
        "status.podIP" => ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => ips.join(","),
        _ => return None,
    })
}

/// Labels or annotations as the downward API writes them: `key="value"` lines in order.
fn formatted_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
    lines.join("\n")
}

/// A request or limit of a container by the downward API, in units of the divisor, rounded up.
/// Limits that are not set are what the node has. None when there is no such container or resource.
#[must_use]
pub fn resource_field(
    pod: &Pod,
    own: &Container,
    selector: &ResourceFieldSelector,
    node: &NodeFacts,
) -> Option<String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let wanted = selector.container_name.as_deref().filter(|name| !name.is_empty());
    let container = match wanted {
        None => own,
        Some(wanted) => containers(&spec).map(|(_, c)| c).find(|c| c.name == wanted)?,
    };
    let (list, resource) = selector.resource.split_once('.')?;
    let resources = container.resources.clone().unwrap_or_default();
    let of = |list: Option<BTreeMap<String, Text>>| {
        let text = list.and_then(|mut list| list.remove(resource));
        text.and_then(|text| Quantity::parse(&text.0).ok())
    };
    let of_node = match resource {
        "cpu" => Quantity::of_milli(node.cpu_milli),
        "memory" => Quantity::of(node.memory_bytes),
        _ => Quantity::ZERO,
    };
    let value = match list {
        "limits" => of(resources.limits).filter(|q| !q.is_zero()).unwrap_or(of_node),
        "requests" => of(resources.requests).unwrap_or(Quantity::ZERO),
        _ => return None,
    };
    let divisor = selector.divisor.as_ref().and_then(|d| Quantity::parse(&d.0).ok());
    let divisor = divisor.filter(|d| !d.is_zero()).unwrap_or(Quantity::of(1));
    // In thousandths, which is as fine as either may be.
    let (value, divisor) = if resource == "cpu" {
        (value.milli_value(), divisor.milli_value())
    } else {
        (value.value(), divisor.value())
    };
    Some(((value + divisor - 1) / divisor.max(1)).to_string())
}

/// The variables that tell of Services, as Docker links once did.
fn service_variables(namespace: &str, services: &[Arc<Service>], links: bool) -> Variables {
    let mut out = Variables::new();
    let mut chosen: BTreeMap<String, &Service> = BTreeMap::new();
    for service in services {
        let meta = &service.metadata;
        let (ns, name) = (meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref());
        let Some(name) = name else { continue };
        let master = ns == "default" && name == "kubernetes";
        // A Service of the pod's own namespace goes before the API server's of the same name.
        if links && ns == namespace {
            chosen.insert(name.to_owned(), service);
        } else if master {
            chosen.entry(name.to_owned()).or_insert(service);
        }
    }
    for (name, service) in chosen {
        let Some(spec) = &service.spec else { continue };
        let ip = spec.cluster_ip.as_deref().unwrap_or_default();
        if ip.is_empty() || ip == "None" {
            continue;
        }
        let prefix = name.to_uppercase().replace(['-', '.'], "_");
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        out.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
        for (i, port) in spec.ports.iter().flatten().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let number = port.port;
            let url = format!("{}://{host}:{number}", protocol.to_lowercase());
            if i == 0 {
                out.insert(format!("{prefix}_SERVICE_PORT"), number.to_string());
                out.insert(format!("{prefix}_PORT"), url.clone());
            }
            if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                let name = name.to_uppercase().replace(['-', '.'], "_");
                out.insert(format!("{prefix}_SERVICE_PORT_{name}"), number.to_string());
            }
            let link = format!("{prefix}_PORT_{number}_{}", protocol.to_uppercase());
            out.insert(link.clone(), url);
            out.insert(format!("{link}_PROTO"), protocol.to_lowercase());
            out.insert(format!("{link}_PORT"), number.to_string());
            out.insert(format!("{link}_ADDR"), ip.to_owned());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(container: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u",
                "labels": {"app": "web", "a": "b"}},
            "spec": {"nodeName": "n1", "containers": [container]},
        }))
        .unwrap()
    }

    fn node() -> NodeFacts {
        let ips = vec!["192.0.2.1".to_owned()];
        NodeFacts { ips, cpu_milli: 4000, memory_bytes: 8 << 30, ..Default::default() }
    }

    fn sources() -> Sources {
        let map: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": "cm"}, "data": {"greeting": "hi", "b=c": "bad name"}}))
        .unwrap();
        let secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": "s"}, "data": {"k": "cHc="}}))
                .unwrap();
        let service = |ns: &str, name: &str, ip: &str| -> Arc<Service> {
            let ports = json!([{"name": "web-port", "port": 80}, {"port": 53, "protocol": "UDP"}]);
            let spec = json!({"clusterIP": ip, "ports": ports});
            let meta = json!({"name": name, "namespace": ns});
            Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap())
        };
        Sources {
            config_maps: [("cm".to_owned(), map)].into(),
            secrets: [("s".to_owned(), secret)].into(),
            services: vec![
                service("default", "kubernetes", "10.96.0.1"),
                service("shop", "my-db", "10.96.0.9"),
                service("shop", "headless", "None"),
                service("other", "far", "10.96.0.7"),
            ],
            pod_ips: vec!["10.0.0.5".to_owned()],
        }
    }

    fn variables_of(container: Value) -> Result<Variables, Waiting> {
        let pod = pod(container);
        let spec = pod.spec.clone().unwrap();
        let list = environment(&pod, &spec.containers[0], &node(), &sources())?;
        Ok(list.into_iter().collect())
    }

    #[test]
    fn names_in_parentheses_are_replaced_and_dollars_escape() {
        let known = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, want) in [
            ("$(A)", "1"),
            ("x$(A)$(A)y", "x11y"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("a$", "a$"),
        ] {
            assert_eq!(fill(text, known), want, "{text}");
        }
    }

    #[test]
    fn later_variables_see_earlier_ones_and_whole_objects() {
        let env = variables_of(json!({"name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}}],
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)-$(P_greeting)-$(LATER)"},
                {"name": "DB", "value": "$(MY_DB_SERVICE_HOST)"},
                {"name": "k", "value": "over"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "G", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "greeting"}}},
                {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "O", "valueFrom": {"secretKeyRef": {"name": "no", "key": "k", "optional": true}}},
            ]}))
        .unwrap();
        for (name, want) in [
            ("B", "1-hi-$(LATER)"),
            ("DB", "10.96.0.9"),
            ("k", "over"),
            ("IP", "10.0.0.5"),
            ("APP", "web"),
            ("G", "hi"),
            ("S", "pw"),
        ] {
            assert_eq!(env[name], want, "{name}");
        }
        assert!(!env.contains_key("O") && !env.contains_key("P_b=c"));
    }

    #[test]
    fn services_of_the_namespace_and_the_api_server_are_told_of() {
        let env = variables_of(json!({"name": "c"})).unwrap();
        assert_eq!(env["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
        assert_eq!(env["MY_DB_SERVICE_PORT_WEB_PORT"], "80");
        assert_eq!(env["MY_DB_PORT"], "tcp://10.96.0.9:80");
        assert_eq!(env["MY_DB_PORT_53_UDP_PROTO"], "udp");
        assert!(!env.keys().any(|name| name.starts_with("FAR_") || name.starts_with("HEADLESS_")));
    }

    #[test]
    fn what_is_missing_is_said_as_kubernetes_says_it() {
        let source = |source: Value| {
            variables_of(json!({"name": "c", "env": [{"name": "A", "valueFrom": source}]}))
                .unwrap_err()
        };
        let waiting = source(json!({"configMapKeyRef": {"name": "no", "key": "k"}}));
        assert_eq!(waiting.reason, "CreateContainerConfigError");
        assert_eq!(waiting.message, "configmap \"no\" not found");
        let waiting = source(json!({"secretKeyRef": {"name": "s", "key": "no"}}));
        assert_eq!(waiting.message, "couldn't find key no in Secret shop/s");
    }

    #[test]
    fn resources_count_in_divisors_and_fall_back_to_the_node() {
        let container = json!({"name": "c",
            "resources": {"limits": {"memory": "100Mi"}, "requests": {"cpu": "250m"}}});
        let pod = pod(container);
        let own = &pod.spec.as_ref().unwrap().containers[0];
        let ask = |resource: &str, divisor: &str| {
            let selector = json!({"resource": resource, "divisor": divisor});
            resource_of(&pod, own, selector)
        };
        assert_eq!(ask("limits.memory", "1Mi"), "100");
        assert_eq!(ask("limits.memory", "0"), "104857600");
        assert_eq!(ask("requests.cpu", "1"), "1", "rounded up");
        assert_eq!(ask("requests.cpu", "1m"), "250");
        assert_eq!(ask("limits.cpu", "1"), "4", "the node's");
    }

    fn resource_of(pod: &Pod, own: &Container, selector: Value) -> String {
        resource_field(pod, own, &serde_json::from_value(selector).unwrap(), &node()).unwrap()
    }
}
