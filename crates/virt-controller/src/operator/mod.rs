//! virt-operator: installs, updates, heals and removes everything else, as the KubeVirt object says.
//!
//! ```text
//!  KubeVirt object ─┐
//!  release (images) ┼─► inputs ─► render ─► what should be ─┐
//!  certificates ────┘                                       ├─► plan ─► apply ─► status
//!  one watch per installed kind ─► mirror: what there is ───┘
//! ```
//!
//! Nothing is read or written while nothing changes. What a user deletes or edits comes in by the watches and is written
//! again. Everything is decided again from what is there, so the process may be killed at any time.

mod authority;
mod cdi;
pub mod certificates;
pub mod inputs;
pub mod manifests;
mod mirror;
pub mod plan;
mod process;
mod reconcile;
pub mod resources;
mod status;
mod uninstall;
mod webhook;

use std::fmt;

use serde::Serialize;

pub use inputs::Release;
pub use process::{Args, run};
pub use reconcile::{Settings, reconcile_until};

/// A process that the operator installs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Component {
    /// virt-api.
    Api,
    /// virt-controller.
    Controller,
    /// virt-handler.
    Handler,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Api, Self::Controller, Self::Handler];

    /// Its name everywhere.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Api => "virt-api",
            Self::Controller => "virt-controller",
            Self::Handler => "virt-handler",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// A patch of the user's.
    #[error(transparent)]
    Patch(#[from] resources::InvalidPatch),
    /// A duration of the user's.
    #[error(transparent)]
    Duration(#[from] certificates::InvalidDuration),
    /// No certificate can be made.
    #[error("cannot make a certificate")]
    Certificate(#[source] rcgen::Error),
    /// The API server did not do it.
    #[error("{doing} failed: {}", said(error))]
    Call {
        /// What was tried.
        doing: String,
        /// Why not.
        error: Box<kube::Error>,
    },
}

impl Trouble {
    fn call(doing: &str, error: kube::Error) -> Self {
        Self::Call {
            doing: doing.to_owned(),
            error: Box::new(error),
        }
    }

    /// What users should read in the object's conditions, and not only the log: what does not go away by itself.
    fn is_lasting(&self) -> bool {
        match self {
            Self::Patch(_) | Self::Duration(_) | Self::Certificate(_) => true,
            Self::Call { error, .. } => {
                matches!(&**error, kube::Error::Api(status) if (400..500).contains(&status.code) && ![409, 429].contains(&status.code))
            }
        }
    }
}

/// What the API server said, or why it did not.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => ferrovirt_runtime::logs::chain(other),
    }
}

/// A few of many.
fn some_of(ids: &[resources::Id]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> = ids.iter().take(SHOWN).map(ToString::to_string).collect();
    match ids.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
