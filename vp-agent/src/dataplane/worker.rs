//! The loop: wait, take what came, let the node decide, keep leases, send. Nothing is allocated for a packet, and
//! nothing waits but for packets, time or the control thread.

use super::backlog::Backlog;
use super::codel::Codel;
use super::deliver::Deliverer;
use super::{Command, DataPlane, Handle, count};
use crate::sys::{Datagrams, Message, Poller, Receiver, Sender, Token};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc as async_mpsc;
use vp::addr::Grant;
use vp::node::{Event, Output};

/// Packets from the TUN in one turn and in one flush: so many small ones are worth a call, and no more latency.
const TURN_PACKETS_MAX: usize = 64;
/// What a turn takes from the TUN at most, so that the network is not kept waiting.
const TURN_BYTES_MAX: usize = 128 << 10;
/// A read of so many bytes fills a send: flush at once, nothing is gained by waiting.
const FLUSH_BYTES: usize = 24 << 10;
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
/// Of the event queue, what is kept free for events that change what the control thread does: those that only tell
/// of flows give way first, packets of control channels (which TCP sends again) next.
const KEPT_FROM_TALES: usize = super::EVENTS_MAX / 2;
const KEPT_FROM_CONTROL: usize = super::EVENTS_MAX / 4;
/// How often a lease that could not be kept is tried again.
const JOURNAL_PAUSE: Duration = Duration::from_secs(1);
/// Lease changes that wait for that; a pool's leases do not change faster than its quarantine lets them.
const UNKEPT_MAX: usize = 1 << 16;

pub(super) struct Worker {
    plane: DataPlane,
    output: Output,
    sender: Sender,
    receiver: Receiver,
    receive_limit: usize,
    codel: Codel,
    deliverer: Deliverer,
    backlog: Backlog,
    inbox: mpsc::Receiver<Command>,
    events: async_mpsc::Sender<Event>,
    handle: Handle,
    /// Lease changes that the journal has not taken yet, in their order, and when to try again.
    unkept: VecDeque<(Grant, bool)>,
    keep_next: Option<Instant>,
    /// When there was nothing left to do.
    rested: Instant,
    now: Instant,
}

impl Worker {
    /// To be made on the thread that it runs on.
    pub(super) fn new(
        plane: DataPlane,
        inbox: mpsc::Receiver<Command>,
        events: async_mpsc::Sender<Event>,
        handle: Handle,
    ) -> Self {
        Self {
            plane,
            output: Output::new(TRANSMIT_BYTES, INBOUND_BYTES),
            sender: Sender::default(),
            receiver: Receiver::default(),
            receive_limit: JOINED_MESSAGES,
            codel: Codel::new(Instant::now()),
            deliverer: Deliverer::default(),
            backlog: Backlog::default(),
            inbox,
            events,
            handle,
            unkept: VecDeque::new(),
            keep_next: None,
            rested: Instant::now(),
            now: Instant::now(),
        }
    }

    /// Until told to stop, or until the interface is gone.
    pub(super) fn run(mut self, poller: &Poller) -> io::Result<()> {
        // What the node has to say from its start, before anything happens.
        self.flush();
        while !self.handle.stop.load(Ordering::Relaxed) {
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
                self.handle.waker.take();
                self.run_commands();
            }
            if self.plane.node.poll_timeout().is_some_and(|at| at <= self.now) {
                self.plane.node.handle_timeout(&mut self.output, self.now);
                self.flush();
            }
            if self.keep_next.is_some_and(|at| at <= self.now) {
                self.keep_leases();
            }
        }
        self.keep_leases();
        Ok(())
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.backlog.is_empty() {
            return Some(Duration::ZERO);
        }
        let next = [self.plane.node.poll_timeout(), self.keep_next].into_iter().flatten().min();
        next.map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn run_commands(&mut self) {
        for _ in 0..COMMANDS_MAX {
            let Ok(command) = self.inbox.try_recv() else { return };
            command(&mut self.plane.node, &mut self.output, self.now);
            self.flush();
        }
        // There may be more: packets first.
        self.handle.waker.wake();
    }

    fn take_from_site(&mut self) -> io::Result<()> {
        let (mut packets, mut bytes) = (0, 0);
        self.backlog.fill(&self.plane.tun)?;
        while packets < TURN_PACKETS_MAX && bytes < TURN_BYTES_MAX {
            let Some((packet, offload)) = self.backlog.take() else { break };
            let is_long = packet.len() >= FLUSH_BYTES;
            (packets, bytes) = (packets + 1, bytes + packet.len());
            self.plane.node.handle_packet(packet, offload, &mut self.output, self.now);
            if is_long || self.output.transmits.room() < SEALED_BYTES_MAX {
                self.flush();
            }
            if is_long || self.backlog.is_due() {
                self.backlog.fill(&self.plane.tun)?;
            }
        }
        self.flush();
        Ok(())
    }

