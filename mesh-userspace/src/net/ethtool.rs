//! Ethtool's ioctl: unlike sysfs it speaks of the namespace at hand.

use std::{io, os::fd::AsRawFd};

use rustix::net::{AddressFamily, SocketType, socket};

const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// linux/if.h, the union's part for a pointer.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut u32,
    _rest: [u8; 16],
}

/// Has the kernel answer in place for an interface of this thread's namespace. `words`: a structure
/// of linux/ethtool.h, whole, which begins with its command; all its fields in the host's byte order.
///
/// # Safety
///
/// `words` is as long as what the kernel writes for that command.
pub(super) unsafe fn ask(interface: &str, words: &mut [u32]) -> io::Result<()> {
    let mut request =
        Request { name: [0; libc::IFNAMSIZ], data: words.as_mut_ptr(), _rest: [0; 16] };
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    request.name[..interface.len()].copy_from_slice(interface.as_bytes());
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: SIOCETHTOOL reads a struct ifreq, whose data points to what the command asks for; both
    // are live and writable, and that the second is large enough is for the caller to see to.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The text in a field of bytes, which ends at the first zero.
pub(super) fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}
