//! The gateway, live: looks at the agent again and again, and shows what changed. The terminal is as before when it ends,
//! however it ends.

mod draw;
mod look;
mod state;
mod views;

pub use views::View;

use crate::client::Client;
use crate::failure::Failure;
use look::{Look, Now};
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::{DefaultTerminal, Terminal};
use state::{Next, State};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How long a key, or a signal to end, waits at most.
const KEY_PAUSE: Duration = Duration::from_millis(100);
/// What a picture on paper is: as wide as most terminals are made, and all rows of a busy gateway's view.
const ONCE_COLUMNS: u16 = 120;
const ONCE_ROWS: u16 = 60;

/// One picture as text.
pub fn once(client: &Client, view: View, every: Duration) -> Result<String, Failure> {
    let first = Look::take(client)?;
    thread::sleep(every);
    let now = Now::between(Some(&first), Look::take(client)?);
    let mut terminal = Terminal::new(TestBackend::new(ONCE_COLUMNS, ONCE_ROWS)).map_err(broken)?;
    let mut state = State::new(view);
    terminal.draw(|frame| draw::draw(frame, &mut state, &now, true)).map_err(broken)?;
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(ONCE_COLUMNS));
    let lines = rows.map(|cells| cells.iter().map(|cell| cell.symbol()).collect::<String>());
    let text: String = lines.map(|line| line.trim_end().to_owned() + "\n").collect();
    Ok(text.trim_end().to_owned() + "\n")
}

/// On the terminal, until the user leaves.
pub fn watch(client: &Client, view: View, every: Duration) -> Result<(), Failure> {
    // Before the screen changes: who cannot ask is to see why.
    let first = Look::take(client)?;
    let is_told = ended_by_signal()?;
    let mut terminal = ratatui::try_init()?;
    let ended = follow(&mut terminal, client, first, State::new(view), every, &is_told);
    ratatui::try_restore()?;
    ended
}

fn follow(
    terminal: &mut DefaultTerminal,
    client: &Client,
    first: Look,
    mut state: State,
    every: Duration,
    is_told: &AtomicBool,
) -> Result<(), Failure> {
    let mut now = Now::between(None, first);
    let mut looked = Instant::now();
    while !is_told.load(Ordering::Relaxed) {
        terminal.draw(|frame| draw::draw(frame, &mut state, &now, false))?;
        if event::poll(KEY_PAUSE)? {
            // After any other event, such as another size, all is drawn anew too.
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
                && state.press(key) == Next::Leave
            {
                break;
            }
        }
        if looked.elapsed() >= every && !state.is_paused() {
            now = Now::between(Some(&now.look), Look::take(client)?);
            looked = Instant::now();
        }
    }
    Ok(())
}

/// Whoever ends this by a signal gets the terminal back too.
fn ended_by_signal() -> Result<Arc<AtomicBool>, Failure> {
    let told = Arc::new(AtomicBool::new(false));
    let tells = told.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = {
        let _in_runtime = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    thread::spawn(move || {
        let (mut terminate, mut hang_up) = signals;
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
        });
        tells.store(true, Ordering::Relaxed);
    });
    Ok(told)
}

/// Drawing into memory does not fail.
fn broken(error: std::convert::Infallible) -> Failure {
    match error {}
}
