//! AppArmor: profiles that are given, nested, missing. On a kernel with it (`hack/vm-test.sh`), and with its parser.
//!
//! Each test loads profiles of its own name, and unloads them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use containerd_shim_rs::error::Kind;
use serde_json::json;

use crate::alone::alone;
use crate::pod::{Pod, process, sh, with};

/// What the kernel says of a process' own confinement.
const CURRENT: &str = "/proc/self/attr/apparmor/current";

/// Whether the kernel runs with AppArmor; elsewhere `fields.rs` tests that a profile is refused.
fn enabled() -> bool {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    let enabled = enabled.starts_with('Y') && Path::new("/sys/kernel/security/apparmor").exists();
    if !enabled {
        eprintln!("skipped: the kernel does not run with AppArmor");
    }
    enabled
}

/// Profiles that are there as long as this is.
struct Profiles(String);

impl Profiles {
    fn load(text: &str) -> Profiles {
        let profiles = Profiles(text.into());
        assert!(profiles.parse("--replace"));
        profiles
    }

    fn parse(&self, verb: &str) -> bool {
        use std::io::Write as _;
        let mut parser = Command::new("apparmor_parser");
        parser.args([verb, "--skip-cache"]).stdin(Stdio::piped());
        let mut parser = parser.spawn().expect("Debian: apparmor");
        parser.stdin.take().unwrap().write_all(self.0.as_bytes()).unwrap();
        parser.wait().unwrap().success()
    }
}

impl Drop for Profiles {
    fn drop(&mut self) {
        self.parse("--remove");
    }
}

/// May do everything but write to files named `secret`.
fn no_secrets(name: &str) -> String {
    format!(
        "profile {name} flags=(attach_disconnected,mediate_deleted) {{ file, capability, network, \
         mount, umount, pivot_root, signal, ptrace, unix, deny /**/secret w, deny /secret w, }}\n"
    )
}

/// May do everything, and ask for every profile.
fn outer(name: &str, more: &str) -> String {
    format!(
        "profile {name} flags=(attach_disconnected,mediate_deleted) {{ file, capability, network, \
         mount, umount, pivot_root, signal, ptrace, unix, change_profile -> **, {more} }}\n"
    )
}

/// This process, and all that it starts, runs under a profile from now on.
fn confine(profile: &str) {
    fs::write("/proc/thread-self/attr/apparmor/current", format!("changeprofile {profile}"))
        .unwrap();
}

#[test]
fn a_profile_holds_for_init_and_execs() {
    alone(async |pod: &mut Pod| {
        if !enabled() {
            return;
        }
        let _profiles = Profiles::load(&no_secrets("rs-test-profile"));
        let script =
            format!("cat {CURRENT}; echo x 2>/dev/null > /secret || echo refused; sleep 100");
        let spec = with(sh(&script), "/process/apparmorProfile", json!("rs-test-profile"));
        pod.write_bundle("c", &spec);
        let mut request = pod.request("c");
        request.stdio = pod.logged("c");
        pod.send(request).await.unwrap();
        pod.start("c", "").await.unwrap();
        let script = format!("cat {CURRENT}; echo x > /secret");
        let mut exec = process(&script);
        exec["apparmorProfile"] = json!("rs-test-profile");
        let (status, said) = pod.executed("c", "e", &exec).await;
        assert!(said.starts_with("rs-test-profile (enforce)\n"), "{said}");
        assert_ne!(status, 0);
        // An exec is what its own spec says.
        let (_, said) = pod.executed("c", "f", &process(&format!("cat {CURRENT}"))).await;
        assert_eq!(said, "unconfined\n");
        pod.end("c").await;
        let said = pod.output("c");
        assert!(said.starts_with("rs-test-profile (enforce)\n"), "{said}");
        assert!(said.ends_with("refused\n"), "{said}");
    });
}

#[test]
fn a_profile_that_is_not_loaded_is_named() {
    alone(async |pod: &mut Pod| {
        if !enabled() {
            return;
        }
        let spec = with(sh("true"), "/process/apparmorProfile", json!("rs-test-missing"));
        let text = pod.create("c", &spec).await.unwrap_err().to_string();
        let want = ": no such profile is loaded: write: ENOENT";
        assert!(text.contains("\"exec rs-test-missing\"") && text.contains(want), "{text}");
    });
}

/// Inside of a container with a profile of its own: no-new-privileges allows no other profile, but
/// more of them.
#[test]
fn a_profile_inside_of_a_profile() {
    alone(async |pod: &mut Pod| {
        if !enabled() {
            return;
        }
        let outer = outer("rs-test-outer", "");
        let _profiles = Profiles::load(&(no_secrets("rs-test-inner") + &outer));
        confine("rs-test-outer");
        let script = format!("cat {CURRENT}; echo x 2>/dev/null > /secret || echo refused");
        let spec = with(sh(&script), "/process/apparmorProfile", json!("rs-test-inner"));
        let (_, said) = pod.ran("stacked", &spec).await;
        let [first, rest] = said.split_once('\n').map(<[_; 2]>::from).unwrap();
        let mut both: Vec<&str> = first.trim_end_matches(" (enforce)").split("//&").collect();
        both.sort_unstable();
        assert_eq!(both, ["rs-test-inner", "rs-test-outer"], "{said}");
        assert!(rest.ends_with("refused\n"), "{said}");
        // Without it the profile takes the place of the shim's.
        let spec = with(spec, "/process/noNewPrivileges", json!(false));
        let (_, said) = pod.ran("alone", &spec).await;
        assert!(said.starts_with("rs-test-inner (enforce)\n"), "{said}");
        let spec = with(sh("true"), "/process/apparmorProfile", json!("unconfined"));
        let error = pod.create("bare", &spec).await.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
        assert!(error.to_string().contains("AppArmor confines the shim"), "{error}");
    });
}

#[test]
fn a_refusal_names_the_profile_that_the_shim_runs_under() {
    alone(async |pod: &mut Pod| {
        if !enabled() {
            return;
        }
        let _profiles = Profiles::load(&outer("rs-test-strict", "deny pivot_root,"));
        confine("rs-test-strict");
        let text = pod.create("c", &sh("true")).await.unwrap_err().to_string();
        assert!(text.contains("pivot"), "{text}");
        assert!(text.contains("AppArmor confines the shim as \"rs-test-strict"), "{text}");
    });
}
