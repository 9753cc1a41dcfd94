//! The gateway daemon's parts, as a library: what the binary runs, tests and fuzz targets can run too.

pub mod agent;
pub mod api;
pub mod config;
pub mod control;
pub mod dataplane;
mod link;
pub mod netlink;
pub mod nft;
pub mod state;
pub mod sys;
