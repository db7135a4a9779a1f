//! Golden units and properties: a spec as JSON in, a line for each property out.

use oci_spec::runtime::LinuxResources;

use super::*;

fn lines(properties: &[Property]) -> String {
    properties.iter().map(|property| property.to_string() + "\n").collect()
}

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

fn given(json: &str, live: Option<crate::plan::cgroup::Live>, version: u32) -> String {
    lines(&limits(&resources(json), live, version).unwrap())
}

fn spec(path: &str, annotations: &[(&str, &str)]) -> Spec {
    let mut spec = Spec::default();
    let linux = spec.linux_mut().as_mut().unwrap();
    linux.set_cgroups_path(Some(path.into()));
    linux.set_resources(None);
    let text = |(key, value): &(&str, &str)| (key.to_string(), value.to_string());
    spec.set_annotations(Some(annotations.iter().map(text).collect()));
    spec
}

#[test]
fn slice_prefix_and_name() {
    let of = |path: &str| unit_of(Path::new(path)).unwrap().unwrap();
    let pod = of("kubepods-besteffort-pod1_2.slice:cri-containerd:web");
    assert_eq!(pod.name, "cri-containerd-web.scope");
    assert_eq!(pod.slice, "kubepods-besteffort-pod1_2.slice");
    let path = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-web.scope";
    assert_eq!(pod.path, Path::new(path));
    assert_eq!(of(":docker:c1").path, Path::new("/system.slice/docker-c1.scope"));
    assert_eq!(of("-.slice:a:b").path, Path::new("/a-b.scope"));
    assert_eq!(of("a.slice::b").name, "-b.scope");
    for path in ["/a:b:c", "a/b", "/a", "", "a:b", "a:b:c:d"] {
        assert_eq!(unit_of(Path::new(path)).unwrap(), None, "{path}");
    }
}

#[test]
fn what_names_no_scope_is_refused() {
    for (path, want) in [
        ("a.slice:b:", "it names no unit"),
        ("a.slice:b:c.slice", "a slice: systemd has no processes in one"),
        ("a--b.slice:c:d", "\"a--b.slice\" is not the name of a slice"),
        ("-a.slice:c:d", "\"-a.slice\" is not the name of a slice"),
        (".slice:c:d", "\".slice\" is not the name of a unit"),
        ("a:c:d", "\"a\" is not the name of a slice"),
        ("../../x.slice:c:d", "is not the name of a unit"),
        ("a.slice:../../..:d", "is not the name of a unit"),
        ("a.slice:c:x/../../d", "is not the name of a unit"),
        ("a.slice:c:x y", "is not the name of a unit"),
        ("a.slice:_c:x", "is not the name of a unit"),
    ] {
        let error = unit_of(Path::new(path)).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{path}");
        assert!(error.to_string().contains(want), "{path}: {error}");
    }
    let long = format!("a.slice:c:{}", "x".repeat(250));
    assert!(unit_of(Path::new(&long)).is_err());
}

#[test]
fn the_option_only_insists() {
    check_driver(&spec("a.slice:b:c", &[]), true).unwrap();
    check_driver(&spec("/a", &[]), false).unwrap();
    for path in ["/a", ""] {
        let error = check_driver(&spec(path, &[]), true).unwrap_err().to_string();
        assert!(error.contains("the option systemd_cgroup"), "{error}");
    }
}

