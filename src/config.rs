//! Our own settings: the node's file, a file that containerd names, and the table it sends.
//!
//! One schema for all three; later ones win, key by key. A key that nobody knows is an error that
//! names it. Files are read before a server serves, never after: a path may hang.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::api::Options;
use crate::error::{Doing, Error, Kind, Result};

/// The node's file. There need not be one.
pub const FILE: &str = "/etc/containerd-shim-rs-v2/config.toml";

/// Of a file, in bytes.
const MAX_LEN: u64 = 64 << 10;

/// What a file or a table says. Keys may also have the names of runc's options.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Table {
    #[serde(alias = "NoPivotRoot")]
    pub no_pivot_root: Option<bool>,
    #[serde(alias = "NoNewKeyring")]
    pub no_new_keyring: Option<bool>,
    #[serde(alias = "SystemdCgroup")]
    pub systemd_cgroup: Option<bool>,
    #[serde(alias = "IoUid")]
    pub io_uid: Option<u32>,
    #[serde(alias = "IoGid")]
    pub io_gid: Option<u32>,
    #[serde(alias = "ShimCgroup")]
    pub shim_cgroup: Option<String>,
    pub loggers: Option<Vec<PathBuf>>,

    // A table that was written for runc has these, and nothing here could do otherwise: there is no
    // runc and no CRIU to be found, and no Task API but ours.
    #[serde(alias = "BinaryName")]
    pub binary_name: IgnoredAny,
    #[serde(alias = "Root")]
    pub root: IgnoredAny,
    #[serde(alias = "CriuImagePath")]
    pub criu_image_path: IgnoredAny,
    #[serde(alias = "CriuWorkPath")]
    pub criu_work_path: IgnoredAny,
    #[serde(alias = "CriuPath")]
    pub criu_path: IgnoredAny,
    #[serde(alias = "TaskApiAddress")]
    pub task_api_address: IgnoredAny,
    #[serde(alias = "TaskApiVersion")]
    pub task_api_version: IgnoredAny,
    /// containerd's own, beside the keys that are meant for us.
    #[serde(alias = "TypeUrl")]
    pub type_url: IgnoredAny,
}

/// What came with a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// A file to be read before the table.
    pub path: Option<PathBuf>,
    pub table: Table,
}

/// What a server has read.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The node's file.
    node: Table,
    /// The file that containerd named when it started the server.
    named: Option<(PathBuf, Table)>,
}

impl Table {
    /// From TOML.
    pub fn parse(text: &[u8]) -> Result<Table> {
        let text =
            std::str::from_utf8(text).map_err(|error| Error::invalid(format!("TOML: {error}")))?;
        let table: Table = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
            Error::invalid(format!("TOML, line {line}: {}", error.message()))
        })?;
        for dir in table.loggers.iter().flatten() {
            if !dir.is_absolute() || dir.components().any(|part| part == Component::ParentDir) {
                return Err(Error::invalid(format!("loggers: {dir:?} is no absolute path")));
            }
        }
        Ok(table)
    }

    /// From a file. `None`: there is none.
    fn read(path: &Path) -> Result<Option<Table>> {
        let doing = || format!("configuration {path:?}");
        // O_NONBLOCK: a FIFO must not hang us.
        let open = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = match open {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            open => open.doing(|| "open").doing(doing)?,
        };
        if !file.metadata().doing(|| "fstat").doing(doing)?.is_file() {
            return Err(Error::invalid("it is not a regular file")).doing(doing);
        }
        let mut text = Vec::new();
        file.take(MAX_LEN + 1).read_to_end(&mut text).doing(|| "read").doing(doing)?;
        if text.len() as u64 > MAX_LEN {
            return Err(Error::invalid(format!("more than {MAX_LEN} bytes"))).doing(doing);
        }
        Table::parse(&text).doing(doing).map(Some)
    }

    fn apply(&self, options: &mut Options) {
        fn set<T: Clone>(to: &mut T, value: &Option<T>) {
            if let Some(value) = value {
                to.clone_from(value);
            }
        }
        set(&mut options.no_pivot_root, &self.no_pivot_root);
        set(&mut options.no_new_keyring, &self.no_new_keyring);
        set(&mut options.systemd_cgroup, &self.systemd_cgroup);
        set(&mut options.io_uid, &self.io_uid);
        set(&mut options.io_gid, &self.io_gid);
        set(&mut options.shim_cgroup, &self.shim_cgroup);
        if self.loggers.is_some() {
            options.loggers.clone_from(&self.loggers);
        }
    }
}

impl Config {
    /// Reads the node's file, and the one that containerd has named, which must be there.
    pub fn read(named: Option<&Path>) -> Result<Config> {
        Config::read_from(Path::new(FILE), named)
    }

    fn read_from(node: &Path, named: Option<&Path>) -> Result<Config> {
        let node = Table::read(node)?.unwrap_or_default();
        let named = match named {
            None => None,
            Some(path) => {
                let missing = || Error::invalid(format!("configuration {path:?}: it is missing"));
                Some((path.to_owned(), Table::read(path)?.ok_or_else(missing)?))
            }
        };
        Ok(Config { node, named })
    }

