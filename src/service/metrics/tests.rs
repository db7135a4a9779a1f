//! Each number in its field.

use std::collections::BTreeMap;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};

use super::*;
use crate::cgroup::stats::{
    BlkioEntry, Cpu, Hugetlb, Io, Memory, Pids, Pressure, PressureLine, Rdma,
};

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
        tcp_max_usage: 80,
        tcp_fail_count: 81,
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
        bursts: 28,
        burst_time: 29,
        pressure: pressure(5),
    };
    Stats {
        unified,
        pids: Some(Pids { current: 30, limit: 0 }),
        cpu: Some(cpu),
        memory: Some(memory),
        hugetlb: vec![Hugetlb { page_size: "2MB".into(), current: 40, max: 41, fail_count: 42 }],
        rdma: vec![rdma(50, false), rdma(51, true)],
        io: vec![Io { major: 8, minor: 1, rbytes: 60, wbytes: 61, rios: 62, wios: 63 }],
        io_pressure: pressure(64),
        blkio: BTreeMap::from([
            ("blkio.io_serviced_recursive", vec![blkio(70)]),
            ("io_time_recursive", vec![blkio(71)]),
        ]),
    }
}

fn blkio(value: u64) -> BlkioEntry {
    BlkioEntry { major: 8, minor: 1, device: "/dev/sda1".into(), op: "Read".into(), value }
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
    assert_eq!((m.cpu.nr_bursts, m.cpu.burst_usec), (28, 29));
    assert_eq!(m.memory.psi.some.avg10, 2.5);
    assert_eq!((m.io.psi.some.avg10, m.io.psi.full.total), (0.64, 0));
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
    assert_eq!((m.memory.kernel_tcp.max, m.memory.kernel_tcp.failcnt), (80, 81));
    let entry = &m.blkio.io_serviced_recursive[0];
    assert_eq!((entry.value, entry.device.as_str()), (70, "/dev/sda1"));
    assert_eq!(m.blkio.io_time_recursive[0].value, 71);
    assert_eq!((m.hugetlb[0].usage, m.rdma.limit[0].hca_handles), (40, 51));
}

#[test]
fn what_the_kernel_has_not_is_not_sent() {
    let none = super::v2::metrics(Stats { unified: true, ..Default::default() });
    assert!(none.cpu.is_none() && none.memory.is_none() && none.memory_events.is_none());
    let none = super::v1::metrics(Stats::default());
    assert!(none.cpu.is_none() && none.memory_oom_control.is_none() && none.pids.is_none());
}