    fn take_from_network(&mut self) {
        // Errors of the socket itself are those of earlier sends; they are gone when they were told.
        let Ok(messages) = self.receiver.receive(&self.plane.udp, self.receive_limit) else { return };
        let mut bytes = 0;
        for index in 0..messages {
            let Some(message) = self.receiver.message(index) else {
                count(&self.handle.counters.truncated_messages, 1);
                continue;
            };
            bytes += message.bytes.len();
            let has_room =
                self.output.joiner.room() >= message.bytes.len() && self.output.transmits.room() >= SEALED_BYTES_MAX;
            if !has_room {
                self.plane.node.handle_batch_end(&mut self.output, self.now);
                self.flush();
            }
            let Some(Message { from, mut bytes, stride, waited }) = self.receiver.message(index) else { continue };
            // The oldest came after all was done.
            if index == 0 && waited < self.now.duration_since(self.rested) {
                self.codel.emptied();
            }
            // A message as large as a stream's is the stream's own, and the last datagram of it.
            if self.codel.drops(waited, self.now) && bytes.len() >= FLUSH_BYTES {
                let kept = (bytes.len() - 1) / stride.max(1) * stride;
                bytes = &mut bytes[..kept];
                count(&self.handle.counters.congestion_drops, 1);
            }
            self.plane.node.handle_datagrams(from, bytes, stride, &mut self.output, self.now);
        }
        self.plane.node.handle_batch_end(&mut self.output, self.now);
        self.flush();
        let is_joined = bytes > messages * JOINED_BYTES;
        self.receive_limit = if is_joined { JOINED_MESSAGES } else { Receiver::MESSAGES_MAX };
    }

    /// Leases to the journal, then everything else where it belongs.
    fn flush(&mut self) {
        self.take_events();
        let counters = &self.handle.counters;
        if !self.output.transmits.is_empty() {
            let batches = self.output.transmits.batches();
            let batches =
                batches.map(|(batch, bytes)| Datagrams { to: batch.to, bytes, segment_bytes: batch.segment_bytes });
            let sent = self.sender.send(&self.plane.udp, batches, self.now);
            count(&counters.send_errors, sent.failed);
            count(&counters.send_overload, sent.overload);
            count(&counters.unsegmented_sends, sent.refused);
        }
        count(&counters.tun_write_errors, self.deliverer.deliver(&self.plane.tun, &self.output));
        self.output.clear();
    }

    fn take_events(&mut self) {
        // Of leases the control thread wants to know that there is something new, once.
        let mut lease = None;
        while let Some(event) = self.plane.node.poll_event() {
            let kept_free = match &event {
                Event::Granted(grant) | Event::Released(grant) => {
                    self.keep(grant.clone(), matches!(event, Event::Granted(_)));
                    lease = Some(event);
                    continue;
                }
                Event::PeerUp(_)
                | Event::PeerDown(_)
                | Event::PeerMoved { .. }
                | Event::OfferChanged(_)
                | Event::PresencesChanged => 0,
                Event::Control { .. } => KEPT_FROM_CONTROL,
                Event::FlowOpened(_) | Event::FlowClosed { .. } | Event::Denied(_) => KEPT_FROM_TALES,
            };
            self.pass_on(event, kept_free);
        }
        if let Some(event) = lease {
            self.pass_on(event, 0);
        }
    }

    fn pass_on(&mut self, event: Event, kept_free: usize) {
        if self.events.capacity() <= kept_free || self.events.try_send(event).is_err() {
            count(&self.handle.counters.events_lost, 1);
        }
    }

    fn keep(&mut self, grant: Grant, granted: bool) {
        self.unkept.push_back((grant, granted));
        if self.keep_next.is_none() {
            self.keep_leases();
        }
    }

    /// Lease changes to the journal, in their order. One that cannot be kept (a full disk) is tried again; packets pass
    /// all the same, since a gateway that stops is worse than one that may give another address after a crash.
    fn keep_leases(&mut self) {
        self.keep_next = None;
        while let Some((grant, granted)) = self.unkept.front() {
            if let Err(error) = self.plane.journal.append(grant, *granted) {
                count(&self.handle.counters.journal_errors, 1);
                tracing::error!("{} lease changes cannot be kept, trying again: {error}", self.unkept.len());
                self.unkept.truncate(UNKEPT_MAX);
                self.keep_next = Some(self.now + JOURNAL_PAUSE);
                return;
            }
            self.unkept.pop_front();
        }
    }
}
