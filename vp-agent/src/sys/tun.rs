//! The TUN device: packets of the site, in super-packets where the kernel has them.

use super::check;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

const VIRTIO_BYTES: usize = vp::packet::virtio::HEADER_BYTES;
/// `IFF_TUN_EXCL`: fail if the name is taken, so that no earlier owner's settings stay on it.
const IFF_TUN_EXCL: libc::c_int = 0x8000;
const NAME_BYTES_MAX: usize = libc::IFNAMSIZ - 1;

/// What the kernel's TUN driver can do; each needs those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TunOffload {
    /// Single packets with complete checksums, and no header before them.
    None,
    /// A virtio header before each packet, but no super-packets from the kernel.
    Header,
    /// TCP super-packets and partial checksums.
    Tcp,
    /// UDP super-packets too (Linux 6.2).
    TcpAndUdp,
}

impl TunOffload {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::TcpAndUdp => "tcp+udp segmentation",
            Self::Tcp => "tcp segmentation",
            Self::Header => "none",
            Self::None => "none (no virtio header)",
        }
    }
}

/// A TUN device of our own, or one queue of it; the device is gone when the last of them is dropped.
#[derive(Debug)]
pub struct Tun {
    file: File,
    /// Of a device with several queues: one that only writes.
    writer: Option<Arc<File>>,
    offload: TunOffload,
}

/// Which queue of a device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    Only,
    First,
    Next,
}

impl Tun {
    /// Makes the device `name` with the most that the kernel has.
    pub fn open(name: &str) -> Result<Self> {
        Self::open_with(name, TunOffload::TcpAndUdp)
    }

    /// The same with `count` queues. The kernel gives each flow's packets to one of them, by a hash, and to no other: what
    /// is written comes by a queue that nothing is read from, because the kernel moves a flow to the queue that its
    /// opposite direction was written to, and packets overtake each other there.
    pub fn open_queues(name: &str, count: usize) -> Result<Vec<Self>> {
        if count <= 1 {
            return Ok(vec![Self::open(name)?]);
        }
        let first = Self::open_queue(name, TunOffload::TcpAndUdp, Queue::First)?;
        let next = || -> Result<File> {
            let file = open_device()?;
            attach(&file, name, first.has_header(), Queue::Next).map(|()| file)
        };
        let others = (1..count).map(|_| next()).collect::<Result<Vec<_>>>()?;
        let writer = next()?;
        detach(&writer).with_context(|| format!("cannot detach a queue of interface {name}"))?;
        let (writer, offload) = (Some(Arc::new(writer)), first.offload);
        let files = std::iter::once(first.file).chain(others);
        Ok(files.map(|file| Self { file, writer: writer.clone(), offload }).collect())
    }

    /// The same with no more than `wanted`.
    pub fn open_with(name: &str, wanted: TunOffload) -> Result<Self> {
        Self::open_queue(name, wanted, Queue::Only)
    }

    fn open_queue(name: &str, wanted: TunOffload, queue: Queue) -> Result<Self> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(good) && name != "." && name != "..";
        ensure!(fits, "{name:?} is no name for an interface: 1 to {NAME_BYTES_MAX} of letters, digits, '-', '_', '.'");
        let make = |header: bool| {
            let file = open_device()?;
            attach(&file, name, header, queue).map(|()| file)
        };
        let with_header = match wanted {
            TunOffload::None => None,
            TunOffload::Header | TunOffload::Tcp | TunOffload::TcpAndUdp => make(true).ok(),
        };
        let Some(file) = with_header else {
            return Ok(Self { file: make(false)?, writer: None, offload: TunOffload::None });
        };
        let offload = [TunOffload::TcpAndUdp, TunOffload::Tcp]
            .into_iter()
            .find(|offload| *offload <= wanted && set_offload(&file, *offload).is_ok())
            .unwrap_or(TunOffload::Header);
        Ok(Self { file, writer: None, offload })
    }

    #[must_use]
    pub fn offload(&self) -> TunOffload {
        self.offload
    }

    /// Whether reads and writes carry the virtio header.
    #[must_use]
    pub fn has_header(&self) -> bool {
        self.offload != TunOffload::None
    }

    /// One packet, after its virtio header if there is one.
    pub fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(into)
    }

    /// One packet, after its virtio header if there is one.
    pub fn write(&self, parts: &[IoSlice]) -> io::Result<()> {
        let mut file = self.writer.as_deref().unwrap_or(&self.file);
        file.write_vectored(parts).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open_device() -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").map_err(of_device)
}

fn of_device(error: io::Error) -> anyhow::Error {
    let what = match error.kind() {
        io::ErrorKind::PermissionDenied => "expected mode 0666, as udev gives it, or an agent that runs as root",
        _ => "expected the kernel's module `tun`",
    };
    anyhow!("cannot open /dev/net/tun: {error}; {what}")
}

