//! Fixtures in temporary directories, and real cgroups that the tests remove again.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::plan::cgroup::{Live, limits};

mod fixture;
mod real_v1;
mod real_v2;

/// A directory that goes with the test.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Temp {
        let path = std::env::temp_dir().join(format!("rs-test-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Temp(path)
    }

    /// Files below it, with what they say.
    fn write(&self, files: &[(&str, &str)]) {
        for (file, text) in files {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap()
    }

    /// It as a hierarchy, with a container in `box`.
    fn at(&self, controllers: &[&str]) -> CgroupDir {
        CgroupDir {
            controllers: controllers.iter().map(|name| name.to_string()).collect(),
            mountpoint: self.0.clone(),
            path: self.0.join("box"),
        }
    }

    fn v2(&self) -> Cgroups {
        Cgroups { unified: true, dirs: vec![self.at(&[])] }
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a child would do.
fn carry_out(ops: &[Op]) -> std::io::Result<()> {
    let path = |path: &CString| PathBuf::from(path.to_str().unwrap());
    for op in ops {
        match op {
            Op::WriteFile { path: file, data } => fs::write(path(file), data.as_bytes())?,
            Op::RemoveCgroup { path } => {
                crate::child::cgroup::remove(path, &mut |_| false).map_err(|fail| fail.1)?;
            }
            Op::Exit => {}
            other => panic!("{other}"),
        }
    }
    Ok(())
}
