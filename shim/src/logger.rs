//! Log lines as containerd's own shims write them, into the FIFO `log` that containerd reads.
//!
//! It must never block and never fail: a line for which there is no room is dropped.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::panic;
use std::path::Path;

use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::fcntl::OFlag;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// PIPE_BUF: what a FIFO takes whole or not at all.
const MAX_LINE: usize = 4096;

struct Logger {
    sink: File,
    /// Fields at the end of each line: containerd mixes the lines of all its shims.
    fields: String,
}

/// The FIFO at `path`, if there is one.
///
/// Read-write, since for writing alone it opens only while containerd has it open, and a write
/// after containerd has gone would be EPIPE.
pub fn fifo(path: &Path) -> Option<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let file = File::options().read(true).write(true).custom_flags(flags.bits()).open(path).ok()?;
    let is_fifo = file.metadata().is_ok_and(|found| found.file_type().is_fifo());
    is_fifo.then_some(file)
}

/// Stderr: for `delete`, of which containerd logs it.
pub fn stderr() -> Option<File> {
    io::stderr().as_fd().try_clone_to_owned().ok().map(File::from)
}

/// Sends every line of this process, panics included, to `sink`.
pub fn install(sink: Option<File>, namespace: &str, id: &str, debug: bool) {
    let Some(sink) = sink else { return };
    let mut fields = String::new();
    quote(&mut fields, " namespace=", namespace, 256);
    quote(&mut fields, " id=", id, 256);
    if log::set_boxed_logger(Box::new(Logger { sink, fields })).is_ok() {
        log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
        panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let line = line(&time, record.level(), &record.args().to_string(), &self.fields);
        let _ = (&self.sink).write(line.as_bytes());
    }

    fn flush(&self) {}
}

fn line(time: &str, level: Level, text: &str, fields: &str) -> String {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let mut line = format!("time=\"{time}\" level={level}");
    let room = MAX_LINE.saturating_sub(line.len() + fields.len() + 1);
    quote(&mut line, " msg=", text, room);
    line.push_str(fields);
    line.push('\n');
    line
}

/// `text` in about `room` bytes: what is said first and, as the errno stands there, last.
fn shortened(text: &str, room: usize) -> Cow<'_, str> {
    const GAP: &str = " … ";
    if text.len() <= room {
        return Cow::Borrowed(text);
    }
    let room = room.saturating_sub(GAP.len());
    let half = room / 2;
    let head = (0..=half).rev().find_map(|end| text.get(..end)).unwrap_or_default();
    let tail = (text.len().saturating_sub(half)..=text.len()).find_map(|start| text.get(start..));
    Cow::Owned([head, GAP, tail.unwrap_or_default()].concat())
}

/// Appends `key` and the quoted `text`, of which as much as fits into `room` bytes.
fn quote(line: &mut String, key: &str, text: &str, room: usize) {
    let text = &*shortened(text, room.saturating_sub(key.len() + 2));
    line.push_str(key);
    line.push('"');
    let end = line.len() + room.saturating_sub(key.len() + 2);
    for c in text.chars() {
        let before = line.len();
        let _ = match c {
            '"' | '\\' => write!(line, "\\{c}"),
            '\n' => write!(line, "\\n"),
            '\t' => write!(line, "\\t"),
            c if c.is_control() => write!(line, "\\u{:04x}", u32::from(c)),
            c => write!(line, "{c}"),
        };
        if line.len() > end {
            line.truncate(before);
            break;
        }
    }
    line.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_bounded() {
        let got = line("T", Level::Warn, "a \"b\"\n\\c\u{1b}", " id=\"x\"");
        assert_eq!(got, "time=\"T\" level=warning msg=\"a \\\"b\\\"\\n\\\\c\\u001b\" id=\"x\"\n");
        for c in ["x", "\n", "é"] {
            let long = line("T", Level::Info, &c.repeat(5000), " id=\"x\"");
            assert!(long.len() <= MAX_LINE && long.len() > MAX_LINE - 8, "{}", long.len());
            assert!(long.ends_with("\" id=\"x\"\n"));
        }
        let long = format!("step: {}: EPERM", "x".repeat(5000));
        let long = line("T", Level::Info, &long, " id=\"x\"");
        assert!(long.contains("msg=\"step: xx") && long.contains("xx: EPERM\""), "{long}");
    }
}
