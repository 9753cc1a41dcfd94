//! Everything that crosses a process or a wire: the local interface's JSON ([`api`]) and the control channel
//! between agents (`control`, schema in `control.proto`).

pub mod api;
pub mod chain;

#[cfg(feature = "control")]
pub mod control {
    //! Generated from `control.proto`.
    #![allow(clippy::all, unused_qualifications)]
    include!(concat!(env!("OUT_DIR"), "/vp.control.v1.rs"));
}
