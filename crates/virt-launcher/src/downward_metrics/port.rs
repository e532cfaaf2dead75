//! The port: the guest writes a line as in HTTP and an empty one, and gets the report and an empty line.
//!
//! What the guest writes is hostile: of a request no more is kept than the longest that is valid, and answers are a
//! second apart.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until};

const REQUEST: &str = "GET /metrics/XML";
const INVALID: &[u8] = b"INVALID REQUEST\n\n";
/// Longest request that is read.
const MAX_REQUEST: usize = 256;
/// From one answer to the next.
const PAUSE: Duration = Duration::from_secs(1);

/// The next request in what was read, which is taken out of it: whether it is a valid one. `None`: more is to come.
fn take(read: &mut Vec<u8>) -> Option<bool> {
    let line_end = |from: usize| read[from..].iter().position(|byte| *byte == b'\n').map(|at| from + at);
    let Some(first) = line_end(0) else {
        return too_long(read);
    };
    let Some(second) = line_end(first + 1) else {
        return too_long(read);
    };
    let text = |from: usize, to: usize| read[from..to].strip_suffix(b"\r").unwrap_or(&read[from..to]);
    if !text(first + 1, second).is_empty() {
        // There is no telling where the next one begins.
        read.clear();
        return Some(false);
    }
    let valid = text(0, first) == REQUEST.as_bytes();
    read.drain(..=second);
    Some(valid)
}

fn too_long(read: &mut Vec<u8>) -> Option<bool> {
    (read.len() >= MAX_REQUEST).then(|| {
        read.clear();
        false
    })
}

/// Answers until QEMU closes the socket.
pub async fn serve<R: Future<Output = String>>(socket: &Path, report: impl Fn() -> R) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    let (mut read, mut chunk) = (Vec::with_capacity(2 * MAX_REQUEST), [0; MAX_REQUEST]);
    let mut ready = Instant::now();
    loop {
        while let Some(valid) = take(&mut read) {
            sleep_until(ready).await;
            ready = Instant::now() + PAUSE;
            if valid {
                let mut answer = report().await;
                answer.push_str("\n\n");
                stream.write_all(answer.as_bytes()).await?;
            } else {
                stream.write_all(INVALID).await?;
            }
        }
        match stream.read(&mut chunk).await? {
            0 => return Ok(()),
            count => read.extend_from_slice(&chunk[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[test]
    fn requests_are_taken_apart() {
        let long = "x".repeat(300);
        for (input, expected, rest) in [
            ("GET /metrics/XML\n\n", Some(true), ""),
            ("GET /metrics/XML\r\n\r\n", Some(true), ""),
            ("GET /metrics/XML\n\nGET", Some(true), "GET"),
            ("GET /metrics/XML\n", None, "GET /metrics/XML\n"),
            ("GET /metr", None, "GET /metr"),
            ("", None, ""),
            ("GET /metrics\n\n", Some(false), ""),
            ("PUT /metrics/XML\n\n", Some(false), ""),
            ("\n\n", Some(false), ""),
            ("GET /metrics/XML\nHost: x\n\n", Some(false), ""),
            (long.as_str(), Some(false), ""),
            (format!("GET\n{long}").as_str(), Some(false), ""),
        ] {
            let mut read = input.as_bytes().to_vec();
            assert_eq!(take(&mut read), expected, "{input:?}");
            assert_eq!(read, rest.as_bytes(), "{input:?}");
        }
    }

    #[tokio::test]
    async fn requests_are_answered_one_by_one() {
        let root = tempfile::tempdir().unwrap();
        let socket = root.path().join("port");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = std::cell::Cell::new(0);
        let served = serve(&socket, || {
            asked.set(asked.get() + 1);
            async { "<metrics/>".to_owned() }
        });
        let guest = async {
            let before = Instant::now();
            let (mut guest, _) = listener.accept().await.unwrap();
            guest.write_all(b"nonsense\n\nGET /metrics/XML\n").await.unwrap();
            let expect = async |guest: &mut UnixStream, text: &str| {
                let mut answer = vec![0; text.len()];
                guest.read_exact(&mut answer).await.unwrap();
                assert_eq!(String::from_utf8(answer).unwrap(), text);
            };
            expect(&mut guest, "INVALID REQUEST\n\n").await;
            guest.write_all(b"\n").await.unwrap();
            expect(&mut guest, "<metrics/>\n\n").await;
            assert!(before.elapsed() >= PAUSE, "{:?}", before.elapsed());
        };
        let (served, ()) = tokio::join!(served, guest);
        served.unwrap();
        assert_eq!(asked.get(), 1);
    }
}
