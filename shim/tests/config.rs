//! The configuration of the real binary: the node's file, and what containerd names.

#[allow(dead_code, reason = "most of it is for other tests")]
mod common;

use std::ffi::OsStr;
use std::fs;
use std::process::{Command, Output};

use common::*;
use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, Extension};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::ttrpc::context;
use containerd_shim_protos::{Client, TaskClient};

/// `runtimeoptions.v1.Options` with a `config_path`, on the wire.
fn named(path: &str) -> Any {
    let value = [&[0x12, path.len() as u8], path.as_bytes()].concat();
    let type_url = "runtimeoptions.v1.Options".to_string();
    Any { type_url, value, ..Any::default() }
}

fn start(bundle: &Bundle, command: Command, options: Option<Any>) -> Output {
    let mut params = BootstrapParams::parse_from_bytes(&bundle.params(None)).unwrap();
    params.extensions = options
        .map(|any| Extension { value: MessageField::some(any), ..Extension::default() })
        .into_iter()
        .collect();
    bundle.finish(command, &params.write_to_bytes().unwrap())
}

/// `start` on a host whose /etc has this file and nothing else.
fn on_a_node_with(bundle: &Bundle, text: &str) -> Command {
    with_file(bundle, bundle.command("start").get_args(), text)
}

fn with_file<'a>(bundle: &Bundle, args: impl Iterator<Item = &'a OsStr>, text: &str) -> Command {
    let script = "mount -t tmpfs etc /etc && mkdir /etc/containerd-shim-rs-v2 &&
        printf %s \"$CONFIG\" > /etc/containerd-shim-rs-v2/config.toml && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh", BINARY]);
    command.args(args).current_dir(&bundle.dir).env("CONFIG", text);
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_in(bundle: &Bundle, cgroups: &Cgroups<'_>) -> bool {
    let of_server = proc_file(bundle.server(), "cgroup");
    of_server.lines().any(|line| line.ends_with(&format!(":{}", cgroups.name)))
}

#[test]
fn the_nodes_file_counts_for_every_server() {
    let Some(bundle) = Bundle::task() else { return };
    let cgroups = Cgroups::new(&bundle);
    let file = format!("shim_cgroup = {:?}", cgroups.name);
    let output = start(&bundle, on_a_node_with(&bundle, &file), None);
    assert!(output.status.success(), "{}", text(&output));
    assert!(is_in(&bundle, &cgroups));
}

#[test]
fn a_nodes_file_that_is_wrong_starts_no_server() {
    let Some(bundle) = Bundle::task() else { return };
    let output = start(&bundle, on_a_node_with(&bundle, "io_uid = 1\nlogger = []\n"), None);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1));
    let file = "configuration \"/etc/containerd-shim-rs-v2/config.toml\"";
    assert!(text.contains(&format!("{file}: TOML, line 2: unknown field `logger`")), "{text}");
    bundle.assert_nothing_left();
}

#[test]
fn check_reads_the_nodes_file_before_a_server_does() {
    let Some(bundle) = Bundle::task() else { return };
    let check = |text: &str| {
        let args = [OsStr::new("check")].into_iter();
        let output = with_file(&bundle, args, text).output().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let row = lines.lines().find(|line| line.starts_with("configuration ")).unwrap().to_owned();
        (row, String::from_utf8(output.stderr).unwrap(), output.status.success())
    };
    let (row, errors, well) = check("io_uid = 1\n");
    assert!(
        well && row.contains("  yes: /etc/containerd-shim-rs-v2/config.toml "),
        "{row} {errors}"
    );
    let (row, errors, well) = check("io_uid = 1\nlogger = []\n");
    assert!(!well && row.contains("TOML, line 2: unknown field `logger`"), "{row} {errors}");
    assert!(errors.contains("needed, and not there: configuration"), "{errors}");
}

#[test]
fn a_file_that_containerd_names_counts_for_its_server_and_containers() {
    let Some(bundle) = Bundle::task() else { return };
    let cgroups = Cgroups::new(&bundle);
    let file = bundle.dir.join("config.toml");
    fs::write(&file, format!("ShimCgroup = {:?}\nNoPivotRoot = true", cgroups.name)).unwrap();
    let path = file.to_str().unwrap();
    let output = start(&bundle, bundle.command("start"), Some(named(path)));
    assert!(output.status.success(), "{}", text(&output));
    assert!(is_in(&bundle, &cgroups));
    let client = Client::connect(&format!("unix://{}", bundle.socket().display())).unwrap();
    let tasks = TaskClient::new(client);
    let create = |options: Option<Any>| {
        let request = CreateTaskRequest {
            id: "c".to_string(),
            bundle: bundle.dir.display().to_string(),
            options: MessageField(options.map(Box::new)),
            ..CreateTaskRequest::default()
        };
        tasks.create(context::with_timeout(0), &request).unwrap_err().to_string()
    };
    let error = create(Some(named(path)));
    assert!(error.contains("the option no_pivot_root is not supported"), "{error}");
    let error = create(None);
    assert!(error.contains("config.json"), "{error}");
    let error = create(Some(named("/etc/other")));
    assert!(error.contains("this shim was not started with it"), "{error}");
    fs::remove_file(file).unwrap();
}

#[test]
fn a_named_file_that_is_missing_or_wrong_starts_no_server() {
    let Some(bundle) = Bundle::task() else { return };
    let path = bundle.dir.join("config.toml").display().to_string();
    let output = start(&bundle, bundle.command("start"), Some(named(&path)));
    assert!(text(&output).contains(&format!("configuration {path:?}: it is missing")));
    fs::write(&path, "io_uid = \"root\"").unwrap();
    let output = start(&bundle, bundle.command("start"), Some(named(&path)));
    let text = text(&output);
    assert!(
        text.contains(&format!("configuration {path:?}: TOML, line 1: invalid type")),
        "{text}"
    );
    fs::remove_file(&path).unwrap();
    bundle.assert_nothing_left();
}
