//! A peer with a valid key that does not keep to the rules: it speaks WireGuard, and inside the tunnel whatever it likes.

use crate::capture::set_receive_buffer;
use crate::server::RECEIVE_BUFFER_BYTES;
use crate::{Key, Namespace, wait};
use anyhow::{Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use boringtun::noise::{Tunn, TunnResult};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;
use x25519_dalek::PublicKey;

const DATAGRAM_BYTES_MAX: usize = 65_535;
const ANSWER_PATIENCE: Duration = Duration::from_millis(100);

pub struct Hostile {
    socket: UdpSocket,
    tunnel: Tunn,
    buffer: Vec<u8>,
    received: Vec<Vec<u8>>,
}

impl Hostile {
    /// Makes a session from `machine` with the agent that has this public key.
    pub fn connect(machine: &Namespace, key: &Key, agent_public: &str, agent: SocketAddr) -> Result<Self> {
        let public: [u8; 32] =
            BASE64_STANDARD.decode(agent_public)?.try_into().map_err(|_| anyhow::anyhow!("a key of 32 bytes"))?;
        let socket = machine.udp(agent)?;
        socket.set_read_timeout(Some(ANSWER_PATIENCE))?;
        set_receive_buffer(&socket, RECEIVE_BUFFER_BYTES)?;
        let tunnel = Tunn::new(key.private.clone(), PublicKey::from(public), None, None, 7, None);
        let mut hostile = Self { socket, tunnel, buffer: vec![0; DATAGRAM_BYTES_MAX], received: Vec::new() };
        let mut initiation = vec![0; 256];
        match hostile.tunnel.format_handshake_initiation(&mut initiation, true) {
            TunnResult::WriteToNetwork(datagram) => hostile.socket.send(datagram)?,
            _ => bail!("no handshake to send"),
        };
        wait::wait_for("the agent's answer to the handshake", || {
            hostile.read_one()?;
            Ok(hostile.tunnel.time_since_last_handshake().map(drop))
        })?;
        Ok(hostile)
    }

    /// Seals `inner` as it is, whatever it is, and sends it.
    pub fn send(&mut self, inner: &[u8]) -> Result<()> {
        let mut datagram = vec![0; inner.len() + 64];
        match self.tunnel.encapsulate(inner, &mut datagram) {
            TunnResult::WriteToNetwork(datagram) => Ok(self.socket.send(datagram).map(drop)?),
            TunnResult::Err(error) => bail!("seal: {error:?}"),
            _ => bail!("no session"),
        }
    }

    /// Sends bytes that are no message of the session.
    pub fn send_raw(&self, datagram: &[u8]) -> Result<()> {
        Ok(self.socket.send(datagram).map(drop)?)
    }

    /// What `seal` would send, without sending it.
    pub fn seal(&mut self, inner: &[u8]) -> Result<Vec<u8>> {
        let mut datagram = vec![0; inner.len() + 64];
        match self.tunnel.encapsulate(inner, &mut datagram) {
            TunnResult::WriteToNetwork(datagram) => Ok(datagram.to_vec()),
            _ => bail!("no session"),
        }
    }

    /// The next inner packet for which `wanted` holds; those before it are forgotten.
    pub fn receive(&mut self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        wait::wait_for(what, || {
            self.read_one()?;
            Ok(self.received.drain(..).find(|packet| wanted(packet)))
        })
    }

    /// All inner packets until there is silence.
    pub fn drain(&mut self) -> Result<Vec<Vec<u8>>> {
        while self.read_one()? {}
        Ok(std::mem::take(&mut self.received))
    }

    fn read_one(&mut self) -> Result<bool> {
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        let Ok(bytes) = self.socket.recv(&mut datagram) else { return Ok(false) };
        let mut input = &datagram[..bytes];
        loop {
            match self.tunnel.decapsulate(None, input, &mut self.buffer) {
                TunnResult::WriteToNetwork(answer) => drop(self.socket.send(answer)?),
                TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                    self.received.push(packet.to_vec());
                    return Ok(true);
                }
                TunnResult::Done | TunnResult::Err(_) => return Ok(true),
            }
            input = &[];
        }
    }
}
