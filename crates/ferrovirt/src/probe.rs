//! `virt-probe`: the command of a launcher pod's exec probes, which asks the guest's agent through the launcher.
//!
//! It runs every few seconds beside each probed guest, so it is small: one thread, one connection, one question.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use ferrovirt_protocol::launcher::{AgentExecReply, AgentExecRequest, AgentPingRequest};

use crate::launcher;

/// What the launcher may take beyond the guest's time. Less than what the kubelet adds, so that our words are heard.
const MARGIN: Duration = Duration::from_millis(500);

/// Ask the agent of this pod's guest; fails if the agent or the command in the guest does.
#[derive(Debug, Parser)]
#[command(name = "virt-probe", version)]
struct Args {
    /// NAMESPACE_NAME of the guest, for messages
    #[arg(long = "domainName", value_name = "DOMAIN")]
    domain_name: String,
    /// Time that the guest has to answer
    #[arg(long = "timeoutSeconds", value_name = "SECONDS", default_value_t = 1)]
    timeout_seconds: u32,
    /// Only ask whether the agent is there
    #[arg(long = "guestAgentPing", conflicts_with = "command")]
    guest_agent_ping: bool,
    /// Program to run in the guest
    #[arg(long, allow_hyphen_values = true, required_unless_present = "guest_agent_ping")]
    command: Option<String>,
    /// Its arguments
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Asks, tells what the guest said, and ends as the command in the guest did.
pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    let domain = args.domain_name.clone();
    match ask(args) {
        Ok(code) => code,
        Err(problem) => {
            eprintln!("virt-probe: {domain}: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn ask(args: Args) -> Result<ExitCode, String> {
    let limit = Duration::from_secs(args.timeout_seconds.max(1).into()) + MARGIN;
    launcher::ask(limit, question(args))
}

async fn question(args: Args) -> Result<ExitCode, String> {
    let mut launcher = launcher::connect().await?;
    let Some(command) = args.command else {
        let request = AgentPingRequest {
            timeout_seconds: args.timeout_seconds,
        };
        let answer = launcher.agent_ping(request).await;
        return answer
            .map(|_| ExitCode::SUCCESS)
            .map_err(|status| status.message().to_owned());
    };
    let request = AgentExecRequest {
        command: command.clone(),
        args: args.arguments,
        timeout_seconds: args.timeout_seconds,
    };
    let answer = launcher.agent_exec(request).await;
    let ended = answer.map_err(|status| status.message().to_owned())?.into_inner();
    tell(&ended);
    if ended.exit_code != 0 {
        let domain = args.domain_name;
        eprintln!(
            "virt-probe: {domain}: {command} ended with {} in the guest",
            ended.exit_code
        );
    }
    Ok(exit_code(ended.exit_code))
}

/// Whoever does not read the output is not our problem.
fn tell(ended: &AgentExecReply) {
    let _ = std::io::stdout().write_all(&ended.stdout);
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().write_all(&ended.stderr);
}

/// What does not fit into an exit code is a failure, too.
fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["virt-probe", "--domainName", "ns_vm"], words].concat())
    }

    #[test]
    fn a_probe_asks_for_one_thing() {
        let args = parse(&["--timeoutSeconds", "3", "--command", "-x", "--", "--command", "", "a b"]).unwrap();
        assert_eq!((args.timeout_seconds, args.command.as_deref()), (3, Some("-x")));
        assert_eq!(args.arguments, ["--command", "", "a b"]);
        let args = parse(&["--guestAgentPing"]).unwrap();
        assert_eq!((args.timeout_seconds, args.guest_agent_ping), (1, true));
        assert!(parse(&[]).is_err());
        assert!(parse(&["--guestAgentPing", "--command", "true"]).is_err());
        assert!(parse(&["--command", "true", "more"]).is_err());
    }

    #[test]
    fn no_failure_looks_like_success() {
        assert_eq!(exit_code(0), ExitCode::SUCCESS);
        assert_eq!(exit_code(7), ExitCode::from(7));
        for code in [256, -1, 512, i32::MAX] {
            assert_eq!(exit_code(code), ExitCode::FAILURE);
        }
    }

    #[test]
    fn the_launcher_gives_up_before_the_kubelet_does() {
        // The pod's probe has one second more than the guest.
        assert!(MARGIN < Duration::from_secs(1));
    }
}
