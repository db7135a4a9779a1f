//! Between containerd's messages and our own types.
//!
//! Type URLs are constants here, for asking a message for its name costs half a megabyte.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci;
use containerd_shim_protos::ttrpc::{self, Code};

use super::options;
use crate::api::{CreateContainer, Pid, State, Status, StdioPaths, Target};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::plan::RootfsMount;

pub(super) const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
pub(super) const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
pub(super) const RESOURCES: &str =
    "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
const EMPTY: &str = "google.protobuf.Empty";
const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";

/// The one place where a kind of error becomes a status code.
pub(super) fn status(error: &Error) -> ttrpc::Error {
    let code = match error.kind() {
        Kind::InvalidArgument => Code::INVALID_ARGUMENT,
        Kind::NotFound => Code::NOT_FOUND,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::Unimplemented => Code::UNIMPLEMENTED,
        Kind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
        Kind::Unavailable => Code::UNAVAILABLE,
        Kind::Unknown => Code::UNKNOWN,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, error))
}

pub(super) fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    // A clock before 1970 is a broken clock.
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    MessageField::some(Timestamp {
        seconds: since.as_secs() as i64,
        nanos: since.subsec_nanos() as i32,
        ..Default::default()
    })
}

pub(super) fn any(type_url: &str, value: Vec<u8>) -> Any {
    Any { type_url: type_url.to_string(), value, ..Default::default() }
}

/// `message` in an `Any`. `type_url` is its full name.
pub(super) fn pack(type_url: &str, message: &impl Message) -> Any {
    // Encoding fails only where a required field is missing; proto3 has none.
    any(type_url, message.write_to_bytes().unwrap_or_default())
}

/// The message in `any`, which is `what` for the user.
pub(super) fn decode<M: Message>(any: &Any, what: &str) -> Result<M> {
    M::parse_from_bytes(&any.value)
        .map_err(|e| Error::invalid(format!("decode {what} {:?}: {e}", any.type_url)))
}

/// The name of the message in `any`, without the host that some clients put in front. Empty for
/// no message at all.
pub(super) fn message_name(any: &Any) -> &str {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if name == EMPTY { "" } else { name }
}

/// The JSON in `any`, which must be of type `type_url`, for that is all that tells it apart.
pub(super) fn json(any: MessageField<Any>, type_url: &str, what: &str) -> Result<Vec<u8>> {
    match any.into_option() {
        None => Err(Error::invalid(format!("no {what}"))),
        Some(any) if any.type_url != type_url => {
            Err(Error::invalid(format!("{what} has the unknown type {:?}", any.type_url)))
        }
        Some(any) => Ok(any.value),
    }
}

/// The process of a request with these ids.
pub(super) fn target(id: String, exec_id: String) -> Target {
    Target { container: id, exec: Some(exec_id).filter(|id| !id.is_empty()) }
}

pub(super) fn rootfs_mount(mount: api::Mount) -> RootfsMount {
    let api::Mount { type_, source, target, options, .. } = mount;
    RootfsMount { fstype: type_, source, target, options }
}

pub(super) fn api_mount(mount: RootfsMount) -> api::Mount {
    let RootfsMount { fstype, source, target, options } = mount;
    api::Mount { type_: fstype, source, target, options, ..Default::default() }
}

pub(super) fn create_container(
    request: api::CreateTaskRequest,
    config: &Config,
) -> Result<CreateContainer> {
    Ok(CreateContainer {
        id: request.id,
        bundle: PathBuf::from(request.bundle),
        rootfs: request.rootfs.into_iter().map(rootfs_mount).collect(),
        stdio: StdioPaths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
        checkpoint: request.checkpoint,
        options: config.options(&options::given(request.options.as_ref())?)?,
    })
}

pub(super) fn state_response(status: Status) -> api::StateResponse {
    api::StateResponse {
        id: status.id,
        bundle: status.bundle.to_string_lossy().into_owned(),
        pid: status.pid,
        status: task_status(status.state).into(),
        stdin: status.stdio.stdin,
        stdout: status.stdio.stdout,
        stderr: status.stdio.stderr,
        terminal: status.stdio.terminal,
        exit_status: status.exit.map_or(0, |exit| exit.status),
        // Not set for a process that runs: Go reads its zero time from that.
        exited_at: status.exit.map(|exit| timestamp(exit.at)).unwrap_or_default(),
        ..Default::default()
    }
}

fn task_status(state: State) -> api::Status {
    match state {
        State::Created => api::Status::CREATED,
        State::Running => api::Status::RUNNING,
        State::Stopped => api::Status::STOPPED,
        State::Paused => api::Status::PAUSED,
        State::Pausing => api::Status::PAUSING,
    }
}

