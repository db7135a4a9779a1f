//! The one error type of the library: a kind for programs, a text for people, the errno beneath.
//!
//! A text reads from what the user asked down to the system call that failed, with its arguments:
//! `create container "web": step 14/52: mount proc on "/proc": fsmount: EPERM`.
//! It must never log; the service boundary does that, once.

use std::fmt;

use nix::errno::Errno;

/// What a caller can do about an error. Each kind has one TTRPC status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request or the spec is wrong; sending it again is useless.
    InvalidArgument,
    /// No such sandbox, container or exec, or the process has already exited.
    NotFound,
    /// The id is in use.
    AlreadyExists,
    /// The object is in the wrong state for this verb.
    FailedPrecondition,
    /// A feature that this program does not have.
    Unimplemented,
    /// Something did not answer in time.
    DeadlineExceeded,
    /// The shim is going away.
    Unavailable,
    /// A system call failed.
    Unknown,
}

/// An error with its story. See the module text.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    errno: Option<Errno>,
    text: String,
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of our own making: no system call failed.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Error { kind, errno: None, text: text.into() }
    }

    /// `call`, with its arguments as strace would print them, failed with `errno`.
    pub fn sys(call: impl fmt::Display, errno: Errno) -> Self {
        Error { kind: Kind::Unknown, errno: Some(errno), text: format!("{call}: {errno:?}") }
    }

    /// `call` failed with `error`, which std reported.
    pub fn io(call: impl fmt::Display, error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(raw) => Error::sys(call, Errno::from_raw(raw)),
            None => Error::new(Kind::Unknown, format!("{call}: {error}")),
        }
    }

    /// The request is wrong.
    pub fn invalid(text: impl Into<String>) -> Self {
        Error::new(Kind::InvalidArgument, text)
    }

    /// A feature that this program lacks, by its name in the specification.
    pub fn unimplemented(what: impl fmt::Display) -> Self {
        Error::new(Kind::Unimplemented, format!("{what} is not supported"))
    }

    /// The same error of another kind.
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Puts what was being done in front.
    pub fn doing(mut self, doing: impl fmt::Display) -> Self {
        self.text = format!("{doing}: {}", self.text);
        self
    }

    /// Puts a circumstance that may be the reason behind it.
    pub fn because(mut self, reason: impl fmt::Display) -> Self {
        self.text = format!("{} ({reason})", self.text);
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The errno of the system call beneath, if one failed.
    pub fn errno(&self) -> Option<Errno> {
        self.errno
    }

    /// `first`, and what failed after it.
    pub fn all(mut first: Error, more: impl IntoIterator<Item = Error>) -> Error {
        for error in more {
            first.text = format!("{}; {}", first.text, error.text);
        }
        first
    }

    /// One error of many: teardown runs every step and returns every failure.
    pub fn join(errors: Vec<Error>) -> Result<()> {
        let mut errors = errors.into_iter();
        match errors.next() {
            Some(first) => Err(Error::all(first, errors)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

/// Adds what was being done to the error of a `Result`.
pub trait Doing<T> {
    /// Puts `doing` in front of the error's text.
    fn doing<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Doing<T> for Result<T> {
    fn doing<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| e.doing(doing()))
    }
}

impl<T> Doing<T> for std::result::Result<T, Errno> {
    fn doing<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|errno| Error::sys(doing(), errno))
    }
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| Error::io(doing(), &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_reads_from_the_request_down_to_the_errno() {
        let error: Result<()> = Err(Errno::EPERM).doing(|| "fsmount");
        let error = error.doing(|| "step 14/52: mount proc on \"/proc\"").unwrap_err();
        let error = error.doing("create container \"web\"");
        assert_eq!(
            error.to_string(),
            "create container \"web\": step 14/52: mount proc on \"/proc\": fsmount: EPERM"
        );
        assert_eq!((error.kind(), error.errno()), (Kind::Unknown, Some(Errno::EPERM)));
    }

    #[test]
    fn teardown_keeps_every_failure() {
        assert!(Error::join(vec![]).is_ok());
        let all = Error::join(vec![Error::invalid("a"), Error::sys("rmdir b", Errno::EBUSY)]);
        assert_eq!(all.unwrap_err().to_string(), "a; rmdir b: EBUSY");
    }
}
