//! The UDP socket of all tunnels: many datagrams a call out (UDP_SEGMENT) and in (UDP_GRO), for both families.

use super::check;
use libc::c_int;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::HashMap;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What the kernel queues in and out while this process does not run; the default of 208 KB is 3 super-packets.
const BUFFER_BYTES: usize = 8 << 20;
/// Messages a call. An underlay that does not join datagrams gives one in each. Buffers are touched only when used.
const MESSAGES_MAX: usize = 64;
/// The most that UDP_GRO joins.
const MESSAGE_BYTES_MAX: usize = 65_536;
/// Messages a call when sending: those of one batch from the TUN, if no two are of one flow.
const SENDS_MAX: usize = 64;
/// How long a destination that refused UDP_SEGMENT is not asked again: a route may have changed by then.
const REFUSAL: Duration = Duration::from_secs(60);
/// Destinations remembered; beyond that all are asked again.
const REFUSALS_MAX: usize = 1024;
/// Room for the two control messages that are wanted, with their headers.
const CONTROL_BYTES: usize = 64;

/// The tunnels' socket. Datagrams are never marked "do not fragment": a small MTU on the way costs speed, and makes
/// no black hole.
#[derive(Debug)]
pub struct Udp {
    socket: Socket,
    /// IPv4 goes as `::ffff:a.b.c.d`.
    is_dual: bool,
    refusals: Vec<String>,
}

impl Udp {
    /// Bound to `listen`, or without one to any port for both families (for IPv4 alone where IPv6 is off).
    pub fn bind(listen: Option<SocketAddr>) -> io::Result<Self> {
        let any_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let mut udp = match listen {
            Some(address) => Self::bind_to(address)?,
            None => Self::bind_to(any).or_else(|_| Self::bind_to(any_v4))?,
        };
        udp.refusals = udp.configure()?;
        Ok(udp)
    }

    /// As many sockets of one address. What comes to it is shared out by the byte at `byte` of each datagram: where that is
    /// the same, it is always the same socket.
    pub fn bind_group(listen: Option<SocketAddr>, count: usize, byte: u32) -> io::Result<Vec<Self>> {
        let first = Self::bind(listen)?;
        if count <= 1 {
            return Ok(vec![first]);
        }
        // Only now, so that two agents of one address still find each other.
        first.socket.set_reuse_port(true)?;
        let address = first.local_address()?;
        let mut group = vec![first];
        for _ in 1..count {
            let other = Self::bind_shared(address, true)?;
            other.configure()?;
            group.push(other);
        }
        group[0].share_out(count, byte)?;
        Ok(group)
    }

