//! Layouts, numbers, creation and updates, on plain files.

use super::*;
use crate::cgroup::stats::{BlkioEntry, Cpu, Hugetlb, Io, Pids, PressureLine, Rdma};

const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 /docker/a\\040b /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset,clone_children
35 31 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/a,name=systemd
36 31 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
37 31 0:29 /part /mnt rw - cgroup cgroup rw,cpu,cpuacct
";
const V1_OWN: &str = "\
5:name=systemd:/
4:cpuset:/box:odd
3:memory:/docker/a b/shim
2:cpu,cpuacct:/shim
1:net_cls:/
0::/shim
";

fn dirs(cgroups: &Cgroups) -> Vec<String> {
    let line = |at: &CgroupDir| format!("{}={}", at.controllers.join("+"), at.path.display());
    cgroups.dirs.iter().map(line).collect()
}

#[test]
fn layout_v1() {
    let layout = Layout::parse(V1, V1_OWN).unwrap();
    assert!(!layout.unified());
    let absolute = layout.cgroups(Path::new("/k8s.io/web"));
    assert_eq!(
        dirs(&absolute),
        [
            "cpu+cpuacct=/sys/fs/cgroup/cpu,cpuacct/k8s.io/web",
            "cpuset=/sys/fs/cgroup/cpuset/k8s.io/web",
            "memory=/sys/fs/cgroup/memory/k8s.io/web",
            "name=systemd=/sys/fs/cgroup/systemd/k8s.io/web",
        ]
    );
    assert_eq!(absolute.dirs[0].mountpoint, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
    let relative = layout.cgroups(Path::new("web"));
    assert_eq!(
        dirs(&relative),
        [
            "cpu+cpuacct=/sys/fs/cgroup/cpu,cpuacct/shim/web",
            "cpuset=/sys/fs/cgroup/cpuset/box:odd/web",
            "memory=/sys/fs/cgroup/memory/shim/web",
            "name=systemd=/sys/fs/cgroup/systemd/web",
        ]
    );
}

#[test]
fn layout_v2() {
    let mounts = "24 22 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    let own = "0::/system.slice/containerd.service\n";
    let layout = Layout::parse(mounts, own).unwrap();
    assert!(layout.unified());
    assert_eq!(dirs(&layout.cgroups(Path::new("/a/b"))), ["=/sys/fs/cgroup/a/b"]);
    // Not below the shim's own, which has processes.
    let relative = layout.cgroups(Path::new("b"));
    assert_eq!(dirs(&relative), ["=/sys/fs/cgroup/system.slice/b"]);
    let top = Layout::parse(mounts, "0::/\n").unwrap();
    assert_eq!(dirs(&top.cgroups(Path::new("b"))), ["=/sys/fs/cgroup/b"]);
    let outside = Layout::parse(mounts, "0::/../x\n").unwrap();
    assert_eq!(dirs(&outside.cgroups(Path::new("b"))), ["=/sys/fs/cgroup/b"]);
    // A VPN client's private hierarchy does not make it a v1 host; a v2 elsewhere, no v2 host.
    let vpn = format!("{mounts}40 24 0:40 / /run/vpn rw - cgroup cgroup rw,net_cls\n");
    assert!(Layout::parse(&vpn, "1:net_cls:/\n0::/\n").unwrap().unified());
    let named = "30 22 0:30 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
         31 30 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
         32 30 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    let layout = Layout::parse(named, "1:name=systemd:/\n0::/\n").unwrap();
    assert_eq!(dirs(&layout.cgroups(Path::new("/b"))), ["=/sys/fs/cgroup/unified/b"]);
    // Something else lies over it.
    let covered = format!("{mounts}30 24 0:30 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n");
    let v1 = format!("{covered}31 30 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n");
    assert!(!Layout::parse(&v1, "1:pids:/\n0::/\n").unwrap().unified());
    assert_eq!(Layout::parse("", own).unwrap_err().kind(), Kind::FailedPrecondition);
}

#[test]
fn stats_v2() {
    let temp = Temp::new("stats2");
    temp.write(&[
        ("box/cgroup.events", "populated 1\nfrozen 0\n"),
        ("box/pids.current", "3\n"),
        ("box/pids.max", "max\n"),
        ("box/cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 2\nthrottled_usec 99\nnr_bursts 7\nburst_usec 8\n"),
        ("box/cpu.pressure", "some avg10=1.25 avg60=0.07 avg300=10.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.50 total=8\n"),
        ("box/memory.current", "4096\n"),
        ("box/memory.max", "max\n"),
        ("box/memory.peak", "8192\n"),
        ("box/memory.swap.current", "1\n"),
        ("box/memory.swap.max", "2\n"),
        ("box/memory.swap.peak", "3\n"),
        ("box/memory.swap.events", "high 0\nmax 1\nfail 4\n"),
        ("box/memory.stat", "anon 1024\nkernel 77\nsock 5\ninactive_file 9\n"),
        ("box/memory.events", "low 0\nhigh 0\nmax 6\noom 2\noom_kill 1\noom_group_kill 0\n"),
        ("box/hugetlb.2MB.current", "10\n"),
        ("box/hugetlb.2MB.max", "20\n"),
        ("box/hugetlb.2MB.events", "max 5\n"),
        ("box/hugetlb.2MB.rsvd.current", "11\n"),
        ("box/rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\n"),
        ("box/rdma.max", "mlx4_0 hca_handle=3 hca_object=max\n"),
        ("box/io.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=31\n"),
        ("box/io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:16 \n"),
    ]);
    let stats = stats_of(&temp.v2()).unwrap();
    assert!(stats.unified);
    assert_eq!(stats.pids, Some(Pids { current: 3, limit: 0 }));
    let cpu = stats.cpu.unwrap();
    assert_eq!((cpu.usage, cpu.user, cpu.system), (30, 20, 10));
    assert_eq!((cpu.periods, cpu.throttled_periods, cpu.throttled_time), (4, 2, 99));
    assert_eq!((cpu.bursts, cpu.burst_time), (7, 8));
    assert_eq!(stats.io_pressure.unwrap().some.total, 31);
    let pressure = cpu.pressure.unwrap();
    assert_eq!(pressure.some, PressureLine { avg10: 125, avg60: 7, avg300: 1000, total: 12 });
    assert_eq!(pressure.full, PressureLine { avg10: 0, avg60: 0, avg300: 50, total: 8 });
    let memory = stats.memory.unwrap();
    assert_eq!((memory.usage, memory.limit, memory.max_usage), (4096, u64::MAX, 8192));
    assert_eq!((memory.swap_usage, memory.swap_limit, memory.swap_max_usage), (1, 2, 3));
    assert_eq!((memory.fail_count, memory.swap_fail_count), (6, 4));
    assert_eq!((memory.kernel_usage, memory.tcp_usage, memory.pressure), (77, 5, None));
    assert_eq!(memory.stat["inactive_file"], 9);
    assert_eq!(memory.events["oom_kill"], 1);
    let huge = Hugetlb { page_size: "2MB".into(), current: 10, max: 20, fail_count: 5 };
    assert_eq!(stats.hugetlb, [huge]);
    let rdma = |handles, objects, limit| Rdma { device: "mlx4_0".into(), handles, objects, limit };
    assert_eq!(stats.rdma, [rdma(2, 2000, false), rdma(3, u32::MAX, true)]);
    let io = Io { major: 8, rbytes: 1, wbytes: 2, rios: 3, wios: 4, ..Io::default() };
    assert_eq!(stats.io, [io, Io { major: 254, minor: 16, ..Io::default() }]);
    assert_eq!(Cgroup::from_record(temp.v2()).oom_kills(), Some(1));
}

const V1_FILES: &[(&str, &str)] = &[
    ("box/pids.current", "3\n"),
    ("box/pids.max", "100\n"),
    ("box/cpu.stat", "nr_periods 4\nnr_throttled 2\nthrottled_time 99\n"),
    ("box/cpuacct.usage", "30\n"),
    ("box/cpuacct.usage_user", "20\n"),
    ("box/cpuacct.usage_sys", "10\n"),
    ("box/cpuacct.usage_percpu", "14 16 \n"),
    ("box/memory.usage_in_bytes", "1\n"),
    ("box/memory.limit_in_bytes", "2\n"),
    ("box/memory.max_usage_in_bytes", "3\n"),
    ("box/memory.failcnt", "4\n"),
    ("box/memory.memsw.usage_in_bytes", "5\n"),
    ("box/memory.memsw.limit_in_bytes", "6\n"),
    ("box/memory.memsw.max_usage_in_bytes", "7\n"),
    ("box/memory.memsw.failcnt", "8\n"),
    ("box/memory.kmem.usage_in_bytes", "9\n"),
    ("box/memory.kmem.limit_in_bytes", "10\n"),
    ("box/memory.kmem.max_usage_in_bytes", "11\n"),
    ("box/memory.kmem.failcnt", "12\n"),
    ("box/memory.kmem.tcp.usage_in_bytes", "13\n"),
    ("box/memory.kmem.tcp.limit_in_bytes", "14\n"),
    ("box/memory.kmem.tcp.max_usage_in_bytes", "25\n"),
    ("box/memory.kmem.tcp.failcnt", "26\n"),
    ("box/memory.stat", "rss 15\ntotal_inactive_file 16\n"),
    ("box/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 17\n"),
    ("box/hugetlb.1GB.usage_in_bytes", "18\n"),
    ("box/hugetlb.1GB.max_usage_in_bytes", "19\n"),
    ("box/hugetlb.1GB.failcnt", "20\n"),
    ("box/hugetlb.1GB.rsvd.usage_in_bytes", "0\n"),
    ("box/blkio.bfq.io_service_bytes_recursive", "4095:0 Read 21\n4095:0 Total 21\nTotal 21\n"),
    ("box/blkio.throttle.io_service_bytes_recursive", "4095:0 Read 99\n"),
    ("box/blkio.throttle.io_serviced_recursive", "4095:16 Write 22\nTotal 22\n"),
    ("box/blkio.sectors_recursive", "4095:0 23\n"),
    ("box/blkio.time_recursive", "4095:0 24\n"),
    ("box/blkio.io_queued_recursive", "Total 0\n"),
];

#[test]
fn stats_v1() {
    let temp = Temp::new("stats1");
    temp.write(V1_FILES);
    let all = ["pids", "cpu", "cpuacct", "memory", "hugetlb", "rdma", "blkio"];
    let mut cgroups = Cgroups { unified: false, dirs: vec![temp.at(&all)] };
    // A hierarchy without the cgroup is no reason to tell nothing.
    cgroups.dirs.insert(0, CgroupDir { path: temp.0.join("gone"), ..temp.at(&["freezer"]) });
    let stats = stats_of(&cgroups).unwrap();
    assert!(!stats.unified);
    assert_eq!(stats.pids, Some(Pids { current: 3, limit: 100 }));
    let cpu = Cpu {
        usage: 30,
        user: 20,
        system: 10,
        per_cpu: vec![14, 16],
        periods: 4,
        throttled_periods: 2,
        throttled_time: 99,
        ..Cpu::default()
    };
    assert_eq!(stats.cpu, Some(cpu));
    let m = stats.memory.unwrap();
    assert_eq!([m.usage, m.limit, m.max_usage, m.fail_count], [1, 2, 3, 4]);
    assert_eq!([m.swap_usage, m.swap_limit, m.swap_max_usage, m.swap_fail_count], [5, 6, 7, 8]);
    assert_eq!(
        [m.kernel_usage, m.kernel_limit, m.kernel_max_usage, m.kernel_fail_count],
        [9, 10, 11, 12]
    );
    assert_eq!([m.tcp_usage, m.tcp_limit, m.tcp_max_usage, m.tcp_fail_count], [13, 14, 25, 26]);
    assert_eq!((m.stat["total_inactive_file"], m.events["oom_kill"]), (16, 17));
    let huge = Hugetlb { page_size: "1GB".into(), current: 18, max: 19, fail_count: 20 };
    assert_eq!((stats.hugetlb, stats.rdma), (vec![huge], vec![]));
    // No host has devices of these numbers.
    let entry = |minor, op: &str, value| BlkioEntry {
        major: 4095,
        minor,
        device: String::new(),
        op: op.into(),
        value,
    };
    let blkio = [
        ("io_service_bytes_recursive", vec![entry(0, "Read", 21), entry(0, "Total", 21)]),
        ("io_serviced_recursive", vec![entry(16, "Write", 22)]),
        ("sectors_recursive", vec![entry(0, "", 23)]),
        ("io_time_recursive", vec![entry(0, "", 24)]),
    ];
    assert_eq!(stats.blkio, blkio.into_iter().collect());
    assert_eq!(Cgroup::from_record(cgroups).oom_kills(), Some(17));
}

#[test]
fn nothing_there() {
    let temp = Temp::new("nothing");
    let v1 = Cgroups { unified: false, dirs: vec![temp.at(&["pids", "freezer"])] };
    for cgroups in [temp.v2(), v1, Cgroups::default()] {
        assert_eq!(stats_of(&cgroups).unwrap_err().kind(), Kind::NotFound);
        let cgroup = Cgroup::from_record(cgroups.clone());
        assert_eq!((cgroup.remove().unwrap(), cgroup.oom_kills()), (vec![], None));
        if !cgroups.dirs.is_empty() {
            assert!(cgroup.empty().unwrap() && cgroup.pids().unwrap().is_empty());
            cgroup.kill_all(libc::SIGKILL).unwrap();
            assert_eq!(cgroup.freeze().unwrap_err().kind(), Kind::NotFound);
        }
    }
    // There, but the kernel knows no numbers.
    temp.write(&[("box/tasks", "")]);
    let stats = stats_of(&temp.v2()).unwrap();
    assert_eq!((stats.pids, stats.cpu, stats.memory), (None, None, None));
}

#[test]
fn nothing_outside_of_the_hierarchy_is_touched() {
    let temp = Temp::new("outside");
    temp.write(&[("other/pids.current", "1\n"), ("hier/x", "")]);
    let inside = |path: &str| {
        let mountpoint = temp.0.join("hier");
        let at = CgroupDir { controllers: vec![], path: mountpoint.join(path), mountpoint };
        Cgroups { unified: true, dirs: vec![at] }
    };
    std::os::unix::fs::symlink("../other", temp.0.join("hier/link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", temp.0.join("hier/pids.current")).unwrap();
    assert_eq!(stats_of(&inside("link")).unwrap_err().errno(), Some(Errno::ELOOP));
    assert_eq!(stats_of(&inside("../other")).unwrap_err().errno(), Some(Errno::EXDEV));
    assert_eq!(stats_of(&inside("")).unwrap_err().errno(), Some(Errno::ELOOP));
    let mut elsewhere = inside("x");
    elsewhere.dirs[0].path = temp.0.join("other");
    assert_eq!(stats_of(&elsewhere).unwrap_err().kind(), Kind::InvalidArgument);
    let root = Cgroup::create(&inside(""), &Limits::default()).unwrap_err();
    assert_eq!(root.kind(), Kind::InvalidArgument);
}

#[test]
fn a_failed_create_leaves_nothing_behind() {
    let temp = Temp::new("undo");
    temp.write(&[
        ("cgroup.controllers", "cpu memory pids\n"),
        ("cgroup.subtree_control", "memory\n"),
    ]);
    let mut cgroups = temp.v2();
    cgroups.dirs[0].path = temp.0.join("pod/box");
    let resources = serde_json::from_str(r#"{"pids": {"limit": 5}}"#).unwrap();
    let limits = limits(&resources, true, Some(Live::default())).unwrap();
    // A plain file system has no pids.max in a new directory.
    let error = Cgroup::create(&cgroups, &limits).unwrap_err();
    assert!(error.to_string().contains("no \"pids\" cgroup controller"), "{error}");
    assert!(!temp.0.join("pod").exists());
    // Only what was missing is asked for.
    assert_eq!(temp.read("cgroup.subtree_control"), "+cpu +pids");
    temp.write(&[("pod/keep", "")]);
    assert!(Cgroup::create(&cgroups, &limits).is_err());
    assert!(temp.0.join("pod/keep").exists() && !temp.0.join("pod/box").exists());
    Cgroup::create(&cgroups, &Limits::default()).unwrap();
    assert!(temp.0.join("pod/box").exists());
}

#[test]
fn processes_above_a_container_leave_it_threaded() {
    let temp = Temp::new("threaded");
    temp.write(&[
        ("box/cgroup.type", "domain invalid\n"),
        ("box/cpu.max", ""),
        ("box/memory.max", ""),
    ]);
    let limits = |json: &str| {
        limits(&serde_json::from_str(json).unwrap(), true, Some(Live::default())).unwrap()
    };
    let memory = limits(r#"{"cpu": {"quota": 5000}, "memory": {"limit": 4096}}"#);
    let error = Cgroup::create(&temp.v2(), &memory).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.to_string().contains("domain invalid"), "{error}");
    assert_eq!(temp.read("box/cgroup.type"), "domain invalid\n");
    Cgroup::create(&temp.v2(), &limits(r#"{"cpu": {"quota": 5000}}"#)).unwrap();
    assert!(temp.read("box/cgroup.type").starts_with("threaded"));
    assert_eq!(temp.read("box/cpu.max"), "5000");
}

/// A plain file system has no list of processes where the kernel refuses one.
#[test]
fn the_threads_below_a_threaded_cgroup_are_processes() {
    let temp = Temp::new("lists");
    let cgroup = Cgroup::from_record(temp.v2());
    std::thread::scope(|scope| {
        let (ask, asked) = std::sync::mpsc::channel::<()>();
        let (say, said) = std::sync::mpsc::channel();
        scope.spawn(move || {
            say.send(nix::unistd::gettid().to_string()).unwrap();
            let _ = asked.recv();
        });
        let thread = said.recv().unwrap();
        let own = std::process::id();
        assert_ne!(thread, own.to_string());
        temp.write(&[
            ("box/cgroup.threads", "4194305\n"),
            ("box/a/b/cgroup.threads", &format!("{thread}\n")),
        ]);
        assert_eq!(cgroup.pids().unwrap(), [own]);
        // Below a domain the list of that has them.
        temp.write(&[("box/cgroup.procs", "7\n")]);
        assert_eq!(cgroup.pids().unwrap(), [7]);
        drop(ask);
    });
}

#[test]
fn an_update_writes_what_blocks_in_a_child() {
    let temp = Temp::new("update");
    temp.write(&[
        ("box/cpu.weight", ""),
        ("box/cpuset.cpus", ""),
        ("box/pids.max", ""),
        ("box/memory.max", ""),
        ("box/memory.current", "5000\n"),
        ("box/io.weight", ""),
    ]);
    let cgroup = Cgroup::from_record(temp.v2());
    let update = |json: &str| cgroup.update(&serde_json::from_str(json).unwrap());
    // Devices stay; no swap file; no BFQ.
    let json = r#"{"devices": [{"allow": false, "access": "rwm"}], "cpu": {"shares": 1024,
        "cpus": "0"}, "pids": {"limit": 9}, "memory": {"limit": 4096, "swap": 4096},
        "blockIO": {"weight": 10}}"#;
    let done = update(json).unwrap();
    let direct: Vec<String> = done.direct.iter().map(Write::to_string).collect();
    assert_eq!(direct, ["cpu.weight = \"100\"", "pids.max = \"9\""]);
    let ops: Vec<String> = done.ops.iter().map(Op::to_string).collect();
    let file = |name: &str| temp.0.join("box").join(name);
    assert_eq!(
        ops,
        [
            format!("write \"0\" to {:?}", file("cpuset.cpus")),
            format!("write \"4096\" to {:?}", file("memory.max")),
            format!("write \"1\" to {:?}", file("io.weight")),
        ]
    );
    cgroup.apply(&done.direct).unwrap();
    assert_eq!(
        (temp.read("box/cpu.weight"), temp.read("box/pids.max")),
        ("100".into(), "9".into())
    );
    assert_eq!(update(r#"{"pids": {"limit": 9}}"#).unwrap().ops, []);
    let missing = update(r#"{"unified": {"memory.high": "1"}}"#).unwrap_err();
    assert!(missing.to_string().contains("memory.high"), "{missing}");
    for field in ["limit", "swap"] {
        let check = |bytes: u64, check: bool| {
            let limit = if field == "swap" { r#""limit": 4096,"# } else { "" };
            let json = format!(
                r#"{{"memory": {{{limit} "{field}": {bytes}, "checkBeforeUpdate": {check}}}}}"#
            );
            update(&json).err().map(|error| error.kind())
        };
        assert_eq!(check(5000, true), Some(Kind::FailedPrecondition));
        temp.write(&[("box/memory.current", "4000\n"), ("box/memory.swap.max", "")]);
        assert_eq!((check(5001, true), check(5000, false)), (None, None));
        temp.write(&[("box/memory.current", "5000\n")]);
    }
}

#[test]
fn an_update_knows_its_way_back() {
    let temp = Temp::new("back");
    temp.write(&[
        ("box/cpu.max", "50000 100000\n"),
        ("box/cpuset.cpus", "\n"),
        ("box/pids.max", "max\n"),
        ("box/memory.max", "8192\n"),
        ("box/memory.swap.max", "max\n"),
        ("box/io.weight", "default 100\n8:0 50\n"),
        ("box/io.max", "8:0 rbps=1 wbps=max riops=max wiops=max\n"),
        ("box/rdma.max", "mlx4_0 hca_handle=3 hca_object=max\n"),
        ("box/misc.max", "sev 5\nsev_es max\n"),
    ]);
    let cgroup = Cgroup::from_record(temp.v2());
    let json = r#"{"cpu": {"quota": 7000, "cpus": "0"}, "pids": {"limit": 9},
        "memory": {"limit": 4096, "swap": 6144},
        "blockIO": {"weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 10},
            {"major": 8, "minor": 16, "weight": 10}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5},
            {"major": 8, "minor": 16, "rate": 5}]},
        "rdma": {"mlx4_0": {"hcaHandles": 1}}, "unified": {"misc.max": "sev_es 9"}}"#;
    let update = cgroup.update(&serde_json::from_str(json).unwrap()).unwrap();
    let file = |name: &str| temp.0.join("box").join(name);
    let undo: Vec<String> = update.undo.iter().map(Op::to_string).collect();
    let wanted = [
        ("misc.max", "sev_es max"),
        ("rdma.max", "mlx4_0 hca_handle=3 hca_object=max"),
        ("io.max", "8:16 rbps=max wbps=max riops=max wiops=max"),
        ("io.max", "8:0 rbps=1 wbps=max riops=max wiops=max"),
        ("io.weight", "8:16 default"),
        ("io.weight", "8:0 50"),
        ("io.weight", "default 100\n"),
        ("memory.max", "8192\n"),
        ("memory.swap.max", "max\n"),
        ("cpuset.cpus", "\n"),
    ];
    let wanted = wanted.map(|(name, value)| format!("write {value:?} to {:?}", file(name)));
    assert_eq!(undo, wanted);
    cgroup.apply(&update.direct).unwrap();
    // A plain file keeps what is behind.
    assert_eq!(temp.read("box/cpu.max"), "70000 100000\n");
    assert_eq!(temp.read("box/pids.max"), "9ax\n");
    cgroup.set_back(&update).unwrap();
    assert_eq!(temp.read("box/cpu.max"), "50000 100000\n");
    assert_eq!(temp.read("box/pids.max"), "max\n");
}
