//! How the executable finds its way to the server.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cluster;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cluster::Cluster;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A proxy that connects; its port, and how often it did.
async fn proxy() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(near.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap();
                let mut far = TcpStream::connect(target).await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (port, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_are_used_and_left_out() {
    let cluster = Cluster::open().await;
    cluster.home.create_vm("a", "Halted").await;
    let dry = "Dry Run execution\nVM a was scheduled to start\n";
    let words = ["start", "a", "--dry-run"];
    // Nothing answers there; this machine needs no proxy.
    for no_proxy in ["", "localhost,,x y,"] {
        let environment = [("HTTPS_PROXY", "http://127.0.0.1:1"), ("NO_PROXY", no_proxy)];
        cluster.run_with(&words, &environment).await.prints(dry);
    }
    let (port, count) = proxy().await;
    let config = std::fs::read_to_string(cluster.path("config")).unwrap();
    cluster.write(
        "config",
        &config.replace(
            "cluster: {server",
            &format!("cluster: {{proxy-url: 'http://127.0.0.1:{port}', server"),
        ),
    );
    cluster.run(&words).await.prints(dry);
    assert_eq!(count.load(Ordering::SeqCst), 1);
    // Streams take the same way.
    cluster.home.create_vmi("a", "Running", &[]).await;
    let console = cluster.run(&["console", "a"]).await;
    assert_eq!(console.code, Some(0), "{console:?}");
    assert!(count.load(Ordering::SeqCst) > 1);
}