    fn share_out(&self, count: usize, byte: u32) -> io::Result<()> {
        let step = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
        let mut steps = [
            step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, byte),
            step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count as u32),
            step(libc::BPF_RET | libc::BPF_A, 0),
        ];
        let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
        let (fd, bytes) = (self.socket.as_raw_fd(), size_of::<libc::sock_fprog>() as libc::socklen_t);
        // SAFETY: the kernel copies the program, which outlives the call with the steps that it points to.
        check(unsafe {
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, (&raw const program).cast(), bytes)
        })
        .map(drop)
    }

    fn bind_to(address: SocketAddr) -> io::Result<Self> {
        Self::bind_shared(address, false)
    }

    fn bind_shared(address: SocketAddr, is_shared: bool) -> io::Result<Self> {
        let is_dual = matches!(address.ip(), IpAddr::V6(ip) if ip.is_unspecified());
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(!is_dual)?;
        }
        socket.set_nonblocking(true)?;
        socket.set_reuse_port(is_shared)?;
        socket.bind(&address.into())?;
        Ok(Self { socket, is_dual, refusals: Vec::new() })
    }

    fn configure(&self) -> io::Result<Vec<String>> {
        let is_v6 = self.local_address()?.is_ipv6();
        let mut refusals = Vec::new();
        if !is_v6 || self.is_dual {
            // Routers fragment for us, so that what an ICMP message claims of the path's MTU needs no belief.
            self.set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT)?;
        }
        if is_v6 {
            // Routers of IPv6 do not; this host does, by the MTU that they report.
            self.set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
        }
        if self.set(libc::SOL_UDP, libc::UDP_GRO, 1).is_err() {
            refusals.push("the kernel does not join received UDP datagrams (UDP_GRO)".to_owned());
        }
        // Without it no queue shows, and none is shortened.
        self.set(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        let buffers = [
            ("receive", libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, "rmem_max"),
            ("send", libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, "wmem_max"),
        ];
        for (name, force, plain, limit) in buffers {
            let wanted = BUFFER_BYTES as c_int;
            if self.set(libc::SOL_SOCKET, force, wanted).is_ok() {
                continue;
            }
            self.set(libc::SOL_SOCKET, plain, wanted)?;
            let (receive, send) = self.buffer_bytes()?;
            let granted = if plain == libc::SO_RCVBUF { receive } else { send } / 2;
            if granted < BUFFER_BYTES {
                refusals.push(format!(
                    "the kernel gave {} KB of {} KB for the UDP {name} buffer (net.core.{limit})",
                    granted >> 10,
                    BUFFER_BYTES >> 10
                ));
            }
        }
        Ok(refusals)
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// What the kernel refused and that costs speed, one line each.
    #[must_use]
    pub fn refusals(&self) -> &[String] {
        &self.refusals
    }

    /// Receive and send buffer as the kernel granted them; it counts its own overhead in and says twice the wish.
    pub fn buffer_bytes(&self) -> io::Result<(usize, usize)> {
        Ok((self.socket.recv_buffer_size()?, self.socket.send_buffer_size()?))
    }

    #[must_use]
    pub fn wanted_buffer_bytes() -> usize {
        BUFFER_BYTES
    }

    /// The address as this socket has to be told it.
    fn told(&self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(ip) if self.is_dual => SocketAddr::from((ip.to_ipv6_mapped(), to.port())),
            IpAddr::V4(_) | IpAddr::V6(_) => to,
        }
    }

    fn set(&self, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
        let (fd, bytes) = (self.socket.as_raw_fd(), size_of::<c_int>() as libc::socklen_t);
        // SAFETY: the option is one `int`, which outlives the call.
        check(unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), bytes) }).map(drop)
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Datagrams of equal length back to back (the last may be shorter) to one address, or from one.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams<'a> {
    pub to: SocketAddr,
    pub bytes: &'a [u8],
    pub segment_bytes: usize,
}

impl<'a> Datagrams<'a> {
    const NONE: Self = Self { to: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), bytes: &[], segment_bytes: 1 };

    fn count(&self) -> u64 {
        self.bytes.len().div_ceil(self.segment_bytes.max(1)) as u64
    }

    fn singly(self) -> impl Iterator<Item = Self> {
        let Self { to, bytes, segment_bytes } = self;
        bytes.chunks(segment_bytes.max(1)).map(move |bytes| Self { to, bytes, segment_bytes })
    }
}

/// What became of datagrams that were to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sent {
    pub calls: u64,
    pub datagrams: u64,
    /// Dropped because a queue of the kernel was full.
    pub overload: u64,
    /// Dropped because there was no way, or a firewall of this host refused them.
    pub failed: u64,
    /// Batches that the kernel did not want to cut up for us.
    pub refused: u64,
}

