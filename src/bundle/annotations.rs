//! The annotations of a spec that say with whom its container shares a server.
//!
//! It must never parse the rest: `start` and `delete` are in a hurry, and Create does it anyway.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::check_id;
use crate::error::{Error, Result};

/// containerd's own shim groups by these, the first one first (its `groupLabels`).
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];
/// CRI's word for the container that a pod of the `podsandbox` controller stands on.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// The part of `config.json` that is read here.
#[derive(Debug, Default, Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

fn annotations(bundle: &Path) -> Result<BTreeMap<String, String>> {
    let bytes = match super::config(bundle) {
        // The bundle of a sandbox has no spec.
        Err(e) if e.errno() == Some(nix::errno::Errno::ENOENT) => return Ok(BTreeMap::new()),
        bytes => bytes?,
    };
    let read: Annotated = serde_json::from_slice(&bytes)
        .map_err(|e| Error::invalid(format!("config.json: annotations: {e}")))?;
    Ok(read.annotations.unwrap_or_default())
}

/// The id that the containers of one server have in common: that of their pod, or of a group that
/// a client named; without one, the container's own.
pub fn group(bundle: &Path, id: &str) -> Result<String> {
    let annotations = annotations(bundle)?;
    let named = GROUPS.iter().find_map(|name| annotations.get(*name));
    let Some(group) = named.filter(|group| !group.is_empty()) else { return Ok(id.into()) };
    check_id(group).map_err(|e| e.doing("config.json: annotations: the group"))?;
    Ok(group.clone())
}

/// Whether everything of the server goes with this bundle: a sandbox, or a container that is one
/// or is alone. Another member of a group goes by itself.
pub fn stands_for_all(bundle: &Path, id: &str) -> bool {
    let Ok(annotations) = annotations(bundle) else { return true };
    let sandbox = annotations.get(CONTAINER_TYPE).is_some_and(|typ| typ == "sandbox");
    sandbox || !GROUPS.iter().any(|name| annotations.get(*name).is_some_and(|group| group != id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(annotations: &str) -> std::path::PathBuf {
        let dir = nix::unistd::mkdtemp(&std::env::temp_dir().join("annotations-XXXXXX")).unwrap();
        if !annotations.is_empty() {
            std::fs::write(dir.join("config.json"), annotations).unwrap();
        }
        dir
    }

    #[test]
    fn members_of_a_pod_share_its_server() {
        for (config, expected, all) in [
            ("", Ok("web"), true),
            ("{}", Ok("web"), true),
            (r#"{"annotations": null}"#, Ok("web"), true),
            (r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}"#, Ok("pod"), false),
            (
                r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "web",
                    "io.kubernetes.cri.container-type": "sandbox"}, "linux": {"x": []}}"#,
                Ok("web"),
                true,
            ),
            (
                r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "pod",
                    "io.containerd.runc.v2.group": "mine"}}"#,
                Ok("mine"),
                false,
            ),
            (r#"{"annotations": {"io.containerd.runc.v2.group": "../x"}}"#, Err(()), false),
            ("{", Err(()), true),
        ] {
            let dir = bundle(config);
            assert_eq!(group(&dir, "web").as_deref().map_err(drop), expected, "{config}");
            assert_eq!(stands_for_all(&dir, "web"), all, "{config}");
            std::fs::remove_dir_all(dir).unwrap();
        }
    }
}
