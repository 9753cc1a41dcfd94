//! System calls that no library wraps as we need them: the only unsafe code of the project. Each function proves
//! what its call needs; nothing here decides anything.

mod epoll;
mod tun;
mod udp;

pub use epoll::{Poller, Token, Waker};
pub use tun::{Tun, TunOffload};
pub use udp::{Incoming, Udp};

use std::io;

/// The result of a system call that says -1 and leaves the reason in `errno`.
fn check(result: impl Into<i64>) -> io::Result<i64> {
    match result.into() {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// Whether a call would have had to wait, or was interrupted: try again later.
pub fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
