//! Who runs this, and how much of the processor its threads took.

use super::check;
use std::io;
use std::time::Duration;

/// Whose rights this process has.
#[must_use]
pub fn effective_user() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() }
}

/// The processor time of one thread, told to any.
#[derive(Clone, Copy, Debug)]
pub struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    /// That of the thread which asks.
    pub fn own() -> io::Result<Self> {
        let mut clock = 0;
        // SAFETY: the thread is the calling one, and the clock's number is written before the call returns.
        match unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) } {
            0 => Ok(Self(clock)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// None when the thread has ended.
    #[must_use]
    pub fn read(self) -> Option<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is written by the call and outlives it.
        check(unsafe { libc::clock_gettime(self.0, &raw mut time) }).ok()?;
        Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
    }
}
