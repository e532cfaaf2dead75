//! Commands in the guest: `guest-exec` starts one, `guest-exec-status` is asked until it has ended.
//!
//! Nobody can stop a command in a guest, and its agent keeps what it wrote until somebody asks. So a command that
//! outlasts its timeout is still asked for, seldom, and until it has ended it counts against [`MAX_RUNNING`].

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use virt::domain::Domain;

use super::{Agent, AgentError};

/// Commands in the guest at a time.
pub(super) const MAX_RUNNING: usize = 8;
/// Longest part of stdout and of stderr that is passed on.
const MAX_OUTPUT: usize = 64 << 10;
/// Pauses before a command is looked for again: the first, the longest, and those after its timeout.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
const LOOK_LATE: Duration = Duration::from_secs(10);
/// How long the agent may take to say whether a command has ended.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// A command to be run in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Looked for in the agent's `PATH`, if it is no path.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// After so long nobody waits for it any more.
    pub timeout: Duration,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code, or 128 and the number of the signal that ended it.
    pub exit_code: i32,
    /// The beginning of what it wrote.
    pub stdout: Vec<u8>,
    /// The beginning of its complaints.
    pub stderr: Vec<u8>,
}

#[derive(Deserialize)]
struct Started {
    pid: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    exited: bool,
    exitcode: Option<i64>,
    signal: Option<i64>,
    out_data: Option<String>,
    err_data: Option<String>,
}

impl Agent {
    /// Runs a command in the guest and waits for its end.
    ///
    /// # Errors
    /// It cannot be started or does not end in time; see [`AgentError`].
    pub async fn exec(&self, domain: Domain, command: Command) -> Result<Ended, AgentError> {
        let permit = self.commands.clone().try_acquire_owned();
        let permit = permit.map_err(|_| AgentError::Busy(MAX_RUNNING))?;
        let timeout = command.timeout;
        let deadline = Instant::now() + timeout;
        let agent = self.clone();
        let end = tokio::spawn(async move {
            let _until_it_has_ended = permit;
            agent.run(domain, command, deadline).await
        });
        match tokio::time::timeout_at(deadline, end).await {
            Ok(end) => end.unwrap_or(Err(AgentError::Gone)),
            Err(_) => Err(AgentError::TimedOut(timeout)),
        }
    }

    async fn run(&self, domain: Domain, command: Command, deadline: Instant) -> Result<Ended, AgentError> {
        let Command {
            program,
            arguments,
            timeout,
        } = command;
        let arguments = json!({ "path": program, "arg": arguments, "capture-output": true });
        let start = json!({ "execute": "guest-exec", "arguments": arguments });
        let started = self.command::<Started>(domain.clone(), &start, timeout);
        let started = tokio::time::timeout_at(deadline, started).await;
        let Started { pid } = started.map_err(|_| AgentError::TimedOut(timeout))??;
        let look = json!({ "execute": "guest-exec-status", "arguments": { "pid": pid } });
        let mut pause = LOOK_AGAIN.0;
        loop {
            tokio::time::sleep(pause).await;
            let status = self.command::<Status>(domain.clone(), &look, STATUS_TIMEOUT).await?;
            if status.exited {
                return status.ended();
            }
            pause = next_pause(pause, Instant::now() > deadline);
        }
    }
}

fn next_pause(pause: Duration, late: bool) -> Duration {
    if late { LOOK_LATE } else { (pause * 2).min(LOOK_AGAIN.1) }
}

impl Status {
    fn ended(self) -> Result<Ended, AgentError> {
        let code = match (self.exitcode, self.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => signal.saturating_add(128),
            (None, None) => return Err(AgentError::Unreadable("it names no exit code".into())),
        };
        Ok(Ended {
            // Whatever does not fit is no success either.
            exit_code: i32::try_from(code).unwrap_or(i32::MAX),
            stdout: output(self.out_data)?,
            stderr: output(self.err_data)?,
        })
    }
}

fn output(text: Option<String>) -> Result<Vec<u8>, AgentError> {
    let decoded = STANDARD.decode(text.unwrap_or_default());
    let mut bytes = decoded.map_err(|error| AgentError::Unreadable(format!("output: {error}")))?;
    bytes.truncate(MAX_OUTPUT);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::{read, whole_seconds};
    use super::*;

    fn ended(status: Value) -> Result<Ended, AgentError> {
        read::<Status>(&json!({ "return": status }).to_string())?.ended()
    }

    #[test]
    fn what_the_agent_says_of_a_command_is_read() {
        let running: Status = read(r#"{"return": {"exited": false}}"#).unwrap();
        assert!(!running.exited);
        let fine = ended(json!({"exited": true, "exitcode": 3, "out-data": "aGk=", "err-data": "b2gh"})).unwrap();
        assert_eq!(
            fine,
            Ended {
                exit_code: 3,
                stdout: b"hi".to_vec(),
                stderr: b"oh!".to_vec()
            }
        );
        for (status, code) in [
            (json!({"exited": true, "exitcode": 0, "out-truncated": true}), 0),
            (json!({"exited": true, "signal": 9}), 137),
            (json!({"exited": true, "signal": i64::MAX}), i32::MAX),
            (json!({"exited": true, "exitcode": 0xC000_0005_u32}), i32::MAX),
        ] {
            assert_eq!(ended(status.clone()).unwrap().exit_code, code, "{status}");
        }
    }

    #[test]
    fn what_no_agent_would_say_is_refused() {
        for status in [
            json!({"exited": true}),
            json!({"exitcode": 0}),
            json!({"exited": true, "exitcode": 0, "out-data": "not base64"}),
            json!({"exited": true, "exitcode": "0"}),
            json!([]),
        ] {
            let error = ended(status.clone()).unwrap_err();
            assert!(matches!(error, AgentError::Unreadable(_)), "{status}: {error}");
        }
        assert!(read::<Started>(r#"{"return": {"pid": "one"}}"#).is_err());
        assert!(read::<Value>("").is_err());
    }

    #[test]
    fn output_is_cut() {
        let long = STANDARD.encode(vec![b'x'; MAX_OUTPUT + 1]);
        assert_eq!(output(Some(long)).unwrap().len(), MAX_OUTPUT);
    }

    #[test]
    fn a_command_is_looked_for_often_then_seldom() {
        let mut pause = LOOK_AGAIN.0;
        for _ in 0..10 {
            let next = next_pause(pause, false);
            assert!(next >= pause && next <= LOOK_AGAIN.1);
            pause = next;
        }
        assert_eq!(pause, LOOK_AGAIN.1);
        assert_eq!(next_pause(pause, true), LOOK_LATE);
    }

    #[test]
    fn libvirt_is_given_whole_seconds_and_never_for_ever() {
        // Zero and less mean something else to libvirt.
        for (milliseconds, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (4000, 4), (60_000, 5)] {
            assert_eq!(whole_seconds(Duration::from_millis(milliseconds)), seconds);
        }
    }
}
