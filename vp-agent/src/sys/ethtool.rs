//! What an interface does for its packets, as ethtool(8) shows it.

use super::check;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Names of drivers are at most this long (linux/ethtool.h).
const DRIVER_BYTES: usize = 32;
/// Of `struct ethtool_drvinfo`.
const DRIVER_INFO_BYTES: usize = 196;
const GET_DRIVER_INFO: u32 = 0x03;

/// An offload that a stream wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feature {
    TransmitChecksum,
    TcpSegmentation,
    Segmentation,
    Receive,
}

impl Feature {
    /// As `ethtool -k` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TransmitChecksum => "tx-checksumming",
            Self::TcpSegmentation => "tcp-segmentation-offload",
            Self::Segmentation => "generic-segmentation-offload",
            Self::Receive => "generic-receive-offload",
        }
    }

    /// As `ethtool -K` takes it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::TransmitChecksum => "tx",
            Self::TcpSegmentation => "tso",
            Self::Segmentation => "gso",
            Self::Receive => "gro",
        }
    }

    /// The kernel's question for it (linux/ethtool.h).
    fn question(self) -> u32 {
        match self {
            Self::TransmitChecksum => 0x16,
            Self::TcpSegmentation => 0x1e,
            Self::Segmentation => 0x23,
            Self::Receive => 0x2b,
        }
    }
}

pub fn has_feature(interface: &str, feature: Feature) -> io::Result<bool> {
    // A question and its answer: `struct ethtool_value`.
    let mut value = [feature.question(), 0];
    ask(interface, &mut value)?;
    Ok(value[1] != 0)
}

/// The driver of an interface, such as `virtio_net` or `veth`.
pub fn driver(interface: &str) -> io::Result<String> {
    let mut info = [0_u32; DRIVER_INFO_BYTES / size_of::<u32>()];
    info[0] = GET_DRIVER_INFO;
    ask(interface, &mut info)?;
    let bytes: Vec<u8> = info[1..].iter().flat_map(|word| word.to_ne_bytes()).take(DRIVER_BYTES).collect();
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// `value` begins with the question and has room for what that is answered with.
fn ask(interface: &str, value: &mut [u32]) -> io::Result<()> {
    // SAFETY: an ifreq of zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.as_bytes();
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: the request and what it points to outlive the call, and `value` has the room that its question wants.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) })?;
    Ok(())
}
