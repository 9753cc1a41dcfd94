//! What no tunnel on this machine can pass: the parts of its work, each alone.

use crate::peers::{INNER_MTU, PORTS};
use anyhow::{Context, Result};
use netns_tests::{Lab, Namespace, Process, wait_for};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde_json::Value;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vp_agent::sys::Tun;

const COPY_BYTES: usize = 64 << 10;
const RUN: Duration = Duration::from_secs(1);
const VIRTIO_AND_PACKET_BYTES: usize = 65536 + 10;

/// Gbit/s of each, with its name.
pub fn limits() -> Result<Vec<(&'static str, f64)>> {
    Ok(vec![
        ("copying memory, one thread", copy()),
        ("ChaCha20-Poly1305 of full packets, one thread", aead()?),
        ("one TCP stream through two TUNs, nothing between", tuns()?),
    ])
}

fn copy() -> f64 {
    let (from, mut to) = (vec![1u8; COPY_BYTES], vec![0u8; COPY_BYTES]);
    rate(COPY_BYTES, || {
        black_box(&mut to).copy_from_slice(black_box(&from));
    })
}

fn aead() -> Result<f64> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).ok().context("a key of 32 bytes")?;
    let key = LessSafeKey::new(key);
    let mut packet = vec![1u8; usize::from(INNER_MTU)];
    Ok(rate(packet.len(), || {
        let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
        let _ = black_box(key.seal_in_place_separate_tag(nonce, Aad::empty(), black_box(&mut packet)));
    }))
}

/// Gbit/s of something done again and again for a second.
fn rate(bytes: usize, mut work: impl FnMut()) -> f64 {
    let (start, mut count) = (Instant::now(), 0u64);
    while start.elapsed() < RUN {
        (0..64).for_each(|_| work());
        count += 64;
    }
    count as f64 * bytes as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9
}

/// Packets read from one TUN are written to the other as they are, super-packets with their headers.
fn tuns() -> Result<f64> {
    let lab = Lab::named("tuns")?;
    let (a, b) = (lab.namespace("a")?, lab.namespace("b")?);
    let open = |machine: &Namespace, own: &str, other: &str| -> Result<Tun> {
        let tun = machine.run(|| Tun::open("limit0"))??;
        machine.ip(&format!("addr add {own} peer {other} dev limit0\nlink set limit0 mtu {INNER_MTU} up"))?;
        Ok(tun)
    };
    let tun_a = open(&a, "10.78.0.1", "10.78.0.2")?;
    let tun_b = open(&b, "10.78.0.2", "10.78.0.1")?;
    let _server = Process::start_line(&lab, &b, &format!("iperf3 -s -p {}", PORTS.iperf))?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (from, to) in [(&tun_a, &tun_b), (&tun_b, &tun_a)] {
            let is_over = &is_over;
            scope.spawn(move || carry(from, to, is_over));
        }
        let line = format!("iperf3 -J -C cubic -c 10.78.0.2 -p {} -t 3", PORTS.iperf);
        let rate = wait_for("a stream through two TUNs", || {
            let json: Value = serde_json::from_str(&a.sh(&line)?)?;
            Ok(json["end"]["sum_received"]["bits_per_second"].as_f64())
        });
        is_over.store(true, Ordering::Relaxed);
        Ok(rate? / 1e9)
    })
}

fn carry(from: &Tun, to: &Tun, is_over: &AtomicBool) {
    let mut packet = vec![0; VIRTIO_AND_PACKET_BYTES];
    while !is_over.load(Ordering::Relaxed) {
        match from.read(&mut packet) {
            Ok(bytes) => {
                // Its queue may be full: the packet is lost, as on a link.
                let _ = to.write(&[std::io::IoSlice::new(&packet[..bytes])]);
            }
            Err(_) => wait_readable(from),
        }
    }
}

fn wait_readable(tun: &Tun) {
    use std::os::fd::{AsFd, AsRawFd};
    let mut wanted = libc::pollfd { fd: tun.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    unsafe { libc::poll(&raw mut wanted, 1, 100) };
}
