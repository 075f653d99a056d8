//! How many replicas a metric asks for: pure (upstream's replica calculator).
//!
//! Pods whose use is not known yet count in whatever way makes the step smaller: as idle when scaling up, as using all that
//! they asked for when scaling down.

use std::collections::HashMap;
use std::sync::Arc;

use api::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::pods::{condition, phase};

/// For so long after a pod has started its processor use counts only once it is ready.
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// A pod that was not ready for the first time within this was never ready.
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// What a pod uses of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// Thousandths.
    pub(super) milli: i64,
    pub(super) at: Timestamp,
    pub(super) window: SignedDuration,
}

/// What is measured of which pods.
#[derive(Debug)]
pub(super) struct Measured<'a> {
    pub(super) resource: &'a str,
    /// One container of each pod, or all together.
    pub(super) container: Option<&'a str>,
    /// By pod name.
    pub(super) samples: HashMap<String, Sample>,
    pub(super) pods: &'a [Arc<Pod>],
}

/// What a metric is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Percent of what pods request.
    Utilization(i64),
    /// Thousandths for each pod.
    Average(i64),
}

/// By how much a metric may miss its goal, in each direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerance {
    pub(super) up: f64,
    pub(super) down: f64,
}

impl Tolerance {
    fn covers(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What a metric asks for, and what it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) replicas: i64,
    /// Percent of requests, where that is the goal.
    pub(super) utilization: Option<i64>,
    /// Thousandths.
    pub(super) average_milli: i64,
}

/// Pods by what may be made of their use.
#[derive(Default)]
struct Sorted<'a> {
    ready: usize,
    unready: Vec<&'a str>,
    missing: Vec<&'a str>,
    ignored: Vec<&'a str>,
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn sort<'a>(of: &'a Measured<'_>, now: Timestamp) -> Sorted<'a> {
    let mut sorted = Sorted::default();
    for pod in of.pods {
        let name = name(pod);
        if pod.metadata.deletion_timestamp.is_some() || phase(pod) == "Failed" {
            sorted.ignored.push(name);
            continue;
        }
        if phase(pod) == "Pending" {
            sorted.unready.push(name);
            continue;
        }
        let Some(sample) = of.samples.get(name) else {
            sorted.missing.push(name);
            continue;
        };
        if of.resource == "cpu" && unready(pod, sample, now) {
            sorted.unready.push(name);
            continue;
        }
        sorted.ready += 1;
    }
    sorted
}

/// Whether the processor use of a pod says nothing yet.
fn unready(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
    let (Some(ready), Some(started)) = (condition(pod, "Ready"), started) else { return true };
    let not = ready.status == "False";
    let since = ready.last_transition_time.as_ref().map_or(started, |t| t.0);
    if started + CPU_INITIALIZATION > now {
        return not || sample.at < since + sample.window;
    }
    not && started + INITIAL_READINESS > since
}

/// What the measured containers of a pod request, in thousandths.
fn request(of: &Measured<'_>, pod: &Pod) -> Result<i64, String> {
    let spec = pod.spec.as_ref();
    let containers = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
    let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.iter().flat_map(|s| s.init_containers.iter().flatten()).filter(sidecar);
    let measured = containers
        .iter()
        .chain(sidecars)
        .filter(|c| of.container.is_none_or(|wanted| c.name == wanted));
    let mut sum = 0;
    let mut found = false;
    for container in measured {
        found = true;
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let request = requests.and_then(|r| r.get(of.resource));
        let quantity = request.and_then(|text| Quantity::parse(&text.0).ok());
        sum += quantity.map(Quantity::milli_value).ok_or_else(|| {
            let (container, pod) = (&container.name, name(pod));
            format!("missing request for {} in container {container} of Pod {pod}", of.resource)
        })?;
    }
    match of.container {
        Some(wanted) if !found => {
            Err(format!("container {wanted} not present in pod {}", name(pod)))
        }
        _ => Ok(sum),
    }
}

/// How far what is used is from the goal.
fn ratio(
    uses: &HashMap<&str, i64>,
    requests: &HashMap<&str, i64>,
    goal: Goal,
) -> Result<(f64, Option<i64>, i64), String> {
    let used: i64 = uses.values().sum();
    let count = uses.len().max(1) as i64;
    match goal {
        Goal::Average(wanted) => {
            Ok((used as f64 / count as f64 / wanted as f64, None, used / count))
        }
        Goal::Utilization(wanted) => {
            let requested: i64 = uses.keys().filter_map(|pod| requests.get(pod)).sum();
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let utilization = used * 100 / requested;
            Ok((utilization as f64 / wanted as f64, Some(utilization), used / count))
        }
    }
}

