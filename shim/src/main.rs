//! `containerd-shim-rs-v2`: which of its lives this process leads.
//!
//! containerd runs it as `start`, `delete` and `-info`, an administrator as `check` and `-v`; it runs
//! itself as `serve` and `holder`.
//! Nothing but a reply may ever be written to stdout, and nothing to stderr unless it fails:
//! containerd reads both as one.
#![forbid(unsafe_code)]

mod args;
mod bootstrap;
mod check;
mod confine;
mod delete;
mod info;
mod logger;
mod ready;
mod serve;
mod server;
mod start;

use std::io::Write;
use std::process::ExitCode;

use containerd_shim_rs::error::{Error, Result};

/// The name of the binary: for `ps`, `-v` and errors.
const NAME: &str = "containerd-shim-rs-v2";

const USAGE: &str = "usage: containerd-shim-rs-v2 -namespace NAMESPACE -id ID [-address SOCKET] \
                     [-publish-binary PATH] [-bundle DIR] [-debug] start|delete, or check, or -info, or -v";

fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    // One line: containerd puts it into the error that a user reads.
    let text = error.to_string().replace('\n', " ");
    let _ = writeln!(std::io::stderr(), "{NAME}: {text}");
    ExitCode::FAILURE
}

fn run() -> Result<()> {
    let flags = args::parse(std::env::args().skip(1))?;
    if flags.version {
        return info::print_version();
    }
    if flags.info {
        return info::run();
    }
    match flags.action.as_str() {
        "start" => start::run(&flags),
        "delete" => delete::run(&flags),
        "check" => check::run(),
        "serve" => serve::run(&flags),
        "holder" => containerd_shim_rs::holder::run(),
        "" => Err(Error::invalid(format!("no action given; {USAGE}"))),
        unknown => Err(Error::invalid(format!("unknown action {unknown:?}; {USAGE}"))),
    }
}
