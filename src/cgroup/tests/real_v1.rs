//! Against the host's v1 hierarchies.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;

use super::*;

/// A parent and a container's cgroup in every hierarchy, and the processes in it; all of it goes
/// with the test, whatever its result.
pub(super) struct Scratch {
    pub cgroups: Cgroups,
    pub children: Vec<Child>,
}

impl Scratch {
    /// None: not root, or no such host.
    pub fn v1(name: &str) -> Option<Scratch> {
        let layout = Layout::probe().ok()?;
        if !nix::unistd::geteuid().is_root() || layout.unified() {
            eprintln!("skipped: needs root and cgroup v1");
            return None;
        }
        let path = format!("/rs-test-{}-{name}/box", std::process::id());
        Some(Scratch { cgroups: layout.cgroups(Path::new(&path)), children: Vec::new() })
    }

    pub fn cgroup(&self) -> Cgroup {
        Cgroup::from_record(self.cgroups.clone())
    }

    pub fn exists(&self) -> bool {
        self.cgroups.dirs.iter().any(|at| at.path.parent().unwrap().exists())
    }

    /// Runs a shell in the cgroup, or in one below it; every hierarchy has its own line.
    pub fn run(&mut self, below: &str, script: &str) -> u32 {
        let join: String = self
            .cgroups
            .dirs
            .iter()
            .map(|at| format!("echo 0 > {}; ", at.path.join(below).join("cgroup.procs").display()))
            .collect();
        let child = Command::new("sh").args(["-ec", &(join + script)]).spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        pid
    }

    pub fn read(&self, controller: &str, file: &str) -> String {
        let at = self.cgroup().dir_of(controller).unwrap().path.join(file);
        fs::read_to_string(at).unwrap().trim().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.cgroup().thaw();
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let cgroup = self.cgroup();
        let _ = within(|| {
            // Not left to the code under test: a frozen process would outlive the test.
            let _ = cgroup.kill_all(libc::SIGKILL);
            let _ = cgroup.thaw();
            cgroup.empty().unwrap_or(true)
        });
        for at in &self.cgroups.dirs {
            for dir in ["box/inner", "box", ""] {
                let _ = fs::remove_dir(at.path.parent().unwrap().join(dir));
            }
        }
    }
}

