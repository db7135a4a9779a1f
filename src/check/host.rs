//! Namespaces, security modules, capabilities and services of the host.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use libc::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER,
    CLONE_NEWUTS,
};

use super::{Asker, Found, Row, row, there, yes};
use crate::cgroup::Layout;
use crate::config::{Config, FILE};
use crate::error::Doing;
use crate::sys::{self, probe};
use crate::systemd::{Places, Systemd, socket_to};
use crate::{plan, rdt};

/// `CLONE_NEWTIME`, which libc lacks for some targets.
const CLONE_NEWTIME: i32 = 0x80;

/// The bit of CAP_SYS_ADMIN.
pub(super) const ADMIN: u64 = 1 << 21;
/// The bit of CAP_SYS_RESOURCE.
const RESOURCE: u64 = 1 << 24;

/// What the shim itself cannot do without, whatever a container asks for.
const NEEDED_CAPABILITIES: [&str; 12] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_ADMIN",
    "CAP_MKNOD",
];

/// Older ones lack properties that scopes are given.
const SYSTEMD: u32 = 244;
/// For systemd to answer.
const SYSTEMD_LIMIT: Duration = Duration::from_secs(2);

/// More are counted, not listed.
const MOST_NAMES: usize = 4;

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The kernel and the caller.
pub(super) fn head(admin: bool) -> String {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "?".into());
    let who = if admin { "as root" } else { "without CAP_SYS_ADMIN" };
    format!("Linux {release} {}, asked {who}", std::env::consts::ARCH)
}

