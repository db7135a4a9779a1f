//! The shim without containerd: real containers of real bundles, each test in a process of its own
//! (`alone`) which must leave the machine as it was. Needs root and a static busybox.

mod alone;
mod apparmor;
mod attacks;
mod bad;
mod copyup;
mod devices;
mod fields;
mod holder;
mod hooks;
mod hooks_rootfs;
mod life;
mod limits;
mod loggers;
mod matrix;
mod mounts;
mod numbers;
mod oom;
mod options;
mod pod;
mod rdt;
mod refused;
mod rounds;
mod runc;
mod sandbox;
mod scopes;
mod seams;
mod seccomp;
mod seen;
mod stdio;
mod streams;
mod stubborn;
mod unified;
mod userlocks;
mod usernamespace;
mod userpods;
