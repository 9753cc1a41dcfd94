//! What passes an interface, as packets from their IP header on. Also kept as a file that tcpdump and Wireshark read.

use crate::{Lab, Namespace};
use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

/// Kernel memory for packets that the capturing thread has not read yet.
const RECEIVE_BUFFER_BYTES: i32 = 256 << 20;
const PACKET_BYTES_MAX: usize = 1 << 17;
/// Link type "raw IP" of a pcap file.
const LINKTYPE_RAW: u32 = 101;

pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Captured>>>,
    file: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Captured {
    pub at: SystemTime,
    /// Whether this machine sent it.
    pub sent: bool,
    /// From the IP header on. Longer than the MTU where a super-packet passed; a checksum may be left to the hardware.
    pub bytes: Vec<u8>,
}

impl Capture {
    /// Begins at once: every packet that passes `interface` after this returns is seen.
    pub fn start(lab: &Lab, machine: &Namespace, interface: &str) -> Result<Self> {
        let all = u16::try_from(libc::ETH_P_ALL)?.to_be();
        let path = format!("/sys/class/net/{interface}/ifindex");
        let index: i32 = machine.sh(&format!("cat {path}"))?.trim().parse()?;
        let socket = machine.run(|| -> Result<Socket> {
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(all))))?;
            socket.bind(&link_address(index, all))?;
            Ok(socket)
        })??;
        set_receive_buffer(&socket, RECEIVE_BUFFER_BYTES)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = stop.clone();
            move || read(&socket, &stop)
        });
        Ok(Self { stop, thread, file: lab.directory().join(format!("{}-{interface}.pcap", machine.label())) })
    }

    /// All that passed until now.
    pub fn stop(self) -> Result<Vec<Captured>> {
        self.stop.store(true, Ordering::Relaxed);
        let packets = self.thread.join().map_err(|_| anyhow::anyhow!("the capture panicked"))??;
        fs::write(&self.file, pcap(&packets))?;
        Ok(packets)
    }
}

fn read(socket: &Socket, stop: &AtomicBool) -> Result<Vec<Captured>> {
    let mut packets = Vec::new();
    let mut buffer = vec![0_u8; PACKET_BYTES_MAX];
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        // SAFETY: sockaddr_ll fits into the storage, and recvfrom fills what it says in `length`.
        let ((received, error), from) = unsafe {
            SockAddr::try_init(|storage, length| {
                let result = libc::recvfrom(
                    socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    storage.cast(),
                    length,
                );
                Ok((result, std::io::Error::last_os_error()))
            })?
        };
        if received < 0 {
            match error.kind() {
                std::io::ErrorKind::WouldBlock if stopping => break,
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted => continue,
                _ => bail!("capture: {error}"),
            }
        }
        let bytes = &buffer[..usize::try_from(received)?];
        if !matches!(bytes.first().map(|first| first >> 4), Some(4 | 6)) {
            continue;
        }
        // SAFETY: the kernel wrote a sockaddr_ll, which the storage is large enough and aligned for.
        let link = unsafe { &*from.as_ptr().cast::<libc::sockaddr_ll>() };
        let ip = [libc::ETH_P_IP, libc::ETH_P_IPV6].map(|protocol| u16::try_from(protocol).unwrap_or(0).to_be());
        if ip.contains(&link.sll_protocol) {
            let sent = link.sll_pkttype == libc::PACKET_OUTGOING;
            packets.push(Captured { at: SystemTime::now(), sent, bytes: bytes.to_vec() });
        }
    }
    ensure!(lost(socket)? == 0, "the capture lost packets");
    Ok(packets)
}

fn link_address(index: i32, protocol: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is one of the socket addresses that the storage is made for.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET.try_into().unwrap_or_default();
    link.sll_protocol = protocol;
    link.sll_ifindex = index;
    let bytes = size_of::<libc::sockaddr_ll>().try_into().unwrap_or_default();
    // SAFETY: the storage holds a whole sockaddr_ll.
    unsafe { SockAddr::new(storage, bytes) }
}

/// Beyond what the machine allows its users.
pub(crate) fn set_receive_buffer(socket: &impl AsRawFd, bytes: i32) -> Result<()> {
    let size = u32::try_from(size_of::<libc::c_int>())?;
    let option = libc::SO_RCVBUFFORCE;
    // SAFETY: the option value is a c_int that lives through the call, and its size is given.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const bytes).cast(), size) };
    ensure!(result == 0, "SO_RCVBUFFORCE: {}", std::io::Error::last_os_error());
    Ok(())
}

fn lost(socket: &Socket) -> Result<u32> {
    // struct tpacket_stats: packets, drops.
    let mut statistics = [0_u32; 2];
    let mut size = u32::try_from(size_of_val(&statistics))?;
    let (level, option) = (libc::SOL_PACKET, libc::PACKET_STATISTICS);
    // SAFETY: the kernel writes at most `size` bytes of two u32 into the array.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, statistics.as_mut_ptr().cast(), &raw mut size) };
    ensure!(result == 0, "PACKET_STATISTICS: {}", std::io::Error::last_os_error());
    Ok(statistics[1])
}

fn pcap(packets: &[Captured]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(0xa1b2_c3d4_u32.to_le_bytes());
    file.extend([2_u16, 4].into_iter().flat_map(u16::to_le_bytes));
    file.extend([0, 0, 1 << 18, LINKTYPE_RAW].into_iter().flat_map(u32::to_le_bytes));
    for packet in packets {
        let at = packet.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let bytes = u32::try_from(packet.bytes.len()).unwrap_or(u32::MAX);
        let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
        file.extend([seconds, at.subsec_micros(), bytes, bytes].into_iter().flat_map(u32::to_le_bytes));
        file.extend(&packet.bytes);
    }
    file
}

/// Whether `needle` is anywhere in one of the packets.
#[must_use]
pub fn contains(packets: &[Captured], needle: &[u8]) -> bool {
    packets.iter().any(|packet| packet.bytes.windows(needle.len()).any(|window| window == needle))
}

/// What etherparse says of a packet, with the error in words.
pub fn parse(packet: &[u8]) -> Result<etherparse::SlicedPacket<'_>> {
    etherparse::SlicedPacket::from_ip(packet).context("a packet that etherparse does not read")
}
