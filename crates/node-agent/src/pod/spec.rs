//! What the runtime is asked for, made from a pod: sandbox, containers, security, DNS.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, Pod, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
};
use sha2::{Digest, Sha256};

use super::resources::{self, Limits};
use super::{Waiting, host_network, name, namespace, uid};

/// Longest hostname that the kernel takes.
const HOSTNAME_BYTES_MAX: usize = 63;

/// What of the node matters to its pods.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// The node's name.
    pub name: String,
    /// Its addresses; the first counts.
    pub ips: Vec<String>,
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// Processors, in thousandths.
    pub cpu_milli: i64,
    /// Address of the cluster's DNS, or empty.
    pub cluster_dns: String,
    /// `cluster.local`
    pub cluster_domain: String,
    /// The node's own resolver settings, for pods that use them.
    pub resolver: Dns,
    /// Cgroup of all pods.
    pub cgroup_root: String,
    /// Where logs of pods go.
    pub log_dir: String,
}

/// The sandbox wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SandboxWish {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod uid.
    pub uid: String,
    /// How many sandboxes there were before.
    pub attempt: u32,
    /// Host name inside.
    pub hostname: String,
    /// Log directory.
    pub log_dir: String,
    /// Resolver settings; the node's file where none.
    pub dns: Option<Dns>,
    /// Ports of the node that lead to the pod.
    pub host_ports: Vec<HostPort>,
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    pub annotations: BTreeMap<String, String>,
    /// Where its cgroups go.
    pub cgroup_parent: String,
    /// Kernel settings.
    pub sysctls: BTreeMap<String, String>,
    /// Use the node's network.
    pub host_network: bool,
    /// See the node's processes.
    pub host_pid: bool,
    /// Share the node's IPC.
    pub host_ipc: bool,
    /// All containers see each other's processes.
    pub share_pid: bool,
    /// The runtime handler, empty for the default.
    pub handler: String,
    /// Security of the pause process.
    pub security: Security,
}

/// A port of the node that leads to a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// In the pod.
    pub container_port: i32,
    /// On the node.
    pub host_port: i32,
    /// Address of the node, or empty for all.
    pub host_ip: String,
}

/// Resolver settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// The container wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerWish {
    /// Its name.
    pub name: String,
    /// The container whose processes it sees; its own if none is named.
    pub target_id: Option<String>,
    /// How many runs there were before.
    pub attempt: u32,
    /// The image's id on this node.
    pub image_id: String,
    /// Replaces the image's entry point.
    pub command: Vec<String>,
    /// Replaces the image's arguments.
    pub args: Vec<String>,
    /// Where it starts.
    pub working_dir: String,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// What is mounted in it.
    pub mounts: Vec<Mount>,
    /// Fingerprint of the spec, to see when it must be replaced.
    pub fingerprint: String,
    /// Grace in seconds at its end.
    pub grace_s: i64,
    /// Termination message file in the container.
    pub message_path: String,
    /// What is done when that file is empty.
    pub message_policy: String,
    /// Log file below the sandbox's log directory.
    pub log_path: String,
    /// Keep stdin open.
    pub stdin: bool,
    /// Close stdin after the first attach.
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Its share of the machine.
    pub limits: Limits,
    /// Its security.
    pub security: Security,
}

/// How mounts made on one side show on the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// The node's show in the container.
    FromHost,
    /// Both ways.
    BothWays,
}

/// A mount of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// On the node.
    pub host_path: String,
    /// In the container.
    pub container_path: String,
    /// Cannot be written.
    pub read_only: bool,
    /// See the type.
    pub propagation: Propagation,
}

/// A seccomp profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// No filter.
    #[default]
    Unconfined,
    /// The runtime's.
    RuntimeDefault,
    /// A file on the node.
    Localhost(String),
}

/// What a process may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// User id.
    pub user: Option<i64>,
    /// User name, where the image gives only that.
    pub user_name: String,
    /// Group id.
    pub group: Option<i64>,
    /// More groups.
    pub groups: Vec<i64>,
    /// Everything is allowed.
    pub privileged: bool,
    /// The root file system cannot be written.
    pub read_only_root: bool,
    /// No way to gain privileges.
    pub no_new_privileges: bool,
    /// Capabilities added.
    pub add_capabilities: Vec<String>,
    /// Capabilities taken away.
    pub drop_capabilities: Vec<String>,
    /// System call filter.
    pub seccomp: Seccomp,
    /// Paths of /proc that are hidden.
    pub masked_paths: Vec<String>,
    /// Paths of /proc that cannot be written.
    pub read_only_paths: Vec<String>,
}

const MASKED_PATHS: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY_PATHS: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The directory of a pod's logs below `root`.
#[must_use]
pub fn log_dir(root: &str, pod: &Pod) -> String {
    format!("{root}/{}_{}_{}", namespace(pod), name(pod), uid(pod))
}

