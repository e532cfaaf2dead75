//! The launcher of this pod, for the small commands that run beside it: one thread, one connection.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use ferrovirt_protocol::launcher::launcher_client::LauncherClient;
use ferrovirt_protocol::paths;
use tonic::transport::{Channel, Endpoint};

/// Waits for an answer, at most so long.
pub(crate) fn ask<T>(limit: Duration, answer: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot begin: {error}"))?;
    let answer = async { tokio::time::timeout(limit, answer).await };
    runtime
        .block_on(answer)
        .map_err(|_| format!("virt-launcher did not answer within {:.1}s", limit.as_secs_f32()))?
}

pub(crate) async fn connect() -> Result<LauncherClient<Channel>, String> {
    let socket = PathBuf::from(paths::SOCKETS_DIR).join(paths::LAUNCHER_SOCKET);
    let failed = |error: &dyn std::error::Error| {
        // The transport's own words say nothing; the last cause is the system's.
        let mut cause = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        format!("cannot connect to {}: {cause}", socket.display())
    };
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).map_err(|error| failed(&error))?;
    let channel = endpoint.connect().await.map_err(|error| failed(&error))?;
    Ok(LauncherClient::new(channel))
}
