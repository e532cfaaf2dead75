//! Log lines: one event per line on standard error, beginning with an RFC 3339 time.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

/// Name of the environment variable that overrides [`LogArgs::verbosity`] with a `tracing` filter.
pub const FILTER_VARIABLE: &str = "FERROVIRT_LOG";

/// How much is logged; flatten it into a process's arguments.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct LogArgs {
    /// Log verbosity: 0-2 what an operator wants to know, 3-4 each step, 5 and more everything of ours
    #[arg(short = 'v', long = "v", value_name = "LEVEL", default_value_t = 2, global = true)]
    pub verbosity: u8,
}

/// The `tracing` filter of a verbosity, KubeVirt's scale (2 is normal).
fn filter(verbosity: u8) -> &'static str {
    match verbosity {
        0..=2 => "info,h2=warn,hyper=warn,tower=warn,kube=warn,netlink_proto=warn",
        3..=4 => "debug,h2=info,hyper=info,tower=info,kube=info,netlink_proto=info,rustls=info",
        _ => "trace,h2=info,hyper=info,tower=info,netlink_proto=info,rustls=info",
    }
}

/// Replaces the filter of a process that has one to replace.
static RELOAD: OnceLock<Box<dyn Fn(u8) + Send + Sync>> = OnceLock::new();

/// Starts logging for this process. Further calls change nothing, so tests may call it freely.
pub fn init(args: LogArgs) {
    let fixed = std::env::var(FILTER_VARIABLE)
        .ok()
        .and_then(|directives| EnvFilter::try_new(directives).ok());
    let is_fixed = fixed.is_some();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(fixed.unwrap_or_else(|| EnvFilter::new(filter(args.verbosity))))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter_reloading();
    let handle = builder.reload_handle();
    // Only fails when a subscriber is set already, which is what a second call wants.
    let first = tracing::subscriber::set_global_default(builder.finish()).is_ok();
    if first && !is_fixed {
        let set = move |verbosity| {
            if let Err(error) = handle.reload(EnvFilter::new(filter(verbosity))) {
                tracing::warn!(%error, "the log verbosity cannot be changed");
            }
        };
        // Nobody was first before.
        let _ = RELOAD.set(Box::new(set));
    }
}

/// Changes how much is logged from now on, unless [`FILTER_VARIABLE`] says it. Needs [`init`].
pub fn set_verbosity(verbosity: u8) {
    if let Some(set) = RELOAD.get() {
        set(verbosity);
    }
}

/// An error with all its sources on one line, for a log or a status message.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_parses() {
        for verbosity in 0..=9 {
            EnvFilter::try_new(filter(verbosity)).unwrap();
        }
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the pod directory")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "cannot read the pod directory: disk on fire");
    }
}
