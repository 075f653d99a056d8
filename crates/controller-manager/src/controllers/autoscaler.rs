//! HorizontalPodAutoscalers: how many replicas a workload should have for what its pods use.
//!
//! Looks at each every 15 s, since use changes without an event, and at once when one is written: reads the target's scale
//! and its pods' metrics (`metrics.k8s.io`), asks [`replicas`] what each metric wants and [`pace`] how fast that may come, and
//! writes scale and status. What was asked for lately is remembered here only: a new leader begins anew, as upstream's does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::object::Value as Tree;
use api::quantity::Quantity;
use api::selector::LabelSelector;
use client::transport::Scope;
use client::{Action, Cache, Client, Executor, Key, Kind, Plan};
use daemon::{Context, jitter};
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec, MetricTarget,
};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

mod pace;
mod replicas;

use pace::{Bound, History, Paced};
use replicas::{Asked, Goal, Measured, Sample, Tolerance};

const PERIOD: Duration = Duration::from_secs(15);
/// How many are looked at side by side.
const SCALERS_MAX: usize = 16;
/// By how much a metric may miss its goal.
const TOLERANCE: f64 = 0.1;

/// Scales until `leading` ends.
pub async fn run(
    client: Client,
    cache: Cache,
    executor: Executor,
    ctx: Context,
    leading: CancellationToken,
) {
    let mut histories: HashMap<String, History> = HashMap::new();
    let mut kinds = Kinds::default();
    let changed = Arc::new(Notify::new());
    let heard = changed.clone();
    cache.on_change::<HorizontalPodAutoscaler>(move |change| {
        // Not what we write ourselves.
        let spec = |scaler: Option<&HorizontalPodAutoscaler>| scaler.map(|s| s.spec.clone());
        if spec(change.old_as()) != spec(change.new_as()) {
            heard.notify_one();
        }
    });
    loop {
        tokio::select! {
            () = leading.cancelled() => return,
            () = changed.notified() => {}
            () = tokio::time::sleep(jitter(PERIOD)) => {}
        }
        let scalers = cache.list::<HorizontalPodAutoscaler>();
        let uid =
            |scaler: &HorizontalPodAutoscaler| scaler.metadata.uid.clone().unwrap_or_default();
        histories.retain(|known, _| scalers.iter().any(|scaler| uid(scaler) == *known));
        if scalers.is_empty() {
            continue;
        }
        if let Err(error) = kinds.learn(&client, &scalers).await {
            tracing::info!(%error, "cannot read what kinds there are");
            continue;
        }
        let turns: Vec<_> = scalers
            .into_iter()
            .map(|scaler| (histories.remove(&uid(&scaler)).unwrap_or_default(), scaler))
            .collect();
        let turns = futures::stream::iter(turns).map(|(mut history, scaler)| {
            let turn = Turn { client: &client, cache: &cache, ctx: &ctx, kinds: &kinds };
            let executor = &executor;
            async move {
                let (plan, step) = turn.take(&scaler, &mut history).await;
                let done = executor.run(plan).await;
                match (done.error, step) {
                    (None, Some((from, to))) => {
                        history.stepped(from, to, turn.ctx.clock.monotonic())
                    }
                    (Some(error), _) => {
                        let key = Key::of(&scaler.metadata);
                        tracing::info!(%key, %error, "could not scale, trying again");
                    }
                    _ => {}
                }
                (scaler.metadata.uid.clone().unwrap_or_default(), history)
            }
        });
        histories = turns.buffer_unordered(SCALERS_MAX).collect().await;
    }
}

/// How the API names the kinds that are scaled.
#[derive(Default)]
struct Kinds(HashMap<(String, String), Kind>);

impl Kinds {
    /// Asks the server if a target's kind is not known yet.
    async fn learn(
        &mut self,
        client: &Client,
        scalers: &[Arc<HorizontalPodAutoscaler>],
    ) -> Result<(), client::Error> {
        if scalers.iter().all(|scaler| self.of(scaler).is_some()) {
            return Ok(());
        }
        for row in client.resources().await? {
            let named = row.resource.unwrap_or_default();
            let kind =
                Kind { group: named.group, version: named.version, resource: named.resource };
            self.0.entry((kind.group.clone(), row.kind)).or_insert(kind);
        }
        Ok(())
    }

