//! CRI's `PodSandboxConfig`, as far as a sandbox needs it.
//!
//! CRI sends more than `proto/cri.proto` has; the rest must never be an error.

use containerd_shim_protos::protobuf::EnumOrUnknown;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use super::convert;
use super::proto::cri;
use crate::api::{Dns, NamespaceMode, PodConfig};
use crate::error::{Doing, Error, Result};
use crate::plan::{IdMap, IdRange};

const POD_SANDBOX_CONFIG: &str = "runtime.v1.PodSandboxConfig";

/// What `options` of CreateSandbox say. Clients other than CRI send none.
pub(super) fn pod_config(options: Option<&Any>) -> Result<PodConfig> {
    let Some(any) = options else { return Ok(PodConfig::default()) };
    match convert::message_name(any) {
        "" => Ok(PodConfig::default()),
        POD_SANDBOX_CONFIG => convert_config(convert::decode(any, "sandbox options")?),
        _ => {
            Err(Error::invalid(format!("sandbox options have the unknown type {:?}", any.type_url)))
        }
    }
}

fn convert_config(config: cri::PodSandboxConfig) -> Result<PodConfig> {
    let metadata = config.metadata.unwrap_or_default();
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let namespaces = security.namespace_options.unwrap_or_default();
    let dns = config.dns_config.into_option().map(|dns| Dns {
        servers: dns.servers,
        searches: dns.searches,
        options: dns.options,
    });
    let user = match namespaces.userns_options.into_option() {
        Some(user) => user_map(user)?,
        None => None,
    };
    Ok(PodConfig {
        hostname: config.hostname,
        dns,
        annotations: config.annotations.into_iter().collect(),
        labels: config.labels.into_iter().collect(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        attempt: metadata.attempt,
        cgroup_parent: linux.cgroup_parent,
        sysctls: linux.sysctls.into_iter().collect(),
        network: mode(namespaces.network, "network")?,
        pid: mode(namespaces.pid, "pid")?,
        ipc: mode(namespaces.ipc, "ipc")?,
        user,
        privileged: security.privileged,
        log_directory: config.log_directory,
    })
}

fn user_map(user: cri::UserNamespace) -> Result<Option<IdMap>> {
    match mode(user.mode, "userns_options.mode")? {
        NamespaceMode::Node => return Ok(None),
        NamespaceMode::Pod => {}
        other => {
            let text = format!("namespace_options.userns_options.mode: {other:?}");
            return Err(Error::unimplemented(text));
        }
    }
    let ranges = |list: Vec<cri::IDMapping>| {
        let range = |m: cri::IDMapping| IdRange {
            inside: m.container_id,
            outside: m.host_id,
            size: m.length,
        };
        list.into_iter().map(range).collect()
    };
    let map = IdMap { uids: ranges(user.uids), gids: ranges(user.gids) };
    map.checked().doing(|| "namespace_options.userns_options").map(Some)
}

fn mode(value: EnumOrUnknown<cri::NamespaceMode>, field: &str) -> Result<NamespaceMode> {
    match value.enum_value() {
        Ok(cri::NamespaceMode::POD) => Ok(NamespaceMode::Pod),
        Ok(cri::NamespaceMode::CONTAINER) => Ok(NamespaceMode::Container),
        Ok(cri::NamespaceMode::NODE) => Ok(NamespaceMode::Node),
        Ok(cri::NamespaceMode::TARGET) => Ok(NamespaceMode::Target),
        Err(number) => Err(Error::invalid(format!("namespace_options.{field}: no mode {number}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Field numbers of `k8s.io/cri-api` v0.34.0, `pkg/apis/runtime/v1/api.proto`.
    const NUMBERS: &[(&str, &str, u32)] = &[
        ("DNSConfig", "options", 3),
        ("DNSConfig", "searches", 2),
        ("DNSConfig", "servers", 1),
        ("IDMapping", "container_id", 2),
        ("IDMapping", "host_id", 1),
        ("IDMapping", "length", 3),
        ("LinuxPodSandboxConfig", "cgroup_parent", 1),
        ("LinuxPodSandboxConfig", "security_context", 2),
        ("LinuxPodSandboxConfig", "sysctls", 3),
        ("LinuxSandboxSecurityContext", "namespace_options", 1),
        ("LinuxSandboxSecurityContext", "privileged", 6),
        ("NamespaceMode", "CONTAINER", 1),
        ("NamespaceMode", "NODE", 2),
        ("NamespaceMode", "POD", 0),
        ("NamespaceMode", "TARGET", 3),
        ("NamespaceOption", "ipc", 3),
        ("NamespaceOption", "network", 1),
        ("NamespaceOption", "pid", 2),
        ("NamespaceOption", "userns_options", 5),
        ("PodSandboxConfig", "annotations", 7),
        ("PodSandboxConfig", "dns_config", 4),
        ("PodSandboxConfig", "hostname", 2),
        ("PodSandboxConfig", "labels", 6),
        ("PodSandboxConfig", "linux", 8),
        ("PodSandboxConfig", "log_directory", 3),
        ("PodSandboxConfig", "metadata", 1),
        ("PodSandboxMetadata", "attempt", 4),
        ("PodSandboxMetadata", "name", 1),
        ("PodSandboxMetadata", "namespace", 3),
        ("PodSandboxMetadata", "uid", 2),
        ("UserNamespace", "gids", 3),
        ("UserNamespace", "mode", 1),
        ("UserNamespace", "uids", 2),
    ];

    /// A config with every field of v0.34.0 that concerns Linux set, as Go encodes it.
    const CONFIG: &[u8] = include_bytes!("../../tests/data/pod-sandbox-config.pb");

    #[test]
    fn field_numbers_are_those_of_cri() {
        let mut found = Vec::new();
        let mut message = "";
        for line in include_str!("../../proto/cri.proto").lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["message" | "enum", name, "{"] => message = name,
                [.., field, "=", number] if !message.is_empty() => {
                    found.push((message, field, number.trim_end_matches(';').parse().unwrap()));
                }
                _ => {}
            }
        }
        found.sort();
        assert_eq!(found, NUMBERS);
    }

    fn config(type_url: &str, value: &[u8]) -> Result<PodConfig> {
        pod_config(Some(&convert::any(type_url, value.to_vec())))
    }

    #[test]
    fn a_config_that_go_encoded_arrives_whole() {
        let config = config("runtime.v1.PodSandboxConfig", CONFIG).unwrap();
        let dns = config.dns.unwrap();
        let one = |key: &str, value: &str| BTreeMap::from([(key.into(), value.into())]);
        assert_eq!((config.name.as_str(), config.uid.as_str()), ("web", "u-1"));
        assert_eq!((config.namespace.as_str(), config.attempt), ("prod", 3));
        assert_eq!(config.hostname, "web-0");
        assert_eq!(config.log_directory, "/var/log/pods/web");
        assert_eq!(dns.servers, ["10.0.0.10", "10.0.0.11"]);
        assert_eq!((dns.searches, dns.options), (vec!["svc.local".into()], vec!["ndots:5".into()]));
        assert_eq!((config.labels, config.annotations), (one("app", "web"), one("note", "x")));
        assert_eq!(config.cgroup_parent, "/kubepods/pod1");
        assert_eq!(config.sysctls, one("net.core.somaxconn", "1024"));
        assert_eq!(config.network, NamespaceMode::Node);
        assert_eq!(config.pid, NamespaceMode::Container);
        assert_eq!(config.ipc, NamespaceMode::Target);
        assert!(config.privileged);
        let range = || vec![IdRange { inside: 0, outside: 100_000, size: 65536 }];
        assert_eq!(config.user, Some(IdMap { uids: range(), gids: range() }));
    }

    #[test]
    fn an_empty_config_is_the_default() {
        let empty = config("type.googleapis.com/runtime.v1.PodSandboxConfig", &[]).unwrap();
        assert_eq!(empty.network, NamespaceMode::Pod);
        assert!(empty.dns.is_none() && empty.user.is_none());
        assert!(pod_config(None).unwrap().hostname.is_empty());
        assert!(config("google.protobuf.Empty", &[]).unwrap().hostname.is_empty());
    }

    #[test]
    fn what_is_no_config_is_refused_by_name() {
        let error = config("runtime.v1.PodSandboxStatus", CONFIG).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::InvalidArgument);
        assert!(error.to_string().contains("runtime.v1.PodSandboxStatus"), "{error}");
        let cut = config("runtime.v1.PodSandboxConfig", &CONFIG[..40]).unwrap_err();
        assert_eq!(cut.kind(), crate::error::Kind::InvalidArgument);
        // linux { security_context { namespace_options { pid: 9 } } }
        let mode = config("runtime.v1.PodSandboxConfig", &[0x42, 6, 0x12, 4, 0x0a, 2, 0x10, 9]);
        assert_eq!(mode.unwrap_err().to_string(), "namespace_options.pid: no mode 9");
    }
}
