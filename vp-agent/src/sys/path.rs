//! How large a packet a path carries, as far as this host and the routers on it say.

use super::check;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// Nobody is there (RFC 863), or throws it away.
const DISCARD: u16 = 9;
/// IP and UDP header.
const HEADERS_V4: usize = 28;
const HEADERS_V6: usize = 48;

/// A question that is under way: one packet that may not be fragmented.
#[derive(Debug)]
pub struct PathQuestion {
    socket: UdpSocket,
    is_v4: bool,
}

impl PathQuestion {
    /// Sends a packet of `bytes`, with its headers.
    pub fn ask(to: IpAddr, bytes: usize) -> io::Result<Self> {
        let is_v4 = to.is_ipv4();
        let any: IpAddr = if is_v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        let (level, option, headers) = match is_v4 {
            true => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, HEADERS_V4),
            false => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, HEADERS_V6),
        };
        let value: libc::c_int = libc::IP_PMTUDISC_DO;
        let size = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the value outlives the call, and its size is given.
        check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size) })?;
        socket.set_nonblocking(true)?;
        socket.connect(SocketAddr::new(to, DISCARD))?;
        match socket.send(&vec![0; bytes.saturating_sub(headers)]) {
            Ok(_) => {}
            // What the kernel knows already; `mtu` has it.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {}
            Err(error) => return Err(error),
        }
        Ok(Self { socket, is_v4 })
    }

    /// What is known by now.
    pub fn mtu(&self) -> io::Result<usize> {
        let (level, option) = match self.is_v4 {
            true => (libc::IPPROTO_IP, libc::IP_MTU),
            false => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
        };
        let mut value: libc::c_int = 0;
        let mut size = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: both are written by the call and outlive it, and the size is that of the value.
        check(unsafe {
            libc::getsockopt(self.socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut size)
        })?;
        usize::try_from(value).map_err(io::Error::other)
    }
}
