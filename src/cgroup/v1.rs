//! The numbers of a cgroup v1. It must never write.

use std::collections::BTreeMap;
use std::fs;

use super::dir::Dir;
use super::stats::{BlkioEntry, Cpu, Hugetlb, Memory, Pids, Stats};
use super::v2;
use crate::error::{Error, Kind, Result};
use crate::plan::Cgroups;

/// On both versions, 0 stands for no limit.
pub(super) fn pids(dir: &Dir) -> Result<Option<Pids>> {
    let Some(current) = dir.number("pids.current")? else { return Ok(None) };
    let limit = dir.number("pids.max")?.filter(|limit| *limit != u64::MAX);
    Ok(Some(Pids { current, limit: limit.unwrap_or(0) }))
}

/// The page sizes of `hugetlb.<size><suffix>`.
pub(super) fn page_sizes(dir: &Dir, suffix: &str) -> Result<Vec<String>> {
    let size = |file: &String| -> Option<String> {
        let size = file.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
        (!size.contains('.')).then(|| size.into())
    };
    Ok(dir.files()?.iter().filter_map(size).collect())
}

/// The controllers with numbers.
const COUNTING: [&str; 7] = ["pids", "cpu", "cpuacct", "memory", "hugetlb", "rdma", "blkio"];

pub(super) fn stats(cgroups: &Cgroups) -> Result<Stats> {
    let mut stats = Stats::default();
    let mut any = false;
    for at in &cgroups.dirs {
        if !at.controllers.iter().any(|name| COUNTING.contains(&name.as_str())) {
            continue;
        }
        let Some(dir) = Dir::open(at)? else { continue };
        // The root has no limits and few numbers, but it is there.
        any = true;
        for controller in &at.controllers {
            match controller.as_str() {
                "pids" => stats.pids = pids(&dir)?,
                "cpu" => bandwidth(&dir, stats.cpu.get_or_insert_default())?,
                "cpuacct" => time(&dir, stats.cpu.get_or_insert_default())?,
                "memory" => stats.memory = Some(memory(&dir)?),
                "hugetlb" => stats.hugetlb = hugetlb(&dir)?,
                "rdma" => stats.rdma = v2::rdma(&dir)?,
                "blkio" => stats.blkio = blkio(&dir)?,
                _ => {}
            }
        }
    }
    if !any {
        let path = cgroups.dirs.first().map(|at| at.path.clone()).unwrap_or_default();
        return Err(Error::new(Kind::NotFound, format!("no cgroup {path:?}")));
    }
    Ok(stats)
}

fn bandwidth(dir: &Dir, cpu: &mut Cpu) -> Result<()> {
    let stat = dir.table("cpu.stat")?;
    let get = |name| stat.get(name).copied().unwrap_or(0);
    cpu.periods = get("nr_periods");
    cpu.throttled_periods = get("nr_throttled");
    cpu.throttled_time = get("throttled_time");
    Ok(())
}

fn time(dir: &Dir, cpu: &mut Cpu) -> Result<()> {
    cpu.usage = dir.count("cpuacct.usage")?;
    cpu.user = dir.count("cpuacct.usage_user")?;
    cpu.system = dir.count("cpuacct.usage_sys")?;
    let each = dir.read("cpuacct.usage_percpu")?.unwrap_or_default();
    cpu.per_cpu = each.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    Ok(())
}

fn memory(dir: &Dir) -> Result<Memory> {
    Ok(Memory {
        usage: dir.count("memory.usage_in_bytes")?,
        limit: dir.count("memory.limit_in_bytes")?,
        max_usage: dir.count("memory.max_usage_in_bytes")?,
        fail_count: dir.count("memory.failcnt")?,
        swap_usage: dir.count("memory.memsw.usage_in_bytes")?,
        swap_limit: dir.count("memory.memsw.limit_in_bytes")?,
        swap_max_usage: dir.count("memory.memsw.max_usage_in_bytes")?,
        swap_fail_count: dir.count("memory.memsw.failcnt")?,
        kernel_usage: dir.count("memory.kmem.usage_in_bytes")?,
        kernel_limit: dir.count("memory.kmem.limit_in_bytes")?,
        kernel_max_usage: dir.count("memory.kmem.max_usage_in_bytes")?,
        kernel_fail_count: dir.count("memory.kmem.failcnt")?,
        tcp_usage: dir.count("memory.kmem.tcp.usage_in_bytes")?,
        tcp_limit: dir.count("memory.kmem.tcp.limit_in_bytes")?,
        tcp_max_usage: dir.count("memory.kmem.tcp.max_usage_in_bytes")?,
        tcp_fail_count: dir.count("memory.kmem.tcp.failcnt")?,
        stat: dir.table("memory.stat")?,
        events: dir.table("memory.oom_control")?,
        pressure: None,
    })
}

fn hugetlb(dir: &Dir) -> Result<Vec<Hugetlb>> {
    let read = |size: String| {
        let file = |what| format!("hugetlb.{size}.{what}");
        Ok(Hugetlb {
            current: dir.count(&file("usage_in_bytes"))?,
            max: dir.count(&file("max_usage_in_bytes"))?,
            fail_count: dir.count(&file("failcnt"))?,
            page_size: size,
        })
    };
    page_sizes(dir, ".usage_in_bytes")?.into_iter().map(read).collect()
}

/// The lists, by the names that containerd's metrics have for them.
const BLKIO: [&str; 8] = [
    "io_service_bytes_recursive",
    "io_serviced_recursive",
    "io_queued_recursive",
    "io_service_time_recursive",
    "io_wait_time_recursive",
    "io_merged_recursive",
    "io_time_recursive",
    "sectors_recursive",
];

/// CFQ's files, else BFQ's, else those of the throttling layer, which every device passes.
fn blkio(dir: &Dir) -> Result<BTreeMap<&'static str, Vec<BlkioEntry>>> {
    let mut lists = BTreeMap::new();
    let mut names = BTreeMap::new();
    for name in BLKIO {
        // Two names differ from their field's.
        let file = match name {
            "io_time_recursive" => "time_recursive",
            name => name,
        };
        for scheduler in ["", "bfq.", "throttle."] {
            let text = dir.read(&format!("blkio.{scheduler}{file}"))?.unwrap_or_default();
            let mut entries: Vec<BlkioEntry> = text.lines().filter_map(blkio_entry).collect();
            for entry in &mut entries {
                let number = (entry.major, entry.minor);
                let name = names.entry(number).or_insert_with(|| device_name(number));
                entry.device.clone_from(name);
            }
            if !entries.is_empty() {
                lists.insert(name, entries);
                break;
            }
        }
    }
    Ok(lists)
}

/// A block device by its number. The link is the kernel's own: nothing is asked of the device.
fn device_name((major, minor): (u64, u64)) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).unwrap_or_default();
    let name = link.file_name().map(|name| format!("/dev/{}", name.to_string_lossy()));
    name.unwrap_or_default()
}

/// `8:0 Read 4096`, or `8:0 12` where there is no operation. The last line, `Total 4096`, is none.
fn blkio_entry(line: &str) -> Option<BlkioEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let (first, second) = (words.next()?, words.next());
    let (op, value) = second.map_or(("", first), |value| (first, value));
    Some(BlkioEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        device: String::new(),
        op: op.into(),
        value: value.parse().ok()?,
    })
}
