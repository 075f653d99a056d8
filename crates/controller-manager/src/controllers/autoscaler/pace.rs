//! How fast replicas may change: stabilisation windows and policies of `spec.behavior`, pure.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerSpec,
};

/// Without a window of its own, a step down waits until nothing higher was asked for as long.
const DOWN_WINDOW: Duration = Duration::from_secs(300);

/// What was asked for and done, by our clock; the newest last.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    asked: Vec<(Duration, i64)>,
    steps: Vec<(Duration, i64)>,
}

/// What holds a decision back, as the conditions name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) reason: &'static str,
    pub(super) message: &'static str,
}

const fn bound(reason: &'static str, message: &'static str) -> Bound {
    Bound { reason, message }
}

const WITHIN: Bound =
    bound("DesiredWithinRange", "the desired count is within the acceptable range");
const UP_LIMIT: Bound = bound(
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const DOWN_LIMIT: Bound = bound(
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);
const TOO_MANY: Bound =
    bound("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Bound =
    bound("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const READY: Bound = bound("ReadyForNewScale", "recommended size matches current size");
const DOWN_STABLE: Bound = bound(
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABLE: Bound = bound(
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);

/// A paced decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Paced {
    pub(super) replicas: i64,
    /// Condition AbleToScale.
    pub(super) able: Bound,
    /// Condition ScalingLimited, and whether it is.
    pub(super) limited: (bool, Bound),
}

fn rule(percent: i32, pods: Option<i32>) -> HPAScalingRules {
    let policy =
        |type_: &str, value| HPAScalingPolicy { type_: type_.into(), value, period_seconds: 15 };
    let mut policies = vec![policy("Percent", percent)];
    policies.extend(pods.map(|pods| policy("Pods", pods)));
    HPAScalingRules { policies: Some(policies), ..HPAScalingRules::default() }
}

/// The rules for steps up or down, with what is left out filled in.
fn rules(spec: &HorizontalPodAutoscalerSpec, up: bool) -> HPAScalingRules {
    let given = spec.behavior.as_ref();
    let given = given.and_then(|b| if up { b.scale_up.clone() } else { b.scale_down.clone() });
    let mut usual = if up { rule(100, Some(4)) } else { rule(100, None) };
    if let Some(given) = given {
        usual.policies = given.policies.filter(|p| !p.is_empty()).or(usual.policies);
        usual.select_policy = given.select_policy;
        usual.stabilization_window_seconds = given.stabilization_window_seconds;
    }
    usual
}

fn window(spec: &HorizontalPodAutoscalerSpec, up: bool) -> Duration {
    let given = rules(spec, up).stabilization_window_seconds;
    let usual = if up { Duration::ZERO } else { DOWN_WINDOW };
    given.map_or(usual, |s| Duration::from_secs(u64::try_from(s).unwrap_or(0)))
}

impl History {
    /// What was asked for, held against what was asked lately, the policies and the bounds.
    pub(super) fn pace(
        &mut self,
        spec: &HorizontalPodAutoscalerSpec,
        current: i64,
        asked: i64,
        now: Duration,
    ) -> Paced {
        let (up, down) = (window(spec, true), window(spec, false));
        if self.asked.is_empty() {
            // Nothing is known of before: what there is was asked for.
            self.asked.push((now, current));
        }
        self.asked.push((now, asked));
        self.asked
            .retain(|(at, _)| now.saturating_sub(*at) < up.max(down).max(Duration::from_secs(1)));
        let within = |window: Duration| {
            self.asked
                .iter()
                .filter(move |(at, _)| now.saturating_sub(*at) < window)
                .map(|(_, n)| *n)
        };
        let lowest = within(up).fold(asked, i64::min);
        let highest = within(down).fold(asked, i64::max);
        let stable = current.max(lowest).min(highest);
        let able = match stable.cmp(&asked) {
            std::cmp::Ordering::Greater => DOWN_STABLE,
            std::cmp::Ordering::Less => UP_STABLE,
            std::cmp::Ordering::Equal => READY,
        };
        let (replicas, limited) = self.limit(spec, current, stable, now);
        Paced { replicas, able, limited }
    }

    /// Notes that replicas were changed.
    pub(super) fn stepped(&mut self, from: i64, to: i64, now: Duration) {
        self.steps.push((now, to - from));
        // The longest period that a policy may have is half an hour.
        self.steps.retain(|(at, _)| now.saturating_sub(*at) < Duration::from_secs(1800));
    }

    /// The change so far within a policy's period.
    fn stepped_within(&self, period_s: i32, up: bool, now: Duration) -> i64 {
        let period = Duration::from_secs(u64::try_from(period_s).unwrap_or(0));
        let recent = self.steps.iter().filter(|(at, _)| now.saturating_sub(*at) < period);
        recent.map(|(_, step)| if up { (*step).max(0) } else { (-*step).max(0) }).sum()
    }

    /// How far the policies let replicas go.
    fn reach(
        &self,
        spec: &HorizontalPodAutoscalerSpec,
        current: i64,
        up: bool,
        now: Duration,
    ) -> i64 {
        let rules = rules(spec, up);
        let select = rules.select_policy.as_deref().unwrap_or("Max");
        if select == "Disabled" {
            return current;
        }
        let reaches = rules.policies.iter().flatten().map(|policy| {
            let so_far = self.stepped_within(policy.period_seconds, up, now);
            let began = if up { current - so_far } else { current + so_far };
            let value = i64::from(policy.value);
            match (policy.type_.as_str(), up) {
                ("Pods", true) => began + value,
                ("Pods", false) => began - value,
                (_, true) => (began as f64 * (1.0 + value as f64 / 100.0)).ceil() as i64,
                (_, false) => (began as f64 * (1.0 - value as f64 / 100.0)) as i64,
            }
        });
        // The policy of the greatest change counts, unless the smallest was chosen.
        let far = (select == "Max") == up;
        let reach = if far { reaches.max() } else { reaches.min() }.unwrap_or(current);
        if up { reach.max(current) } else { reach.min(current) }
    }

    fn limit(
        &self,
        spec: &HorizontalPodAutoscalerSpec,
        current: i64,
        stable: i64,
        now: Duration,
    ) -> (i64, (bool, Bound)) {
        let least = i64::from(spec.min_replicas.unwrap_or(1));
        let most = i64::from(spec.max_replicas);
        if stable > current {
            let reach = self.reach(spec, current, true, now);
            let ceiling = reach.min(most);
            if stable > ceiling {
                let why = if most <= reach { TOO_MANY } else { UP_LIMIT };
                return (ceiling, (true, why));
            }
        } else if stable < current {
            let reach = self.reach(spec, current, false, now);
            let floor = reach.max(least);
            if stable < floor {
                let why = if least >= reach { TOO_FEW } else { DOWN_LIMIT };
                return (floor, (true, why));
            }
        }
        if stable < least {
            return (least, (true, TOO_FEW));
        }
        if stable > most {
            return (most, (true, TOO_MANY));
        }
        (stable, (false, WITHIN))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(behavior: Value) -> HorizontalPodAutoscalerSpec {
        let spec = json!({"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "minReplicas": 2, "maxReplicas": 20,
            "behavior": behavior});
        serde_json::from_value(spec).unwrap()
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_step_up_doubles_or_adds_four_and_ends_at_the_most() {
        let mut history = History::default();
        let spec = spec(Value::Null);
        let first = history.pace(&spec, 2, 100, s(0));
        assert_eq!((first.replicas, first.limited.1), (6, UP_LIMIT));
        history.stepped(2, 6, s(0));
        assert_eq!(history.pace(&spec, 6, 100, s(5)).replicas, 6, "the period is not over");
        let second = history.pace(&spec, 6, 100, s(15));
        assert_eq!(second.replicas, 12);
        history.stepped(6, 12, s(15));
        let third = history.pace(&spec, 12, 100, s(30));
        assert_eq!((third.replicas, third.limited.1), (20, TOO_MANY));
    }

    #[test]
    fn a_step_down_waits_for_the_highest_of_five_minutes() {
        let mut history = History::default();
        let spec = spec(Value::Null);
        assert_eq!(history.pace(&spec, 10, 10, s(0)).able, READY);
        let held = history.pace(&spec, 10, 3, s(100));
        assert_eq!((held.replicas, held.able), (10, DOWN_STABLE));
        assert_eq!(history.pace(&spec, 10, 3, s(299)).replicas, 10);
        assert_eq!(history.pace(&spec, 10, 3, s(300)).replicas, 3);
        let least = history.pace(&spec, 3, 0, s(900));
        assert_eq!((least.replicas, least.limited), (2, (true, TOO_FEW)));
    }

    #[test]
    fn policies_bound_each_direction() {
        let down = json!({"scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": [
            {"type": "Pods", "value": 4, "periodSeconds": 60}, {"type": "Percent", "value": 10, "periodSeconds": 60}]}});
        let mut history = History::default();
        assert_eq!(history.pace(&spec(down), 20, 2, s(0)).replicas, 18);
        let never = json!({"scaleUp": {"selectPolicy": "Disabled"}});
        assert_eq!(History::default().pace(&spec(never), 5, 9, s(0)).replicas, 5);
        let slow = json!({"scaleUp": {"stabilizationWindowSeconds": 60}});
        let held = History::default().pace(&spec(slow), 5, 9, s(0));
        assert_eq!((held.replicas, held.able), (5, UP_STABLE));
    }
}
