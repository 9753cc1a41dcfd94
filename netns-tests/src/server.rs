//! Small servers and clients inside a machine of the lab, so that stories need few packages and know every byte.
//! What is served is a function of a seed: a client can tell that every byte is right.

use crate::Namespace;
use crate::capture::set_receive_buffer;
use anyhow::{Context, Result, ensure};
use socket2::SockRef;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// A client gives up on a silent server after this long.
const PATIENCE: Duration = Duration::from_secs(20);
/// A thousand and more small datagrams, so that none is lost for want of memory.
pub(crate) const RECEIVE_BUFFER_BYTES: i32 = 8 << 20;
const CHUNK_BYTES: usize = 64 * 1024;

/// Everyone who called a server, in order of their calls.
#[derive(Clone, Default)]
pub struct Callers(Arc<Mutex<Vec<SocketAddr>>>);

impl Callers {
    fn add(&self, caller: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(caller);
    }

    #[must_use]
    pub fn all(&self) -> Vec<SocketAddr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Their addresses, each once, sorted.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = self.all().iter().map(SocketAddr::ip).collect();
        addresses.sort();
        addresses.dedup();
        addresses
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A TCP server; a thread for each connection.
pub struct TcpServer {
    pub address: SocketAddr,
    pub callers: Callers,
    listener: Arc<TcpListener>,
    thread: Option<thread::JoinHandle<()>>,
}

impl TcpServer {
    pub fn start(
        machine: &Namespace,
        address: impl Into<SocketAddr>,
        serve: impl Fn(TcpStream, SocketAddr) + Send + Sync + 'static,
    ) -> Result<Self> {
        let address = address.into();
        let bound = machine.run(|| TcpListener::bind(address))?;
        let listener = Arc::new(bound.with_context(|| format!("bind tcp {address} on {}", machine.label()))?);
        let callers = Callers::default();
        let serve = Arc::new(serve);
        let thread = thread::spawn({
            let (listener, callers) = (listener.clone(), callers.clone());
            // Ends when `drop` shuts the listener down.
            move || {
                while let Ok((stream, caller)) = listener.accept() {
                    callers.add(caller);
                    let serve = serve.clone();
                    thread::spawn(move || serve(stream, caller));
                }
            }
        });
        Ok(Self { address: listener.local_addr()?, callers, listener, thread: Some(thread) })
    }

    /// Says back what it hears.
    pub fn echo(machine: &Namespace, address: impl Into<SocketAddr>) -> Result<Self> {
        Self::start(machine, address, |mut stream, _| {
            let Ok(mut reader) = stream.try_clone() else { return };
            let _ = std::io::copy(&mut reader, &mut stream);
        })
    }

    /// HTTP: `/` tells the page and who called, `/bytes/N` gives N bytes of [`Content`] with the page's name as its
    /// seed, and anything that is sent with POST is answered with its checksum.
    pub fn http(machine: &Namespace, address: impl Into<SocketAddr>, page: &str) -> Result<Self> {
        let page = page.to_owned();
        Self::start(machine, address, move |stream, caller| {
            let _ = answer_http(&stream, caller, &page);
            let _ = stream.shutdown(Shutdown::Write);
        })
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer_http(stream: &TcpStream, caller: SocketAddr, page: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut body_bytes = 0;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            body_bytes = length.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    let mut out = stream;
    let head = |bytes: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n");
    let path = request.split([' ', '?']).nth(1).unwrap_or("/");
    if request.starts_with("POST") {
        let mut body = reader.take(body_bytes);
        let sum = format!("{:016x}\n", sum_of(&mut body)?.1);
        return out.write_all((head(sum.len()) + &sum).as_bytes());
    }
    if let Some(bytes) = path.strip_prefix("/bytes/").and_then(|bytes| bytes.parse().ok()) {
        out.write_all(head(bytes).as_bytes())?;
        let mut content = Content::new(page);
        let mut left = bytes;
        let mut chunk = vec![0; CHUNK_BYTES];
        while left > 0 {
            let now = left.min(CHUNK_BYTES);
            content.fill(&mut chunk[..now]);
            out.write_all(&chunk[..now])?;
            left -= now;
        }
        return Ok(());
    }
    let text = format!("{page}\ncalled by {}\n", caller.ip());
    out.write_all((head(text.len()) + &text).as_bytes())
}

/// Bytes that depend on the seed alone, without end (xorshift64*).
pub struct Content {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Content {
    #[must_use]
    pub fn new(seed: &str) -> Self {
        Self { state: seed.bytes().fold(FNV_BASIS, fnv) | 1, word: [0; 8], used: 8 }
    }

    /// The next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            if self.used == self.word.len() {
                self.state ^= self.state >> 12;
                self.state ^= self.state << 25;
                self.state ^= self.state >> 27;
                self.word = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
                self.used = 0;
            }
            *byte = self.word[self.used];
            self.used += 1;
        }
    }

