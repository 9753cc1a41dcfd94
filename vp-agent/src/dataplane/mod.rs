//! The data threads, or workers: each has a queue of the TUN and a UDP socket of its own, and does nothing but carry packets
//! between them through the node that they share. Everything else reaches the node as a closure that the first worker runs
//! between two batches.

mod backlog;
mod deliver;
mod shared;
#[cfg(test)]
mod tests;
mod worker;

use crate::sys::{Poller, ThreadClock, Token, Tun, Udp, Waker};
use shared::Shared;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc as async_mpsc, oneshot};
use vp::addr::Grant;
use vp::node::{Event, Node, Output};
use worker::Worker;

/// Events on their way to the control thread.
const EVENTS_MAX: usize = 16_384;

/// Where leases are kept. Called before anything that depends on the lease leaves the gateway.
pub trait Journal: Send {
    fn append(&mut self, grant: &Grant, granted: bool) -> io::Result<()>;
}

type Command = Box<dyn FnOnce(&mut Node, &mut Output, Instant) + Send>;

/// Reaches the node from any thread. The data threads end when they are told to stop.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    workers: Arc<[Reach]>,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    port: u16,
    /// Only to see how many wait: whoever sends them decides when they end.
    events: async_mpsc::WeakSender<Event>,
}

/// One worker, as others reach it.
struct Reach {
    waker: Waker,
    clock: OnceLock<ThreadClock>,
}

/// What the shell counts itself.
#[derive(Default, Debug)]
pub struct Counters {
    /// Events that the control thread was too slow for.
    pub events_lost: AtomicU64,
    /// Datagrams for which there was no way.
    pub send_errors: AtomicU64,
    /// Datagrams that found a queue of the kernel full.
    pub send_overload: AtomicU64,
    /// Batches that the kernel did not want to cut up, and that were sent singly.
    pub unsegmented_sends: AtomicU64,
    /// Datagrams dropped so that a stream that is faster than this gateway does not make others wait.
    pub congestion_drops: AtomicU64,
    /// Messages from the network that were cut short, and dropped.
    pub truncated_messages: AtomicU64,
    /// Packets that the TUN did not take: the interface is down.
    pub tun_write_errors: AtomicU64,
    /// Attempts to keep a lease that failed; each is tried again.
    pub journal_errors: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    if by > 0 {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

/// The data threads are gone.
#[derive(Debug, thiserror::Error)]
#[error("the data threads have ended")]
pub struct Gone;

impl Handle {
    /// Runs on the first data thread between two batches, with no other at the node.
    pub async fn call<R: Send + 'static>(
        &self,
        run: impl FnOnce(&mut Node, &mut Output, Instant) -> R + Send + 'static,
    ) -> Result<R, Gone> {
        let (answer, answered) = oneshot::channel();
        let command: Command = Box::new(move |node, output, now| {
            answer.send(run(node, output, now)).ok();
        });
        self.commands.send(command).map_err(|_| Gone)?;
        self.wake_first();
        answered.await.map_err(|_| Gone)
    }

    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Of the UDP sockets.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Events that wait for the control thread, and how many may.
    #[must_use]
    pub fn events_waiting(&self) -> (usize, usize) {
        let waiting = self.events.upgrade().map(|events| EVENTS_MAX - events.capacity());
        (waiting.unwrap_or(0), EVENTS_MAX)
    }

    /// What each worker took of the processor, the first one first.
    #[must_use]
    pub fn worker_times(&self) -> Vec<Duration> {
        let read = |reach: &Reach| reach.clock.get().and_then(|clock| clock.read()).unwrap_or_default();
        self.workers.iter().map(read).collect()
    }

    /// The data threads end after the batches at hand, and the interface with them.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.workers.iter().for_each(|reach| reach.waker.wake());
    }

    fn wake_first(&self) {
        self.workers.iter().take(1).for_each(|reach| reach.waker.wake());
    }
}

/// What the data threads are made of.
pub struct DataPlane {
    pub node: Node,
    /// A worker each.
    pub queues: Vec<Queue>,
    pub journal: Box<dyn Journal>,
}

/// What is one worker's own.
pub struct Queue {
    pub tun: Tun,
    pub udp: Udp,
}

/// Starts the data threads; the one returned ends as the last. When they end, the events do.
pub fn start(plane: DataPlane) -> io::Result<(Handle, async_mpsc::Receiver<Event>, JoinHandle<()>)> {
    let (commands, inbox) = mpsc::channel();
    let (events, outbox) = async_mpsc::channel(EVENTS_MAX);
    let reach = |_: &Queue| Waker::new().map(|waker| Reach { waker, clock: OnceLock::new() });
    let workers: Arc<[Reach]> = plane.queues.iter().map(reach).collect::<io::Result<_>>()?;
    let (counters, stop) = (Arc::new(Counters::default()), Arc::new(AtomicBool::new(false)));
    let port = plane.queues.first().ok_or(io::ErrorKind::InvalidInput)?.udp.local_address()?.port();
    let handle = Handle { commands, workers, counters, stop, port, events: events.downgrade() };
    let shared = Arc::new(Shared::new(plane.node, plane.journal, events, handle.clone()));
    let (mut first, mut others) = (Some(inbox), Vec::new());
    // The first one last: it waits for the others at its end.
    for (number, queue) in plane.queues.into_iter().enumerate().rev() {
        let inbox = if number == 0 { first.take() } else { None };
        let joined = if number == 0 { std::mem::take(&mut others) } else { Vec::new() };
        let started = spawn(number, queue, inbox, joined, shared.clone(), handle.clone());
        others.push(started.inspect_err(|_| handle.stop())?);
    }
    let first = others.pop().ok_or(io::ErrorKind::InvalidInput)?;
    Ok((handle, outbox, first))
}

fn spawn(
    number: usize,
    queue: Queue,
    inbox: Option<mpsc::Receiver<Command>>,
    others: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    handle: Handle,
) -> io::Result<JoinHandle<()>> {
    let poller = Poller::new()?;
    poller.add(queue.tun.as_fd(), Token::Tun)?;
    poller.add(queue.udp.as_fd(), Token::Udp)?;
    poller.add(handle.workers[number].waker.as_fd(), Token::Waker)?;
    let run = move || {
        let ended = Worker::new(number, queue, inbox, shared.clone()).and_then(|worker| worker.run(&poller));
        let was_told = handle.stop.load(Ordering::Relaxed);
        if let (Err(error), false) = (ended, was_told) {
            tracing::error!("the data threads end: {error}");
        }
        handle.stop();
        others.into_iter().for_each(|other| drop(other.join()));
        if number == 0 {
            shared.end(Instant::now());
        }
    };
    std::thread::Builder::new().name(format!("vp-data-{number}")).spawn(run)
}
