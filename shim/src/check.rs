//! `check`: what the host has of all that pods may need, as a table for people.
//!
//! It must never change the host; its exit status says whether a pod can run at all.

use std::io::{self, Write};

use containerd_shim_rs::check;
use containerd_shim_rs::error::{Doing, Result};

/// Prints the table; an error names what is needed and not there.
pub fn run() -> Result<()> {
    let table = check::table();
    write!(io::stdout(), "{table}").doing(|| "write to stdout")?;
    table.verdict()
}