    /// What holds for a request that came with `given`.
    pub fn options(&self, given: &Given) -> Result<Options> {
        let mut options = Options::default();
        self.node.apply(&mut options);
        if let Some(path) = &given.path {
            let (_, table) =
                self.named.as_ref().filter(|(have, _)| have == path).ok_or_else(|| {
                    let text = format!("configuration {path:?}: this shim was not started with it");
                    Error::new(Kind::FailedPrecondition, text)
                })?;
            table.apply(&mut options);
        }
        given.table.apply(&mut options);
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let error = Table::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        error.to_string()
    }

    #[test]
    fn a_table_has_our_keys_and_runcs() {
        let ours = "no_new_keyring = true\nio_uid = 5\nio_gid = 6\nshim_cgroup = \"/s\"\n\
                    loggers = [\"/usr/local/bin\", '/opt/log/']\n";
        let runcs = "BinaryName = '/usr/bin/x'\nNoNewKeyring = true\nIoUid = 5 # ours\nIoGid = 6\n\
                     ShimCgroup = '/s'\nRoot = ''\nCriuPath = ''\nCriuImagePath = ''\n\
                     CriuWorkPath = ''\nTaskApiAddress = ''\nTaskApiVersion = 3\n\
                     TypeUrl = 'x'\nloggers = ['/usr/local/bin', '/opt/log/']";
        let [ours, runcs] = [ours, runcs].map(|text| Table::parse(text.as_bytes()).unwrap());
        assert_eq!(ours, runcs);
        let mut options = Options::default();
        ours.apply(&mut options);
        let want = Options {
            no_new_keyring: true,
            io_uid: 5,
            io_gid: 6,
            shim_cgroup: "/s".into(),
            loggers: Some(vec!["/usr/local/bin".into(), "/opt/log/".into()]),
            ..Options::default()
        };
        assert_eq!(options, want);
        assert_eq!(Table::parse(b"").unwrap(), Table::default());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let unknown = refused("io_uid = 1\nno_new_keyrings = true\n");
        assert!(unknown.starts_with("TOML, line 2: unknown field `no_new_keyrings`"), "{unknown}");
        assert!(refused("[options]\nio_uid = 1").contains("`options`"));
        assert!(refused("\n\nio_uid = -1").starts_with("TOML, line 3: "));
        assert!(refused("io_uid = 1\nIoUid = 2").contains("duplicate field"));
        assert!(refused("io_uid 1").starts_with("TOML, line 1: "));
        assert!(refused("loggers = ['bin']").contains("\"bin\" is no absolute path"));
        assert!(refused("loggers = ['/a/../b']").contains("/a/../b"));
        assert!(Table::parse(&[0xff]).is_err());
    }

    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Dir {
            Dir(nix::unistd::mkdtemp(&std::env::temp_dir().join("config-XXXXXX")).unwrap())
        }

        fn file(&self, name: &str, text: &str) -> PathBuf {
            std::fs::write(self.0.join(name), text).unwrap();
            self.0.join(name)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn later_ones_win_key_by_key() {
        let dir = Dir::new();
        let text = "io_uid = 1\nio_gid = 1\nno_new_keyring = true\nloggers = []";
        let node = dir.file("node", text);
        let named = dir.file("named", "io_gid = 2\nno_new_keyring = false");
        let config = Config::read_from(&node, Some(&named)).unwrap();
        let table = Table { loggers: Some(vec!["/a".into()]), ..Table::default() };
        let given = Given { path: Some(named), table };
        let want = Options {
            io_uid: 1,
            io_gid: 2,
            loggers: Some(vec!["/a".into()]),
            ..Options::default()
        };
        assert_eq!(config.options(&given).unwrap(), want);
        // Who names no file does not get the one of others.
        let want = Options {
            io_uid: 1,
            io_gid: 1,
            no_new_keyring: true,
            loggers: Some(vec![]),
            ..Options::default()
        };
        assert_eq!(config.options(&Given::default()).unwrap(), want);
        let other = Given { path: Some("/other".into()), ..Given::default() };
        let error = config.options(&other).unwrap_err();
        assert_eq!(
            error.to_string(),
            "configuration \"/other\": this shim was not started with it"
        );
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let dir = Dir::new();
        let absent = dir.0.join("absent");
        let config = Config::read_from(&absent, None).unwrap();
        assert_eq!(config.options(&Given::default()).unwrap(), Options::default());
        let fifo = dir.0.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let large = dir.file("large", &"#".repeat(70_000));
        let bad = dir.file("bad", "loggers = true");
        for (path, want) in [
            (&absent, "it is missing"),
            (&fifo, "it is not a regular file"),
            (&dir.0, "it is not a regular file"),
            (&large, "more than 65536 bytes"),
            (&bad, "TOML, line 1: invalid type: boolean `true`"),
        ] {
            let error = Config::read_from(&dir.0.join("none"), Some(path)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("configuration {path:?}: {want}")), "{error}");
            if *path != absent {
                assert!(Config::read_from(path, None).is_err());
            }
        }
    }
}
