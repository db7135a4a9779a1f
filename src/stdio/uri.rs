//! What the stdio fields of a request name, by their schemes.
//!
//! A field may come from an image's label (CVE-2026-53488): it must never be trusted beyond what
//! its text says, and nothing here opens or runs anything.

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// What one stdio field names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stream<'a> {
    /// Nothing: `/dev/null`.
    Null,
    /// A FIFO that containerd has made.
    Fifo(&'a str),
    /// A log file on the host.
    File(String),
    /// A program of the host's that reads stdout and stderr.
    Logger(Program),
    /// An end for a client of the server at this socket, by its id.
    Remote { socket: &'a str, id: String },
}

/// The program of `binary://` and `binary-v2://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub path: String,
    /// Key, value, key, value, …
    pub args: Vec<String>,
    /// It says that it is ready with a byte; else the end of its pipe says so, whatever the cause.
    pub says_ready: bool,
}

impl<'a> Stream<'a> {
    /// A path, or a URI with a scheme.
    pub fn parse(uri: &'a str) -> Result<Self> {
        if uri.is_empty() {
            return Ok(Stream::Null);
        }
        match uri.split_once("://") {
            _ if uri.starts_with('/') => Ok(Stream::Fifo(uri)),
            Some(("fifo", path)) => Ok(Stream::Fifo(path)),
            Some(("file", path)) if path.starts_with('/') => {
                let path = path.split_once('?').map_or(path, |(path, _)| path);
                Ok(Stream::File(decode(path, false)?))
            }
            Some(("binary", rest)) if rest.starts_with('/') => Program::parse(rest, false),
            Some(("binary-v2", rest)) if rest.starts_with('/') => Program::parse(rest, true),
            Some(("ttrpc+unix", rest)) if rest.starts_with('/') => remote(rest),
            Some(("file" | "binary" | "binary-v2" | "ttrpc+unix", _)) | None => {
                Err(Error::invalid(format!("{uri:?} is not absolute")))
            }
            Some((scheme, _)) => Err(Error::unimplemented(format!("stdio by {scheme}://"))),
        }
    }
}

/// `SOCKET?streaming_id=ID`.
fn remote(rest: &str) -> Result<Stream<'_>> {
    let (socket, query) = rest.split_once('?').unwrap_or((rest, ""));
    let id = query.split('&').find_map(|pair| pair.strip_prefix("streaming_id="));
    match id.map(|id| decode(id, true)).transpose()? {
        Some(id) if !id.is_empty() => Ok(Stream::Remote { socket, id }),
        _ => Err(Error::invalid(format!("no streaming_id in {query:?}"))),
    }
}

impl Program {
    /// As containerd's own shim reads it: the query's keys, each with its first value. It takes
    /// them in no order; here the order is the text's.
    fn parse(rest: &str, says_ready: bool) -> Result<Stream<'static>> {
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = decode(path, false)?;
        if Path::new(&path).components().any(|part| part == Component::ParentDir) {
            return Err(Error::invalid(format!("the logger {path:?} has \"..\" in its path")));
        }
        let mut args: Vec<String> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            if pair.contains(';') {
                return Err(Error::invalid(format!("a semicolon in {query:?}")));
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decode(key, true)?;
            if !args.iter().step_by(2).any(|have| *have == key) {
                args.extend([key, decode(value, true)?]);
            }
        }
        Ok(Stream::Logger(Program { path, args, says_ready }))
    }

    /// Refuses a program that lies in none of `dirs`; `None`: any may run. Links in these
    /// directories are their owner's word.
    pub fn allowed(&self, dirs: Option<&[PathBuf]>) -> Result<()> {
        let path = Path::new(&self.path);
        match dirs {
            Some(dirs) if !dirs.iter().any(|dir| path.starts_with(dir) && path != dir) => {
                Err(Error::invalid(format!(
                    "the logger {path:?} is in none of the directories of the option loggers"
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Undoes the escapes of a part of a URI; in a query a plus is a space.
fn decode(text: &str, query: bool) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' if query => b' ',
            b'%' => {
                let digits = [rest.next(), rest.next()].map(|digit| hex(digit.unwrap_or_default()));
                let [Some(high), Some(low)] = digits else {
                    return Err(Error::invalid(format!("bad escape in {text:?}")));
                };
                high << 4 | low
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| Error::invalid(format!("{text:?} is not UTF-8")))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn uris() {
        assert_eq!(Stream::parse("").unwrap(), Stream::Null);
        assert_eq!(Stream::parse("/run/a://b").unwrap(), Stream::Fifo("/run/a://b"));
        assert_eq!(Stream::parse("fifo:///run/a").unwrap(), Stream::Fifo("/run/a"));
        let file = Stream::File("/log/a b%\u{e9}+.log".into());
        assert_eq!(Stream::parse("file:///log/a%20b%25%C3%A9+.log?x=y").unwrap(), file);
        for bad in [
            "relative",
            "file://host",
            "file:///a%2",
            "file:///a%zz",
            "file:///%\u{e9}1",
            "binary://host/log",
            "binary:log",
            "binary:///log?a=%",
            "binary:///log?a;b",
            "binary:///bin/../tmp/x",
            "binary-v2:///bin/%2e%2e/tmp/x",
            "ttrpc+unix:///x",
            "ttrpc+unix:///x?streaming_id=",
            "ttrpc+unix://x?streaming_id=1",
        ] {
            assert_eq!(Stream::parse(bad).unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
        }
        let remote = Stream::Remote { socket: "/run/a/s", id: "web-stdout".into() };
        assert_eq!(Stream::parse("ttrpc+unix:///run/a/s?streaming_id=web-stdout").unwrap(), remote);
        assert_eq!(
            Stream::parse("ttrpc+unix:///run/a/s?x=y&streaming_id=web%2dstdout").unwrap(),
            remote
        );
        let error = Stream::parse("grpc+vsock://3:1024?streaming_id=1").unwrap_err();
        assert_eq!(error.kind(), Kind::Unimplemented);
        assert_eq!(error.to_string(), "stdio by grpc+vsock:// is not supported");
    }

    fn program(uri: &str) -> Program {
        match Stream::parse(uri).unwrap() {
            Stream::Logger(program) => program,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_query_is_a_list_of_arguments() {
        let all = program("binary:///a%20b?k=v+w&id=%2F1&empty=&alone&k=second&=none#part");
        assert_eq!((all.path.as_str(), all.says_ready), ("/a b", false));
        assert_eq!(all.args, ["k", "v w", "id", "/1", "empty", "", "alone", "", "", "none"]);
        let bare = program("binary-v2:///bin/log");
        assert_eq!((bare.args.len(), bare.says_ready), (0, true));
    }

    #[test]
    fn only_programs_below_an_allowed_directory_may_run() {
        let dirs = ["/usr/local/bin/", "/opt/log"].map(PathBuf::from);
        for path in ["/usr/local/bin/log", "/usr/local//bin/./deep/log", "/opt/log/x"] {
            assert!(program(&format!("binary://{path}")).allowed(Some(&dirs)).is_ok(), "{path}");
        }
        for path in ["/usr/local/binary", "/bin/touch", "/opt/log", "/opt/log/"] {
            let error = program(&format!("binary://{path}")).allowed(Some(&dirs)).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{path}");
        }
        assert!(program("binary:///bin/log").allowed(Some(&[])).is_err());
        assert!(program("binary:///bin/log").allowed(None).is_ok());
    }
}