/// Of this process; 0: not known.
pub(super) fn effective_capabilities() -> u64 {
    let status = read("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// AppArmor says so itself. SELinux is there once its file system is mounted and a policy is loaded:
/// before that all runs as `kernel`.
pub fn modules() -> plan::Modules {
    const SELINUX_MAGIC: i64 = 0xf97c_ff8c;
    let file = fs::File::open("/sys/fs/selinux");
    let mounted = file.is_ok_and(|dir| sys::raw::fs_magic(dir.as_raw_fd()) == Ok(SELINUX_MAGIC));
    let label = fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    let label = label.trim_end_matches(['\0', '\n']);
    plan::Modules {
        apparmor: read("/sys/module/apparmor/parameters/enabled")
            .is_some_and(|text| text.starts_with('Y')),
        confined: own_profile().is_some(),
        selinux: mounted && !["", "kernel"].contains(&label),
    }
}

/// AppArmor's profile of the shim, if it is confined. The older file is that of all modules.
pub fn own_profile() -> Option<String> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let enabled = read("/sys/module/apparmor/parameters/enabled")?;
    let profile = read("/proc/thread-self/attr/apparmor/current")
        .or_else(|| read("/proc/thread-self/attr/current"))?;
    let profile = profile.trim_end_matches(['\0', '\n']);
    (enabled.starts_with('Y') && confines(profile)).then(|| profile.to_owned())
}

/// `cri-containerd.apparmor.d (enforce)`; `name (unconfined)` is a profile that names, and allows all.
pub(super) fn confines(profile: &str) -> bool {
    !["", "unconfined"].contains(&profile) && !profile.ends_with(" (unconfined)")
}

const REFUSED: &str = "a container that asks for one is refused";

/// Each is made by a child: a kernel may have one, and a limit or a module forbid it.
pub(super) fn namespaces(asker: Asker) -> Vec<Row> {
    let every = [
        ("mnt", CLONE_NEWNS),
        ("pid", CLONE_NEWPID),
        ("net", CLONE_NEWNET),
        ("ipc", CLONE_NEWIPC),
        ("uts", CLONE_NEWUTS),
    ];
    let mut names: Vec<&str> = Vec::new();
    let mut bad = None;
    for (name, flag) in every {
        match namespace(asker, name, flag) {
            Found::Yes(_) => names.push(name),
            Found::No(why) => bad = Some(Found::No(format!("{name}: {why}"))),
            unknown => bad = bad.or(Some(unknown)),
        }
    }
    let found = bad.unwrap_or_else(|| Found::Yes(names.join(" ")));
    let one = |name, flag| namespace(asker, name, flag);
    vec![
        row("namespaces", found, true, "no pod"),
        row("cgroup namespaces", one("cgroup", CLONE_NEWCGROUP), false, REFUSED),
        row("user namespaces", one("user", CLONE_NEWUSER), false, "no pod with hostUsers: false"),
        row("time namespaces", one("time", CLONE_NEWTIME), false, REFUSED),
    ]
}

fn namespace(asker: Asker, name: &str, flag: i32) -> Found {
    if !Path::new("/proc/self/ns").join(name).exists() {
        return Found::No("not in this kernel".into());
    }
    let sysctl = format!("user.max_{name}_namespaces");
    if read(&format!("/proc/sys/{}", sysctl.replace('.', "/"))).as_deref() == Some("0") {
        return Found::No(format!("{sysctl} = 0"));
    }
    asker.found(probe::namespace(flag))
}

pub(super) fn rows(capabilities: u64) -> Vec<Row> {
    let modules = modules();
    let resctrl = Path::new(rdt::ROOT).join("info").is_dir();
    let mut rows = self::capabilities(capabilities);
    rows.extend([
        configuration(),
        row("AppArmor", there(modules.apparmor, "off"), false, "a spec with a profile is refused"),
        // Where containerd looks for it, whatever its PATH.
        row(
            "apparmor_parser",
            there(Path::new("/sbin/apparmor_parser").exists(), "not in /sbin"),
            false,
            "containerd gives containers no profile",
        ),
        row("SELinux", there(modules.selinux, "off"), false, "a spec with a label is refused"),
        row("resctrl", there(resctrl, "not mounted"), false, "linux.intelRdt is refused"),
        row("systemd", systemd(), false, "a cgroup path slice:prefix:name is refused"),
        row("no lockdown", lockdown(), false, "privileged containers cannot change the kernel"),
        suid_dumpable(),
        yama(),
    ]);
    rows
}

fn capabilities(have: u64) -> Vec<Row> {
    let last = read("/proc/sys/kernel/cap_last_cap").and_then(|text| text.parse::<usize>().ok());
    let all = plan::capability_names();
    let known = all.iter().enumerate().filter(|(bit, _)| last.is_none_or(|last| *bit <= last));
    let missing: Vec<(usize, &str)> = known
        .filter(|(bit, _)| have & (1 << bit) == 0)
        .map(|(bit, name)| (bit, name.as_str()))
        .collect();
    let needed = |name: &str| NEEDED_CAPABILITIES.contains(&name);
    let list = |wanted: &dyn Fn(usize, &str) -> bool| {
        let names = missing.iter().filter(|(bit, name)| wanted(*bit, name));
        let names: Vec<&str> = names.map(|(_, name)| name.trim_start_matches("CAP_")).collect();
        match names.len() {
            0..=MOST_NAMES => there(names.is_empty(), &names.join(" ")),
            many => Found::No(format!("{many} are missing")),
        }
    };
    let resource = |bit: usize| RESOURCE == 1 << bit;
    vec![
        row("capabilities", list(&|_, name| needed(name)), true, "no pod"),
        row(
            "CAP_SYS_RESOURCE",
            there(have & RESOURCE != 0, "missing"),
            false,
            "no oom_score_adj is lowered, no rlimit raised",
        ),
        row(
            "other capabilities",
            list(&|bit, name| !needed(name) && !resource(bit)),
            false,
            "containers cannot have them either",
        ),
    ]
}

fn configuration() -> Row {
    let found = match Config::read(None) {
        Err(error) => Found::No(error.to_string()),
        Ok(_) if Path::new(FILE).exists() => Found::Yes(format!("yes: {FILE}")),
        Ok(_) => Found::Yes("yes: defaults".into()),
    };
    row("configuration", found, true, "no pod")
}

/// Whether systemd can keep cgroups, by its answer.
fn systemd() -> Found {
    if Layout::probe().is_ok_and(|layout| !layout.unified()) {
        return Found::No("not on cgroup v1".into());
    }
    let places = Places::default();
    if !places.booted.is_dir() {
        return Found::No("not running".into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let version = runtime.doing(|| "a runtime for systemd").and_then(|runtime| {
        let systemd = Systemd::new(&places, socket_to, SYSTEMD_LIMIT)?;
        runtime.block_on(systemd.version())
    });
    match version {
        Ok(version) if version >= SYSTEMD => Found::Yes(format!("yes: {version}")),
        Ok(version) => Found::No(format!("{version}, and {SYSTEMD} is the least")),
        Err(error) => Found::No(error.to_string()),
    }
}

/// `none [integrity] confidentiality`.
fn lockdown() -> Found {
    let text = read("/sys/kernel/security/lockdown").unwrap_or_default();
    let chosen = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        Some("none") | None => yes(),
        Some(kind) => Found::No(kind.into()),
    }
}

/// 1 makes a process that changes its user dumpable, before it runs its program.
fn suid_dumpable() -> Row {
    let value = read("/proc/sys/fs/suid_dumpable").unwrap_or_else(|| "0".into());
    let found =
        if value == "1" { Found::No("1".into()) } else { Found::Yes(format!("yes: {value}")) };
    row("fs.suid_dumpable not 1", found, false, "pods can trace a new process for a moment")
}

fn yama() -> Row {
    let found = match read("/proc/sys/kernel/yama/ptrace_scope").as_deref() {
        Some("3") => Found::No("ptrace_scope is 3".into()),
        Some(scope) => Found::Yes(format!("yes: ptrace_scope is {scope}")),
        None => Found::Yes("yes: no Yama".into()),
    };
    row("ptrace", found, false, "no seccomp agents (SCMP_ACT_NOTIFY)")
}
