//! Probe verdicts: from single results to what they mean for a container. Knows nothing of how a
//! probe is made.

use k8s_openapi::api::core::v1::Probe;

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Whether the container has started; the others wait for it.
    Startup,
    /// Whether it must be restarted.
    Liveness,
    /// Whether it gets requests.
    Readiness,
}

impl Purpose {
    /// The word in messages.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// What probes have found of one container. Without a probe the verdict is good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// The startup probe has succeeded; none before its first verdict.
    pub started: Option<bool>,
    /// The liveness probe; none before its first verdict.
    pub alive: Option<bool>,
    /// The readiness probe; none before its first verdict.
    pub ready: Option<bool>,
    /// What the failed liveness or startup probe said.
    pub output: String,
}

/// Counts results in a row until they reach a threshold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    last: Option<bool>,
    run: i32,
}

impl Count {
    /// One result; a verdict when there were enough of the same in a row.
    pub fn result(&mut self, good: bool, probe: &Probe) -> Option<bool> {
        if self.last == Some(good) {
            self.run = self.run.saturating_add(1);
        } else {
            *self = Self { last: Some(good), run: 1 };
        }
        let success = probe.success_threshold.unwrap_or(1).max(1);
        let failure = probe.failure_threshold.unwrap_or(3).max(1);
        let enough = if good { success } else { failure };
        (self.run >= enough).then_some(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_results_in_a_row() {
        let probe =
            Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Default::default() };
        let mut count = Count::default();
        let verdicts: Vec<Option<bool>> = [true, true, false, false, true, false, false, false]
            .map(|good| count.result(good, &probe))
            .into();
        let expected = [None, Some(true), None, None, None, None, None, Some(false)];
        assert_eq!(verdicts, expected);
    }
}
