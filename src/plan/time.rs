//! Time namespaces: the offsets of a new one.
//!
//! The clock is never joined in the parent: it would jump for every timer of the shim.

use oci_spec::runtime::Linux;

use super::namespaces::CLONE_NEWTIME;
use super::paths::cstring;
use super::{Op, Plan};
use crate::error::{Error, Result};

const NANOSECONDS: u32 = 1_000_000_000;

/// `linux.timeOffsets`, and the way into a new time namespace. After `Unshare`.
pub(super) fn offsets(plan: &mut Plan, linux: &Linux, new: i32) -> Result<()> {
    let mut all: Vec<_> = linux.time_offsets().iter().flatten().collect();
    all.sort_by_key(|(clock, _)| clock.as_str());
    if new & CLONE_NEWTIME == 0 {
        return match all.first() {
            None => Ok(()),
            Some(_) => Err(Error::invalid("linux.timeOffsets needs a new time namespace")),
        };
    }
    let mut text = String::new();
    for (clock, offset) in all {
        if !["boottime", "monotonic"].contains(&clock.as_str()) {
            return Err(Error::invalid(format!("linux.timeOffsets: no clock {clock:?}")));
        }
        let (secs, nanosecs) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        if nanosecs >= NANOSECONDS {
            let text =
                format!("linux.timeOffsets.{clock}.nanosecs: {nanosecs} is a second or more");
            return Err(Error::invalid(text));
        }
        text.push_str(&format!("{clock} {secs} {nanosecs}\n"));
    }
    plan.ops.push(Op::TimeOffsets { offsets: cstring("linux.timeOffsets", &text)? });
    Ok(())
}
