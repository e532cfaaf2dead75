//! Group `kubevirt.io/v1`.

mod config;
mod device_status;
mod devices;
mod disks;
mod domain;
mod kubevirt;
mod migration;
mod networks;
mod preset;
mod replicaset;
mod subresources;
mod vm;
mod vmi;
mod volumes;

pub use config::*;
pub use device_status::*;
pub use devices::*;
pub use disks::*;
pub use domain::*;
pub use kubevirt::*;
pub use migration::*;
pub use networks::*;
pub use preset::*;
pub use replicaset::*;
pub use subresources::*;
pub use vm::*;
pub use vmi::*;
pub use volumes::*;
