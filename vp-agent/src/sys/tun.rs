//! The TUN device, with the virtio header and segmentation offload where the kernel has them.

use super::check;
use std::ffi::CString;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `struct ifreq` up to the flags, which is all that TUNSETIFF reads.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    padding: [u8; 22],
}

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
const TUN_F_TSO_ECN: libc::c_uint = 0x08;
/// Linux 6.2.
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;

/// What the kernel does for us, the best first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TunOffload {
    /// Super-packets of TCP and UDP, checksums left to us.
    TcpAndUdp,
    /// The same without UDP (before Linux 6.2).
    Tcp,
    /// A virtio header, but nothing in it.
    None,
    /// Not even the header: one plain packet a read.
    NoHeader,
}

impl TunOffload {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::TcpAndUdp => "tcp+udp segmentation",
            Self::Tcp => "tcp segmentation",
            Self::None => "none",
            Self::NoHeader => "none (no virtio header)",
        }
    }
}

#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    offload: TunOffload,
}

impl Tun {
    pub fn open(name: &str) -> io::Result<Self> {
        match Self::attach(name, libc::IFF_VNET_HDR) {
            Ok(fd) => {
                let offload = set_offload(&fd)?;
                Ok(Self { fd, offload })
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let fd = Self::attach(name, 0)?;
                Ok(Self { fd, offload: TunOffload::NoHeader })
            }
            Err(error) => Err(error),
        }
    }

    fn attach(name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
        let device = c"/dev/net/tun";
        let mode = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
        // SAFETY: a C string; a result of at least 0 is a descriptor that is ours alone.
        let fd = unsafe { OwnedFd::from_raw_fd(check(libc::open(device.as_ptr(), mode))? as i32) };
        let name = CString::new(name)?;
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an interface name has 1 to 15 characters"));
        }
        let flags = (libc::IFF_TUN | libc::IFF_NO_PI | flags) as libc::c_short;
        let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags, padding: [0; 22] };
        request.name[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: the kernel reads and writes at most the 40 bytes of `struct ifreq`, which `request` has.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
        Ok(fd)
    }

    #[must_use]
    pub fn offload(&self) -> TunOffload {
        self.offload
    }

    /// Whether reads and writes carry the virtio header.
    #[must_use]
    pub fn has_header(&self) -> bool {
        self.offload != TunOffload::NoHeader
    }

    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: `buffer` is writable for its length.
        let count = unsafe { libc::read(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        check(count as i64).map(|count| count as usize)
    }

    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        // SAFETY: `IoSlice` has the layout of `struct iovec`, and all parts are readable for their lengths.
        let count = unsafe { libc::writev(self.fd.as_raw_fd(), parts.as_ptr().cast(), parts.len() as i32) };
        check(count as i64).map(|_| ())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set_offload(fd: &OwnedFd) -> io::Result<TunOffload> {
    let header_bytes = vp::packet::virtio::HEADER_BYTES as libc::c_int;
    // SAFETY: the kernel reads one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const header_bytes) })?;
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    for (flags, offload) in [(tcp | TUN_F_USO4 | TUN_F_USO6, TunOffload::TcpAndUdp), (tcp, TunOffload::Tcp)] {
        // SAFETY: the argument is a number.
        if check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(flags)) }).is_ok() {
            return Ok(offload);
        }
    }
    Ok(TunOffload::None)
}
