//! Whether this host can run guests under KVM: proved by a guest, not by the presence of `/dev/kvm`.
//!
//! A host may offer the device and still be unable to run an ordinary guest: QEMU then aborts on a register
//! it cannot set, or the firmware loops for ever and burns a core. So a tiny guest (`probe.S`) is started once per
//! boot of the host and QEMU build; it has a few seconds to come up through the firmware into long mode.
//!
//! A guest that does not come up in time may only be slow, as hosts are while they boot. Until something else is known
//! the host counts as one without KVM, and the probe is repeated, less and less often.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use ferrovirt_runtime::logs::chain;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::watch;

/// The probe guest, see `probe.S`.
const PAYLOAD: &[u8] = include_bytes!("probe.bin");
/// QEMU's exit status when the guest came to its end: (0x2a << 1) | 1.
const PROVED: i32 = 0x55;
/// The probe needs about 0.2 s where KVM works. Each time that it is repeated it may take twice as long …
const LIMIT: Duration = Duration::from_secs(3);
/// … up to this.
const LONGEST_LIMIT: Duration = Duration::from_secs(20);
/// Pause before a probe is repeated that has shown nothing. It doubles each time …
const PAUSE: Duration = Duration::from_secs(10);
/// … up to this: where the firmware loops for ever, each probe burns a core while it lasts.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
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

