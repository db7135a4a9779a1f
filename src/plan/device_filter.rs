//! Device rules, and the eBPF program that enforces them on cgroup v2.
//!
//! For each access the last rule that fits decides; none: denied. Pure: the program is data, which
//! `sys::bpf` loads and attaches. It must never hold a rule that a later one undoes by accident:
//! access is decided bit by bit, since one open may ask for reading and writing at once.

use std::fmt;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::{Error, Result};

#[cfg(test)]
mod tests;

/// Access bits, as the kernel gives them to the program (`BPF_DEVCG_ACC_*`).
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// Block or character device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Block,
    Char,
}

/// One rule. `None` stands for every kind or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    pub kind: Option<Kind>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// `BPF_DEVCG_ACC_*` bits.
    pub access: u8,
}

impl Rule {
    /// Whether it fits every access to every device.
    pub fn is_everything(&self) -> bool {
        (self.kind, self.major, self.minor, self.access) == (None, None, None, ALL)
    }

    /// What it fits, as v1's files take it: `c 1:3 rwm`.
    pub fn what(&self) -> String {
        let kind = match self.kind {
            None => 'a',
            Some(Kind::Block) => 'b',
            Some(Kind::Char) => 'c',
        };
        let number = |n: Option<u32>| n.map_or("*".into(), |n| n.to_string());
        let access: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
            .iter()
            .filter(|(bit, _)| self.access & bit != 0)
            .map(|(_, letter)| letter)
            .collect();
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{} {}\"", if self.allow { "allow" } else { "deny" }, self.what())
    }
}

const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
    Rule { allow: true, kind: Some(kind), major, minor, access }
}

/// What every container may do, whatever its spec says; programs rely on it. It is runc's list.
/// `/dev/net/tun` is on it because VPN images make the node themselves.
const DEFAULTS: [Rule; 12] = [
    allow(Kind::Char, None, None, MKNOD),
    allow(Kind::Block, None, None, MKNOD),
    allow(Kind::Char, Some(1), Some(3), ALL),    // null
    allow(Kind::Char, Some(1), Some(5), ALL),    // zero
    allow(Kind::Char, Some(1), Some(7), ALL),    // full
    allow(Kind::Char, Some(1), Some(8), ALL),    // random
    allow(Kind::Char, Some(1), Some(9), ALL),    // urandom
    allow(Kind::Char, Some(5), Some(0), ALL),    // tty
    allow(Kind::Char, Some(5), Some(1), ALL),    // console
    allow(Kind::Char, Some(5), Some(2), ALL),    // ptmx
    allow(Kind::Char, Some(136), None, ALL),     // pts
    allow(Kind::Char, Some(10), Some(200), ALL), // net/tun
];

/// The spec's rules and the default list after them.
pub fn rules(devices: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let mut rules = Vec::with_capacity(devices.len() + DEFAULTS.len());
    for (i, device) in devices.iter().enumerate() {
        rules.push(rule(device).map_err(|e| e.doing(format_args!("resources.devices[{i}]")))?);
    }
    rules.extend(DEFAULTS);
    Ok(rules)
}

fn rule(device: &LinuxDeviceCgroup) -> Result<Rule> {
    let kind = match device.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(Kind::Block),
        Some(LinuxDeviceType::C) => Some(Kind::Char),
        Some(other @ (LinuxDeviceType::U | LinuxDeviceType::P)) => {
            return Err(Error::invalid(format!("type {:?} has no rules", other.as_str())));
        }
    };
    let mut access = 0;
    for letter in device.access().as_deref().unwrap_or_default().chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => return Err(Error::invalid(format!("access {letter:?} is not r, w or m"))),
        };
    }
    if access == 0 {
        return Err(Error::invalid("no access is named"));
    }
    let (major, minor) = (number(device.major())?, number(device.minor())?);
    Ok(Rule { allow: device.allow(), kind, major, minor, access })
}

/// -1 stands for every number. A number beyond `i32` would be cut in the program, and is no device.
fn number(number: Option<i64>) -> Result<Option<u32>> {
    match number {
        None | Some(-1) => Ok(None),
        Some(n @ 0..=0x7fff_ffff) => Ok(Some(n as u32)),
        Some(n) => Err(Error::invalid(format!("{n} is not a device number"))),
    }
}

