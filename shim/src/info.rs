//! `-info` and `-v`: what this program is and can do.
//!
//! It must never claim a feature that a spec could ask for in vain.

use std::io::{self, Write};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use containerd_shim_rs::error::{Doing, Error, Result};
use containerd_shim_rs::plan;
use serde_json::{Value, json};

use crate::bootstrap;

/// The runtime's name in containerd's configuration.
const RUNTIME: &str = "io.containerd.rs.v2";

/// What containerd calls the features document of the OCI runtime spec.
const FEATURES_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Set by `hack/build.sh`.
const REVISION: Option<&str> = option_env!("SHIM_REVISION");
const RUSTC: Option<&str> = option_env!("SHIM_RUSTC");

/// Prints a `RuntimeInfo`.
pub fn run() -> Result<()> {
    let input = bootstrap::read_stdin()?;
    let options = Any::parse_from_bytes(&input)
        .map_err(|error| Error::invalid(format!("stdin is not an Any: {error}")))?;
    let reply = RuntimeInfo {
        name: RUNTIME.to_string(),
        version: MessageField::some(RuntimeVersion {
            version: VERSION.to_string(),
            revision: REVISION.unwrap_or_default().to_string(),
            ..RuntimeVersion::default()
        }),
        options: if input.is_empty() { MessageField::none() } else { MessageField::some(options) },
        features: MessageField::some(Any {
            type_url: FEATURES_URL.to_string(),
            value: features().to_string().into_bytes(),
            ..Any::default()
        }),
        ..RuntimeInfo::default()
    };
    let bytes = reply
        .write_to_bytes()
        .map_err(|error| Error::invalid(format!("encode RuntimeInfo: {error}")))?;
    io::stdout().write_all(&bytes).doing(|| "write the reply to stdout")
}

/// One line: name, version, and what it was built from.
pub fn print_version() -> Result<()> {
    let mut line = format!("{} {VERSION}", crate::NAME);
    let built = [REVISION.map(|revision| format!("commit {revision}")), RUSTC.map(String::from)];
    let built: Vec<String> = built.into_iter().flatten().collect();
    if !built.is_empty() {
        line = format!("{line} ({})", built.join(", "));
    }
    writeln!(io::stdout(), "{line}").doing(|| "write to stdout")
}

/// As runc's: flags that are known, and those of them that do something.
fn seccomp() -> Value {
    let names = |prefix: &str, all: &str| {
        all.split(' ').map(|name| format!("{prefix}{name}")).collect::<Vec<_>>()
    };
    let flag = |all| names("SECCOMP_FILTER_FLAG_", all);
    json!({
        "enabled": true,
        "actions": names("SCMP_ACT_",
            "ALLOW ERRNO KILL KILL_PROCESS KILL_THREAD LOG NOTIFY TRACE TRAP"),
        "operators": names("SCMP_CMP_", "EQ GE GT LE LT MASKED_EQ NE"),
        "archs": names("SCMP_ARCH_", "AARCH64 ARM LOONGARCH64 PPC64LE RISCV64 X32 X86 X86_64"),
        "knownFlags": flag("LOG SPEC_ALLOW TSYNC WAIT_KILLABLE_RECV"),
        "supportedFlags": flag("LOG SPEC_ALLOW TSYNC WAIT_KILLABLE_RECV"),
    })
}

/// The hooks of a spec that are run.
const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// The memory policies and flags of `set_mempolicy(2)`.
const MEMORY_MODES: [&str; 7] = [
    "MPOL_DEFAULT",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_WEIGHTED_INTERLEAVE",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_LOCAL",
];
const MEMORY_FLAGS: [&str; 3] =
    ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"];

/// The OCI features document. CRI reads `rro`, `user` with idmap, and no more.
fn features() -> Value {
    let on = json!({"enabled": true});
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": HOOKS,
        "mountOptions": plan::mount_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": plan::capability_names(),
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true},
            "seccomp": seccomp(),
            "apparmor": on,
            "selinux": on,
            "intelRdt": on,
            "memoryPolicy": {"modes": MEMORY_MODES, "flags": MEMORY_FLAGS},
            "mountExtensions": {"idmap": on},
            "netDevices": on,
        },
    })
}
