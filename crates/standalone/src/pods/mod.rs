//! The pod runner: the part of a kubelet that our own pods need.

pub mod init;
pub mod network;
mod privileges;
pub mod process;
pub mod spec;
mod sys;
