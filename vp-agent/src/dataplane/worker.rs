//! The loop of one worker: wait, take what came, let the node decide, keep leases, send. Nothing is allocated for a packet,
//! and nothing waits but for packets, time, the control thread, or another worker at the node or the same tunnel.

use super::backlog::Backlog;
use super::deliver::Deliverer;
use super::shared::Shared;
use super::{Command, Queue, count};
use crate::sys::{Datagrams, Message, Poller, Receiver, Sender, Sent, ThreadClock, Token};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use vp::node::{Node, Output, Sorted, Whose};
use vp::policy::Codel;

/// Packets from the TUN in one turn and in one flush: so many small ones are worth a call, and no more latency.
const TURN_PACKETS_MAX: usize = 64;
/// What a turn takes from the TUN at most, so that the network is not kept waiting.
const TURN_BYTES_MAX: usize = 128 << 10;
/// A read of so many bytes fills a send: flush at once, nothing is gained by waiting.
const FLUSH_BYTES: usize = 24 << 10;
/// A message of so many bytes is a stream's.
const STREAM_BYTES: usize = 24 << 10;
/// What waits in the UDP socket is kept short by CoDel: its buffer is large, so that no burst is lost, and a stream that finds
/// this gateway slower than its sender would fill it. RFC 8289's 5 ms are for links of the internet; this queue is between two
/// threads' turns.
const CODEL_TARGET: Duration = Duration::from_micros(250);
/// In processor time of the thread that empties it: while others have the processor, a queue grows that is no stream's doing.
const CODEL_INTERVAL: Duration = Duration::from_millis(5);
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
    /// Of each message at hand, whose its first datagrams are.
    sorted: Vec<Option<Sorted>>,
    passed: Vec<Passed>,
    codel: Codel,
    /// This thread's.
    clock: ThreadClock,
    deliverer: Deliverer,
    backlog: Backlog,
    /// When there was nothing left to do.
    rested: Instant,
    now: Instant,
}

/// Datagrams of a received message that go on to another site.
struct Passed {
    message: usize,
    range: Range<usize>,
    to: SocketAddr,
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
            sorted: Vec::with_capacity(Receiver::MESSAGES_MAX),
            passed: Vec::with_capacity(Receiver::MESSAGES_MAX),
            codel: Codel::new(CODEL_TARGET, CODEL_INTERVAL),
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
        self.sort(messages);
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
            self.take_message(index);
        }
        self.pass_on();
        self.at_node(Node::handle_batch_end);
        self.flush();
        let is_joined = bytes > messages * JOINED_BYTES;
        self.receive_limit = if is_joined { JOINED_MESSAGES } else { Receiver::MESSAGES_MAX };
    }

    /// Of each message, whose it is: one visit to the node for all.
    fn sort(&mut self, messages: usize) {
        let is_first = self.is_first();
        let Self { receiver, sorted, shared, now, .. } = self;
        sorted.clear();
        shared.at_node(is_first, |node| {
            sorted.extend((0..messages).map(|index| {
                let Message { from, bytes, stride, .. } = receiver.message(index)?;
                Some(node.sort(from, bytes, stride, *now))
            }));
        });
    }

    /// One message: what is of a peer's session beside the node, what is of none at the node, what is for another site later.
    fn take_message(&mut self, index: usize) {
        let is_first = self.is_first();
        let Self { receiver, sorted, passed, shared, output, codel, clock, rested, now, .. } = self;
        let mut first = sorted.get_mut(index).and_then(Option::take);
        let Some(Message { from, bytes, stride, waited }) = receiver.message(index) else { return };
        // The oldest came after all was done.
        if index == 0 && waited < now.duration_since(*rested) {
            codel.emptied();
        }
        let mut end = bytes.len();
        // Of a stream's message, its last datagram.
        if codel.drops(waited, end >= STREAM_BYTES, || clock.read().unwrap_or_default()) {
            end = (end - 1) / stride.max(1) * stride;
            count(&shared.handle().counters.congestion_drops, 1);
        }
        let mut start = 0;
        while start < end {
            let rest = &mut bytes[start..end];
            let sort = || shared.at_node(is_first, |node| node.sort(from, rest, stride, *now));
            let Sorted { whose, bytes: length } = first.take().unwrap_or_else(sort);
            let range = start..(start + length.max(1)).min(end);
            start = range.end;
            let run = &bytes[range.clone()];
            let unopened = match whose {
                Whose::Session(tunnel, path) => {
                    let opened = output.open(&tunnel, path, run, stride, *now);
                    Some((path, &run[opened..])).filter(|(_, rest)| !rest.is_empty())
                }
                Whose::Node(path) => Some((path, run)),
                Whose::Relay(to) => {
                    passed.push(Passed { message: index, range, to });
                    None
                }
                Whose::Nobody => None,
            };
            if let Some((path, rest)) = unopened {
                shared.at_node(is_first, |node| node.handle_datagrams(path, rest, stride, output, *now));
            }
        }
    }

    /// For other sites, from where it was received.
    fn pass_on(&mut self) {
        let Self { receiver, sender, passed, queue, now, .. } = self;
        if passed.is_empty() {
            return;
        }
        let batches = passed.iter().filter_map(|Passed { message, range, to }| {
            let (bytes, segment_bytes) = receiver.datagrams(*message, range.clone())?;
            Some(Datagrams { to: *to, bytes, segment_bytes })
        });
        let sent = sender.send(&queue.udp, batches, *now);
        passed.clear();
        self.count_sent(sent);
    }

    fn count_sent(&self, sent: Sent) {
        let counters = &self.shared.handle().counters;
        count(&counters.send_errors, sent.failed);
        count(&counters.send_overload, sent.overload);
        count(&counters.unsegmented_sends, sent.refused);
    }

    /// Leases to the journal, then everything else where it belongs.
    fn flush(&mut self) {
        if !self.output.is_settled() {
            self.at_node(Node::settle);
        }
        self.shared.keep_new(self.now);
        if !self.output.transmits.is_empty() {
            let batches = self.output.transmits.batches();
            let batches =
                batches.map(|(batch, bytes)| Datagrams { to: batch.to, bytes, segment_bytes: batch.segment_bytes });
            let sent = self.sender.send(&self.queue.udp, batches, self.now);
            self.count_sent(sent);
        }
        let counters = &self.shared.handle().counters;
        count(&counters.tun_write_errors, self.deliverer.deliver(&self.queue.tun, &self.output));
        self.output.clear();
    }
}
