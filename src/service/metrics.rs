//! A reading of a cgroup as containerd's metrics, of version 1 or 2.

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};

use super::convert;
use crate::cgroup::Stats;
use crate::cgroup::stats::{
    BlkioEntry, Cpu, Hugetlb, Io, Memory, Pids, Pressure, PressureLine, Rdma,
};

/// The metrics in the message that fits the cgroup's version.
pub(super) fn any(stats: Stats) -> Any {
    if stats.unified {
        convert::pack("io.containerd.cgroups.v2.Metrics", &metrics_v2(stats))
    } else {
        convert::pack("io.containerd.cgroups.v1.Metrics", &metrics_v1(stats))
    }
}

/// A field that is set only where the kernel has it.
fn field<T, M>(value: Option<T>, convert: impl FnOnce(T) -> M) -> MessageField<M> {
    MessageField::from_option(value.map(convert))
}

fn metrics_v2(stats: Stats) -> v2::Metrics {
    let (limits, current) = stats.rdma.into_iter().partition(|rdma| rdma.limit);
    let rdma =
        v2::RdmaStat { current: rdma_v2(current), limit: rdma_v2(limits), ..Default::default() };
    let io = v2::IOStat { usage: stats.io.into_iter().map(io_v2).collect(), ..Default::default() };
    let events = stats.memory.as_ref().map(events_v2);
    v2::Metrics {
        pids: field(stats.pids, pids_v2),
        cpu: field(stats.cpu, cpu_v2),
        memory: field(stats.memory, memory_v2),
        memory_events: MessageField::from_option(events),
        rdma: MessageField::some(rdma),
        io: MessageField::some(io),
        hugetlb: stats.hugetlb.into_iter().map(hugetlb_v2).collect(),
        ..Default::default()
    }
}

fn pids_v2(pids: Pids) -> v2::PidsStat {
    // Clients of v2 expect "max" as the largest number.
    let limit = if pids.limit == 0 { u64::MAX } else { pids.limit };
    v2::PidsStat { current: pids.current, limit, ..Default::default() }
}