pub(super) fn process_info(pid: Pid) -> api::ProcessInfo {
    let mut process = api::ProcessInfo { pid: pid.pid, ..Default::default() };
    if let Some(exec_id) = pid.exec_id {
        let details = oci::ProcessDetails { exec_id, ..Default::default() };
        process.info = MessageField::some(pack(PROCESS_DETAILS, &details));
    }
    process
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::Options;
    use crate::events::Exit;

    /// Of a TTRPC error: its code and text.
    pub(crate) fn code(error: ttrpc::Error) -> (Code, String) {
        match error {
            ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
            other => panic!("not a status: {other}"),
        }
    }

    #[test]
    fn each_kind_has_its_code() {
        for (kind, expected) in [
            (Kind::InvalidArgument, Code::INVALID_ARGUMENT),
            (Kind::NotFound, Code::NOT_FOUND),
            (Kind::AlreadyExists, Code::ALREADY_EXISTS),
            (Kind::FailedPrecondition, Code::FAILED_PRECONDITION),
            (Kind::Unimplemented, Code::UNIMPLEMENTED),
            (Kind::DeadlineExceeded, Code::DEADLINE_EXCEEDED),
            (Kind::Unavailable, Code::UNAVAILABLE),
            (Kind::Unknown, Code::UNKNOWN),
        ] {
            let error = Error::new(kind, "the text");
            assert_eq!(code(status(&error)), (expected, "the text".to_string()));
        }
    }

    #[test]
    fn timestamps_keep_their_nanoseconds() {
        let stamp = timestamp(UNIX_EPOCH + Duration::new(12, 345)).unwrap();
        assert_eq!((stamp.seconds, stamp.nanos), (12, 345));
    }

    #[test]
    fn mounts_are_the_same_both_ways() {
        let mount = RootfsMount {
            fstype: "overlay".into(),
            source: "overlay".into(),
            target: "sub".into(),
            options: vec!["lowerdir=/a:/b".into(), "ro".into()],
        };
        assert_eq!(rootfs_mount(api_mount(mount.clone())), mount);
    }

    #[test]
    fn a_request_without_exec_id_means_the_init() {
        assert_eq!(target("web".into(), String::new()).exec, None);
        assert_eq!(target("web".into(), "e".into()).exec.as_deref(), Some("e"));
    }

    #[test]
    fn options_come_on_top_of_the_configuration() {
        let request = |any| api::CreateTaskRequest {
            id: "web".into(),
            bundle: "/b".into(),
            stdout: "/out".into(),
            terminal: true,
            options: MessageField::some(any),
            ..Default::default()
        };
        let runc = oci::Options { io_uid: 5, ..Default::default() };
        let runc = request(pack("containerd.runc.v1.Options", &runc));
        let created = create_container(runc, &Config::default()).unwrap();
        assert_eq!(created.options, Options { io_uid: 5, ..Options::default() });
        assert_eq!((created.stdio.stdout.as_str(), created.stdio.terminal), ("/out", true));
        let error = create_container(request(any("acme.Options", vec![])), &Config::default());
        assert_eq!(error.unwrap_err().kind(), Kind::InvalidArgument);
    }

    #[test]
    fn json_is_taken_only_with_its_type() {
        let process = MessageField::some(any(PROCESS, b"{}".to_vec()));
        assert_eq!(json(process.clone(), PROCESS, "process").unwrap(), b"{}");
        assert!(json(process, RESOURCES, "resources").is_err());
        let none = json(MessageField::none(), PROCESS, "process").unwrap_err();
        assert_eq!((none.kind(), none.to_string()), (Kind::InvalidArgument, "no process".into()));
    }

    fn status_of(state: State, exit: Option<Exit>) -> api::StateResponse {
        state_response(Status {
            id: "e".into(),
            bundle: "/b".into(),
            pid: 9,
            state,
            stdio: StdioPaths { stdin: "/in".into(), ..Default::default() },
            exit,
        })
    }

    #[test]
    fn a_running_process_has_no_exit_time() {
        let response = status_of(State::Running, None);
        assert!(response.exited_at.is_none());
        assert_eq!((response.id.as_str(), response.pid), ("e", 9));
        assert_eq!((response.bundle.as_str(), response.stdin.as_str()), ("/b", "/in"));
        assert_eq!(response.status.enum_value(), Ok(api::Status::RUNNING));
    }

    #[test]
    fn a_stopped_process_has_status_and_time() {
        let at = UNIX_EPOCH + Duration::from_secs(3);
        let response = status_of(State::Stopped, Some(Exit { status: 137, at }));
        assert_eq!((response.exit_status, response.exited_at.seconds), (137, 3));
        let numbers = [State::Created, State::Stopped, State::Paused, State::Pausing]
            .map(|state| status_of(state, None).status.value());
        assert_eq!(numbers, [1, 3, 4, 5]);
    }

    #[test]
    fn the_process_of_an_exec_says_so() {
        let plain = process_info(Pid { pid: 1, exec_id: None });
        assert!(plain.pid == 1 && plain.info.is_none());
        let exec = process_info(Pid { pid: 2, exec_id: Some("e1".into()) });
        assert_eq!(exec.info.type_url, "containerd.runc.v1.ProcessDetails");
        assert_eq!(exec.info.value, b"\x0a\x02e1");
    }
}
