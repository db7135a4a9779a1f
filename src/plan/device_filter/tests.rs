//! Runs the programs on an interpreter of the few instructions that they have.

use super::*;

/// What the kernel would answer. Panics on anything that its verifier refuses.
fn run(program: &[Insn], kind: u32, major: u32, minor: u32, access: u8) -> bool {
    let mut regs: [Option<u64>; 6] = [None; 6];
    let mut at = 0;
    loop {
        let Insn { code, dst, src, off, imm } = program[at];
        let (dst, src) = (usize::from(dst), usize::from(src));
        let wide = i64::from(imm) as u64;
        at += 1;
        match code {
            LOAD_WORD => {
                assert_eq!(src, usize::from(DEVICE));
                let word = [u32::from(access) << 16 | kind, major, minor][off as usize / 4];
                regs[dst] = Some(word.into());
            }
            MOV => regs[dst] = Some(wide),
            MOV_REG => regs[dst] = Some(regs[src].unwrap()),
            AND => regs[dst] = Some(regs[dst].unwrap() & wide),
            SHIFT_RIGHT => regs[dst] = Some(regs[dst].unwrap() >> wide),
            IF_EQUAL | IF_NOT_EQUAL => {
                if (regs[dst].unwrap() == wide) == (code == IF_EQUAL) {
                    at += usize::try_from(off).unwrap();
                }
            }
            EXIT => return regs[0].unwrap() == 1,
            _ => panic!("instruction {code:#x}"),
        }
    }
}

/// The meaning of the rules, bit by bit and from the first on.
fn allowed(rules: &[Rule], kind: Kind, major: u32, minor: u32, access: u8) -> bool {
    [MKNOD, READ, WRITE].iter().filter(|bit| access & **bit != 0).all(|bit| {
        let fits = |rule: &&Rule| {
            rule.kind.is_none_or(|k| k == kind)
                && rule.major.is_none_or(|n| n == major)
                && rule.minor.is_none_or(|n| n == minor)
                && rule.access & bit != 0
        };
        rules.iter().rfind(fits).is_some_and(|rule| rule.allow)
    })
}

/// Every instruction can be reached: the verifier refuses a program with one that cannot.
fn reachable(program: &[Insn]) {
    let mut seen = vec![false; program.len()];
    let mut next = vec![0];
    while let Some(at) = next.pop() {
        if std::mem::replace(&mut seen[at], true) {
            continue;
        }
        match program[at].code {
            EXIT => {}
            IF_EQUAL | IF_NOT_EQUAL => {
                next.extend([at + 1, at + 1 + usize::try_from(program[at].off).unwrap()]);
            }
            _ => next.push(at + 1),
        }
    }
    assert!(seen.iter().all(|seen| *seen), "{program:?}");
}

/// xorshift: the same rules in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn rule(&mut self) -> Rule {
        let number = |n: u64| (n > 0).then_some(n as u32);
        let everything = self.below(8) == 0;
        let kinds = [None, Some(Kind::Block), Some(Kind::Char)];
        Rule {
            allow: self.below(2) == 0,
            kind: if everything { None } else { kinds[self.below(3) as usize] },
            major: if everything { None } else { number(self.below(3)) },
            minor: if everything { None } else { number(self.below(3)) },
            access: if everything { ALL } else { self.below(7) as u8 + 1 },
        }
    }
}

fn check(rules: &[Rule]) {
    let program = compile(rules);
    reachable(&program);
    let mut all = true;
    for (kind, number) in [(Kind::Block, 1), (Kind::Char, 2)] {
        for (major, minor) in [(1, 1), (1, 2), (2, 1), (2, 2), (1, 9), (9, 1), (9, 9)] {
            for access in 1..=ALL {
                let right = allowed(rules, kind, major, minor, access);
                let answer = run(&program, number, major, minor, access);
                assert_eq!(answer, right, "{kind:?} {major}:{minor} {access:#b}: {rules:?}");
                all &= right;
            }
        }
    }
    assert!(all || !allows_all(rules), "{rules:?}");
}

#[test]
fn programs_mean_what_the_rules_say() {
    let mut random = Random(0x1234_5678_9abc_def1);
    for _ in 0..3000 {
        let rules: Vec<Rule> = (0..random.below(7)).map(|_| random.rule()).collect();
        check(&rules);
    }
}

#[test]
fn one_open_for_two_accesses_is_decided_by_both() {
    let rule = |allow, access| Rule {
        allow,
        kind: Some(Kind::Char),
        major: Some(1),
        minor: Some(1),
        access,
    };
    let split = compile(&[rule(true, READ), rule(true, WRITE)]);
    assert!(run(&split, 2, 1, 1, READ | WRITE));
    let hole = compile(&[rule(true, ALL), rule(false, WRITE)]);
    assert!(!run(&hole, 2, 1, 1, READ | WRITE));
    assert!(run(&hole, 2, 1, 1, READ | MKNOD));
}

#[test]
fn default_list() {
    let program = compile(&rules(&[]).unwrap());
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 77)] {
        assert!(run(&program, 2, major, minor, READ | WRITE), "{major}:{minor}");
    }
    for (kind, major, minor) in [(2, 1, 1), (2, 10, 229), (1, 8, 0), (1, 1, 3)] {
        assert!(!run(&program, kind, major, minor, READ), "{major}:{minor}");
        assert!(run(&program, kind, major, minor, MKNOD), "{major}:{minor}");
    }
}

#[test]
fn privileged_needs_no_program() {
    let rule = |allow: bool| {
        let json = format!(r#"{{"allow": {allow}, "access": "rwm"}}"#);
        serde_json::from_str::<LinuxDeviceCgroup>(&json).unwrap()
    };
    assert!(allows_all(&rules(&[rule(false), rule(true)]).unwrap()));
    assert!(!allows_all(&rules(&[rule(true), rule(false)]).unwrap()));
    assert!(!allows_all(&rules(&[]).unwrap()));
}

#[test]
fn instructions_are_eight_bytes() {
    let insn = Insn { code: 0x61, dst: 2, src: 1, off: -2, imm: -8 };
    if cfg!(target_endian = "little") {
        assert_eq!(insn.encode(), 0xffff_fff8_fffe_1261);
    }
}
