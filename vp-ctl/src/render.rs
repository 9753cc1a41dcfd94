//! The one place that knows how things look: tables, colours, times, bytes, warnings, and what must not reach a terminal.
//! Colours are for terminals alone, and `NO_COLOR` is obeyed (both by `anstream`).

use crate::failure::Failure;
use crate::json;
use clap::builder::styling::{AnsiColor, Style};
use serde::de::DeserializeOwned;
use std::io::Write;
use vp_proto::api::{Finding, Step};

const PLAIN: Style = Style::new();
const STRONG: Style = Style::new().bold();
const FAINT: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const DOUBTFUL: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Where output goes, and in which of the two forms.
#[derive(Debug)]
pub struct Screen {
    json: bool,
}

impl Screen {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the agent's answer: its JSON, or the page that `draw` makes of it. Returns what was in it.
    pub fn show<T: DeserializeOwned>(&self, answer: &str, draw: impl FnOnce(&T, &mut Page)) -> Result<T, Failure> {
        if self.json {
            self.print(&json::pretty(answer)?)?;
            return json::decode(answer);
        }
        let value = json::decode(answer)?;
        let mut page = Page::default();
        draw(&value, &mut page);
        self.print(&page.text)?;
        Ok(value)
    }

    pub fn print(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = anstream::stdout();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }

    /// In JSON the warnings are part of the answer.
    pub fn warn(&self, warnings: &[String]) {
        for warning in warnings.iter().filter(|_| !self.json) {
            report(DOUBTFUL, "warning", warning);
        }
    }

    /// Beside what is printed, for people alone.
    pub fn note(&self, text: &str) {
        if !self.json {
            report(FAINT, "note", text);
        }
    }

    pub fn complain(&self, failure: &Failure) {
        report(BAD, "error", &failure.to_string());
    }
}

/// On stderr; if that is closed nobody is left to tell.
fn report(style: Style, kind: &str, text: &str) {
    let _ = writeln!(anstream::stderr(), "vp-ctl: {style}{kind}{style:#}: {text}");
}

/// What a verb shows to people.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    pub fn line(&mut self, text: impl AsRef<str>) {
        self.text.push_str(text.as_ref());
        self.text.push('\n');
    }

    /// A block's name, with a blank line above unless it is the first.
    pub fn heading(&mut self, text: &str) {
        if !self.text.is_empty() {
            self.line("");
        }
        self.line(format!("{STRONG}{text}{STRONG:#}"));
    }

    /// The rows under their column names, or `nothing` where there are none.
    pub fn table(&mut self, table: &Table, nothing: &str) {
        if table.rows.is_empty() {
            self.line(format!("{FAINT}{nothing}{FAINT:#}"));
        } else {
            table.draw(true, &mut self.text);
        }
    }

    /// Rows whose columns need no names.
    pub fn list(&mut self, table: &Table) {
        table.draw(false, &mut self.text);
    }

    /// A ping's layers, an explanation's steps: one line each, and under a failure what to change.
    pub fn steps(&mut self, steps: &[Step]) {
        let mut table = Table::new(&["", "", ""]);
        for Step { step, outcome, detail, change } in steps {
            table.row([judged(outcome), text(step), text(detail)]);
            table.note(change.as_deref().map(|change| format!("to change: {change}")));
        }
        self.list(&table);
    }

    pub fn findings(&mut self, findings: &[Finding]) {
        let mut table = Table::new(&["", "", ""]);
        for Finding { name, severity, detail, fix } in findings {
            table.row([judged(severity), text(name), text(detail)]);
            table.note(fix.as_deref().map(|fix| format!("to mend: {fix}")));
        }
        self.list(&table);
    }
}

/// Columns that line up: two spaces between them, as wide as their widest cell, nothing after the last.
#[derive(Debug)]
pub struct Table {
    columns: &'static [&'static str],
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    cells: Vec<Cell>,
    note: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    style: Style,
    right: bool,
}

impl Cell {
    /// For values that are compared down the column.
    pub fn right(self) -> Self {
        Self { right: true, ..self }
    }
}

impl Table {
    pub fn new(columns: &'static [&'static str]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    pub fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(Row { cells: cells.into(), note: None });
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A line of its own under the last row, indented to its last column.
    pub fn note(&mut self, note: Option<String>) {
        if let Some(row) = self.rows.last_mut() {
            row.note = note;
        }
    }

    fn draw(&self, named: bool, out: &mut String) {
        let names: Vec<Cell> = self.columns.iter().enumerate().map(|(i, name)| self.name(i, name)).collect();
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| &row.cells[column]);
            cells.chain(named.then_some(&names[column])).map(|cell| cell.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        if named {
            draw_row(&names, &widths, out);
        }
        let indent: usize = widths.iter().rev().skip(1).map(|width| width + 2).sum();
        for Row { cells, note } in &self.rows {
            draw_row(cells, &widths, out);
            if let Some(note) = note {
                out.push_str(&format!("{:indent$}{DOUBTFUL}{note}{DOUBTFUL:#}\n", ""));
            }
        }
    }