#[test]
fn a_scope_and_its_annotations() {
    let spec = spec(
        "a.slice:b:c",
        &[
            ("org.systemd.property.TimeoutStopSec", "uint64 5"),
            ("org.systemd.property.CollectMode", "'inactive'"),
            ("org.systemd.property.After", "['x.service', \"y's.service\"]"),
            ("org.systemd.property.CPUWeight", "uint64 0x20"),
            ("other", "uint64 5"),
        ],
    );
    let unit = unit(&spec).unwrap().unwrap();
    let want = r#"Description = "container web"
Slice = "a.slice"
Delegate = true
DefaultDependencies = false
MemoryAccounting = true
CPUAccounting = true
IOAccounting = true
TasksAccounting = true
After = ["x.service", "y's.service"]
CPUWeight = uint64 32
CollectMode = "inactive"
TimeoutStopUSec = uint64 5000000
"#;
    let all = scope(&unit, "web", &spec, 0).unwrap();
    assert_eq!(lines(&all), want);
    let stop = all.iter().find(|property| property.name == "TimeoutStopUSec").unwrap();
    assert_eq!(stop.value, Value::U64(5_000_000));
}

#[test]
fn annotations_that_are_none() {
    for (key, value, want) in [
        ("Slice", "'b.slice'", "no property of a scope that can be set"),
        ("PIDs", "[uint32 1]", "no property of a scope that can be set"),
        ("PIDFDs", "[uint32 1]", "no property of a scope that can be set"),
        ("Delegate", "false", "no property of a scope that can be set"),
        ("User", "'nobody'", "no property of a scope that can be set"),
        ("Wants", "['debug-shell.service']", "no property of a scope that can be set"),
        ("Conflicts", "['kubelet.service']", "no property of a scope that can be set"),
        ("OnFailure", "['poweroff.target']", "no property of a scope that can be set"),
        ("SuccessAction", "'reboot-force'", "no property of a scope that can be set"),
        ("JobTimeoutAction", "'reboot-force'", "no property of a scope that can be set"),
        ("RequiresMountsFor", "['/mnt']", "no property of a scope that can be set"),
        ("IPIngressFilterPath", "['/sys/fs/bpf/x']", "no property of a scope that can be set"),
        ("Ab", "1", "no property of a scope that can be set"),
        ("CPU-bc", "1", "no property of a scope that can be set"),
        ("TimeoutStopSec", "'5'", "is not a number of seconds"),
        ("TimeoutStopSec", "-5", "is not a number of seconds"),
        ("CPUWeight", "uint64 -1", "\"-1\" is not of type \"t\""),
        ("CPUWeight", "uint64 1 2", "follows the value"),
        ("CPUWeight", "", "is not of type"),
        ("After", "['a'", "a comma is missing"),
        ("After", "['a', 5]", "ignature"),
        ("After", "[]", "needs its type"),
        ("After", "'a", "without its end"),
        ("IODeviceWeight", "[('/dev/x', 5)]", "not supported"),
    ] {
        let key = format!("org.systemd.property.{key}");
        let error = annotations::properties(&spec("a.slice:b:c", &[(&key, value)])).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{key}");
        let error = error.to_string();
        assert!(error.starts_with(&format!("annotation {key:?}: ")), "{error}");
        assert!(error.contains(want), "{key}={value}: {error}");
    }
}