/// The rules from the last on that fits everything: those before it decide nothing.
fn effective(rules: &[Rule]) -> &[Rule] {
    let start = rules.iter().rposition(Rule::is_everything).unwrap_or(0);
    &rules[start..]
}

/// Whether no access is ever denied, so that no program is needed.
pub fn allows_all(rules: &[Rule]) -> bool {
    let rules = effective(rules);
    rules.first().is_some_and(Rule::is_everything) && rules.iter().all(|rule| rule.allow)
}

/// An eBPF instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    pub code: u8,
    pub dst: u8,
    pub src: u8,
    pub off: i16,
    pub imm: i32,
}

impl Insn {
    /// As `bpf(2)` takes it.
    pub fn encode(self) -> u64 {
        let regs = match cfg!(target_endian = "little") {
            true => self.dst | self.src << 4,
            false => self.dst << 4 | self.src,
        };
        let [a, b] = self.off.to_ne_bytes();
        let [c, d, e, f] = self.imm.to_ne_bytes();
        u64::from_ne_bytes([self.code, regs, a, b, c, d, e, f])
    }
}

const LOAD_WORD: u8 = 0x61;
const MOV: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const IF_EQUAL: u8 = 0x15;
const IF_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Registers.
const RESULT: u8 = 0;
const DEVICE: u8 = 1;
/// What is being compared. Loaded for every rule anew: what the verifier learns of a number in one
/// rule would make it walk through all others once more for each.
const FIELD: u8 = 2;
/// The access bits that no rule has decided yet.
const OPEN: u8 = 3;

fn insn(code: u8, dst: u8, imm: i32) -> Insn {
    Insn { code, dst, src: 0, off: 0, imm }
}

/// Loads a word of `struct bpf_cgroup_dev_ctx { u32 access << 16 | kind; u32 major; u32 minor; }`.
fn load(dst: u8, off: i16) -> Insn {
    Insn { code: LOAD_WORD, dst, src: DEVICE, off, imm: 0 }
}

/// A program of type `BPF_PROG_TYPE_CGROUP_DEVICE`: 1 allows, 0 denies.
pub fn compile(rules: &[Rule]) -> Vec<Insn> {
    let mut program = vec![load(OPEN, 0), insn(SHIFT_RIGHT, OPEN, 16)];
    for rule in effective(rules).iter().rev() {
        if rule.is_everything() {
            // Whatever is open. The verifier refuses code after it, and there is none.
            program.extend([insn(MOV, RESULT, rule.allow.into()), insn(EXIT, 0, 0)]);
            return program;
        }
        block(rule, &mut program);
    }
    program.extend([insn(MOV, RESULT, 0), insn(EXIT, 0, 0)]);
    program
}

/// One rule: tests that skip it, then what it decides.
fn block(rule: &Rule, program: &mut Vec<Insn>) {
    let mut block = Vec::new();
    if let Some(kind) = rule.kind {
        let kind = if kind == Kind::Block { 1 } else { 2 };
        block.extend([load(FIELD, 0), insn(AND, FIELD, 0xffff), insn(IF_NOT_EQUAL, FIELD, kind)]);
    }
    for (off, number) in [(4, rule.major), (8, rule.minor)] {
        if let Some(number) = number {
            block.extend([load(FIELD, off), insn(IF_NOT_EQUAL, FIELD, number as i32)]);
        }
    }
    let access = i32::from(rule.access);
    if rule.allow {
        block.extend([insn(AND, OPEN, !access), insn(IF_NOT_EQUAL, OPEN, 0)]);
    } else {
        block.push(Insn { code: MOV_REG, dst: RESULT, src: OPEN, off: 0, imm: 0 });
        block.extend([insn(AND, RESULT, access), insn(IF_EQUAL, RESULT, 0)]);
    }
    block.extend([insn(MOV, RESULT, rule.allow.into()), insn(EXIT, 0, 0)]);
    // Every jump goes to the next rule. A block has at most 12 instructions.
    let len = block.len() as i16;
    for (i, jump) in block.iter_mut().enumerate() {
        if matches!(jump.code, IF_EQUAL | IF_NOT_EQUAL) {
            jump.off = len - 1 - i as i16;
        }
    }
    program.extend(block);
}
