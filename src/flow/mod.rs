//! Flows: a table that remembers a decision per (door, five-tuple) until silence, and the life-cycle of TCP.
//! It knows nothing of services or policy: whose flow it is, is an opaque number to it.

pub mod fragments;
mod keys;
mod life;
mod slots;
mod table;
mod wheel;

pub use crate::addr::Direction;
pub use life::{State, Stirred, Traffic};
pub use table::{Door, Flow, FlowId, NewFlow, Owner, Table};