fn attach(file: &File, name: &str, header: bool, queue: Queue) -> Result<()> {
    // SAFETY: `ifreq` is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let queues = match queue {
        Queue::Only => IFF_TUN_EXCL,
        Queue::First => IFF_TUN_EXCL | libc::IFF_MULTI_QUEUE,
        Queue::Next => libc::IFF_MULTI_QUEUE,
    };
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | queues | if header { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    let attached = check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) });
    match attached.map_err(|error| (error.raw_os_error(), error)) {
        Ok(_) => {}
        Err((Some(libc::EBUSY), _)) => bail!("interface {name} exists already; another agent, or another program's"),
        Err((Some(libc::EPERM), _)) => bail!("making interface {name} needs CAP_NET_ADMIN"),
        Err((_, error)) => return Err(error).context(format!("cannot make interface {name}")),
    }
    if header {
        let bytes = VIRTIO_BYTES as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one `int`, which outlives the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
            .with_context(|| format!("cannot set the header size of interface {name}"))?;
    }
    Ok(())
}

/// Nothing is read from the queue any more, and what it writes tells the kernel nothing of where flows belong.
fn detach(file: &File) -> io::Result<()> {
    // SAFETY: `ifreq` is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = libc::IFF_DETACH_QUEUE as libc::c_short;
    // SAFETY: TUNSETQUEUE reads one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) }).map(drop)
}

fn set_offload(file: &File, offload: TunOffload) -> io::Result<()> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let flags = match offload {
        TunOffload::None | TunOffload::Header => 0,
        TunOffload::Tcp => tcp,
        TunOffload::TcpAndUdp => tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6,
    };
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::enter_new_network_namespace;
    use super::*;

    #[test]
    fn the_device_has_what_was_wanted_and_is_gone_when_dropped() {
        enter_new_network_namespace();
        for wanted in [TunOffload::None, TunOffload::Header, TunOffload::Tcp] {
            let tun = Tun::open_with("vp-test", wanted).unwrap();
            assert_eq!(tun.offload(), wanted);
        }
        assert!(Tun::open("vp-test").unwrap().offload() >= TunOffload::Tcp);
    }

    /// A queue that is written to learns no flows: nothing that was written moves what is read.
    #[test]
    fn each_flow_stays_on_one_queue_whatever_is_written() {
        const FLOWS: u16 = 40;
        enter_new_network_namespace();
        let queues = Tun::open_queues("vp-test", 3).unwrap();
        assert!(Tun::open("vp-test").is_err());
        let sh = |command: &str| {
            assert!(std::process::Command::new("sh").args(["-ec", command]).status().unwrap().success())
        };
        sh("ip addr add 10.9.0.1/24 dev vp-test; ip link set vp-test up");
        let header = if queues[0].has_header() { VIRTIO_BYTES } else { 0 };
        let sockets: Vec<_> = (0..FLOWS).map(|_| std::net::UdpSocket::bind("10.9.0.1:0").unwrap()).collect();
        // Which queue each port's datagrams are on, each answered through the queue after it.
        let round = || {
            for socket in &sockets {
                assert_eq!(socket.send_to(&[0; 9], "10.9.0.2:7").unwrap(), 9);
            }
            let mut seen = std::collections::BTreeMap::new();
            for (number, queue) in queues.iter().enumerate() {
                let mut buffer = [0; 2048];
                while let Ok(bytes) = queue.read(&mut buffer) {
                    let packet = &mut buffer[header..bytes];
                    if packet[0] >> 4 != 4 || packet[9] != 17 {
                        continue;
                    }
                    seen.insert([packet[20], packet[21]], number);
                    // Back, swapped end for end; the checksums stay right, but for the one of UDP, which is left out.
                    let back: Vec<u8> =
                        [&packet[..12], &packet[16..20], &packet[12..16], &packet[22..24], &packet[20..22]].concat();
                    let back = [&back[..], &packet[24..26], &[0, 0], &packet[28..]].concat();
                    let answer = &queues[(number + 1) % queues.len()];
                    answer.write(&[IoSlice::new(&[0; VIRTIO_BYTES][..header]), IoSlice::new(&back)]).unwrap();
                }
            }
            seen
        };
        let first = round();
        assert_eq!(first.len(), usize::from(FLOWS));
        assert!((0..3).all(|queue| first.values().any(|seen| *seen == queue)), "{first:?}");
        assert_eq!(round(), first);
        assert_eq!(round(), first);
    }

    #[test]
    fn a_name_that_is_taken_or_no_name_is_refused_in_words() {
        enter_new_network_namespace();
        let _first = Tun::open("vp-test").unwrap();
        let error = Tun::open("vp-test").unwrap_err();
        assert_eq!(error.to_string(), "interface vp-test exists already; another agent, or another program's");
        for bad in ["", "an-interface-too-long", "a/b", "vp%d", "a b", "vp*", ".."] {
            assert!(Tun::open(bad).is_err(), "{bad}");
        }
    }
}
