//! What this process keeps mapped.

use std::ffi::c_void;
use std::ops::Range;

/// Unmaps the program's text and constants, which are clean and come back from the page cache as
/// they are needed.
///
/// A start touches most of it once: JSON, planning, protobuf. At rest a few pages are enough.
pub fn release_program() {
    let Ok(smaps) = std::fs::read_to_string("/proc/self/smaps") else { return };
    let mappings = parse(&smaps);
    let here = release_program as *const () as usize;
    let Some(own) = mappings.iter().find(|m| m.range.contains(&here)).map(|m| m.inode) else {
        return;
    };
    for mapping in mappings.iter().filter(|m| m.inode == own && m.clean) {
        let start = mapping.range.start as *mut c_void;
        // SAFETY: the range is a read-only private mapping of the program's file without a page of
        // its own, so the kernel reads the same bytes again. What the loader relocated and then
        // made read-only has such pages, and is left alone.
        unsafe { libc::madvise(start, mapping.range.len(), libc::MADV_DONTNEED) };
    }
}

/// An entry of `/proc/self/smaps`.
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    range: Range<usize>,
    /// Device and inode.
    inode: (&'a str, &'a str),
    /// Not writable, and no page of it differs from the file.
    clean: bool,
}

fn parse(smaps: &str) -> Vec<Mapping<'_>> {
    let mut mappings: Vec<Mapping<'_>> = Vec::new();
    for line in smaps.lines() {
        if let Some(mapping) = head(line) {
            mappings.push(mapping);
        } else if let (Some(kb), Some(mapping)) =
            (line.strip_prefix("Anonymous:"), mappings.last_mut())
        {
            mapping.clean &= kb.trim() == "0 kB";
        }
    }
    mappings
}

fn head(line: &str) -> Option<Mapping<'_>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let range = number(start)?..number(end)?;
    let clean = matches!(fields.next()?, "r-xp" | "r--p");
    let inode = (fields.nth(1)?, fields.next()?);
    Some(Mapping { range, inode, clean })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_equals_the_file_is_let_go() {
        let smaps = "\
00401000-006bb000 r-xp 00001000 fe:00 5482460   /shim\n\
Rss:                2536 kB\n\
Anonymous:             0 kB\n\
006bb000-006bd000 r--p 003ba000 fe:00 5482460   /shim\n\
Anonymous:             8 kB\n\
007bd000-007c0000 rw-p 003bc000 fe:00 5482460   /shim\n\
Anonymous:             0 kB\n\
7f89b8fdf000-7f89b8ff6000 rw-p 00000000 00:00 0\n";
        let clean: Vec<_> = parse(smaps).into_iter().filter(|m| m.clean).collect();
        let inode = ("fe:00", "5482460");
        assert_eq!(clean, [Mapping { range: 0x401000..0x6bb000, inode, clean: true }]);
        assert_eq!(parse(smaps).len(), 4);
    }

    #[test]
    fn the_program_goes_on_afterwards() {
        release_program();
        assert_eq!(format!("{:?}", [1.5, 2.0]), "[1.5, 2.0]");
    }
}
