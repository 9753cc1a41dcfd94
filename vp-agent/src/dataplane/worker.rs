//! The loop of one worker: wait, take what came, let the node decide, keep leases, send. Nothing is allocated for a packet,
//! and nothing waits but for packets, time, the control thread, or another worker at the node or the same tunnel.

use super::backlog::Backlog;
use super::codel::Codel;
use super::deliver::Deliverer;
use super::shared::Shared;
use super::{Command, Queue, count};
use crate::sys::{Datagrams, Message, Poller, Receiver, Sender, ThreadClock, Token};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use vp::node::{Node, Output};
use vp::tunnel::Tunnel;

/// Packets from the TUN in one turn and in one flush: so many small ones are worth a call, and no more latency.
const TURN_PACKETS_MAX: usize = 64;
/// What a turn takes from the TUN at most, so that the network is not kept waiting.
const TURN_BYTES_MAX: usize = 128 << 10;
/// A read of so many bytes fills a send: flush at once, nothing is gained by waiting.
const FLUSH_BYTES: usize = 24 << 10;
/// A message of so many bytes is a stream's.
const STREAM_BYTES: usize = 24 << 10;
/// Messages of one receive call: few of those that the kernel joined, many of those that it did not, so that they can
/// be joined here. Which of both it is shows in the last call's.
const JOINED_MESSAGES: usize = 2;
const JOINED_BYTES: usize = 8 << 10;
/// Sealed datagrams until the next flush.
const TRANSMIT_BYTES: usize = 512 << 10;
/// What a super-packet may become when sealed: 32 bytes a segment, and padding, of segments as small as may be.
const SEALED_BYTES_MAX: usize = 128 << 10;
/// Opened packets until the next flush.
const INBOUND_BYTES: usize = (JOINED_MESSAGES + 1) * Receiver::MESSAGE_BYTES_MAX;
/// Closures run in one turn.
const COMMANDS_MAX: usize = 64;

pub(super) struct Worker {
    queue: Queue,
    shared: Arc<Shared>,
    /// The first worker's: it runs what comes by it, and does what time calls for.
    inbox: Option<mpsc::Receiver<Command>>,
    number: usize,
    output: Output,
    sender: Sender,
    receiver: Receiver,
    receive_limit: usize,
    /// Whose session each message at hand is of.
    tunnels: Vec<Option<Tunnel>>,
    codel: Codel,
    /// This thread's.
    clock: ThreadClock,
    deliverer: Deliverer,
    backlog: Backlog,
    /// When there was nothing left to do.
    rested: Instant,
    now: Instant,
}

impl Worker {
    /// To be made on the thread that it runs on.
    pub(super) fn new(
        number: usize,
        queue: Queue,
        inbox: Option<mpsc::Receiver<Command>>,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        Ok(Self {
            queue,
            shared,
            inbox,
            number,
            output: Output::new(TRANSMIT_BYTES, INBOUND_BYTES),
            sender: Sender::default(),
            receiver: Receiver::default(),
            receive_limit: JOINED_MESSAGES,
            tunnels: Vec::with_capacity(Receiver::MESSAGES_MAX),
            codel: Codel::default(),
            clock: ThreadClock::own()?,
            deliverer: Deliverer::default(),
            backlog: Backlog::default(),
            rested: Instant::now(),
            now: Instant::now(),
        })
    }

