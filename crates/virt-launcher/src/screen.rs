//! The guest's screen: a picture of it, and waking it.
//!
//! libvirt streams a picture as PPM, which is uncompressed; clients get a PNG.

mod png;
mod rfb;

use std::io;
use std::path::Path;
use std::time::Duration;

use virt::domain::Domain;
use virt::stream::Stream;

/// How long moving the pointer may take.
const WAKE: Duration = Duration::from_secs(5);
/// Largest picture that is read: 4096 by 4096 points and a bit.
const MAX_PICTURE: usize = (48 << 20) + 1024;
/// How much is read at once.
const PIECE: usize = 64 << 10;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum ScreenError {
    /// libvirt's words.
    #[error("libvirt: {0}")]
    Libvirt(String),
    /// More than anybody would look at.
    #[error("the screen is too large for a picture")]
    TooLarge,
    /// Not what libvirt says it is.
    #[error("the picture of the screen is not understood: {0}")]
    Unreadable(&'static str),
    /// The PNG could not be written.
    #[error("cannot write the picture: {0}")]
    Encode(#[from] io::Error),
}

impl From<virt::error::Error> for ScreenError {
    fn from(error: virt::error::Error) -> Self {
        Self::Libvirt(error.message().to_owned())
    }
}

/// A PNG of the domain's first screen.
///
/// # Errors
/// It has none, or libvirt gives none.
pub async fn shot(domain: Domain) -> Result<Vec<u8>, ScreenError> {
    let picture = tokio::task::spawn_blocking(move || {
        let picture = read(&domain)?;
        if picture.starts_with(png::SIGNATURE) {
            return Ok(picture);
        }
        png::from_ppm(&picture)
    });
    let failed = |error: tokio::task::JoinError| ScreenError::Libvirt(error.to_string());
    picture.await.map_err(failed)?
}

fn read(domain: &Domain) -> Result<Vec<u8>, ScreenError> {
    let stream = Stream::new(&domain.connect()?, 0)?;
    domain.screenshot(&stream, 0, 0)?;
    let (mut picture, mut piece) = (Vec::new(), vec![0; PIECE]);
    loop {
        match stream.recv(&mut piece).map(usize::try_from) {
            Ok(Ok(0)) => break,
            Ok(Ok(length)) if picture.len() + length <= MAX_PICTURE => picture.extend_from_slice(&piece[..length]),
            Ok(_) => {
                stream.abort()?;
                return Err(ScreenError::TooLarge);
            }
            Err(error) => {
                // The stream is broken already; the first error tells why.
                let _ = stream.abort();
                return Err(error.into());
            }
        }
    }
    stream.finish()?;
    Ok(picture)
}

/// Moves the pointer a little, so that a screen that is asleep wakes; whoever looks at it by VNC stays connected.
///
/// # Errors
/// Nobody answers at `vnc`, or not in time.
pub async fn wake(vnc: &Path) -> io::Result<()> {
    let moved = async { rfb::move_pointer(tokio::net::UnixStream::connect(vnc).await?).await };
    match tokio::time::timeout(WAKE, moved).await {
        Ok(done) => done,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