/// A socket address of either family, as the kernel reads and writes it.
#[derive(Clone, Copy)]
#[repr(C)]
union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    fn none() -> Self {
        // SAFETY: all members are plain data, for which zeros are a value.
        unsafe { zeroed() }
    }

    fn new(address: SocketAddr) -> (Self, usize) {
        let mut name = Self::none();
        match address {
            SocketAddr::V4(address) => {
                name.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                };
                (name, size_of::<libc::sockaddr_in>())
            }
            SocketAddr::V6(address) => {
                name.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                (name, size_of::<libc::sockaddr_in6>())
            }
        }
    }

    /// IPv4 as IPv4, however it came.
    fn address(&self) -> Option<SocketAddr> {
        // SAFETY: every member begins with the family, and any bytes are a value of it.
        match c_int::from(unsafe { self.family }) {
            libc::AF_INET => {
                // SAFETY: any bytes are a value of this member.
                let v4 = unsafe { self.v4 };
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some((ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: any bytes are a value of this member.
                let v6 = unsafe { self.v6 };
                let (ip, port) = (Ipv6Addr::from(v6.sin6_addr.s6_addr), u16::from_be(v6.sin6_port));
                match ip.to_canonical() {
                    IpAddr::V4(ip) => Some((ip, port).into()),
                    IpAddr::V6(ip) => Some(SocketAddrV6::new(ip, port, 0, v6.sin6_scope_id).into()),
                }
            }
            _ => None,
        }
    }
}

/// Control messages want to lie as their headers do.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Where `sendmmsg` and `recvmmsg` read and write: allocated once, pointers set for each call.
struct Messages {
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    names: Box<[Name]>,
    controls: Box<[Control]>,
}

impl Messages {
    fn new(count: usize) -> Self {
        // SAFETY: `mmsghdr` is plain data, for which zeros (null pointers, no lengths) are a value.
        let header: libc::mmsghdr = unsafe { zeroed() };
        let vector = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            headers: vec![header; count].into(),
            vectors: vec![vector; count].into(),
            names: vec![Name::none(); count].into(),
            controls: vec![Control([0; CONTROL_BYTES]); count].into(),
        }
    }

    /// Message `index` is about `bytes` at `base`.
    fn set(&mut self, index: usize, base: *mut u8, bytes: usize, name_bytes: usize, control_bytes: usize) {
        self.vectors[index] = libc::iovec { iov_base: base.cast(), iov_len: bytes };
        let header = &mut self.headers[index].msg_hdr;
        header.msg_name = (&raw mut self.names[index]).cast();
        header.msg_namelen = name_bytes as libc::socklen_t;
        header.msg_iov = &raw mut self.vectors[index];
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut self.controls[index]).cast();
        // The type differs between C libraries.
        header.msg_controllen = control_bytes as _;
        header.msg_flags = 0;
    }

    /// One control message for message `index`: how long each datagram is. Its length.
    fn set_segment_bytes(&mut self, index: usize, segment_bytes: u16) -> usize {
        // SAFETY: these compute lengths only.
        let (space, length) = unsafe { (libc::CMSG_SPACE(2), libc::CMSG_LEN(2)) };
        // SAFETY: `cmsghdr` is plain data, for which zeros are a value.
        let mut header: libc::cmsghdr = unsafe { zeroed() };
        header.cmsg_len = length as _;
        header.cmsg_level = libc::SOL_UDP;
        header.cmsg_type = libc::UDP_SEGMENT;
        let at: *mut libc::cmsghdr = (&raw mut self.controls[index]).cast();
        // SAFETY: `Control` is aligned for a `cmsghdr` and longer than one with two bytes of data.
        unsafe {
            at.write(header);
            libc::CMSG_DATA(at).cast::<u16>().write_unaligned(segment_bytes);
        }
        space as usize
    }

    /// What is to be known of the received message `index`; `now` by the wall clock.
    fn head(&self, index: usize, now: Duration) -> Option<Head> {
        let header = &self.headers[index];
        let is_cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        let (bytes, from) = (header.msg_len as usize, self.names[index].address()?);
        let aside = self.aside(index);
        let stride = aside.segment_bytes.unwrap_or(bytes);
        let waited = now.saturating_sub(aside.arrived.unwrap_or(now));
        (!is_cut).then_some(Head { from, bytes, stride, waited })
    }

    /// What the kernel said beside the received message `index`.
    fn aside(&self, index: usize) -> Aside {
        let mut aside = Aside::default();
        let header = &raw const self.headers[index].msg_hdr;
        // SAFETY: the kernel filled the header and its control buffer, which is ours and still in place; the macros
        // keep within the length that the kernel wrote, and each message is as long as its type says.
        unsafe {
            let mut at = libc::CMSG_FIRSTHDR(header);
            while let Some(control) = at.as_ref() {
                match (control.cmsg_level, control.cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) => {
                        let bytes = libc::CMSG_DATA(at).cast::<c_int>().read_unaligned();
                        aside.segment_bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes > 0);
                    }
                    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS) => {
                        let time = libc::CMSG_DATA(at).cast::<libc::timespec>().read_unaligned();
                        let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
                        aside.arrived = seconds.ok().zip(nanos.ok()).map(|(s, n)| Duration::new(s, n));
                    }
                    _ => {}
                }
                at = libc::CMSG_NXTHDR(header, at);
            }
        }
        aside
    }
}

#[derive(Clone, Copy, Default)]
struct Aside {
    /// How long each datagram of the message is, if it is several.
    segment_bytes: Option<usize>,
    /// By the wall clock, since 1970.
    arrived: Option<Duration>,
}

/// Sends datagrams, many a call. Stays on the thread that made it.
pub struct Sender {
    messages: Messages,
    refusals: HashMap<IpAddr, Instant>,
}

impl Default for Sender {
    fn default() -> Self {
        Self { messages: Messages::new(SENDS_MAX), refusals: HashMap::new() }
    }
}