#[test]
fn an_annotation_lifts_no_limit() {
    let mut spec = spec(
        "a.slice:b:c",
        &[
            ("org.systemd.property.MemoryMax", "uint64 18446744073709551615"),
            ("org.systemd.property.MemoryMaxScale", "uint32 4294967295"),
            ("org.systemd.property.StartupMemoryMax", "uint64 18446744073709551615"),
            ("org.systemd.property.StartupMemoryMaxScale", "uint32 4294967295"),
            ("org.systemd.property.StartupMemoryHigh", "uint64 5"),
            ("org.systemd.property.TasksMax", "uint64 5"),
        ],
    );
    let limits = resources(r#"{"memory": {"limit": 4096}}"#);
    spec.linux_mut().as_mut().unwrap().set_resources(Some(limits));
    let unit = unit(&spec).unwrap().unwrap();
    let all = lines(&scope(&unit, "web", &spec, 0).unwrap());
    let set: Vec<&str> = all.lines().filter(|line| line.contains("uint")).collect();
    let want = ["StartupMemoryHigh = uint64 5", "TasksMax = uint64 5", "MemoryMax = uint64 4096"];
    assert_eq!(set, want);
}

#[test]
fn a_text_that_would_fill_the_stack() {
    for begin in ["[", "uint64 ", "@as ", "@", "@a"] {
        let text = begin.repeat(100_000);
        assert!(text::parse(&text).is_err(), "{begin}");
    }
    let signature = format!("@{} []", "a".repeat(100_000));
    assert!(text::parse(&signature).is_err());
}

#[test]
fn texts_of_every_type() {
    for (text, want) in [
        ("true", Value::Bool(true)),
        (" 5 ", Value::I32(5)),
        ("-5", Value::I32(-5)),
        ("010", Value::I32(8)),
        ("1.5", Value::F64(1.5)),
        ("byte 0xff", Value::U8(255)),
        ("boolean false", Value::Bool(false)),
        ("int16 -1", Value::I16(-1)),
        ("uint16 1", Value::U16(1)),
        ("uint32 1", Value::U32(1)),
        ("int64 1", Value::I64(1)),
        ("@t 18446744073709551615", Value::U64(u64::MAX)),
        ("double 2", Value::F64(2.0)),
        (r#"'it\'s "so"\n'"#, Value::from("it's \"so\"\n")),
        ("[true,false]", Value::from(vec![true, false])),
        ("@au [1, 2]", Value::from(vec![1u32, 2])),
        ("@as []", Value::from(Vec::<String>::new())),
        ("[]  ", Value::Bool(true)),
    ] {
        match text::parse(text) {
            Ok(value) => assert_eq!(value, want, "{text}"),
            Err(error) => assert!(text.starts_with("[]"), "{text}: {error}"),
        }
    }
}

const EVERY: &str = r#"{
    "cpu": {"shares": 2048, "quota": 12345, "period": 50000, "cpus": "0-2,9", "mems": "0", "burst": 5},
    "memory": {"limit": 67108864, "swap": 134217728, "reservation": 33554432},
    "pids": {"limit": 0},
    "blockIO": {"weight": 500},
    "unified": {"memory.high": "max", "memory.min": "4096", "hugetlb.2MB.max": "0", "pids.max": "0"}
}"#;

#[test]
fn every_limit_that_systemd_knows() {
    let want = "\
MemoryMax = uint64 67108864
MemoryLow = uint64 33554432
MemorySwapMax = uint64 67108864
CPUWeight = uint64 174
CPUQuotaPeriodUSec = uint64 50000
CPUQuotaPerSecUSec = uint64 250000
AllowedCPUs = [byte 0x07, 0x02]
AllowedMemoryNodes = [byte 0x01]
TasksMax = uint64 1
IOWeight = uint64 4950
MemoryHigh = uint64 18446744073709551615
MemoryMin = uint64 4096
TasksMax = uint64 1
";
    assert_eq!(given(EVERY, None, 252), want);
    let unlimited = r#"{"memory": {"limit": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}}"#;
    let want = "\
MemoryMax = uint64 18446744073709551615
MemorySwapMax = uint64 18446744073709551615
CPUQuotaPeriodUSec = uint64 100000
CPUQuotaPerSecUSec = uint64 18446744073709551615
TasksMax = uint64 18446744073709551615
";
    assert_eq!(given(unlimited, None, 252), want);
    for bad in [
        r#"{"cpu": {"cpus": "3-1"}}"#,
        r#"{"cpu": {"cpus": "x"}}"#,
        r#"{"unified": {"memory.max": "x"}}"#,
        r#"{"unified": {"cpu.max": ""}}"#,
    ] {
        let error = limits(&resources(bad), None, 252).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{bad}");
    }
}

#[test]
fn a_quota_is_rounded_for_both() {
    let of = |json: &str, live| {
        let cpu = rounded(&resources(json), live).cpu().clone().unwrap();
        (cpu.quota(), cpu.period())
    };
    assert_eq!(
        of(r#"{"cpu": {"quota": 12345, "period": 50000}}"#, None),
        (Some(12500), Some(50000))
    );
    assert_eq!(
        of(r#"{"cpu": {"quota": 50000, "period": 100000}}"#, None),
        (Some(50000), Some(100_000))
    );
    assert_eq!(of(r#"{"cpu": {"quota": 1}}"#, None), (Some(1000), None));
    // Whole percents but for what the division loses: 999 of it the kernel would refuse.
    assert_eq!(of(r#"{"cpu": {"quota": 1000, "period": 33333}}"#, None), (Some(1000), Some(33333)));
    assert_eq!(of(r#"{"cpu": {"quota": -1}}"#, None), (Some(-1), None));
    assert_eq!(of(r#"{"cpu": {"shares": 5}}"#, None), (None, None));
    // An update of the one alone: the other is as it was.
    let live = Some(crate::plan::cgroup::Live {
        quota: Some(20_000),
        period: Some(200_000),
        ..Default::default()
    });
    assert_eq!(of(r#"{"cpu": {"period": 100000}}"#, live), (Some(20_000), Some(100_000)));
    assert_eq!(of(r#"{"cpu": {"quota": 3000}}"#, live), (Some(4000), None));
    assert_eq!(
        given(r#"{"cpu": {"quota": 3000}}"#, live, 0),
        "CPUQuotaPeriodUSec = uint64 200000\nCPUQuotaPerSecUSec = uint64 20000\n"
    );
}

#[test]
fn what_a_version_of_systemd_knows() {
    let idle = r#"{"cpu": {"idle": 1, "shares": 1024}}"#;
    assert!(asks_for_version(&resources(idle)));
    assert!(!asks_for_version(&resources(r#"{"cpu": {"idle": 0, "shares": 1024}}"#)));
    assert_eq!(given(idle, None, 252), "CPUWeight = uint64 0\n");
    assert_eq!(given(idle, None, 251), "CPUWeight = uint64 100\n");
    // What is idle no more needs a weight again.
    let live = |idle| Some(crate::plan::cgroup::Live { idle, ..Default::default() });
    let woken = r#"{"cpu": {"idle": 0}}"#;
    assert_eq!(given(woken, live(true), 252), "CPUWeight = uint64 100\n");
    assert_eq!(given(woken, live(false), 252), "");
    assert_eq!(
        given(r#"{"cpu": {"idle": 0, "shares": 2048}}"#, live(true), 252),
        "CPUWeight = uint64 174\n"
    );
    let both = r#"{"unified": {"cpu.idle": "1", "cpu.weight": "50"}}"#;
    assert_eq!(given(both, None, 252), "CPUWeight = uint64 0\n");
    assert_eq!(given(both, None, 251), "CPUWeight = uint64 50\n");
    let group = resources(r#"{"unified": {"memory.oom.group": "1"}}"#);
    assert!(asks_for_version(&group));
    assert_eq!(limits::oom_policy(&group, 252).unwrap(), None);
    let policy = limits::oom_policy(&group, 253).unwrap().unwrap();
    assert_eq!(policy.to_string(), "OOMPolicy = \"kill\"");
}

#[test]
fn the_way_back_comes_from_the_files() {
    let files = [
        ("memory.max", "max\n"),
        ("cpu.max", "max 100000\n"),
        ("cpuset.cpus", "\n"),
        ("pids.max", "12\n"),
        ("cpu.max.burst", "0"),
        ("io.weight", "default 100\n"),
        ("io.max", "8:0 rbps=1"),
    ];
    let want = "\
MemoryMax = uint64 18446744073709551615
CPUQuotaPeriodUSec = uint64 100000
CPUQuotaPerSecUSec = uint64 18446744073709551615
AllowedCPUs = @ay []
TasksMax = uint64 12
IOWeight = uint64 100
";
    assert_eq!(lines(&of_files(files.into_iter())), want);
}
