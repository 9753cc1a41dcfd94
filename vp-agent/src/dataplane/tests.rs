//! Against the real kernel, each test in a network namespace of its own that ends with it.

use super::deliver::Deliverer;
use super::*;
use crate::sys::{TunOffload, enter_new_network_namespace};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::Command as Program;
use std::sync::Mutex;
use std::time::Duration;
use vp::addr::{Family, Holder, Name, PeerId, Pool};
use vp::node::Settings;
use vp::packet::{Offload, Packet};
use vp::tunnel::PEER_BYTE;
use x25519_dalek::StaticSecret;

const LONG: Duration = Duration::from_secs(10);

fn sh(command: &str) {
    let output = Program::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn settings() -> Settings {
    Settings {
        site: Name::new("factory").unwrap(),
        pool: Pool::new(vec!["10.0.1.0/24".parse().unwrap()]).unwrap(),
        inner_mtu: 1420,
        flows_max: 1000,
        second_cipher: true,
        peers: Vec::new(),
        clients: Vec::new(),
        exposures: Vec::new(),
        mappings: Vec::new(),
        hub: None,
    }
}

/// A datagram of the plc to this address.
fn datagram(to: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2];
    packet.extend(to.octets());
    packet.extend([0x9c, 0x40, 0, 53, 0, 8, 0, 0]);
    let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!folded as u16).to_be_bytes());
    packet
}

#[tokio::test]
async fn a_flood_of_denials_leaves_room_to_tell_of_flows() {
    let (handle, events, thread) = start(&Book::default(), 1);
    let denials = |node: &mut Node, output: &mut Output, now| {
        for _ in 0..EVENTS_MAX / 4 {
            node.handle_packet(&mut datagram(Ipv4Addr::new(10, 0, 1, 77)), Offload::default(), output, now);
            output.clear();
        }
        node.drops().of(vp::node::Reason::NotMapped)
    };
    let mut denied = 0;
    for _ in 0..6 {
        denied = handle.call(denials).await.unwrap();
    }
    // By then the last events are under way too.
    handle.call(|_, _, _| ()).await.unwrap();
    assert_eq!(denied, EVENTS_MAX as u64 / 4 * 6);
    assert!(events.len() <= EVENTS_MAX / 4 && events.len() > EVENTS_MAX / 8, "{}", events.len());
    let lost = handle.counters().events_lost.load(Ordering::Relaxed);
    assert!(lost + events.len() as u64 + 256 >= denied, "{lost} of {denied} lost");
    handle.stop();
    drop(events);
    thread.join().unwrap();
}

/// Refuses as often as it is told, then keeps.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    refusals: u32,
    kept: Vec<(Grant, bool)>,
}

