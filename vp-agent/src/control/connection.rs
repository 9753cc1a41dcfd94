//! The stack's connections as byte streams, and the loop that moves packets between the stack and the tunnel.

use super::Link;
use super::stack::{Key, Stack};
use smoltcp::socket::tcp::{RecvError, State};
use smoltcp::time::Instant as StackInstant;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tonic::transport::server::Connected;
use vp::addr::PeerId;

/// Packets taken from the queue in one turn.
const BATCH_PACKETS: usize = 64;
/// The least pause after a turn that had nothing to send: a stack that always finds itself due must not spin.
const IDLE_TURN: Duration = Duration::from_millis(1);

/// The stack of one peer, shared by its connections. Ends all of them when it is dropped.
pub struct Wire {
    shared: Arc<Shared>,
}

struct Shared {
    stack: Mutex<Stack>,
    start: Instant,
    /// A connection was read, written or closed: there is something to send.
    work: Notify,
}

impl Wire {
    pub fn new(seed: u64) -> Self {
        let start = Instant::now();
        let stack = Mutex::new(Stack::new(seed, StackInstant::ZERO));
        Self { shared: Arc::new(Shared { stack, start, work: Notify::new() }) }
    }

    /// Calls the peer's control service; done when it has answered.
    pub async fn connect(&self) -> io::Result<Connection> {
        let key = self.shared.lock().connect().ok_or(io::ErrorKind::ResourceBusy)?;
        let mut connection = Connection { shared: self.shared.clone(), key };
        self.shared.work.notify_one();
        poll_fn(|context| connection.poll_established(context)).await?;
        Ok(connection)
    }

    /// Moves packets until no more can come. What the peer opens goes to `accepted`; that it does is a reason to `hurry`
    /// with calling it, for it may have restarted.
    pub async fn run(
        &self,
        peer: PeerId,
        link: &impl Link,
        mut packets: mpsc::Receiver<Vec<u8>>,
        accepted: mpsc::Sender<Connection>,
        hurry: &Notify,
    ) {
        let mut batch = Vec::with_capacity(BATCH_PACKETS);
        loop {
            let Turn { to_send, opened, due } = self.turn(&mut batch);
            // A connection that finds no room is dropped, and thereby closed.
            for connection in opened {
                hurry.notify_one();
                let _ = accepted.try_send(connection);
            }
            let soonest = if to_send.is_empty() { Instant::now() + IDLE_TURN } else { Instant::now() };
            let due = due.map(|due| due.max(soonest));
            if !to_send.is_empty() {
                link.send(peer, to_send).await;
            }
            tokio::select! {
                taken = packets.recv_many(&mut batch, BATCH_PACKETS) => if taken == 0 { return },
                () = self.shared.work.notified() => {}
                () = sleep_until_some(due) => {}
            }
        }
    }

    fn turn(&self, batch: &mut Vec<Vec<u8>>) -> Turn {
        let now = self.shared.now();
        let mut stack = self.shared.lock();
        batch.drain(..).for_each(|packet| stack.receive(packet));
        let to_send = stack.turn(now);
        let opened = std::iter::from_fn(|| stack.accept());
        let opened = opened.map(|key| Connection { shared: self.shared.clone(), key }).collect();
        let due = stack.poll_at(now).map(|at| self.shared.instant(at));
        Turn { to_send, opened, due }
    }
}

/// What came of one look at the stack.
struct Turn {
    to_send: Vec<Vec<u8>>,
    opened: Vec<Connection>,
    due: Option<Instant>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.lock().abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Stack> {
        // Nothing in the stack is left half done by a panic that matters to another connection.
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> StackInstant {
        let micros = self.start.elapsed().as_micros();
        StackInstant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    fn instant(&self, at: StackInstant) -> Instant {
        self.start + Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0))
    }
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// One TCP connection with the peer's agent.
pub struct Connection {
    shared: Arc<Shared>,
    key: Key,
}

impl Connection {
    fn poll_established(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stack = self.shared.lock();
        match stack.socket(self.key).state() {
            State::SynSent | State::SynReceived => {
                stack.wake_writer(self.key, context.waker());
                Poll::Pending
            }
            State::Closed => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            State::Listen
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => {
                stack.established(self.key);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut stack = self.shared.lock();
        let socket = stack.socket(self.key);
        if socket.may_recv() && !socket.can_recv() {
            stack.wake_reader(self.key, context.waker());
            return Poll::Pending;
        }
        match socket.recv_slice(into.initialize_unfilled()) {
            Ok(bytes) => {
                into.advance(bytes);
                // The peer may be waiting for the window to open.
                self.shared.work.notify_one();
                Poll::Ready(Ok(()))
            }
            Err(RecvError::Finished) => Poll::Ready(Ok(())),
            Err(RecvError::InvalidState) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut stack = self.shared.lock();
        let socket = stack.socket(self.key);
        if socket.may_send() && !socket.can_send() {
            stack.wake_writer(self.key, context.waker());
            return Poll::Pending;
        }
        match socket.send_slice(bytes) {
            Ok(written) => {
                self.shared.work.notify_one();
                Poll::Ready(Ok(written))
            }
            Err(_) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// The stack sends by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.lock().socket(self.key).close();
        self.shared.work.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let now = self.shared.now();
        self.shared.lock().release(self.key, now);
        self.shared.work.notify_one();
    }
}

/// Who is at the other end is known from the tunnel: the service has it.
impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
