//! The UDP socket of the tunnels: many datagrams a call in both directions, by segmentation offload (UDP_SEGMENT) and
//! its counterpart (UDP_GRO).

use super::check;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// What the kernel may keep for us in each direction: 8 MB are 5 ms of 10 Gbit/s and some more.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;
/// Messages a call. With GRO each may be 64 KB.
const MESSAGES: usize = 8;
const MESSAGE_BYTES: usize = 1 << 16;
const CONTROL_BYTES: usize = 64;

#[derive(Debug)]
pub struct Udp {
    socket: Socket,
    is_v6: bool,
}

/// Buffers for one receive call, allocated once.
pub struct Incoming {
    buffers: Box<[u8]>,
    addresses: Box<[libc::sockaddr_storage; MESSAGES]>,
    controls: Box<[[u64; CONTROL_BYTES / 8]; MESSAGES]>,
    lengths: [usize; MESSAGES],
    strides: [usize; MESSAGES],
    count: usize,
}

impl Udp {
    /// On the given address, or on any port of any address: of both families where the kernel has IPv6.
    pub fn bind(listen: Option<SocketAddr>) -> io::Result<Self> {
        match listen {
            Some(listen) => Self::bind_to(listen),
            None => {
                let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, 0).into();
                Self::bind_to(any).or_else(|_| Self::bind_to(([0, 0, 0, 0], 0).into()))
            }
        }
    }

    fn bind_to(listen: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
        let is_v6 = listen.is_ipv6();
        if is_v6 {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&listen.into())?;
        let udp = Self { socket, is_v6 };
        udp.set(libc::SOL_UDP, libc::UDP_GRO, 1).ok();
        // Routers may fragment: a path of small MTU costs speed, never a black hole.
        if is_v6 {
            udp.set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT).ok();
        }
        udp.set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT).ok();
        let wanted = SOCKET_BUFFER_BYTES as libc::c_int;
        for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
            udp.set(libc::SOL_SOCKET, force, wanted).or_else(|_| udp.set(libc::SOL_SOCKET, plain, wanted))?;
        }
        Ok(udp)
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel reads one int.
        check(unsafe { libc::setsockopt(self.socket.as_raw_fd(), level, option, (&raw const value).cast(), length) })?;
        Ok(())
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        let address = self.socket.local_addr()?.as_socket();
        address.ok_or_else(|| io::Error::other("the socket has no IP address"))
    }

    /// Receive and send buffer as the kernel granted them (it counts its own overhead, so up to twice the wish).
    pub fn buffer_bytes(&self) -> io::Result<(usize, usize)> {
        Ok((self.socket.recv_buffer_size()?, self.socket.send_buffer_size()?))
    }

    #[must_use]
    pub fn wanted_buffer_bytes() -> usize {
        SOCKET_BUFFER_BYTES
    }

    /// Sends datagrams of `segment_bytes` (the last may be shorter) in one call.
    pub fn send(&self, to: SocketAddr, bytes: &[u8], segment_bytes: usize) -> io::Result<()> {
        let address = SockAddr::from(self.to_family(to));
        let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut control = [0u64; CONTROL_BYTES / 8];
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_namelen = address.len();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if bytes.len() > segment_bytes {
            let length = size_of::<u16>() as u32;
            message.msg_control = control.as_mut_ptr().cast();
            // SAFETY: `control` is aligned for and larger than one cmsghdr with two bytes of data.
            unsafe {
                message.msg_controllen = libc::CMSG_SPACE(length) as usize;
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                (*header).cmsg_level = libc::SOL_UDP;
                (*header).cmsg_type = libc::UDP_SEGMENT;
                (*header).cmsg_len = libc::CMSG_LEN(length) as usize;
                libc::CMSG_DATA(header).cast::<u16>().write_unaligned(segment_bytes as u16);
            }
        }
        // SAFETY: every pointer in `message` is to a local that lives through the call; the kernel only reads.
        check(unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) } as i64)?;
        Ok(())
    }

    fn to_family(&self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(address) if self.is_v6 => SocketAddr::new(address.to_ipv6_mapped().into(), to.port()),
            _ => to,
        }
    }

    /// Receives what is there, up to a batch.
    pub fn receive(&self, incoming: &mut Incoming) -> io::Result<()> {
        incoming.count = 0;
        // SAFETY: all-zero is a valid mmsghdr and a valid iovec.
        let mut messages: [libc::mmsghdr; MESSAGES] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut parts: [libc::iovec; MESSAGES] = unsafe { zeroed() };
        for (i, buffer) in incoming.buffers.chunks_mut(MESSAGE_BYTES).enumerate() {
            parts[i] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut messages[i].msg_hdr;
            header.msg_name = (&raw mut incoming.addresses[i]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut parts[i];
            header.msg_iovlen = 1;
            header.msg_control = incoming.controls[i].as_mut_ptr().cast();
            header.msg_controllen = CONTROL_BYTES;
        }
        let (fd, flags) = (self.socket.as_raw_fd(), libc::MSG_DONTWAIT);
        let timeout = std::ptr::null_mut();
        // SAFETY: each message points to buffers of its own in `incoming`, which live through the call.
        let count = unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), MESSAGES as u32, flags as _, timeout) };
        incoming.count = check(count)? as usize;
        for (i, message) in messages[..incoming.count].iter().enumerate() {
            let truncated = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            incoming.lengths[i] = if truncated { 0 } else { message.msg_len as usize };
            incoming.strides[i] = segment_bytes(&message.msg_hdr).unwrap_or(incoming.lengths[i]).max(1);
        }
        Ok(())
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The length of the datagrams that the kernel joined, if it did.
fn segment_bytes(message: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel filled `msg_control` up to `msg_controllen`; the macros stay within it.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_UDP && (*header).cmsg_type == libc::UDP_GRO {
                let bytes = libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned();
                return usize::try_from(bytes).ok();
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

impl Default for Incoming {
    fn default() -> Self {
        Self {
            buffers: vec![0; MESSAGES * MESSAGE_BYTES].into(),
            // SAFETY: all-zero is a valid address of no family.
            addresses: Box::new(unsafe { zeroed() }),
            controls: Box::new([[0; CONTROL_BYTES / 8]; MESSAGES]),
            lengths: [0; MESSAGES],
            strides: [0; MESSAGES],
            count: 0,
        }
    }
}

impl Incoming {
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count == MESSAGES
    }

    /// Sender, bytes and datagram length of each message. Addresses of IPv4 are told as such on any socket.
    pub fn messages(&mut self) -> impl Iterator<Item = (SocketAddr, &mut [u8], usize)> {
        let buffers = self.buffers.chunks_mut(MESSAGE_BYTES).take(self.count);
        buffers.enumerate().filter_map(|(i, buffer)| {
            let length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            // SAFETY: the kernel wrote an address of the family that it says; socket2's storage has the same layout.
            let from = unsafe { SockAddr::new(std::mem::transmute_copy(&self.addresses[i]), length) }.as_socket()?;
            let from = SocketAddr::new(from.ip().to_canonical(), from.port());
            Some((from, &mut buffer[..self.lengths[i]], self.strides[i]))
        })
    }
}
