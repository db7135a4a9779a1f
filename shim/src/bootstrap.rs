//! What containerd says to `start` on stdin, and how it must be answered.
//!
//! Three generations: nothing or an `Any` on stdin before containerd 2.3, `BootstrapParams` since.
//! MAX_SHIM_VERSION is 2 in all of them and tells nothing.

use std::env;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use containerd_shim::StartOpts;
use containerd_shim::bootstrap::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_rs::config::Given;
use containerd_shim_rs::error::{Doing, Error, Result};
use containerd_shim_rs::service;

use crate::args::Flags;

/// More than any message; containerd's own shim has the same limit.
const MAX_INPUT: u64 = 10 << 20;

/// The version of the Task service that a reply announces; version 2 goes without saying.
const TASK_VERSION: i32 = 3;

/// Where containerd 2.0 to 2.2 put the bundle of a sandbox.
const SANDBOX_BUNDLES: &str = "io.containerd.sandbox.controller.v1.shim";

/// How the caller wants to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `BootstrapResult`: containerd 2.3 and later.
    Protobuf,
    /// JSON: a sandbox of containerd 2.0 to 2.2.
    Json,
    /// The address alone, which every version takes for version 2; 1.6 takes nothing else.
    Plain,
}

/// Reads stdin.
pub fn read(flags: &Flags, bundle: &Path) -> Result<(StartOpts, Reply)> {
    decode(&read_stdin()?, flags, bundle)
}

/// All of stdin, if it is not somebody's keyboard.
pub fn read_stdin() -> Result<Vec<u8>> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Ok(Vec::new());
    }
    let mut input = Vec::new();
    stdin.lock().take(MAX_INPUT + 1).read_to_end(&mut input).doing(|| "read stdin")?;
    if input.len() as u64 > MAX_INPUT {
        return Err(Error::invalid(format!("stdin has more than {MAX_INPUT} bytes")));
    }
    Ok(input)
}

fn decode(input: &[u8], flags: &Flags, bundle: &Path) -> Result<(StartOpts, Reply)> {
    // An Any decodes as BootstrapParams too, with its type URL as instance_id: only a message that
    // names us is one.
    let params = BootstrapParams::parse_from_bytes(input)
        .ok()
        .filter(|params| params.instance_id == flags.id && params.namespace == flags.namespace);
    let (mut options, reply) = match params {
        Some(params) => (StartOpts::from(params), Reply::Protobuf),
        None if bundle.ancestors().skip(1).any(|dir| dir.ends_with(SANDBOX_BUNDLES)) => {
            (legacy(input, flags)?, Reply::Json)
        }
        None => (legacy(input, flags)?, Reply::Plain),
    };
    options.debug |= flags.debug;
    fill(&mut options.address, [flags.address.clone(), variable("GRPC_ADDRESS")]);
    // containerd's own rule for its TTRPC socket.
    let beside = format!("{}.ttrpc", options.address);
    fill(&mut options.ttrpc_address, [variable("TTRPC_ADDRESS"), beside]);
    Ok((options, reply))
}

fn legacy(input: &[u8], flags: &Flags) -> Result<StartOpts> {
    let any = Any::parse_from_bytes(input).map_err(|error| {
        Error::invalid(format!("stdin is neither BootstrapParams for this id nor an Any: {error}"))
    })?;
    Ok(StartOpts {
        id: flags.id.clone(),
        namespace: flags.namespace.clone(),
        extensions: if any.type_url.is_empty() { Vec::new() } else { vec![any] },
        ..StartOpts::default()
    })
}

/// The first value that is not empty.
fn fill<const N: usize>(field: &mut String, others: [String; N]) {
    for other in others {
        if field.is_empty() {
            *field = other;
        }
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

/// The runtime options, if there are any among what came.
pub fn options(start: &StartOpts) -> Result<Given> {
    service::options::given(start.extensions.iter().find(|any| service::options::is_known(any)))
}

/// Writes the reply: the only bytes that `start` ever prints.
pub fn answer(reply: Reply, address: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(&encode(reply, address)?)
        .and_then(|()| stdout.flush())
        .doing(|| "write the reply to stdout")
}

fn encode(reply: Reply, address: &str) -> Result<Vec<u8>> {
    match reply {
        Reply::Plain => Ok(address.as_bytes().to_vec()),
        Reply::Json => {
            let json = serde_json::json!({"version": TASK_VERSION, "address": address, "protocol": "ttrpc"});
            Ok(json.to_string().into_bytes())
        }
        Reply::Protobuf => {
            let result = BootstrapResult {
                version: TASK_VERSION,
                address: address.to_string(),
                protocol: "ttrpc".to_string(),
                ..BootstrapResult::default()
            };
            result
                .write_to_bytes()
                .map_err(|error| Error::invalid(format!("encode BootstrapResult: {error}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::shim::oci::Options;

    use super::*;

    const TASK: &str = "/run/containerd/io.containerd.runtime.v2.task/ns/x";
    const SANDBOX: &str = "/run/containerd/io.containerd.sandbox.controller.v1.shim/ns/x";

    fn flags() -> Flags {
        Flags {
            id: "x".to_string(),
            namespace: "ns".to_string(),
            address: "/c.sock".to_string(),
            ..Flags::default()
        }
    }

    fn any(options: &Options) -> Vec<u8> {
        let any = Any {
            type_url: "containerd.runc.v1.Options".to_string(),
            value: options.write_to_bytes().unwrap(),
            ..Any::default()
        };
        any.write_to_bytes().unwrap()
    }

    #[test]
    fn an_any_is_never_taken_for_bootstrap_params() {
        let options = Options { shim_cgroup: "/shims".to_string(), ..Options::default() };
        for (input, cgroup) in
            [(any(&options), Some("/shims")), (any(&Options::default()), None), (Vec::new(), None)]
        {
            for (bundle, expected) in [(TASK, Reply::Plain), (SANDBOX, Reply::Json)] {
                let (start, reply) = decode(&input, &flags(), Path::new(bundle)).unwrap();
                assert_eq!(reply, expected);
                let given = super::options(&start).unwrap();
                assert_eq!(given.table.shim_cgroup.as_deref(), cgroup);
                assert_eq!(
                    (start.address.as_str(), start.ttrpc_address.as_str()),
                    ("/c.sock", "/c.sock.ttrpc")
                );
            }
        }
    }

    #[test]
    fn bootstrap_params_must_name_us() {
        let mut params = BootstrapParams {
            instance_id: "x".to_string(),
            namespace: "ns".to_string(),
            containerd_ttrpc_address: "/t".to_string(),
            socket_dir: Some("/dir".to_string()),
            ..BootstrapParams::default()
        };
        let input = params.write_to_bytes().unwrap();
        let (start, reply) = decode(&input, &flags(), Path::new(SANDBOX)).unwrap();
        assert_eq!((reply, start.ttrpc_address.as_str()), (Reply::Protobuf, "/t"));
        assert_eq!(
            (start.address.as_str(), start.socket_dir.as_deref()),
            ("/c.sock", Some("/dir"))
        );
        params.instance_id = "y".to_string();
        let input = params.write_to_bytes().unwrap();
        assert!(!matches!(decode(&input, &flags(), Path::new(TASK)), Ok((_, Reply::Protobuf))));
    }

    #[test]
    fn json_and_plain_replies_are_no_protobuf() {
        // containerd 2.3 tries protobuf first, whatever it sent.
        for reply in [Reply::Json, Reply::Plain] {
            assert!(
                BootstrapResult::parse_from_bytes(&encode(reply, "unix:///run/x").unwrap())
                    .is_err()
            );
        }
    }
}
