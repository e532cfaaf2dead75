//! Whether this host can run guests under KVM: proved by a guest, not by the presence of `/dev/kvm`.
//!
//! A host may offer the device and still be unable to run an ordinary guest: QEMU then aborts on a register
//! it cannot set, or the firmware loops for ever and burns a core. So a tiny guest (`probe.S`) is started once per
//! boot of the host and QEMU build; it has a few seconds to come up through the firmware into long mode.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// The probe guest, see `probe.S`.
const PAYLOAD: &[u8] = include_bytes!("probe.bin");
/// QEMU's exit status when the guest came to its end: (0x2a << 1) | 1.
const PROVED: i32 = 0x55;
/// The probe needs about 0.2 s where KVM works.
const LIMIT: Duration = Duration::from_secs(3);
const DEVICE: &str = "/dev/kvm";

/// Where the answer comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum KvmMode {
    /// Run the probe guest.
    #[default]
    Probe,
    /// No KVM, whatever the host can do.
    Off,
    /// KVM, whatever the probe would say.
    Force,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Guests may use KVM.
    pub usable: bool,
    /// For people: why.
    pub why: String,
}

impl Verdict {
    fn no(why: impl Into<String>) -> Self {
        Self {
            usable: false,
            why: why.into(),
        }
    }
}

/// What a verdict was found for; with anything else it is worth nothing.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Subject {
    boot_id: String,
    qemu: PathBuf,
    qemu_modified: SystemTime,
}

#[derive(Serialize, Deserialize)]
struct Cached {
    subject: Subject,
    verdict: Verdict,
}

/// Decides, by the probe at most once per boot and QEMU build; `state_dir` keeps the answer. Takes at most
/// a few seconds, and leaves no process behind.
pub async fn decide(mode: KvmMode, qemu: &Path, state_dir: &Path) -> Verdict {
    match mode {
        KvmMode::Off => return Verdict::no("switched off by configuration"),
        KvmMode::Force => {
            return Verdict {
                usable: true,
                why: "forced by configuration, not proved".to_owned(),
            };
        }
        KvmMode::Probe => {}
    }
    if !Path::new(DEVICE).exists() {
        return Verdict::no(format!("there is no {DEVICE}"));
    }
    let cache = state_dir.join("kvm.json");
    let subject = Subject::now(qemu);
    if let Some(subject) = &subject
        && let Some(verdict) = read(&cache, subject)
    {
        return verdict;
    }
    let verdict = probe(qemu, "kvm", "host", state_dir, LIMIT).await;
    if let Some(subject) = subject {
        let written = serde_json::to_vec(&Cached {
            subject,
            verdict: verdict.clone(),
        })
        .map_err(std::io::Error::from)
        .and_then(|bytes| std::fs::write(&cache, bytes));
        if let Err(error) = written {
            tracing::warn!(path = %cache.display(), %error, "cannot keep the result of the KVM probe");
        }
    }
    verdict
}

impl Subject {
    fn now(qemu: &Path) -> Option<Self> {
        Some(Self {
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .ok()?
                .trim()
                .to_owned(),
            qemu: qemu.to_owned(),
            qemu_modified: std::fs::metadata(qemu).ok()?.modified().ok()?,
        })
    }
}

fn read(cache: &Path, subject: &Subject) -> Option<Verdict> {
    let cached: Cached = serde_json::from_slice(&std::fs::read(cache).ok()?).ok()?;
    (cached.subject == *subject).then_some(cached.verdict)
}

