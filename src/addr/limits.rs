//! How much of something one may take.

/// Absent: no limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Limits {
    /// Of both directions together.
    pub bits_per_second: Option<u64>,
    pub flows: Option<u32>,
    pub new_flows_per_second: Option<u32>,
}
