//! What is counted of each service since the start: of this site's own, and of those that it uses. A flow has the place of its
//! service's figures in itself, so counting a packet costs no search.

use super::Reason;
use crate::addr::{Name, ServiceName};
use crate::flow::Direction;
use std::collections::BTreeMap;
use std::time::Duration;
use vp_proto::api;

/// Services with figures of their own; those beyond share one place. Each is some series for whoever keeps them.
const SERVICES_MAX: usize = 4096;
/// The place that they share.
const OTHERS: u16 = 0;
/// All places are looked through for one that nobody needs, for one in so many services that found none.
const LOOK_AGAIN: u32 = 1024;
/// Upper bounds of a connection's set-up, in microseconds: from a LAN to a caller's patience.
const BOUNDS: [u64; 13] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

#[derive(Debug)]
pub(super) struct Figures {
    places: Vec<OfService>,
    by_name: BTreeMap<ServiceName, u16>,
    /// Services that found no place.
    missed: u32,
}

#[derive(Default, Debug)]
struct OfService {
    name: Option<ServiceName>,
    flows: u32,
    opened: u64,
    denied: BTreeMap<Reason, u64>,
    outbound_bytes: u64,
    inbound_bytes: u64,
    connects: Connects,
}

/// How long connections took to set up, by [`BOUNDS`].
#[derive(Default, Debug)]
struct Connects {
    within: [u64; BOUNDS.len()],
    count: u64,
    sum: Duration,
}

impl Default for Figures {
    fn default() -> Self {
        Self { places: vec![OfService::default()], by_name: BTreeMap::new(), missed: 0 }
    }
}

impl Figures {
    /// A flow to this service was opened; its place. `is_known`: whether there is a service of this name now.
    pub(super) fn opened(&mut self, service: &ServiceName, is_known: impl Fn(&ServiceName) -> bool) -> u16 {
        let place = self.place(service, is_known);
        self.change(place, |of| {
            of.opened += 1;
            of.flows += 1;
        });
        place
    }

    pub(super) fn closed(&mut self, place: u16) {
        self.change(place, |of| of.flows = of.flows.saturating_sub(1));
    }

    pub(super) fn denied(&mut self, service: &ServiceName, reason: Reason, is_known: impl Fn(&ServiceName) -> bool) {
        let place = self.place(service, is_known);
        self.change(place, |of| *of.denied.entry(reason).or_default() += 1);
    }

    /// What was carried for whoever calls: without the headers of IP, TCP and UDP.
    pub(super) fn carried(&mut self, place: u16, direction: Direction, payload_bytes: u32) {
        self.change(place, |of| match direction {
            Direction::Outbound => of.outbound_bytes += u64::from(payload_bytes),
            Direction::Inbound => of.inbound_bytes += u64::from(payload_bytes),
        });
    }

    /// The called end of a connection answered so long after its first packet.
    pub(super) fn connected(&mut self, place: u16, after: Duration) {
        self.change(place, |of| of.connects.add(after));
    }

    /// Those that something was counted of; services of `own` are this site's.
    pub(super) fn report(&self, own: &Name) -> Vec<api::ServiceFigures> {
        let counted = self.places.iter().filter(|of| of.opened > 0 || !of.denied.is_empty());
        counted.map(|of| of.report(own)).collect()
    }

    fn change(&mut self, place: u16, change: impl FnOnce(&mut OfService)) {
        if let Some(of) = self.places.get_mut(usize::from(place)) {
            change(of);
        }
    }

    fn place(&mut self, service: &ServiceName, is_known: impl Fn(&ServiceName) -> bool) -> u16 {
        if let Some(place) = self.by_name.get(service) {
            return *place;
        }
        let place = if self.places.len() <= SERVICES_MAX { Some(self.places.len()) } else { self.unneeded(is_known) };
        let Some((index, place)) = place.and_then(|index| Some((index, u16::try_from(index).ok()?))) else {
            return OTHERS;
        };
        let of = OfService { name: Some(service.clone()), ..OfService::default() };
        match self.places.get_mut(index) {
            None => self.places.push(of),
            Some(old) => {
                let old = std::mem::replace(old, of);
                if let Some(name) = &old.name {
                    self.by_name.remove(name);
                }
            }
        }
        self.by_name.insert(service.clone(), place);
        place
    }

