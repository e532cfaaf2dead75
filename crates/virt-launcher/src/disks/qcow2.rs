//! Writes an empty QCOW2 image, with or without a backing file.
//!
//! Layout, in clusters of 64 KiB: header, refcount table, one refcount block, L1 table. That is all an empty image
//! needs, and it saves a `qemu-img` process per disk.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ferrovirt_domain::DiskFormat;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Guest bytes per L1 entry: one L2 table of 8192 entries.
const PER_L1_ENTRY: u64 = CLUSTER * (CLUSTER / 8);
const HEADER_LENGTH: usize = 104;
const EXTENSION_BACKING_FORMAT: u32 = 0xE279_2ACA;
/// QEMU accepts no longer name.
const MAX_BACKING_NAME: usize = 1023;

/// Writes the image beside `path` and renames it there, so that `path` is whole or absent.
pub fn create(path: &Path, virtual_size: u64, backing: Option<(&Path, DiskFormat)>) -> io::Result<()> {
    let bytes = encode(virtual_size, backing)?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let staging = path.with_extension("new");
    fs::write(&staging, bytes)?;
    fs::rename(staging, path)
}

fn encode(virtual_size: u64, backing: Option<(&Path, DiskFormat)>) -> io::Result<Vec<u8>> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
    let virtual_size = virtual_size.next_multiple_of(512);
    let l1_entries = virtual_size.div_ceil(PER_L1_ENTRY);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER).max(1);
    let clusters = 3 + l1_clusters;
    if clusters > CLUSTER / 2 {
        return Err(invalid("the disk is too large"));
    }

    let mut header = Vec::with_capacity(512);
    header.extend(b"QFI\xfb");
    header.extend(3u32.to_be_bytes());
    // Offset and length of the backing file's name are filled in below.
    header.extend([0; 12]);
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(virtual_size.to_be_bytes());
    header.extend(0u32.to_be_bytes()); // no encryption
    header.extend(
        u32::try_from(l1_entries)
            .map_err(|_| invalid("the disk is too large"))?
            .to_be_bytes(),
    );
    header.extend((3 * CLUSTER).to_be_bytes()); // L1 table
    header.extend(CLUSTER.to_be_bytes()); // refcount table
    header.extend(1u32.to_be_bytes()); // its clusters
    header.extend([0; 12]); // no snapshots
    header.extend([0; 24]); // no features
    header.extend(4u32.to_be_bytes()); // refcounts of 16 bits
    header.extend(104u32.to_be_bytes());
    debug_assert_eq!(header.len(), HEADER_LENGTH);
    if let Some((name, format)) = backing {
        let name = name.as_os_str().as_bytes();
        if name.len() > MAX_BACKING_NAME {
            return Err(invalid("the path of the backing file is too long"));
        }
        header.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
        header.extend(u32::try_from(format.name().len()).unwrap_or(0).to_be_bytes());
        header.extend(format.name().as_bytes());
        header.resize(header.len().next_multiple_of(8), 0);
        header.extend([0; 8]); // end of extensions
        let offset = header.len() as u64;
        header[8..16].copy_from_slice(&offset.to_be_bytes());
        header[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
        header.extend(name);
    }

    let mut image = header;
    image.resize(
        usize::try_from(clusters * CLUSTER).map_err(|_| invalid("the disk is too large"))?,
        0,
    );
    let cluster = 1usize << CLUSTER_BITS;
    image[cluster..cluster + 8].copy_from_slice(&(2 * CLUSTER).to_be_bytes());
    for (used, count) in image[2 * cluster..3 * cluster].chunks_exact_mut(2).enumerate() {
        if (used as u64) < clusters {
            count.copy_from_slice(&1u16.to_be_bytes());
        }
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn qemu_img(args: &[&str], path: &Path) -> String {
        let output = Command::new("qemu-img").args(args).arg(path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn qemu_finds_nothing_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.img");
        fs::write(&base, vec![7; 5000]).unwrap();
        for size in [512, 1 << 20, 10 << 30, 5 << 40] {
            for backing in [None, Some((base.as_path(), DiskFormat::Raw))] {
                let path = dir.path().join("sub/disk.qcow2");
                create(&path, size, backing).unwrap();
                assert!(qemu_img(&["check"], &path).contains("No errors were found"));
                let info: serde_json::Value =
                    serde_json::from_str(&qemu_img(&["info", "--output=json"], &path)).unwrap();
                assert_eq!(info["virtual-size"], size);
                assert_eq!(
                    info["full-backing-filename"].as_str(),
                    backing.map(|(path, _)| path.to_str().unwrap())
                );
                assert_eq!(info["backing-filename-format"].as_str(), backing.map(|_| "raw"));
            }
        }
    }

    #[test]
    fn an_overlay_shows_its_base_and_takes_writes() {
        let dir = tempfile::tempdir().unwrap();
        let (base, overlay) = (dir.path().join("base.img"), dir.path().join("overlay.qcow2"));
        fs::write(&base, vec![7; 1 << 20]).unwrap();
        create(&overlay, 1 << 20, Some((&base, DiskFormat::Raw))).unwrap();
        let io = |command: &str| {
            let output = Command::new("qemu-io")
                .args(["-f", "qcow2", "-c", command])
                .arg(&overlay)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && !text.contains("failed"), "{text}");
        };
        io("read -P 7 0 1M");
        io("write -P 9 4k 64k");
        io("read -P 9 4k 64k");
        assert!(qemu_img(&["check"], &overlay).contains("No errors were found"));
        assert_eq!(fs::read(&base).unwrap(), vec![7; 1 << 20]);
    }
}
