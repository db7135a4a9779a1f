//! `org.systemd.property.*`: properties that a spec gives its scope by annotations. Pure.
//!
//! Annotations come from pods, if the configuration lets them through. They must never reach beyond
//! the scope: `Wants` and `Conflicts` start and stop services of the host, `SuccessAction` reboots it.

use oci_spec::runtime::Spec;
use zvariant::Value;

use super::{Property, text};
use crate::error::{Doing, Error, Result};

const PREFIX: &str = "org.systemd.property.";
/// Limits, and how a scope is ended: how the names of such properties begin.
const FAMILIES: [&str; 14] = [
    "Allowed",
    "CPU",
    "IO",
    "Kill",
    "Memory",
    "RuntimeMax",
    "RuntimeRandomizedExtra",
    "SendSIG",
    "StartupAllowed",
    "StartupCPU",
    "StartupIO",
    "StartupMemory",
    "Tasks",
    "TimeoutStop",
];
/// Others that concern the scope alone, or at most the order in which it is stopped. Not `Slice`,
/// `PIDs`, `Delegate`, `User`: it would not be ours any more, or not the one that is on record.
const OTHERS: [&str; 11] = [
    "After",
    "Before",
    "CollectMode",
    "DefaultDependencies",
    "Description",
    "DevicePolicy",
    "Documentation",
    "FinalKillSignal",
    "OOMPolicy",
    "RestartKillSignal",
    "WatchdogSignal",
];

/// In the order of their names.
pub(super) fn properties(spec: &Spec) -> Result<Vec<Property>> {
    let mut all = Vec::new();
    for (key, value) in spec.annotations().iter().flatten() {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        all.push(property(name, value).doing(|| format!("annotation {key:?}"))?);
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// The property that this one is another word for: systemd takes `StartupMemoryMax` in place of
/// `MemoryMax` while the host starts or stops, and `MemoryMaxScale` is a part of its memory.
pub(super) fn limited(name: &str) -> &str {
    let name = name.strip_prefix("Startup").unwrap_or(name);
    name.strip_suffix("Scale").unwrap_or(name)
}

fn property(name: &str, value: &str) -> Result<Property> {
    let known = FAMILIES.iter().any(|begin| name.starts_with(begin)) || OTHERS.contains(&name);
    if !known || !name.bytes().all(|b| b.is_ascii_alphabetic()) {
        return Err(Error::invalid("no property of a scope that can be set"));
    }
    let value = text::parse(value)?;
    // Manuals say `TimeoutStopSec`, the bus `TimeoutStopUSec`.
    let seconds =
        name.strip_suffix("Sec").filter(|stem| stem.ends_with(|c: char| c.is_ascii_lowercase()));
    match seconds {
        Some(stem) => Ok(Property::new(format!("{stem}USec"), microseconds(&value)?)),
        None => Ok(Property { name: name.into(), value }),
    }
}

fn microseconds(seconds: &Value<'_>) -> Result<u64> {
    let whole = match seconds {
        Value::U8(n) => Some(u64::from(*n)),
        Value::U16(n) => Some(u64::from(*n)),
        Value::U32(n) => Some(u64::from(*n)),
        Value::U64(n) => Some(*n),
        Value::I16(n) => u64::try_from(*n).ok(),
        Value::I32(n) => u64::try_from(*n).ok(),
        Value::I64(n) => u64::try_from(*n).ok(),
        Value::F64(n) if *n >= 0.0 => return Ok((n * 1e6) as u64),
        _ => None,
    };
    whole
        .and_then(|seconds| seconds.checked_mul(1_000_000))
        .ok_or_else(|| Error::invalid(format!("{seconds} is not a number of seconds")))
}
