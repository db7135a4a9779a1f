//! The rules that hold for every plan, checked over all cases.

use super::*;

#[test]
fn every_plan_ends() {
    for (name, plan) in all() {
        let ends = |op: &Op| matches!(op, Op::Exec | Op::ExecFd { .. } | Op::Exit);
        assert_eq!(plan.ops.iter().position(ends), Some(plan.ops.len() - 1), "{name}");
        let runs = !matches!(plan.ops.last(), Some(Op::Exit));
        assert_eq!(runs, !plan.args.is_empty(), "{name}");
        assert_eq!(plan.inputs[0], (Input::Report, Slot(0)), "{name}");
    }
}

/// The slots that an op needs, and those that it fills.
fn slots(op: &Op) -> (Vec<Slot>, Vec<Slot>) {
    match op {
        Op::JoinCgroup { procs } => (vec![*procs], vec![]),
        Op::Setns { ns, .. } => (vec![*ns], vec![]),
        Op::OpenTree { into, .. } | Op::NewMount { into, .. } | Op::OpenRootfs { into, .. } => {
            (vec![], vec![*into])
        }
        Op::TakeTree { into, .. } => (vec![], vec![*into]),
        Op::IdMap { mount, user, .. } => (vec![*mount, *user], vec![]),
        Op::SetAttr { mount, .. } | Op::AttachRootfs { mount, .. } => (vec![*mount], vec![]),
        Op::Attach { mount, root, .. } => (vec![*mount, *root], vec![]),
        Op::Mount { root, .. }
        | Op::MakeDir { root, .. }
        | Op::MakeNode { root, .. }
        | Op::Symlink { root, .. }
        | Op::Readonly { root, .. }
        | Op::Pivot { root } => (vec![*root], vec![]),
        // Filled by the first that needs it.
        Op::Mask { root, empty, .. } => (vec![*root], vec![*empty]),
        Op::OpenPty { root, into, .. } => (vec![*root], vec![*into]),
        Op::AttachConsole { pty, root } => (vec![*pty, *root], vec![]),
        Op::Dup { from, .. } => (vec![*from], vec![]),
        Op::BringDevice { host, ns, .. } => (vec![*host, *ns], vec![]),
        Op::FileLabel { mount, .. } => (vec![*mount], vec![]),
        Op::ExecFd { exe } => (vec![*exe], vec![]),
        _ => (vec![], vec![]),
    }
}

#[test]
fn every_slot_is_filled_once_and_before_it_is_used() {
    for (name, plan) in all() {
        let mut filled = BTreeSet::new();
        for (input, slot) in &plan.inputs {
            assert!(filled.insert(*slot), "{name}: {input:?} shares {slot}");
        }
        let mut masks = None;
        for op in &plan.ops {
            let (needs, fills) = slots(op);
            for slot in needs {
                assert!(filled.contains(&slot), "{name}: nothing is in {slot} for: {op}");
            }
            for slot in fills {
                let again = matches!(op, Op::Mask { .. }) && masks == Some(slot)
                    || matches!(op, Op::TakeTree { .. });
                assert!(filled.insert(slot) || again, "{name}: {slot} is filled again by: {op}");
                masks = if matches!(op, Op::Mask { .. }) { Some(slot) } else { masks };
            }
        }
        assert_eq!(filled.len(), usize::from(plan.slots), "{name}: a slot that nobody fills");
    }
}

/// Where the ops of a kind are.
fn places(plan: &Plan, kind: impl Fn(&Op) -> bool) -> Vec<usize> {
    plan.ops.iter().enumerate().filter(|(_, op)| kind(op)).map(|(i, _)| i).collect()
}

/// All of the first kind come before any of the second.
#[track_caller]
fn before(name: &str, plan: &Plan, first: impl Fn(&Op) -> bool, second: impl Fn(&Op) -> bool) {
    let last = places(plan, first).last().copied();
    let next = places(plan, second).first().copied();
    if let (Some(last), Some(next)) = (last, next) {
        assert!(last < next, "{name}: {} comes after {}", plan.ops[last], plan.ops[next]);
    }
}

