//! Limits beside runc's: the same spec by both, and every file of the cgroup that can be written compared.
//!
//! `LIMITS_DRIVER=systemd` asks both for scopes of systemd; `hack/limits-check.sh` runs it so.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use containerd_shim_rs::cgroup::Layout;
use serde_json::{Value, json};

use crate::alone::{alone, cgroup_top};
use crate::pod::{Pod, sh, with};

/// Files that say what is, though they can be written: a write sets them back, or asks for notice.
const NO_LIMITS: [&str; 8] = [
    "cgroup.procs",
    "cgroup.threads",
    "tasks",
    "cpuacct.usage",
    "memory.peak",
    "memory.swap.peak",
    "cgroup.clone_children",
    "notify_on_release",
];

/// Where the two differ. Whenever a scope starts or changes, systemd writes again what it knows of all those beside it, and
/// takes away a weight that it was not told. So ours has an `IOWeight`, and systemd writes `io.weight` beside
/// BFQ's own file; that one it writes by a rule of its own, from the first change on. runc's is lost as well, until its next update.
fn differs(files: &BTreeMap<String, String>, key: &str, changed: bool) -> bool {
    let bfq = || files.keys().any(|file| file.ends_with(" io.bfq.weight"));
    systemd() && (key.ends_with(" io.weight") && bfq() || changed && key.ends_with("io.bfq.weight"))
}

fn is_limit(name: &str) -> bool {
    let seen = ["usage_in_bytes", "failcnt", ".pressure", "force_empty", "pressure_level"];
    !NO_LIMITS.contains(&name) && !seen.iter().any(|end| name.ends_with(end))
}

/// The pinned one, or whatever the environment says.
fn runc() -> Option<PathBuf> {
    let pinned = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin/runc");
    Some(std::env::var_os("RUNC").map_or_else(pinned, Into::into)).filter(|path| path.exists())
}

fn systemd() -> bool {
    std::env::var_os("LIMITS_DRIVER").is_some_and(|driver| driver == "systemd")
}

fn cgroups_path(name: &str) -> String {
    let pid = std::process::id();
    match systemd() {
        true => format!("system.slice:rs-test:{pid}-{name}"),
        false => format!("{}/{name}", cgroup_top(pid)),
    }
}

/// Every limit of the cgroups that a process is in, whatever made them.
fn limits(pid: u32, name: &str) -> BTreeMap<String, String> {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mut paths = own.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let path = paths.find(|path| path.contains(name)).unwrap_or_else(|| panic!("{name}: {own}"));
    let mut all = BTreeMap::new();
    for dir in Layout::probe().unwrap().cgroups(path.as_ref()).dirs {
        for entry in fs::read_dir(&dir.path).into_iter().flatten().flatten() {
            let file = entry.file_name().into_string().unwrap();
            let mode = entry.metadata().unwrap().permissions().mode();
            if entry.path().is_file() && mode & 0o600 == 0o600 && is_limit(&file) {
                let mut text = fs::read_to_string(entry.path());
                // Of no quota: systemd writes the default one whenever it writes the file again.
                if let (true, Ok(max)) = (systemd() && file == "cpu.max", &mut text) {
                    max.truncate(
                        max.find(" ").filter(|_| max.starts_with("max")).unwrap_or(max.len()),
                    );
                }
                // A name may be there once for each hierarchy.
                let key = format!("{} {file}", dir.controllers.join(","));
                all.insert(key, text.unwrap_or_else(|e| e.to_string()));
            }
        }
    }
    all
}

