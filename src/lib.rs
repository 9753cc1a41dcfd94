//! Virtual Presence, the core: what a gateway decides and does, as a function of its inputs.
//!
//! Packets, datagrams, commands and `now` come in; packets, datagrams and events come out. Nothing here reads a
//! clock, opens a socket or a file, or starts a thread. `vp-agent` is the shell that does.

#![forbid(unsafe_code)]

pub mod addr;
pub mod catalogue;
pub mod flow;
pub mod hub;
pub mod identity;
pub mod node;
pub mod packet;
pub mod policy;
pub mod translate;
pub mod tunnel;
