//! Records on their way to other logs, beside the file. Each has a queue and a task of its own: one that is slow or away loses
//! records, counted, and nobody waits for it.

use super::{journald, otlp};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use vp_proto::api::AuditRecord;

/// Records that wait for one other log: a few MB, half a second of 10,000 new flows each.
const QUEUE_MAX: usize = 8192;
/// For the last ones to leave at a stop.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// A record as others get it.
#[derive(Debug)]
pub(super) struct Forwarded {
    pub time: SystemTime,
    pub record: AuditRecord,
    /// The same as JSON.
    pub line: String,
}

#[derive(Debug)]
pub(super) struct Forward {
    /// For people and metrics.
    pub to: &'static str,
    queue: mpsc::Sender<Arc<Forwarded>>,
    lost: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Forward {
    pub(super) fn to_journald(socket: PathBuf) -> Self {
        Self::start("journald", |records, lost| journald::run(socket, records, lost))
    }

    pub(super) fn to_otlp(endpoint: otlp::Endpoint) -> Self {
        Self::start("otlp", |records, lost| otlp::run(endpoint, records, lost))
    }

    fn start<R: Future<Output = ()> + Send + 'static>(
        to: &'static str,
        run: impl FnOnce(mpsc::Receiver<Arc<Forwarded>>, Arc<AtomicU64>) -> R,
    ) -> Self {
        let (queue, records) = mpsc::channel(QUEUE_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(run(records, lost.clone()));
        Self { to, queue, lost, task }
    }

    pub(super) fn push(&self, record: &Arc<Forwarded>) {
        if self.queue.try_send(record.clone()).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Records that wait, and how many may.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (QUEUE_MAX - self.queue.capacity(), QUEUE_MAX)
    }

    /// Lets what waits leave, for a while.
    pub(super) async fn stop(self) {
        drop(self.queue);
        if tokio::time::timeout(STOP_WAIT, self.task).await.is_err() {
            tracing::warn!("audit: the last records did not reach {} in time", self.to);
        }
    }
}

/// What other logs search by; the line has the rest.
pub(super) fn fields(record: &AuditRecord) -> impl Iterator<Item = (&'static str, &str)> {
    let AuditRecord { tenant, peer, client, service, protocol, flow, verdict, reason, rule, .. } = record;
    let always = [("event", record.event.as_str()), ("site", record.site.as_str())];
    let some = [
        ("tenant", tenant),
        ("peer", peer),
        ("client", client),
        ("service", service),
        ("protocol", protocol),
        ("flow", flow),
        ("verdict", verdict),
        ("reason", reason),
        ("rule", rule),
    ];
    always.into_iter().chain(some.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))))
}