    /// The place of a service that is no more, and has no flows.
    fn unneeded(&mut self, is_known: impl Fn(&ServiceName) -> bool) -> Option<usize> {
        self.missed = self.missed.wrapping_add(1);
        if self.missed % LOOK_AGAIN != 1 {
            return None;
        }
        self.places.iter().position(|of| of.flows == 0 && of.name.as_ref().is_some_and(|name| !is_known(name)))
    }
}

impl OfService {
    fn report(&self, own: &Name) -> api::ServiceFigures {
        let exposed = self.name.as_ref().is_some_and(|name| name.site == *own);
        let service = match &self.name {
            Some(name) if exposed => name.service.to_string(),
            Some(name) => name.to_string(),
            None => "(others)".to_owned(),
        };
        api::ServiceFigures {
            service,
            exposed,
            flows: self.flows.into(),
            opened_total: self.opened,
            denied: self.denied.iter().map(|(reason, count)| (reason.word().to_owned(), *count)).collect(),
            outbound_bytes: self.outbound_bytes,
            inbound_bytes: self.inbound_bytes,
            connects: self.connects.report(),
        }
    }
}

impl Connects {
    fn add(&mut self, after: Duration) {
        self.count += 1;
        self.sum += after;
        if let Some(bound) = BOUNDS.iter().position(|bound| after.as_micros() <= u128::from(*bound)) {
            self.within[bound] += 1;
        }
    }

    fn report(&self) -> api::Connects {
        let bounds = BOUNDS.iter().map(|micros| Duration::from_micros(*micros).as_secs_f64());
        let within = bounds.zip(self.within).map(|(seconds, connections)| api::Within { seconds, connections });
        api::Connects { count: self.count, sum_seconds: self.sum.as_secs_f64(), within: within.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ServiceName {
        text.parse().expect("a name")
    }

    #[test]
    fn services_beyond_the_room_share_a_place_until_one_is_not_needed_any_more() {
        let mut figures = Figures::default();
        for number in 0..SERVICES_MAX {
            assert_ne!(figures.opened(&name(&format!("s{number}.cloud")), |_| true), OTHERS);
        }
        assert_eq!(figures.opened(&name("late.cloud"), |_| true), OTHERS, "all others are there");
        let seven = figures.opened(&name("s7.cloud"), |_| true);
        for _ in 0..2 {
            figures.closed(seven);
        }
        let is_known = |service: &ServiceName| *service != name("s7.cloud");
        for _ in 0..LOOK_AGAIN {
            figures.denied(&name("later.cloud"), Reason::NotAllowed, is_known);
        }
        let own = Name::new("factory").expect("a name");
        let report = figures.report(&own);
        let of = |service: &str| report.iter().find(|of| of.service == service);
        assert_eq!(of("later.cloud").map(|of| of.denied["not-allowed"]), Some(1));
        assert_eq!(
            of("(others)").map(|of| (of.opened_total, of.denied["not-allowed"])),
            Some((1, u64::from(LOOK_AGAIN) - 1))
        );
        assert!(of("s7.cloud").is_none() && report.len() == SERVICES_MAX + 1);
    }

    #[test]
    fn connections_are_counted_by_how_long_they_took() {
        let mut figures = Figures::default();
        let place = figures.opened(&name("web.cloud"), |_| true);
        for micros in [1, 1_000, 1_001, 60_000_000] {
            figures.connected(place, Duration::from_micros(micros));
        }
        let report = figures.report(&Name::new("cloud").expect("a name"));
        let [of] = report.as_slice() else { panic!("{report:?}") };
        assert!(of.exposed && of.service == "web" && of.connects.count == 4);
        let counted: Vec<u64> = of.connects.within.iter().map(|within| within.connections).collect();
        assert_eq!((counted[0], counted[1], counted.iter().sum()), (2, 1, 3_u64), "the last is beyond all bounds");
        assert!((of.connects.sum_seconds - 60.002_002).abs() < 1e-9);
    }
}
