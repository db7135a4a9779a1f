//! Golden conversions: resources as JSON in, one line per write out.

use oci_spec::runtime::{LinuxResources, Spec};

use super::*;
use crate::error::Kind;

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

/// The writes of an update, which has no device rules.
fn update(unified: bool, json: &str, memory_limit: u64) -> Result<String> {
    let limits = limits(&resources(json), unified, Some(Live { memory_limit, ..Live::default() }))?;
    assert_eq!(limits.device_filter, None);
    Ok(text(&limits.writes))
}

fn text(writes: &[Write]) -> String {
    writes.iter().map(|write| write.to_string() + "\n").collect()
}

fn v1(json: &str) -> String {
    update(false, json, u64::MAX).unwrap()
}

fn v2(json: &str) -> String {
    update(true, json, u64::MAX).unwrap()
}

fn refused(unified: bool, json: &str) -> String {
    let error = update(unified, json, u64::MAX).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    error.to_string()
}

fn at(cgroups_path: &str) -> Result<PathBuf> {
    let mut spec = Spec::default();
    spec.linux_mut().as_mut().unwrap().set_cgroups_path(Some(cgroups_path.into()));
    path(&spec, "k8s.io", "web")
}

#[test]
fn cgroups_path() {
    assert_eq!(
        at("/kubepods/besteffort/pod1/web").unwrap(),
        Path::new("/kubepods/besteffort/pod1/web")
    );
    assert_eq!(at("//a/./b/").unwrap(), Path::new("/a/b"));
    assert_eq!(at("a/b").unwrap(), Path::new("a/b"));
    assert_eq!(at("").unwrap(), Path::new("/k8s.io/web"));
    assert_eq!(at("/a:b:c").unwrap(), Path::new("/a:b:c"));
    let mut none = Spec::default();
    none.set_linux(None);
    assert_eq!(path(&none, "default", "x").unwrap(), Path::new("/default/x"));
    assert!(path(&none, "default", "../../etc").is_err());
    for bad in ["/a/../b", "..", "/", "/.", "../x"] {
        assert_eq!(at(bad).unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
    }
    let scope = Path::new("/kubepods.slice/kubepods-pod1.slice/cri-containerd-web.scope");
    assert_eq!(at("kubepods-pod1.slice:cri-containerd:web").unwrap(), scope);
}

#[test]
fn v2_weight_is_the_logarithmic_one() {
    let known = [
        (1, 1),
        (2, 1),
        (3, 2),
        (512, 59),
        (1024, 100),
        (2048, 174),
        (10_000, 627),
        (262_144, 10_000),
    ];
    for (shares, weight) in known {
        assert_eq!(v2::weight(shares), weight, "{shares}");
    }
    let mut last = 0;
    for shares in 0..=262_145 {
        let weight = v2::weight(shares);
        assert!((1..=10_000).contains(&weight) && weight >= last, "{shares}: {weight}");
        last = weight;
    }
}

#[test]
fn cpu() {
    let json = r#"{"cpu": {"shares": 1024, "quota": 50000, "period": 200000, "burst": 1000,
        "cpus": "0-1", "mems": "0"}}"#;
    assert_eq!(
        v1(json),
        "cpu.shares = \"1024\"\n\
         cpu.cfs_period_us = \"200000\" or [EINVAL]\n\
         cpu.cfs_burst_us = \"1000\" or [EINVAL]\n\
         cpu.cfs_quota_us = \"50000\"\n\
         cpu.cfs_period_us = \"200000\"\n\
         cpu.cfs_burst_us = \"1000\"\n\
         cpuset.cpus = \"0-1\"\n\
         cpuset.mems = \"0\"\n"
    );
    assert_eq!(
        v2(json),
        "cpu.weight = \"100\"\n\
         cpu.max.burst = \"1000\" or [EINVAL]\n\
         cpu.max = \"50000 200000\"\n\
         cpu.max.burst = \"1000\"\n\
         cpuset.cpus = \"0-1\"\n\
         cpuset.mems = \"0\"\n"
    );
    assert_eq!(v2(r#"{"cpu": {"quota": -1}}"#), "cpu.max = \"max\"\n");
    assert_eq!(v2(r#"{"cpu": {"period": 5000}}"#), "cpu.max = \"max 5000\"\n");
    assert_eq!(v1(r#"{"cpu": {"quota": -1}}"#), "cpu.cfs_quota_us = \"-1\"\n");
    for nothing in ["{}", r#"{"cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": ""}}"#] {
        assert_eq!((v1(nothing), v2(nothing)), (String::new(), String::new()));
    }
    let idle = r#"{"cpu": {"shares": 2, "idle": 1}}"#;
    assert_eq!((v1(idle), v2(idle)), ("cpu.idle = \"1\"\n".into(), "cpu.idle = \"1\"\n".into()));
    let awake = r#"{"cpu": {"shares": 2, "idle": 0}}"#;
    assert_eq!(v2(awake), "cpu.idle = \"0\"\ncpu.weight = \"1\"\n");
    let realtime = r#"{"cpu": {"realtimeRuntime": 900, "realtimePeriod": 1000}}"#;
    assert_eq!(v1(realtime), "cpu.rt_period_us = \"1000\"\ncpu.rt_runtime_us = \"900\"\n");
    assert!(refused(true, realtime).contains("cgroup v1"));
}

#[test]
fn an_update_of_quota_or_period_leaves_the_other() {
    let max = |json: &str, live| {
        let writes = limits(&resources(json), true, live).unwrap().writes;
        writes.into_iter().find(|write| write.file == "cpu.max").map(|write| write.value)
    };
    let live = |quota| Some(Live { quota, ..Live::default() });
    let (quota, period) = (r#"{"cpu": {"quota": 7000}}"#, r#"{"cpu": {"period": 5000}}"#);
    // The kernel keeps the period where none is written.
    assert_eq!(max(quota, live(Some(50_000))).unwrap(), "7000");
    assert_eq!(max(period, live(Some(50_000))).unwrap(), "50000 5000");
    assert_eq!(max(period, live(None)).unwrap(), "max 5000");
    assert_eq!(max(quota, None).unwrap(), "7000 100000");
    assert_eq!(max(period, None).unwrap(), "max 5000");
}

#[test]
fn memory_v1_never_has_more_memory_than_memory_and_swap() {
    let json = r#"{"memory": {"limit": 100, "swap": 300}}"#;
    let memory_first = "memory.limit_in_bytes = \"100\"\nmemory.memsw.limit_in_bytes = \"300\"\n";
    let swap_first = "memory.memsw.limit_in_bytes = \"300\"\nmemory.limit_in_bytes = \"100\"\n";
    for (now, writes) in [(u64::MAX, memory_first), (300, memory_first), (299, swap_first)] {
        assert_eq!(update(false, json, now).unwrap(), writes, "{now}");
    }
    let new = limits(&resources(json), false, None).unwrap();
    assert!(text(&new.writes).ends_with(memory_first));
    let unlimited = r#"{"memory": {"limit": -1}}"#;
    assert_eq!(
        v1(unlimited),
        "memory.memsw.limit_in_bytes = \"-1\" or [ENOENT]\nmemory.limit_in_bytes = \"-1\"\n"
    );
}

#[test]
fn memory() {
    let json = r#"{"memory": {"limit": 1000, "swap": 1500, "reservation": 500, "kernel": 7,
        "kernelTCP": 9, "swappiness": 60, "disableOOMKiller": true}}"#;
    assert_eq!(
        v1(json),
        "memory.limit_in_bytes = \"1000\"\n\
         memory.memsw.limit_in_bytes = \"1500\"\n\
         memory.soft_limit_in_bytes = \"500\"\n\
         memory.kmem.tcp.limit_in_bytes = \"9\"\n\
         memory.swappiness = \"60\"\n\
         memory.oom_control = \"1\"\n"
    );
    assert_eq!(
        v2(json),
        "memory.swap.max = \"500\"\nmemory.max = \"1000\"\nmemory.low = \"500\"\n"
    );
    assert_eq!(v1(r#"{"memory": {"swappiness": 18446744073709551615}}"#), "");
    let killer = r#"{"memory": {"disableOOMKiller": false}}"#;
    assert_eq!(v1(killer), "memory.oom_control = \"0\"\n");
    let new = limits(&resources(killer), false, None).unwrap();
    assert!(!text(&new.writes).contains("oom_control"));
    assert!(refused(false, r#"{"memory": {"swappiness": 101}}"#).contains("101"));
    assert!(refused(true, r#"{"memory": {"limit": -2}}"#).contains("-2"));
    assert!(refused(false, r#"{"memory": {"reservation": -2}}"#).contains("-2"));
}

#[test]
fn swap_v2() {
    let swap = |limit, swap| v2::swap_max(limit, swap).ok();
    assert_eq!(swap(None, None), Some(None));
    assert_eq!(swap(Some(1000), None), Some(None));
    assert_eq!(swap(Some(-1), None), Some(Some(-1)));
    assert_eq!(swap(None, Some(-1)), Some(Some(-1)));
    assert_eq!(swap(Some(1000), Some(-1)), Some(Some(-1)));
    assert_eq!(swap(Some(-1), Some(300)), Some(Some(300)));
    assert_eq!(swap(Some(1000), Some(1000)), Some(Some(0)));
    assert_eq!(swap(Some(200), Some(500)), Some(Some(300)));
    assert_eq!(swap(Some(400), Some(300)), None);
    assert_eq!(swap(None, Some(300)), None);
    let equal = r#"{"memory": {"limit": 1000, "swap": 1000}}"#;
    assert_eq!(v2(equal), "memory.swap.max = \"0\" or [ENOENT]\nmemory.max = \"1000\"\n");
    let free = r#"{"memory": {"limit": -1}}"#;
    assert_eq!(v2(free), "memory.swap.max = \"max\" or [ENOENT]\nmemory.max = \"max\"\n");
}

#[test]
fn what_has_no_effect_is_named() {
    let json = r#"{"memory": {"kernel": 7, "kernelTCP": 9, "swappiness": 60, "useHierarchy": false,
            "disableOOMKiller": true},
        "blockIO": {"weightDevice": [{"major": 8, "minor": 0, "leafWeight": 20}]},
        "network": {"classID": 1, "priorities": [{"name": "eth0", "priority": 5}]}}"#;
    assert_eq!(ignored(&resources(json), false), ["memory.kernel", "memory.useHierarchy"]);
    let v2 = [
        "memory.kernel",
        "memory.useHierarchy",
        "memory.kernelTCP",
        "memory.swappiness",
        "memory.disableOOMKiller",
        "blockIO.leafWeight",
        "network.classID",
        "network.priorities",
    ];
    assert_eq!(ignored(&resources(json), true), v2);
    // How clients say "nothing".
    let nothing = r#"{"memory": {"kernel": 0, "kernelTCP": -1, "swappiness": 18446744073709551615,
            "useHierarchy": true, "disableOOMKiller": false},
        "blockIO": {"leafWeight": 0}, "network": {"classID": 0, "priorities": []}}"#;
    assert_eq!(ignored(&resources(nothing), true), [""; 0]);
    // Nothing of it is written.
    assert_eq!(self::v2(json), "");
}

#[test]
fn pids() {
    for (limit, value) in [(0, "\"1\""), (7, "\"7\""), (-1, "\"max\" or [ENOENT]")] {
        let json = format!(r#"{{"pids": {{"limit": {limit}}}}}"#);
        let write = format!("pids.max = {value}\n");
        assert_eq!((v1(&json), v2(&json)), (write.clone(), write));
    }
}

#[test]
fn block_io() {
    let json = r#"{"blockIO": {"weight": 500, "leafWeight": 10,
        "weightDevice": [{"major": 8, "minor": 0, "weight": 1000, "leafWeight": 20}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1048576}],
        "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 0}],
        "throttleReadIOPSDevice": [{"major": 8, "minor": 16, "rate": 5}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 6}]}}"#;
    assert_eq!(
        v1(json),
        "blkio.weight = \"500\" or [ENOENT]\n\
         blkio.bfq.weight = \"500\" unless blkio.weight\n\
         blkio.weight_device = \"8:0 1000\" or [ENOENT]\n\
         blkio.bfq.weight_device = \"8:0 1000\" unless blkio.weight_device\n\
         blkio.leaf_weight_device = \"8:0 20\"\n\
         blkio.leaf_weight = \"10\"\n\
         blkio.throttle.read_bps_device = \"8:0 1048576\"\n\
         blkio.throttle.write_bps_device = \"8:0 0\"\n\
         blkio.throttle.read_iops_device = \"8:16 5\"\n\
         blkio.throttle.write_iops_device = \"8:16 6\"\n"
    );
    assert_eq!(
        v2(json),
        "io.bfq.weight = \"500\" or [ENOENT]\n\
         io.weight = \"4950\" unless io.bfq.weight\n\
         io.bfq.weight = \"8:0 1000\" or [ENOENT]\n\
         io.weight = \"8:0 10000\" unless io.bfq.weight\n\
         io.max = \"8:0 rbps=1048576\"\n\
         io.max = \"8:0 wbps=max\"\n\
         io.max = \"8:16 riops=5\"\n\
         io.max = \"8:16 wiops=6\"\n"
    );
    assert!(v2(r#"{"blockIO": {"weight": 10}}"#).contains("io.weight = \"1\""));
    assert_eq!(v2(r#"{"blockIO": {"weight": 0}}"#), "");
    for weight in [9, 1001] {
        let json = format!(r#"{{"blockIO": {{"weight": {weight}}}}}"#);
        assert!(refused(true, &json).contains("10..1000"));
        assert!(refused(false, &json).contains("10..1000"));
    }
}

#[test]
fn hugetlb() {
    let json = r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#;
    assert_eq!(
        v1(json),
        "hugetlb.2MB.limit_in_bytes = \"4194304\"\n\
         hugetlb.2MB.rsvd.limit_in_bytes = \"4194304\" or [ENOENT]\n"
    );
    assert_eq!(
        v2(json),
        "hugetlb.2MB.max = \"4194304\"\nhugetlb.2MB.rsvd.max = \"4194304\" or [ENOENT]\n"
    );
    for size in ["", "B", "MB", "2", "2M", "2mB", "2KMB", "-2MB", "x/../2MB", "2MB/../a"] {
        let json = format!(r#"{{"hugepageLimits": [{{"pageSize": "{size}", "limit": 1}}]}}"#);
        assert!(refused(true, &json).contains("page size"), "{size}");
    }
}

#[test]
fn network_and_rdma() {
    let json = r#"{"network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}]},
        "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}, "mlx4_0": {"hcaObjects": 2}}}"#;
    let rdma = "rdma.max = \"mlx4_0 hca_object=2\"\n\
         rdma.max = \"mlx5_1 hca_handle=3 hca_object=10000\"\n";
    let network = "net_cls.classid = \"1048577\"\nnet_prio.ifpriomap = \"eth0 5\"\n";
    assert_eq!((v1(json), v2(json)), (format!("{network}{rdma}"), rdma.into()));
    let two = r#"{"rdma": {"a hca_object=max\nb": {"hcaHandles": 3}}}"#;
    assert!(refused(true, two).contains("not a device's name"));
}

#[test]
fn unified_is_verbatim_last_and_v2_only() {
    let json = r#"{"unified": {"memory.high": "1G\n", "hugetlb.1MB.max": "", "cpu.max": "1 2",
        "io.max": "7:0 rbps=1\n7:1 wbps=2"},
        "pids": {"limit": 3}}"#;
    assert_eq!(
        v2(json),
        "pids.max = \"3\"\n\
         cpu.max = \"1 2\"\n\
         hugetlb.1MB.max = \"\"\n\
         io.max = \"7:0 rbps=1\\n\"\n\
         io.max = \"7:1 wbps=2\"\n\
         memory.high = \"1G\\n\"\n"
    );
    assert!(refused(false, json).contains("cgroup v2"));
    assert_eq!(v1(r#"{"unified": {}}"#), "");
    for file in ["../memory.max", "/etc/x.y", "a/b.c", "memory", ".max", "memory.", "", "..", "."] {
        let json = format!(r#"{{"unified": {{"{file}": "1"}}}}"#);
        assert!(refused(true, &json).contains("is no file"), "{file}");
    }
    for file in ["cgroup.procs", "cgroup.threads"] {
        let json = format!(r#"{{"unified": {{"{file}": "1"}}}}"#);
        assert!(refused(true, &json).contains("is no limit"), "{file}");
    }
}

const DEFAULTS: &str = "devices.deny = \"a\"\n\
     devices.allow = \"b *:* m\"\n\
     devices.allow = \"c *:* m\"\n\
     devices.allow = \"c 1:3 rwm\"\n\
     devices.allow = \"c 1:5 rwm\"\n\
     devices.allow = \"c 1:7 rwm\"\n\
     devices.allow = \"c 1:8 rwm\"\n\
     devices.allow = \"c 1:9 rwm\"\n\
     devices.allow = \"c 5:0 rwm\"\n\
     devices.allow = \"c 5:1 rwm\"\n\
     devices.allow = \"c 5:2 rwm\"\n\
     devices.allow = \"c 136:* rwm\"\n\
     devices.allow = \"c 10:200 rwm\"\n";

fn new_v1(devices: &str) -> Result<String> {
    let json = format!(r#"{{"devices": {devices}}}"#);
    limits(&resources(&json), false, None).map(|limits| text(&limits.writes))
}

#[test]
fn devices_v1() {
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(Into::into).collect();
        lines[1..].sort();
        lines
    };
    for nothing in ["[]", r#"[{"allow": false, "access": "rwm"}]"#] {
        assert_eq!(sorted(&new_v1(nothing).unwrap()), sorted(DEFAULTS));
    }
    let none = limits(&LinuxResources::default(), false, None).unwrap();
    assert_eq!(sorted(&text(&none.writes)), sorted(DEFAULTS));
    // What is taken away again is not there, an "a" before the last counts for nothing.
    let rules = r#"[{"allow": true, "access": "rwm"},
        {"allow": false, "type": "a", "major": -1, "minor": -1, "access": "mrw"},
        {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "rw"},
        {"allow": true, "type": "b", "major": 8, "minor": 1, "access": "r"},
        {"allow": false, "type": "b", "major": 8, "access": "w"}]"#;
    let with = format!("{DEFAULTS}devices.allow = \"b 8:0 r\"\ndevices.allow = \"b 8:1 r\"\n");
    assert_eq!(sorted(&new_v1(rules).unwrap()), sorted(&with));
    let privileged = r#"[{"allow": true, "access": "rwm"}]"#;
    assert_eq!(new_v1(privileged).unwrap(), "devices.allow = \"a\"\n");
    let all_but = r#"[{"allow": true, "access": "rwm"},
        {"allow": false, "type": "b", "major": 8, "minor": 0, "access": "w"}]"#;
    assert_eq!(new_v1(all_but).unwrap(), "devices.allow = \"a\"\ndevices.deny = \"b 8:0 w\"\n");
    let hole = r#"[{"allow": true, "type": "b", "major": 8, "access": "rw"},
        {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "w"}]"#;
    let error = new_v1(hole).unwrap_err();
    assert!(error.to_string().contains("\"deny b 8:1 w\""), "{error}");
    for bad in [
        r#"[{"allow": true, "access": ""}]"#,
        r#"[{"allow": true}]"#,
        r#"[{"allow": true, "access": "rx"}]"#,
        r#"[{"allow": true, "type": "p", "access": "r"}]"#,
        r#"[{"allow": true, "type": "c", "major": -2, "access": "r"}]"#,
        r#"[{"allow": true, "type": "c", "minor": 4294967296, "access": "r"}]"#,
    ] {
        assert!(new_v1(bad).unwrap_err().to_string().contains("resources.devices[0]"), "{bad}");
    }
}

#[test]
fn devices_v2_are_a_program_or_nothing() {
    let filter = |devices: &str, live| {
        let json = format!(r#"{{"devices": {devices}}}"#);
        let limits = limits(&resources(&json), true, live).unwrap();
        assert_eq!(limits.writes, []);
        limits.device_filter
    };
    let privileged = r#"[{"allow": false, "access": "rwm"}, {"allow": true, "access": "rwm"}]"#;
    assert_eq!(filter(privileged, None), None);
    assert!(filter("[]", None).is_some());
    assert_eq!(filter("[]", Some(Live::default())), None);
}
