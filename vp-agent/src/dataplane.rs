//! The data thread: owns the node, the TUN and the UDP socket, and does nothing but carry packets between them.
//! Everything else reaches the node as a closure that runs between two batches.

use crate::sys::{Incoming, Poller, Token, Tun, Udp, Waker, is_later};
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc as async_mpsc, oneshot};
use vp::addr::Grant;
use vp::node::{Event, Node, Output};
use vp::packet::{Offload, virtio};

/// TUN reads in one turn, so that the network is not kept waiting by a busy site.
const TUN_READS_MAX: usize = 64;
/// A read of so many bytes fills a send: flush at once, nothing is gained by waiting.
const FLUSH_BYTES: usize = 24 << 10;
/// Receive calls in one turn.
const RECEIVES_MAX: usize = 4;
/// Sealed datagrams of a turn: a super-packet a read, and room for what handshakes and queues add.
const TRANSMIT_BYTES: usize = 1 << 20;
/// Opened packets of one receive call (8 messages of 64 KB) and what a control packet may add.
const INBOUND_BYTES: usize = (8 << 16) + (1 << 16);
/// A path that refused a segmented send is not offered one again before this.
const SEGMENTATION_RETRY: Duration = Duration::from_secs(60);
/// Events on their way to the control thread.
const EVENTS_MAX: usize = 16_384;
/// `UIO_MAXIOV`; a joined packet has at most 64 parts and the header.
const PARTS_MAX: usize = 128;

/// Where leases are kept. Called before anything that depends on the lease leaves the gateway.
pub trait Journal: Send {
    fn append(&mut self, grant: &Grant, granted: bool) -> io::Result<()>;
}

type Command = Box<dyn FnOnce(&mut Node, &mut Output, Instant) + Send>;

/// Reaches the node from any thread. The data thread ends when it is told to stop.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    waker: Waker,
    counters: Arc<Counters>,
}

/// What the shell counts itself.
#[derive(Default, Debug)]
pub struct Counters {
    pub events_lost: AtomicU64,
    pub send_errors: AtomicU64,
    pub tun_write_errors: AtomicU64,
    pub journal_errors: AtomicU64,
    pub unsegmented_sends: AtomicU64,
    stop: std::sync::atomic::AtomicBool,
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

