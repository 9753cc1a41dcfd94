//! The paths to one peer that a hub introduced: which of them work, and which is used. The peer is asked along each of them,
//! inside the session, so that only the peer can answer; asking also opens a NAT's path for the peer's own questions.
//!
//! A direct path is better than a relayed one, UDP better than TLS, a quick one better than a slow one, and any that answers
//! better than one that does not. Both ends choose for themselves.

use super::probe::{Kind, Probe};
use crate::addr::Path;
use std::time::{Duration, Instant};

/// Paths that are kept for a peer; those that it was seen to use push out none that were told.
const PATHS_MAX: usize = 16;
/// When paths have become known, or the one in use has failed, all are tried this often for so long: a NAT's filter opens when
/// both sides have sent.
const BURST_EVERY: Duration = Duration::from_millis(400);
const BURST: Duration = Duration::from_secs(5);
/// How often the path in use is asked while something is sent or received.
const ACTIVE_EVERY: Duration = Duration::from_millis(700);
/// Since the last packet.
const ACTIVE: Duration = Duration::from_secs(10);
/// How often a direct path is asked that is in use and idle: NATs forget after 30 s and more (RFC 4787 section 4.3 wants 2 min).
const IDLE_EVERY: Duration = Duration::from_secs(20);
/// How often better paths are tried while a relay is busy, or all goes over TLS.
const RETRY_EVERY: Duration = Duration::from_secs(15);
/// A question that is not answered in this time, or in four round trips, has failed.
const PATIENCE: Duration = Duration::from_millis(1200);
/// After this, or two round trips, there is reason to make another path ready.
const DOUBT: Duration = Duration::from_millis(500);
/// What answered so long ago may be gone: no NAT that is asked every 20 s forgets, others do.
const FRESH: Duration = Duration::from_secs(25);

/// Questions along one path that may still be answered.
const QUESTIONS: usize = 8;

#[derive(Debug)]
pub(super) struct Paths {
    candidates: Vec<Candidate>,
    /// A packet was sent or received.
    used: Option<Instant>,
    /// All are asked until then.
    burst_ends: Option<Instant>,
    /// When all were last asked.
    round: Option<Instant>,
}

/// What is known of one path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Candidate {
    path: Path,
    /// By a hub, not by the peer's use of it.
    told: bool,
    /// No session was asked for along it yet.
    is_new: bool,
    /// The peer used this path, which has not answered yet: each packet is worth one question and no more, since whoever forges
    /// where packets come from would have others asked.
    owed: bool,
    /// The latest questions: where answers take long, they cross.
    asked: [Option<(u64, Instant)>; QUESTIONS],
    /// The first question that was not answered since the last answer.
    silent: Option<Instant>,
    answered: Option<Instant>,
    round_trip: Option<Duration>,
}

/// One path, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PathReport {
    pub path: Path,
    pub answers: bool,
    pub round_trip: Option<Duration>,
}

impl Candidate {
    fn new(path: Path, told: bool) -> Self {
        Self {
            path,
            told,
            is_new: told,
            owed: !told,
            asked: [None; QUESTIONS],
            silent: None,
            answered: None,
            round_trip: None,
        }
    }

    fn ask(&mut self, id: u64, now: Instant) {
        self.asked.rotate_right(1);
        self.asked[0] = Some((id, now));
        self.silent.get_or_insert(now);
    }

    /// When the question was asked, if it was.
    fn take_question(&mut self, id: u64) -> Option<Instant> {
        let asked = self.asked.iter_mut().find(|asked| asked.is_some_and(|(asked, _)| asked == id))?;
        asked.take().map(|(_, at)| at)
    }

    fn last_asked(&self) -> Option<Instant> {
        self.asked.iter().flatten().map(|(_, at)| *at).max()
    }

    fn fails_at(&self) -> Option<Instant> {
        let patience = self.round_trip.map_or(PATIENCE, |round_trip| PATIENCE.max(round_trip * 4));
        self.silent.map(|since| since + patience)
    }

    fn doubted_at(&self) -> Option<Instant> {
        let doubt = self.round_trip.map_or(DOUBT, |round_trip| DOUBT.max(round_trip * 2));
        self.silent.map(|since| since + doubt)
    }

    fn has_failed(&self, now: Instant) -> bool {
        self.fails_at().is_some_and(|at| now >= at)
    }

    fn answers(&self, now: Instant) -> bool {
        self.answered.is_some_and(|at| now < at + FRESH) && !self.has_failed(now)
    }

    /// The less, the better.
    fn rank(&self) -> (bool, bool, Duration) {
        (self.path.is_relayed(), self.path.is_carried(), self.round_trip.unwrap_or(Duration::MAX))
    }

