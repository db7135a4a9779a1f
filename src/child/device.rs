//! A network device into the network namespace that this process is in.
//!
//! Nothing here may allocate; see the module's head.

use std::ffi::CStr;

use super::report::Call;
use super::{At, Fail, Fd};
use crate::sys::netlink::{self, Address};
use crate::sys::raw;

/// Nobody gives a device more addresses that stay.
const MOST_ADDRESSES: usize = 128;

/// `host`: a socket of the namespace that it is in now; `ns`: our own.
pub(super) fn bring(host: i32, ns: i32, name: &CStr, to: &CStr) -> Result<(), Fail> {
    let device = raw::device_index(host, name).at(Call::FindDevice)?;
    // The kernel takes them away with the move.
    let mut kept = [Address::default(); MOST_ADDRESSES];
    let count = netlink::addresses(host, device, &mut kept).at(Call::GetAddresses)?;
    netlink::move_device(host, device, ns, to).at(Call::MoveDevice)?;
    let ours = Fd(raw::route_socket().at(Call::Socket)?);
    let device = raw::device_index(ours.0, to).at(Call::FindDevice)?;
    for address in kept.iter().take(count) {
        address.add(ours.0, device).at(Call::AddAddress)?;
    }
    netlink::set_up(ours.0, device).at(Call::SetUp)
}
