//! Who runs this.

/// Whose rights this process has.
#[must_use]
pub fn effective_user() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() }
}
