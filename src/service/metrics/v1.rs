//! A reading of a cgroup v1 as containerd's message. It must never send what the kernel has not.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::protobuf::MessageField;

use super::field;
use crate::cgroup::Stats;
use crate::cgroup::stats::{BlkioEntry, Cpu, Hugetlb, Memory, Pids, Rdma};

/// A reading of cgroup v1.
pub(super) fn metrics(mut stats: Stats) -> v1::Metrics {
    let (limits, current) = stats.rdma.drain(..).partition(|rdma| rdma.limit);
    let rdma = v1::RdmaStat { current: rdma(current), limit: rdma(limits), ..Default::default() };
    let blkio = blkio(&mut stats);
    let oom = stats.memory.as_ref().map(oom);
    v1::Metrics {
        hugetlb: stats.hugetlb.into_iter().map(hugetlb).collect(),
        pids: field(stats.pids, pids),
        cpu: field(stats.cpu, cpu),
        memory: field(stats.memory, memory),
        memory_oom_control: MessageField::from_option(oom),
        blkio: MessageField::some(blkio),
        rdma: MessageField::some(rdma),
        ..Default::default()
    }
}

fn pids(pids: Pids) -> v1::PidsStat {
    v1::PidsStat { current: pids.current, limit: pids.limit, ..Default::default() }
}

fn cpu(cpu: Cpu) -> v1::CPUStat {
    let usage = v1::CPUUsage {
        total: cpu.usage,
        kernel: cpu.system,
        user: cpu.user,
        per_cpu: cpu.per_cpu,
        ..Default::default()
    };
    let throttling = v1::Throttle {
        periods: cpu.periods,
        throttled_periods: cpu.throttled_periods,
        throttled_time: cpu.throttled_time,
        ..Default::default()
    };
    v1::CPUStat {
        usage: MessageField::some(usage),
        throttling: MessageField::some(throttling),
        ..Default::default()
    }
}

fn memory(memory: Memory) -> v1::MemoryStat {
    let stat = |name: &str| memory.stat.get(name).copied().unwrap_or_default();
    let entry = |usage, limit, max, failcnt| {
        let entry = v1::MemoryEntry { usage, limit, max, failcnt, ..Default::default() };
        MessageField::some(entry)
    };
    let m = &memory;
    v1::MemoryStat {
        cache: stat("cache"),
        rss: stat("rss"),
        rss_huge: stat("rss_huge"),
        mapped_file: stat("mapped_file"),
        dirty: stat("dirty"),
        writeback: stat("writeback"),
        pg_pg_in: stat("pgpgin"),
        pg_pg_out: stat("pgpgout"),
        pg_fault: stat("pgfault"),
        pg_maj_fault: stat("pgmajfault"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        hierarchical_memory_limit: stat("hierarchical_memory_limit"),
        hierarchical_swap_limit: stat("hierarchical_memsw_limit"),
        total_cache: stat("total_cache"),
        total_rss: stat("total_rss"),
        total_rss_huge: stat("total_rss_huge"),
        total_mapped_file: stat("total_mapped_file"),
        total_dirty: stat("total_dirty"),
        total_writeback: stat("total_writeback"),
        total_pg_pg_in: stat("total_pgpgin"),
        total_pg_pg_out: stat("total_pgpgout"),
        total_pg_fault: stat("total_pgfault"),
        total_pg_maj_fault: stat("total_pgmajfault"),
        total_inactive_anon: stat("total_inactive_anon"),
        total_active_anon: stat("total_active_anon"),
        total_inactive_file: stat("total_inactive_file"),
        total_active_file: stat("total_active_file"),
        total_unevictable: stat("total_unevictable"),
        usage: entry(m.usage, m.limit, m.max_usage, m.fail_count),
        swap: entry(m.swap_usage, m.swap_limit, m.swap_max_usage, m.swap_fail_count),
        kernel: entry(m.kernel_usage, m.kernel_limit, m.kernel_max_usage, m.kernel_fail_count),
        kernel_tcp: entry(m.tcp_usage, m.tcp_limit, m.tcp_max_usage, m.tcp_fail_count),
        ..Default::default()
    }
}

fn oom(memory: &Memory) -> v1::MemoryOomControl {
    let event = |name: &str| memory.events.get(name).copied().unwrap_or_default();
    v1::MemoryOomControl {
        oom_kill_disable: event("oom_kill_disable"),
        under_oom: event("under_oom"),
        oom_kill: event("oom_kill"),
        ..Default::default()
    }
}

fn blkio(stats: &mut Stats) -> v1::BlkIOStat {
    // The file `blkio.io_serviced_recursive` fills the field of that name.
    let mut list = |name: &str| {
        let key = stats.blkio.keys().find(|key| key.trim_start_matches("blkio.") == name).copied();
        let entries = key.and_then(|key| stats.blkio.remove(key)).unwrap_or_default();
        entries.into_iter().map(blkio_entry).collect()
    };
    v1::BlkIOStat {
        io_service_bytes_recursive: list("io_service_bytes_recursive"),
        io_serviced_recursive: list("io_serviced_recursive"),
        io_queued_recursive: list("io_queued_recursive"),
        io_service_time_recursive: list("io_service_time_recursive"),
        io_wait_time_recursive: list("io_wait_time_recursive"),
        io_merged_recursive: list("io_merged_recursive"),
        io_time_recursive: list("io_time_recursive"),
        sectors_recursive: list("sectors_recursive"),
        ..Default::default()
    }
}

fn blkio_entry(entry: BlkioEntry) -> v1::BlkIOEntry {
    v1::BlkIOEntry {
        op: entry.op,
        device: entry.device,
        major: entry.major,
        minor: entry.minor,
        value: entry.value,
        ..Default::default()
    }
}

fn hugetlb(hugetlb: Hugetlb) -> v1::HugetlbStat {
    v1::HugetlbStat {
        usage: hugetlb.current,
        max: hugetlb.max,
        failcnt: hugetlb.fail_count,
        pagesize: hugetlb.page_size,
        ..Default::default()
    }
}

fn rdma(entries: Vec<Rdma>) -> Vec<v1::RdmaEntry> {
    let entry = |rdma: Rdma| v1::RdmaEntry {
        device: rdma.device,
        hca_handles: rdma.handles,
        hca_objects: rdma.objects,
        ..Default::default()
    };
    entries.into_iter().map(entry).collect()
}
