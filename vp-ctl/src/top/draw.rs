//! The picture: the gateway in a line, the view's table, the keys.

use super::look::Now;
use super::state::State;
use super::views::{Cell, Column, View};
use crate::render::{bytes, duration, escape};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{self, Paragraph, Row, Table};

const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);
const FAINT: Style = Style::new().add_modifier(Modifier::DIM);
const KEYS: &str = " 1-4 Tab view   s sort   r reverse   arrows scroll   p pause   q leave";

pub(super) fn draw(frame: &mut Frame, state: &mut State, now: &Now, is_paper: bool) {
    let [head, tabs, table, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(u16::from(!is_paper)),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(summary(now)), head);
    frame.render_widget(Paragraph::new(views(state)), tabs);
    let order = state.order();
    let rows = state.view.rows(now, order.column, order.is_reverse);
    // No further than to the last row.
    state.first = state.first.min(rows.len().saturating_sub(1));
    let shown =
        rows.into_iter().skip(state.first).map(|cells| Row::new(cells.into_iter().zip(state.view.columns()).map(cell)));
    let columns = state.view.columns();
    let header = columns.iter().enumerate().map(|(number, column)| {
        let mark = match (number == order.column, column.is_number != order.is_reverse) {
            (false, _) => "",
            (true, true) => "▼",
            (true, false) => "▲",
        };
        aligned(format!("{}{mark}", column.name), column)
    });
    let widths = columns.iter().map(|column| match column.width {
        0 => Constraint::Fill(1),
        width => Constraint::Length(width),
    });
    let table_of = Table::new(shown, widths).header(Row::new(header).style(FAINT)).column_spacing(1);
    frame.render_widget(table_of, table);
    if !is_paper {
        frame.render_widget(Paragraph::new(Span::styled(KEYS, FAINT)), keys);
    }
}

fn summary(now: &Now) -> Text<'static> {
    let status = &now.look.status;
    let up = status.peers.iter().filter(|peer| peer.state == "up").count();
    let (inbound, outbound) =
        now.peers.iter().fold((0.0, 0.0), |(i, o), rates| (i + rates.inbound, o + rates.outbound));
    let first = Line::from(vec![
        Span::styled(escape(&status.site), STRONG),
        Span::raw(format!("  up {}", duration(status.uptime_seconds))),
        Span::raw(format!("   peers {up}/{}", status.peers.len())),
        Span::raw(format!("   flows {}/{}", status.flows.open, status.flows.max)),
        Span::raw(format!("   in {}/s   out {}/s", bytes(inbound as u64), bytes(outbound as u64))),
    ]);
    let second = match status.health.as_slice() {
        [] => Line::styled("nothing to mend", FAINT),
        [first, rest @ ..] => {
            let more =
                if rest.is_empty() { String::new() } else { format!(" (and {} more: vp-ctl doctor)", rest.len()) };
            let style = Style::new().fg(if first.severity == "error" { Color::Red } else { Color::Yellow });
            Line::styled(format!("{}: {}{more}", escape(&first.name), escape(&first.detail)), style)
        }
    };
    Text::from(vec![first, second])
}

fn views(state: &State) -> Line<'static> {
    let mut spans = Vec::new();
    for (number, view) in View::ALL.into_iter().enumerate() {
        let style = if view == state.view { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        spans.push(Span::styled(format!(" {} {} ", number + 1, view.name()), style));
    }
    if state.is_paused() {
        spans.push(Span::styled("  paused", Style::new().fg(Color::Yellow)));
    }
    Line::from(spans)
}

fn cell((cell, column): (Cell, &Column)) -> widgets::Cell<'static> {
    let color = match cell.text.as_str() {
        "up" | "open" | "direct" => Some(Color::Green),
        "down" | "expired" | "revoked" => Some(Color::Red),
        "connecting" | "away" | "not-offered" | "relayed" | "tls" => Some(Color::Yellow),
        _ => None,
    };
    let shown = aligned(cell.text, column);
    match color {
        Some(color) => shown.style(Style::new().fg(color)),
        None => shown,
    }
}

fn aligned(text: String, column: &Column) -> widgets::Cell<'static> {
    let alignment = if column.is_number { Alignment::Right } else { Alignment::Left };
    widgets::Cell::new(Text::from(text).alignment(alignment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::look::tests::now;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn screen(view: View, columns: u16, rows: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).expect("a terminal");
        let mut state = State::new(view);
        terminal.draw(|frame| draw(frame, &mut state, &now(), false)).expect("drawn");
        let cells = terminal.backend().buffer().content();
        let lines = cells.chunks(columns.into()).map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>());
        lines.map(|line| line.trim_end().to_owned()).collect()
    }

    #[test]
    fn a_terminal_of_80_columns_and_24_rows_has_room_for_every_view() {
        let sites = screen(View::Sites, 80, 24);
        assert_eq!(sites[0], "factory  up 1h 1m   peers 1/2   flows 1/262144   in 2.0 MiB/s   out 2.0 KiB/s");
        assert_eq!(sites[1], "peer-away: depot is connecting");
        assert_eq!(sites[2], " 1 Sites  2 Services  3 Flows  4 Denials");
        assert_eq!(sites[3], "SITE▲           STATE      PATH         RTT   LOSS       IN/s      OUT/s SESSION");
        assert_eq!(sites[4], "cloud           up         direct    1.2 ms  10.0%    1.0 MiB    1.0 KiB      1m");
        assert_eq!(sites[5], "depot           connecting none           -  10.0%    1.0 MiB    1.0 KiB      1m");
        assert_eq!(sites[23], KEYS);
        let services = screen(View::Services, 80, 24);
        assert_eq!(services[4], "web.cloud               up               1    7.0      3.0    1.0 MiB    2.0 KiB");
        assert!(
            services[5..7].iter().any(|line| line.starts_with("metrics") && line.contains("exposed")),
            "{services:?}"
        );
        assert!(services[5..7].iter().any(|line| line.starts_with("mail.cloud") && line.contains("not mapped")));
        let flows = screen(View::Flows, 80, 24);
        assert!(
            flows[4].starts_with("web.c") && flows[4].contains("cloud") && flows[4].contains("plc"),
            "{}",
            flows[4]
        );
        assert!(flows[4].ends_with("2.0 MiB      700 B"), "{}", flows[4]);
        let denials = screen(View::Denials, 80, 24);
        assert!(denials[4].trim_start().starts_with("10:00:00 web.cloud"), "{}", denials[4]);
        assert!(
            denials[4].contains("10.0.0.6:5") && denials[4].ends_with("tcp/80    not-allowed         12"),
            "{}",
            denials[4]
        );
    }

    #[test]
    fn a_terminal_of_any_size_is_drawn_on() {
        for (columns, rows) in [(1, 1), (10, 3), (300, 80)] {
            View::ALL.into_iter().for_each(|view| drop(screen(view, columns, rows)));
        }
    }
}
