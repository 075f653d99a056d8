//! What node and pods use, in the forms that are asked for: the kubelet's summary, and metrics.
//!
//! Pure: samples in, pages out. Rates come from two samples.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::runtime::Usage;

const NANO: f64 = 1e9;
/// Clock ticks per second in `/proc/stat`, the same on every Linux we run on.
const TICKS_PER_SECOND: u64 = 100;

/// What the node as a whole uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeUsage {
    /// Processor time so far.
    pub cpu_ns: u64,
    /// Memory that cannot be taken back.
    pub working_set_bytes: u64,
    /// Memory that could still be given out.
    pub available_bytes: u64,
}

impl NodeUsage {
    /// From the texts of `/proc/stat` and `/proc/meminfo`.
    #[must_use]
    pub fn parse(stat: &str, meminfo: &str) -> Self {
        let cpu = stat.lines().find_map(|line| line.strip_prefix("cpu "));
        let fields: Vec<u64> =
            cpu.unwrap_or_default().split_whitespace().filter_map(|n| n.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal
        let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|i| fields.get(*i)).sum();
        let kib = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
            number.unwrap_or(0) * 1024
        };
        let (total, available) = (kib("MemTotal:"), kib("MemAvailable:"));
        Self {
            cpu_ns: busy * (1_000_000_000 / TICKS_PER_SECOND),
            working_set_bytes: total.saturating_sub(available),
            available_bytes: available,
        }
    }
}

/// One look at everything.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When.
    pub at: Timestamp,
    /// The node.
    pub node: NodeUsage,
    /// Every running container.
    pub containers: Vec<Usage>,
}

/// The metrics of `/metrics/resource`, which `kubectl top` lives on.
#[must_use]
pub fn resource_metrics(sample: &Sample) -> String {
    let mut page = String::new();
    let mut pods: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
    for c in &sample.containers {
        let pod = pods.entry((&c.namespace, &c.pod)).or_default();
        pod.0 += c.cpu_ns;
        pod.1 += c.working_set_bytes;
    }
    let containers = || sample.containers.iter();
    let of_container = |c: &Usage| {
        format!("{{container={:?},namespace={:?},pod={:?}}}", c.container, c.namespace, c.pod)
    };
    let of_pod = |(ns, name): &(&str, &str)| format!("{{namespace={ns:?},pod={name:?}}}");
    let at = sample.at.as_millisecond();
    let mut family = |name: &str, kind: &str, help: &str, rows: Vec<(String, String)>| {
        // Writing to a String cannot fail.
        let mut put = |line: std::fmt::Arguments<'_>| page.write_fmt(line).is_ok();
        put(format_args!("# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}\n"));
        for (labels, value) in rows {
            put(format_args!("{name}{labels} {value} {at}\n"));
        }
    };
    let seconds = |ns: u64| format!("{}", ns as f64 / NANO);
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        containers().map(|c| (of_container(c), seconds(c.cpu_ns))).collect(),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        containers().map(|c| (of_container(c), c.working_set_bytes.to_string())).collect(),
    );
    family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        vec![(String::new(), seconds(sample.node.cpu_ns))],
    );
    family(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        vec![(String::new(), sample.node.working_set_bytes.to_string())],
    );
    family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
        pods.iter().map(|(pod, used)| (of_pod(pod), seconds(used.0))).collect(),
    );
    family(
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
        pods.iter().map(|(pod, used)| (of_pod(pod), used.1.to_string())).collect(),
    );
    page.push_str("# HELP resource_scrape_error [STABLE] 1 if there was an error while getting ");
    page.push_str("container metrics, 0 otherwise\n# TYPE resource_scrape_error gauge\n");
    page.push_str("resource_scrape_error 0\n");
    page
}

/// The kubelet's `/stats/summary`.
#[must_use]
pub fn summary(node: &str, sample: &Sample, before: Option<&Sample>) -> Value {
    let passed = before.map(|b| sample.at.duration_since(b.at).as_secs_f64()).unwrap_or_default();
    let rate = |now: u64, then: Option<u64>| {
        let used = then.filter(|_| passed > 0.0).map(|then| now.saturating_sub(then))?;
        Some((used as f64 / passed) as u64)
    };
    let at = api::time::format(sample.at);
    let cpu = |total: u64, then: Option<u64>| {
        json!({"time": at, "usageNanoCores": rate(total, then).unwrap_or(0),
            "usageCoreNanoSeconds": total})
    };
    let old: HashMap<(&str, &str), u64> = before
        .iter()
        .flat_map(|b| &b.containers)
        .map(|c| ((c.uid.as_str(), c.container.as_str()), c.cpu_ns))
        .collect();
    let mut pods: BTreeMap<&str, (&Usage, Vec<Value>)> = BTreeMap::new();
    for c in &sample.containers {
        let then = old.get(&(c.uid.as_str(), c.container.as_str())).copied();
        let shown = json!({
            "name": c.container,
            "cpu": cpu(c.cpu_ns, then),
            "memory": {"time": at, "workingSetBytes": c.working_set_bytes},
        });
        pods.entry(&c.uid).or_insert_with(|| (c, Vec::new())).1.push(shown);
    }
    let pods = pods.into_values().map(|(of, containers)| {
        json!({
            "podRef": {"name": of.pod, "namespace": of.namespace, "uid": of.uid},
            "containers": containers,
        })
    });
    json!({
        "node": {
            "nodeName": node,
            "cpu": cpu(sample.node.cpu_ns, before.map(|b| b.node.cpu_ns)),
            "memory": {
                "time": at,
                "availableBytes": sample.node.available_bytes,
                "workingSetBytes": sample.node.working_set_bytes,
            },
        },
        "pods": pods.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: i64, cpu_ns: u64) -> Sample {
        let usage = |container: &str| Usage {
            pod: "web".into(),
            namespace: "d".into(),
            uid: "u".into(),
            container: container.into(),
            cpu_ns,
            working_set_bytes: 1000,
            ..Default::default()
        };
        Sample {
            at: Timestamp::from_second(1_700_000_000 + second).unwrap(),
            node: NodeUsage::parse(
                "cpu  100 0 50 900 10 0 0 0 0 0\n",
                "MemTotal: 100 kB\nMemAvailable: 60 kB\n",
            ),
            containers: vec![usage("a"), usage("b")],
        }
    }

    #[test]
    fn the_node_counts_what_is_busy() {
        let node = sample(0, 0).node;
        assert_eq!((node.cpu_ns, node.working_set_bytes), (1_500_000_000, 40 << 10));
    }

    #[test]
    fn metrics_name_containers_and_sum_pods() {
        let page = resource_metrics(&sample(0, 1_500_000_000));
        let container =
            r#"container_cpu_usage_seconds_total{container="a",namespace="d",pod="web"} 1.5 "#;
        assert!(page.contains(container), "{page}");
        assert!(page.contains(r#"pod_cpu_usage_seconds_total{namespace="d",pod="web"} 3 "#));
        assert!(page.contains(r#"pod_memory_working_set_bytes{namespace="d",pod="web"} 2000 "#));
    }

    #[test]
    fn the_summary_has_rates_from_two_samples() {
        let (before, now) = (sample(0, 1_000_000_000), sample(10, 3_000_000_000));
        let page = summary("n1", &now, Some(&before));
        let container = &page["pods"][0]["containers"][0];
        assert_eq!(container["cpu"]["usageNanoCores"], 200_000_000);
        assert_eq!(page["pods"][0]["podRef"]["uid"], "u");
        assert_eq!(page["node"]["memory"]["workingSetBytes"], 40 << 10);
    }
}
