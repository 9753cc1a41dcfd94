//! The rewrite of a packet from one view (site or wire) to the other, checksums mended, quoted headers too.
use crate::packet::*;
use std::net::IpAddr;
pub fn apply(_: &mut Packet, _: &FiveTuple) {}
pub fn apply_error(_: &mut Packet, _: &Quote, _: &FiveTuple, _: IpAddr, _: IpAddr, _: Option<u32>) -> usize {
    0
}
