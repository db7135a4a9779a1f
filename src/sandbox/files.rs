//! The pod's `hosts`, `hostname` and `resolv.conf`, below the sandbox's bundle.
//!
//! It must never write anywhere else: CRI has a place of its own for them, which it empties at will.

use std::path::{Path, PathBuf};

use crate::api::{Dns, PodConfig};
use crate::bundle;
use crate::error::{Doing, Result};

/// Where they are.
pub fn dir(bundle: &Path) -> PathBuf {
    bundle.join("etc")
}

/// Writes what the pod's containers see of it in `/etc`.
pub fn write(bundle: &Path, config: &PodConfig) -> Result<()> {
    let dir = dir(bundle);
    std::fs::create_dir_all(&dir).doing(|| format!("mkdir {dir:?}"))?;
    let hostname = match config.hostname.as_str() {
        "" => nix::unistd::gethostname().doing(|| "gethostname")?.to_string_lossy().into_owned(),
        name => name.to_owned(),
    };
    let host_file = |path: &str| match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.doing(|| format!("read {path}")),
    };
    let resolv_conf = match &config.dns {
        Some(dns) => resolv_conf(dns).into_bytes(),
        None => host_file("/etc/resolv.conf")?,
    };
    for (name, bytes) in [
        ("hostname", format!("{hostname}\n").into_bytes()),
        ("hosts", host_file("/etc/hosts")?),
        ("resolv.conf", resolv_conf),
    ] {
        bundle::write_atomic(&dir.join(name), &bytes, 0o644)?;
    }
    Ok(())
}

fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

/// Removes what [`write`] wrote.
pub fn remove(bundle: &Path) {
    let _ = std::fs::remove_dir_all(dir(bundle));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn resolv_conf_has_only_the_lines_that_were_given() {
        let dns = Dns {
            servers: strings(&["10.0.0.10", "8.8.8.8"]),
            searches: strings(&["a.local", "b"]),
            options: strings(&["ndots:5"]),
        };
        assert_eq!(
            resolv_conf(&dns),
            "search a.local b\nnameserver 10.0.0.10\nnameserver 8.8.8.8\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(&Dns::default()), "");
    }
}