    /// Whether it is worth a change from `other`, which answers too: jitter is not.
    fn is_much_better(&self, other: &Self) -> bool {
        let (relayed, carried, round_trip) = self.rank();
        let (other_relayed, other_carried, other_round_trip) = other.rank();
        let quicker = round_trip.saturating_add(Duration::from_millis(1)) < other_round_trip / 4 * 3;
        let (kind, other_kind) = ((relayed, carried), (other_relayed, other_carried));
        kind < other_kind || kind == other_kind && quicker
    }
}

impl Paths {
    pub fn new(paths: &[Path], now: Instant) -> Self {
        let candidates = paths.iter().take(PATHS_MAX).map(|path| Candidate::new(*path, true)).collect();
        Self { candidates, used: None, burst_ends: Some(now + BURST), round: None }
    }

    /// Those that are told now. What is known of those that were there before stays.
    pub fn tell(&mut self, paths: &[Path], now: Instant) {
        let known: Vec<Path> =
            self.candidates.iter().filter(|candidate| candidate.told).map(|candidate| candidate.path).collect();
        if known == paths {
            return;
        }
        let told = paths.iter().take(PATHS_MAX).map(|path| {
            let known = self.candidates.iter().find(|candidate| candidate.path == *path);
            known.map_or(Candidate::new(*path, true), |candidate| Candidate { told: true, ..*candidate })
        });
        let told: Vec<Candidate> = told.collect();
        let seen = self
            .candidates
            .iter()
            .filter(|candidate| !candidate.told && candidate.answers(now) && !paths.contains(&candidate.path));
        let seen: Vec<Candidate> = seen.copied().collect();
        self.candidates = told.into_iter().chain(seen).take(PATHS_MAX).collect();
        self.try_all(now);
    }

