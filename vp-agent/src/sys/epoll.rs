//! Waiting for descriptors and for other threads.

use super::check;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// What became ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Token {
    Tun,
    Udp,
    Waker,
}

impl Token {
    const ALL: [Self; 3] = [Self::Tun, Self::Udp, Self::Waker];
}

#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; a result of at least 0 is a descriptor that is ours alone.
        let epoll = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))? as i32) };
        Ok(Self { epoll, events: Vec::with_capacity(Token::ALL.len()) })
    }

    pub fn add(&self, fd: &impl AsFd, token: Token) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token as u64 };
        let (epoll, fd) = (self.epoll.as_raw_fd(), fd.as_fd().as_raw_fd());
        // SAFETY: `event` lives through the call, both descriptors are open.
        check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) })?;
        Ok(())
    }

    /// Waits until something is ready or the time is over.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<impl Iterator<Item = Token> + '_> {
        // Rounded up, so that a deadline is over when the wait is.
        let millis = timeout.map_or(-1, |t| i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
        let capacity = self.events.capacity() as i32;
        // SAFETY: `events` has room for `capacity` entries; the kernel wrote the first `count` of them.
        let count = unsafe {
            let waited = libc::epoll_wait(self.epoll.as_raw_fd(), self.events.as_mut_ptr(), capacity, millis);
            match check(waited) {
                Ok(count) => count as usize,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            }
        };
        // SAFETY: as above.
        unsafe { self.events.set_len(count) };
        Ok(self.events.iter().filter_map(|event| Token::ALL.into_iter().find(|token| *token as u64 == { event.u64 })))
    }
}

/// Wakes the thread that polls it, from any thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; a result of at least 0 is a descriptor that is ours alone.
        let fd =
            unsafe { OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))? as i32) };
        Ok(Self(Arc::new(fd)))
    }

    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight readable bytes. It fails only when the counter is full, and then a wake-up is due anyway.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    pub fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: eight writable bytes. It fails only when there was no wake-up.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
