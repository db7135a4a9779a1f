//! Runtime options that a Create comes with: what they change, and what is refused.

use containerd_shim_rs::api::Options;
use containerd_shim_rs::error::Kind;
use serde_json::json;

use crate::alone::alone;
use crate::pod::{Pod, process, sh, with};

#[test]
fn the_pipes_of_a_container_and_its_execs_have_the_options_owner() {
    alone(async |pod: &mut Pod| {
        let script = "stat -Lc %g /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2; touch said; \
            sleep 100";
        pod.write_bundle("c", &sh(script));
        let mut request = pod.request("c");
        request.options = Options { io_uid: 1234, io_gid: 5678, ..Options::default() };
        // A log file is written through a pipe of ours; a FIFO is the client's and stays its own.
        request.stdio = pod.logged("c");
        pod.send(request).await.unwrap();
        pod.start("c", "").await.unwrap();
        pod.until("c", "said").await;
        let (status, said) = pod.executed("c", "e", &process("stat -Lc %g /proc/self/fd/1")).await;
        assert_eq!((status, said.as_str()), (0, "5678\n"));
        pod.end("c").await;
        assert_eq!(pod.output("c"), "0\n5678\n5678\n");
    });
}

#[test]
fn options_that_cannot_be_had_are_refused_by_name() {
    alone(async |pod: &mut Pod| {
        let no_pivot_root = Options { no_pivot_root: true, ..Options::default() };
        let systemd_cgroup = Options { systemd_cgroup: true, ..Options::default() };
        for (options, spec, kind, want) in [
            (no_pivot_root, sh("true"), Kind::Unimplemented, "the option no_pivot_root"),
            (
                systemd_cgroup.clone(),
                sh("true"),
                Kind::InvalidArgument,
                "the option systemd_cgroup",
            ),
            (
                systemd_cgroup,
                with(sh("true"), "/linux/cgroupsPath", json!(null)),
                Kind::InvalidArgument,
                "linux.cgroupsPath \"\" is not slice:prefix:name",
            ),
        ] {
            pod.write_bundle("c", &spec);
            let mut request = pod.request("c");
            request.options = options;
            let error = pod.send(request).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(want), "{error}");
        }
    });
}
