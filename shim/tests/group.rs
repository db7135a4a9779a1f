//! One server for all containers of a pod, or of a group that a client named, when containerd has
//! no sandbox for them. It must never start a second server, nor end one that others need.

#[allow(dead_code, reason = "most of it is for other tests")]
mod common;

use std::fs;
use std::path::Path;

use common::{Bundle, eventually};
use containerd_shim_rs::bundle::{self, ContainerRecord, RECORD_VERSION, ServerRecord};
use containerd_shim_rs::cgroup::Layout;

fn annotate(bundle: &Bundle, annotations: &[(&str, &str)]) {
    let pairs: Vec<_> =
        annotations.iter().map(|(key, value)| format!("{key:?}: {value:?}")).collect();
    let text = format!("{{\"annotations\": {{{}}}}}", pairs.join(", "));
    fs::write(bundle.dir.join("config.json"), text).unwrap();
}

/// Two bundles of a group that has the name of the first.
fn pair(annotation: &str, first_is: &[(&str, &str)]) -> Option<(Bundle, Bundle)> {
    let (first, mut second) = (Bundle::task()?, Bundle::task()?);
    second.sockets.clone_from(&first.sockets);
    annotate(&first, &[&[(annotation, &*first.id)], first_is].concat());
    annotate(&second, &[(annotation, &*first.id)]);
    Some((first, second))
}

fn start(bundle: &Bundle) -> Vec<u8> {
    let output = bundle.start();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn delete(bundle: &Bundle) {
    let output = bundle.finish(bundle.command("delete"), &[]);
    assert!(output.status.success(), "{output:?}");
}

/// What a server with these containers has on disk; none of them has a process.
fn record(server: &Bundle, members: &[&Bundle]) {
    let pid = server.server() as u32;
    let shim_start_time = bundle::start_time(pid).unwrap();
    let record = ServerRecord {
        version: RECORD_VERSION,
        shim_pid: pid,
        shim_start_time,
        ..ServerRecord::default()
    };
    record.write(&server.dir).unwrap();
    for member in members {
        let record = ContainerRecord {
            version: RECORD_VERSION,
            id: member.id.clone(),
            cgroups: Layout::probe().unwrap().cgroups(&Path::new("/").join(&member.id)),
            ..ContainerRecord::default()
        };
        record.write(&server.dir, &member.dir).unwrap();
    }
}

fn gone(bundle: &Bundle) {
    eventually(|| match bundle.servers() {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
}

#[test]
fn the_containers_of_a_pod_share_the_server_of_its_sandbox() {
    let sandbox = [("io.kubernetes.cri.container-type", "sandbox")];
    let Some((pause, web)) = pair("io.kubernetes.cri.sandbox-id", &sandbox) else { return };
    assert_eq!(start(&pause), start(&web));
    let server = pause.server();
    assert_eq!(web.servers(), Vec::<i32>::new());
    let address = |bundle: &Bundle| fs::read_to_string(bundle.dir.join("address")).unwrap();
    assert_eq!(address(&pause), address(&web));

    record(&pause, &[&pause, &web]);
    delete(&web);
    assert_eq!(pause.server(), server, "a container took the pod's server with it");
    // The pod's end is that of all its containers.
    delete(&pause);
    gone(&pause);
    assert!(bundle::containers(&pause.dir).is_empty());
}

#[test]
fn a_group_without_a_sandbox_outlives_its_first_container() {
    let Some((first, second)) = pair("io.containerd.runc.v2.group", &[]) else { return };
    annotate(&first, &[("io.containerd.runc.v2.group", "g")]);
    annotate(&second, &[("io.containerd.runc.v2.group", "g")]);
    assert_eq!(start(&first), start(&second));
    let server = first.server();
    record(&first, &[&first, &second]);
    delete(&first);
    assert_eq!(first.server(), server, "the first container took the group's server with it");
    let left: Vec<_> = bundle::containers(&first.dir).into_iter().map(|r| r.unwrap().id).collect();
    assert_eq!(left, [second.id.as_str()]);

    bundle::forget_container(&first.dir, &second.id, &second.dir).unwrap();
    delete(&first);
    gone(&first);
}