/// Whether it comes true in 5 s.
pub(super) fn within(mut what: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        if what() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

pub(super) fn new_limits(json: &str, unified: bool) -> Limits {
    let resources: LinuxResources = serde_json::from_str(json).unwrap();
    limits(&resources, unified, None).unwrap()
}

#[test]
fn limits_are_in_force_before_a_process_is() {
    let Some(mut scratch) = Scratch::v1("limits") else { return };
    let limits = new_limits(
        r#"{"cpu": {"shares": 512, "quota": 50000, "period": 200000, "burst": 1000, "cpus": "0"},
            "memory": {"limit": 33554432, "swap": 67108864, "reservation": 16777216},
            "pids": {"limit": 0},
            "devices": [{"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}]}"#,
        false,
    );
    let cgroup = Cgroup::create(&scratch.cgroups, &limits).unwrap();
    assert_eq!(cgroup, scratch.cgroup());
    for (controller, file, value) in [
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "200000"),
        ("cpu", "cpu.cfs_burst_us", "1000"),
        ("cpuset", "cpuset.cpus", "0"),
        ("cpuset", "cpuset.mems", "0"),
        ("memory", "memory.limit_in_bytes", "33554432"),
        ("memory", "memory.memsw.limit_in_bytes", "67108864"),
        ("memory", "memory.soft_limit_in_bytes", "16777216"),
        ("pids", "pids.max", "1"),
    ] {
        assert_eq!(scratch.read(controller, file), value, "{file}");
    }
    let devices = scratch.read("devices", "devices.list");
    let mut devices: Vec<&str> = devices.lines().collect();
    devices.sort_unstable();
    assert_eq!(devices.len(), 13);
    assert!(devices.contains(&"c 10:229 rw") && devices.contains(&"c 136:* rwm"), "{devices:?}");
    assert!(cgroup.empty().unwrap());
    let pid = scratch.run("", "exec sleep 60");
    assert!(within(|| cgroup.pids().unwrap() == [pid]));
    assert!(!cgroup.empty().unwrap());
    assert_eq!(cgroup.procs().unwrap().len(), scratch.cgroups.dirs.len());
    assert!(cgroup.dir_fd().is_err());
    // It is somebody's now.
    let again = Cgroup::create(&scratch.cgroups, &Limits::default()).unwrap_err();
    assert_eq!(again.kind(), Kind::FailedPrecondition);
    assert!(again.to_string().contains("has 1 processes"), "{again}");
    assert_eq!(cgroup.pids().unwrap(), [pid]);
}

#[test]
fn updates_of_a_live_cgroup_may_raise_and_lower() {
    let Some(mut scratch) = Scratch::v1("update") else { return };
    let limits = new_limits(r#"{"memory": {"limit": 33554432, "swap": 33554432}}"#, false);
    let cgroup = Cgroup::create(&scratch.cgroups, &limits).unwrap();
    scratch.run("", "exec sleep 60");
    for (limit, swap) in [(67108864, 67108864), (16777216, 33554432), (8388608, 8388608), (-1, -1)]
    {
        let json = format!(
            r#"{{"memory": {{"limit": {limit}, "swap": {swap}}}, "cpu": {{"shares": 99}},
            "pids": {{"limit": 77}}}}"#
        );
        let update = cgroup.update(&serde_json::from_str(&json).unwrap()).unwrap();
        cgroup.apply(&update.direct).unwrap();
        carry_out(&update.ops).unwrap();
        let read = |file| scratch.read("memory", file).parse::<i64>().unwrap();
        if limit > 0 {
            assert_eq!(read("memory.limit_in_bytes"), limit);
            assert_eq!(read("memory.memsw.limit_in_bytes"), swap);
        } else {
            assert!(read("memory.limit_in_bytes") > 1 << 60);
            assert!(read("memory.memsw.limit_in_bytes") > 1 << 60);
        }
    }
    assert_eq!(scratch.read("cpu", "cpu.shares"), "99");
    assert_eq!(scratch.read("pids", "pids.max"), "77");
}

#[test]
fn pause_kill_and_remove() {
    let Some(mut scratch) = Scratch::v1("kill") else { return };
    let cgroup = Cgroup::create(&scratch.cgroups, &Limits::default()).unwrap();
    for at in &scratch.cgroups.dirs {
        let dir = Dir::open(at).unwrap().unwrap();
        let (inner, new) = dir.make("inner".as_ref()).unwrap();
        assert!(new);
        if at.controllers == ["cpuset"] {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                inner.write(file, dir.read(file).unwrap().unwrap().trim()).unwrap();
            }
        }
    }
    let mut pids = [scratch.run("", "exec sleep 60"), scratch.run("inner", "exec sleep 60")];
    pids.sort_unstable();
    assert!(within(|| cgroup.pids().unwrap() == pids));
    assert!(!cgroup.frozen().unwrap());
    cgroup.freeze().unwrap();
    assert!(within(|| cgroup.frozen().unwrap()));
    cgroup.thaw().unwrap();
    assert!(within(|| !cgroup.frozen().unwrap()));
    // Somebody else's process in the parent survives.
    let parents: Vec<CgroupDir> = scratch
        .cgroups
        .dirs
        .iter()
        .map(|at| CgroupDir { path: at.path.parent().unwrap().into(), ..at.clone() })
        .collect();
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    for at in &parents {
        fs::write(at.path.join("cgroup.procs"), other.id().to_string()).unwrap();
    }
    cgroup.freeze().unwrap();
    cgroup.kill_all(libc::SIGKILL).unwrap();
    let dead = within(|| cgroup.empty().unwrap());
    let alive = other.try_wait().unwrap().is_none();
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(dead && alive);
    let ops = cgroup.remove().unwrap();
    assert_eq!(ops.len(), scratch.cgroups.dirs.len());
    carry_out(&ops).unwrap();
    assert!(scratch.cgroups.dirs.iter().all(|at| !at.path.exists()));
    assert!(scratch.exists(), "parents stay");
    assert_eq!(cgroup.remove().unwrap(), []);
}

