//! A reading of a cgroup v2 as containerd's message. It must never send what the kernel has not.

use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::MessageField;

use super::field;
use crate::cgroup::Stats;
use crate::cgroup::stats::{Cpu, Hugetlb, Io, Memory, Pids, Pressure, PressureLine, Rdma};

/// A reading of cgroup v2.
pub(super) fn metrics(stats: Stats) -> v2::Metrics {
    let (limits, current) = stats.rdma.into_iter().partition(|rdma| rdma.limit);
    let rdma = v2::RdmaStat { current: rdma(current), limit: rdma(limits), ..Default::default() };
    let io = v2::IOStat {
        usage: stats.io.into_iter().map(io).collect(),
        psi: field(stats.io_pressure, psi),
        ..Default::default()
    };
    let events = stats.memory.as_ref().map(events);
    v2::Metrics {
        pids: field(stats.pids, pids),
        cpu: field(stats.cpu, cpu),
        memory: field(stats.memory, memory),
        memory_events: MessageField::from_option(events),
        rdma: MessageField::some(rdma),
        io: MessageField::some(io),
        hugetlb: stats.hugetlb.into_iter().map(hugetlb).collect(),
        ..Default::default()
    }
}

fn pids(pids: Pids) -> v2::PidsStat {
    // Clients of v2 expect "max" as the largest number.
    let limit = if pids.limit == 0 { u64::MAX } else { pids.limit };
    v2::PidsStat { current: pids.current, limit, ..Default::default() }
}

fn cpu(cpu: Cpu) -> v2::CPUStat {
    v2::CPUStat {
        usage_usec: cpu.usage,
        user_usec: cpu.user,
        system_usec: cpu.system,
        nr_periods: cpu.periods,
        nr_throttled: cpu.throttled_periods,
        throttled_usec: cpu.throttled_time,
        nr_bursts: cpu.bursts,
        burst_usec: cpu.burst_time,
        psi: field(cpu.pressure, psi),
        ..Default::default()
    }
}

fn psi(pressure: Pressure) -> v2::PSIStats {
    v2::PSIStats {
        some: MessageField::some(psi_line(pressure.some)),
        full: MessageField::some(psi_line(pressure.full)),
        ..Default::default()
    }
}

fn psi_line(line: PressureLine) -> v2::PSIData {
    v2::PSIData {
        avg10: line.avg10 as f64 / 100.0,
        avg60: line.avg60 as f64 / 100.0,
        avg300: line.avg300 as f64 / 100.0,
        total: line.total,
        ..Default::default()
    }
}

fn memory(memory: Memory) -> v2::MemoryStat {
    let stat = |name: &str| memory.stat.get(name).copied().unwrap_or_default();
    // Linux 5.9 split the working set's numbers in two.
    let both =
        |name: &str| stat(name) + stat(&format!("{name}_anon")) + stat(&format!("{name}_file"));
    v2::MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        workingset_refault: both("workingset_refault"),
        workingset_activate: both("workingset_activate"),
        workingset_nodereclaim: stat("workingset_nodereclaim"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        usage: memory.usage,
        usage_limit: memory.limit,
        swap_usage: memory.swap_usage,
        swap_limit: memory.swap_limit,
        max_usage: memory.max_usage,
        swap_max_usage: memory.swap_max_usage,
        psi: field(memory.pressure.clone(), psi),
        ..Default::default()
    }
}

fn events(memory: &Memory) -> v2::MemoryEvents {
    let event = |name: &str| memory.events.get(name).copied().unwrap_or_default();
    v2::MemoryEvents {
        low: event("low"),
        high: event("high"),
        max: event("max"),
        oom: event("oom"),
        oom_kill: event("oom_kill"),
        oom_group_kill: event("oom_group_kill"),
        ..Default::default()
    }
}

fn io(io: Io) -> v2::IOEntry {
    v2::IOEntry {
        major: io.major,
        minor: io.minor,
        rbytes: io.rbytes,
        wbytes: io.wbytes,
        rios: io.rios,
        wios: io.wios,
        ..Default::default()
    }
}

fn hugetlb(hugetlb: Hugetlb) -> v2::HugeTlbStat {
    v2::HugeTlbStat {
        current: hugetlb.current,
        max: hugetlb.max,
        pagesize: hugetlb.page_size,
        failcnt: hugetlb.fail_count,
        ..Default::default()
    }
}

fn rdma(entries: Vec<Rdma>) -> Vec<v2::RdmaEntry> {
    let entry = |rdma: Rdma| v2::RdmaEntry {
        device: rdma.device,
        hca_handles: rdma.handles,
        hca_objects: rdma.objects,
        ..Default::default()
    };
    entries.into_iter().map(entry).collect()
}
