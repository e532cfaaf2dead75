//! The pod runner: the part of a kubelet that our own pods need.

mod cgroup;
pub mod config;
mod container;
pub mod init;
pub mod network;
mod pod;
mod privileges;
mod probes;
pub mod process;
pub mod spec;
mod state;
mod status;
mod sys;
mod volumes;
