//! TCP between the two agents of one tunnel: two small IP interfaces, one that owns 198.18.0.1 and is called, one that
//! owns 198.19.0.1 and calls. A packet's direction says which of them it is for.
//!
//! Packets and `now` come in, packets come out; it never does I/O, reads a clock or waits.

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{ConnectError, Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    HardwareAddress, IpAddress, IpCidr, IpListenEndpoint, IpProtocol, Ipv4Address, Ipv4Packet, TcpPacket, TcpSeqNumber,
};
use std::collections::{BTreeMap, VecDeque};
use std::task::Waker;

/// Of the control service, at 198.18.0.1.
pub const PORT: u16 = 7076;
/// What fits every tunnel: the least that IPv6 asks of a link (RFC 8200 section 5), so the MSS is 1240.
const MTU: usize = 1280;
/// What a peer can hold of this gateway's memory is connections × two buffers. One connection is what an agent needs,
/// another is for its successor after a restart that the first has not noticed.
pub const CONNECTIONS_MAX: usize = 4;
/// The largest window without scaling (RFC 7323). With scaling smoltcp 0.14 takes the window of its SYN for scaled: a peer
/// that then sends twice the buffer before it is acknowledged makes it panic.
const BUFFER_BYTES: usize = 0xffff;
/// Packets that one turn may send; the rest follows in the next.
const SEND_QUEUE_PACKETS: usize = 64;
/// A handshake that takes longer is given up.
const HALF_OPEN_SECONDS_MAX: u64 = 5;
/// A peer that restarted in silence is noticed by then: three keepalives went unanswered.
const SILENCE_SECONDS_MAX: u64 = 10;
const KEEPALIVE_SECONDS: u64 = 3;
/// How long a closed connection may take to deliver what it still holds.
const LINGER_SECONDS_MAX: u64 = 5;
/// No segment of a live connection is further from what was acknowledged last: windows have 64 KB, and a turn takes less
/// than that again. smoltcp 0.14 panics on one that is half the sequence space away from a full window.
const SEQUENCE_DISTANCE_MAX: u32 = 1 << 20;
/// Dynamic ports (RFC 6335).
const FIRST_CALLER_PORT: u16 = 49152;
/// 198.18.0.0/15: both agents are on one link.
const LINK_PREFIX_BITS: u8 = 15;

const SERVICE: Ipv4Address = Ipv4Address::new(198, 18, 0, 1);
const CALLER: Ipv4Address = Ipv4Address::new(198, 19, 0, 1);

/// What this agent is on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Called,
    Calling,
}

/// A connection of a [`Stack`], valid until it is released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    side: Side,
    handle: SocketHandle,
}

pub struct Stack {
    called: End,
    calling: End,
    random: u64,
}

struct End {
    side: Side,
    interface: Interface,
    device: Queues,
    sockets: SocketSet<'static>,
    connections: BTreeMap<SocketHandle, Connection>,
}

/// One socket and who is interested in it.
#[derive(Default)]
struct Connection {
    owner: Owner,
    /// The sequence number that the peer was last told to go on with.
    acknowledged: Option<u32>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Default)]
enum Owner {
    /// No call came yet.
    #[default]
    Listening,
    /// The caller's handshake is under way.
    HalfOpen,
    /// Someone reads and writes it.
    Taken,
    /// Nobody does any more; it ends at the deadline if not before.
    Released { until: Instant },
}

impl Stack {
    /// `seed` gives the caller's ports and the sequence numbers; a new one for each stack.
    pub fn new(seed: u64, now: Instant) -> Self {
        Self {
            called: End::new(Side::Called, seed, now),
            calling: End::new(Side::Calling, seed.rotate_left(32), now),
            random: seed | 1,
        }
    }

    /// A packet from the peer; what is not between the two agents is dropped.
    pub fn receive(&mut self, packet: Vec<u8>) {
        let Some(header) = packet.first_chunk::<20>() else { return };
        let end = match (&header[12..16], &header[16..20]) {
            (source, destination) if source == CALLER.octets() && destination == SERVICE.octets() => &mut self.called,
            (source, destination) if source == SERVICE.octets() && destination == CALLER.octets() => &mut self.calling,
            _ => return,
        };
        if end.is_plausible(&packet) {
            end.device.received.push_back(packet);
        }
    }

