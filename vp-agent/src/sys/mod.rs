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

/// Puts the calling thread, and what it starts, into a new network namespace that ends with it.
#[cfg(test)]
pub fn enter_new_network_namespace() {
    // SAFETY: takes no pointers; it changes nothing but this thread's namespace.
    let answer = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    check(answer).expect("this test makes a network namespace and needs root");
}

/// The user that this process runs as.
#[must_use]
pub fn own_user() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() }
}
