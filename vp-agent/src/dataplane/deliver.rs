//! To the TUN: joined packets as they are, or cut up again where the kernel's TUN driver takes no such ones.

use crate::sys::{Tun, TunOffload};
use std::io::{self, IoSlice};
use vp::node::Output;
use vp::packet::{Delivery, Offload, Packet, split, virtio};

/// A joined packet has at most 64 parts, and the header.
const PARTS_MAX: usize = 72;
const PACKET_BYTES_MAX: usize = 1 << 16;

#[derive(Default)]
pub(super) struct Deliverer {
    /// For cutting up: the packet in one piece, and one segment of it.
    whole: Vec<u8>,
    segment: Vec<u8>,
}

impl Deliverer {
    /// Writes all that the output has for the TUN; how many packets it did not take.
    pub(super) fn deliver(&mut self, tun: &Tun, output: &Output) -> u64 {
        let mut refused = 0;
        for delivery in output.joiner.deliveries() {
            let written = match virtio::decode(&delivery.virtio) {
                Ok(_) if takes(tun, &delivery.virtio) => write_whole(tun, &delivery),
                Ok(offload) => self.write_segments(tun, &delivery, offload),
                Err(_) => Err(io::ErrorKind::InvalidData.into()),
            };
            refused += u64::from(written.is_err());
        }
        for packet in &output.packets {
            refused += u64::from(write_packet(tun, packet).is_err());
        }
        refused
    }

    fn write_segments(&mut self, tun: &Tun, delivery: &Delivery, offload: Offload) -> io::Result<()> {
        self.whole.clear();
        delivery.slices().for_each(|part| self.whole.extend_from_slice(part));
        self.segment.resize(PACKET_BYTES_MAX, 0);
        let packet = Packet::parse(&mut self.whole, offload).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut result = Ok(());
        split(&packet, &mut self.segment, |segment| {
            if let Err(error) = write_packet(tun, segment) {
                result = Err(error);
            }
        });
        result
    }
}

/// Whether the driver takes a packet with this header.
fn takes(tun: &Tun, header: &[u8; virtio::HEADER_BYTES]) -> bool {
    match tun.offload() {
        TunOffload::TcpAndUdp => true,
        TunOffload::Tcp | TunOffload::Header => !virtio::is_udp_segments(header),
        TunOffload::None => *header == [0; virtio::HEADER_BYTES],
    }
}

fn write_whole(tun: &Tun, delivery: &Delivery) -> io::Result<()> {
    let mut parts = [IoSlice::new(&[]); PARTS_MAX];
    let header = tun.has_header().then_some(&delivery.virtio[..]);
    let mut count = 0;
    for (part, bytes) in parts.iter_mut().zip(header.into_iter().chain(delivery.slices())) {
        *part = IoSlice::new(bytes);
        count += 1;
    }
    tun.write(&parts[..count])
}

/// A single packet with complete checksums.
fn write_packet(tun: &Tun, packet: &[u8]) -> io::Result<()> {
    let header = [0; virtio::HEADER_BYTES];
    let parts = [IoSlice::new(&header), IoSlice::new(packet)];
    tun.write(if tun.has_header() { &parts } else { &parts[1..] })
}
