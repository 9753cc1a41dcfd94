//! A port scan: which TCP ports of an address answer.

use crate::Namespace;
use anyhow::{Result, ensure};
use socket2::{Domain, Socket, Type};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Open sockets at a time; well under the usual limit of 1024 files a process.
const AT_ONCE: usize = 400;
/// How long the ports of one round have to answer. A refusal by the gateway comes at once.
const PATIENCE: Duration = Duration::from_millis(400);

impl Namespace {
    /// Those of `ports` where a connection is accepted.
    pub fn scan(&self, address: IpAddr, ports: impl IntoIterator<Item = u16> + Send) -> Result<Vec<u16>> {
        self.run(|| {
            let ports: Vec<u16> = ports.into_iter().collect();
            let mut open = Vec::new();
            for round in ports.chunks(AT_ONCE) {
                open.extend(scan_round(address, round)?);
            }
            Ok(open)
        })?
    }
}

fn scan_round(address: IpAddr, ports: &[u16]) -> Result<Vec<u16>> {
    let mut waiting = Vec::new();
    for port in ports {
        let to = SocketAddr::from((address, *port));
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // The outcome shows below; what is refused at once has nothing to show.
        let _ = socket.connect(&to.into());
        waiting.push((*port, socket));
    }
    let deadline = Instant::now() + PATIENCE;
    let mut open = Vec::new();
    while !waiting.is_empty() && Instant::now() < deadline {
        let event =
            |(_, socket): &(u16, Socket)| libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        let mut events: Vec<libc::pollfd> = waiting.iter().map(event).collect();
        let left = i32::try_from(deadline.saturating_duration_since(Instant::now()).as_millis())?;
        // SAFETY: the array and its length belong together, and the descriptors live in `waiting`.
        let ready = unsafe { libc::poll(events.as_mut_ptr(), events.len().try_into()?, left) };
        ensure!(ready >= 0, "poll: {}", std::io::Error::last_os_error());
        let mut events = events.iter();
        waiting.retain(|(port, socket)| {
            let done = events.next().is_some_and(|event| event.revents != 0);
            if done && socket.take_error().is_ok_and(|error| error.is_none()) {
                open.push(*port);
            }
            !done
        });
    }
    Ok(open)
}
