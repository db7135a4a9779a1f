//! Network devices by rtnetlink(7): what it takes to move one into another namespace, and no more.
//!
//! Used by a child after clone: no allocation, no panic. A socket stays in the network namespace
//! that it was made in, whatever its user joins.

use std::ffi::{CStr, c_int};

use nix::errno::Errno;

use super::raw;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x600;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_F_PERMANENT: u8 = 0x80;
const UP: u32 = 1;
const HEADER: usize = 16;

/// A message on its way to the kernel. What does not fit makes it one that the kernel refuses.
struct Message {
    bytes: [u8; 256],
    len: usize,
}

impl Message {
    fn new(kind: u16, flags: u16) -> Message {
        let mut message = Message { bytes: [0; 256], len: 0 };
        message.put(&0u32.to_ne_bytes());
        message.put(&kind.to_ne_bytes());
        message.put(&(REQUEST | flags).to_ne_bytes());
        message.put(&[0; 8]);
        message
    }

    /// A `struct ifinfomsg`.
    fn link(flags: u16, index: i32, state: u32) -> Message {
        let mut message = Message::new(RTM_NEWLINK, flags);
        message.put(&[0; 4]);
        message.put(&index.to_ne_bytes());
        message.put(&state.to_ne_bytes());
        // Which of the bits count.
        message.put(&state.to_ne_bytes());
        message
    }

    fn put(&mut self, value: &[u8]) {
        let end = self.len.saturating_add(value.len());
        if let Some(place) = self.bytes.get_mut(self.len..end) {
            place.copy_from_slice(value);
        }
        self.len = end;
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = value.len().saturating_add(4) as u16;
        self.put(&len.to_ne_bytes());
        self.put(&kind.to_ne_bytes());
        self.put(value);
        let padding = self.len.next_multiple_of(4) - self.len;
        self.put([0; 4].get(..padding).unwrap_or_default());
    }

    fn send(mut self, socket: c_int) -> Result<(), Errno> {
        let len = (self.len as u32).to_ne_bytes();
        if let Some(place) = self.bytes.get_mut(..4) {
            place.copy_from_slice(&len);
        }
        let whole = self.bytes.get(..self.len).ok_or(Errno::EMSGSIZE)?;
        raw::send(socket, whole, None)
    }

    /// Sends it, and hears what came of it.
    fn ask(self, socket: c_int) -> Result<(), Errno> {
        self.send(socket)?;
        let mut buffer = [0; 1024];
        let n = raw::read(socket, &mut buffer)?;
        match parts(buffer.get(..n).unwrap_or_default()).next() {
            Some((ERROR, body)) => answer(body),
            _ => Err(Errno::EPROTO),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<[u8; 4]> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok()
}

/// The errno of an answer; 0 is the acknowledgement.
fn answer(body: &[u8]) -> Result<(), Errno> {
    match word(body, 0).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(errno) => Err(Errno::from_raw(errno.saturating_neg())),
        None => Err(Errno::EPROTO),
    }
}

/// The messages in a buffer: kind and body.
fn parts(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(word(rest, 0)?) as usize;
        let [k0, k1, _, _] = word(rest, 4)?;
        let body = rest.get(HEADER..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]), body))
    })
}

/// The attributes in the rest of a message: kind and value.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = word(rest, 0)?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]), value))
    })
}

/// An address of a device, as the kernel gave it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Address {
    family: u8,
    prefix: u8,
    /// Length and bytes of the peer's (or its own), its own and the broadcast address.
    parts: [(u8, [u8; 16]); 3],
}

const PARTS: [u16; 3] = [IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST];

impl Address {
    /// Of the body of an `RTM_NEWADDR`, if it is of the device, permanent and of global scope: the
    /// others are the network's or the link's own, and made anew where the device goes.
    fn parse(body: &[u8], device: i32) -> Option<Address> {
        let [family, prefix, flags, scope] = word(body, 0)?;
        let index = i32::from_ne_bytes(word(body, 4)?);
        if index != device || flags & IFA_F_PERMANENT == 0 || scope != 0 {
            return None;
        }
        let mut address = Address { family, prefix, ..Address::default() };
        for (kind, value) in attributes(body.get(8..)?) {
            let at = PARTS.iter().position(|part| *part == kind);
            let Some((len, bytes)) = at.and_then(|at| address.parts.get_mut(at)) else { continue };
            bytes.get_mut(..value.len())?.copy_from_slice(value);
            *len = value.len() as u8;
        }
        Some(address)
    }

    /// Gives it to a device.
    pub fn add(&self, socket: c_int, device: i32) -> Result<(), Errno> {
        let mut message = Message::new(RTM_NEWADDR, ACK | CREATE);
        message.put(&[self.family, self.prefix, 0, 0]);
        message.put(&device.to_ne_bytes());
        for (kind, (len, bytes)) in PARTS.iter().zip(&self.parts) {
            if *len > 0 {
                let value = bytes.get(..usize::from(*len)).unwrap_or_default();
                message.attribute(*kind, value);
            }
        }
        message.ask(socket)
    }
}

/// The permanent, global addresses of a device: how many there are. More than there is room for
/// is E2BIG.
pub fn addresses(socket: c_int, device: i32, into: &mut [Address]) -> Result<usize, Errno> {
    let mut message = Message::new(RTM_GETADDR, DUMP);
    message.put(&[0; 8]);
    message.send(socket)?;
    let mut buffer = [0; 32 << 10];
    let mut count = 0usize;
    loop {
        let n = raw::read(socket, &mut buffer)?;
        for (kind, body) in parts(buffer.get(..n).unwrap_or_default()) {
            match kind {
                DONE => return Ok(count),
                ERROR => return answer(body).and(Err(Errno::EPROTO)),
                RTM_NEWADDR => {
                    let Some(address) = Address::parse(body, device) else { continue };
                    *into.get_mut(count).ok_or(Errno::E2BIG)? = address;
                    count = count.saturating_add(1);
                }
                _ => {}
            }
        }
        if n == 0 {
            return Err(Errno::EPROTO);
        }
    }
}

/// Moves a device to another network namespace under a name, in one step.
pub fn move_device(socket: c_int, device: i32, ns: c_int, name: &CStr) -> Result<(), Errno> {
    let mut message = Message::link(ACK, device, 0);
    message.attribute(IFLA_IFNAME, name.to_bytes_with_nul());
    message.attribute(IFLA_NET_NS_FD, &ns.to_ne_bytes());
    message.ask(socket)
}

/// Sets a device up.
pub fn set_up(socket: c_int, device: i32) -> Result<(), Errno> {
    Message::link(ACK, device, UP).ask(socket)
}