impl Journal for Book {
    fn append(&mut self, grant: &Grant, granted: bool) -> io::Result<()> {
        let mut book = self.0.lock().unwrap();
        if book.refusals > 0 {
            book.refusals -= 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        book.kept.push((grant.clone(), granted));
        Ok(())
    }
}

fn start(book: &Book, workers: usize) -> (Handle, async_mpsc::Receiver<Event>, JoinHandle<()>) {
    enter_new_network_namespace();
    let (key, now) = (StaticSecret::from([7; 32]), Instant::now());
    let node = Node::new(settings(), Vec::new(), key, 1, now).unwrap();
    let tuns = Tun::open_queues("vp-test", workers).unwrap();
    let udps = Udp::bind_group(None, workers, PEER_BYTE).unwrap();
    let queues = tuns.into_iter().zip(udps).map(|(tun, udp)| Queue { tun, udp }).collect();
    super::start(DataPlane { node, queues, journal: Box::new(book.clone()) }).unwrap()
}

fn block_on<F: Future>(test: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

#[test]
fn closures_run_on_the_first_data_thread_until_all_are_stopped() {
    for workers in [1, 2, 5] {
        let (handle, mut events, thread) = start(&Book::default(), workers);
        block_on(async {
            let name = |_: &mut Node, _: &mut Output, _| std::thread::current().name().map(str::to_owned);
            assert_eq!(handle.call(name).await.unwrap().as_deref(), Some("vp-data-0"));
            assert_eq!(handle.worker_times().len(), workers);
            assert!(handle.worker_times()[0] > Duration::ZERO);
            handle.stop();
            thread.join().unwrap();
            assert!(handle.call(|_, _, _| ()).await.is_err());
            let gateway = Holder::Gateway { family: Family::V4 };
            let granted = |event: Event| matches!(event, Event::Granted(grant) if grant.holder == gateway);
            assert!(events.recv().await.is_some_and(granted));
            assert!(events.recv().await.is_none());
        });
    }
}

#[test]
fn a_lease_that_could_not_be_kept_is_tried_again_until_it_is() {
    let book = Book::default();
    book.0.lock().unwrap().refusals = 1;
    let (handle, _events, thread) = start(&book, 1);
    let deadline = Instant::now() + LONG;
    while book.0.lock().unwrap().kept.is_empty() {
        assert!(Instant::now() < deadline);
        block_on(handle.call(|_, _, _| ())).unwrap();
    }
    assert_eq!(handle.counters().journal_errors.load(Ordering::Relaxed), 1);
    handle.stop();
    thread.join().unwrap();
    assert_eq!(book.0.lock().unwrap().kept.len(), 1);
}

#[test]
fn the_end_of_the_interface_is_the_end_of_the_data_threads() {
    for workers in [1, 3] {
        let (handle, mut events, thread) = start(&Book::default(), workers);
        sh("ip link set vp-test up; ip link del vp-test");
        thread.join().unwrap();
        block_on(async {
            while events.recv().await.is_some() {}
            assert!(handle.call(|_, _, _| ()).await.is_err());
        });
    }
}

/// One of a run of packets from 10.0.1.9 to 10.0.2.9, with the `number` as its payload and a right checksum.
fn packet(is_tcp: bool, number: u32) -> Vec<u8> {
    const PAYLOAD: usize = 100;
    let l4_bytes = if is_tcp { 20 } else { 8 };
    let mut packet = vec![0; 20 + l4_bytes + PAYLOAD];
    let length = packet.len() as u16;
    packet[..2].copy_from_slice(&[0x45, 0]);
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[6..10].copy_from_slice(&[0x40, 0, 64, if is_tcp { 6 } else { 17 }]);
    packet[12..16].copy_from_slice(&Ipv4Addr::new(10, 0, 1, 9).octets());
    packet[16..20].copy_from_slice(&Ipv4Addr::new(10, 0, 2, 9).octets());
    packet[20..24].copy_from_slice(&[0, 7, 0, 7]);
    if is_tcp {
        packet[24..28].copy_from_slice(&(number * PAYLOAD as u32).to_be_bytes());
        packet[32..36].copy_from_slice(&[0x50, 0x10, 1, 0]);
    } else {
        packet[24..26].copy_from_slice(&(8 + PAYLOAD as u16).to_be_bytes());
    }
    packet[20 + l4_bytes..][..4].copy_from_slice(&number.to_be_bytes());
    let sum = |bytes: &[u8]| bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
    let folded = |mut sum: u32| {
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    };
    let header = folded(sum(&packet[..20]));
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    let layer4 = folded(sum(&packet[12..]) + u32::from(packet[9]) + u32::from(length - 20));
    let at = if is_tcp { 36 } else { 26 };
    packet[at..at + 2].copy_from_slice(&layer4.to_be_bytes());
    packet
}

#[test]
fn joined_packets_reach_the_site_whole_whatever_the_kernels_driver_takes() {
    const COUNT: u32 = 20;
    for offload in [TunOffload::TcpAndUdp, TunOffload::Tcp, TunOffload::Header, TunOffload::None] {
        enter_new_network_namespace();
        let tun = Tun::open_with("vp-test", offload).unwrap();
        // Everything that is forwarded here comes out as a host without any offload would see it.
        let host = Tun::open_with("host", TunOffload::None).unwrap();
        sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
            for dev in vp-test host; do ip link set $dev up; done
            ip route add 10.0.1.0/24 dev vp-test; ip route add 10.0.2.0/24 dev host");
        for is_tcp in [true, false] {
            let mut output = Output::new(1, 1 << 16);
            for number in 0..COUNT {
                let packet = packet(is_tcp, number);
                output.joiner.space()[..packet.len()].copy_from_slice(&packet);
                output.joiner.push(PeerId(0), packet.len()).unwrap();
            }
            assert_eq!(output.joiner.len(), 1);
            assert_eq!(output.joiner.group(0).packets, COUNT);
            output.joiner.deliver(0);
            assert_eq!(Deliverer::default().deliver(&tun, &output), 0);
            let (mut seen, mut read, deadline) = (BTreeSet::new(), [0; 2048], Instant::now() + LONG);
            while seen.len() < COUNT as usize {
                assert!(Instant::now() < deadline, "{offload:?}, TCP {is_tcp}: {seen:?}");
                let Ok(length) = host.read(&mut read) else { continue };
                let Ok(packet) = Packet::parse(&mut read[..length], Offload::default()) else { continue };
                if packet.head.tuple.destination != Ipv4Addr::new(10, 0, 2, 9) {
                    continue;
                }
                assert!(packet.checksum_is_right() && packet.payload().len() == 100);
                seen.insert(packet.payload()[..4].to_vec());
            }
        }
    }
}
