//! Resources as writes to the files of cgroup v2. Pure.

use nix::errno::Errno;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::{Live, Write, bytes, io_weight, or_max, page_size, pids_max, rdma, set};
use crate::error::{Error, Result};

pub(super) fn limits(
    resources: &LinuxResources,
    live: Option<Live>,
    writes: &mut Vec<Write>,
) -> Result<()> {
    if let Some(cpu) = resources.cpu() {
        cpu_time(cpu, live, writes)?;
        for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
                writes.push(Write::new(file, list));
            }
        }
    }
    if let Some(memory) = resources.memory() {
        memory_limits(memory, writes)?;
    }
    if let Some(pids) = resources.pids() {
        let write = Write::new("pids.max", pids_max(pids.limit()));
        let free = pids.limit() < 0;
        // No limit is what a kernel without the controller gives.
        writes.push(if free { write.tolerate(&[Errno::ENOENT]) } else { write });
    }
    if let Some(io) = resources.block_io() {
        block_io(io, writes)?;
    }
    for huge in resources.hugepage_limits().iter().flatten() {
        let size = page_size(huge.page_size())?;
        let limit = or_max(huge.limit());
        writes.push(Write::new(format!("hugetlb.{size}.max"), &limit));
        // Linux 5.7: else a reservation is counted only when it is touched, too late to refuse it.
        writes
            .push(Write::new(format!("hugetlb.{size}.rsvd.max"), limit).tolerate(&[Errno::ENOENT]));
    }
    rdma(resources, writes)?;
    // `network` exists on v1 only; like runc, we ignore what containerd copies from an old spec.
    unified(resources, writes)
}

/// Both ranges on a logarithmic scale, through (2, 1), (1024, 100) and (262144, 10000). An older
/// linear formula gave a default container 39, not 100.
pub(in crate::plan) fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

fn cpu_time(cpu: &LinuxCpu, live: Option<Live>, writes: &mut Vec<Write>) -> Result<()> {
    if set(cpu.realtime_runtime()).is_some() || set(cpu.realtime_period()).is_some() {
        return Err(Error::invalid("cpu.realtimeRuntime and realtimePeriod need cgroup v1"));
    }
    if let Some(idle) = cpu.idle() {
        writes.push(Write::new("cpu.idle", idle));
    }
    // An idle cgroup refuses a weight (EINVAL) and has no use for one.
    if let Some(shares) = set(cpu.shares()).filter(|_| cpu.idle() != Some(1)) {
        writes.push(Write::new("cpu.weight", weight(shares)));
    }
    let (quota, period) = (set(cpu.quota()), set(cpu.period()));
    // One file for both: an update of the one leaves the other as it is.
    let max = match (quota, period, live) {
        (None, None, _) => None,
        (Some(quota), None, Some(_)) => Some(or_max(quota)),
        (quota, period, live) => {
            let quota = quota.or(live.and_then(|live| live.quota)).unwrap_or(-1);
            Some(format!("{} {}", or_max(quota), period.unwrap_or(100_000)))
        }
    };
    let max = max.map(|max| Write::new("cpu.max", max));
    let burst = cpu.burst().map(|burst| Write::new("cpu.max.burst", burst));
    let Some(max) = max else {
        writes.extend(burst);
        return Ok(());
    };
    // The kernel checks each against the old value of the other: a burst that fails before the
    // quota is written (EINVAL) may be right after it.
    writes.extend(burst.clone().map(|burst| burst.tolerate(&[Errno::EINVAL])));
    writes.push(max);
    writes.extend(burst);
    Ok(())
}

