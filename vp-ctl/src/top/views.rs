//! The views: what stands in which column, and by what a column is sorted.

use super::look::{Now, Rates};
use crate::render::{bytes, duration, escape, milliseconds};
use clap::ValueEnum;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use vp_proto::api::AuditRecord;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum View {
    Sites,
    Services,
    Flows,
    Denials,
}

/// A column's name, its width (0: what is left), and whether large values come first and stand on the right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub name: &'static str,
    pub width: u16,
    pub is_number: bool,
}

const fn words(name: &'static str, width: u16) -> Column {
    Column { name, width, is_number: false }
}

const fn number(name: &'static str, width: u16) -> Column {
    Column { name, width, is_number: true }
}

/// All of them fit into 80 columns.
const SITES: [Column; 8] = [
    words("SITE", 0),
    words("STATE", 10),
    words("PATH", 7),
    number("RTT", 8),
    number("LOSS", 6),
    number("IN/s", 10),
    number("OUT/s", 10),
    number("SESSION", 7),
];
const SERVICES: [Column; 7] = [
    words("SERVICE", 0),
    words("STATE", 11),
    number("FLOWS", 6),
    number("NEW/s", 6),
    number("DENIED/s", 8),
    number("IN/s", 10),
    number("OUT/s", 10),
];
const FLOWS: [Column; 7] = [
    words("SERVICE", 0),
    words("PEER", 10),
    words("CALLER", 21),
    words("STATE", 9),
    number("AGE", 6),
    number("IN/s", 10),
    number("OUT/s", 10),
];
const DENIALS: [Column; 6] = [
    number("TIME", 10),
    words("SERVICE", 0),
    words("CALLER", 21),
    words("PORT", 9),
    words("REASON", 16),
    number("TIMES", 5),
];

/// What a cell shows and what it is sorted by.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Cell {
    pub text: String,
    key: Key,
}

#[derive(Clone, PartialEq, Debug)]
enum Key {
    Text,
    Number(f64),
}

impl View {
    pub(super) const ALL: [Self; 4] = [Self::Sites, Self::Services, Self::Flows, Self::Denials];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sites => "Sites",
            Self::Services => "Services",
            Self::Flows => "Flows",
            Self::Denials => "Denials",
        }
    }

    pub(super) fn columns(self) -> &'static [Column] {
        match self {
            Self::Sites => &SITES,
            Self::Services => &SERVICES,
            Self::Flows => &FLOWS,
            Self::Denials => &DENIALS,
        }
    }

    /// By what it is sorted unless somebody wants it otherwise: by name, by traffic, by time.
    pub(super) fn first_column(self) -> usize {
        match self {
            Self::Sites | Self::Denials => 0,
            Self::Services | Self::Flows => 5,
        }
    }

    /// Sorted; of equal ones the first column decides.
    pub(super) fn rows(self, now: &Now, column: usize, is_reverse: bool) -> Vec<Vec<Cell>> {
        let mut rows = match self {
            Self::Sites => sites(now),
            Self::Services => services(now),
            Self::Flows => flows(now),
            Self::Denials => denials(now),
        };
        rows.sort_by(|one, other| {
            let of_column =
                one.get(column).zip(other.get(column)).map_or(Ordering::Equal, |(one, other)| one.order(other));
            let order = if is_reverse { of_column.reverse() } else { of_column };
            order.then_with(|| one.first().map(|cell| &cell.text).cmp(&other.first().map(|cell| &cell.text)))
        });
        rows
    }
}

impl Cell {
    /// Large numbers first, words in their order.
    fn order(&self, other: &Self) -> Ordering {
        match (&self.key, &other.key) {
            (Key::Number(one), Key::Number(other)) => other.total_cmp(one),
            (_, _) => self.text.cmp(&other.text),
        }
    }
}

fn text(text: &str) -> Cell {
    Cell { text: escape(text), key: Key::Text }
}

fn value(text: String, number: f64) -> Cell {
    Cell { text, key: Key::Number(number) }
}

fn count(number: u64) -> Cell {
    value(number.to_string(), number as f64)
}

