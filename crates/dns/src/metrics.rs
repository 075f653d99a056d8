//! What the DNS server counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    rcode: &'static str,
}

/// Counters of the DNS server, under the names that CoreDNS' dashboards look for.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    responses: Family<Labels, Counter>,
}

impl Metrics {
    /// Registers the counters.
    #[must_use]
    pub fn new(registry: &daemon::Metrics) -> Self {
        let metrics = Self::default();
        let help = "Answers given, by response code";
        registry.register("coredns_dns_responses", help, metrics.responses.clone());
        metrics
    }

    /// Counts an answer with this response code.
    pub(crate) fn answered(&self, rcode: &'static str) {
        self.responses.get_or_create(&Labels { rcode }).inc();
    }
}