/// What identifies a container's present spec: a new image makes a new container.
#[must_use]
pub fn fingerprint(container: &Container) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    let hash = Sha256::digest(format!("{}\n{image}", container.name));
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Grace in seconds that the pod asks for.
#[must_use]
pub fn grace_s(spec: &PodSpec) -> i64 {
    spec.termination_grace_period_seconds.unwrap_or(30)
}

/// The host name inside a pod.
#[must_use]
pub fn hostname(pod: &Pod) -> String {
    let own = pod.spec.as_ref().and_then(|spec| spec.hostname.as_deref());
    let text = own.filter(|h| !h.is_empty()).unwrap_or(name(pod));
    let cut = &text[..text.len().min(HOSTNAME_BYTES_MAX)];
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The fully qualified name of a pod with a subdomain.
#[must_use]
pub fn fqdn(pod: &Pod, node: &NodeFacts) -> Option<String> {
    let subdomain = pod.spec.as_ref()?.subdomain.as_deref().filter(|s| !s.is_empty())?;
    Some(format!("{}.{subdomain}.{}.svc.{}", hostname(pod), namespace(pod), node.cluster_domain))
}

/// The sandbox of a pod.
#[must_use]
pub fn sandbox(pod: &Pod, node: &NodeFacts, attempt: u32) -> SandboxWish {
    let spec = pod.spec.clone().unwrap_or_default();
    let context = spec.security_context.clone().unwrap_or_default();
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    let host_ports =
        ports.filter(|p| p.host_port.is_some_and(|port| port != 0)).map(|p| HostPort {
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            container_port: p.container_port,
            host_port: p.host_port.unwrap_or_default(),
            host_ip: p.host_ip.clone().unwrap_or_default(),
        });
    let privileged = |c: &Container| c.security_context.as_ref()?.privileged;
    let full = spec.set_hostname_as_fqdn.unwrap_or(false);
    SandboxWish {
        name: name(pod).to_owned(),
        namespace: namespace(pod).to_owned(),
        uid: uid(pod).to_owned(),
        attempt,
        hostname: fqdn(pod, node).filter(|_| full).unwrap_or_else(|| hostname(pod)),
        log_dir: log_dir(&node.log_dir, pod),
        dns: Some(dns(pod, &spec, node)),
        host_ports: if host_network(pod) { Vec::new() } else { host_ports.collect() },
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        cgroup_parent: resources::cgroup(&node.cgroup_root, &spec, uid(pod)),
        sysctls: context
            .sysctls
            .iter()
            .flatten()
            .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
            .collect(),
        host_network: host_network(pod),
        host_pid: spec.host_pid.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        share_pid: spec.share_process_namespace.unwrap_or(false),
        handler: String::new(),
        security: Security {
            user: context.run_as_user,
            group: context.run_as_group,
            groups: pod_groups(&context),
            privileged: spec.containers.iter().any(|c| privileged(c) == Some(true)),
            seccomp: Seccomp::RuntimeDefault,
            ..Security::default()
        },
    }
}

fn pod_groups(context: &PodSecurityContext) -> Vec<i64> {
    let mut groups = context.supplemental_groups.clone().unwrap_or_default();
    groups.extend(context.fs_group);
    groups
}

/// Resolver settings of a pod by its DNS policy.
fn dns(pod: &Pod, spec: &PodSpec, node: &NodeFacts) -> Dns {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut dns = if policy == "None" {
        Dns::default()
    } else if cluster && !node.cluster_dns.is_empty() {
        let domain = &node.cluster_domain;
        let mut searches = vec![
            format!("{}.svc.{domain}", namespace(pod)),
            format!("svc.{domain}"),
            domain.clone(),
        ];
        searches.extend(node.resolver.searches.iter().cloned());
        let servers = vec![node.cluster_dns.clone()];
        Dns { servers, searches, options: vec!["ndots:5".to_owned()] }
    } else {
        node.resolver.clone()
    };
    if let Some(own) = &spec.dns_config {
        let add = |list: &mut Vec<String>, more: Option<&Vec<String>>| {
            for item in more.into_iter().flatten() {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
        };
        add(&mut dns.servers, own.nameservers.as_ref());
        add(&mut dns.searches, own.searches.as_ref());
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            dns.options.retain(|o| o.split(':').next() != Some(name));
            dns.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    dns
}

/// A container of a pod; environment, mounts and image come from elsewhere.
///
/// # Errors
/// When its security context forbids the user it would run as.
pub fn container(
    pod: &Pod,
    container: &Container,
    node: &NodeFacts,
    attempt: u32,
    image_user: &Result<i64, String>,
) -> Result<ContainerWish, Waiting> {
    let spec = pod.spec.clone().unwrap_or_default();
    Ok(ContainerWish {
        name: container.name.clone(),
        attempt,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        fingerprint: fingerprint(container),
        grace_s: grace_s(&spec),
        message_path: container
            .termination_message_path
            .clone()
            .unwrap_or_else(|| "/dev/termination-log".to_owned()),
        message_policy: container
            .termination_message_policy
            .clone()
            .unwrap_or_else(|| "File".to_owned()),
        log_path: format!("{}/{attempt}.log", container.name),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        limits: resources::limits(&spec, container, node.memory_bytes),
        security: security(pod, &spec, container, image_user)?,
        ..ContainerWish::default()
    })
}

fn security(
    pod: &Pod,
    spec: &PodSpec,
    container: &Container,
    image_user: &Result<i64, String>,
) -> Result<Security, Waiting> {
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let user = own.run_as_user.or(of_pod.run_as_user);
    let non_root = own.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false);
    if non_root {
        refuse_root(pod, container, user, image_user)?;
    }
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| {
        if unmasked { Vec::new() } else { list.iter().map(ToString::to_string).collect() }
    };
    let image_name = image_user.as_ref().err().cloned().unwrap_or_default();
    Ok(Security {
        user: user.or(image_user.as_ref().ok().copied()),
        user_name: if user.is_none() { image_name } else { String::new() },
        group: own.run_as_group.or(of_pod.run_as_group),
        groups: pod_groups(&of_pod),
        privileged,
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        seccomp: seccomp(&own, &of_pod),
        masked_paths: paths(MASKED_PATHS),
        read_only_paths: paths(READ_ONLY_PATHS),
    })
}

fn refuse_root(
    pod: &Pod,
    container: &Container,
    user: Option<i64>,
    image_user: &Result<i64, String>,
) -> Result<(), Waiting> {
    let place = format!(
        "(pod: \"{}_{}({})\", container: {})",
        name(pod),
        namespace(pod),
        uid(pod),
        container.name
    );
    let message = match (user, image_user) {
        (Some(0), _) => {
            format!("container's runAsUser breaks non-root policy {place}")
        }
        (None, Ok(0)) => {
            format!("container has runAsNonRoot and image will run as root {place}")
        }
        (None, Err(name)) if !name.is_empty() => format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {place}"
        ),
        _ => return Ok(()),
    };
    Err(Waiting { reason: "CreateContainerConfigError".to_owned(), message })
}

fn seccomp(own: &SecurityContext, of_pod: &PodSecurityContext) -> Seccomp {
    let profile: Option<&SeccompProfile> =
        own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref());
    match profile.map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => Seccomp::RuntimeDefault,
        Some("Localhost") => {
            let file = profile.and_then(|p| p.localhost_profile.clone()).unwrap_or_default();
            Seccomp::Localhost(format!("/var/lib/kubelet/seccomp/{file}"))
        }
        _ => Seccomp::Unconfined,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn pod(spec: PodSpec) -> Pod {
        let metadata = ObjectMeta {
            name: Some("web".into()),
            namespace: Some("ns".into()),
            uid: Some("u".into()),
            ..Default::default()
        };
        Pod { metadata, spec: Some(spec), ..Default::default() }
    }

    fn node() -> NodeFacts {
        NodeFacts {
            cluster_dns: "10.96.0.10".into(),
            cluster_domain: "cluster.local".into(),
            resolver: Dns { servers: vec!["1.1.1.1".into()], ..Dns::default() },
            ..NodeFacts::default()
        }
    }

    #[test]
    fn the_cluster_comes_first_in_dns() {
        let dns = sandbox(&pod(PodSpec::default()), &node(), 0).dns.unwrap();
        assert_eq!(dns.servers, ["10.96.0.10"]);
        assert_eq!(dns.searches, ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
        assert_eq!(dns.options, ["ndots:5"]);
        let host = PodSpec { host_network: Some(true), ..Default::default() };
        assert_eq!(sandbox(&pod(host), &node(), 0).dns.unwrap().servers, ["1.1.1.1"]);
    }

    #[test]
    fn root_is_refused_where_the_pod_says_so() {
        let context = SecurityContext { run_as_non_root: Some(true), ..Default::default() };
        let c =
            Container { name: "c".into(), security_context: Some(context), ..Default::default() };
        let pod = pod(PodSpec { containers: vec![c.clone()], ..Default::default() });
        let error = container(&pod, &c, &node(), 0, &Ok(0)).unwrap_err();
        assert_eq!(error.reason, "CreateContainerConfigError");
        assert_eq!(
            error.message,
            "container has runAsNonRoot and image will run as root (pod: \"web_ns(u)\", container: c)"
        );
        assert!(container(&pod, &c, &node(), 0, &Ok(1000)).is_ok());
    }
}