/// Runs the probe guest with an accelerator.
async fn probe(qemu: &Path, accelerator: &str, cpu: &str, state_dir: &Path, limit: Duration) -> Verdict {
    if std::env::consts::ARCH != "x86_64" {
        return Verdict::no(format!("there is no probe guest for {}", std::env::consts::ARCH));
    }
    let payload = state_dir.join("kvm-probe.bin");
    if let Err(error) = std::fs::write(&payload, PAYLOAD) {
        return Verdict::no(format!("cannot write the probe guest {}: {error}", payload.display()));
    }
    let child = Command::new(qemu)
        .args([
            "-accel",
            accelerator,
            "-cpu",
            cpu,
            "-machine",
            "q35",
            "-m",
            "32",
            "-display",
            "none",
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=1",
        ])
        .arg("-kernel")
        .arg(&payload)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return Verdict::no(format!("cannot run {}: {error}", qemu.display())),
    };
    let mut said = Vec::new();
    let ended = tokio::time::timeout(limit, async {
        if let Some(stderr) = child.stderr.take() {
            // Only for the message; a failure to read is no reason.
            let _ = stderr.take(4096).read_to_end(&mut said).await;
        }
        child.wait().await
    })
    .await;
    match ended {
        Ok(Ok(status)) if status.code() == Some(PROVED) => Verdict {
            usable: true,
            why: "a probe guest came up".to_owned(),
        },
        Ok(Ok(status)) => {
            let said = String::from_utf8_lossy(&said);
            let line = said.lines().next().unwrap_or_default();
            Verdict::no(format!(
                "{DEVICE} is there, but QEMU cannot run a probe guest with it ({status}): {line}"
            ))
        }
        Ok(Err(error)) => Verdict::no(format!("cannot wait for the probe guest: {error}")),
        Err(_) => {
            // Killed and reaped, so that it does not burn a core.
            let _ = child.kill().await;
            Verdict::no(format!(
                "{DEVICE} is there, but a probe guest did not come up in {limit:?}"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qemu() -> &'static Path {
        Path::new("/usr/bin/qemu-system-x86_64")
    }

    #[tokio::test]
    async fn the_payload_comes_up_where_guests_can_run() {
        let state = tempfile::tempdir().unwrap();
        let verdict = probe(qemu(), "tcg", "max", state.path(), Duration::from_secs(30)).await;
        assert!(verdict.usable, "{}", verdict.why);
    }

    #[tokio::test]
    async fn a_guest_that_hangs_is_killed_in_time() {
        let state = tempfile::tempdir().unwrap();
        // Stands for a hanging QEMU: it ignores its arguments and sleeps.
        let script = state.path().join("qemu");
        std::fs::write(&script, "#!/bin/sh\necho $$ >$0.pid\nexec sleep 60\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let verdict = probe(&script, "kvm", "host", state.path(), Duration::from_millis(500)).await;
        assert!(
            !verdict.usable && verdict.why.contains("did not come up"),
            "{}",
            verdict.why
        );
        let pid = std::fs::read_to_string(state.path().join("qemu.pid")).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "it was reaped");
    }

    #[tokio::test]
    async fn the_answer_is_kept_for_this_boot_and_qemu() {
        let state = tempfile::tempdir().unwrap();
        let first = decide(KvmMode::Probe, qemu(), state.path()).await;
        if !Path::new(DEVICE).exists() {
            assert!(!first.usable);
            return;
        }
        let kept = state.path().join("kvm.json");
        let mut cached: Cached = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
        assert_eq!(cached.verdict, first);
        cached.verdict.why = "kept".to_owned();
        std::fs::write(&kept, serde_json::to_vec(&cached).unwrap()).unwrap();
        assert_eq!(decide(KvmMode::Probe, qemu(), state.path()).await.why, "kept");
        cached.subject.boot_id = "another".to_owned();
        std::fs::write(&kept, serde_json::to_vec(&cached).unwrap()).unwrap();
        assert_eq!(decide(KvmMode::Probe, qemu(), state.path()).await.usable, first.usable);
    }

    #[test]
    fn the_payload_is_what_its_source_says() {
        let directory = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kvm/probe.S");
        let (object, image) = (directory.path().join("o"), directory.path().join("bin"));
        let run = |command: &mut std::process::Command| assert!(command.status().unwrap().success());
        run(std::process::Command::new("as")
            .arg("--64")
            .arg(source)
            .arg("-o")
            .arg(&object));
        run(std::process::Command::new("ld")
            .args(["-m", "elf_x86_64", "-Ttext", "0x100000", "--oformat", "binary"])
            .arg(&object)
            .arg("-o")
            .arg(&image));
        assert_eq!(std::fs::read(image).unwrap(), PAYLOAD);
    }
}