impl Sender {
    /// Sends all it can at once and waits for nothing; what finds no room is dropped and counted.
    pub fn send<'a>(&mut self, socket: &Udp, batches: impl Iterator<Item = Datagrams<'a>>, now: Instant) -> Sent {
        let mut sent = Sent::default();
        let mut waiting = [Datagrams::NONE; SENDS_MAX];
        let mut count = 0;
        let mut wait = |sender: &mut Self, datagrams| {
            if count == SENDS_MAX {
                sender.send_all(socket, &waiting[..count], &mut sent, now);
                count = 0;
            }
            waiting[count] = datagrams;
            count += 1;
        };
        for batch in batches {
            if batch.count() > 1 && self.is_refused(batch.to.ip(), now) {
                batch.singly().for_each(|datagram| wait(self, datagram));
            } else {
                wait(self, batch);
            }
        }
        self.send_all(socket, &waiting[..count], &mut sent, now);
        sent
    }

    fn send_all(&mut self, socket: &Udp, batches: &[Datagrams], sent: &mut Sent, now: Instant) {
        for (index, batch) in batches.iter().enumerate() {
            let (name, name_bytes) = Name::new(socket.told(batch.to));
            self.messages.names[index] = name;
            let control_bytes = match u16::try_from(batch.segment_bytes) {
                Ok(segment_bytes) if batch.count() > 1 => self.messages.set_segment_bytes(index, segment_bytes),
                Ok(_) | Err(_) => 0,
            };
            // The kernel only reads what it sends.
            let base = batch.bytes.as_ptr().cast_mut();
            self.messages.set(index, base, batch.bytes.len(), name_bytes, control_bytes);
        }
        let mut first = 0;
        while first < batches.len() {
            let headers = &mut self.messages.headers[first..batches.len()];
            // SAFETY: each header points to one name, vector and control buffer of `messages` and to the bytes of its
            // batch, all of which outlive the call.
            let answer = unsafe {
                let fd = socket.socket.as_raw_fd();
                libc::sendmmsg(fd, headers.as_mut_ptr(), headers.len() as libc::c_uint, 0)
            };
            sent.calls += 1;
            let error = match check(answer) {
                Ok(count) => {
                    let done = &batches[first..first + count as usize];
                    sent.datagrams += done.iter().map(Datagrams::count).sum::<u64>();
                    first += done.len();
                    continue;
                }
                Err(error) => error,
            };
            let batch = batches[first];
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::EAGAIN) => {
                    sent.overload += batches[first..].iter().map(Datagrams::count).sum::<u64>();
                    return;
                }
                Some(libc::ENOBUFS | libc::ENOMEM) => sent.overload += batch.count(),
                Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE) if batch.count() > 1 => {
                    sent.refused += 1;
                    self.refuse(batch.to.ip(), now);
                    send_singly(socket, batch, sent);
                }
                _ => sent.failed += batch.count(),
            }
            first += 1;
        }
    }

    fn is_refused(&self, to: IpAddr, now: Instant) -> bool {
        !self.refusals.is_empty() && self.refusals.get(&to).is_some_and(|until| now < *until)
    }

    fn refuse(&mut self, to: IpAddr, now: Instant) {
        if self.refusals.len() >= REFUSALS_MAX {
            self.refusals.clear();
        }
        self.refusals.insert(to, now + REFUSAL);
    }
}

fn send_singly(socket: &Udp, batch: Datagrams, sent: &mut Sent) {
    let to = socket.told(batch.to).into();
    for datagram in batch.singly() {
        sent.calls += 1;
        match socket.socket.send_to(datagram.bytes, &to).map_err(|error| error.raw_os_error()) {
            Ok(_) => sent.datagrams += 1,
            Err(Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM)) => sent.overload += 1,
            Err(_) => sent.failed += 1,
        }
    }
}

/// One message from the socket: datagrams of `stride` bytes back to back (the last may be shorter).
#[derive(Debug)]
pub struct Message<'a> {
    pub from: SocketAddr,
    pub bytes: &'a mut [u8],
    pub stride: usize,
    /// In the socket's queue.
    pub waited: Duration,
}

/// Receives datagrams, many a call. Stays on the thread that made it.
pub struct Receiver {
    messages: Messages,
    buffers: Box<[u8]>,
    /// Of the messages of the last call; none for one that was cut short.
    heads: Vec<Option<Head>>,
}

