//! Mount options of the OCI runtime specification, as the new mount calls want them.
//!
//! One table gives each option its meaning; what is not in it goes to the file system. It must
//! never drop an option that it does not know how to honour.

use std::ffi::CString;

use libc::{
    MOUNT_ATTR__ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_RELATIME, MOUNT_ATTR_STRICTATIME, MS_DIRSYNC, MS_I_VERSION, MS_LAZYTIME,
    MS_MANDLOCK, MS_NOATIME, MS_NODEV, MS_NODIRATIME, MS_NOEXEC, MS_NOSUID, MS_NOSYMFOLLOW,
    MS_PRIVATE, MS_RDONLY, MS_SHARED, MS_SLAVE, MS_STRICTATIME, MS_SYNCHRONOUS, MS_UNBINDABLE,
};

use super::paths::cstring;
use super::{Attr, Param};
use crate::error::{Error, Result};

/// What one option asks for.
#[derive(Clone, Copy)]
enum Meaning {
    /// What the kernel does anyway.
    Default,
    /// Bind-mounts; `true`: with the mounts beneath.
    Bind(bool),
    /// Maps ids; `true`: of the mounts beneath as well.
    IdMapped(bool),
    /// Sets or clears a `MOUNT_ATTR_*`.
    Attr(bool, u64),
    /// The same for the mounts beneath as well.
    Recursive(bool, u64),
    /// One of the three access time modes, or any but that.
    Atime(bool, u64),
    /// The same for the mounts beneath as well.
    RecursiveAtime(bool, u64),
    /// A propagation type; `true`: of the mounts beneath as well.
    Propagation(bool, u64),
    /// Sets or clears a flag of the superblock, by its `MS_*`.
    Superblock(bool, u64),
    /// `mount -o remount`.
    Remount,
    /// A tmpfs begins with what it covers.
    CopyUp,
    /// In the specification, but not here.
    Unsupported,
}

use Meaning::{
    Atime, Bind, CopyUp, Default, IdMapped, Propagation, Recursive, RecursiveAtime, Remount,
    Superblock, Unsupported,
};