    fn of(&self, scaler: &HorizontalPodAutoscaler) -> Option<&Kind> {
        let target = &scaler.spec.scale_target_ref;
        let version = target.api_version.as_deref().unwrap_or_default();
        let group = version.split_once('/').map_or("", |(group, _)| group);
        self.0.get(&(group.to_owned(), target.kind.clone()))
    }
}

struct Turn<'a> {
    client: &'a Client,
    cache: &'a Cache,
    ctx: &'a Context,
    kinds: &'a Kinds,
}

/// The scale of a target.
struct Scale {
    wanted: i64,
    current: i64,
    selector: String,
}

/// What a metric said: what to call it, its status, and what it asks for.
struct Said {
    name: String,
    status: Value,
    asked: i64,
}

impl Turn<'_> {
    /// What to do about one autoscaler, and by what step replicas change.
    async fn take(
        &self,
        scaler: &HorizontalPodAutoscaler,
        history: &mut History,
    ) -> (Plan, Option<(i64, i64)>) {
        let spec = &scaler.spec;
        let now = self.ctx.clock.now();
        let mut report = Report::of(scaler, now);
        let target = Key::new(
            scaler.metadata.namespace.clone().unwrap_or_default(),
            spec.scale_target_ref.name.clone(),
        );
        let scale = match self.scale(scaler, &target).await {
            Ok(scale) => scale,
            Err(error) => {
                let message = format!(
                    "the HPA controller was unable to get the target's current scale: {error}"
                );
                report.set("AbleToScale", false, "FailedGetScale", &message);
                let event = Action::event(scaler, "Warning", "FailedGetScale", error);
                return (report.plan(Plan::new().push(event)), None);
            }
        };
        let got = "the HPA controller was able to get the target's current scale";
        report.set("AbleToScale", true, "SucceededGetScale", got);
        report.current = scale.current;
        let (wanted, why, metrics) = match self
            .wanted(spec, &scale, &target.namespace, &mut report)
            .await
        {
            Ok(wanted) => wanted,
            Err(error) => {
                report.desired = scale.wanted;
                let reason = error.reason;
                let events = [
                    Action::event(scaler, "Warning", reason, error.message.clone()),
                    Action::event(scaler, "Warning", "FailedComputeMetricsReplicas", error.message),
                ];
                return (report.plan(Plan::new().each(events, |event| event)), None);
            }
        };
        report.metrics = metrics;
        let mut desired = scale.wanted;
        if let Some(asked) = wanted {
            let paced = history.pace(spec, scale.wanted, asked, self.ctx.clock.monotonic());
            report.paced(&paced);
            desired = paced.replicas;
        } else if let Some(bound) = bounded(spec, scale.wanted) {
            desired = bound;
        }
        report.desired = desired;
        if desired == scale.wanted {
            return (report.plan(Plan::new()), None);
        }
        let message =
            format!("the HPA controller was able to update the target scale to {desired}");
        report.set("AbleToScale", true, "SucceededRescale", &message);
        report.scaled = Some(now);
        let event = format!("New size: {desired}; reason: {why}");
        let plan = match self.kinds.of(scaler) {
            Some(kind) => Plan::new()
                .push(Action::scale(kind.clone(), target, desired))
                .push(Action::event(scaler, "Normal", "SuccessfulRescale", event)),
            None => Plan::new(),
        };
        (report.plan(plan), Some((scale.wanted, desired)))
    }

    async fn scale(&self, scaler: &HorizontalPodAutoscaler, target: &Key) -> Result<Scale, String> {
        let kind = self.kinds.of(scaler).ok_or_else(|| {
            let named = scaler.spec.scale_target_ref.clone();
            let version = named.api_version.unwrap_or_default();
            format!("no matches for kind {:?} in group {version:?}", named.kind)
        })?;
        let scale = self.client.get_scale(kind, target).await.map_err(|e| e.to_string())?;
        let scale = api::codec::json::parse(&scale.json).map_err(|e| e.message())?;
        Ok(Scale {
            wanted: scale.int_at(&["spec", "replicas"]).unwrap_or(0),
            current: scale.int_at(&["status", "replicas"]).unwrap_or(0),
            selector: scale.str_at(&["status", "selector"]).unwrap_or_default().to_owned(),
        })
    }

    /// What the metrics ask for (none while replicas are out of bounds), why, and what they are.
    async fn wanted(
        &self,
        spec: &HorizontalPodAutoscalerSpec,
        scale: &Scale,
        namespace: &str,
        report: &mut Report<'_>,
    ) -> Result<(Option<i64>, String, Vec<Value>), Failed> {
        if scale.wanted == 0 && spec.min_replicas != Some(0) {
            let message = "scaling is disabled since the replica count of the target is zero";
            report.set("ScalingActive", false, "ScalingDisabled", message);
            return Ok((None, String::new(), Vec::new()));
        }
        if bounded(spec, scale.wanted).is_some() {
            let above = scale.wanted > i64::from(spec.max_replicas);
            let why = if above { "above Spec.MaxReplicas" } else { "below Spec.MinReplicas" };
            return Ok((None, format!("Current number of replicas {why}"), Vec::new()));
        }
        let (mut said, mut failed): (Vec<Said>, Option<Failed>) = (Vec::new(), None);
        for metric in spec.metrics.iter().flatten() {
            match self.metric(spec, metric, scale, namespace).await {
                Ok(one) => said.push(one),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        let most = said.iter().max_by_key(|said| said.asked);
        match (most, failed) {
            // With a metric unknown, less than there is would be a guess.
            (most, Some(error)) if most.is_none_or(|most| most.asked < scale.wanted) => {
                let message =
                    format!("the HPA was unable to compute the replica count: {}", error.message);
                report.set("ScalingActive", false, error.reason, &message);
                let invalid = format!(
                    "invalid metrics ({} invalid out of {}), first error is: {}",
                    spec.metrics.iter().flatten().count() - said.len(),
                    spec.metrics.iter().flatten().count(),
                    error.message
                );
                Err(Failed { message: invalid, ..error })
            }
            (None, _) => Ok((None, String::new(), Vec::new())),
            (Some(most), _) => {
                let message = format!(
                    "the HPA was able to successfully calculate a replica count from {}",
                    most.name
                );
                report.set("ScalingActive", true, "ValidMetricFound", &message);
                let why = if most.asked > scale.wanted {
                    format!("{} above target", most.name)
                } else {
                    "All metrics below target".to_owned()
                };
                let asked = most.asked;
                Ok((Some(asked), why, said.into_iter().map(|said| said.status).collect()))
            }
        }
    }

    async fn metric(
        &self,
        spec: &HorizontalPodAutoscalerSpec,
        metric: &MetricSpec,
        scale: &Scale,
        namespace: &str,
    ) -> Result<Said, Failed> {
        let (resource, container, target, reason) =
            match (&metric.resource, &metric.container_resource) {
                (Some(of), _) => (of.name.as_str(), None, &of.target, "FailedGetResourceMetric"),
                (_, Some(of)) => {
                    let container = Some(of.container.as_str());
                    (of.name.as_str(), container, &of.target, "FailedGetContainerResourceMetric")
                }
                _ => {
                    let message = format!(
                        "unable to get {} metrics: no custom or external metrics API is registered",
                        metric.type_
                    );
                    let reason = match metric.type_.as_str() {
                        "Pods" => "FailedGetPodsMetric",
                        "Object" => "FailedGetObjectMetric",
                        _ => "FailedGetExternalMetric",
                    };
                    return Err(Failed { reason, message });
                }
            };
        let failed = |message: String| Failed { reason, message };
        let selector = LabelSelector::parse(&scale.selector).map_err(|e| failed(e.to_string()))?;
        if scale.selector.is_empty() {
            return Err(Failed {
                reason: "InvalidSelector",
                message: "selector is required".into(),
            });
        }
        let mut pods = self.cache.find::<Pod>("namespace", namespace);
        pods.retain(|pod| {
            let labels = pod.metadata.labels.as_ref();
            selector.matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
        });
        let scope = Scope {
            namespace: namespace.to_owned(),
            labels: scale.selector.clone(),
            ..Scope::default()
        };
        let kind = Kind {
            group: "metrics.k8s.io".into(),
            version: "v1beta1".into(),
            resource: "pods".into(),
        };
        let (items, _) = self.client.list_raw(&kind, &scope).await.map_err(|error| {
            failed(format!(
                "failed to get {resource} utilization: unable to get metrics for resource {resource}: {error}"
            ))
        })?;
        let samples = items
            .iter()
            .filter_map(|item| Some((item.name.clone(), sample(&item.json, resource, container)?)));
        let of = Measured { resource, container, samples: samples.collect(), pods: &pods };
        let goal = goal(target).map_err(failed)?;
        let asked = replicas::asked(&of, goal, scale.wanted, tolerance(spec), self.ctx.clock.now())
            .map_err(|error| failed(format!("failed to get {resource} utilization: {error}")))?;
        Ok(said(resource, container, goal, asked))
    }
}

/// Why replicas cannot be computed.
struct Failed {
    reason: &'static str,
    message: String,
}

/// Where replicas that are out of bounds go.
fn bounded(spec: &HorizontalPodAutoscalerSpec, current: i64) -> Option<i64> {
    let (least, most) = (i64::from(spec.min_replicas.unwrap_or(1)), i64::from(spec.max_replicas));
    (current > 0 && !(least..=most).contains(&current))
        .then(|| current.clamp(least, most.max(least)))
}

fn goal(target: &MetricTarget) -> Result<Goal, String> {
    let average = target.average_value.as_ref().and_then(|text| Quantity::parse(&text.0).ok());
    match (average, target.average_utilization) {
        (Some(average), _) => Ok(Goal::Average(average.milli_value().max(1))),
        (_, Some(percent)) => Ok(Goal::Utilization(i64::from(percent).max(1))),
        _ => Err("invalid resource metric source: neither an average utilization target nor an average value \
                  target was set"
            .to_owned()),
    }
}

fn tolerance(spec: &HorizontalPodAutoscalerSpec) -> Tolerance {
    let behavior = spec.behavior.as_ref();
    let given = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
        let text = rules.and_then(|rules| rules.tolerance.as_ref());
        text.and_then(|text| Quantity::parse(&text.0).ok()).map_or(TOLERANCE, Quantity::as_f64)
    };
    Tolerance {
        up: given(behavior.and_then(|b| b.scale_up.as_ref())),
        down: given(behavior.and_then(|b| b.scale_down.as_ref())),
    }
}