fn cpu_v2(cpu: Cpu) -> v2::CPUStat {
    v2::CPUStat {
        usage_usec: cpu.usage,
        user_usec: cpu.user,
        system_usec: cpu.system,
        nr_periods: cpu.periods,
        nr_throttled: cpu.throttled_periods,
        throttled_usec: cpu.throttled_time,
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

fn memory_v2(memory: Memory) -> v2::MemoryStat {
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

fn events_v2(memory: &Memory) -> v2::MemoryEvents {
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

fn io_v2(io: Io) -> v2::IOEntry {
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

fn hugetlb_v2(hugetlb: Hugetlb) -> v2::HugeTlbStat {
    v2::HugeTlbStat {
        current: hugetlb.current,
        max: hugetlb.max,
        pagesize: hugetlb.page_size,
        failcnt: hugetlb.fail_count,
        ..Default::default()
    }
}

fn rdma_v2(entries: Vec<Rdma>) -> Vec<v2::RdmaEntry> {
    let entry = |rdma: Rdma| v2::RdmaEntry {
        device: rdma.device,
        hca_handles: rdma.handles,
        hca_objects: rdma.objects,
        ..Default::default()
    };
    entries.into_iter().map(entry).collect()
}

fn metrics_v1(mut stats: Stats) -> v1::Metrics {
    let (limits, current) = stats.rdma.drain(..).partition(|rdma| rdma.limit);
    let rdma =
        v1::RdmaStat { current: rdma_v1(current), limit: rdma_v1(limits), ..Default::default() };
    let blkio = blkio_v1(&mut stats);
    let oom = stats.memory.as_ref().map(oom_v1);
    v1::Metrics {
        hugetlb: stats.hugetlb.into_iter().map(hugetlb_v1).collect(),
        pids: field(stats.pids, pids_v1),
        cpu: field(stats.cpu, cpu_v1),
        memory: field(stats.memory, memory_v1),
        memory_oom_control: MessageField::from_option(oom),
        blkio: MessageField::some(blkio),
        rdma: MessageField::some(rdma),
        ..Default::default()
    }
}

fn pids_v1(pids: Pids) -> v1::PidsStat {
    v1::PidsStat { current: pids.current, limit: pids.limit, ..Default::default() }
}

fn cpu_v1(cpu: Cpu) -> v1::CPUStat {
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

fn memory_v1(memory: Memory) -> v1::MemoryStat {
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
        kernel_tcp: entry(m.tcp_usage, m.tcp_limit, 0, 0),
        ..Default::default()
    }
}

fn oom_v1(memory: &Memory) -> v1::MemoryOomControl {
    let event = |name: &str| memory.events.get(name).copied().unwrap_or_default();
    v1::MemoryOomControl {
        oom_kill_disable: event("oom_kill_disable"),
        under_oom: event("under_oom"),
        oom_kill: event("oom_kill"),
        ..Default::default()
    }
}

fn blkio_v1(stats: &mut Stats) -> v1::BlkIOStat {
    // The file `blkio.io_serviced_recursive` fills the field of that name.
    let mut list = |name: &str| {
        let key = stats.blkio.keys().find(|key| key.trim_start_matches("blkio.") == name).copied();
        let entries = key.and_then(|key| stats.blkio.remove(key)).unwrap_or_default();
        entries.into_iter().map(blkio_entry_v1).collect()
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

fn blkio_entry_v1(entry: BlkioEntry) -> v1::BlkIOEntry {
    v1::BlkIOEntry {
        op: entry.op,
        major: entry.major,
        minor: entry.minor,
        value: entry.value,
        ..Default::default()
    }
}

fn hugetlb_v1(hugetlb: Hugetlb) -> v1::HugetlbStat {
    v1::HugetlbStat {
        usage: hugetlb.current,
        max: hugetlb.max,
        failcnt: hugetlb.fail_count,
        pagesize: hugetlb.page_size,
        ..Default::default()
    }
}

fn rdma_v1(entries: Vec<Rdma>) -> Vec<v1::RdmaEntry> {
    let entry = |rdma: Rdma| v1::RdmaEntry {
        device: rdma.device,
        hca_handles: rdma.handles,
        hca_objects: rdma.objects,
        ..Default::default()
    };
    entries.into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use containerd_shim_protos::protobuf::Message;

    use super::*;

    fn map(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        pairs.iter().map(|(name, value)| (name.to_string(), *value)).collect()
    }

    fn rdma(handles: u32, limit: bool) -> Rdma {
        Rdma { device: "mlx5_0".into(), handles, objects: 1, limit }
    }

    fn pressure(avg10: u64) -> Option<Pressure> {
        let some = PressureLine { avg10, total: 9, ..Default::default() };
        Some(Pressure { some, ..Default::default() })
    }

    /// Numbers that differ from each other, so that none can stand for another.
    fn stats(unified: bool) -> Stats {
        let memory = Memory {
            usage: 1,
            limit: 2,
            max_usage: 3,
            fail_count: 4,
            swap_usage: 5,
            swap_limit: 6,
            swap_max_usage: 7,
            kernel_usage: 8,
            tcp_limit: 9,
            stat: map(&[
                ("anon", 10),
                ("inactive_file", 11),
                ("workingset_refault_anon", 12),
                ("workingset_refault_file", 100),
                ("total_rss", 13),
                ("pgmajfault", 14),
                ("hierarchical_memsw_limit", 15),
            ]),
            events: map(&[("oom_kill", 16), ("oom_group_kill", 17), ("under_oom", 18)]),
            pressure: pressure(250),
            ..Default::default()
        };
        let cpu = Cpu {
            usage: 20,
            user: 21,
            system: 22,
            per_cpu: vec![23, 24],
            periods: 25,
            throttled_periods: 26,
            throttled_time: 27,
            pressure: pressure(5),
        };
        Stats {
            unified,
            pids: Some(Pids { current: 30, limit: 0 }),
            cpu: Some(cpu),
            memory: Some(memory),
            hugetlb: vec![Hugetlb {
                page_size: "2MB".into(),
                current: 40,
                max: 41,
                fail_count: 42,
            }],
            rdma: vec![rdma(50, false), rdma(51, true)],
            io: vec![Io { major: 8, minor: 1, rbytes: 60, wbytes: 61, rios: 62, wios: 63 }],
            blkio: BTreeMap::from([
                ("blkio.io_serviced_recursive", vec![blkio(70)]),
                ("io_time_recursive", vec![blkio(71)]),
            ]),
        }
    }

    fn blkio(value: u64) -> BlkioEntry {
        BlkioEntry { major: 8, minor: 1, op: "Read".into(), value }
    }

    #[test]
    fn a_reading_of_v2() {
        let any = any(stats(true));
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let m = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((m.pids.current, m.pids.limit), (30, u64::MAX));
        assert_eq!((m.cpu.usage_usec, m.cpu.user_usec, m.cpu.system_usec), (20, 21, 22));
        assert_eq!((m.cpu.nr_periods, m.cpu.nr_throttled, m.cpu.throttled_usec), (25, 26, 27));
        assert_eq!((m.cpu.psi.some.avg10, m.cpu.psi.some.total), (0.05, 9));
        assert_eq!(m.memory.psi.some.avg10, 2.5);
        assert_eq!((m.memory.usage, m.memory.usage_limit, m.memory.max_usage), (1, 2, 3));
        assert_eq!((m.memory.swap_usage, m.memory.swap_limit, m.memory.swap_max_usage), (5, 6, 7));
        assert_eq!((m.memory.anon, m.memory.inactive_file, m.memory.pgmajfault), (10, 11, 14));
        assert_eq!(m.memory.workingset_refault, 112);
        assert_eq!((m.memory_events.oom_kill, m.memory_events.oom_group_kill), (16, 17));
        let io = &m.io.usage[0];
        assert_eq!((io.rbytes, io.wbytes, io.rios, io.wios), (60, 61, 62, 63));
        let huge = &m.hugetlb[0];
        assert_eq!((huge.current, huge.max, huge.failcnt), (40, 41, 42));
        let (current, limit) = (&m.rdma.current[0], &m.rdma.limit[0]);
        assert_eq!((current.hca_handles, limit.hca_handles), (50, 51));
    }

    #[test]
    fn a_reading_of_v1() {
        let any = any(stats(false));
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let m = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((m.pids.current, m.pids.limit), (30, 0));
        let (usage, throttling) = (&m.cpu.usage, &m.cpu.throttling);
        assert_eq!((usage.total, usage.user, usage.kernel), (20, 21, 22));
        assert_eq!(usage.per_cpu, [23, 24]);
        assert_eq!((throttling.periods, throttling.throttled_time), (25, 27));
        let memory = &m.memory.usage;
        assert_eq!((memory.usage, memory.limit, memory.max, memory.failcnt), (1, 2, 3, 4));
        assert_eq!((m.memory.swap.usage, m.memory.kernel.usage), (5, 8));
        assert_eq!((m.memory.kernel_tcp.limit, m.memory.total_rss), (9, 13));
        assert_eq!((m.memory.pg_maj_fault, m.memory.hierarchical_swap_limit), (14, 15));
        assert_eq!((m.memory_oom_control.oom_kill, m.memory_oom_control.under_oom), (16, 18));
        assert_eq!(m.blkio.io_serviced_recursive[0].value, 70);
        assert_eq!(m.blkio.io_time_recursive[0].value, 71);
        assert_eq!((m.hugetlb[0].usage, m.rdma.limit[0].hca_handles), (40, 51));
    }

    #[test]
    fn what_the_kernel_has_not_is_not_sent() {
        let none = metrics_v2(Stats { unified: true, ..Default::default() });
        assert!(none.cpu.is_none() && none.memory.is_none() && none.memory_events.is_none());
        let none = metrics_v1(Stats::default());
        assert!(none.cpu.is_none() && none.memory_oom_control.is_none() && none.pids.is_none());
    }
}