const TABLE: &[(&str, Meaning)] = &[
    ("async", Superblock(false, MS_SYNCHRONOUS)),
    ("atime", Atime(false, MOUNT_ATTR_NOATIME)),
    ("bind", Bind(false)),
    ("defaults", Default),
    ("dev", Meaning::Attr(false, MOUNT_ATTR_NODEV)),
    ("diratime", Meaning::Attr(false, MOUNT_ATTR_NODIRATIME)),
    ("dirsync", Superblock(true, MS_DIRSYNC)),
    ("exec", Meaning::Attr(false, MOUNT_ATTR_NOEXEC)),
    ("idmap", IdMapped(false)),
    ("iversion", Superblock(true, MS_I_VERSION)),
    ("lazytime", Superblock(true, MS_LAZYTIME)),
    // Silences messages of the kernel about a failing mount: nothing to see with fsopen(2).
    ("loud", Default),
    ("mand", Superblock(true, MS_MANDLOCK)),
    ("noatime", Atime(true, MOUNT_ATTR_NOATIME)),
    ("nodev", Meaning::Attr(true, MOUNT_ATTR_NODEV)),
    ("nodiratime", Meaning::Attr(true, MOUNT_ATTR_NODIRATIME)),
    ("noexec", Meaning::Attr(true, MOUNT_ATTR_NOEXEC)),
    ("noiversion", Superblock(false, MS_I_VERSION)),
    ("nolazytime", Superblock(false, MS_LAZYTIME)),
    ("nomand", Superblock(false, MS_MANDLOCK)),
    ("norelatime", Atime(false, MOUNT_ATTR_RELATIME)),
    ("nostrictatime", Atime(false, MOUNT_ATTR_STRICTATIME)),
    ("nosuid", Meaning::Attr(true, MOUNT_ATTR_NOSUID)),
    ("nosymfollow", Meaning::Attr(true, MOUNT_ATTR_NOSYMFOLLOW)),
    ("private", Propagation(false, MS_PRIVATE)),
    ("ratime", RecursiveAtime(false, MOUNT_ATTR_NOATIME)),
    ("rbind", Bind(true)),
    ("rdev", Recursive(false, MOUNT_ATTR_NODEV)),
    ("rdiratime", Recursive(false, MOUNT_ATTR_NODIRATIME)),
    ("relatime", Atime(true, MOUNT_ATTR_RELATIME)),
    ("remount", Remount),
    ("rexec", Recursive(false, MOUNT_ATTR_NOEXEC)),
    ("ridmap", IdMapped(true)),
    ("rnoatime", RecursiveAtime(true, MOUNT_ATTR_NOATIME)),
    ("rnodev", Recursive(true, MOUNT_ATTR_NODEV)),
    ("rnodiratime", Recursive(true, MOUNT_ATTR_NODIRATIME)),
    ("rnoexec", Recursive(true, MOUNT_ATTR_NOEXEC)),
    ("rnorelatime", RecursiveAtime(false, MOUNT_ATTR_RELATIME)),
    ("rnostrictatime", RecursiveAtime(false, MOUNT_ATTR_STRICTATIME)),
    ("rnosuid", Recursive(true, MOUNT_ATTR_NOSUID)),
    ("rnosymfollow", Recursive(true, MOUNT_ATTR_NOSYMFOLLOW)),
    ("ro", Meaning::Attr(true, MOUNT_ATTR_RDONLY)),
    ("rprivate", Propagation(true, MS_PRIVATE)),
    ("rrelatime", RecursiveAtime(true, MOUNT_ATTR_RELATIME)),
    ("rro", Recursive(true, MOUNT_ATTR_RDONLY)),
    ("rrw", Recursive(false, MOUNT_ATTR_RDONLY)),
    ("rshared", Propagation(true, MS_SHARED)),
    ("rslave", Propagation(true, MS_SLAVE)),
    ("rstrictatime", RecursiveAtime(true, MOUNT_ATTR_STRICTATIME)),
    ("rsuid", Recursive(false, MOUNT_ATTR_NOSUID)),
    ("rsymfollow", Recursive(false, MOUNT_ATTR_NOSYMFOLLOW)),
    ("runbindable", Propagation(true, MS_UNBINDABLE)),
    ("rw", Meaning::Attr(false, MOUNT_ATTR_RDONLY)),
    ("shared", Propagation(false, MS_SHARED)),
    ("silent", Default),
    ("slave", Propagation(false, MS_SLAVE)),
    ("strictatime", Atime(true, MOUNT_ATTR_STRICTATIME)),
    ("suid", Meaning::Attr(false, MOUNT_ATTR_NOSUID)),
    ("symfollow", Meaning::Attr(false, MOUNT_ATTR_NOSYMFOLLOW)),
    ("sync", Superblock(true, MS_SYNCHRONOUS)),
    ("tmpcopyup", CopyUp),
    ("unbindable", Propagation(false, MS_UNBINDABLE)),
    // Not of the specification, but of containerd's mounts.
    ("loop", Unsupported),
];

/// The options of the specification that a plan can carry out, sorted.
pub fn mount_options() -> Vec<&'static str> {
    let names = TABLE.iter().filter(|(_, meaning)| !matches!(meaning, Unsupported));
    let mut names: Vec<&str> = names.map(|(name, _)| *name).collect();
    names.sort_unstable();
    names
}

/// Bits of one mount, or of a tree of mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits {
    pub set: u64,
    pub clear: u64,
    /// One of three; none: the kernel's default, or what a bind's source has.
    pub atime: Option<u64>,
}

impl Bits {
    fn change(&mut self, set: bool, bit: u64) {
        let (add, drop) =
            if set { (&mut self.set, &mut self.clear) } else { (&mut self.clear, &mut self.set) };
        *add |= bit;
        *drop &= !bit;
    }

