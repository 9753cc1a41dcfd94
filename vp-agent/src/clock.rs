//! The wall clock, which may be set forward or back at any time: only what is dated by others is judged by it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970; 0 for a clock that stands before.
#[must_use]
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Milliseconds since 1970.
#[must_use]
pub fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// As records and marks of time have it, to the millisecond.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    vp_proto::time::rfc3339_millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