#[derive(Clone, Copy)]
struct Head {
    from: SocketAddr,
    bytes: usize,
    stride: usize,
    waited: Duration,
}

impl Default for Receiver {
    fn default() -> Self {
        let buffers = vec![0; MESSAGES_MAX * MESSAGE_BYTES_MAX].into();
        Self { messages: Messages::new(MESSAGES_MAX), buffers, heads: Vec::with_capacity(MESSAGES_MAX) }
    }
}

impl Receiver {
    pub const MESSAGES_MAX: usize = MESSAGES_MAX;
    pub const MESSAGE_BYTES_MAX: usize = MESSAGE_BYTES_MAX;

    /// What is there, up to `limit` messages; `WouldBlock` if nothing is.
    pub fn receive(&mut self, socket: &Udp, limit: usize) -> io::Result<usize> {
        let limit = limit.clamp(1, MESSAGES_MAX);
        for (index, buffer) in self.buffers.chunks_exact_mut(MESSAGE_BYTES_MAX).take(limit).enumerate() {
            let base = buffer.as_mut_ptr();
            self.messages.set(index, base, MESSAGE_BYTES_MAX, size_of::<Name>(), CONTROL_BYTES);
        }
        let headers = &mut self.messages.headers[..limit];
        // SAFETY: each header points to one name, vector, control buffer and buffer of ours, all as long as the header
        // says and alive until after the call; no time limit is given.
        let answer = unsafe {
            let (fd, count) = (socket.socket.as_raw_fd(), headers.len() as libc::c_uint);
            libc::recvmmsg(fd, headers.as_mut_ptr(), count, 0, std::ptr::null_mut())
        };
        let count = check(answer)? as usize;
        let received = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.heads.clear();
        self.heads.extend((0..count).map(|index| self.messages.head(index, received)));
        Ok(count)
    }