    /// The data thread ends after the batch at hand.
    pub fn stop(&self) {
        self.counters.stop.store(true, Ordering::Relaxed);
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

/// Starts the data thread.
pub fn start(plane: DataPlane) -> io::Result<(Handle, async_mpsc::Receiver<Event>, JoinHandle<()>)> {
    let (commands, inbox) = mpsc::channel();
    let (events, outbox) = async_mpsc::channel(EVENTS_MAX);
    let waker = Waker::new()?;
    let poller = Poller::new()?;
    poller.add(&plane.tun, Token::Tun)?;
    poller.add(&plane.udp, Token::Udp)?;
    poller.add(&waker, Token::Waker)?;
    let counters = Arc::new(Counters::default());
    let handle = Handle { commands, waker: waker.clone(), counters: Arc::clone(&counters) };
    let output = Output::new(TRANSMIT_BYTES, INBOUND_BYTES);
    let unsegmented = HashMap::new();
    let mut worker = Worker { plane, output, inbox, events, waker, counters, unsegmented, now: Instant::now() };
    let thread = std::thread::Builder::new().name("vp-data".to_owned()).spawn(move || worker.run(poller))?;
    Ok((handle, outbox, thread))
}

struct Worker {
    plane: DataPlane,
    output: Output,
    inbox: mpsc::Receiver<Command>,
    events: async_mpsc::Sender<Event>,
    waker: Waker,
    counters: Arc<Counters>,
    /// Destinations whose path refused a segmented send, and when.
    unsegmented: HashMap<SocketAddr, Instant>,
    now: Instant,
}

impl Worker {
    fn run(&mut self, mut poller: Poller) {
        let mut incoming = Incoming::default();
        let mut buffer = vec![0; virtio::HEADER_BYTES + (1 << 16)];
        // What the node has to say from its start, before anything happens.
        self.flush();
        while !self.counters.stop.load(Ordering::Relaxed) {
            let timeout = self.plane.node.poll_timeout().map(|at| at.saturating_duration_since(Instant::now()));
            let ready: Vec<Token> = match poller.wait(timeout) {
                Ok(ready) => ready.collect(),
                Err(error) => {
                    tracing::error!("waiting for packets failed, the data thread ends: {error}");
                    return;
                }
            };
            self.now = Instant::now();
            if ready.contains(&Token::Udp) {
                self.take_from_network(&mut incoming);
            }
            if ready.contains(&Token::Tun) {
                self.take_from_site(&mut buffer);
            }
            if ready.contains(&Token::Waker) {
                self.waker.clear();
            }
            self.run_commands();
            if self.plane.node.poll_timeout().is_some_and(|at| at <= self.now) {
                self.plane.node.handle_timeout(&mut self.output, self.now);
            }
            self.flush();
        }
    }

    fn run_commands(&mut self) {
        while let Ok(command) = self.inbox.try_recv() {
            command(&mut self.plane.node, &mut self.output, self.now);
            self.flush();
        }
    }

    fn take_from_site(&mut self, buffer: &mut [u8]) {
        let header_bytes = if self.plane.tun.has_header() { virtio::HEADER_BYTES } else { 0 };
        for _ in 0..TUN_READS_MAX {
            let count = match self.plane.tun.read(buffer) {
                Ok(count) => count,
                Err(error) if is_later(&error) => break,
                Err(error) => {
                    tracing::debug!("reading the TUN failed: {error}");
                    break;
                }
            };
            let Some(packet_bytes) = count.checked_sub(header_bytes) else { continue };
            let (header, packet) = buffer.split_at_mut(header_bytes);
            let offload = match header.first_chunk().map(virtio::decode) {
                Some(Ok(offload)) => offload,
                Some(Err(_)) => continue,
                None => Offload::default(),
            };
            let packet = &mut packet[..packet_bytes];
            self.plane.node.handle_packet(packet, offload, &mut self.output, self.now);
            if packet_bytes >= FLUSH_BYTES || self.output.transmits.room() < TRANSMIT_BYTES / 2 {
                self.flush();
            }
        }
        self.flush();
    }

    fn take_from_network(&mut self, incoming: &mut Incoming) {
        for _ in 0..RECEIVES_MAX {
            match self.plane.udp.receive(incoming) {
                Ok(()) => {}
                // Errors of earlier sends come back here too (an ICMP port unreachable); the socket is fine.
                Err(_) => break,
            }
            for (from, message, stride) in incoming.messages() {
                self.plane.node.handle_datagrams(from, message, stride, &mut self.output, self.now);
            }
            self.plane.node.handle_batch_end(&mut self.output, self.now);
            self.flush();
            if !incoming.is_full() {
                break;
            }
        }
    }

    /// Leases to the journal, then everything else where it belongs.
    fn flush(&mut self) {
        while let Some(event) = self.plane.node.poll_event() {
            let kept = match &event {
                Event::Granted(grant) => self.plane.journal.append(grant, true),
                Event::Released(grant) => self.plane.journal.append(grant, false),
                _ => Ok(()),
            };
            if let Err(error) = kept {
                self.counters.journal_errors.fetch_add(1, Ordering::Relaxed);
                tracing::error!("a lease could not be kept and may be another after a restart: {error}");
            }
            if self.events.try_send(event).is_err() {
                self.counters.events_lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.send();
        self.deliver();
        self.output.clear();
    }

    fn send(&mut self) {
        for (batch, bytes) in self.output.transmits.batches() {
            let (to, segment_bytes) = (batch.to, batch.segment_bytes);
            let segmented = bytes.len() > segment_bytes;
            if segmented && is_refused(&mut self.unsegmented, to, self.now) {
                send_singly(&self.plane.udp, &self.counters, to, bytes, segment_bytes);
                continue;
            }
            match self.plane.udp.send(to, bytes, segment_bytes) {
                Ok(()) => {}
                Err(error) if segmented && refuses_segmentation(&error) => {
                    self.unsegmented.insert(to, self.now);
                    send_singly(&self.plane.udp, &self.counters, to, bytes, segment_bytes);
                }
                Err(_) => {
                    self.counters.send_errors.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn deliver(&mut self) {
        let with_header = self.plane.tun.has_header();
        for delivery in self.output.joiner.deliveries() {
            let mut parts = [IoSlice::new(&[]); PARTS_MAX];
            let mut count = 0;
            let header = with_header.then_some(&delivery.virtio[..]);
            for (part, bytes) in parts.iter_mut().zip(header.into_iter().chain(delivery.slices())) {
                *part = IoSlice::new(bytes);
                count += 1;
            }
            write(&self.plane.tun, &self.counters, &parts[..count]);
        }
        for packet in &self.output.packets {
            let header = [0; virtio::HEADER_BYTES];
            let parts = [IoSlice::new(&header), IoSlice::new(packet)];
            write(&self.plane.tun, &self.counters, if with_header { &parts } else { &parts[1..] });
        }
    }
}

fn write(tun: &Tun, counters: &Counters, parts: &[IoSlice<'_>]) {
    if tun.write(parts).is_err() {
        counters.tun_write_errors.fetch_add(1, Ordering::Relaxed);
    }
}

/// No offload on this path (EIO: the device has no checksum offload; EINVAL: it is smaller than a datagram).
fn refuses_segmentation(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP))
}

fn is_refused(refused: &mut HashMap<SocketAddr, Instant>, to: SocketAddr, now: Instant) -> bool {
    match refused.get(&to) {
        Some(since) if now.saturating_duration_since(*since) < SEGMENTATION_RETRY => true,
        Some(_) => {
            refused.remove(&to);
            false
        }
        None => false,
    }
}

fn send_singly(udp: &Udp, counters: &Counters, to: SocketAddr, bytes: &[u8], segment_bytes: usize) {
    counters.unsegmented_sends.fetch_add(1, Ordering::Relaxed);
    for datagram in bytes.chunks(segment_bytes) {
        if udp.send(to, datagram, datagram.len()).is_err() {
            counters.send_errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}
