//! Waiting for conditions, each with a deadline. Nothing in a story waits for seconds to pass.

use anyhow::{Context, Result, bail};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a busy machine with two cores; a story that waits this long has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(20);

/// Until `condition` gives a value; its last error and `what` when it does not before [`DEADLINE`].
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    wait_within(DEADLINE, what, condition)
}

pub fn wait_within<T>(within: Duration, what: &str, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        let last = condition();
        if let Ok(Some(value)) = last {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            match last {
                Err(error) => return Err(error).context(format!("waited {within:?} for {what}")),
                Ok(_) => bail!("waited {within:?} for {what}"),
            }
        }
        thread::sleep(STEP);
    }
}

/// Until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for(what, || Ok(condition()?.then_some(())))
}