/// What a pod's metrics say of a resource, of one container or of all.
fn sample(json: &[u8], resource: &str, container: Option<&str>) -> Option<Sample> {
    let metrics = api::codec::json::parse(json).ok()?;
    let containers = metrics.at(&["containers"]).map(Tree::items).unwrap_or_default();
    let mut milli = None;
    for measured in containers {
        let name = measured.str_at(&["name"]);
        if container.is_none_or(|wanted| name == Some(wanted)) {
            let used = Quantity::parse(measured.str_at(&["usage", resource])?).ok()?;
            milli = Some(milli.unwrap_or(0) + used.milli_value());
        }
    }
    let window = metrics.str_at(&["window"])?.strip_suffix('s')?.parse::<f64>().ok()?;
    Some(Sample {
        milli: milli?,
        at: metrics.str_at(&["timestamp"])?.parse().ok()?,
        window: SignedDuration::try_from_secs_f64(window).ok()?,
    })
}

fn said(resource: &str, container: Option<&str>, goal: Goal, asked: Asked) -> Said {
    let average = if resource == "cpu" {
        format!("{}m", asked.average_milli)
    } else {
        format!("{}", asked.average_milli / 1000)
    };
    let current = json!({"averageValue": average, "averageUtilization": asked.utilization});
    let kind = container.map_or_else(
        || format!("{resource} resource"),
        |container| format!("{resource} container resource of {container}"),
    );
    let name = match goal {
        Goal::Utilization(_) => format!("{kind} utilization (percentage of request)"),
        Goal::Average(_) => kind,
    };
    let status = match container {
        None => json!({"type": "Resource", "resource": {"name": resource, "current": current}}),
        Some(container) => json!({"type": "ContainerResource", "containerResource":
            {"name": resource, "container": container, "current": current}}),
    };
    Said { name, status, asked: asked.replicas }
}

