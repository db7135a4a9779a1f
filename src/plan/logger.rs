//! A logger: a program of the host's that reads a process' output from 3 and 4, and closes 5 when
//! it is ready.
//!
//! It is not a container's: no namespaces, no rights taken away, as with containerd's own shim. It
//! must never get a descriptor beyond its six, nor anything of the shim's environment.

use super::paths::cstring;
use super::{Input, Op, Plan};
use crate::error::Result;

/// The number of the last descriptor that a logger gets.
const LAST: u8 = 5;

/// The process of a logger: `program` with `args`, for the output of the process `id`.
pub fn logger(program: &str, args: &[String], id: &str, namespace: &str) -> Result<Plan> {
    let mut plan = Plan::default();
    plan.input(Input::Report);
    let fds: Vec<_> = (0..=LAST).map(|number| (number, plan.input(Input::Stdio(number)))).collect();
    // Some of them may have the very numbers 3 to 5.
    plan.ops.push(Op::LiftFds { above: LAST.into() });
    plan.ops.extend([Op::ResetSignals, Op::Setsid]);
    plan.ops.extend(fds.into_iter().map(|(number, from)| Op::Dup { from, to: number.into() }));
    let program = cstring("the logger's path", program)?;
    plan.args.push(program.clone());
    for arg in args {
        plan.args.push(cstring("an argument of the logger", arg)?);
    }
    plan.env = vec![
        cstring("CONTAINER_ID", &format!("CONTAINER_ID={id}"))?,
        cstring("CONTAINER_NAMESPACE", &format!("CONTAINER_NAMESPACE={namespace}"))?,
    ];
    // Everything else is close-on-exec.
    plan.ops.extend([Op::FindExecutable { candidates: vec![program] }, Op::Exec]);
    Ok(plan)
}
