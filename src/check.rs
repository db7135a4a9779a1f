//! What the host has of all that a pod may need: tried out, as rows of a table.
//!
//! It must never take a version for a feature, and leaves the host as it was. What a caller without
//! root cannot try is said to be unknown.

use std::fmt;

use nix::errno::Errno;

use crate::error::{Error, Kind, Result};

mod calls;
mod cgroups;
mod host;

#[cfg(test)]
mod tests;

pub use calls::{every_container, lowerdir_plus};
pub use host::{modules, own_profile};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is there; with more than that to say, that.
    Yes(String),
    /// Why not.
    No(String),
    /// Why nobody knows.
    Unknown(String),
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub feature: &'static str,
    pub found: Found,
    /// No pod runs without it, or no container.
    pub needed: bool,
    /// What is lost, or done in its place.
    pub without: &'static str,
}

/// The whole table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The kernel, and who asked it.
    pub head: String,
    pub rows: Vec<Row>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
struct Asker {
    /// With CAP_SYS_ADMIN: then EPERM comes from elsewhere.
    admin: bool,
}

impl Asker {
    fn found(self, asked: Result<(), Errno>) -> Found {
        match asked {
            Ok(()) => yes(),
            Err(Errno::EPERM) if !self.admin => Found::Unknown("needs root".into()),
            Err(errno) => Found::No(format!("{errno:?}")),
        }
    }
}

fn yes() -> Found {
    Found::Yes("yes".into())
}

/// Something that is there or not.
fn there(is: bool, why_not: &str) -> Found {
    if is { yes() } else { Found::No(why_not.into()) }
}

fn row(feature: &'static str, found: Found, needed: bool, without: &'static str) -> Row {
    Row { feature, found, needed, without }
}

/// Tries everything. Not to be called from within a tokio runtime: systemd is asked by one of its own.
pub fn table() -> Table {
    let capabilities = host::effective_capabilities();
    let asker = Asker { admin: capabilities & host::ADMIN != 0 };
    let mut rows = calls::rows(asker);
    rows.extend(host::namespaces(asker));
    rows.extend(cgroups::rows(asker));
    rows.extend(host::rows(capabilities));
    Table { head: host::head(asker.admin), rows }
}

impl Table {
    /// An error that names what is needed and was not found.
    pub fn verdict(&self) -> Result<()> {
        let of = |wanted: fn(&Found) -> bool| {
            let rows = self.rows.iter().filter(|row| row.needed && wanted(&row.found));
            rows.map(|row| row.feature).collect::<Vec<_>>().join(", ")
        };
        let missing = of(|found| matches!(found, Found::No(_)));
        let unknown = of(|found| matches!(found, Found::Unknown(_)));
        let text = match (missing.is_empty(), unknown.is_empty()) {
            (true, true) => return Ok(()),
            (false, true) => format!("needed, and not there: {missing}"),
            (true, false) => format!("needed, and not known without root: {unknown}"),
            (false, false) => {
                format!("needed, and not there: {missing}; not known without root: {unknown}")
            }
        };
        Err(Error::new(Kind::FailedPrecondition, text))
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Yes(text) => f.write_str(text),
            Found::No(why) => write!(f, "no: {why}"),
            Found::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}

/// One long entry does not make its whole column as wide.
const WIDEST: usize = 44;

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["feature", "found", "needed", "without it"].map(String::from);
        let cells = self.rows.iter().map(|row| {
            let needed = if row.needed { "yes" } else { "no" };
            [row.feature.into(), row.found.to_string(), needed.into(), row.without.into()]
        });
        let lines: Vec<[String; 4]> = std::iter::once(head).chain(cells).collect();
        let width = |column: usize| {
            let widths = lines.iter().map(|line| line[column].chars().count());
            widths.filter(|width| *width <= WIDEST).max().unwrap_or(0)
        };
        let widths = [width(0), width(1), width(2)];
        writeln!(f, "{}\n", self.head)?;
        for [feature, found, needed, without] in &lines {
            let [a, b, c] = widths;
            let line = format!("{feature:a$}  {found:b$}  {needed:c$}  {without}");
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
