//! The runtime options of a request: runc's own message, or a TOML table, or the path of one.
//!
//! It reads no file: that is for whoever starts the server.

use std::path::PathBuf;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci;

use super::convert::{decode, message_name};
use super::proto::runtimeoptions;
use crate::config::{Given, Table};
use crate::error::{Doing, Error, Result};

pub(super) const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";
pub(super) const RUNTIME_OPTIONS: &str = "runtimeoptions.v1.Options";

/// What `any` says; nothing where there is nothing. Of a type that we do not know: an error.
pub fn given(any: Option<&Any>) -> Result<Given> {
    let Some(any) = any else { return Ok(Given::default()) };
    match message_name(any) {
        "" => Ok(Given::default()),
        RUNC_OPTIONS => runc(&decode(any, "options")?),
        RUNTIME_OPTIONS => {
            let options: runtimeoptions::Options = decode(any, "options")?;
            if options.config_body.is_empty() {
                let path = Some(options.config_path).filter(|path| !path.is_empty());
                return Ok(Given { path: path.map(PathBuf::from), table: Table::default() });
            }
            let table = Table::parse(&options.config_body).doing(|| "options")?;
            Ok(Given { path: None, table })
        }
        _ => Err(Error::invalid(format!("options have the unknown type {:?}", any.type_url))),
    }
}

/// Whether a message may be options at all: `start` gets other things in the same list.
pub fn is_known(any: &Any) -> bool {
    [RUNC_OPTIONS, RUNTIME_OPTIONS].contains(&message_name(any))
}

/// Of a field that is not set, nobody can tell that it is: none overrides anything.
fn runc(options: &oci::Options) -> Result<Given> {
    let yes = |value: bool| value.then_some(true);
    let id = |value: u32| Some(value).filter(|id| *id != 0);
    let table = Table {
        no_pivot_root: yes(options.no_pivot_root),
        no_new_keyring: yes(options.no_new_keyring),
        systemd_cgroup: yes(options.systemd_cgroup),
        io_uid: id(options.io_uid),
        io_gid: id(options.io_gid),
        shim_cgroup: Some(options.shim_cgroup.clone()).filter(|path| !path.is_empty()),
        ..Table::default()
    };
    Ok(Given { path: None, table })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::service::convert::{any, pack};

    #[test]
    fn runc_options_are_understood() {
        let runc = oci::Options {
            no_pivot_root: true,
            no_new_keyring: true,
            systemd_cgroup: true,
            io_uid: 5,
            io_gid: 6,
            shim_cgroup: "/s".into(),
            binary_name: "/usr/bin/runc".into(),
            task_api_address: "ttrpc+unix:///s".into(),
            ..Default::default()
        };
        let table = Table {
            no_pivot_root: Some(true),
            no_new_keyring: Some(true),
            systemd_cgroup: Some(true),
            io_uid: Some(5),
            io_gid: Some(6),
            shim_cgroup: Some("/s".into()),
            ..Table::default()
        };
        let want = Given { path: None, table };
        assert_eq!(given(Some(&pack(RUNC_OPTIONS, &runc))).unwrap(), want);
        let empty = pack(RUNC_OPTIONS, &oci::Options::default());
        for nothing in [None, Some(&empty), Some(&any("google.protobuf.Empty", vec![]))] {
            assert_eq!(given(nothing).unwrap(), Given::default());
        }
    }

    fn table(path: &str, body: &str) -> Result<Given> {
        let options = runtimeoptions::Options {
            type_url: "whatever".into(),
            config_path: path.into(),
            config_body: body.into(),
            ..Default::default()
        };
        given(Some(&pack("type.googleapis.com/runtimeoptions.v1.Options", &options)))
    }

    #[test]
    fn a_table_or_the_path_of_one_is_understood() {
        let want = Table { io_gid: Some(7), systemd_cgroup: Some(true), ..Table::default() };
        let body = "IoGid = 7 # ours\n  SystemdCgroup = true\n";
        let body = Given { path: None, table: table("", body).unwrap().table };
        assert_eq!(body, Given { path: None, table: want });
        let path = Given { path: Some("/etc/x.toml".into()), ..Given::default() };
        assert_eq!(table("/etc/x.toml", "").unwrap(), path);
        // containerd sends the one or the other.
        assert_eq!(table("/etc/x.toml", "io_gid = 1").unwrap().path, None);
        let error = table("", "nested = {}").unwrap_err().to_string();
        assert!(error.starts_with("options: TOML, line 1: unknown field `nested`"), "{error}");
    }

    #[test]
    fn unknown_options_are_refused_by_name() {
        let error = given(Some(&any("acme.Options", vec![]))).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert_eq!(error.to_string(), "options have the unknown type \"acme.Options\"");
        let error = given(Some(&any(RUNC_OPTIONS, vec![0xff]))).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(is_known(&any(RUNC_OPTIONS, vec![])) && !is_known(&any("acme.Options", vec![])));
    }
}
