//! Classic BPF, from its end to its beginning.
//!
//! Jumps only go forwards, so what is built last-to-first knows each target's distance at once. It
//! must never know what a filter is for: only loads, branches and returns.

// linux/bpf_common.h
const LD_W_ABS: u16 = 0x20;
const JMP_JA: u16 = 0x05;
const RET_K: u16 = 0x06;
const ALU_AND: u16 = 0x54;

/// A conditional jump's comparison of the accumulator with a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Test {
    Equal = 0x15,
    Greater = 0x25,
    AtLeast = 0x35,
}

/// How far a conditional jump reaches.
const REACH: usize = 255;

/// Where to go on: at an instruction that is already there, or with the program's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    At(Label),
    Return(u32),
}

/// An instruction, by how many come after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// A program in the making, its last instruction first.
#[derive(Debug, Default)]
pub struct Code {
    reversed: Vec<u64>,
    /// The nearest return of each answer.
    returns: Vec<(u32, Label)>,
}

/// A `struct sock_filter` as the 8 bytes that the kernel reads.
fn instruction(code: u16, yes: u8, no: u8, k: u32) -> u64 {
    let ([c0, c1], [k0, k1, k2, k3]) = (code.to_ne_bytes(), k.to_ne_bytes());
    u64::from_ne_bytes([c0, c1, yes, no, k0, k1, k2, k3])
}

impl Code {
    fn push(&mut self, code: u16, yes: u8, no: u8, k: u32) -> Label {
        self.reversed.push(instruction(code, yes, no, k));
        Label(self.reversed.len() - 1)
    }

    /// How many instructions a jump at the next place would skip.
    fn skip(&self, to: Label) -> usize {
        self.reversed.len() - 1 - to.0
    }

    fn returning(&mut self, answer: u32) -> Label {
        let label = self.push(RET_K, 0, 0, answer);
        self.returns.retain(|(have, _)| *have != answer);
        self.returns.push((answer, label));
        label
    }

    /// A label that a conditional jump reaches, with `spare` more instructions in between.
    fn near(&mut self, to: To, spare: usize) -> Label {
        match to {
            To::At(label) if self.skip(label) + spare <= REACH => label,
            To::At(label) => {
                let skip = self.skip(label) as u32;
                self.push(JMP_JA, 0, 0, skip)
            }
            To::Return(answer) => {
                let nearest = self.returns.iter().find(|(have, _)| *have == answer);
                match nearest {
                    Some((_, label)) if self.skip(*label) + spare <= REACH => *label,
                    _ => self.returning(answer),
                }
            }
        }
    }

    /// `if accumulator TEST k { yes } else { no }`.
    pub fn branch(&mut self, test: Test, k: u32, yes: To, no: To) -> To {
        // What the second may have to put in between.
        let yes = self.near(yes, 1);
        let no = self.near(no, 0);
        let (yes, no) = (self.skip(yes) as u8, self.skip(no) as u8);
        To::At(self.push(test as u16, yes, no, k))
    }

    /// Instructions run on into the one that was built before them; this is where `to` is that.
    fn follow(&mut self, to: To) {
        match to {
            To::At(label) if self.skip(label) == 0 => {}
            To::At(label) => {
                let skip = self.skip(label) as u32;
                self.push(JMP_JA, 0, 0, skip);
            }
            To::Return(answer) => {
                self.returning(answer);
            }
        }
    }

    /// Loads 32 bits of `struct seccomp_data`.
    pub fn load(&mut self, offset: u32, next: To) -> To {
        self.follow(next);
        To::At(self.push(LD_W_ABS, 0, 0, offset))
    }

    /// Clears bits of the accumulator.
    pub fn and(&mut self, mask: u32, next: To) -> To {
        self.follow(next);
        To::At(self.push(ALU_AND, 0, 0, mask))
    }

    /// The program, which begins at `start`.
    pub fn finish(mut self, start: To) -> Box<[u64]> {
        self.follow(start);
        self.reversed.reverse();
        self.reversed.into_boxed_slice()
    }
}
