//! What the workers have in common: the node, the events that it tells, the journal that its leases go to.
//!
//! Locks are taken in one order: the journal, the node, a tunnel (in the core). Only the journal's is held while something is
//! waited for, the disk; it is taken when a lease is new, and then nobody's packet passes before the lease is kept.

use super::{Handle, Journal, count};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc as async_mpsc;
use vp::addr::Grant;
use vp::node::{Event, Node};

/// Of the event queue, what is kept free for events that change what the control thread does: those that only tell of denials
/// (which are summed up anyway, and which anybody can cause) give way first, those of flows next, packets of control channels
/// (which TCP sends again) then.
const KEPT_FROM_DENIALS: usize = super::EVENTS_MAX / 4 * 3;
const KEPT_FROM_TALES: usize = super::EVENTS_MAX / 2;
/// Flows that must be told of do not open where less room than this is left for tales: that of one batch of packets.
const CROWDED: usize = super::EVENTS_MAX / 8;
const KEPT_FROM_CONTROL: usize = super::EVENTS_MAX / 4;
/// What only tells of flows waits so long for company, since each time the control thread is woken costs more than a packet.
const TALES_PAUSE: Duration = Duration::from_millis(10);
const TALES_MAX: usize = 256;
/// How often a lease that could not be kept is tried again.
const JOURNAL_PAUSE: Duration = Duration::from_secs(1);
/// Lease changes that wait for that; a pool's leases do not change faster than its quarantine lets them.
const UNKEPT_MAX: usize = 1 << 16;

pub(super) struct Shared {
    core: Mutex<Core>,
    journal: Mutex<Box<dyn Journal>>,
    /// A lease changed and the journal has not taken it yet. Set with the node's lock held.
    is_unkept: AtomicBool,
    events: async_mpsc::Sender<Event>,
    handle: Handle,
}

struct Core {
    node: Node,
    /// Until when the first worker sleeps, unless something comes.
    sleeps_until: Option<Instant>,
    /// Lease changes that the journal has not taken yet, in their order, and when to try again after it did not.
    unkept: VecDeque<(Grant, bool)>,
    keep_next: Option<Instant>,
    /// Events that only tell of flows, and when they are to be told.
    tales: Vec<Event>,
    tell_next: Option<Instant>,
}

impl Core {
    fn next(&self) -> Option<Instant> {
        [self.node.poll_timeout(), self.keep_next, self.tell_next].into_iter().flatten().min()
    }
}

