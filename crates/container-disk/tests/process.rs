//! The executable as a container runs it.

use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn it_listens_until_it_is_told_to_end() {
    let directory = tempfile::tempdir().unwrap();
    let executable = env!("CARGO_BIN_EXE_container-disk");
    let installed = Command::new(executable)
        .arg("--install")
        .arg(directory.path())
        .status()
        .unwrap();
    assert!(installed.success());
    let mut child = Command::new(directory.path().join("container-disk"))
        .arg("--copy-path")
        .arg(directory.path().join("disk_3"))
        .spawn()
        .unwrap();
    let socket = directory.path().join("disk_3.sock");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !socket.exists() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    UnixStream::connect(&socket).unwrap();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn what_it_does_not_understand_it_refuses() {
    let output = Command::new(env!("CARGO_BIN_EXE_container-disk")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--copy-path"));
}
