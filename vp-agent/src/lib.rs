//! The gateway daemon's parts, as a library: what the binary runs, tests and fuzz targets can run too.

#![deny(unsafe_code)]

pub mod agent;
pub mod api;
pub mod audit;
pub mod carrier;
pub mod clock;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod dns;
pub mod doctor;
pub mod health;
pub mod identity;
pub mod link;
pub mod metrics;
pub mod netlink;
pub mod nft;
pub mod registry;
pub mod state;
#[allow(unsafe_code)] // system calls that the standard library does not have; each block says why it is sound
pub mod sys;
