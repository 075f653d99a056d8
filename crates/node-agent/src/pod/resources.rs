//! A pod's share of the machine: its QoS class, its containers' limits and its cgroup.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

const CPU_PERIOD_US: i64 = 100_000;
const CPU_QUOTA_LEAST_US: i64 = 1000;
const CPU_SHARES_LEAST: i64 = 2;
const CPU_SHARES_MOST: i64 = 262_144;

/// Limits of one container or pod, as cgroups want them; 0 is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Accounting period in microseconds.
    pub cpu_period_us: i64,
    /// Processor time per period in microseconds.
    pub cpu_quota_us: i64,
    /// Relative weight.
    pub cpu_shares: i64,
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// How readily the kernel kills it, -1000 to 1000.
    pub oom_score_adj: i64,
}

/// How well a pod is treated when the node runs short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Every container has equal requests and limits of cpu and memory.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl Qos {
    /// The class as the API words it.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

type List = BTreeMap<String, Text>;

fn quantity(list: Option<&List>, name: &str) -> Option<Quantity> {
    Quantity::parse(&list?.get(name)?.0).ok().filter(|q| !q.is_zero())
}

fn parts(container: &Container) -> (Option<&List>, Option<&List>) {
    let resources: Option<&ResourceRequirements> = container.resources.as_ref();
    let requests = resources.and_then(|r| r.requests.as_ref());
    (requests, resources.and_then(|r| r.limits.as_ref()))
}

/// The QoS class of a pod.
#[must_use]
pub fn qos(spec: &PodSpec) -> Qos {
    let (mut any, mut all) = (false, true);
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let (requests, limits) = parts(container);
        for name in ["cpu", "memory"] {
            let limit = quantity(limits, name);
            let request = quantity(requests, name).or(limit);
            any |= limit.is_some() || request.is_some();
            let equal = match (request, limit) {
                (Some(r), Some(l)) => r.milli_value() == l.milli_value(),
                _ => false,
            };
            all &= equal;
        }
    }
    match (any, all) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// The relative weight for so many thousandths of a processor.
#[must_use]
pub fn cpu_shares(milli: i64) -> i64 {
    (milli.saturating_mul(1024) / 1000).clamp(CPU_SHARES_LEAST, CPU_SHARES_MOST)
}

fn cpu_quota(milli: i64) -> i64 {
    (milli.saturating_mul(CPU_PERIOD_US) / 1000).max(CPU_QUOTA_LEAST_US)
}

fn oom_score_adj(qos: Qos, memory_request: i64, node_memory: i64) -> i64 {
    match qos {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let share = memory_request.saturating_mul(1000) / node_memory.max(1);
            (1000 - share).clamp(3, 999)
        }
    }
}

/// The limits of one container on a node with so many bytes of memory.
#[must_use]
pub fn limits(spec: &PodSpec, container: &Container, node_memory: i64) -> Limits {
    let (requests, limits) = parts(container);
    let cpu_limit = quantity(limits, "cpu").map(Quantity::milli_value);
    let cpu = quantity(requests, "cpu").map(Quantity::milli_value).or(cpu_limit);
    let memory = quantity(requests, "memory").or_else(|| quantity(limits, "memory"));
    Limits {
        cpu_period_us: if cpu_limit.is_some() { CPU_PERIOD_US } else { 0 },
        cpu_quota_us: cpu_limit.map_or(0, cpu_quota),
        cpu_shares: cpu_shares(cpu.unwrap_or(0)),
        memory_bytes: quantity(limits, "memory").map_or(0, Quantity::value),
        oom_score_adj: oom_score_adj(qos(spec), memory.map_or(0, Quantity::value), node_memory),
    }
}

/// The limits of a pod as a whole: sums over its containers, where all of them have one.
#[must_use]
pub fn pod_limits(spec: &PodSpec) -> Limits {
    let mut total = Limits { cpu_period_us: CPU_PERIOD_US, ..Limits::default() };
    let (mut shares, mut quota, mut memory) = (0_i64, Some(0_i64), Some(0_i64));
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.is_some());
    for container in spec.containers.iter().chain(sidecars) {
        let (requests, limits) = parts(container);
        let cpu_limit = quantity(limits, "cpu").map(Quantity::milli_value);
        let cpu = quantity(requests, "cpu").map(Quantity::milli_value).or(cpu_limit);
        shares = shares.saturating_add(cpu.unwrap_or(0));
        quota = quota.zip(cpu_limit).map(|(sum, limit)| sum.saturating_add(limit));
        let bytes = quantity(limits, "memory").map(Quantity::value);
        memory = memory.zip(bytes).map(|(sum, limit)| sum.saturating_add(limit));
    }
    total.cpu_shares = cpu_shares(shares);
    total.cpu_quota_us = quota.map_or(0, cpu_quota);
    if total.cpu_quota_us == 0 {
        total.cpu_period_us = 0;
    }
    total.memory_bytes = memory.unwrap_or(0);
    total
}

/// The cgroup of a pod below `root`, in cgroupfs style.
#[must_use]
pub fn cgroup(root: &str, spec: &PodSpec, uid: &str) -> String {
    match qos(spec) {
        Qos::Guaranteed => format!("/{root}/pod{uid}"),
        Qos::Burstable => format!("/{root}/burstable/pod{uid}"),
        Qos::BestEffort => format!("/{root}/besteffort/pod{uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> PodSpec {
        let list = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), Text((*v).to_owned()))).collect())
        };
        let resources = ResourceRequirements {
            requests: list(requests),
            limits: list(limits),
            ..Default::default()
        };
        let container = Container { resources: Some(resources), ..Default::default() };
        PodSpec { containers: vec![container], ..Default::default() }
    }

    #[test]
    fn classes() {
        let both = [("cpu", "1"), ("memory", "1Gi")];
        assert_eq!(qos(&spec(&[], &[])), Qos::BestEffort);
        assert_eq!(qos(&spec(&both, &both)), Qos::Guaranteed);
        assert_eq!(qos(&spec(&[], &both)), Qos::Guaranteed);
        assert_eq!(qos(&spec(&both, &[])), Qos::Burstable);
        assert_eq!(qos(&spec(&[("cpu", "100m")], &[])), Qos::Burstable);
    }

    #[test]
    fn limits_of_a_container() {
        let spec =
            spec(&[("cpu", "250m"), ("memory", "1Gi")], &[("cpu", "500m"), ("memory", "2Gi")]);
        let limits = limits(&spec, &spec.containers[0], 8 << 30);
        assert_eq!((limits.cpu_quota_us, limits.cpu_period_us), (50_000, 100_000));
        assert_eq!((limits.cpu_shares, limits.memory_bytes), (256, 2 << 30));
        assert_eq!(limits.oom_score_adj, 875);
        assert_eq!(cgroup("kubepods", &spec, "u"), "/kubepods/burstable/podu");
    }
}