impl Shared {
    pub(super) fn new(
        node: Node,
        journal: Box<dyn Journal>,
        events: async_mpsc::Sender<Event>,
        handle: Handle,
    ) -> Self {
        let core = Core {
            node,
            sleeps_until: None,
            unkept: VecDeque::new(),
            keep_next: None,
            tales: Vec::with_capacity(TALES_MAX),
            tell_next: None,
        };
        let (core, journal) = (Mutex::new(core), Mutex::new(journal));
        Self { core, journal, is_unkept: AtomicBool::new(false), events, handle }
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// At the node, with nobody else there. The first worker looks at the node's timeouts before it sleeps; for another it is
    /// woken if it would sleep too long.
    pub(super) fn at_node<R>(&self, is_first: bool, run: impl FnOnce(&mut Node) -> R) -> R {
        let mut core = lock(&self.core);
        let result = run(&mut core.node);
        self.take_events(&mut core);
        if !is_first {
            let next = core.next();
            if next.is_some_and(|next| core.sleeps_until.is_none_or(|until| next < until)) {
                core.sleeps_until = next;
                self.handle.wake_first();
            }
        }
        result
    }

    /// What time calls for: of the node, by `act`; of events that waited for company; of leases that the journal refused.
    /// Whether the node acted.
    pub(super) fn act_on_time(&self, now: Instant, act: impl FnOnce(&mut Node)) -> bool {
        let mut core = lock(&self.core);
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let acts = is_due(core.node.poll_timeout());
        if acts {
            act(&mut core.node);
            self.take_events(&mut core);
        }
        if is_due(core.tell_next) {
            self.tell(&mut core);
        }
        let keeps = is_due(core.keep_next);
        drop(core);
        if keeps {
            self.keep(now);
        }
        acts
    }

    /// When the first worker is to act if nothing comes.
    pub(super) fn sleep(&self) -> Option<Instant> {
        let mut core = lock(&self.core);
        core.sleeps_until = core.next();
        core.sleeps_until
    }

    fn take_events(&self, core: &mut Core) {
        // Of leases the control thread wants to know that there is something new, once.
        let mut lease = None;
        while let Some(event) = core.node.poll_event() {
            let kept_free = match &event {
                Event::Granted(grant) | Event::Released(grant) => {
                    core.unkept.push_back((grant.clone(), matches!(event, Event::Granted(_))));
                    lease = Some(event);
                    continue;
                }
                Event::PeerUp(_)
                | Event::PeerDown(_)
                | Event::PeerMoved { .. }
                | Event::OfferChanged(_)
                | Event::IntroductionsChanged(_)
                | Event::PresencesChanged => 0,
                Event::Control { .. } => KEPT_FROM_CONTROL,
                Event::FlowOpened(_)
                | Event::FlowClosed { .. }
                | Event::Denied(_)
                | Event::Observed(_)
                | Event::Limited(_) => {
                    core.tales.push(event);
                    core.tell_next.get_or_insert_with(|| Instant::now() + TALES_PAUSE);
                    if core.tales.len() >= TALES_MAX {
                        self.tell(core);
                    }
                    continue;
                }
            };
            // In the order in which it came about.
            self.tell(core);
            self.pass_on(event, kept_free);
        }
        if let Some(event) = lease {
            self.pass_on(event, 0);
            if core.keep_next.is_none() {
                self.is_unkept.store(true, Ordering::Release);
            }
        }
    }

    /// Events that waited for company.
    fn tell(&self, core: &mut Core) {
        core.tell_next = None;
        for event in core.tales.drain(..) {
            let kept_free = if matches!(event, Event::Denied(_) | Event::Observed(_)) {
                KEPT_FROM_DENIALS
            } else {
                KEPT_FROM_TALES
            };
            self.pass_on(event, kept_free);
        }
        core.node.set_events_crowded(self.events.capacity() <= KEPT_FROM_TALES + CROWDED);
    }

    /// What is still to be kept and told when all workers have ended.
    pub(super) fn end(&self, now: Instant) {
        self.keep(now);
        self.tell(&mut lock(&self.core));
    }

    fn pass_on(&self, event: Event, kept_free: usize) {
        if self.events.capacity() <= kept_free || self.events.try_send(event).is_err() {
            count(&self.handle.counters.events_lost, 1);
        }
    }

    /// Before anything leaves: what the node granted until now is in the journal, whichever worker it was granted to.
    pub(super) fn keep_new(&self, now: Instant) {
        if self.is_unkept.load(Ordering::Acquire) {
            self.keep(now);
        }
    }

    /// Lease changes to the journal, in their order. One that cannot be kept (a full disk) is tried again; packets pass
    /// all the same, since a gateway that stops is worse than one that may give another address after a crash.
    pub(super) fn keep(&self, now: Instant) {
        let mut journal = lock(&self.journal);
        loop {
            let mut changes = {
                let mut core = lock(&self.core);
                core.keep_next = None;
                if core.unkept.is_empty() {
                    self.is_unkept.store(false, Ordering::Release);
                    return;
                }
                std::mem::take(&mut core.unkept)
            };
            while let Some((grant, granted)) = changes.front() {
                if let Err(error) = journal.append(grant, *granted) {
                    count(&self.handle.counters.journal_errors, 1);
                    tracing::error!("{} lease changes cannot be kept, trying again: {error}", changes.len());
                    return self.put_back(changes, now + JOURNAL_PAUSE);
                }
                changes.pop_front();
            }
        }
    }

    fn put_back(&self, mut changes: VecDeque<(Grant, bool)>, again: Instant) {
        let mut core = lock(&self.core);
        changes.append(&mut core.unkept);
        changes.truncate(UNKEPT_MAX);
        (core.unkept, core.keep_next) = (changes, Some(again));
        self.is_unkept.store(false, Ordering::Release);
        self.handle.wake_first();
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
