//! The disk: a header, then the report. Readers look at the header before and after: while it is written, it says so.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of the disk.
pub const DISK_SIZE: u64 = 256 << 10;
/// Signature, whether it is being written, sum of the report's bytes, their count: big-endian words.
const HEADER: usize = 16;
const SIGNATURE: &[u8; 4] = b"mvbd";

fn header(busy: bool, report: &[u8]) -> [u8; HEADER] {
    let sum = report
        .iter()
        .fold(0, |sum: u32, byte| sum.wrapping_add(u32::from(*byte)));
    let length = u32::try_from(report.len()).unwrap_or(u32::MAX);
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(SIGNATURE);
    header[4..8].copy_from_slice(&u32::from(busy).to_be_bytes());
    header[8..12].copy_from_slice(&sum.to_be_bytes());
    header[12..].copy_from_slice(&length.to_be_bytes());
    header
}

fn store(file: &File, report: &[u8]) -> io::Result<()> {
    if report.len() as u64 > DISK_SIZE - HEADER as u64 {
        return Err(io::Error::other("the report is larger than the disk"));
    }
    file.write_all_at(&header(true, report), 0)?;
    // Or a guest could see the new report below a header that is still valid.
    file.sync_data()?;
    file.write_all_at(report, HEADER as u64)?;
    file.sync_data()?;
    file.write_all_at(&header(false, report), 0)
}

/// Makes the disk with a report of nothing; what was there before is gone.
pub fn create(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let file = File::create(path)?;
    file.set_len(DISK_SIZE)?;
    store(&file, b"<metrics></metrics>\n")
}

/// Replaces the report.
pub fn write(path: &Path, report: &str) -> io::Result<()> {
    store(&OpenOptions::new().write(true).open(path)?, report.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a guest's tool does.
    fn read(path: &Path) -> String {
        let bytes = fs::read(path).unwrap();
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes.len() as u64, DISK_SIZE);
        assert_eq!(&bytes[..4], b"mvbd");
        assert_eq!(word(4), 0, "busy");
        let report = &bytes[16..16 + word(12) as usize];
        assert_eq!(word(8), report.iter().map(|byte| u32::from(*byte)).sum::<u32>());
        String::from_utf8(report.to_vec()).unwrap()
    }

    #[test]
    fn reports_replace_each_other() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/vhostmd0");
        create(&path).unwrap();
        assert_eq!(read(&path), "<metrics></metrics>\n");
        for report in ["a long report\n", "short\n"] {
            write(&path, report).unwrap();
            assert_eq!(read(&path), report);
        }
        let error = write(&path, &"x".repeat(256 << 10)).unwrap_err();
        assert!(error.to_string().contains("larger than the disk"), "{error}");
        assert_eq!(read(&path), "short\n");
    }

    #[test]
    fn a_report_being_written_says_so() {
        assert_eq!(header(true, b"ab"), *b"mvbd\0\0\0\x01\0\0\0\xc3\0\0\0\x02");
        assert_eq!(header(false, b"")[4..], [0; 12]);
    }
}