/// One that a limit can be given for; the first that is nobody's disk.
fn block_device() -> Option<(u64, u64)> {
    let disk = ["loop0", "ram0", "zram0", "vda", "sda"].into_iter();
    let number =
        disk.filter_map(|name| fs::read_to_string(format!("/sys/block/{name}/dev")).ok()).next()?;
    let (major, minor) = number.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Whether it is the scheduler of a device: only then has it a weight.
fn bfq(major: u64, minor: u64) -> bool {
    let path = format!("/sys/dev/block/{major}:{minor}/queue/scheduler");
    fs::read_to_string(path).is_ok_and(|text| text.contains("[bfq]"))
}

struct Beside {
    runc: PathBuf,
    dir: PathBuf,
}

impl Beside {
    fn run(&self, arguments: &[&str]) {
        let mut command = Command::new(&self.runc);
        command.arg("--root").arg(self.dir.join("root"));
        command.arg("--log").arg(self.dir.join("log"));
        command.args(systemd().then_some("--systemd-cgroup")).args(arguments);
        // The container inherits them.
        let words = fs::File::create(self.dir.join("words")).unwrap();
        command.stdin(std::process::Stdio::null()).stdout(words.try_clone().unwrap()).stderr(words);
        let status = command.status().unwrap();
        let words = fs::read_to_string(self.dir.join("words")).unwrap();
        assert!(status.success(), "runc {arguments:?}: {words}");
    }

    fn start(&self, pod: &Pod, spec: &Value) -> u32 {
        let bundle = pod.write_bundle("beside", spec);
        let pid = self.dir.join("pid");
        let (bundle, file) = (bundle.to_str().unwrap(), pid.to_str().unwrap());
        self.run(&["run", "--detach", "--pid-file", file, "--bundle", bundle, "beside"]);
        fs::read_to_string(&pid).unwrap().parse().unwrap()
    }
}

fn compare(
    what: &str,
    changed: bool,
    ours: &BTreeMap<String, String>,
    runcs: &BTreeMap<String, String>,
) -> usize {
    assert_eq!(ours.keys().collect::<Vec<_>>(), runcs.keys().collect::<Vec<_>>(), "{what}");
    let differ = |(file, value): (&String, &String)| {
        let runcs = &runcs[file];
        (value != runcs && !differs(ours, file, changed))
            .then(|| format!("{file}: {value:?}, runc {runcs:?}"))
    };
    let all: Vec<String> = ours.iter().filter_map(differ).collect();
    assert!(all.is_empty(), "{what}:\n{}", all.join("\n"));
    ours.len()
}

/// A container's resources, and updates of them one after the other; how many files were compared.
async fn beside(pod: &mut Pod, runc: &Path, resources: &Value, updates: &[Value]) -> usize {
    let dir = pod.dir.join("runc");
    fs::create_dir(&dir).unwrap();
    let beside = Beside { runc: runc.into(), dir };
    let spec = |name| {
        let spec = with(sh("sleep 1000"), "/linux/resources", resources.clone());
        with(spec, "/linux/cgroupsPath", json!(cgroups_path(name)))
    };
    let ours = pod.create("ours", &spec("ours")).await.unwrap();
    // Before there is another scope that systemd could write them again for.
    let before = limits(ours, "ours");
    let runcs = beside.start(pod, &spec("theirs"));
    let mut count = compare(&resources.to_string(), false, &before, &limits(runcs, "theirs"));
    let both = |what: &str| compare(what, true, &limits(ours, "ours"), &limits(runcs, "theirs"));
    pod.start("ours", "").await.unwrap();
    for update in updates {
        let text = update.to_string();
        let done = Arc::clone(&pod.shim).update("ours".into(), text.clone().into_bytes()).await;
        done.unwrap_or_else(|e| panic!("{text}: {e}"));
        let file = beside.dir.join("update");
        fs::write(&file, &text).unwrap();
        beside.run(&["update", "--resources", file.to_str().unwrap(), "beside"]);
        count += both(&format!("{resources} updated by {update}"));
    }
    beside.run(&["delete", "--force", "beside"]);
    pod.end("ours").await;
    fs::remove_dir_all(pod.bundle("beside")).unwrap();
    fs::remove_dir_all(&beside.dir).unwrap();
    count
}

/// In each what can be set at once, with updates that both make.
fn cases(unified: bool) -> Vec<(Value, Vec<Value>)> {
    let huge = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let huge = huge.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let size =
            if kib < 1 << 20 { format!("{}MB", kib >> 10) } else { format!("{}GB", kib >> 20) };
        Some(json!({"pageSize": size, "limit": (kib << 10) * 3}))
    });
    let mut all = json!({
        "devices": [{"allow": false, "access": "rwm"}],
        "cpu": {"shares": 512, "quota": 50000, "period": 200_000, "burst": 10000, "cpus": "0", "mems": "0"},
        "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20},
        "pids": {"limit": 20},
    });
    if unified {
        all["hugepageLimits"] = huge.collect();
    }
    let mut updates = vec![
        json!({"cpu": {"shares": 2048, "quota": 30000, "period": 100_000, "cpus": "0"}}),
        json!({"cpu": {"quota": 70000}}),
        json!({"cpu": {"period": 150_000}}),
        json!({"cpu": {"quota": -1, "period": 100_000}}),
        json!({"memory": {"limit": 48 << 20, "swap": 48 << 20, "reservation": 16 << 20}}),
        json!({"memory": {"limit": 128 << 20, "swap": 256 << 20}}),
        json!({"memory": {"limit": -1, "swap": -1}}),
        json!({"pids": {"limit": -1}}),
        json!({"pids": {"limit": 0}}),
    ];
    if let Some((major, minor)) = block_device() {
        let throttle = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
        let io = json!({
            "throttleReadBpsDevice": throttle(1 << 20), "throttleWriteBpsDevice": throttle(2 << 20),
            "throttleReadIOPSDevice": throttle(100), "throttleWriteIOPSDevice": throttle(200),
        });
        all["blockIO"] = io;
        updates.push(json!({"blockIO": {"throttleReadBpsDevice": throttle(3 << 20)}}));
        if unified {
            let device = json!([{"major": major, "minor": minor, "weight": 700}]);
            all["blockIO"]["weight"] = json!(300);
            // Without BFQ there is no weight of a device for runc, and there is for us.
            if bfq(major, minor) {
                all["blockIO"]["weightDevice"] = device;
            }
            updates.push(json!({"blockIO": {"weight": 10}}));
            updates.push(json!({"blockIO": {"weight": 1000}}));
        }
    }
    let mut cases = vec![(all.clone(), updates)];
    if !unified {
        return cases;
    }
    let mut files = json!({"memory.high": "50331648", "memory.min": "4096", "memory.oom.group": "1",
        "memory.swap.high": "1048576", "pids.max": "30", "cpu.weight.nice": "5", "cpu.max": "max 50000",
        "cgroup.max.depth": "3", "cgroup.max.descendants": "5", "cpuset.cpus": "0-1",
        "hugetlb.2MB.max": "max"});
    if let Some((major, minor)) = block_device() {
        // A line for each, as the file has them.
        files["io.max"] = json!(format!("{major}:{minor} rbps=4096\n{major}:{minor} wiops=9"));
    }
    let later =
        json!({"unified": {"memory.high": "max", "memory.oom.group": "0", "cpu.weight": "77"}});
    // "runc update" would write the fields again that these files win over.
    cases.push((with(all, "/unified", files), vec![]));
    let high = json!({"unified": {"memory.high": "50331648", "memory.oom.group": "1"}});
    cases.push((high, vec![later]));
    // Idle and shares exclude each other; the rest is "no limit" and the ends of each scale.
    let none = json!({"cpu": {"idle": 1, "quota": -1, "period": 50000},
        "memory": {"limit": -1, "swap": -1, "reservation": -1}, "pids": {"limit": -1}});
    cases.push((none, vec![json!({"cpu": {"idle": 0}}), json!({"cpu": {"shares": 1024}})]));
    let low = json!({"cpu": {"shares": 2, "quota": 1000}, "pids": {"limit": 0},
        "memory": {"limit": 16 << 20, "swap": 16 << 20}, "blockIO": {"weight": 10}});
    cases.push((low, vec![json!({"cpu": {"idle": 1}})]));
    let high = json!({"cpu": {"shares": 262_144, "period": 1_000_000, "mems": "0"},
        "memory": {"limit": 1u64 << 40, "swappiness": 10, "kernelTCP": 4096, "useHierarchy": true},
        "network": {"classID": 5}, "blockIO": {"weight": 1000, "leafWeight": 20}});
    cases.push((high, vec![json!({"cpu": {"shares": 3}})]));
    for shares in [0, 1, 3, 100, 1023, 1024, 1025, 5000, 65536] {
        cases.push((json!({"cpu": {"shares": shares}}), vec![]));
    }
    cases
}

#[test]
fn every_limit_is_what_runc_makes_of_it() {
    let Some(runc) = runc() else {
        return eprintln!("skipped: needs runc (hack/tools.sh, or $RUNC)");
    };
    alone(async move |pod: &mut Pod| {
        let (mut files, cases) = (0, cases(Layout::probe().unwrap().unified()));
        for (resources, updates) in &cases {
            files += beside(pod, &runc, resources, updates).await;
        }
        println!("{files} values of {} specs are as runc's", cases.len());
    });
}
