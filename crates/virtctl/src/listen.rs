//! Listening on a local address that is given by number or by name.

use anyhow::Context;
use tokio::net::TcpListener;

/// `[::1]` is `::1`.
pub(crate) fn host(address: &str) -> &str {
    address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(address)
}

/// Port 0: any free one.
pub(crate) async fn tcp(address: &str, port: u16) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind((host(address), port)).await;
    listener.with_context(|| format!("cannot listen on {address}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_numbers() {
        for address in ["127.0.0.1", "localhost", "[::1]"] {
            // A machine may have no IPv6.
            match tcp(address, 0).await {
                Ok(listener) => assert!(listener.local_addr().unwrap().ip().is_loopback(), "{address}"),
                Err(error) => assert_eq!(address, "[::1]", "{error}"),
            }
        }
        let error = tcp("no.such.host.invalid", 0).await.unwrap_err().to_string();
        assert!(error.contains("no.such.host.invalid:0"), "{error}");
        assert_eq!(host("[::1]"), "::1");
    }
}