/// How many replicas the goal asks for.
///
/// # Errors
/// Why that cannot be said.
pub(super) fn asked(
    of: &Measured<'_>,
    goal: Goal,
    current: i64,
    tolerance: Tolerance,
    now: Timestamp,
) -> Result<Asked, String> {
    if of.pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let sorted = sort(of, now);
    let left_out: Vec<&str> =
        [&sorted.unready, &sorted.ignored].into_iter().flatten().copied().collect();
    let mut uses: HashMap<&str, i64> = of
        .pods
        .iter()
        .map(|pod| name(pod))
        .filter(|name| !left_out.contains(name))
        .filter_map(|name| Some((name, of.samples.get(name)?.milli)))
        .collect();
    if uses.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let mut requests = HashMap::new();
    if matches!(goal, Goal::Utilization(_)) {
        for pod in of.pods {
            requests.insert(name(pod), request(of, pod)?);
        }
    }
    let (before, utilization, average_milli) = ratio(&uses, &requests, goal)?;
    let answer = |replicas: i64| Ok(Asked { replicas, utilization, average_milli });
    let counts_unready = !sorted.unready.is_empty() && before > 1.0;
    if !counts_unready && sorted.missing.is_empty() {
        if tolerance.covers(before) {
            return answer(current);
        }
        return answer((before * sorted.ready as f64).ceil() as i64);
    }
    for pod in &sorted.missing {
        let all = match goal {
            Goal::Average(wanted) => wanted,
            Goal::Utilization(wanted) => {
                requests.get(pod).copied().unwrap_or(0) * wanted.max(100) / 100
            }
        };
        uses.insert(pod, if before < 1.0 { all } else { 0 });
    }
    if counts_unready {
        uses.extend(sorted.unready.iter().map(|pod| (*pod, 0)));
    }
    let (after, _, _) = ratio(&uses, &requests, goal)?;
    let turned = (before < 1.0 && after > 1.0) || (before > 1.0 && after < 1.0);
    if tolerance.covers(after) || turned {
        return answer(current);
    }
    let replicas = (after * uses.len() as f64).ceil() as i64;
    let against = (after < 1.0 && replicas > current) || (after > 1.0 && replicas < current);
    answer(if against { current } else { replicas })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: i64 = 10_000;
    const TENTH: Tolerance = Tolerance { up: 0.1, down: 0.1 };

    /// Pods that request a processor each: use in thousandths (none: not measured), phase, ready.
    fn replicas(pods: &[(Option<i64>, &str, bool)], goal: Goal) -> Result<i64, String> {
        let at = |s| Timestamp::from_second(s).unwrap();
        let pod = |nth: usize, phase: &str, ready: bool| -> Arc<Pod> {
            // One that is not ready never was.
            let since = if ready { 5000 } else { 1000 };
            let pod = json!({
                "metadata": {"name": format!("p{nth}")},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
                "status": {"phase": phase, "startTime": at(1000).to_string(), "conditions": [
                    {"type": "Ready", "status": if ready { "True" } else { "False" },
                        "lastTransitionTime": at(since).to_string()}
                ]}
            });
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let window = SignedDuration::from_secs(10);
        let samples = pods.iter().enumerate().filter_map(|(nth, (milli, _, _))| {
            Some((format!("p{nth}"), Sample { milli: (*milli)?, at: at(NOW), window }))
        });
        let all: Vec<Arc<Pod>> = pods
            .iter()
            .enumerate()
            .map(|(nth, (_, phase, ready))| pod(nth, phase, *ready))
            .collect();
        let of =
            Measured { resource: "cpu", container: None, samples: samples.collect(), pods: &all };
        asked(&of, goal, pods.len() as i64, TENTH, at(NOW)).map(|a| a.replicas)
    }

    const RUNS: &str = "Running";

    #[test]
    fn replicas_follow_the_ratio() {
        let half = Goal::Utilization(50);
        assert_eq!(replicas(&[(Some(500), RUNS, true); 3], half), Ok(3));
        assert_eq!(replicas(&[(Some(540), RUNS, true); 3], half), Ok(3), "within a tenth");
        assert_eq!(replicas(&[(Some(1000), RUNS, true); 3], half), Ok(6));
        assert_eq!(replicas(&[(Some(100), RUNS, true); 3], half), Ok(1));
        assert_eq!(replicas(&[(Some(300), RUNS, true); 2], Goal::Average(100)), Ok(6));
    }

    #[test]
    fn pods_that_are_not_ready_make_a_step_up_smaller() {
        let pods = [(Some(1000), RUNS, true), (Some(1000), RUNS, true), (None, "Pending", false)];
        // Two at 200 %, one idle: four in place of six.
        assert_eq!(replicas(&pods, Goal::Utilization(50)), Ok(4));
        // Down they do not count.
        let pods = [(Some(100), RUNS, true), (Some(100), RUNS, true), (Some(900), RUNS, false)];
        assert_eq!(replicas(&pods, Goal::Utilization(50)), Ok(1));
    }

    #[test]
    fn pods_without_metrics_count_against_the_step() {
        let down = [(Some(100), RUNS, true), (Some(100), RUNS, true), (None, RUNS, true)];
        assert_eq!(
            replicas(&down, Goal::Utilization(50)),
            Ok(3),
            "the third may use all it asked for"
        );
        let up = [(Some(1000), RUNS, true), (None, RUNS, true)];
        assert_eq!(replicas(&up, Goal::Utilization(50)), Ok(2), "the second may be idle");
    }

    #[test]
    fn nothing_is_said_without_use_or_requests() {
        let unready = replicas(&[(None, "Pending", false)], Goal::Utilization(50));
        assert!(unready.unwrap_err().contains("did not receive metrics"));
        assert!(replicas(&[], Goal::Utilization(50)).unwrap_err().contains("no pods returned"));
    }
}