#[test]
fn host_paths_are_opened_before_anything_else_is_done_to_mounts() {
    for (name, plan) in &all() {
        let opens = |op: &Op| matches!(op, Op::OpenTree { .. });
        before(name, plan, opens, |op| matches!(op, Op::Propagate { .. }));
        before(name, plan, |op| matches!(op, Op::JoinCgroup { .. }), opens);
        before(
            name,
            plan,
            |op| matches!(op, Op::JoinCgroup { .. }),
            |op| matches!(op, Op::Unshare { .. }),
        );
        let attaches = |op: &Op| {
            let attaches = matches!(op, Op::Attach { .. } | Op::AttachRootfs { .. });
            attaches || matches!(op, Op::Mount { .. } | Op::OldMount { .. })
        };
        let slave = |op: &Op| matches!(op, Op::Propagate { flags } if *flags == 0x8_4000);
        before(name, plan, slave, attaches);
        before(name, plan, attaches, |op| matches!(op, Op::Pivot { .. }));
        // What is mounted on the host for its hooks is the one thing that is not in a namespace.
        if plan.ops.iter().any(attaches) && name != "mount-rootfs" {
            assert_ne!(plan.namespaces & libc::CLONE_NEWNS, 0, "{name}");
            assert_eq!(places(plan, slave).len(), 1, "{name}");
        }
    }
}

/// The trees of the host: where each is opened, in which slot, and whether with all beneath.
fn trees(plan: &Plan) -> Vec<(usize, Slot, bool)> {
    let shm = plan.inputs.iter().filter(|(input, _)| *input == Input::SandboxShm);
    let opened = plan.ops.iter().enumerate().filter_map(|(at, op)| match op {
        Op::OpenTree { into, recursive, .. } => Some((at, *into, *recursive)),
        _ => None,
    });
    shm.map(|(_, slot)| (0, *slot, false)).chain(opened).collect()
}

#[test]
fn every_open_tree_says_how_it_propagates_before_it_is_attached() {
    for (name, plan) in all() {
        for (at, into, recursive) in trees(&plan) {
            let says = |op: &&Op| {
                matches!(op, Op::SetAttr { mount, attr }
                    if *mount == into && attr.propagation != 0 && (attr.recursive || !recursive))
            };
            let attached = |op: &&Op| match op {
                Op::Attach { mount, .. } | Op::AttachRootfs { mount, .. } => *mount == into,
                _ => false,
            };
            let next = plan.ops[at..].iter().find(|op| says(op) || attached(op));
            assert!(next.is_some_and(|op| says(&op)), "{name}: {into}");
        }
    }
}

fn runs(plan: &Plan) -> bool {
    !matches!(plan.ops.last(), Some(Op::Exit))
}

#[test]
fn rights_are_dropped_in_the_one_sound_order() {
    let mut seen = 0;
    for (name, plan) in all() {
        let rank = |op: &Op| match op {
            Op::Pivot { .. } | Op::Setns { .. } => Some(0),
            Op::Rlimit { .. } => Some(1),
            Op::BoundingSet { .. } => Some(2),
            Op::KeepCaps { on: true } => Some(3),
            Op::ChownStdio { .. } => Some(4),
            Op::Groups { .. } => Some(5),
            Op::Gid { .. } => Some(6),
            Op::Uid { .. } => Some(7),
            Op::Chdir { retry: false, .. } => Some(8),
            Op::VerifyCwd => Some(9),
            Op::KeepCaps { on: false } => Some(10),
            Op::Capset { .. } => Some(11),
            Op::Ambient { .. } => Some(12),
            Op::NoNewPrivs => Some(13),
            Op::FindExecutable { .. } => Some(15),
            Op::CloseFds => Some(14),
            // Its place depends: tests/seccomp/placement.rs.
            Op::Seccomp { .. } => None,
            Op::Birth => Some(16),
            Op::Setsid if !matches!(plan.ops.last(), Some(Op::ExecFd { .. })) => Some(17),
            Op::ControllingTerminal => Some(18),
            Op::Ready => Some(19),
            Op::Exec | Op::ExecFd { .. } => Some(20),
            _ => None,
        };
        // A program of the host, in a hook's place or a logger, has the host's rights.
        let rights = plan.ops.iter().any(|op| matches!(op, Op::Capset { .. }));
        let logger = plan.ops.iter().any(|op| matches!(op, Op::LiftFds { .. }));
        assert_eq!(rights, !name.starts_with("hook-host-") && !logger && runs(&plan), "{name}");
        if !rights {
            continue;
        }
        seen += 1;
        // In a user namespace it all happens inside, but for the limits.
        let inside = places(&plan, |op| *op == Op::UserRoot).first().map_or(0, |at| at + 1);
        let ranks: Vec<i32> = plan.ops[inside..].iter().filter_map(rank).collect();
        assert!(ranks.is_sorted(), "{name}: {ranks:?}");
        for needed in [2, 5, 6, 7, 11, 12, 14, 20] {
            assert_eq!(ranks.iter().filter(|r| **r == needed).count(), 1, "{name}: {needed}");
        }
        // Nothing but what is ranked happens to a process that is no longer root.
        let uid = places(&plan, |op| matches!(op, Op::Uid { .. }))[0];
        let ranked = |op: &Op| rank(op).is_some() || matches!(op, Op::Seccomp { .. });
        assert!(plan.ops[uid..].iter().all(ranked), "{name}");
        if matches!(plan.ops.last(), Some(Op::Exec)) {
            for needed in [3, 4, 8, 9, 10, 15] {
                assert_eq!(ranks.iter().filter(|r| **r == needed).count(), 1, "{name}: {needed}");
            }
        }
    }
    assert!(seen > 20);
}

