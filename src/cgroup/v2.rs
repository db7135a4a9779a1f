//! The numbers of a cgroup v2. It must never write.

use std::collections::BTreeMap;

use super::dir::Dir;
use super::opened;
use super::stats::{Cpu, Hugetlb, Io, Memory, Pressure, PressureLine, Rdma, Stats};
use super::v1::{page_sizes, pids};
use crate::error::{Error, Kind, Result};
use crate::plan::Cgroups;

pub(super) fn stats(cgroups: &Cgroups) -> Result<Stats> {
    let [at] = cgroups.dirs.as_slice() else {
        return Err(Error::new(Kind::NotFound, "no cgroup"));
    };
    let dir = opened(at)?;
    Ok(Stats {
        unified: true,
        pids: pids(&dir)?,
        cpu: cpu(&dir)?,
        memory: memory(&dir)?,
        hugetlb: hugetlb(&dir)?,
        rdma: rdma(&dir)?,
        io: io(&dir)?,
        io_pressure: pressure(&dir, "io.pressure")?,
        blkio: BTreeMap::new(),
    })
}

fn cpu(dir: &Dir) -> Result<Option<Cpu>> {
    let stat = dir.table("cpu.stat")?;
    if stat.is_empty() {
        return Ok(None);
    }
    let get = |name| stat.get(name).copied().unwrap_or(0);
    Ok(Some(Cpu {
        usage: get("usage_usec"),
        user: get("user_usec"),
        system: get("system_usec"),
        per_cpu: Vec::new(),
        periods: get("nr_periods"),
        throttled_periods: get("nr_throttled"),
        throttled_time: get("throttled_usec"),
        bursts: get("nr_bursts"),
        burst_time: get("burst_usec"),
        pressure: pressure(dir, "cpu.pressure")?,
    }))
}

fn memory(dir: &Dir) -> Result<Option<Memory>> {
    let Some(usage) = dir.number("memory.current")? else { return Ok(None) };
    let (stat, events) = (dir.table("memory.stat")?, dir.table("memory.events")?);
    Ok(Some(Memory {
        usage,
        limit: dir.count("memory.max")?,
        max_usage: dir.count("memory.peak")?,
        fail_count: events.get("max").copied().unwrap_or(0),
        swap_usage: dir.count("memory.swap.current")?,
        swap_limit: dir.count("memory.swap.max")?,
        swap_max_usage: dir.count("memory.swap.peak")?,
        swap_fail_count: dir.table("memory.swap.events")?.get("fail").copied().unwrap_or(0),
        kernel_usage: stat.get("kernel").copied().unwrap_or(0),
        tcp_usage: stat.get("sock").copied().unwrap_or(0),
        pressure: pressure(dir, "memory.pressure")?,
        stat,
        events,
        ..Memory::default()
    }))
}

fn hugetlb(dir: &Dir) -> Result<Vec<Hugetlb>> {
    let read = |size: String| {
        Ok(Hugetlb {
            current: dir.count(&format!("hugetlb.{size}.current"))?,
            max: dir.count(&format!("hugetlb.{size}.max"))?,
            fail_count: dir
                .table(&format!("hugetlb.{size}.events"))?
                .get("max")
                .copied()
                .unwrap_or(0),
            page_size: size,
        })
    };
    page_sizes(dir, ".current")?.into_iter().map(read).collect()
}

/// The words of a line `<first> key=value key=value…`.
fn pairs<'a>(words: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, &'a str> {
    words.filter_map(|word| word.split_once('=')).collect()
}

/// `mlx4_0 hca_handle=2 hca_object=2000`, the same on v1. `max` is the highest number.
pub(super) fn rdma(dir: &Dir) -> Result<Vec<Rdma>> {
    let mut entries = Vec::new();
    for (file, limit) in [("rdma.current", false), ("rdma.max", true)] {
        let text = dir.read(file)?.unwrap_or_default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let Some(device) = words.next() else { continue };
            let values = pairs(words);
            let get = |name| match values.get(name).copied() {
                Some("max") => u32::MAX,
                value => value.and_then(|value| value.parse().ok()).unwrap_or(0),
            };
            entries.push(Rdma {
                device: device.into(),
                handles: get("hca_handle"),
                objects: get("hca_object"),
                limit,
            });
        }
    }
    Ok(entries)
}

fn io(dir: &Dir) -> Result<Vec<Io>> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let values = pairs(words);
        let get = |name| values.get(name).and_then(|value| value.parse().ok()).unwrap_or(0);
        Some(Io {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            rbytes: get("rbytes"),
            wbytes: get("wbytes"),
            rios: get("rios"),
            wios: get("wios"),
        })
    };
    Ok(dir.read("io.stat")?.unwrap_or_default().lines().filter_map(entry).collect())
}

/// None: the kernel was built or started without it.
fn pressure(dir: &Dir, file: &str) -> Result<Option<Pressure>> {
    let Some(text) = dir.read(file)? else { return Ok(None) };
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let kind = words.next();
        let values = pairs(words);
        let average = |name| values.get(name).and_then(|value| hundredths(value)).unwrap_or(0);
        let read = PressureLine {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total: values.get("total").and_then(|value| value.parse().ok()).unwrap_or(0),
        };
        match kind {
            Some("some") => pressure.some = read,
            Some("full") => pressure.full = read,
            _ => {}
        }
    }
    Ok(Some(pressure))
}

/// `1.25` is 125: the kernel always gives two decimals.
fn hundredths(value: &str) -> Option<u64> {
    let (whole, part) = value.split_once('.')?;
    Some(whole.parse::<u64>().ok()? * 100 + part.parse::<u64>().ok()?)
}
