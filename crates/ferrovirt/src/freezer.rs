//! `virt-freezer`: what programs for backups run in a launcher's container before and after they take a copy of the
//! guest's disks (annotations `pre.hook.backup.velero.io/command` and `post.hook.backup.velero.io/command` of its pod).
//!
//! A guest whose file systems cannot or need not stand still does not keep its backup from being made: one without an
//! agent, one that is paused and one that shuts down are left alone.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use ferrovirt_protocol::launcher::{ActRequest, Action, GuestState, Lifecycle, WatchRequest};

use crate::launcher;

/// A guest with much to write, or that asks its applications first, needs some time to stand still.
const LIMIT: Duration = Duration::from_secs(55);

/// Make the file systems of this pod's guest stand still, or thaw them.
#[derive(Debug, Parser)]
#[command(
    name = "virt-freezer",
    version,
    after_help = "Example: virt-freezer --freeze --name vm --namespace default --unfreezeTimeoutSeconds 120"
)]
struct Args {
    /// Make them stand still
    #[arg(long, conflicts_with = "unfreeze", required_unless_present = "unfreeze")]
    freeze: bool,
    /// Thaw them
    #[arg(long)]
    unfreeze: bool,
    /// Name of the guest's VirtualMachineInstance, for messages
    #[arg(long)]
    name: String,
    /// Its namespace, for messages
    #[arg(long)]
    namespace: String,
    /// They thaw after so many seconds, even if nobody asks for it
    #[arg(
        long = "unfreezeTimeoutSeconds",
        value_name = "SECONDS",
        default_value_t = 300,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    unfreeze_timeout_seconds: u64,
}

pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    let guest = format!("{}/{}", args.namespace, args.name);
    match launcher::ask(LIMIT, act(args)) {
        Ok(said) => {
            eprintln!("virt-freezer: {guest}: {said}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("virt-freezer: {guest}: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn act(args: Args) -> Result<&'static str, String> {
    let mut launcher = launcher::connect().await?;
    let said = |status: tonic::Status| status.message().to_owned();
    let mut states = launcher.watch(WatchRequest {}).await.map_err(said)?.into_inner();
    let state = states.message().await.map_err(said)?;
    if let Some(why) = state.as_ref().and_then(|state| left_alone(state, args.freeze)) {
        return Ok(why);
    }
    let (action, done, thaw_seconds) = if args.freeze {
        (
            Action::Freeze,
            "the file systems stand still",
            args.unfreeze_timeout_seconds,
        )
    } else {
        (Action::Unfreeze, "the file systems were thawed", 0)
    };
    let request = ActRequest {
        action: action.into(),
        thaw_seconds,
        ..ActRequest::default()
    };
    launcher.act(request).await.map_err(said)?;
    Ok(done)
}

/// Why nothing is asked of the guest.
fn left_alone(state: &GuestState, freeze: bool) -> Option<&'static str> {
    match state.lifecycle() {
        Lifecycle::Running if state.agent_connected => None,
        Lifecycle::Running if freeze => Some("the guest has no agent to ask; its file systems go on"),
        Lifecycle::Running => Some("the guest has no agent to ask; what stands still thaws by itself"),
        Lifecycle::Paused => Some("the guest is paused and writes nothing"),
        Lifecycle::ShuttingDown => Some("the guest is shutting down"),
        Lifecycle::Unspecified | Lifecycle::Waiting | Lifecycle::Preparing => Some("the guest does not run yet"),
        Lifecycle::ShutOff | Lifecycle::Crashed | Lifecycle::Failed => Some("the guest has ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["virt-freezer", "--name", "vm", "--namespace", "ns"], words].concat())
    }

    #[test]
    fn one_thing_is_asked_for() {
        let args = parse(&["--freeze"]).unwrap();
        assert_eq!((args.freeze, args.unfreeze_timeout_seconds), (true, 300));
        assert_eq!((args.name.as_str(), args.namespace.as_str()), ("vm", "ns"));
        let args = parse(&["--freeze", "--unfreezeTimeoutSeconds", "120"]).unwrap();
        assert_eq!(args.unfreeze_timeout_seconds, 120);
        assert!(!parse(&["--unfreeze"]).unwrap().freeze);
        assert!(parse(&[]).is_err());
        assert!(parse(&["--freeze", "--unfreeze"]).is_err());
        // 0 would leave the guest standing still for ever.
        assert!(parse(&["--freeze", "--unfreezeTimeoutSeconds", "0"]).is_err());
    }

    #[test]
    fn guests_that_are_left_alone() {
        let state = |lifecycle: Lifecycle, agent_connected| GuestState {
            lifecycle: lifecycle.into(),
            agent_connected,
            ..GuestState::default()
        };
        for (lifecycle, agent, freeze, expected) in [
            (Lifecycle::Running, true, true, None),
            (Lifecycle::Running, true, false, None),
            (Lifecycle::Running, false, true, Some("go on")),
            (Lifecycle::Running, false, false, Some("thaws by itself")),
            (Lifecycle::Paused, true, true, Some("paused")),
            (Lifecycle::ShuttingDown, true, true, Some("shutting down")),
            (Lifecycle::Preparing, false, true, Some("not run yet")),
            (Lifecycle::ShutOff, false, false, Some("has ended")),
        ] {
            match (left_alone(&state(lifecycle, agent), freeze), expected) {
                (Some(why), Some(part)) => assert!(why.contains(part), "{lifecycle:?}: {why}"),
                (found, expected) => assert_eq!(found, expected, "{lifecycle:?} {agent} {freeze}"),
            }
        }
    }
}
