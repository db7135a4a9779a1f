//! The stdio of processes, with real FIFOs, ptys and children: what a client reads, and when it
//! sees EOF. The tests take turns, for some count descriptors or CPU time of this process.

mod fixture;
mod life;
mod paths;
mod terminal;