/// Bytes a second.
fn rate(rate: f64) -> Cell {
    value(if rate > 0.0 { bytes(rate as u64) } else { "-".to_owned() }, rate)
}

/// Events a second.
fn often(rate: f64) -> Cell {
    value(if rate > 0.0 { format!("{rate:.1}") } else { "-".to_owned() }, rate)
}

fn optional(number: Option<f64>, show: impl FnOnce(f64) -> String) -> Cell {
    value(number.map_or_else(|| "-".to_owned(), show), number.unwrap_or(-1.0))
}

fn sites(now: &Now) -> Vec<Vec<Cell>> {
    let peers = now.look.status.peers.iter().zip(&now.peers);
    let row = |(peer, rates): (&vp_proto::api::PeerStatus, &Rates)| {
        vec![
            text(&peer.site),
            text(&peer.state),
            text(&peer.path),
            optional(peer.rtt_ms, milliseconds),
            optional(rates.lost, |lost| format!("{:.1}%", lost * 100.0)),
            rate(rates.inbound),
            rate(rates.outbound),
            optional(peer.handshake_age_seconds.map(|age| age as f64), |age| duration(age as u64)),
        ]
    };
    peers.map(row).collect()
}

/// This site's own, and all that it may use.
fn services(now: &Now) -> Vec<Vec<Cell>> {
    let figures = now.look.figures.iter().zip(&now.figures);
    let figures: BTreeMap<(&str, bool), _> =
        figures.map(|(of, rates)| ((of.service.as_str(), of.exposed), *rates)).collect();
    let status = &now.look.status;
    let own = status.services.iter().map(|own| (own.name.as_str(), true, "exposed", own.flows));
    let remote = now.look.services.iter().map(|remote| {
        let presences = status.presences.iter().filter(|presence| presence.service == remote.service);
        let state = if remote.mapped { remote.state.as_str() } else { "not mapped" };
        (remote.service.as_str(), false, state, presences.map(|presence| presence.flows).sum())
    });
    let row = |(service, exposed, state, flows): (&str, bool, &str, u64)| {
        let rates = figures.get(&(service, exposed)).copied().unwrap_or_default();
        vec![
            text(service),
            text(state),
            count(flows),
            often(rates.opened),
            often(rates.denied),
            rate(rates.bytes.inbound),
            rate(rates.bytes.outbound),
        ]
    };
    own.chain(remote).map(row).collect()
}

fn flows(now: &Now) -> Vec<Vec<Cell>> {
    let flows = now.look.flows.iter().zip(&now.flows);
    let row = |(flow, rates): (&vp_proto::api::Flow, &Rates)| {
        vec![
            text(&flow.service),
            text(&flow.peer),
            text(flow.client.as_ref().unwrap_or(&flow.site.caller)),
            text(&flow.state),
            value(duration(flow.age_seconds), flow.age_seconds as f64),
            rate(rates.inbound),
            rate(rates.outbound),
        ]
    };
    flows.map(row).collect()
}

fn denials(now: &Now) -> Vec<Vec<Cell>> {
    let rows = now.look.denials.iter().enumerate().map(|(number, denial)| {
        let view = denial.site_view.as_ref().or(denial.wire_view.as_ref());
        let caller = denial.client.as_deref().or(view.map(|view| view.caller.as_str())).unwrap_or("-");
        let protocol = denial.protocol.as_deref().unwrap_or("-");
        let port = denial.port.map_or_else(|| protocol.to_owned(), |port| format!("{protocol}/{port}"));
        vec![
            value(time_of_day(denial), number as f64),
            text(denial.service.as_deref().or(denial.peer.as_deref()).unwrap_or("-")),
            text(caller),
            text(&port),
            text(denial.reason.as_deref().unwrap_or("-")),
            count(denial.repeated.unwrap_or(1)),
        ]
    });
    rows.collect()
}

/// Of an RFC 3339 time its hours, minutes and seconds, in UTC.
fn time_of_day(denial: &AuditRecord) -> String {
    let time = denial.time.split('T').nth(1).unwrap_or(&denial.time);
    escape(time).chars().take(8).collect()
}