/// The spec's `swap` counts memory and swap, v2's counts swap alone.
pub(in crate::plan) fn swap_max(limit: Option<i64>, swap: Option<i64>) -> Result<Option<i64>> {
    match (limit, swap) {
        // On v1 no limit on memory means none on both.
        (Some(-1), None) => Ok(Some(-1)),
        (_, None) => Ok(None),
        (_, Some(-1)) => Ok(Some(-1)),
        (Some(-1), swap) => Ok(swap),
        (Some(limit), Some(swap)) if swap >= limit => Ok(Some(swap - limit)),
        (Some(limit), Some(swap)) => Err(Error::invalid(format!(
            "memory swap {swap} is below the limit {limit}: it counts both"
        ))),
        (None, Some(swap)) => {
            Err(Error::invalid(format!("memory swap {swap} needs a memory limit: it counts both")))
        }
    }
}

fn memory_limits(memory: &LinuxMemory, writes: &mut Vec<Write>) -> Result<()> {
    let limit = bytes("limit", memory.limit())?;
    if let Some(swap) = swap_max(limit, bytes("swap", memory.swap())?)? {
        let write = Write::new("memory.swap.max", or_max(swap));
        // A kernel that does not count swap has no file, and these two ask for nothing more.
        writes.push(if swap <= 0 { write.tolerate(&[Errno::ENOENT]) } else { write });
    }
    if let Some(limit) = limit {
        writes.push(Write::new("memory.max", or_max(limit)));
    }
    if let Some(reservation) = bytes("reservation", memory.reservation())? {
        writes.push(Write::new("memory.low", or_max(reservation)));
    }
    // kernel, kernelTCP, swappiness, useHierarchy and disableOOMKiller exist on v1 only. As with
    // runc they are ignored, so that a spec written for v1 still runs.
    Ok(())
}

/// BFQ's range is the spec's; `io.weight` has 1..10000.
pub(in crate::plan) fn spread(weight: u16) -> u64 {
    1 + (u64::from(weight) - 10) * 9999 / 990
}

fn block_io(io: &LinuxBlockIo, writes: &mut Vec<Write>) -> Result<()> {
    if let Some(weight) = io_weight(io.weight())? {
        writes.push(Write::new("io.bfq.weight", weight).tolerate(&[Errno::ENOENT]));
        writes.push(Write::new("io.weight", spread(weight)).unless("io.bfq.weight"));
    }
    for device in io.weight_device().iter().flatten() {
        // leafWeight went with CFQ.
        if let Some(weight) = io_weight(device.weight())? {
            let number = format!("{}:{}", device.major(), device.minor());
            let bfq = Write::new("io.bfq.weight", format!("{number} {weight}"));
            writes.push(bfq.tolerate(&[Errno::ENOENT]));
            let other = Write::new("io.weight", format!("{number} {}", spread(weight)));
            writes.push(other.unless("io.bfq.weight"));
        }
    }
    let keys: [(&str, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ];
    for (key, devices) in keys {
        for d in devices.iter().flatten() {
            // 0 takes the limit away on v1; v2 calls it out of range.
            let rate = if d.rate() == 0 { "max".into() } else { d.rate().to_string() };
            writes.push(Write::new("io.max", format!("{}:{} {key}={rate}", d.major(), d.minor())));
        }
    }
    Ok(())
}

/// Last, so that they win over what the other fields say.
fn unified(resources: &LinuxResources, writes: &mut Vec<Write>) -> Result<()> {
    let Some(files) = resources.unified() else { return Ok(()) };
    let mut files: Vec<(&String, &String)> = files.iter().collect();
    files.sort();
    for (file, value) in files {
        let named = file.split_once('.').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty());
        if !named || file.contains(['/', '\0']) {
            return Err(Error::invalid(format!("linux.resources.unified: {file:?} is no file")));
        }
        // By these any process of the host could be taken, and killed with the container.
        if ["cgroup.procs", "cgroup.threads"].contains(&file.as_str()) {
            return Err(Error::invalid(format!("linux.resources.unified: {file:?} is no limit")));
        }
        // A file with a line for each device takes one of them at a time.
        let lines = value.split_inclusive('\n').chain(value.is_empty().then_some(""));
        writes.extend(lines.map(|line| Write::new(file, line)));
    }
    Ok(())
}