#[test]
fn nothing_is_written_to_a_root_that_is_read_only() {
    for (name, plan) in &all() {
        let Some(root) = plan.ops.iter().find_map(|op| match op {
            Op::OpenRootfs { into, .. } => Some(*into),
            _ => None,
        }) else {
            continue;
        };
        let seals = |op: &Op| matches!(op, Op::SetAttr { mount, .. } if *mount == root);
        let writes = |op: &Op| target(op).is_some_and(|target| target.missing != Missing::Fail);
        before(name, plan, writes, seals);
        before(name, plan, |op| matches!(op, Op::AttachConsole { .. }), seals);
        // A hook may write; a container can cover what is masked with nothing that comes later.
        before(name, plan, |op| matches!(op, Op::Hooks), seals);
        before(name, plan, writes, |op| matches!(op, Op::Hooks));
        let restricts = |op: &Op| matches!(op, Op::Mask { .. } | Op::Readonly { .. });
        before(name, plan, writes, restricts);
        before(name, plan, |op| matches!(op, Op::Hooks), restricts);
    }
}

#[test]
fn a_home_to_look_up_is_the_last_of_the_environment() {
    for (name, plan) in all() {
        let looks = plan.ops.iter().any(|op| matches!(op, Op::Home { .. }));
        let empty = plan.env.iter().position(|entry| entry.as_c_str() == c"HOME=");
        assert_eq!(looks.then(|| plan.env.len() - 1), empty, "{name}");
    }
}

#[test]
fn procfs_and_sysfs_are_on_no_symlink_and_proc_stays_closed() {
    for (name, plan) in all() {
        for op in &plan.ops {
            if let Op::Mount { fstype, target, .. } = op {
                let special = [c"proc", c"sysfs"].contains(&fstype.as_c_str());
                assert_eq!(target.no_symlinks, special, "{name}: {op}");
            }
            let mounts = matches!(op, Op::Mount { .. } | Op::Attach { .. });
            let path = target(op).and_then(|t| t.prefixes.last());
            let path = path.map(|p| p.to_str().unwrap()).unwrap_or_default();
            if mounts && path.starts_with("proc/") {
                assert!(target(op).unwrap().inside_proc, "{name}: {op}");
            }
        }
    }
}

/// A label is written, and a schedule set, by who still may; both after the cgroup that bounds them,
/// and before a container's process or mount could stand in the way.
#[test]
fn labels_and_schedules_come_with_all_rights() {
    let given = |op: &Op| {
        matches!(
            op,
            Op::Label { .. }
                | Op::Scheduler(_)
                | Op::IoPriority { .. }
                | Op::MemoryPolicy { .. }
                | Op::Personality { .. }
                | Op::ResetAffinity
        )
    };
    let mut seen = 0;
    for (name, plan) in all() {
        seen += places(&plan, given).len();
        before(&name, &plan, |op| matches!(op, Op::JoinCgroup { .. }), given);
        before(&name, &plan, given, |op| {
            let dropped = matches!(op, Op::BoundingSet { .. } | Op::Uid { .. } | Op::NoNewPrivs);
            dropped || matches!(op, Op::Pivot { .. } | Op::Attach { .. } | Op::Birth)
        });
        before(
            &name,
            &plan,
            |op| matches!(op, Op::Label { .. }),
            |op| matches!(op, Op::Setns { .. } | Op::OpenTree { .. } | Op::Mount { .. }),
        );
    }
    assert!(seen > 20, "{seen}");
}

