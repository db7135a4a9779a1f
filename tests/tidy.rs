//! The rules of the tree that a compiler does not know: sizes, headers, layers, where unsafe lives.
//!
//! It must never have an exception list: a rule that needs one is wrong.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

fn all() -> Vec<(PathBuf, String)> {
    ["src", "shim/src", "tests", "shim/tests"].into_iter().flat_map(sources).collect()
}

/// The part of a file that is not its unit tests.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].lines().filter(|line| !line.trim_start().starts_with("//"))
}

fn beneath(path: &Path, dir: &str) -> bool {
    path.to_str().unwrap().contains(&format!("/src/{dir}"))
}

#[test]
fn files_say_what_they_are_and_stay_small() {
    for (path, text) in all() {
        assert!(text.starts_with("//! "), "{path:?} has no header");
        assert!(text.lines().count() <= 500, "{path:?} has {} lines", text.lines().count());
    }
}

#[test]
fn unsafe_lives_in_sys_and_child() {
    for (path, text) in sources("src").into_iter().chain(sources("shim/src")) {
        if !beneath(&path, "sys") && !beneath(&path, "child") {
            let found =
                code(&text).find(|line| line.contains("unsafe {") || line.contains("unsafe fn"));
            assert_eq!(found, None, "{path:?}");
        }
    }
}

#[test]
fn nothing_blocks_or_adds_a_thread() {
    let banned = [
        "spawn_blocking",
        "tokio::fs",
        "tokio::process",
        "thread::spawn",
        "process::Command",
        ".unwrap()",
        ".expect(",
    ];
    for (path, text) in sources("src").into_iter().chain(sources("shim/src")) {
        let in_tests = path.to_str().unwrap().contains("/tests");
        for line in code(&text).filter(|_| !in_tests && !path.ends_with("tests.rs")) {
            let found = banned.iter().find(|word| line.contains(*word));
            assert_eq!(found, None, "{path:?}: {line}");
        }
    }
}

#[test]
fn modules_import_downwards() {
    // Each may use itself and those after it; `error` and plain values are for all.
    let layers: [&[&str]; 6] = [
        &["service"],
        &["shim"],
        &["sandbox", "container", "process", "cleanup"],
        &[
            "launch",
            "rdt",
            "reaper",
            "cgroup",
            "stdio",
            "relay",
            "fifo",
            "console",
            "bundle",
            "config",
            "events",
            "namespaces",
            "socket",
            "holder",
            "hooks",
            "agent",
            "check",
            "systemd",
        ],
        &["plan", "child"],
        &["sys"],
    ];
    let rank = |module: &str| layers.iter().position(|layer| layer.contains(&module));
    for (path, text) in sources("src") {
        let relative =
            path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let Some(own) = rank(module) else { continue };
        for line in code(&text) {
            let Some((_, rest)) = line.split_once("use crate::") else { continue };
            let used = rest.split([':', ';', '{']).next().unwrap();
            if let Some(theirs) = rank(used) {
                assert!(theirs >= own, "{path:?} imports upwards: {line}");
            }
        }
    }
}

#[test]
fn planning_does_no_io_and_only_the_service_knows_protobuf() {
    for (path, text) in sources("src") {
        for line in code(&text) {
            if beneath(&path, "plan") {
                let found = ["std::fs", "log::", "SystemTime", "Instant", "crate::sys", "std::env"]
                    .iter()
                    .find(|w| line.contains(*w));
                assert_eq!(found, None, "{path:?}: {line}");
            }
            if !beneath(&path, "service") {
                assert!(
                    !line.contains("containerd_shim_protos") && !line.contains("ttrpc::"),
                    "{path:?}: {line}"
                );
            }
        }
    }
}