    /// Does all that is due. Returns the packets to send.
    pub fn turn(&mut self, now: Instant) -> Vec<Vec<u8>> {
        self.called.turn(now);
        self.calling.turn(now);
        let mut packets = std::mem::take(&mut self.called.device.sent);
        packets.append(&mut self.calling.device.sent);
        packets
    }

    /// When [`Self::turn`] has something to do next, if nothing comes in before.
    pub fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        [&mut self.called, &mut self.calling].into_iter().filter_map(|end| end.poll_at(now)).min()
    }

    /// A connection that the peer opened and nobody took yet.
    pub fn accept(&mut self) -> Option<Key> {
        let End { sockets, connections, .. } = &mut self.called;
        let (handle, connection) = connections.iter_mut().find(|(handle, connection)| {
            let state = sockets.get::<Socket<'_>>(**handle).state();
            matches!(connection.owner, Owner::HalfOpen) && is_established(state)
        })?;
        connection.owner = Owner::Taken;
        sockets.get_mut::<Socket<'_>>(*handle).set_timeout(Some(Duration::from_secs(SILENCE_SECONDS_MAX)));
        Some(Key { side: Side::Called, handle: *handle })
    }

    /// Calls the peer's control service. None while too many earlier calls are still ending.
    pub fn connect(&mut self) -> Option<Key> {
        if self.calling.connections.len() >= CONNECTIONS_MAX {
            return None;
        }
        let port = self.next_port();
        let end = &mut self.calling;
        let mut socket = new_socket();
        let called: Result<(), ConnectError> =
            socket.connect(end.interface.context(), (IpAddress::from(SERVICE), PORT), (IpAddress::from(CALLER), port));
        called.ok()?;
        let handle = end.sockets.add(socket);
        end.connections.insert(handle, Connection { owner: Owner::Taken, ..Connection::default() });
        Some(Key { side: Side::Calling, handle })
    }

    pub fn socket(&mut self, key: Key) -> &mut Socket<'static> {
        self.end(key.side).sockets.get_mut(key.handle)
    }

    /// Wakes the task when the connection has something to read or is over.
    pub fn wake_reader(&mut self, key: Key, waker: &Waker) {
        if let Some(connection) = self.end(key.side).connections.get_mut(&key.handle) {
            connection.reader = Some(waker.clone());
        }
    }

    /// Wakes the task when the connection has room to write, is established or is over.
    pub fn wake_writer(&mut self, key: Key, waker: &Waker) {
        if let Some(connection) = self.end(key.side).connections.get_mut(&key.handle) {
            connection.writer = Some(waker.clone());
        }
    }

    /// The handshake is done: from here on silence ends the connection, no longer the handshake's deadline.
    pub fn established(&mut self, key: Key) {
        self.socket(key).set_timeout(Some(Duration::from_secs(SILENCE_SECONDS_MAX)));
    }

    /// Nobody reads or writes the connection any more: what was written is still delivered, if that is soon.
    pub fn release(&mut self, key: Key, now: Instant) {
        let socket = self.socket(key);
        if is_established(socket.state()) {
            socket.close()
        } else {
            socket.abort()
        }
        if let Some(connection) = self.end(key.side).connections.get_mut(&key.handle) {
            let owner = Owner::Released { until: now + Duration::from_secs(LINGER_SECONDS_MAX) };
            *connection = Connection { owner, acknowledged: connection.acknowledged, ..Connection::default() };
        }
    }

    /// All connections end at once, without a word to the peer.
    pub fn abort(&mut self) {
        for end in [&mut self.called, &mut self.calling] {
            for (handle, connection) in &mut end.connections {
                end.sockets.get_mut::<Socket<'_>>(*handle).abort();
                connection.wake_all();
            }
        }
    }

    fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Called => &mut self.called,
            Side::Calling => &mut self.calling,
        }
    }

    /// A random one, so that an agent that restarted does not call from the port it had. (xorshift64, Marsaglia 2003)
    fn next_port(&mut self) -> u16 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        FIRST_CALLER_PORT | u16::try_from(self.random >> 50).unwrap_or(0)
    }
}

