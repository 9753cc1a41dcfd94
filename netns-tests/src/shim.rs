//! Bad weather between sites in user space: a box that hands datagrams on late, out of order, twice or not at all. (The
//! kernels that tests run on often have no netem.)

use crate::Namespace;
use crate::capture::set_receive_buffer;
use crate::server::{Content, RECEIVE_BUFFER_BYTES};
use anyhow::{Context, Result};
use std::collections::{BinaryHeap, HashMap};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const DATAGRAM_BYTES_MAX: usize = 65_535;
const STOP_CHECK: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub delay: Duration,
    /// Up to so much more, at random: reorders.
    pub jitter: Duration,
    /// Of a thousand datagrams.
    pub lost: u16,
    pub doubled: u16,
}

/// Stands where peers believe `target` to be; each caller is seen by the target at a port of its own.
pub struct Shim {
    /// What peers call.
    pub address: SocketAddr,
    weather: Arc<Mutex<Weather>>,
    stop: Arc<AtomicBool>,
}

struct Late {
    due: Instant,
    order: u64,
    bytes: Vec<u8>,
    socket: Arc<UdpSocket>,
    to: SocketAddr,
}

impl Shim {
    pub fn start(machine: &Namespace, address: SocketAddr, target: SocketAddr, weather: Weather) -> Result<Self> {
        let front = Arc::new(machine.run(|| UdpSocket::bind(address))?.with_context(|| format!("bind {address}"))?);
        front.set_read_timeout(Some(STOP_CHECK))?;
        set_receive_buffer(&*front, RECEIVE_BUFFER_BYTES)?;
        let shim = Self { address: front.local_addr()?, weather: Arc::new(Mutex::new(weather)), stop: Arc::default() };
        let (queue, late) = mpsc::channel();
        let (stop, weather, machine) = (shim.stop.clone(), shim.weather.clone(), machine.clone());
        thread::spawn(move || deliver(&late));
        thread::spawn(move || {
            let mut backs: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
            let mut fate = Fate::new(weather.clone(), queue.clone());
            receive(&front, &stop, |bytes, caller| {
                if let Some(back) = backs.get(&caller) {
                    fate.meet(bytes, back, target);
                    return;
                }
                let Ok(back) = machine.udp_any(target) else { return };
                let back = Arc::new(back);
                let mut fate_back = Fate::new(weather.clone(), queue.clone());
                let (front, stop, socket) = (front.clone(), stop.clone(), back.clone());
                thread::spawn(move || receive(&socket, &stop, |bytes, _| fate_back.meet(bytes, &front, caller)));
                fate.meet(bytes, &back, target);
                backs.insert(caller, back);
            });
        });
        Ok(shim)
    }

    pub fn set(&self, weather: Weather) {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner) = weather;
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Namespace {
    fn udp_any(&self, like: SocketAddr) -> Result<UdpSocket> {
        let any: SocketAddr = if like.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = self.run(|| UdpSocket::bind(any))??;
        socket.set_read_timeout(Some(STOP_CHECK))?;
        set_receive_buffer(&socket, RECEIVE_BUFFER_BYTES)?;
        Ok(socket)
    }
}

fn receive(socket: &UdpSocket, stop: &AtomicBool, mut each: impl FnMut(&[u8], SocketAddr)) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
            each(&buffer[..bytes], from);
        }
    }
}

/// Decides what becomes of each datagram; the same in every run.
struct Fate {
    weather: Arc<Mutex<Weather>>,
    queue: Sender<Late>,
    random: Content,
    order: u64,
}

impl Fate {
    fn new(weather: Arc<Mutex<Weather>>, queue: Sender<Late>) -> Self {
        Self { weather, queue, random: Content::new("weather"), order: 0 }
    }

    fn meet(&mut self, bytes: &[u8], socket: &Arc<UdpSocket>, to: SocketAddr) {
        let weather = *self.weather.lock().unwrap_or_else(PoisonError::into_inner);
        if self.draw() < weather.lost {
            return;
        }
        let copies = if self.draw() < weather.doubled { 2 } else { 1 };
        for _ in 0..copies {
            let jitter = weather.jitter * u32::from(self.draw()) / 1000;
            self.order += 1;
            let due = Instant::now() + weather.delay + jitter;
            let late = Late { due, order: self.order, bytes: bytes.to_vec(), socket: socket.clone(), to };
            let _ = self.queue.send(late);
        }
    }

    /// 0 to 999.
    fn draw(&mut self) -> u16 {
        let mut bytes = [0; 4];
        self.random.fill(&mut bytes);
        u16::try_from(u32::from_le_bytes(bytes) % 1000).unwrap_or(0)
    }
}

fn deliver(queue: &Receiver<Late>) {
    let mut waiting: BinaryHeap<Late> = BinaryHeap::new();
    loop {
        let until = waiting.peek().map_or(STOP_CHECK, |late| late.due.saturating_duration_since(Instant::now()));
        match queue.recv_timeout(until) {
            Ok(late) => waiting.push(late),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while waiting.peek().is_some_and(|late| late.due <= Instant::now()) {
            if let Some(late) = waiting.pop() {
                let _ = late.socket.send_to(&late.bytes, late.to);
            }
        }
    }
}

impl Ord for Late {
    /// The greatest is the one that is due first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Late {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Late {}