#[test]
fn a_frozen_or_failed_cgroup_is_refused() {
    let Some(scratch) = Scratch::v1("refused") else { return };
    // The host has no such processor: the last write fails.
    let bad = new_limits(r#"{"cpu": {"cpus": "4000"}}"#, false);
    let error = Cgroup::create(&scratch.cgroups, &bad).unwrap_err();
    assert!(error.to_string().contains("cpuset.cpus"), "{error}");
    assert!(!scratch.exists());
    let cgroup = Cgroup::create(&scratch.cgroups, &Limits::default()).unwrap();
    cgroup.freeze().unwrap();
    let error = Cgroup::create(&scratch.cgroups, &Limits::default()).unwrap_err();
    assert!(error.to_string().ends_with("is frozen"), "{error}");
    cgroup.thaw().unwrap();
    Cgroup::create(&scratch.cgroups, &Limits::default()).unwrap();
}

#[test]
fn memory_kills_are_counted() {
    let Some(mut scratch) = Scratch::v1("oom") else { return };
    let limits = new_limits(r#"{"memory": {"limit": 8388608, "swap": 8388608}}"#, false);
    let cgroup = Cgroup::create(&scratch.cgroups, &limits).unwrap();
    assert_eq!(cgroup.oom_kills(), Some(0));
    scratch.run("", "exec tail /dev/zero");
    assert!(within(|| cgroup.oom_kills() == Some(1)));
    assert!(within(|| cgroup.empty().unwrap()));
    let memory = cgroup.stats().unwrap().memory.unwrap();
    assert_eq!((memory.limit, memory.events["oom_kill"]), (8388608, 1));
    assert!(memory.max_usage > 4 << 20, "{}", memory.max_usage);
}

#[test]
fn numbers_of_a_live_cgroup() {
    let Some(mut scratch) = Scratch::v1("stats") else { return };
    let cgroup = Cgroup::create(&scratch.cgroups, &new_limits(r#"{"pids": {"limit": 7}}"#, false));
    let cgroup = cgroup.unwrap();
    scratch.run("", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 60; :");
    let read = || cgroup.stats().unwrap();
    assert!(within(|| read().pids.unwrap().current == 2));
    let stats = read();
    assert_eq!(stats.pids.unwrap().limit, 7);
    let cpu = stats.cpu.unwrap();
    assert!(cpu.usage > 1_000_000 && !cpu.per_cpu.is_empty(), "{cpu:?}");
    assert_eq!(cpu.per_cpu.iter().sum::<u64>() / 1000, cpu.usage / 1000);
    let memory = stats.memory.unwrap();
    assert!(memory.usage > 0 && memory.stat.contains_key("total_rss"), "{memory:?}");
    assert!(stats.blkio.is_empty() || stats.blkio.contains_key("io_serviced_recursive"));
}

#[test]
fn missing_controllers_are_named() {
    let Some(scratch) = Scratch::v1("missing") else { return };
    if scratch.cgroup().dir_of("hugetlb").is_some() {
        return eprintln!("skipped: needs a host without hugetlb");
    }
    let json = r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}"#;
    let error = Cgroup::create(&scratch.cgroups, &new_limits(json, false)).unwrap_err();
    assert!(error.to_string().contains("no \"hugetlb\" cgroup controller"), "{error}");
    assert!(!scratch.exists());
}

/// Whatever the order in which the kernel wants them.
#[test]
fn every_field_can_be_updated_and_set_back() {
    let Some(mut scratch) = Scratch::v1("fields") else { return };
    let json = |quota, period, burst, shares, soft, tcp, swappiness, killer| {
        format!(
            r#"{{"cpu": {{"shares": {shares}, "quota": {quota}, "period": {period},
                "burst": {burst}, "cpus": "0", "mems": "0"}},
            "memory": {{"limit": 67108864, "swap": 67108864, "reservation": {soft},
                "kernelTCP": {tcp}, "swappiness": {swappiness}, "disableOOMKiller": {killer},
                "kernel": 5, "useHierarchy": true}}, "pids": {{"limit": {shares}}}}}"#
        )
    };
    let first = json(20000, 100000, 10000, 100, 4096, 8192, 7, false);
    let cgroup = Cgroup::create(&scratch.cgroups, &new_limits(&first, false)).unwrap();
    scratch.run("", "exec sleep 60");
    let files = [
        ("cpu", "cpu.shares"),
        ("cpu", "cpu.cfs_quota_us"),
        ("cpu", "cpu.cfs_period_us"),
        ("cpu", "cpu.cfs_burst_us"),
        ("cpuset", "cpuset.cpus"),
        ("memory", "memory.limit_in_bytes"),
        ("memory", "memory.memsw.limit_in_bytes"),
        ("memory", "memory.soft_limit_in_bytes"),
        ("memory", "memory.kmem.tcp.limit_in_bytes"),
        ("memory", "memory.swappiness"),
        ("memory", "memory.oom_control"),
        ("pids", "pids.max"),
    ];
    let all = |scratch: &Scratch| files.map(|(controller, file)| scratch.read(controller, file));
    let before = all(&scratch);
    // Each can only be had after another: more burst after more quota, less quota after less burst.
    for second in [
        json(80000, 200000, 80000, 200, 8192, 4096, 8, true),
        json(2000, 10000, 1000, 50, 4096, 4096, 9, true),
    ] {
        let update = cgroup.update(&serde_json::from_str(&second).unwrap()).unwrap();
        cgroup.apply(&update.direct).unwrap();
        carry_out(&update.ops).unwrap();
        let changed = all(&scratch);
        for (i, (_, file)) in files.iter().enumerate() {
            let same = ["cpuset.cpus", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"];
            let same = same.contains(file) || (*file == "memory.soft_limit_in_bytes" && i == 0);
            let equal = changed[i] == before[i];
            assert!(equal == same || file.contains("soft"), "{file}: {}", changed[i]);
        }
        assert_eq!(scratch.read("pids", "pids.max"), scratch.read("cpu", "cpu.shares"));
        assert!(scratch.read("memory", "memory.oom_control").starts_with("oom_kill_disable 1"));
        carry_out(&update.undo).unwrap();
        cgroup.set_back(&update).unwrap();
        assert_eq!(all(&scratch), before);
    }
}
