//! Waiting for several descriptors at once, and waking the one who waits.

use super::check;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// What a descriptor is known by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Token {
    Tun,
    Udp,
    Waker,
}

impl Token {
    const ALL: [Self; 3] = [Self::Tun, Self::Udp, Self::Waker];
}

/// Who may be read from.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ready(u8);

impl Ready {
    #[must_use]
    pub fn has(self, token: Token) -> bool {
        self.0 & (1 << token as u8) != 0
    }
}

/// An epoll set, level-triggered: what was not read to its end is ready again.
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn add(&self, fd: BorrowedFd, token: Token) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token as u64 };
        // SAFETY: both descriptors are open for the call, and the kernel copies the event.
        let added = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event) };
        check(added).map(drop)
    }

    /// Waits until someone is ready, or for at most `timeout` (rounded up to a millisecond), or for a signal.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        let milliseconds = timeout.map_or(-1, |t| i32::try_from(t.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; Token::ALL.len()];
        // SAFETY: `events` is valid for as many entries as the call is told.
        let count = unsafe {
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), events.len() as libc::c_int, milliseconds)
        };
        let count = match check(count) {
            Ok(count) => count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(Ready(events[..count].iter().fold(0, |ready, event| ready | 1 << event.u64)))
    }
}

/// Wakes a [`Poller`] from another thread. Calls that come before it looks are one.
#[derive(Debug)]
pub struct Waker(File);

impl Waker {
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    pub fn wake(&self) {
        // It fails only when 2^64 - 2 calls wait to be seen, which wake as well.
        (&self.0).write_all(&1u64.to_ne_bytes()).ok();
    }

    /// Takes all calls so far.
    pub fn take(&self) {
        // It fails only when there was none.
        (&self.0).read_exact(&mut [0; 8]).ok();
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_call_from_another_thread_ends_the_wait_once() {
        let (poll, waker) = (Poller::new().unwrap(), Arc::new(Waker::new().unwrap()));
        poll.add(waker.as_fd(), Token::Waker).unwrap();
        let caller = waker.clone();
        let thread = std::thread::spawn(move || (caller.wake(), caller.wake()));
        let ready = poll.wait(None).unwrap();
        assert!(ready.has(Token::Waker) && !ready.has(Token::Tun) && !ready.has(Token::Udp));
        thread.join().unwrap();
        waker.take();
        assert_eq!(poll.wait(Some(Duration::ZERO)).unwrap(), Ready::default());
    }
}