    /// "Not this mode" leaves another one alone. `assert`: with no mode given, it means relatime,
    /// the kernel's default.
    fn not_atime(&mut self, mode: u64, assert: bool) {
        if self.atime == Some(mode) || (self.atime.is_none() && assert) {
            self.atime = Some(MOUNT_ATTR_RELATIME);
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Bits::default()
    }

    /// For `mount_setattr(2)`, which wants the whole mode cleared when it is to change.
    pub fn attr(&self, recursive: bool) -> Attr {
        let atime = if self.atime.is_some() { MOUNT_ATTR__ATIME } else { 0 };
        Attr {
            set: self.set | self.atime.unwrap_or(0),
            clear: self.clear | atime,
            propagation: 0,
            recursive,
        }
    }
}

/// The options of one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// A bind mount; `true`: with the mounts beneath.
    pub bind: Option<bool>,
    /// Ids are mapped; `true`: those of the mounts beneath as well.
    pub ids: Option<bool>,
    pub own: Bits,
    pub recursive: Bits,
    /// In the order given.
    pub propagation: Vec<(u64, bool)>,
    /// `MS_*` of the superblock.
    pub superblock: u64,
    pub remount: bool,
    /// See [`Meaning::CopyUp`].
    pub copy_up: bool,
    /// What the file system itself is to be told.
    pub params: Vec<Param>,
}

impl Options {
    /// Sorts options by what they ask for.
    pub fn parse(options: &[String]) -> Result<Options> {
        let mut all = Options::default();
        for option in options.iter().filter(|o| !o.is_empty()) {
            match TABLE.iter().find(|(name, _)| name == option) {
                Some((_, meaning)) => all.add(option, *meaning)?,
                None => all.params.push(param(option)?),
            }
        }
        Ok(all)
    }

    fn add(&mut self, option: &str, meaning: Meaning) -> Result<()> {
        match meaning {
            Default => {}
            // `rbind` wins over `bind`, as its flags include the other's.
            Bind(recursive) => self.bind = Some(recursive || self.bind == Some(true)),
            IdMapped(recursive) => self.ids = Some(recursive || self.ids == Some(true)),
            Meaning::Attr(set, bit) => self.own.change(set, bit),
            Recursive(set, bit) => self.recursive.change(set, bit),
            Atime(true, mode) => self.own.atime = Some(mode),
            Atime(false, mode) => self.own.not_atime(mode, mode == MOUNT_ATTR_NOATIME),
            RecursiveAtime(true, mode) => self.recursive.atime = Some(mode),
            RecursiveAtime(false, mode) => self.recursive.not_atime(mode, true),
            Propagation(recursive, flag) => self.propagation.push((flag, recursive)),
            Superblock(true, flag) => self.superblock |= flag,
            Superblock(false, flag) => self.superblock &= !flag,
            Remount => self.remount = true,
            CopyUp => self.copy_up = true,
            Unsupported => return Err(Error::unimplemented(format!("{option:?}"))),
        }
        Ok(())
    }

    /// `MOUNT_ATTR_*` for `fsmount(2)`. A new mount has none beneath it, so both kinds are one.
    pub fn new_mount(&self) -> u64 {
        let set = (self.own.set & !self.recursive.clear) | self.recursive.set;
        set | self.recursive.atime.or(self.own.atime).unwrap_or(0)
    }

    /// Flags of the superblock as `fsconfig(2)` names them.
    pub fn superblock_params(&self) -> Result<Vec<Param>> {
        const NAMES: [(u64, &str); 4] = [
            (MS_SYNCHRONOUS, "sync"),
            (MS_DIRSYNC, "dirsync"),
            (MS_LAZYTIME, "lazytime"),
            (MS_MANDLOCK, "mand"),
        ];
        // fsconfig(2) has no name for it.
        if self.superblock & MS_I_VERSION != 0 {
            return Err(Error::unimplemented("\"iversion\""));
        }
        NAMES
            .iter()
            .filter(|(flag, _)| self.superblock & flag != 0)
            .map(|(_, n)| param(n))
            .collect()
    }

    /// The same mount in the flags of `mount(2)`.
    pub fn old_flags(&self) -> u64 {
        const FLAGS: [(u64, u64); 7] = [
            (MOUNT_ATTR_RDONLY, MS_RDONLY),
            (MOUNT_ATTR_NOSUID, MS_NOSUID),
            (MOUNT_ATTR_NODEV, MS_NODEV),
            (MOUNT_ATTR_NOEXEC, MS_NOEXEC),
            (MOUNT_ATTR_NODIRATIME, MS_NODIRATIME),
            (MOUNT_ATTR_NOSYMFOLLOW, MS_NOSYMFOLLOW),
            (MOUNT_ATTR_NOATIME, MS_NOATIME),
        ];
        let attr = self.new_mount();
        let strict =
            if attr & MOUNT_ATTR__ATIME == MOUNT_ATTR_STRICTATIME { MS_STRICTATIME } else { 0 };
        FLAGS
            .iter()
            .filter(|(bit, _)| attr & bit != 0)
            .fold(self.superblock | strict, |flags, (_, flag)| flags | flag)
    }
}