impl End {
    fn new(side: Side, seed: u64, now: Instant) -> Self {
        let own = match side {
            Side::Called => SERVICE,
            Side::Calling => CALLER,
        };
        let mut device = Queues::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, now);
        interface.update_ip_addrs(|addresses| {
            // The list has room for two and is empty.
            let _ = addresses.push(IpCidr::new(own.into(), LINK_PREFIX_BITS));
        });
        let mut end =
            Self { side, interface, device, sockets: SocketSet::new(Vec::new()), connections: BTreeMap::new() };
        end.listen();
        end
    }

    fn turn(&mut self, now: Instant) {
        self.end_overdue(now);
        loop {
            match self.interface.poll_ingress_single(now, &mut self.device, &mut self.sockets) {
                PollIngressSingleResult::None => break,
                PollIngressSingleResult::PacketProcessed => {}
                PollIngressSingleResult::SocketStateChanged => self.follow_handshakes(),
            }
        }
        while let PollResult::SocketStateChanged = self.interface.poll_egress(now, &mut self.device, &mut self.sockets)
        {
        }
        self.note_acknowledged();
        self.forget_closed();
        self.listen();
        self.wake();
    }

    /// Whether the packet can be a live connection's or open one. What this lets pass is for smoltcp to judge.
    fn is_plausible(&self, packet: &[u8]) -> bool {
        let Some(segment) = Segment::read(packet) else { return false };
        let Segment { from, to, sequence, acknowledgment, is_first, is_reset } = segment;
        if is_first && acknowledgment.is_none() && self.side == Side::Calling {
            // Two that call each other at once (simultaneous open) have no place here: only one side has the service.
            return false;
        }
        match self.connection(to, from).map(|(_, connection)| connection.acknowledged) {
            Some(Some(acknowledged)) => {
                let distance = sequence.wrapping_sub(acknowledged);
                distance.min(distance.wrapping_neg()) <= SEQUENCE_DISTANCE_MAX
            }
            // Nothing was agreed yet.
            Some(None) => is_first || is_reset,
            None => true,
        }
    }

    fn note_acknowledged(&mut self) {
        for packet in &self.device.sent {
            let Some(Segment { from, to, acknowledgment: Some(next), .. }) = Segment::read(packet) else { continue };
            let Some(handle) = self.connection(from, to).map(|(handle, _)| handle) else { continue };
            if let Some(connection) = self.connections.get_mut(&handle) {
                connection.acknowledged = Some(next);
            }
        }
    }

    fn connection(&self, own_port: u16, far_port: u16) -> Option<(SocketHandle, &Connection)> {
        let mut connections = self.connections.iter().map(|(handle, connection)| (*handle, connection));
        connections.find(|(handle, _)| {
            let socket = self.sockets.get::<Socket<'_>>(*handle);
            let ports = socket.local_endpoint().zip(socket.remote_endpoint()).map(|(own, far)| (own.port, far.port));
            ports == Some((own_port, far_port))
        })
    }

    fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let deadlines = self.connections.values().filter_map(|connection| match connection.owner {
            Owner::Released { until } => Some(until),
            Owner::Listening | Owner::HalfOpen | Owner::Taken => None,
        });
        deadlines.chain(self.interface.poll_at(now, &self.sockets)).min()
    }

    /// The one socket that listens took a call, or its call was taken back: another one listens.
    fn follow_handshakes(&mut self) {
        let mut called = false;
        for (handle, connection) in &mut self.connections {
            let state = self.sockets.get::<Socket<'_>>(*handle).state();
            if matches!(connection.owner, Owner::Listening) && state != State::Listen {
                connection.owner = Owner::HalfOpen;
                called = true;
            }
        }
        if called {
            self.listen();
        }
    }

    fn listen(&mut self) {
        let listens = self.connections.values().any(|connection| matches!(connection.owner, Owner::Listening));
        if self.side == Side::Calling || listens || self.connections.len() >= CONNECTIONS_MAX {
            return;
        }
        let mut socket = new_socket();
        let own = IpListenEndpoint { addr: Some(SERVICE.into()), port: PORT };
        if socket.listen(own).is_ok() {
            let handle = self.sockets.add(socket);
            self.connections.insert(handle, Connection::default());
        }
    }

    fn end_overdue(&mut self, now: Instant) {
        for (handle, connection) in &self.connections {
            if matches!(connection.owner, Owner::Released { until } if until <= now) {
                self.sockets.get_mut::<Socket<'_>>(*handle).abort();
            }
        }
    }

    /// Those that nobody reads any more, and half-open ones that came to nothing.
    fn forget_closed(&mut self) {
        let Self { sockets, connections, .. } = self;
        connections.retain(|handle, connection| {
            let socket = sockets.get::<Socket<'_>>(*handle);
            // A closed socket with a remote end has a reset to send yet.
            let closed = socket.state() == State::Closed && socket.remote_endpoint().is_none();
            let ended = match connection.owner {
                Owner::Listening | Owner::Taken => false,
                // After a reset the socket listens again, with what it remembers: a new one listens instead.
                Owner::HalfOpen => closed || socket.state() == State::Listen,
                Owner::Released { .. } => closed || socket.state() == State::TimeWait,
            };
            if ended {
                sockets.remove(*handle);
            }
            !ended
        });
    }

    fn wake(&mut self) {
        for (handle, connection) in &mut self.connections {
            let socket = self.sockets.get::<Socket<'_>>(*handle);
            if matches!(socket.state(), State::SynSent | State::SynReceived) {
                continue;
            }
            if socket.can_recv() || !socket.may_recv() {
                connection.reader.take().into_iter().for_each(Waker::wake);
            }
            if socket.can_send() || !socket.may_send() {
                connection.writer.take().into_iter().for_each(Waker::wake);
            }
        }
    }
}

