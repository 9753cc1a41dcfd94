//! Datagrams in a WebSocket's binary message: each after its length in two bytes, the higher first.

use std::io;
use tokio::net::UdpSocket;

/// No datagram is longer.
pub(super) const DATAGRAM_BYTES_MAX: usize = 65_507;
/// Datagrams are collected into one message up to about this; a message is this and one datagram at most.
const COLLECTED_BYTES: usize = 32 << 10;
pub(super) const MESSAGE_BYTES_MAX: usize = 128 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a message that is cut short")]
pub(super) struct MalformedMessage;

/// Waits for a datagram, and takes those that came with it. `buffer` has room for any.
pub(super) async fn collect(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Vec<u8>> {
    let mut bytes = socket.recv(buffer).await?;
    let mut message = Vec::with_capacity(bytes + 2);
    loop {
        push(&mut message, &buffer[..bytes]);
        if message.len() >= COLLECTED_BYTES {
            return Ok(message);
        }
        bytes = match socket.try_recv(buffer) {
            Ok(bytes) => bytes,
            Err(_) => return Ok(message),
        };
    }
}

fn push(message: &mut Vec<u8>, datagram: &[u8]) {
    // No datagram of UDP is longer than that.
    let length = u16::try_from(datagram.len()).unwrap_or(u16::MAX);
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(datagram);
}

/// The datagrams of a message, up to where it is cut short.
pub(super) fn datagrams(message: &[u8]) -> impl Iterator<Item = Result<&[u8], MalformedMessage>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let split = rest
            .split_first_chunk::<2>()
            .and_then(|(length, others)| others.split_at_checked(usize::from(u16::from_be_bytes(*length))));
        let Some((datagram, others)) = split else {
            rest = &[];
            return Some(Err(MalformedMessage));
        };
        rest = others;
        Some(Ok(datagram))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_cut_short_is_said_after_what_is_whole() {
        let read: Vec<_> = datagrams(&[0, 1, 7, 0, 2, 8]).collect();
        assert_eq!(read, [Ok(&[7][..]), Err(MalformedMessage)]);
        assert_eq!(datagrams(&[0]).collect::<Vec<_>>(), [Err(MalformedMessage)]);
        assert_eq!(datagrams(&[]).count(), 0);
    }

    proptest! {
        #[test]
        fn datagrams_come_out_as_they_went_in(sent in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..20)) {
            let mut message = Vec::new();
            sent.iter().for_each(|datagram| push(&mut message, datagram));
            let read: Result<Vec<Vec<u8>>, _> = datagrams(&message).map(|datagram| datagram.map(<[u8]>::to_vec)).collect();
            prop_assert_eq!(read, Ok(sent));
        }

        #[test]
        fn any_bytes_are_read_to_their_end(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            prop_assert!(datagrams(&bytes).count() <= bytes.len());
        }
    }
}