/// `key`, or `key=value`.
pub(super) fn param(option: &str) -> Result<Param> {
    let (key, value) = match option.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (option, None),
    };
    let value: Option<Result<CString>> = value.map(|v| cstring("a value", v));
    Ok(Param { key: cstring("a key", key)?, value: value.transpose()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn parse(options: &[&str]) -> Options {
        Options::parse(&options.iter().map(|o| o.to_string()).collect::<Vec<_>>()).unwrap()
    }

    /// Each option of the specification, alone: what it sets and clears on the mount itself, and
    /// on the mounts beneath, in the kernel's numbers.
    const ATTRS: [(&str, [u64; 4]); 36] = [
        ("ro", [0x1, 0, 0, 0]),
        ("rw", [0, 0x1, 0, 0]),
        ("nosuid", [0x2, 0, 0, 0]),
        ("suid", [0, 0x2, 0, 0]),
        ("nodev", [0x4, 0, 0, 0]),
        ("dev", [0, 0x4, 0, 0]),
        ("noexec", [0x8, 0, 0, 0]),
        ("exec", [0, 0x8, 0, 0]),
        ("noatime", [0x10, 0x70, 0, 0]),
        ("atime", [0, 0x70, 0, 0]),
        ("strictatime", [0x20, 0x70, 0, 0]),
        ("nostrictatime", [0, 0, 0, 0]),
        ("relatime", [0, 0x70, 0, 0]),
        ("norelatime", [0, 0, 0, 0]),
        ("nodiratime", [0x80, 0, 0, 0]),
        ("diratime", [0, 0x80, 0, 0]),
        ("nosymfollow", [0x20_0000, 0, 0, 0]),
        ("symfollow", [0, 0x20_0000, 0, 0]),
        ("rro", [0, 0, 0x1, 0]),
        ("rrw", [0, 0, 0, 0x1]),
        ("rnosuid", [0, 0, 0x2, 0]),
        ("rsuid", [0, 0, 0, 0x2]),
        ("rnodev", [0, 0, 0x4, 0]),
        ("rdev", [0, 0, 0, 0x4]),
        ("rnoexec", [0, 0, 0x8, 0]),
        ("rexec", [0, 0, 0, 0x8]),
        ("rnoatime", [0, 0, 0x10, 0x70]),
        ("ratime", [0, 0, 0, 0x70]),
        ("rstrictatime", [0, 0, 0x20, 0x70]),
        ("rnostrictatime", [0, 0, 0, 0x70]),
        ("rrelatime", [0, 0, 0, 0x70]),
        ("rnorelatime", [0, 0, 0, 0x70]),
        ("rnodiratime", [0, 0, 0x80, 0]),
        ("rdiratime", [0, 0, 0, 0x80]),
        ("rnosymfollow", [0, 0, 0x20_0000, 0]),
        ("rsymfollow", [0, 0, 0, 0x20_0000]),
    ];

    #[test]
    fn attributes() {
        for (option, want) in ATTRS {
            let got = parse(&[option]);
            let (own, tree) = (got.own.attr(false), got.recursive.attr(true));
            assert_eq!([own.set, own.clear, tree.set, tree.clear], want, "{option}");
            let rest = Options { own: got.own, recursive: got.recursive, ..Options::default() };
            assert_eq!(got, rest, "{option} does something else as well");
        }
    }

    #[test]
    fn the_opposite_that_comes_last_wins() {
        for (first, last) in [("ro", "rw"), ("nosuid", "suid"), ("rro", "rrw"), ("rnodev", "rdev")]
        {
            assert_eq!(parse(&[first, last]), parse(&[last]), "{first},{last}");
            assert_eq!(parse(&[last, first]), parse(&[first]), "{last},{first}");
        }
        assert_eq!(parse(&["noatime", "nostrictatime"]), parse(&["noatime"]));
        assert_eq!(parse(&["noatime", "atime"]), parse(&["relatime"]));
        assert_eq!(parse(&["noatime", "strictatime"]), parse(&["strictatime"]));
    }

    #[test]
    fn propagation() {
        let names = ["private", "slave", "shared", "unbindable"];
        for (name, flag) in names.iter().zip([1 << 18, 1 << 19, 1 << 20, 1 << 17]) {
            assert_eq!(parse(&[name]).propagation, [(flag, false)], "{name}");
            assert_eq!(parse(&[&format!("r{name}")]).propagation, [(flag, true)], "r{name}");
        }
        assert_eq!(parse(&["rslave", "shared"]).propagation, [(1 << 19, true), (1 << 20, false)]);
    }

    #[test]
    fn binds_and_nothings() {
        assert_eq!(parse(&["bind"]).bind, Some(false));
        assert_eq!(parse(&["rbind"]).bind, Some(true));
        assert_eq!(parse(&["rbind", "bind"]).bind, Some(true));
        assert_eq!(parse(&["idmap"]).ids, Some(false));
        assert_eq!(parse(&["ridmap", "idmap"]).ids, Some(true));
        assert!(parse(&["remount"]).remount);
        assert!(parse(&["tmpcopyup"]).copy_up);
        for option in ["defaults", "silent", "loud", ""] {
            assert_eq!(parse(&[option]), Options::default(), "{option:?}");
        }
    }

    #[test]
    fn superblock() {
        let flags =
            [("sync", "async"), ("mand", "nomand"), ("lazytime", "nolazytime"), ("dirsync", "")];
        for (option, opposite) in flags {
            let names = parse(&[option]).superblock_params().unwrap();
            assert_eq!(names, [Param { key: CString::new(option).unwrap(), value: None }]);
            if !opposite.is_empty() {
                assert_eq!(parse(&[option, opposite]), Options::default(), "{opposite}");
            }
        }
        let error = parse(&["iversion"]).superblock_params().unwrap_err();
        assert_eq!(error.to_string(), "\"iversion\" is not supported");
        assert_eq!(parse(&["iversion", "noiversion"]), Options::default());
        let all = parse(&["sync", "ro", "strictatime", "iversion", "nosymfollow"]);
        assert_eq!(all.old_flags(), 0x10 | 0x1 | 0x100_0000 | 0x80_0000 | 0x100);
        assert_eq!(parse(&["noatime", "nodiratime"]).old_flags(), 0x400 | 0x800);
    }

    #[test]
    fn the_rest_is_for_the_file_system() {
        let got = parse(&["mode=755", "nodev", "newinstance", "context=a=b"]);
        let text: Vec<_> = got
            .params
            .iter()
            .map(|p| (p.key.to_str().unwrap(), p.value.as_ref().map(|v| v.to_str().unwrap())))
            .collect();
        assert_eq!(text, [("mode", Some("755")), ("newinstance", None), ("context", Some("a=b"))]);
    }

    #[test]
    fn what_is_missing_is_refused_by_name() {
        let error = Options::parse(&["loop".to_string()]).unwrap_err();
        assert_eq!(error.kind(), Kind::Unimplemented);
        assert_eq!(error.to_string(), "\"loop\" is not supported");
        let error = Options::parse(&["size=1\0".to_string()]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }

    #[test]
    fn recursive_attributes_are_a_new_mounts_own() {
        assert_eq!(parse(&["nosuid", "rro", "rnoatime"]).new_mount(), 0x2 | 0x1 | 0x10);
        assert_eq!(parse(&["ro", "rrw"]).new_mount(), 0);
    }

    #[test]
    fn every_option_of_the_table_is_tested() {
        let others = "async bind defaults dirsync idmap iversion lazytime loud mand noiversion \
            nolazytime nomand private rbind remount ridmap rprivate rshared rslave runbindable \
            shared silent slave sync tmpcopyup unbindable loop";
        let mut want: Vec<&str> = others.split_whitespace().collect();
        want.extend(ATTRS.iter().map(|(name, _)| name));
        want.sort_unstable();
        let mut have: Vec<&str> = TABLE.iter().map(|(name, _)| *name).collect();
        have.sort_unstable();
        assert_eq!(have, want);
    }
}
