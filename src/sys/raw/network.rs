//! Sockets for rtnetlink(7). As the module above: no allocation, no state.

use std::ffi::{CStr, c_int};

use nix::errno::Errno;

use super::{Arg, check};

/// A `NETLINK_ROUTE` socket of the network namespace that this process is in.
pub fn route_socket() -> Result<c_int, Errno> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    call!("numbers", libc::SYS_socket, libc::AF_NETLINK, kind, libc::NETLINK_ROUTE)
}

/// The number of a network device in the namespace of a socket: `SIOCGIFINDEX`.
pub fn device_index(socket: c_int, name: &CStr) -> Result<i32, Errno> {
    const SIOCGIFINDEX: c_int = 0x8933;
    /// `struct ifreq`, of which the call uses the first number.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        index: [c_int; 6],
    }
    let mut request = Request { name: [0; libc::IFNAMSIZ], index: [0; 6] };
    let bytes = name.to_bytes_with_nul();
    request.name.get_mut(..bytes.len()).ok_or(Errno::ENODEV)?.copy_from_slice(bytes);
    call!(
        "request has the kernel's layout",
        libc::SYS_ioctl,
        socket,
        SIOCGIFINDEX,
        &raw mut request
    )?;
    Ok(request.index[0])
}
