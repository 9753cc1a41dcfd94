//! The kernel, where only `unsafe` reaches it: the TUN device, the UDP socket, waiting, what interfaces
//! and paths can do. The only unsafe code of the project. Each function proves what its call needs; nothing here decides
//! anything, or knows what a packet means.

#![deny(clippy::undocumented_unsafe_blocks)]

mod ethtool;
mod host;
mod path;
mod poll;
mod tun;
mod udp;

pub use ethtool::{Feature, driver, has_feature};
pub use host::{ThreadClock, effective_user};
pub use path::PathQuestion;
pub use poll::{Poller, Ready, Token, Waker};
pub use tun::{Tun, TunOffload};
pub use udp::{Datagrams, Message, Receiver, Sender, Sent, Udp};

use std::io;

/// What a system call that answers -1 on failure said.
fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Whether a call would have had to wait, or was interrupted: try again later.
#[must_use]
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
