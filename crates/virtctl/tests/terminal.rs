//! The console on a real terminal.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cluster;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cluster::Cluster;
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};

/// Collects what the terminal shows until `wanted` was there.
fn expect(screen: &mpsc::Receiver<Vec<u8>>, wanted: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut shown = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&shown).into_owned();
        if text.contains(wanted) {
            return text;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match screen.recv_timeout(left) {
            Ok(data) => shown.extend(data),
            Err(error) => panic!("{error}: {wanted:?} is not in {text:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_go_through_raw_and_the_terminal_is_given_back() {
    let cluster = Cluster::open().await;
    cluster.home.create_vmi("a", "Running", &[]).await;
    let pty = openpty(None, None).unwrap();
    let before = tcgetattr(pty.slave.as_fd()).unwrap();
    let end = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut command = cluster.virtctl(&["console", "a"]);
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    let mut keys = File::from(pty.master);
    let mut master = keys.try_clone().unwrap();
    let (sender, screen) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = master.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    let slave = pty.slave.try_clone().unwrap();
    tokio::task::spawn_blocking(move || {
        expect(&screen, "hello from default/a/console");
        let raw = tcgetattr(slave.as_fd()).unwrap();
        assert!(
            !raw.local_flags
                .intersects(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG)
        );
        // Ctrl+C belongs to the guest.
        keys.write_all(b"one\x03two").unwrap();
        expect(&screen, "one\x03two");
        keys.write_all(b"\x1d").unwrap();
        assert!(child.wait().unwrap().success());
        let after = tcgetattr(slave.as_fd()).unwrap();
        assert_eq!(after.local_flags, before.local_flags);
        assert_eq!(after.input_flags, before.input_flags);
        assert_eq!(after.output_flags, before.output_flags);
    })
    .await
    .unwrap();
}
