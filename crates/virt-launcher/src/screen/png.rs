//! PPM to PNG. Pure.

use std::io::Write;

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

use super::ScreenError;

/// How every PNG begins.
pub(super) const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Points on a side; more is no screen.
const MAX_SIDE: usize = 16_384;

/// A PNG of the same picture.
///
/// # Errors
/// The text is no PPM of 8 bits per colour.
pub(super) fn from_ppm(ppm: &[u8]) -> Result<Vec<u8>, ScreenError> {
    let mut rest = ppm
        .strip_prefix(b"P6")
        .ok_or(ScreenError::Unreadable("it is neither PNG nor PPM"))?;
    let mut next = || number(&mut rest).ok_or(ScreenError::Unreadable("its header has no sizes"));
    let (width, height, most) = (next()?, next()?, next()?);
    if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
        return Err(ScreenError::Unreadable("its sizes are odd"));
    }
    if most != 255 {
        return Err(ScreenError::Unreadable("its colours have no 8 bits"));
    }
    let row = width * 3;
    let points = rest
        .get(1..)
        .and_then(|points| points.get(..row * height))
        .ok_or(ScreenError::Unreadable("it is shorter than its header says"))?;
    // Screens have many equal rows: each but the first is written as its difference from the one above.
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
    let mut above: Option<&[u8]> = None;
    for line in points.chunks_exact(row) {
        match above {
            None => {
                packed.write_all(&[0])?;
                packed.write_all(line)?;
            }
            Some(above) => {
                let difference: Vec<u8> = line.iter().zip(above).map(|(a, b)| a.wrapping_sub(*b)).collect();
                packed.write_all(&[2])?;
                packed.write_all(&difference)?;
            }
        }
        above = Some(line);
    }
    let mut header = Vec::new();
    for side in [width, height] {
        // Bounded above.
        header.extend_from_slice(&u32::try_from(side).unwrap_or(u32::MAX).to_be_bytes());
    }
    // 8 bits, red green blue; the only compression and filter; not interlaced.
    header.extend_from_slice(&[8, 2, 0, 0, 0]);
    let mut png = SIGNATURE.to_vec();
    chunk(&mut png, *b"IHDR", &header)?;
    chunk(&mut png, *b"IDAT", &packed.finish()?)?;
    chunk(&mut png, *b"IEND", &[])?;
    Ok(png)
}

/// The next number of a PPM's header; comments are passed over.
fn number(rest: &mut &[u8]) -> Option<usize> {
    loop {
        *rest = rest.trim_ascii_start();
        if !rest.starts_with(b"#") {
            break;
        }
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        *rest = &rest[end..];
    }
    let length = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, after) = rest.split_at(length);
    *rest = after;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn chunk(png: &mut Vec<u8>, kind: [u8; 4], data: &[u8]) -> Result<(), ScreenError> {
    let length = u32::try_from(data.len()).map_err(|_| ScreenError::TooLarge)?;
    png.extend_from_slice(&length.to_be_bytes());
    png.extend_from_slice(&kind);
    png.extend_from_slice(data);
    let mut sum = Crc::new();
    sum.update(&kind);
    sum.update(data);
    png.extend_from_slice(&sum.sum().to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::ZlibDecoder;

    use super::*;

    /// Size and points of a PNG as [`from_ppm`] writes it.
    fn decode(png: &[u8]) -> (u32, u32, Vec<u8>) {
        let mut rest = png.strip_prefix(SIGNATURE).unwrap();
        let (mut size, mut packed) = ((0, 0), Vec::new());
        while !rest.is_empty() {
            let be = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
            let length = be(&rest[..4]) as usize;
            let (kind, data) = (&rest[4..8], &rest[8..8 + length]);
            let mut sum = Crc::new();
            sum.update(&rest[4..8 + length]);
            assert_eq!(sum.sum(), be(&rest[8 + length..12 + length]));
            match kind {
                b"IHDR" => size = (be(&data[..4]), be(&data[4..8])),
                b"IDAT" => packed.extend_from_slice(data),
                other => assert_eq!(other, b"IEND"),
            }
            rest = &rest[12 + length..];
        }
        let mut lines = Vec::new();
        ZlibDecoder::new(&packed[..]).read_to_end(&mut lines).unwrap();
        let row = size.0 as usize * 3;
        let mut points: Vec<u8> = Vec::new();
        for line in lines.chunks_exact(row + 1) {
            let above = points.len().checked_sub(row).map(|start| points[start..].to_vec());
            for (index, byte) in line[1..].iter().enumerate() {
                points.push(match line[0] {
                    0 => *byte,
                    _ => byte.wrapping_add(above.as_ref().unwrap()[index]),
                });
            }
        }
        (size.0, size.1, points)
    }

    #[test]
    fn the_points_stay_the_same() {
        let points: Vec<u8> = (0..3 * 2 * 3).map(|n: u8| n.wrapping_mul(37)).collect();
        for header in ["P6\n3 2\n255\n", "P6 3 # wide\n2\n# high\n255\n"] {
            let ppm = [header.as_bytes(), &points].concat();
            assert_eq!(decode(&from_ppm(&ppm).unwrap()), (3, 2, points.clone()), "{header}");
        }
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        for ppm in [
            &b""[..],
            b"P5\n1 1\n255\n...",
            b"P6",
            b"P6\n# no end",
            b"P6\n0 1\n255\n",
            b"P6\n1 1\n65535\n......",
            b"P6\n1 1\n255\n..",
            b"P6\n99999999999999999999 1\n255\n",
            b"P6\n16384 16384\n255\n...",
        ] {
            assert!(from_ppm(ppm).is_err(), "{ppm:?}");
        }
    }
}
