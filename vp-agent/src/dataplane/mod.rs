//! The data thread: owns the node, the TUN and the UDP socket, and does nothing but carry packets between them.
//! Everything else reaches the node as a closure that runs between two batches.

mod backlog;
mod codel;
mod deliver;
#[cfg(test)]
mod tests;
mod worker;

use crate::sys::{Poller, Token, Tun, Udp, Waker};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;
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

/// Reaches the node from any thread. The data thread ends when it is told to stop.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    waker: Arc<Waker>,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
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

/// The data thread is gone.
#[derive(Debug, thiserror::Error)]
#[error("the data thread has ended")]
pub struct Gone;

impl Handle {
    /// Runs on the data thread between two batches.
    pub async fn call<R: Send + 'static>(
        &self,
        run: impl FnOnce(&mut Node, &mut Output, Instant) -> R + Send + 'static,
    ) -> Result<R, Gone> {
        let (answer, answered) = oneshot::channel();
        let command: Command = Box::new(move |node, output, now| {
            answer.send(run(node, output, now)).ok();
        });
        self.commands.send(command).map_err(|_| Gone)?;
        self.waker.wake();
        answered.await.map_err(|_| Gone)
    }

    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The data thread ends after the batch at hand, and the interface with it.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
    }
}

/// What the data thread is made of.
pub struct DataPlane {
    pub node: Node,
    pub tun: Tun,
    pub udp: Udp,
    pub journal: Box<dyn Journal>,
}

/// Starts the data thread. When it ends, the events do.
pub fn start(plane: DataPlane) -> io::Result<(Handle, async_mpsc::Receiver<Event>, JoinHandle<()>)> {
    let (commands, inbox) = mpsc::channel();
    let (events, outbox) = async_mpsc::channel(EVENTS_MAX);
    let waker = Arc::new(Waker::new()?);
    let poller = Poller::new()?;
    poller.add(plane.tun.as_fd(), Token::Tun)?;
    poller.add(plane.udp.as_fd(), Token::Udp)?;
    poller.add(waker.as_fd(), Token::Waker)?;
    let (counters, stop) = (Arc::new(Counters::default()), Arc::new(AtomicBool::new(false)));
    let handle = Handle { commands, waker, counters, stop };
    let with = handle.clone();
    let run = move || match Worker::new(plane, inbox, events, with).run(&poller) {
        Ok(()) => {}
        Err(error) => tracing::error!("the data thread ends: {error}"),
    };
    let thread = std::thread::Builder::new().name("vp-data".to_owned()).spawn(run)?;
    Ok((handle, outbox, thread))
}
