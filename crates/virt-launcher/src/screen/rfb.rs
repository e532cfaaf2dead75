//! As much of RFB (RFC 6143) as moves a pointer.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest name of a screen that is read.
const MAX_NAME: u32 = 4096;

/// Moves the pointer of a shared session by one point, and waits until that was read.
pub(super) async fn move_pointer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.read_exact(&mut [0; 12]).await?;
    stream.write_all(b"RFB 003.008\n").await?;
    let count = stream.read_u8().await?;
    let mut kinds = vec![0; count.into()];
    stream.read_exact(&mut kinds).await?;
    if !kinds.contains(&1) {
        return Err(io::Error::other("the screen wants a password"));
    }
    stream.write_u8(1).await?;
    if stream.read_u32().await? != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // Shared: whoever looks already goes on.
    stream.write_u8(1).await?;
    let (width, height) = (stream.read_u16().await?, stream.read_u16().await?);
    stream.read_exact(&mut [0; 16]).await?;
    let length = stream.read_u32().await?;
    if length > MAX_NAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut name = vec![0; length as usize];
    stream.read_exact(&mut name).await?;
    for step in [0, 1] {
        // Pointer event, no button.
        stream.write_all(&[5, 0]).await?;
        stream.write_u16(width / 2 + step).await?;
        stream.write_u16(height / 2).await?;
    }
    // Asks for everything: the answer begins when what was sent before it has been read.
    stream.write_all(&[3, 0, 0, 0, 0, 0]).await?;
    stream.write_u16(width).await?;
    stream.write_u16(height).await?;
    stream.flush().await?;
    stream.read_u8().await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_pointer_moves_and_nobody_is_sent_away() {
        let (near, mut far) = tokio::io::duplex(4096);
        let server = async {
            far.write_all(b"RFB 003.008\n").await?;
            far.read_exact(&mut [0; 12]).await?;
            far.write_all(&[2, 2, 1]).await?;
            assert_eq!(far.read_u8().await?, 1);
            far.write_u32(0).await?;
            assert_eq!(far.read_u8().await?, 1, "shared");
            far.write_all(&[4, 0, 3, 0]).await?;
            far.write_all(&[0; 16]).await?;
            far.write_all(&[0, 0, 0, 2, b'v', b'm']).await?;
            let mut events = [0; 22];
            far.read_exact(&mut events).await?;
            assert_eq!(events[..12], [5, 0, 2, 0, 1, 128, 5, 0, 2, 1, 1, 128]);
            far.write_u8(0).await
        };
        let (moved, served) = tokio::join!(move_pointer(near), server);
        served.unwrap();
        moved.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_screen_is_given_up() {
        for said in [
            &b"HTTP/1.1 400"[..],
            b"RFB 003.008\n\x01\x02",
            b"RFB 003.008\n\x01\x01\0\0\0\x01",
        ] {
            let (near, mut far) = tokio::io::duplex(4096);
            far.write_all(said).await.unwrap();
            far.shutdown().await.unwrap();
            assert!(move_pointer(near).await.is_err(), "{said:?}");
        }
    }
}
