//! `org.systemd.property.*`: properties that a spec gives its scope by annotations. Pure.

use oci_spec::runtime::Spec;
use zvariant::Value;

use super::{Property, text};
use crate::error::{Doing, Error, Result};

const PREFIX: &str = "org.systemd.property.";
/// The unit would not be ours any more, or not the one that is on record.
const OURS: [&str; 2] = ["Slice", "PIDs"];

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

fn property(name: &str, value: &str) -> Result<Property> {
    if name.len() < 3 || !name.bytes().all(|b| b.is_ascii_alphabetic()) || OURS.contains(&name) {
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