    /// The next `bytes` of them.
    #[must_use]
    pub fn take(mut self, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        self.fill(&mut buffer);
        buffer
    }
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
}

/// How many bytes there were, and FNV-1a over them.
pub fn sum_of(reader: &mut impl Read) -> std::io::Result<(usize, u64)> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut bytes, mut hash) = (0, FNV_BASIS);
    loop {
        let now = reader.read(&mut buffer)?;
        if now == 0 {
            return Ok((bytes, hash));
        }
        bytes += now;
        hash =
            buffer[..now].iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    }
}

/// Answers each datagram with itself.
pub struct UdpEcho {
    pub address: SocketAddr,
    pub callers: Callers,
    stop: Arc<AtomicBool>,
}

impl UdpEcho {
    pub fn start(machine: &Namespace, address: impl Into<SocketAddr>) -> Result<Self> {
        Self::with(machine, address, |_| Ok(()))
    }

    /// Answers without a checksum, which IPv4 allows.
    pub fn without_checksum(machine: &Namespace, address: impl Into<SocketAddr>) -> Result<Self> {
        Self::with(machine, address, no_checksum)
    }

    fn with(
        machine: &Namespace,
        address: impl Into<SocketAddr>,
        prepare: impl FnOnce(&UdpSocket) -> Result<()>,
    ) -> Result<Self> {
        let address = address.into();
        let bound = machine.run(|| UdpSocket::bind(address))?;
        let socket = bound.with_context(|| format!("bind udp {address} on {}", machine.label()))?;
        prepare(&socket)?;
        set_receive_buffer(&socket, RECEIVE_BUFFER_BYTES)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let echo = Self { address: socket.local_addr()?, callers: Callers::default(), stop: Arc::default() };
        let (callers, stop) = (echo.callers.clone(), echo.stop.clone());
        thread::spawn(move || {
            let mut buffer = vec![0; CHUNK_BYTES];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((bytes, caller)) = socket.recv_from(&mut buffer) {
                    callers.add(caller);
                    let _ = socket.send_to(&buffer[..bytes], caller);
                }
            }
        });
        Ok(echo)
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends this socket's datagrams with a UDP checksum of zero.
pub fn no_checksum(socket: &UdpSocket) -> Result<()> {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    let bytes = u32::try_from(size_of::<libc::c_int>())?;
    // SAFETY: the option value is a c_int that lives through the call, and its size is given.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, (&raw const on).cast(), bytes)
    };
    ensure!(result == 0, "SO_NO_CHECK: {}", std::io::Error::last_os_error());
    Ok(())
}

impl Namespace {
    pub fn tcp(&self, address: impl Into<SocketAddr>) -> Result<TcpStream> {
        let address = address.into();
        let stream = self.run(|| TcpStream::connect_timeout(&address, PATIENCE))?;
        let stream = stream.with_context(|| format!("tcp from {} to {address}", self.label()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// What curl, as a user would call it, prints for `http://ADDRESS/PATH`.
    pub fn curl(&self, address: IpAddr, path: &str) -> Result<String> {
        self.sh(&format!("curl -sS --fail -m 20 {}", url(address, path)))
    }

    /// A UDP socket that talks to `address` alone, from a port of its own.
    pub fn udp(&self, address: impl Into<SocketAddr>) -> Result<UdpSocket> {
        let address = address.into();
        let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket =
            self.run(|| UdpSocket::bind(any).and_then(|socket| socket.connect(address).map(|()| socket)))??;
        socket.set_read_timeout(Some(PATIENCE))?;
        set_receive_buffer(&socket, RECEIVE_BUFFER_BYTES)?;
        Ok(socket)
    }

    /// The body of `http://ADDRESS/PATH`.
    pub fn http(&self, address: impl Into<SocketAddr>, path: &str) -> Result<Vec<u8>> {
        let mut stream = self.tcp(address)?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let head_end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("an answer without a head")?;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..head_end]));
        Ok(answer.split_off(head_end + 4))
    }
}

#[must_use]
pub fn url(address: IpAddr, path: &str) -> String {
    match address {
        IpAddr::V4(address) => format!("http://{address}{path}"),
        IpAddr::V6(address) => format!("http://[{address}]{path}"),
    }
}