    pub fn told(&self) -> impl Iterator<Item = Path> + '_ {
        self.candidates.iter().filter(|candidate| candidate.told).map(|candidate| candidate.path)
    }

    /// Whether there is one along which no session can have been asked for yet.
    pub fn is_untried(&self) -> bool {
        self.candidates.iter().any(|candidate| candidate.is_new)
    }

    /// A session was asked for along all that were told.
    pub fn tried(&mut self) {
        self.candidates.iter_mut().for_each(|candidate| candidate.is_new = false);
    }

    /// All are to be asked, for a while.
    pub fn try_all(&mut self, now: Instant) {
        self.burst_ends = Some(now + BURST);
        // At once, but not each time somebody wishes it.
        self.round = self.round.filter(|round| now < *round + BURST_EVERY);
    }

    /// All are to be asked, unless they are already. Whether that is new.
    pub fn doubt(&mut self, now: Instant) -> bool {
        let is_new = self.burst_ends.is_none_or(|end| end <= now);
        if is_new {
            self.try_all(now);
        }
        is_new
    }

    /// A packet of somebody's was sent or received. After a silence the direct paths may have closed.
    pub fn use_now(&mut self, current: Option<Path>, now: Instant) {
        let rested = self.used.is_none_or(|used| now > used + FRESH);
        self.used = Some(now);
        if rested && current.is_some_and(|path| path.is_relayed()) {
            self.try_all(now);
        }
    }

    /// An authentic packet came this path; the path to use from now on. `is_data`: the peer chose this path for it.
    pub fn heard(&mut self, from: Path, is_data: bool, current: Option<Path>, now: Instant) -> Option<Path> {
        self.used_by_peer(from, now);
        let works = self.candidate(current).is_some_and(|candidate| !candidate.has_failed(now));
        if is_data && !works { Some(from) } else { current }
    }

    /// A session came up this path, when perhaps no other works; the path to use from now on.
    pub fn came_up(&mut self, from: Path, current: Option<Path>, now: Instant) -> Option<Path> {
        self.used_by_peer(from, now);
        if self.is_active(now) {
            self.try_all(now);
        }
        if self.candidate(current).is_some_and(|candidate| candidate.answers(now)) { current } else { Some(from) }
    }

    /// The peer answered a question, so it came by the path that it was asked along; what came back may show another address,
    /// if the peer's NAT has one for each. The path to use from now on.
    pub fn answered(&mut self, id: u64, current: Option<Path>, now: Instant) -> Option<Path> {
        let answered =
            self.candidates.iter_mut().find_map(|candidate| candidate.take_question(id).map(|at| (candidate, at)));
        let Some((candidate, at)) = answered else { return current };
        let measured = now.saturating_duration_since(at);
        // A quarter of the news (as in RFC 6298, of a measure that is taken more rarely).
        candidate.round_trip = Some(candidate.round_trip.map_or(measured, |known| (known * 3 + measured) / 4));
        (candidate.answered, candidate.silent) = (Some(now), None);
        self.choose(current, now)
    }

    /// The path to use: the best that answers; if none does, the next that has not failed.
    pub fn choose(&self, current: Option<Path>, now: Instant) -> Option<Path> {
        let best =
            self.candidates.iter().filter(|candidate| candidate.answers(now)).min_by_key(|candidate| candidate.rank());
        let used = self.candidate(current);
        match (best, used) {
            (Some(best), Some(used)) if used.answers(now) && !best.is_much_better(used) => current,
            (Some(best), _) => Some(best.path),
            (None, Some(used)) if !used.has_failed(now) => current,
            (None, _) => {
                // A relay is the surest.
                let rest = self.candidates.iter().filter(|candidate| !candidate.has_failed(now));
                rest.min_by_key(|candidate| !candidate.path.is_relayed()).map(|candidate| candidate.path).or(current)
            }
        }
    }

    /// When [`Self::ask`] has something to do, or the path in use is doubted or has failed.
    pub fn due(&self, current: Option<Path>, now: Instant) -> Option<Instant> {
        let used = self.candidate(current);
        let turns = used.map(|candidate| [candidate.doubted_at(), candidate.fails_at()]).unwrap_or_default();
        let turns = turns.into_iter().flatten().filter(|at| *at > now).min();
        let owed = self.candidates.iter().any(|candidate| candidate.owed).then_some(now);
        [self.next_round(current, now), self.next_of_used(current, now), turns, owed].into_iter().flatten().min()
    }

    /// Questions that are due, each with the path that it is to go. `id` makes their numbers.
    pub fn ask(&mut self, current: Option<Path>, mut id: impl FnMut() -> u64, now: Instant) -> Vec<(Path, Probe)> {
        if self.is_failing(current, now) {
            self.doubt(now);
        }
        let all = self.next_round(current, now).is_some_and(|at| at <= now);
        let used = self.next_of_used(current, now).is_some_and(|at| at <= now);
        if all {
            self.round = Some(now);
        }
        let mut questions = Vec::new();
        let is_known = |candidate: &Candidate| candidate.told || candidate.answered.is_some();
        let is_due = |candidate: &&mut Candidate| {
            all && is_known(candidate) || candidate.owed || used && Some(candidate.path) == current
        };
        for candidate in self.candidates.iter_mut().filter(is_due) {
            let id = id();
            candidate.ask(id, now);
            candidate.owed = false;
            questions.push((candidate.path, Probe { kind: Kind::Question, id }));
        }
        questions
    }

    /// Whether the path in use has failed.
    fn is_failing(&self, current: Option<Path>, now: Instant) -> bool {
        self.candidate(current).is_some_and(|candidate| candidate.has_failed(now))
    }

    /// Whether the path in use may have failed: an answer is missing for longer than most take.
    pub fn is_doubtful(&self, current: Option<Path>, now: Instant) -> bool {
        self.candidate(current).and_then(Candidate::doubted_at).is_some_and(|at| now >= at)
    }

    pub fn round_trip(&self, path: Option<Path>) -> Option<Duration> {
        self.candidate(path)?.round_trip
    }

    pub fn report(&self, now: Instant) -> Vec<PathReport> {
        let report = |candidate: &Candidate| PathReport {
            path: candidate.path,
            answers: candidate.answers(now),
            round_trip: candidate.round_trip,
        };
        self.candidates.iter().map(report).collect()
    }

    /// It may be a path that nobody told of: a NAT gave the peer another address for this gateway.
    fn used_by_peer(&mut self, path: Path, now: Instant) {
        if let Some(candidate) = self.candidates.iter_mut().find(|candidate| candidate.path == path) {
            candidate.owed = !candidate.told && candidate.answered.is_none();
            return;
        }
        if self.candidates.len() >= PATHS_MAX {
            let useless = self.candidates.iter().position(|candidate| !candidate.told && !candidate.answers(now));
            let Some(useless) = useless else { return };
            self.candidates.remove(useless);
        }
        self.candidates.push(Candidate::new(path, false));
    }

    fn next_round(&self, current: Option<Path>, now: Instant) -> Option<Instant> {
        let in_burst = self.burst_ends.is_some_and(|end| now < end);
        // Over TLS nobody wants to stay, and a hub's tunnel is idle.
        let wants_better = current.is_none_or(|path| path.is_relayed() && self.is_active(now) || path.is_carried());
        match self.round {
            _ if self.candidates.is_empty() => None,
            None if in_burst => Some(now),
            Some(round) if in_burst => Some(round + BURST_EVERY),
            Some(round) if wants_better => Some(round + RETRY_EVERY),
            None | Some(_) => None,
        }
    }

    fn next_of_used(&self, current: Option<Path>, now: Instant) -> Option<Instant> {
        let candidate = self.candidate(current)?;
        let every = match (self.is_active(now), candidate.path.is_relayed()) {
            (true, _) => ACTIVE_EVERY,
            (false, false) => IDLE_EVERY,
            (false, true) => return None,
        };
        Some(candidate.last_asked().max(candidate.answered).map_or(now, |at| at + every))
    }

    fn is_active(&self, now: Instant) -> bool {
        self.used.is_some_and(|used| now < used + ACTIVE)
    }

    fn candidate(&self, path: Option<Path>) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| Some(candidate.path) == path)
    }
}
