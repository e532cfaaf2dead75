//! What an image is, judged by its content. Images are hostile: anything that points outside itself is refused.

use std::io::{self, Read, Seek, SeekFrom};

use ferrovirt_domain::DiskFormat;

/// An accepted image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its format.
    pub format: DiskFormat,
    /// Bytes that the guest sees.
    pub virtual_size: u64,
}

/// Why an image is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It could not be read.
    #[error("cannot read the image")]
    Read(#[from] io::Error),
    /// It is of a format that is not accepted.
    #[error("the image is in the format {0}; convert it to qcow2 or raw")]
    Format(&'static str),
    /// It is a qcow2 that is not accepted.
    #[error("the qcow2 image {0}")]
    Qcow2(&'static str),
    /// It has no bytes.
    #[error("the image is empty")]
    Empty,
}

/// Largest virtual disk that is accepted; larger ones are attacks on whoever allocates tables for them.
const MAX_SIZE: u64 = 64 << 40;
/// Bytes of the beginning that are looked at.
const HEAD: usize = 4096;

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// What a guest may make of its own disk.
const LUKS: &str = "luks";

/// Judges an image by its content.
pub fn detect(image: &mut (impl Read + Seek)) -> Result<Image, Refused> {
    let length = image.seek(SeekFrom::End(0))?;
    image.seek(SeekFrom::Start(0))?;
    let mut head = Vec::with_capacity(HEAD);
    image.take(HEAD as u64).read_to_end(&mut head)?;
    if length == 0 {
        return Err(Refused::Empty);
    }
    if head.starts_with(b"QFI\xfb") {
        return qcow2(&head);
    }
    if let Some(name) = foreign(&head) {
        return Err(Refused::Format(name));
    }
    if length > MAX_SIZE {
        return Err(Refused::Format("raw, but absurdly large"));
    }
    // QEMU shows the last partial sector filled up with zeros.
    Ok(Image {
        format: DiskFormat::Raw,
        virtual_size: length.next_multiple_of(512),
    })
}

/// Whether a disk that is used as raw begins like one. Its guest writes that beginning.
pub fn is_raw(disk: &mut (impl Read + Seek)) -> io::Result<bool> {
    match detect(disk) {
        Ok(image) => Ok(image.format == DiskFormat::Raw),
        Err(Refused::Format(name)) => Ok(name == LUKS),
        Err(Refused::Read(source)) => Err(source),
        Err(Refused::Qcow2(_) | Refused::Empty) => Ok(false),
    }
}

/// Known formats that would boot as garbage if they were taken for raw.
fn foreign(head: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    let known: [(&'static str, usize, &[u8]); 9] = [
        ("vmdk", 0, b"KDMV"),
        ("vmdk", 0, b"COWD"),
        ("vmdk", 0, b"# Disk DescriptorFile"),
        ("vhdx", 0, b"vhdxfile"),
        ("vpc", 0, b"conectix"),
        ("vdi", 0x40, &[0x7f, 0x10, 0xda, 0xbe]),
        ("qed", 0, b"QED\0"),
        (LUKS, 0, b"LUKS\xba\xbe"),
        ("parallels", 0, b"WithoutFreeSpace"),
    ];
    known
        .iter()
        .find(|(_, offset, magic)| at(*offset, magic))
        .map(|(name, ..)| *name)
}

fn qcow2(head: &[u8]) -> Result<Image, Refused> {
    let field = |offset: usize, len: usize| -> Result<u64, Refused> {
        let bytes = head
            .get(offset..offset + len)
            .ok_or(Refused::Qcow2("has a truncated header"))?;
        Ok(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let version = field(4, 4)?;
    if version == 1 {
        return Err(Refused::Format("qcow (version 1)"));
    }
    if !(2..=3).contains(&version) {
        return Err(Refused::Qcow2("has an unknown version"));
    }
    if field(8, 8)? != 0 || field(16, 4)? != 0 {
        return Err(Refused::Qcow2("has a backing file; flatten it with qemu-img convert"));
    }
    if !(9..=21).contains(&field(20, 4)?) {
        return Err(Refused::Qcow2("has an invalid cluster size"));
    }
    let virtual_size = field(24, 8)?;
    if virtual_size == 0 {
        return Err(Refused::Empty);
    }
    if virtual_size > MAX_SIZE {
        return Err(Refused::Qcow2("is absurdly large"));
    }
    if field(32, 4)? != 0 {
        return Err(Refused::Qcow2("is encrypted"));
    }
    if field(36, 4)? > 4 << 20 {
        return Err(Refused::Qcow2("has an absurdly large table"));
    }
    if version == 3 {
        let features = field(72, 8)?;
        if features & EXTERNAL_DATA != 0 {
            return Err(Refused::Qcow2("keeps its data in another file"));
        }
        if features & CORRUPT != 0 {
            return Err(Refused::Qcow2("is marked as corrupt; repair it with qemu-img check"));
        }
        if features & !(DIRTY | COMPRESSION_TYPE | EXTENDED_L2) != 0 {
            return Err(Refused::Qcow2("needs features that are not known"));
        }
        extensions(&field)?;
    }
    Ok(Image {
        format: DiskFormat::Qcow2,
        virtual_size,
    })
}

fn extensions(field: &dyn Fn(usize, usize) -> Result<u64, Refused>) -> Result<(), Refused> {
    let mut offset = usize::try_from(field(100, 4)?).unwrap_or(usize::MAX);
    if !(104..HEAD).contains(&offset) {
        return Err(Refused::Qcow2("has an invalid header length"));
    }
    while offset + 8 <= HEAD {
        let (kind, length) = (field(offset, 4)?, field(offset + 4, 4)?);
        if kind == 0 {
            return Ok(());
        }
        if kind == u64::from(EXTENSION_DATA_FILE) {
            return Err(Refused::Qcow2("names an external data file"));
        }
        offset = usize::try_from(length.next_multiple_of(8))
            .ok()
            .and_then(|n| n.checked_add(offset + 8))
            .unwrap_or(HEAD);
    }
    Err(Refused::Qcow2("has too many header extensions"))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn header(edit: impl Fn(&mut Vec<u8>)) -> Result<Image, Refused> {
        let mut head = vec![0; 65536];
        head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        head[20..24].copy_from_slice(&16u32.to_be_bytes());
        head[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
        head[36..40].copy_from_slice(&2u32.to_be_bytes());
        head[100..104].copy_from_slice(&104u32.to_be_bytes());
        edit(&mut head);
        detect(&mut Cursor::new(head))
    }

    #[test]
    fn accepts_a_plain_qcow2() {
        assert_eq!(
            header(|_| ()).unwrap(),
            Image {
                format: DiskFormat::Qcow2,
                virtual_size: 1 << 30
            }
        );
    }

    #[test]
    fn refuses_what_points_outside_or_lies() {
        type Edit = fn(&mut Vec<u8>);
        let cases: [(&str, Edit); 11] = [
            ("backing file", |h| h[15] = 200),
            ("backing file", |h| h[19] = 9),
            ("another file", |h| h[79] = 4),
            ("corrupt", |h| h[79] = 2),
            ("not known", |h| h[72] = 1),
            ("encrypted", |h| h[35] = 1),
            ("absurdly large", |h| h[24] = 1),
            ("cluster size", |h| h[23] = 60),
            ("large table", |h| h[36] = 1),
            ("external data file", |h| h[104..112].copy_from_slice(b"DATA\0\0\0\x08")),
            ("truncated", |h| h.truncate(30)),
        ];
        for (expected, edit) in cases {
            let error = header(edit).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should contain {expected}");
        }
    }

    #[test]
    fn tells_raw_from_foreign_formats() {
        let image = detect(&mut Cursor::new(vec![0; 1000])).unwrap();
        assert_eq!(
            image,
            Image {
                format: DiskFormat::Raw,
                virtual_size: 1024
            }
        );
        for magic in [&b"KDMV"[..], b"vhdxfile", b"conectix", b"LUKS\xba\xbe"] {
            assert!(matches!(
                detect(&mut Cursor::new(magic.to_vec())),
                Err(Refused::Format(_))
            ));
        }
        assert!(matches!(detect(&mut Cursor::new(Vec::new())), Err(Refused::Empty)));
    }

    #[test]
    fn a_guest_s_own_encryption_is_raw() {
        for (head, expected) in [
            (&b"data"[..], true),
            (b"LUKS\xba\xbe", true),
            (b"QFI\xfb", false),
            (b"KDMV", false),
            (b"", false),
        ] {
            assert_eq!(is_raw(&mut Cursor::new(head)).unwrap(), expected, "{head:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let mut image = b"QFI\xfb\0\0\0\x03".to_vec();
            image.extend(bytes);
            let _ = detect(&mut Cursor::new(image));
        }
    }
}
