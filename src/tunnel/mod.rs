//! Peers' tunnels: handshakes, sessions, paths, roaming. Wraps boringtun so that none of its traps shows.

mod transmit;

pub use transmit::{Batch, Transmits};
