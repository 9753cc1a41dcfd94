//! What the user chose: the view, the order, the place.

use super::views::View;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// Rows that Page Up and Page Down move by.
const PAGE: usize = 10;

#[derive(Debug)]
pub(super) struct State {
    pub view: View,
    orders: [Order; View::ALL.len()],
    /// The first row that is shown.
    pub first: usize,
    is_paused: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Order {
    pub column: usize,
    pub is_reverse: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    Stay,
    Leave,
}

impl State {
    pub fn new(view: View) -> Self {
        let orders = View::ALL.map(|view| Order { column: view.first_column(), is_reverse: false });
        Self { view, orders, first: 0, is_paused: false }
    }

    pub fn order(&self) -> Order {
        self.orders[self.view as usize]
    }

    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    pub fn press(&mut self, key: KeyEvent) -> Next {
        let order = &mut self.orders[self.view as usize];
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::Leave,
            KeyCode::Char('q') | KeyCode::Esc => return Next::Leave,
            KeyCode::Char(number @ '1'..='4') => self.show(number as usize - '1' as usize),
            KeyCode::Tab | KeyCode::Right => self.show(self.view as usize + 1),
            KeyCode::BackTab | KeyCode::Left => self.show(self.view as usize + View::ALL.len() - 1),
            KeyCode::Char('s') => order.column = (order.column + 1) % self.view.columns().len(),
            KeyCode::Char('r') => order.is_reverse = !order.is_reverse,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Down => self.first = self.first.saturating_add(1),
            KeyCode::Up => self.first = self.first.saturating_sub(1),
            KeyCode::PageDown => self.first = self.first.saturating_add(PAGE),
            KeyCode::PageUp => self.first = self.first.saturating_sub(PAGE),
            KeyCode::Home => self.first = 0,
            _ => {}
        }
        Next::Stay
    }

    fn show(&mut self, number: usize) {
        self.view = View::ALL[number % View::ALL.len()];
        self.first = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_switch_sort_scroll_pause_and_leave() {
        let mut state = State::new(View::Sites);
        let mut press = |code| {
            let next = state.press(KeyEvent::new(code, KeyModifiers::NONE));
            (next, state.view, state.order(), state.first, state.is_paused)
        };
        let order = |column, is_reverse| Order { column, is_reverse };
        assert_eq!(press(KeyCode::Char('3')), (Next::Stay, View::Flows, order(5, false), 0, false));
        assert_eq!(press(KeyCode::Char('s')), (Next::Stay, View::Flows, order(6, false), 0, false));
        assert_eq!(press(KeyCode::Char('s')), (Next::Stay, View::Flows, order(0, false), 0, false));
        assert_eq!(press(KeyCode::Char('r')), (Next::Stay, View::Flows, order(0, true), 0, false));
        assert_eq!(press(KeyCode::PageDown), (Next::Stay, View::Flows, order(0, true), PAGE, false));
        assert_eq!(press(KeyCode::Up), (Next::Stay, View::Flows, order(0, true), PAGE - 1, false));
        assert_eq!(press(KeyCode::Tab), (Next::Stay, View::Denials, order(0, false), 0, false));
        assert_eq!(press(KeyCode::Tab), (Next::Stay, View::Sites, order(0, false), 0, false));
        assert_eq!(press(KeyCode::Left), (Next::Stay, View::Denials, order(0, false), 0, false));
        assert_eq!(press(KeyCode::Left), (Next::Stay, View::Flows, order(0, true), 0, false), "as it was left");
        assert_eq!(press(KeyCode::Char('p')), (Next::Stay, View::Flows, order(0, true), 0, true));
        assert_eq!(press(KeyCode::Char('c')), (Next::Stay, View::Flows, order(0, true), 0, true));
        for (code, modifiers) in [
            (KeyCode::Char('q'), KeyModifiers::NONE),
            (KeyCode::Esc, KeyModifiers::NONE),
            (KeyCode::Char('c'), KeyModifiers::CONTROL),
        ] {
            assert_eq!(state.press(KeyEvent::new(code, modifiers)), Next::Leave);
        }
    }
}