    /// Until told to stop, or until the interface is gone.
    pub(super) fn run(mut self, poller: &Poller) -> io::Result<()> {
        let shared = self.shared.clone();
        let (handle, is_first) = (shared.handle(), self.is_first());
        let own = &handle.workers[self.number];
        own.clock.set(self.clock).ok();
        if is_first {
            // What the node has to say from its start, before anything happens.
            self.at_node(|_, _, _| ());
            self.flush();
        }
        while !handle.stop.load(Ordering::Relaxed) {
            self.rested = Instant::now();
            let ready = poller.wait(self.timeout())?;
            self.now = Instant::now();
            if ready.has(Token::Udp) {
                self.take_from_network();
            }
            if ready.has(Token::Tun) || !self.backlog.is_empty() {
                self.take_from_site()?;
            }
            if ready.has(Token::Waker) {
                own.waker.take();
                self.run_commands();
            }
            if is_first {
                self.act_on_time();
            }
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.backlog.is_empty() {
            return Some(Duration::ZERO);
        }
        let next = if self.is_first() { self.shared.sleep() } else { None };
        next.map(|at| at.saturating_duration_since(self.rested))
    }

    fn is_first(&self) -> bool {
        self.inbox.is_some()
    }

    /// At the node, with nobody else there.
    fn at_node<R>(&mut self, run: impl FnOnce(&mut Node, &mut Output, Instant) -> R) -> R {
        let is_first = self.is_first();
        let Self { shared, output, now, .. } = self;
        shared.at_node(is_first, |node| run(node, output, *now))
    }

    fn act_on_time(&mut self) {
        let Self { shared, output, now, .. } = self;
        if shared.act_on_time(*now, |node| node.handle_timeout(output, *now)) {
            self.flush();
        }
    }

    fn run_commands(&mut self) {
        for _ in 0..COMMANDS_MAX {
            let Some(command) = self.inbox.as_ref().and_then(|inbox| inbox.try_recv().ok()) else { return };
            self.at_node(command);
            self.flush();
        }
        // There may be more: packets first.
        self.shared.handle().wake_first();
    }

    fn take_from_site(&mut self) -> io::Result<()> {
        let is_first = self.is_first();
        let (mut packets, mut bytes) = (0, 0);
        self.backlog.fill(&self.queue.tun)?;
        while packets < TURN_PACKETS_MAX && bytes < TURN_BYTES_MAX {
            let Some((packet, offload)) = self.backlog.take() else { break };
            let is_long = packet.len() >= FLUSH_BYTES;
            (packets, bytes) = (packets + 1, bytes + packet.len());
            let Self { shared, output, now, .. } = self;
            let outbound = shared.at_node(is_first, |node| node.outbound(packet, offload, output, *now));
            if let Some(outbound) = outbound {
                output.seal(&outbound, *now);
            }
            if is_long || self.output.transmits.room() < SEALED_BYTES_MAX {
                self.flush();
            }
            if is_long || self.backlog.is_due() {
                self.backlog.fill(&self.queue.tun)?;
            }
        }
        self.flush();
        Ok(())
    }

    fn take_from_network(&mut self) {
        // Errors of the socket itself are those of earlier sends; they are gone when they were told.
        let Ok(messages) = self.receiver.receive(&self.queue.udp, self.receive_limit) else { return };
        self.find_tunnels(messages);
        let mut bytes = 0;
        for index in 0..messages {
            let Some(message) = self.receiver.message(index) else {
                count(&self.shared.handle().counters.truncated_messages, 1);
                continue;
            };
            bytes += message.bytes.len();
            let has_room =
                self.output.joiner.room() >= message.bytes.len() && self.output.transmits.room() >= SEALED_BYTES_MAX;
            if !has_room {
                self.at_node(Node::handle_batch_end);
                self.flush();
            }
            self.open(index);
        }
        self.at_node(Node::handle_batch_end);
        self.flush();
        let is_joined = bytes > messages * JOINED_BYTES;
        self.receive_limit = if is_joined { JOINED_MESSAGES } else { Receiver::MESSAGES_MAX };
    }

    /// Of each message, whose it is: one visit to the node for all.
    fn find_tunnels(&mut self, messages: usize) {
        let is_first = self.is_first();
        let Self { receiver, tunnels, shared, .. } = self;
        tunnels.clear();
        shared.at_node(is_first, |node| {
            tunnels.extend((0..messages).map(|index| {
                let message = receiver.message(index)?;
                node.tunnel_of(message.bytes.get(..message.stride).unwrap_or(message.bytes))
            }));
        });
    }

    /// One message: what is of the peer's session beside the node, and what is not, or of another's, at the node.
    fn open(&mut self, index: usize) {
        let is_first = self.is_first();
        let Self { receiver, tunnels, shared, output, codel, clock, rested, now, .. } = self;
        let tunnel = tunnels.get_mut(index).and_then(Option::take);
        let Some(Message { from, bytes, stride, waited }) = receiver.message(index) else { return };
        let mut rest = &*bytes;
        // The oldest came after all was done.
        if index == 0 && waited < now.duration_since(*rested) {
            codel.emptied();
        }
        // Of a stream's message, its last datagram.
        if codel.drops(waited, rest.len() >= STREAM_BYTES, || clock.read().unwrap_or_default()) {
            let kept = (rest.len() - 1) / stride.max(1) * stride;
            rest = &rest[..kept];
            count(&shared.handle().counters.congestion_drops, 1);
        }
        if let Some(tunnel) = tunnel {
            rest = &rest[output.open(&tunnel, from, rest, stride, *now)..];
        }
        if !rest.is_empty() {
            shared.at_node(is_first, |node| node.handle_datagrams(from, rest, stride, output, *now));
        }
    }

    /// Leases to the journal, then everything else where it belongs.
    fn flush(&mut self) {
        if !self.output.is_settled() {
            self.at_node(Node::settle);
        }
        self.shared.keep_new(self.now);
        let counters = &self.shared.handle().counters;
        if !self.output.transmits.is_empty() {
            let batches = self.output.transmits.batches();
            let batches =
                batches.map(|(batch, bytes)| Datagrams { to: batch.to, bytes, segment_bytes: batch.segment_bytes });
            let sent = self.sender.send(&self.queue.udp, batches, self.now);
            count(&counters.send_errors, sent.failed);
            count(&counters.send_overload, sent.overload);
            count(&counters.unsegmented_sends, sent.refused);
        }
        count(&counters.tun_write_errors, self.deliverer.deliver(&self.queue.tun, &self.output));
        self.output.clear();
    }
}