/// The status as it will be.
struct Report<'a> {
    scaler: &'a HorizontalPodAutoscaler,
    now: Timestamp,
    conditions: Vec<Value>,
    current: i64,
    desired: i64,
    metrics: Vec<Value>,
    scaled: Option<Timestamp>,
}

impl<'a> Report<'a> {
    fn of(scaler: &'a HorizontalPodAutoscaler, now: Timestamp) -> Self {
        let status = scaler.status.as_ref();
        let conditions = status.and_then(|s| s.conditions.as_ref());
        let conditions = conditions.into_iter().flatten().map(|c| json!(c)).collect();
        let current = status.and_then(|s| s.current_replicas).map_or(0, i64::from);
        let desired = status.map_or(0, |s| i64::from(s.desired_replicas));
        Self { scaler, now, conditions, current, desired, metrics: Vec::new(), scaled: None }
    }

    fn set(&mut self, kind: &str, holds: bool, reason: &str, message: &str) {
        let status = if holds { "True" } else { "False" };
        let at = self.conditions.iter().position(|c| c["type"] == kind);
        let since = match at.map(|at| &self.conditions[at]) {
            Some(old) if old["status"] == status => old["lastTransitionTime"].clone(),
            _ => json!(self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        };
        let condition = json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since});
        match at {
            Some(at) => self.conditions[at] = condition,
            None => self.conditions.push(condition),
        }
    }

    fn paced(&mut self, paced: &Paced) {
        let Bound { reason, message } = paced.able;
        self.set("AbleToScale", true, reason, message);
        let (limited, Bound { reason, message }) = paced.limited;
        self.set("ScalingLimited", limited, reason, message);
    }

    /// `plan`, and the status where it changes.
    fn plan(self, plan: Plan) -> Plan {
        let mut status = json!({
            "observedGeneration": self.scaler.metadata.generation,
            "currentReplicas": self.current,
            "desiredReplicas": self.desired,
            "currentMetrics": self.metrics,
            "conditions": self.conditions,
        });
        if let Some(scaled) = self.scaled {
            status["lastScaleTime"] = json!(scaled.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        }
        let held = json!(self.scaler.status);
        if client::act::merged_is_same(&held, &status) {
            return plan;
        }
        plan.push(Action::status(self.scaler, status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_of_one_container_or_of_all() {
        let json = br#"{"timestamp":"2026-01-01T00:00:00Z","window":"10.5s","containers":[
            {"name":"a","usage":{"cpu":"1500000n","memory":"10Ki"}},{"name":"b","usage":{"cpu":"2m","memory":"5Ki"}}]}"#;
        assert_eq!(sample(json, "cpu", None).unwrap().milli, 2 + 2);
        assert_eq!(sample(json, "memory", Some("b")).unwrap().milli, 5 * 1024 * 1000);
        assert_eq!(sample(json, "cpu", Some("c")), None);
    }

    #[test]
    fn replicas_out_of_bounds_go_back() {
        let spec = HorizontalPodAutoscalerSpec {
            min_replicas: Some(2),
            max_replicas: 5,
            ..HorizontalPodAutoscalerSpec::default()
        };
        assert_eq!(bounded(&spec, 1), Some(2));
        assert_eq!(bounded(&spec, 9), Some(5));
        assert_eq!((bounded(&spec, 3), bounded(&spec, 0)), (None, None));
    }
}
