//! Disks of the guest, prepared before its domain is defined.

mod claim;
mod cloud_init;
mod files;
mod find;
mod format;
mod host;
mod iso;
mod qcow2;
mod tags;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ferrovirt_core::machine::{Claim, Disk, DiskDevice, Machine, Source};
use ferrovirt_domain::{Backing, DiskFile, DiskFormat};
use nix::fcntl::OFlag;

use crate::children::Children;
use crate::downward_metrics;
use crate::hooks::Hooks;
use crate::layout::Layout;

pub use tags::tell as tell_tags;

/// A disk whose bytes are ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Name of disk and volume.
    pub name: String,
    /// What QEMU opens.
    pub file: DiskFile,
    /// Bytes the guest sees.
    pub size: u64,
}

/// A disk that cannot be prepared.
#[derive(Debug, thiserror::Error)]
#[error("cannot prepare volume {volume:?}")]
pub struct Error {
    volume: String,
    #[source]
    source: Problem,
}

/// What is wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Cloud-init.
    #[error(transparent)]
    CloudInit(#[from] cloud_init::Error),
    /// No image in the container image.
    #[error(transparent)]
    Find(#[from] find::Error),
    /// An image that is not accepted.
    #[error("image {} is refused", path.display())]
    Refused {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: format::Refused,
    },
    /// A host disk.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// A claim.
    #[error(transparent)]
    Claim(#[from] claim::Error),
    /// Files of an object.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// A file could not be made.
    #[error("cannot create {}", path.display())]
    Create {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An empty drive.
    #[error("the drive has no medium")]
    NoMedium,
    /// `cache: none` without `O_DIRECT`.
    #[error("cache mode none needs O_DIRECT, which {} does not support; choose writethrough or writeback", path.display())]
    NoDirectIo {
        /// Where.
        path: PathBuf,
    },
}

/// The files of a machine's kernel of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelFiles {
    /// The kernel.
    pub kernel: Option<PathBuf>,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
}

/// A kernel that is not there.
#[derive(Debug, thiserror::Error)]
#[error("kernelBoot: cannot use {path}")]
pub struct NoKernel {
    path: String,
    #[source]
    source: find::Error,
}

/// Finds kernel and initial RAM disk in their image, without leaving it.
pub fn kernel(layout: &Layout, machine: &Machine) -> Result<KernelFiles, NoKernel> {
    let Some(boot) = &machine.kernel_boot else {
        return Ok(KernelFiles::default());
    };
    let root = layout.kernel_boot();
    let find = |path: &Option<String>| {
        let path = path.as_ref();
        let found = path.map(|path| {
            find::image(&root, Some(path))
                .map(|(_, file)| file)
                .map_err(|source| NoKernel {
                    path: path.clone(),
                    source,
                })
        });
        found.transpose()
    };
    Ok(KernelFiles {
        kernel: find(&boot.kernel)?,
        initrd: find(&boot.initrd)?,
    })
}

/// Prepares all disks, one after the other; the first that fails is reported.
pub async fn prepare(
    layout: &Layout,
    children: &Children,
    hooks: &Hooks,
    machine: &Machine,
) -> Result<Vec<Prepared>, Error> {
    let mut prepared = Vec::with_capacity(machine.disks.len());
    // A drive without a medium is ready.
    for disk in machine.disks.iter().filter(|disk| disk.source != Source::Empty) {
        let ready = prepare_one(layout, children, hooks, machine, disk).await;
        prepared.push(ready.map_err(|source| Error {
            volume: disk.name.clone(),
            source,
        })?);
    }
    Ok(prepared)
}

async fn prepare_one(
    layout: &Layout,
    children: &Children,
    hooks: &Hooks,
    machine: &Machine,
    disk: &Disk,
) -> Result<Prepared, Problem> {
    let (path, format, size) = match &disk.source {
        Source::ContainerDisk { path, .. } => return container_disk(layout, disk, path.as_deref()),
        Source::Claim(claim) => return claim_disk(layout, disk, claim),
        Source::EmptyDisk { capacity } => {
            let path = layout.empty_disk(&disk.name);
            create(&path, *capacity, None)?;
            (path, DiskFormat::Qcow2, *capacity)
        }
        Source::HostDisk {
            path,
            create,
            shared: _,
        } => {
            let (path, size) = host::disk(layout, &disk.name, path, *create)?;
            // Never detected: a guest could write a header that names files of the node.
            (path, DiskFormat::Raw, size)
        }
        Source::CloudInit(data) => {
            let path = cloud_init::build(layout, children, hooks, machine, &disk.name, data, &[]).await?;
            let size = std::fs::metadata(&path).map(|meta| meta.len()).unwrap_or(0);
            (path, DiskFormat::Raw, size)
        }
        Source::DownwardMetrics => {
            let path = layout.downward_metrics_disk();
            let made = downward_metrics::create_disk(&path);
            made.map_err(|source| Problem::Create {
                path: path.clone(),
                source,
            })?;
            (path, DiskFormat::Raw, downward_metrics::DISK_SIZE)
        }
        Source::Files(files) => {
            let path = files::build(layout, children, &disk.name, files).await?;
            let size = std::fs::metadata(&path).map(|meta| meta.len()).unwrap_or(0);
            (path, DiskFormat::Raw, size)
        }
        Source::Empty => return Err(Problem::NoMedium),
    };
    ready(disk, size, path, format, None)
}

fn container_disk(layout: &Layout, disk: &Disk, path: Option<&str>) -> Result<Prepared, Problem> {
    let (mut file, base) = find::image(&layout.image_volume(disk.volume_index), path)?;
    let image = format::detect(&mut file).map_err(|source| Problem::Refused {
        path: base.clone(),
        source,
    })?;
    if matches!(disk.device, DiskDevice::Cdrom { .. }) {
        return ready(disk, image.virtual_size, base, image.format, None);
    }
    let overlay = layout.overlay(&disk.name);
    create(&overlay, image.virtual_size, Some((&base, image.format)))?;
    let backing = Backing {
        path: base,
        block: false,
        format: image.format,
    };
    ready(disk, image.virtual_size, overlay, DiskFormat::Qcow2, Some(backing))
}

fn claim_disk(layout: &Layout, disk: &Disk, claim: &Claim) -> Result<Prepared, Problem> {
    let mut found = claim::find(layout, &disk.name, claim)?;
    // What the guest cannot write to, an installer's image for example, would gain nothing.
    if !disk.readonly {
        claim::follow(&mut found, claim);
    }
    let claim::Found { path, block, size } = found;
    if claim.ephemeral {
        let overlay = layout.overlay(&disk.name);
        create(&overlay, size, Some((&path, DiskFormat::Raw)))?;
        let format = DiskFormat::Raw;
        let backing = Some(Backing { path, block, format });
        return ready(disk, size, overlay, DiskFormat::Qcow2, backing);
    }
    // Never detected: a guest could write a header that names other files.
    let mut prepared = ready(disk, size, path, DiskFormat::Raw, None)?;
    prepared.file.block = block;
    Ok(prepared)
}

fn ready(
    disk: &Disk,
    size: u64,
    path: PathBuf,
    format: DiskFormat,
    backing: Option<Backing>,
) -> Result<Prepared, Problem> {
    let files: Vec<&Path> = [Some(path.as_path()), backing.as_ref().map(|below| below.path.as_path())]
        .into_iter()
        .flatten()
        .collect();
    let cache = cache(disk, &files)?;
    let allocated = std::fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.blocks() * 512 >= meta.len());
    Ok(Prepared {
        name: disk.name.clone(),
        file: DiskFile {
            path,
            block: false,
            format,
            backing,
            cache,
            // The file of an overlay holds what the guest has written so far.
            allocated: allocated && format == DiskFormat::Raw,
        },
        size,
    })
}

fn create(path: &Path, size: u64, backing: Option<(&Path, DiskFormat)>) -> Result<(), Problem> {
    qcow2::create(path, size, backing).map_err(|source| Problem::Create {
        path: path.to_owned(),
        source,
    })
}

/// The mode the user chose, or `none` where every file supports `O_DIRECT`, or `writethrough`.
fn cache(disk: &Disk, files: &[&Path]) -> Result<String, Problem> {
    let without = files.iter().find(|file| !direct_io(file));
    match (disk.cache.as_deref(), without) {
        (Some("none"), Some(path)) => Err(Problem::NoDirectIo {
            path: path.to_path_buf(),
        }),
        (Some(mode), _) => Ok(mode.to_owned()),
        (None, None) => Ok("none".to_owned()),
        (None, Some(_)) => Ok("writethrough".to_owned()),
    }
}

fn direct_io(path: &Path) -> bool {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(path)
        .is_ok()
}