/// Between the step into a user namespace and the one that makes the child its root, the host's
/// root is in it: it gets to the rootfs, and touches nothing of the container's.
#[test]
fn in_a_user_namespace_all_is_done_as_its_root() {
    let mut seen = 0;
    for (name, plan) in all() {
        let user = libc::CLONE_NEWUSER;
        let enters = |op: &Op| matches!(op, Op::Setns { flags, .. } if flags & user != 0);
        let (enter, root) = (places(&plan, enters), places(&plan, |op| *op == Op::UserRoot));
        assert_eq!(enter.len(), root.len(), "{name}");
        let (Some(enter), Some(root)) = (enter.first(), root.first()) else { continue };
        seen += 1;
        for op in &plan.ops[enter + 1..*root] {
            let enough = matches!(op, Op::Unshare { .. } | Op::TimeOffsets { .. } | Op::Birth)
                || matches!(op, Op::AttachRootfs { .. } | Op::OpenRootfs { .. })
                || matches!(op, Op::TakeTree { .. })
                || matches!(op, Op::SetAttr { attr, .. } if attr.propagation == libc::MS_UNBINDABLE);
            assert!(enough, "{name}: {op}");
        }
        // What only the host's root can do comes before.
        let before = |op: &Op| {
            matches!(op, Op::OpenTree { .. } | Op::IdMap { .. } | Op::MakeNode { .. })
                || matches!(op, Op::Rlimit { .. } | Op::OomScore { .. } | Op::JoinCgroup { .. })
                || matches!(op, Op::Scheduler(_) | Op::IoPriority { .. } | Op::Label { .. })
        };
        // The limit of open files comes to its own value once all is open, and is raised no more.
        let raised = |op: &Op| match *op {
            Op::Rlimit { resource: 7, hard, .. } => {
                let early = Op::Rlimit { resource: 7, soft: hard, hard };
                hard <= 1024 || plan.ops[..*enter].contains(&early)
            }
            _ => false,
        };
        assert!(plan.ops[*enter..].iter().all(|op| !before(op) || raised(op)), "{name}");
        assert_eq!(plan.namespaces & !libc::CLONE_NEWNS, 0, "{name}: made outside");
        let shares =
            |op: &Op| matches!(op, Op::SetAttr { attr, .. } if attr.propagation == 1 << 20);
        assert_eq!(places(&plan, shares), [0; 0], "{name}");
    }
    assert!(seen > 3);
}

/// A tree of the host's that is attached inside as it was opened has none of the kernel's locks: the
/// container's root could look beneath its mounts and write to what is read-only.
#[test]
fn in_a_user_namespace_the_hosts_trees_are_taken_from_a_copy() {
    let mut seen = 0;
    for (name, plan) in all() {
        let user = libc::CLONE_NEWUSER;
        let enters = |op: &Op| matches!(op, Op::Setns { flags, .. } if flags & user != 0);
        let Some(enter) = places(&plan, enters).first().copied() else { continue };
        let inside = &plan.ops[enter..];
        for (_, into, _) in trees(&plan).into_iter().filter(|(at, ..)| *at < enter) {
            let attaches = |op: &Op| match op {
                Op::Attach { mount, .. } | Op::AttachRootfs { mount, .. } => *mount == into,
                _ => false,
            };
            let Some(attached) = inside.iter().position(attaches) else { continue };
            let taken = |op: &Op| matches!(op, Op::TakeTree { into: slot, .. } if *slot == into);
            let taken = inside.iter().position(taken);
            assert!(taken.is_some_and(|taken| taken < attached), "{name}: {into}");
            seen += 1;
        }
    }
    assert!(seen > 5, "{seen}");
}