    /// Message `index` of those that the last call of [`Self::receive`] counted; none if it was cut short.
    pub fn message(&mut self, index: usize) -> Option<Message<'_>> {
        let Head { from, bytes, stride, waited } = (*self.heads.get(index)?)?;
        let start = index * MESSAGE_BYTES_MAX;
        let bytes = self.buffers.get_mut(start..start + bytes)?;
        Some(Message { from, bytes, stride, waited })
    }

    /// Some datagrams of that message, and how long each of them is.
    pub fn datagrams(&self, index: usize, range: Range<usize>) -> Option<(&[u8], usize)> {
        let Head { stride, .. } = (*self.heads.get(index)?)?;
        let start = index * MESSAGE_BYTES_MAX;
        Some((self.buffers.get(start + range.start..start + range.end)?, stride))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Poller, Token};
    use super::*;

    fn bind(address: &str) -> Udp {
        Udp::bind(Some(address.parse().unwrap())).unwrap()
    }

    fn port(socket: &Udp) -> u16 {
        socket.local_address().unwrap().port()
    }

    /// Waits for `count` datagrams and says from where they came, how long they were and how many messages it took.
    fn receive(socket: &Udp, count: usize) -> (Vec<(SocketAddr, usize)>, usize) {
        let poll = Poller::new().unwrap();
        poll.add(socket.as_fd(), Token::Udp).unwrap();
        let (mut receiver, mut seen, mut messages) = (Receiver::default(), Vec::new(), 0);
        while seen.len() < count {
            assert!(poll.wait(Some(Duration::from_secs(10))).unwrap().has(Token::Udp), "{seen:?}");
            let received = receiver.receive(socket, Receiver::MESSAGES_MAX).unwrap();
            messages += received;
            for index in 0..received {
                let message = receiver.message(index).unwrap();
                seen.extend(message.bytes.chunks(message.stride).map(|datagram| (message.from, datagram.len())));
            }
        }
        (seen, messages)
    }

    #[test]
    fn a_batch_leaves_with_one_call_and_arrives_as_it_was() {
        let (from, to) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let source = SocketAddr::from((Ipv4Addr::LOCALHOST, port(&from)));
        let bytes = vec![7; 40 * 1452 + 100];
        let batch = Datagrams { to: to.local_address().unwrap(), bytes: &bytes, segment_bytes: 1452 };
        let sent = Sender::default().send(&from, [batch].into_iter(), Instant::now());
        assert_eq!(sent, Sent { calls: 1, datagrams: 41, ..Sent::default() });
        let (seen, messages) = receive(&to, 41);
        assert_eq!((seen[..40].to_vec(), seen[40]), (vec![(source, 1452); 40], (source, 100)));
        assert_eq!(messages, 1);
    }

    #[test]
    fn both_families_share_a_socket_and_ipv4_is_seen_as_ipv4() {
        let both = Udp::bind(None).unwrap();
        let (v4, v6) = (bind("127.0.0.1:0"), bind("[::1]:0"));
        let mut sender = Sender::default();
        for (ip, socket) in [(IpAddr::from(Ipv4Addr::LOCALHOST), &v4), (IpAddr::from(Ipv6Addr::LOCALHOST), &v6)] {
            let to = SocketAddr::from((ip, port(socket)));
            let there = Datagrams { to, bytes: &[1; 10], segment_bytes: 10 };
            assert_eq!(sender.send(&both, [there].into_iter(), Instant::now()).datagrams, 1);
            assert_eq!(receive(socket, 1).0, [((ip, port(&both)).into(), 10)]);
            let back = Datagrams { to: (ip, port(&both)).into(), ..there };
            assert_eq!(sender.send(socket, [back].into_iter(), Instant::now()).datagrams, 1);
            assert_eq!(receive(&both, 1).0, [(to, 10)]);
        }
    }

    #[test]
    fn a_group_shares_datagrams_out_by_one_of_their_bytes() {
        for listen in [None, Some("127.0.0.1:0".parse().unwrap())] {
            let group = Udp::bind_group(listen, 3, 5).unwrap();
            let to = (Ipv4Addr::LOCALHOST, port(&group[0])).into();
            // Another agent's is refused, as without a group.
            assert!(Udp::bind(group[0].local_address().ok()).is_err());
            for round in 0..4_u8 {
                let from = bind("127.0.0.1:0");
                for (number, socket) in group.iter().enumerate() {
                    let bytes = [4, 0, 0, 0, round, number as u8 + 3 * round, 9, 9, 9];
                    let datagram = Datagrams { to, bytes: &bytes, segment_bytes: bytes.len() };
                    Sender::default().send(&from, [datagram].into_iter(), Instant::now());
                    assert_eq!(receive(socket, 1).0.len(), 1);
                }
            }
        }
    }

    #[test]
    fn a_batch_that_the_kernel_will_not_cut_up_is_sent_singly_and_the_destination_remembered() {
        let (from, to) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let (mut sender, now) = (Sender::default(), Instant::now());
        let bytes = vec![7; 130 * 10];
        // More segments than UDP_MAX_SEGMENTS of any kernel so far.
        let batch = Datagrams { to: to.local_address().unwrap(), bytes: &bytes, segment_bytes: 10 };
        let first = sender.send(&from, [batch].into_iter(), now);
        assert_eq!((first.datagrams, first.refused), (130, 1));
        let second = sender.send(&from, [batch].into_iter(), now);
        assert_eq!(second, Sent { calls: 3, datagrams: 130, ..Sent::default() });
        assert_eq!(receive(&to, 260).0.len(), 260);
        let small = Datagrams { bytes: &bytes[..100], ..batch };
        assert_eq!(sender.send(&from, [small].into_iter(), now).calls, 1);
        assert_eq!(receive(&to, 10).1, 10);
        sender.send(&from, [small].into_iter(), now + REFUSAL);
        assert_eq!(receive(&to, 10).1, 1);
    }

    #[test]
    fn what_finds_no_way_or_no_room_is_counted_and_the_rest_goes_on() {
        let (from, to) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let good = Datagrams { to: to.local_address().unwrap(), bytes: &[1; 20], segment_bytes: 10 };
        let wrong_family = Datagrams { to: "[2001:db8::1]:1".parse().unwrap(), ..good };
        let sent = Sender::default().send(&from, [good, wrong_family, good].into_iter(), Instant::now());
        assert_eq!((sent.datagrams, sent.failed, sent.overload), (4, 2, 0));
        assert_eq!(receive(&to, 4).0.len(), 4);
    }

    #[test]
    fn buffers_are_as_large_as_wanted_or_the_refusal_is_told() {
        let socket = Udp::bind(None).unwrap();
        let granted = socket.buffer_bytes().unwrap().0 / 2;
        let refusals = socket.refusals();
        assert_eq!(granted < BUFFER_BYTES, refusals.iter().any(|line| line.contains("receive buffer")), "{refusals:?}");
    }
}
