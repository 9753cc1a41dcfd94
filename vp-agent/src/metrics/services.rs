//! Figures of services: of this site's own, and of those of other sites that it uses.

use super::{Labels, label};
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex, PoisonError};
use vp_proto::api::{Connects, ServiceFigures};

/// What the figures of one kind of service are called, and what they say.
struct Kind {
    prefix: &'static str,
    of: &'static str,
    exposed: bool,
}

const KINDS: [Kind; 2] = [
    Kind { prefix: "service", of: "a service of this site", exposed: true },
    Kind { prefix: "presence", of: "a service of another site", exposed: false },
];

/// A histogram that was counted elsewhere.
#[derive(Clone, Default, Debug)]
struct Counted(Arc<Mutex<Connects>>);

pub(super) fn register(registry: &mut Registry, figures: &[ServiceFigures]) {
    for Kind { prefix, of, exposed } in KINDS {
        let (opened, denied) = (Family::<Labels, Counter>::default(), Family::<Labels, Counter>::default());
        let (bytes, connects) = (Family::<Labels, Counter>::default(), Family::<Labels, Counted>::default());
        for figures in figures.iter().filter(|figures| figures.exposed == exposed) {
            let labels = label("service", &figures.service);
            let and = |name: &str, value: &str| [labels.clone(), label(name, value)].concat();
            opened.get_or_create(&labels).inc_by(figures.opened_total);
            for (reason, count) in &figures.denied {
                denied.get_or_create(&and("reason", reason)).inc_by(*count);
            }
            for (direction, count) in [("outbound", figures.outbound_bytes), ("inbound", figures.inbound_bytes)] {
                bytes.get_or_create(&and("direction", direction)).inc_by(count);
            }
            connects.get_or_create(&labels).set(figures.connects.clone());
        }
        registry.register(format!("{prefix}_flows_opened"), format!("Flows opened to {of}"), opened);
        registry.register(format!("{prefix}_denials"), format!("Flows to {of} that may not be, by reason"), denied);
        registry.register(
            format!("{prefix}_payload_bytes"),
            format!("Payload to and from {of}, without headers"),
            bytes,
        );
        let help = format!("From the first packet of a TCP connection to {of} to the first answer");
        registry.register(format!("{prefix}_connect_seconds"), help, connects);
    }
}

impl Counted {
    fn set(&self, connects: Connects) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = connects;
    }
}

impl TypedMetric for Counted {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Counted {
    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        let connects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let within: u64 = connects.within.iter().map(|within| within.connections).sum();
        let beyond = (f64::MAX, connects.count.saturating_sub(within));
        let buckets = connects.within.iter().map(|within| (within.seconds, within.connections)).chain([beyond]);
        let buckets: Vec<(f64, u64)> = buckets.collect();
        encoder.encode_histogram::<NoLabelSet>(connects.sum_seconds, connects.count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