    /// A column's name stands on the side its cells stand.
    fn name(&self, column: usize, name: &str) -> Cell {
        let right = self.rows.first().is_some_and(|row| row.cells[column].right);
        Cell { text: name.to_owned(), style: FAINT, right }
    }
}

fn draw_row(cells: &[Cell], widths: &[usize], out: &mut String) {
    let last = cells.iter().rposition(|cell| !cell.text.is_empty()).unwrap_or(0);
    for (column, Cell { text, style, right }) in cells.iter().enumerate().take(last + 1) {
        let padding = widths[column] - text.chars().count();
        let (before, after) = if *right { (padding, 0) } else { (0, padding) };
        let after = if column == last { 0 } else { after + 2 };
        out.push_str(&format!("{:before$}{style}{text}{style:#}{:after$}", "", ""));
    }
    out.push('\n');
}

pub fn text(text: impl Into<String>) -> Cell {
    Cell { text: text.into(), style: PLAIN, right: false }
}

/// What a reader looks for first.
pub fn strong(text: impl Into<String>) -> Cell {
    Cell { text: text.into(), style: STRONG, right: false }
}

pub fn number(number: impl ToString) -> Cell {
    text(number.to_string()).right()
}

pub fn optional(value: Option<impl Into<String>>) -> Cell {
    match value {
        Some(value) => text(value),
        None => Cell { text: "-".into(), style: FAINT, right: false },
    }
}

pub fn list(values: &[String]) -> Cell {
    optional((!values.is_empty()).then(|| values.join(",")))
}

/// A word of state, in the colour of what it means.
pub fn judged(word: &str) -> Cell {
    let style = match word {
        "ok" | "up" | "open" | "allowed" | "established" | "valid" => GOOD,
        "failed" | "error" | "denied" | "down" | "offer-refused" | "expired" | "revoked" => BAD,
        "warning" | "connecting" | "away" | "not-offered" | "closed" | "drained" => DOUBTFUL,
        "none" | "skipped" | "waiting" => FAINT,
        _ => PLAIN,
    };
    Cell { text: word.to_owned(), style, right: false }
}

/// A word of state inside a line.
pub fn judged_inline(word: &str) -> String {
    let Cell { text, style, .. } = judged(word);
    format!("{style}{text}{style:#}")
}

/// `512 B`, `1.5 KiB`, `3.2 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `12s`, `3m`, `5h 12m`, `9d 4h`.
pub fn duration(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match seconds {
        0..MINUTE => format!("{seconds}s"),
        MINUTE..HOUR => format!("{}m", seconds / MINUTE),
        HOUR..DAY => format!("{}h {}m", seconds / HOUR, seconds % HOUR / MINUTE),
        DAY.. => format!("{}d {}h", seconds / DAY, seconds % DAY / HOUR),
    }
}

/// `0.42 ms`, `12.3 ms`, `250 ms`, `1.5 s`.
pub fn milliseconds(value: f64) -> String {
    if value >= 1000.0 {
        return format!("{:.1} s", value / 1000.0);
    }
    let decimals = if value < 1.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.decimals$} ms")
}

/// Characters that a terminal obeys, or that make a line look like another one: controls, line and paragraph separators,
/// marks that turn the direction, invisible ones (Unicode TR 36, section 3).
pub fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Text from outside, harmless: what [`is_harmful`] becomes `\n`, `\u{1b}` and so on.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_times_are_for_people() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1_048_575, "1.0 MiB")];
        for (count, expected) in cases.into_iter().chain([(5 << 30, "5.0 GiB"), (u64::MAX, "16.0 EiB")]) {
            assert_eq!(bytes(count), expected);
        }
        let cases = [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h 0m"), (90_000, "1d 1h")];
        for (seconds, expected) in cases {
            assert_eq!(duration(seconds), expected);
        }
        assert_eq!([0.421, 1.26, 99.94, 250.4].map(milliseconds), ["0.42 ms", "1.3 ms", "99.9 ms", "250 ms"]);
    }

    #[test]
    fn tables_line_up_and_have_no_trailing_blanks() {
        let mut table = Table::new(&["NAME", "N", "STATE"]);
        table.row([text("web"), number(5), optional(Some("up"))]);
        table.row([text("rabbitmq"), number(1000), text("")]);
        table.note(Some("a note".into()));
        let mut page = Page::default();
        page.table(&table, "none");
        let plain = anstream::adapter::strip_str(&page.text).to_string();
        let expected = "NAME         N  STATE\nweb          5  up\nrabbitmq  1000\n                a note\n";
        assert_eq!(plain, expected);
    }

    #[test]
    fn text_from_outside_is_harmless_and_stays_readable() {
        assert_eq!(escape("a\n\u{1b}[2J\u{9b}\u{202e}ü-é"), "a\\n\\u{1b}[2J\\u{9b}\\u{202e}ü-é");
    }
}
