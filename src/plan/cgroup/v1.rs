//! Resources as writes to the files of cgroup v1. Pure.

use nix::errno::Errno;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxResources, LinuxThrottleDevice,
};

use super::{Live, Write, bytes, io_weight, page_size, pids_max, rdma, set, word};
use crate::error::{Error, Result};

pub(super) fn limits(
    resources: &LinuxResources,
    live: Option<Live>,
    writes: &mut Vec<Write>,
) -> Result<()> {
    if resources.unified().as_ref().is_some_and(|unified| !unified.is_empty()) {
        return Err(Error::invalid("linux.resources.unified needs cgroup v2"));
    }
    if let Some(cpu) = resources.cpu() {
        cpu_time(cpu, writes);
        cpuset(cpu, writes);
    }
    if let Some(memory) = resources.memory() {
        memory_limits(memory, live, writes)?;
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
        let limit = huge.limit();
        writes.push(Write::new(format!("hugetlb.{size}.limit_in_bytes"), limit));
        // Linux 5.7: else a reservation is counted only when it is touched, too late to refuse it.
        writes.push(
            Write::new(format!("hugetlb.{size}.rsvd.limit_in_bytes"), limit)
                .tolerate(&[Errno::ENOENT]),
        );
    }
    if let Some(network) = resources.network() {
        net(network, writes)?;
    }
    rdma(resources, writes)
}

fn cpu_time(cpu: &LinuxCpu, writes: &mut Vec<Write>) {
    // Before a process is in it: an SCHED_RR process cannot enter a cgroup without a budget.
    if let Some(period) = set(cpu.realtime_period()) {
        writes.push(Write::new("cpu.rt_period_us", period));
    }
    if let Some(runtime) = set(cpu.realtime_runtime()) {
        writes.push(Write::new("cpu.rt_runtime_us", runtime));
    }
    if let Some(idle) = cpu.idle() {
        writes.push(Write::new("cpu.idle", idle));
    }
    // An idle cgroup refuses shares (EINVAL) and has no use for them.
    if let Some(shares) = set(cpu.shares()).filter(|_| cpu.idle() != Some(1)) {
        writes.push(Write::new("cpu.shares", shares));
    }
    let quota = set(cpu.quota()).map(|quota| Write::new("cpu.cfs_quota_us", quota));
    let period = set(cpu.period()).map(|period| Write::new("cpu.cfs_period_us", period));
    let burst = cpu.burst().map(|burst| Write::new("cpu.cfs_burst_us", burst));
    let around: Vec<Write> = period.into_iter().chain(burst).collect();
    let Some(quota) = quota else { return writes.extend(around) };
    // The kernel checks each alone against the old values of the others: what fails before the
    // quota is written (EINVAL) may be right after it.
    writes.extend(around.iter().map(|write| write.clone().tolerate(&[Errno::EINVAL])));
    writes.push(quota);
    writes.extend(around);
}

fn cpuset(cpu: &LinuxCpu, writes: &mut Vec<Write>) {
    let files = [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())];
    for (file, list) in files {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            writes.push(Write::new(file, list));
        }
    }
}

fn memory_limits(memory: &LinuxMemory, live: Option<Live>, writes: &mut Vec<Write>) -> Result<()> {
    let limit = bytes("limit", memory.limit())?;
    // No limit on memory alone would leave an old limit on memory and swap in place.
    let swap = match (limit, bytes("swap", memory.swap())?) {
        (Some(-1), None) => Some(-1),
        (_, swap) => swap,
    };
    let write = limit.map(|limit| Write::new("memory.limit_in_bytes", limit));
    let write_swap = swap.map(|swap| {
        let write = Write::new("memory.memsw.limit_in_bytes", swap);
        // No limit is what a kernel that does not count swap gives.
        if swap == -1 { write.tolerate(&[Errno::ENOENT]) } else { write }
    });
    // At no moment may the limit on memory be above that on both, or the kernel refuses (EINVAL).
    let raised = swap.is_some_and(|swap| {
        live.is_some_and(|live| u64::try_from(swap).map_or(true, |swap| live.memory_limit < swap))
    });
    if raised {
        writes.extend(write_swap.into_iter().chain(write));
    } else {
        writes.extend(write.into_iter().chain(write_swap));
    }
    if let Some(reservation) = bytes("reservation", memory.reservation())? {
        writes.push(Write::new("memory.soft_limit_in_bytes", reservation));
    }
    // `kernel` is not written: the kernel has refused it since 5.16, and runc ignores it.
    if let Some(tcp) = bytes("kernelTCP", memory.kernel_tcp())? {
        writes.push(Write::new("memory.kmem.tcp.limit_in_bytes", tcp));
    }
    // Go clients say "not set" with the highest number.
    if let Some(swappiness) = memory.swappiness().filter(|value| *value != u64::MAX) {
        if swappiness > 100 {
            return Err(Error::invalid(format!("memory swappiness {swappiness} is above 100")));
        }
        writes.push(Write::new("memory.swappiness", swappiness));
    }
    match (memory.disable_oom_killer(), live) {
        (Some(true), _) => writes.push(Write::new("memory.oom_control", 1)),
        (Some(false), Some(_)) => writes.push(Write::new("memory.oom_control", 0)),
        // A new cgroup has one.
        _ => {}
    }
    Ok(())
}

/// CFQ's file went with Linux 5.0; BFQ has its own.
fn weight(cfq: &'static str, bfq: &str, value: String) -> [Write; 2] {
    [Write::new(cfq, &value).tolerate(&[Errno::ENOENT]), Write::new(bfq, &value).unless(cfq)]
}

fn block_io(io: &LinuxBlockIo, writes: &mut Vec<Write>) -> Result<()> {
    if let Some(value) = io_weight(io.weight())? {
        writes.extend(weight("blkio.weight", "blkio.bfq.weight", value.to_string()));
    }
    for device in io.weight_device().iter().flatten() {
        let number = format!("{}:{}", device.major(), device.minor());
        if let Some(value) = io_weight(device.weight())? {
            let value = format!("{number} {value}");
            writes.extend(weight("blkio.weight_device", "blkio.bfq.weight_device", value));
        }
        if let Some(value) = io_weight(device.leaf_weight())? {
            writes.push(Write::new("blkio.leaf_weight_device", format!("{number} {value}")));
        }
    }
    if let Some(value) = io_weight(io.leaf_weight())? {
        writes.push(Write::new("blkio.leaf_weight", value));
    }
    let files: [(&str, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        ("blkio.throttle.read_bps_device", io.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", io.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", io.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", io.throttle_write_iops_device()),
    ];
    for (file, devices) in files {
        for d in devices.iter().flatten() {
            writes.push(Write::new(file, format!("{}:{} {}", d.major(), d.minor(), d.rate())));
        }
    }
    Ok(())
}

fn net(network: &LinuxNetwork, writes: &mut Vec<Write>) -> Result<()> {
    if let Some(class) = set(network.class_id()) {
        writes.push(Write::new("net_cls.classid", class));
    }
    for interface in network.priorities().iter().flatten() {
        let value = format!("{} {}", word(interface.name())?, interface.priority());
        writes.push(Write::new("net_prio.ifpriomap", value));
    }
    Ok(())
}
