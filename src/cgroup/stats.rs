//! The numbers that Stats answers with, for cgroup v1 and v2.

use std::collections::BTreeMap;

/// One reading. `None` or empty: the kernel does not have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Read from the unified hierarchy.
    pub unified: bool,
    pub pids: Option<Pids>,
    pub cpu: Option<Cpu>,
    pub memory: Option<Memory>,
    pub hugetlb: Vec<Hugetlb>,
    pub rdma: Vec<Rdma>,
    /// v2: `io.stat`.
    pub io: Vec<Io>,
    pub io_pressure: Option<Pressure>,
    /// v1: one list for each `blkio.*_recursive` file.
    pub blkio: BTreeMap<&'static str, Vec<BlkioEntry>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    pub current: u64,
    /// 0: no limit.
    pub limit: u64,
}

/// v1 in nanoseconds (`cpuacct.usage`); v2 in microseconds (`cpu.stat`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    pub usage: u64,
    pub user: u64,
    pub system: u64,
    pub per_cpu: Vec<u64>,
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_time: u64,
    /// v2: how often, and for how long, it has run on saved quota.
    pub bursts: u64,
    pub burst_time: u64,
    pub pressure: Option<Pressure>,
}

/// Bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub usage: u64,
    pub limit: u64,
    pub max_usage: u64,
    pub fail_count: u64,
    pub swap_usage: u64,
    pub swap_limit: u64,
    pub swap_max_usage: u64,
    pub swap_fail_count: u64,
    pub kernel_usage: u64,
    pub kernel_limit: u64,
    pub kernel_max_usage: u64,
    pub kernel_fail_count: u64,
    pub tcp_usage: u64,
    pub tcp_limit: u64,
    pub tcp_max_usage: u64,
    pub tcp_fail_count: u64,
    /// `memory.stat`, by its own names.
    pub stat: BTreeMap<String, u64>,
    /// v2 `memory.events`; v1 `memory.oom_control`: `oom_kill_disable`, `under_oom`, `oom_kill`.
    pub events: BTreeMap<String, u64>,
    pub pressure: Option<Pressure>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hugetlb {
    pub page_size: String,
    pub current: u64,
    pub max: u64,
    pub fail_count: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rdma {
    pub device: String,
    pub handles: u32,
    pub objects: u32,
    pub limit: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Io {
    pub major: u64,
    pub minor: u64,
    pub rbytes: u64,
    pub wbytes: u64,
    pub rios: u64,
    pub wios: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlkioEntry {
    pub major: u64,
    pub minor: u64,
    /// `/dev/sda`; empty where the host does not say.
    pub device: String,
    pub op: String,
    pub value: u64,
}

/// `*.pressure`: averages in percent × 100, totals in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub some: PressureLine,
    pub full: PressureLine,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PressureLine {
    pub avg10: u64,
    pub avg60: u64,
    pub avg300: u64,
    pub total: u64,
}