impl Connection {
    fn wake_all(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

/// What is looked at before (and after) the stack does.
struct Segment {
    from: u16,
    to: u16,
    sequence: u32,
    acknowledgment: Option<u32>,
    /// SYN.
    is_first: bool,
    is_reset: bool,
}

impl Segment {
    fn read(packet: &[u8]) -> Option<Self> {
        let packet = Ipv4Packet::new_checked(packet).ok().filter(|packet| packet.next_header() == IpProtocol::Tcp)?;
        let segment = TcpPacket::new_checked(packet.payload()).ok()?;
        // As bits: a sequence number is a number of its own arithmetic there.
        let bits = |number: TcpSeqNumber| u32::from_ne_bytes(number.0.to_ne_bytes());
        Some(Self {
            from: segment.src_port(),
            to: segment.dst_port(),
            sequence: bits(segment.seq_number()),
            acknowledgment: segment.ack().then(|| bits(segment.ack_number())),
            is_first: segment.syn(),
            is_reset: segment.rst(),
        })
    }
}

fn is_established(state: State) -> bool {
    !matches!(state, State::Closed | State::Listen | State::SynSent | State::SynReceived)
}

fn new_socket() -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; BUFFER_BYTES]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_timeout(Some(Duration::from_secs(HALF_OPEN_SECONDS_MAX)));
    socket.set_keep_alive(Some(Duration::from_secs(KEEPALIVE_SECONDS)));
    // Small messages, each waited for.
    socket.set_nagle_enabled(false);
    socket
}

/// The interface's wire: packets received and not yet read, packets sent and not yet taken.
#[derive(Default)]
struct Queues {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);

struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl phy::Device for Queues {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sent<'_>)> {
        if self.sent.len() >= SEND_QUEUE_PACKETS {
            return None;
        }
        Some((Received(self.received.pop_front()?), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        (self.sent.len() < SEND_QUEUE_PACKETS).then_some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, write: F) -> R {
        let mut packet = vec![0; bytes];
        let result = write(&mut packet);
        self.0.push(packet);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// splitmix64
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed ^ (mixed >> 27)
        }

        fn below(&mut self, limit: usize) -> usize {
            usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
        }
    }

    fn exchange(one: &mut Stack, other: &mut Stack, now: Instant) {
        loop {
            let (from_one, from_other) = (one.turn(now), other.turn(now));
            if from_one.is_empty() && from_other.is_empty() {
                return;
            }
            from_one.into_iter().for_each(|packet| other.receive(packet));
            from_other.into_iter().for_each(|packet| one.receive(packet));
        }
    }

    fn established(one: &mut Stack, other: &mut Stack, now: Instant) -> (Key, Key) {
        let calling = one.connect().unwrap();
        exchange(one, other, now);
        (calling, other.accept().unwrap())
    }

    fn mend(packet: &mut [u8]) {
        let Ok(mut ip) = Ipv4Packet::new_checked(packet) else { return };
        ip.fill_checksum();
        if let Ok(mut tcp) = TcpPacket::new_checked(ip.payload_mut()) {
            tcp.fill_checksum(&CALLER.into(), &SERVICE.into());
        }
    }

    /// A peer's first packet, from a port of its choice.
    fn call_from(port: u16) -> Vec<u8> {
        let mut stack = Stack::new(3, Instant::ZERO);
        stack.connect().unwrap();
        let mut packet = stack.turn(Instant::ZERO).remove(0);
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        mend(&mut packet);
        packet
    }

    #[test]
    fn both_agents_call_and_are_called_on_one_tunnel() {
        let (mut a, mut b) = (Stack::new(1, Instant::ZERO), Stack::new(2, Instant::ZERO));
        let (at_a, at_b) = established(&mut a, &mut b, Instant::ZERO);
        let (back_at_b, back_at_a) = established(&mut b, &mut a, Instant::ZERO);
        a.socket(at_a).send_slice(b"to b").unwrap();
        b.socket(back_at_b).send_slice(b"to a").unwrap();
        exchange(&mut a, &mut b, Instant::ZERO);
        let mut read = [0; 4];
        b.socket(at_b).recv_slice(&mut read).unwrap();
        assert_eq!(&read, b"to b");
        a.socket(back_at_a).recv_slice(&mut read).unwrap();
        assert_eq!(&read, b"to a");
    }

    #[test]
    fn half_open_calls_are_bounded_and_given_up() {
        let mut stack = Stack::new(1, Instant::ZERO);
        for port in 1000..2000 {
            stack.receive(call_from(port));
            stack.turn(Instant::ZERO);
            assert!(stack.called.connections.len() <= CONNECTIONS_MAX);
        }
        assert!(stack.accept().is_none());
        let later = Instant::ZERO + Duration::from_secs(HALF_OPEN_SECONDS_MAX + 1);
        stack.turn(later);
        stack.turn(later);
        assert_eq!(stack.called.connections.len(), 1, "only one that listens is left");
        established(&mut Stack::new(2, later), &mut stack, later);
    }

    #[test]
    fn a_call_taken_back_frees_its_place() {
        let mut stack = Stack::new(1, Instant::ZERO);
        for port in 1000..1100 {
            let mut packet = call_from(port);
            stack.receive(packet.clone());
            stack.turn(Instant::ZERO);
            // The reset of what it called: the next sequence number, flag RST.
            let sequence = u32::from_be_bytes(packet[24..28].try_into().unwrap()).wrapping_add(1);
            packet[24..28].copy_from_slice(&sequence.to_be_bytes());
            packet[33] = 0x04;
            mend(&mut packet);
            stack.receive(packet);
            stack.turn(Instant::ZERO);
            assert_eq!(stack.called.connections.len(), 1, "port {port}");
        }
    }

    #[test]
    fn packets_that_are_not_between_the_agents_are_dropped() {
        let mut stack = Stack::new(1, Instant::ZERO);
        for (source, destination) in
            [([10, 0, 0, 1], [198, 18, 0, 1]), ([198, 18, 0, 1], [198, 18, 0, 1]), ([198, 19, 0, 1], [198, 18, 0, 2])]
        {
            let mut packet = call_from(1000);
            packet[12..16].copy_from_slice(&source);
            packet[16..20].copy_from_slice(&destination);
            mend(&mut packet);
            stack.receive(packet);
        }
        stack.receive(Vec::new());
        stack.receive(vec![0x45; 19]);
        assert!(stack.turn(Instant::ZERO).is_empty());
    }

    #[test]
    fn closed_connections_leave_nothing_behind() {
        let (mut a, mut b) = (Stack::new(1, Instant::ZERO), Stack::new(2, Instant::ZERO));
        for second in 0..50 {
            let now = Instant::from_secs(second);
            let (at_a, at_b) = established(&mut a, &mut b, now);
            a.release(at_a, now);
            exchange(&mut a, &mut b, now);
            b.release(at_b, now);
            exchange(&mut a, &mut b, now);
            assert_eq!((a.calling.connections.len(), b.called.connections.len()), (0, 1));
        }
    }

    #[test]
    fn a_connection_nobody_answers_ends() {
        let (mut a, mut b) = (Stack::new(1, Instant::ZERO), Stack::new(2, Instant::ZERO));
        let (at_a, at_b) = established(&mut a, &mut b, Instant::ZERO);
        for second in 0..60 {
            // The keepalives of an idle connection hold it.
            exchange(&mut a, &mut b, Instant::from_secs(second));
        }
        assert_eq!(a.socket(at_a).state(), State::Established);
        for second in 60..75 {
            a.turn(Instant::from_secs(second));
        }
        assert_eq!(a.socket(at_a).state(), State::Closed);
        // To the other one, the first's successor is a stranger: it says so when it hears the next keepalive.
        let mut successor = Stack::new(5, Instant::from_secs(61));
        exchange(&mut b, &mut successor, Instant::from_secs(64));
        assert_eq!(b.socket(at_b).state(), State::Closed);
    }

    /// A peer that writes its packets itself: it called, was answered, and goes on with what a test wants.
    struct Hostile {
        packet: Vec<u8>,
        sequence: u32,
    }

    impl Hostile {
        fn call(stack: &mut Stack) -> Self {
            let mut packet = call_from(1000);
            stack.receive(packet.clone());
            let answer = stack.turn(Instant::ZERO).remove(0);
            let next = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap()).wrapping_add(1);
            let (sequence, acknowledged) = (next(&packet[24..28]), next(&answer[24..28]));
            packet[28..32].copy_from_slice(&acknowledged.to_be_bytes());
            Self { packet, sequence }
        }

        fn segment(&mut self, sequence: u32, flags: u8, bytes: usize) -> Vec<u8> {
            let packet = &mut self.packet;
            packet.truncate(40);
            packet.resize(40 + bytes, 0x5a);
            let length = u16::try_from(packet.len()).unwrap();
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet[24..28].copy_from_slice(&sequence.to_be_bytes());
            // No options.
            packet[32..34].copy_from_slice(&[0x50, flags]);
            mend(packet);
            packet.clone()
        }

        fn send(&mut self, stack: &mut Stack, flags: u8, bytes: u16) {
            stack.receive(self.segment(self.sequence, flags, bytes.into()));
            self.sequence = self.sequence.wrapping_add(bytes.into());
        }
    }

    const ACK: u8 = 0x10;
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;

    #[test]
    fn a_peer_that_sends_more_than_the_window_loses_the_rest() {
        let mut stack = Stack::new(1, Instant::ZERO);
        let mut peer = Hostile::call(&mut stack);
        (0..100).for_each(|_| peer.send(&mut stack, ACK, 1200));
        stack.turn(Instant::ZERO);
        let key = stack.accept().unwrap();
        assert_eq!(stack.socket(key).recv_queue(), BUFFER_BYTES);
    }

    #[test]
    fn a_segment_half_the_sequence_space_away_from_a_full_window_is_dropped() {
        for distance in [0x7fff_fffe, 0x7fff_ffff, 0x8000_0000, 0x8000_0001] {
            for (flags, bytes) in [(ACK, 0), (ACK, 1), (ACK, 1200), (ACK | SYN, 0), (ACK | SYN, 1200)] {
                let mut stack = Stack::new(1, Instant::ZERO);
                let mut peer = Hostile::call(&mut stack);
                (0..64).for_each(|_| peer.send(&mut stack, ACK, 1023));
                peer.send(&mut stack, ACK, 63);
                peer.send(&mut stack, ACK | FIN, 0);
                // The FIN has a number too, which is now beyond the window.
                let next = peer.sequence.wrapping_add(1);
                stack.receive(peer.segment(next.wrapping_add(distance), flags, bytes));
                stack.turn(Instant::ZERO);
                let key = stack.accept().unwrap();
                assert_eq!(stack.socket(key).recv_queue(), BUFFER_BYTES);
            }
        }
    }

    #[test]
    fn a_peer_cannot_answer_a_call_with_a_call() {
        let mut stack = Stack::new(1, Instant::ZERO);
        let key = stack.connect().unwrap();
        let mut packet = stack.turn(Instant::ZERO).remove(0);
        // The same call with the ends swapped.
        let (source, destination, ports) = (packet[12..16].to_vec(), packet[16..20].to_vec(), packet[20..24].to_vec());
        packet[12..16].copy_from_slice(&destination);
        packet[16..20].copy_from_slice(&source);
        packet[20..22].copy_from_slice(&ports[2..]);
        packet[22..24].copy_from_slice(&ports[..2]);
        assert_eq!(packet[33], SYN);
        mend(&mut packet);
        stack.receive(packet);
        assert!(stack.turn(Instant::ZERO).is_empty());
        assert_eq!(stack.socket(key).state(), State::SynSent);
    }

    /// Whatever a peer sends in place of TCP: no panic, no unbounded memory, no endless turn.
    #[test]
    fn no_packet_of_a_peer_does_harm() {
        for round in 0..300 {
            let mut random = Random(round);
            let mut now = Instant::from_secs(1);
            let (mut good, mut target) = (Stack::new(round, now), Stack::new(round + 1000, now));
            let mut held = Vec::new();
            let mut seen: Vec<Vec<u8>> = Vec::new();
            for _ in 0..400 {
                now += Duration::from_millis(random.next() % 700);
                act(&mut good, &mut target, &mut held, &mut random, now);
                let (from_good, from_target) = (good.turn(now), target.turn(now));
                assert!(from_target.len() <= 2 * SEND_QUEUE_PACKETS);
                from_target.into_iter().for_each(|packet| good.receive(packet));
                for packet in from_good {
                    seen.push(packet.clone());
                    if random.below(8) > 0 {
                        target.receive(packet);
                    }
                }
                if !seen.is_empty() {
                    let mut packet = seen[random.below(seen.len())].clone();
                    spoil(&mut packet, &mut random);
                    target.receive(packet);
                }
                assert!(target.called.connections.len() <= CONNECTIONS_MAX);
            }
        }
    }

    /// Something an agent could do, on either side.
    fn act(good: &mut Stack, target: &mut Stack, held: &mut Vec<Key>, random: &mut Random, now: Instant) {
        let mut buffer = [0; 3000];
        match random.below(8) {
            0 => drop(good.connect()),
            1 => held.extend(target.connect()),
            2 => held.extend(target.accept()),
            3 if !held.is_empty() => target.release(held.swap_remove(random.below(held.len())), now),
            4 if !held.is_empty() => {
                let key = held[random.below(held.len())];
                let bytes = random.below(buffer.len());
                let _ = target.socket(key).send_slice(&buffer[..bytes]);
            }
            5 if !held.is_empty() => {
                let key = held[random.below(held.len())];
                let _ = target.socket(key).recv_slice(&mut buffer);
            }
            6 if !held.is_empty() => target.socket(held[random.below(held.len())]).close(),
            _ => {
                let keys: Vec<SocketHandle> = good.calling.connections.keys().copied().collect();
                for handle in keys {
                    let _ = good.calling.sockets.get_mut::<Socket<'_>>(handle).send_slice(&buffer[..700]);
                }
            }
        }
    }

    fn spoil(packet: &mut Vec<u8>, random: &mut Random) {
        for _ in 0..=random.below(3) {
            let at = random.below(packet.len());
            match random.below(9) {
                // Flags, window and header length are where the state machine looks.
                0 if packet.len() > 33 => packet[33] = u8::try_from(random.below(256)).unwrap(),
                1 if packet.len() > 36 => packet[34 + random.below(2)] = u8::try_from(random.below(256)).unwrap(),
                8 if packet.len() > 32 => packet[32] = u8::try_from(random.below(256)).unwrap(),
                // Sequence and acknowledgement numbers, near, far and furthest.
                2 if packet.len() > 32 => packet[24 + 4 * random.below(2)] ^= 0x80,
                3 if packet.len() > 32 => packet[24 + random.below(8)] ^= 1 << random.below(8),
                4 if packet.len() > 32 => packet[27 + 4 * random.below(2)] = u8::try_from(random.below(256)).unwrap(),
                5 => packet.truncate(at.max(1)),
                6 => packet.extend(std::iter::repeat_n(0x5a, random.below(600))),
                _ => packet[at] = u8::try_from(random.below(256)).unwrap(),
            }
        }
        let length = u16::try_from(packet.len()).unwrap();
        if random.below(4) > 0 && packet.len() > 20 {
            packet[2..4].copy_from_slice(&length.to_be_bytes());
        }
        mend(packet);
    }
}
