//! What goes between members, counted under etcd's names.

use std::time::Duration;

use daemon::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::hex;

/// The member at the other end, whose label etcd writes with a capital.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
#[allow(non_snake_case)]
struct To {
    To: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
#[allow(non_snake_case)]
struct From {
    From: String,
}

/// Counters for every member that was ever reached or heard.
#[derive(Debug)]
pub(super) struct Traffic {
    sent: Family<To, Counter>,
    failed: Family<To, Counter>,
    received: Family<From, Counter>,
    round_trips: Family<To, Histogram, fn() -> Histogram>,
}

impl Traffic {
    pub(super) fn new(registry: &Metrics) -> Self {
        // From a tenth of a millisecond to three seconds, as in etcd.
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        let traffic = Self {
            sent: Family::default(),
            failed: Family::default(),
            received: Family::default(),
            round_trips: Family::new_with_constructor(seconds),
        };
        let help = "Bytes of messages that were sent to a member";
        registry.register("etcd_network_peer_sent_bytes", help, traffic.sent.clone());
        let help = "Streams to a member that failed";
        registry.register("etcd_network_peer_sent_failures", help, traffic.failed.clone());
        let help = "Bytes of messages that a member sent here";
        registry.register("etcd_network_peer_received_bytes", help, traffic.received.clone());
        let help = "Seconds that a member took to answer a probe";
        let trips = traffic.round_trips.clone();
        registry.register("etcd_network_peer_round_trip_time_seconds", help, trips);
        traffic
    }

    pub(super) fn sent(&self, to: u64) -> Counter {
        self.sent.get_or_create(&To { To: hex(to) }).clone()
    }

    pub(super) fn failed(&self, to: u64) {
        self.failed.get_or_create(&To { To: hex(to) }).inc();
    }

    pub(super) fn received(&self, from: u64) -> Counter {
        self.received.get_or_create(&From { From: hex(from) }).clone()
    }

    pub(super) fn round_trip(&self, to: u64, took: Duration) {
        self.round_trips.get_or_create(&To { To: hex(to) }).observe(took.as_secs_f64());
    }
}
