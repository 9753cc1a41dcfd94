//! Names that are not ours, asked of the name servers that the operator names: each in turn, as the client asked and with
//! an id and a port of chance (RFC 5452). Knows nothing of the node, and goes on when all of ours is away. Keeps nothing:
//! the servers do.

use super::query::Transport;
use rand_core::{OsRng, RngCore};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Each has a socket of its own.
const IN_FLIGHT_MAX: usize = 256;
/// A client asks again after 5 s (resolv.conf(5)); until then two servers have been tried twice.
const PATIENCE: Duration = Duration::from_millis(1200);
const ROUNDS: usize = 2;
/// The largest answer by UDP that anyone asks for.
const DATAGRAM_BYTES_MAX: usize = 4096;
/// Of a message, before its question.
const HEADER_BYTES: usize = 12;

pub struct Forwarder {
    in_flight: Semaphore,
}

impl Default for Forwarder {
    fn default() -> Self {
        Self { in_flight: Semaphore::new(IN_FLIGHT_MAX) }
    }
}

impl Forwarder {
    /// The answer to a query, byte for byte but for its id. None: too many are on their way, or nobody answers.
    pub async fn ask(&self, servers: &[SocketAddr], query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let _permit = self.in_flight.try_acquire().ok()?;
        let question = question(query)?;
        for server in (0..ROUNDS).flat_map(|_| servers) {
            let mut sent = query.to_vec();
            let id = (OsRng.next_u32() as u16).to_be_bytes();
            sent[..2].copy_from_slice(&id);
            let answer = match transport {
                Transport::Udp => timeout(PATIENCE, by_udp(*server, &sent, question)).await,
                Transport::Tcp => timeout(PATIENCE, by_tcp(*server, &sent, question)).await,
            };
            if let Ok(Ok(mut answer)) = answer {
                answer[..2].copy_from_slice(&query[..2]);
                return Some(answer);
            }
        }
        None
    }
}

async fn by_udp(server: SocketAddr, query: &[u8], question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let bytes = socket.recv(&mut buffer).await?;
        if answers(&buffer[..bytes], query, question) {
            buffer.truncate(bytes);
            return Ok(buffer);
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &[u8], question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let bytes = u16::try_from(query.len()).map_err(io::Error::other)?;
    let framed = [&bytes.to_be_bytes(), query].concat();
    stream.write_all(&framed).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    if answers(&answer, query, question) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Whether it is a response of that id to that question, in whatever case.
fn answers(answer: &[u8], query: &[u8], question: &[u8]) -> bool {
    let is_response = answer.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let same = answer.get(HEADER_BYTES..HEADER_BYTES + question.len());
    let same = same.is_some_and(|asked| asked.eq_ignore_ascii_case(question));
    is_response && same && answer[..2] == query[..2] && answer[4..6] == [0, 1]
}

/// The bytes of a query's only question: name, type and class.
fn question(query: &[u8]) -> Option<&[u8]> {
    let mut end = HEADER_BYTES;
    loop {
        match query.get(end)? {
            0 => return query.get(HEADER_BYTES..end + 5),
            label @ 1..64 => end += 1 + usize::from(*label),
            // A pointer, with nothing before it to point to.
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_to_the_question_is_taken() {
        let query = [&[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x03www\x03net\0\0\x01\0\x01"].concat();
        let asked = question(&query).expect("a question");
        assert_eq!(asked.len(), query.len() - HEADER_BYTES);
        let mut answer = query.clone();
        assert!(!answers(&answer, &query, asked), "a query");
        answer[2] |= 0x80;
        assert!(answers(&answer, &query, asked));
        answer[13] = b'W';
        assert!(answers(&answer, &query, asked), "in another case");
        for (at, value) in [(0, 8), (5, 2), (14, b'x'), (query.len() - 1, 3)] {
            let mut other = answer.clone();
            other[at] = value;
            assert!(!answers(&other, &query, asked), "byte {at}");
        }
        assert!((0..answer.len()).all(|bytes| !answers(&answer[..bytes], &query, asked)));
        assert!((0..query.len()).all(|bytes| question(&query[..bytes]).is_none()));
        assert_eq!(question(&[0xc0; 40]), None);
    }
}