/// Why a probe has shown nothing about KVM. The next one may.
#[derive(Debug, thiserror::Error)]
enum Undecided {
    #[error("cannot write the probe guest {}", path.display())]
    Payload {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot run {}", qemu.display())]
    Run {
        qemu: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot wait for the probe guest")]
    Wait(#[source] io::Error),
    #[error("{DEVICE} is there, but a probe guest was killed ({0})")]
    Killed(ExitStatus),
    #[error("{DEVICE} is there, but a probe guest did not come up in {0:?}")]
    Late(Duration),
}

/// What it means until more is known.
impl From<Undecided> for Verdict {
    fn from(why: Undecided) -> Self {
        Self::no(chain(&why))
    }
}

/// What a verdict was found for; with anything else it is worth nothing.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Subject {
    version: String,
    boot_id: String,
    qemu: PathBuf,
    qemu_modified: SystemTime,
}

#[derive(Serialize, Deserialize)]
struct Cached {
    subject: Subject,
    verdict: Verdict,
}

/// Tells `verdict` what is found out, and probes again while that has shown nothing. `state_dir` keeps an answer of the
/// probe for this boot and QEMU build. Returns when there is an answer that stays; leaves no process behind. Cancel safe.
pub(crate) async fn settle(mode: KvmMode, qemu: &Path, state_dir: &Path, verdict: &watch::Sender<Option<Verdict>>) {
    repeat(|limit| ask(mode, qemu, state_dir, limit), verdict).await;
}

/// Returns when guests may use KVM.
pub(crate) async fn works(verdict: &mut watch::Receiver<Option<Verdict>>) {
    let usable = |verdict: &Option<Verdict>| verdict.as_ref().is_some_and(|verdict| verdict.usable);
    if verdict.wait_for(usable).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn repeat<F>(ask: impl Fn(Duration) -> F, verdict: &watch::Sender<Option<Verdict>>)
where
    F: Future<Output = Result<Verdict, Undecided>>,
{
    let (mut limit, mut pause) = (LIMIT, PAUSE);
    loop {
        let answer = ask(limit).await;
        let settled = answer.is_ok();
        let found = answer.unwrap_or_else(Verdict::from);
        tracing::info!(usable = found.usable, why = found.why, settled, "KVM");
        verdict.send_replace(Some(found));
        if settled {
            return;
        }
        tokio::time::sleep(pause).await;
        limit = (limit * 2).min(LONGEST_LIMIT);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn ask(mode: KvmMode, qemu: &Path, state_dir: &Path, limit: Duration) -> Result<Verdict, Undecided> {
    match mode {
        KvmMode::Off => Ok(Verdict::no("switched off by configuration")),
        KvmMode::Force => Ok(Verdict {
            usable: true,
            why: "forced by configuration, not proved".to_owned(),
        }),
        KvmMode::Probe if !Path::new(DEVICE).exists() => Ok(Verdict::no(format!("there is no {DEVICE}"))),
        KvmMode::Probe => kept_or_probed(qemu, state_dir, limit).await,
    }
}

async fn kept_or_probed(qemu: &Path, state_dir: &Path, limit: Duration) -> Result<Verdict, Undecided> {
    let cache = state_dir.join("kvm.json");
    let subject = Subject::now(qemu);
    if let Some(subject) = &subject
        && let Some(verdict) = read(&cache, subject)
    {
        return Ok(verdict);
    }
    let verdict = probe(qemu, "kvm", "host", state_dir, limit).await?;
    if let Some(subject) = subject {
        let written = serde_json::to_vec(&Cached {
            subject,
            verdict: verdict.clone(),
        })
        .map_err(io::Error::from)
        .and_then(|bytes| std::fs::write(&cache, bytes));
        if let Err(error) = written {
            tracing::warn!(path = %cache.display(), %error, "cannot keep the result of the KVM probe");
        }
    }
    Ok(verdict)
}

impl Subject {
    fn now(qemu: &Path) -> Option<Self> {
        Some(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
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
async fn probe(
    qemu: &Path,
    accelerator: &str,
    cpu: &str,
    state_dir: &Path,
    limit: Duration,
) -> Result<Verdict, Undecided> {
    if std::env::consts::ARCH != "x86_64" {
        let why = format!("there is no probe guest for {}", std::env::consts::ARCH);
        return Ok(Verdict::no(why));
    }
    let payload = state_dir.join("kvm-probe.bin");
    std::fs::write(&payload, PAYLOAD).map_err(|source| Undecided::Payload {
        path: payload.clone(),
        source,
    })?;
    let mut child = Command::new(qemu)
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
        .spawn()
        .map_err(|source| Undecided::Run {
            qemu: qemu.to_owned(),
            source,
        })?;
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
        Ok(Ok(status)) => judge(status, &said),
        Ok(Err(error)) => Err(Undecided::Wait(error)),
        Err(_) => {
            // Killed and reaped, so that it does not burn a core.
            let _ = child.kill().await;
            Err(Undecided::Late(limit))
        }
    }
}

/// What it means that QEMU ended so. One that was killed, for want of memory perhaps, has not said anything.
fn judge(status: ExitStatus, said: &[u8]) -> Result<Verdict, Undecided> {
    if status.code() == Some(PROVED) {
        return Ok(Verdict {
            usable: true,
            why: "a probe guest came up".to_owned(),
        });
    }
    if matches!(status.signal(), Some(libc::SIGKILL | libc::SIGTERM)) {
        return Err(Undecided::Killed(status));
    }
    let said = String::from_utf8_lossy(said);
    let line = said.lines().next().unwrap_or_default();
    Ok(Verdict::no(format!(
        "{DEVICE} is there, but QEMU cannot run a probe guest with it ({status}): {line}"
    )))
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
        assert!(verdict.as_ref().is_ok_and(|verdict| verdict.usable), "{verdict:?}");
    }

    /// Stands for a QEMU: it ignores its arguments.
    fn script(directory: &Path, text: &str) -> PathBuf {
        let (source, path) = (directory.join("source"), directory.join("qemu"));
        std::fs::write(&source, format!("#!/bin/sh\n{text}\n")).unwrap();
        // Another process writes what is run: a file that this one had open would be busy while any test starts one.
        let installed = std::process::Command::new("install").arg(&source).arg(&path).status();
        assert!(installed.unwrap().success());
        path
    }

    #[tokio::test]
    async fn a_guest_that_hangs_is_killed_in_time() {
        let state = tempfile::tempdir().unwrap();
        let script = script(state.path(), "echo $$ >$0.pid\nexec sleep 60");
        let found = probe(&script, "kvm", "host", state.path(), Duration::from_secs(3)).await;
        assert!(matches!(found, Err(Undecided::Late(_))), "{found:?}");
        let pid = std::fs::read_to_string(state.path().join("qemu.pid")).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "it was reaped");
    }

    #[tokio::test]
    async fn what_shows_nothing_is_not_kept() {
        let state = tempfile::tempdir().unwrap();
        let script = script(state.path(), "[ -e $0.quick ] || exec sleep 60\nexit 85");
        let (slow, quick) = (Duration::from_millis(200), Duration::from_secs(30));
        let late = kept_or_probed(&script, state.path(), slow).await;
        assert!(matches!(late, Err(Undecided::Late(_))), "{late:?}");
        assert!(!state.path().join("kvm.json").exists());
        std::fs::write(state.path().join("qemu.quick"), "").unwrap();
        let found = kept_or_probed(&script, state.path(), quick).await.unwrap();
        assert!(found.usable, "{}", found.why);
        std::fs::remove_file(state.path().join("qemu.quick")).unwrap();
        assert_eq!(kept_or_probed(&script, state.path(), slow).await.unwrap(), found);
        let nowhere = kept_or_probed(Path::new("/nowhere"), state.path(), slow).await;
        assert!(matches!(nowhere, Err(Undecided::Run { .. })), "{nowhere:?}");
    }

    /// Wait statuses, wait(2): the exit status is the second byte, the signal is the first.
    #[test]
    fn only_an_answer_of_qemu_is_an_answer() {
        for (status, expected) in [
            (PROVED << 8, Some(true)),
            (0, Some(false)),
            (1 << 8, Some(false)),
            (libc::SIGABRT, Some(false)),
            (libc::SIGKILL, None),
            (libc::SIGTERM, None),
        ] {
            let found = judge(ExitStatus::from_raw(status), b"kvm: no such thing\n");
            assert_eq!(found.as_ref().ok().map(|verdict| verdict.usable), expected, "{found:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_shows_nothing_is_repeated_until_one_does() {
        let (sender, mut receiver) = watch::channel(None);
        let start = tokio::time::Instant::now();
        let limits = std::cell::RefCell::new(Vec::new());
        let ask = |limit: Duration| {
            let tries = {
                let mut limits = limits.borrow_mut();
                limits.push(limit.as_secs());
                limits.len()
            };
            let yes = Verdict {
                usable: true,
                why: String::new(),
            };
            std::future::ready(if tries < 5 {
                Err(Undecided::Late(limit))
            } else {
                Ok(yes)
            })
        };
        let watcher = async {
            let first: Option<Verdict> = receiver.wait_for(Option::is_some).await.unwrap().clone();
            assert!(first.is_some_and(|verdict| !verdict.usable && verdict.why.contains("did not come up in 3s")));
            assert_eq!(
                start.elapsed(),
                Duration::ZERO,
                "nobody waits for the answer that stays"
            );
            works(&mut receiver).await;
        };
        tokio::join!(repeat(ask, &sender), watcher);
        assert_eq!(*limits.borrow(), [3, 6, 12, 20, 20]);
        assert_eq!(start.elapsed().as_secs(), PAUSE.as_secs() * (1 + 2 + 4 + 8));
    }

    #[tokio::test]
    async fn the_answer_is_kept_for_this_boot_and_qemu() {
        let state = tempfile::tempdir().unwrap();
        let script = script(state.path(), "exit 85");
        let limit = Duration::from_secs(30);
        let ask = async || kept_or_probed(&script, state.path(), limit).await.unwrap();
        let first = ask().await;
        assert!(first.usable, "{}", first.why);
        let kept = state.path().join("kvm.json");
        let mut cached: Cached = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
        assert_eq!(cached.verdict, first);
        cached.verdict.why = "kept".to_owned();
        std::fs::write(&kept, serde_json::to_vec(&cached).unwrap()).unwrap();
        assert_eq!(ask().await.why, "kept");
        cached.subject.boot_id = "another".to_owned();
        std::fs::write(&kept, serde_json::to_vec(&cached).unwrap()).unwrap();
        assert_eq!(ask().await, first);
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
