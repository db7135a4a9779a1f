//! Device rules as writes to `devices.deny` and `devices.allow` of cgroup v1. Pure.
//!
//! v1 keeps a default and a set of exceptions to it. It silently ignores a rule that takes a part
//! out of an exception, and must never be sent one: the rules are worked out here first.

use super::Write;
use crate::error::{Error, Result};
use crate::plan::device_filter::{Kind, Rule};

/// A set of devices whose access differs from the default.
#[derive(Clone, Copy)]
struct Exception {
    kind: Kind,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// Whether every number of `inner` is one of `outer`.
fn covers(outer: Option<u32>, inner: Option<u32>) -> bool {
    outer.is_none() || outer == inner
}

fn meet(a: Option<u32>, b: Option<u32>) -> bool {
    covers(a, b) || covers(b, a)
}

/// Writes that leave the cgroup with the meaning of the rules, where the last that fits wins.
pub(super) fn writes(rules: &[Rule]) -> Result<Vec<Write>> {
    let mut default = false;
    let mut exceptions: Vec<Exception> = Vec::new();
    for rule in rules {
        if rule.is_everything() {
            default = rule.allow;
            exceptions.clear();
            continue;
        }
        for kind in [Kind::Block, Kind::Char] {
            if rule.kind.is_none_or(|only| only == kind) {
                let Rule { major, minor, access, .. } = *rule;
                let change = Exception { kind, major, minor, access };
                if rule.allow == default {
                    remove(&mut exceptions, change, rule)?;
                } else {
                    add(&mut exceptions, change);
                }
            }
        }
    }
    let file = |allow: bool| if allow { "devices.allow" } else { "devices.deny" };
    let mut writes = vec![Write::new(file(default), "a")];
    for e in exceptions {
        let rule = Rule {
            allow: !default,
            kind: Some(e.kind),
            major: e.major,
            minor: e.minor,
            access: e.access,
        };
        writes.push(Write::new(file(!default), rule.what()));
    }
    Ok(writes)
}

fn add(exceptions: &mut Vec<Exception>, new: Exception) {
    let same = |e: &&mut Exception| (e.kind, e.major, e.minor) == (new.kind, new.major, new.minor);
    match exceptions.iter_mut().find(same) {
        Some(old) => old.access |= new.access,
        None => exceptions.push(new),
    }
}

fn remove(exceptions: &mut Vec<Exception>, gone: Exception, rule: &Rule) -> Result<()> {
    for e in exceptions.iter_mut().filter(|e| e.kind == gone.kind) {
        if covers(gone.major, e.major) && covers(gone.minor, e.minor) {
            e.access &= !gone.access;
        } else if meet(gone.major, e.major)
            && meet(gone.minor, e.minor)
            && e.access & gone.access != 0
        {
            return Err(Error::invalid(format!(
                "device rule {rule}: cgroup v1 cannot take a part out of a wider rule"
            )));
        }
    }
    exceptions.retain(|e| e.access != 0);
    Ok(())
}
