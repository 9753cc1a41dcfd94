//! Medians with their spread and ratios, as a table and as JSON; and the goals, met or not.

use crate::peers::Kind;
use crate::work::{Figures, Metric};
use serde_json::{Value, json};
use std::fmt::Write as _;

pub struct Report {
    pub rounds: Vec<(Kind, Figures)>,
    pub limits: Vec<(&'static str, f64)>,
    pub machine: Value,
}

/// Of the rounds of one kind.
#[derive(Clone, Copy)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

/// What we promise: a metric of ours against a peer's, or the best of all other tunnels.
struct Goal {
    metric: Metric,
    against: Option<Kind>,
    /// Ours is at least (for what should be much) or at most (for what should be little) so many times theirs.
    times: f64,
}

const GOALS: [Goal; 11] = [
    Goal { metric: Metric::Stream, against: Some(Kind::WireguardGoSid), times: 2.0 },
    Goal { metric: Metric::Stream, against: Some(Kind::Boringtun), times: 6.0 },
    Goal { metric: Metric::Stream, against: Some(Kind::Gotatun), times: 5.5 },
    Goal { metric: Metric::StreamPlainUnderlay, against: Some(Kind::WireguardGoSid), times: 2.0 },
    Goal { metric: Metric::StreamCpu, against: Some(Kind::WireguardGoSid), times: 0.5 },
    Goal { metric: Metric::SmallDatagrams, against: None, times: 1.5 },
    Goal { metric: Metric::SmallDatagramsCpu, against: None, times: 0.5 },
    Goal { metric: Metric::RoundTrip, against: None, times: 0.9 },
    Goal { metric: Metric::RoundTripTail, against: None, times: 1.0 },
    Goal { metric: Metric::RoundTripLoaded, against: None, times: 0.9 },
    Goal { metric: Metric::Connections, against: None, times: 1.3 },
];
/// Of both gateways, after the load.
const MEMORY_MAX_MEGABYTES: f64 = 60.0;

impl Report {
    pub fn kinds(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| self.rounds.iter().any(|(of, _)| of == kind)).collect()
    }

    pub fn spread(&self, kind: Kind, metric: Metric) -> Option<Spread> {
        let of_kind = self.rounds.iter().filter(|(of, _)| *of == kind);
        let mut values: Vec<f64> = of_kind.filter_map(|(_, figures)| figures.get(&metric).copied()).collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let (low, high) = ((values.len() - 1) / 2, values.len() / 2);
        Some(Spread { least, median: f64::midpoint(values[low], values[high]), most })
    }

    fn median(&self, kind: Kind, metric: Metric) -> Option<f64> {
        self.spread(kind, metric).map(|spread| spread.median)
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for metric in Metric::ALL {
            let _ = writeln!(text, "\n{}", metric.words().1);
            let ours = self.median(Kind::Agents, metric);
            for kind in self.kinds() {
                let Some(spread) = self.spread(kind, metric) else { continue };
                let range = format!("({} to {})", figure(spread.least), figure(spread.most));
                let ratio = match ours {
                    Some(ours) if kind != Kind::Agents && spread.median > 0.0 => {
                        format!("vp-agent: {:.2} times", ours / spread.median)
                    }
                    _ => String::new(),
                };
                let _ = writeln!(text, "  {:<19}{:>9} {range:<22}{ratio}", kind.name(), figure(spread.median));
            }
        }
        text += "\nlimits of this machine, Gbit/s\n";
        for (name, rate) in &self.limits {
            let _ = writeln!(text, "  {name:<50}{:>8}", figure(*rate));
        }
        let goals = self.goals();
        if !goals.is_empty() {
            text += "\ngoals\n";
        }
        for (met, goal) in goals {
            let _ = writeln!(text, "  {:<9}{goal}", if met { "met" } else { "NOT MET" });
        }
        text
    }

    /// Those that this run can tell.
    fn goals(&self) -> Vec<(bool, String)> {
        let mut lines: Vec<_> = GOALS.iter().filter_map(|goal| self.judge(goal)).collect();
        if let Some(memory) = self.median(Kind::Agents, Metric::Memory) {
            let line = format!("memory of both gateways: {memory:.0} MB, at most {MEMORY_MAX_MEGABYTES}");
            lines.push((memory <= MEMORY_MAX_MEGABYTES, line));
        }
        lines
    }

    fn judge(&self, goal: &Goal) -> Option<(bool, String)> {
        let ours = self.median(Kind::Agents, goal.metric)?;
        let more = goal.metric.more_is_better();
        let (theirs, kind) = match goal.against {
            Some(kind) => (self.median(kind, goal.metric)?, kind),
            None => {
                let others = self.kinds().into_iter().filter(|kind| kind.is_other_tunnel());
                let others = others.filter_map(|kind| Some((self.median(kind, goal.metric)?, kind)));
                let order = |a: &(f64, Kind), b: &(f64, Kind)| a.0.total_cmp(&b.0);
                if more { others.max_by(order)? } else { others.min_by(order)? }
            }
        };
        let ratio = ours / theirs;
        let met = if more { ratio >= goal.times } else { ratio <= goal.times };
        let bound = if more { "at least" } else { "at most" };
        let what = goal.metric.words().1;
        Some((met, format!("{what}: {ratio:.2} times {}'s, {bound} {}", kind.name(), goal.times)))
    }

    pub fn json(&self) -> Value {
        let figures = |kind: Kind| -> Value {
            let entry = |metric: Metric| {
                let Spread { least, median, most } = self.spread(kind, metric)?;
                Some((metric.words().0.to_owned(), json!({"median": median, "least": least, "most": most})))
            };
            Metric::ALL.into_iter().filter_map(entry).collect::<serde_json::Map<_, _>>().into()
        };
        let results: serde_json::Map<_, _> =
            self.kinds().into_iter().map(|kind| (kind.name().to_owned(), figures(kind))).collect();
        let goals: Vec<Value> = self.goals().into_iter().map(|(met, goal)| json!({"goal": goal, "met": met})).collect();
        let limits: serde_json::Map<_, _> =
            self.limits.iter().map(|(name, rate)| ((*name).to_owned(), json!(rate))).collect();
        json!({"machine": self.machine, "results": results, "limits_gbit_s": limits, "goals": goals})
    }
}

/// Three digits that mean something.
fn figure(value: f64) -> String {
    match value.abs() {
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
