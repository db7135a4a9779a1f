//! The kernel's half: classic BPF as seccomp(2) runs it, for programs of either compiler.
//!
//! It must refuse what the kernel refuses: an odd offset, a jump out of the program, an unknown code.

/// What a filter looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    pub nr: u32,
    pub arch: u32,
    pub args: [u64; 6],
}

impl Call {
    /// 32 bits of `struct seccomp_data`, little-endian.
    fn word(&self, offset: u32) -> u32 {
        assert_eq!(offset % 4, 0, "offset {offset}");
        match offset {
            0 => self.nr,
            4 => self.arch,
            8 | 12 => 0,
            offset => {
                let arg = self.args[(offset as usize - 16) / 8];
                (arg >> (offset % 8 * 8)) as u32
            }
        }
    }
}

/// What came of a run.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub answer: u32,
    /// How many instructions it took.
    pub steps: usize,
    /// Arguments were looked at.
    pub looked: bool,
}

/// Runs a program to its end.
pub fn run(program: &[u64], call: &Call) -> Outcome {
    assert!(program.len() <= 4096);
    let (mut accumulator, mut at, mut looked) = (0, 0, false);
    for steps in 1.. {
        let [c0, c1, yes, no, k @ ..] = program[at].to_ne_bytes();
        let (code, k) = (u16::from_ne_bytes([c0, c1]), u32::from_ne_bytes(k));
        at += 1;
        let mut jump = |holds: bool| at += usize::from(if holds { yes } else { no });
        match code {
            0x20 => {
                accumulator = call.word(k);
                looked |= k >= 16;
            }
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x06 => return Outcome { answer: k, steps, looked },
            0x15 => jump(accumulator == k),
            0x25 => jump(accumulator > k),
            0x35 => jump(accumulator >= k),
            0x45 => jump(accumulator & k != 0),
            other => panic!("instruction {:#x} at {}", other, at - 1),
        }
    }
    unreachable!()
}
