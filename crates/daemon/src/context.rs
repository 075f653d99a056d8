//! What a daemon is handed by whoever starts it.

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::tasks::Tasks;

/// The surroundings of one daemon. Clones share everything.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where its parts and jobs run.
    pub tasks: Tasks,
    /// Cancelled when it must end.
    pub shutdown: CancellationToken,
    /// Time.
    pub clock: Clock,
    /// Its metrics.
    pub metrics: Metrics,
    /// Whether it is ready.
    pub health: Health,
}

impl Context {
    /// Fresh surroundings with the system's clock.
    #[must_use]
    pub fn new(shutdown: CancellationToken) -> Self {
        Self {
            tasks: Tasks::new(shutdown.clone()),
            shutdown,
            clock: Clock::system(),
            metrics: Metrics::default(),
            health: Health::default(),
        }
    }

    /// The surroundings of a daemon that lives inside this one: its own tasks and readiness,
    /// ended with us, the same clock and metrics.
    #[must_use]
    pub fn child(&self) -> Self {
        let shutdown = self.shutdown.child_token();
        Self {
            tasks: Tasks::new(shutdown.clone()),
            shutdown,
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            health: Health::default(),
        }
    }
}
