//! What is done next. Pure.
//!
//! ```text
//!  install    kinds ─► accounts, certificates, webhooks, services ─► all processes ─► Deployed
//!  update       "                        "                  ─► virt-handler ─► virt-controller ─► virt-api ─► Deployed
//!  rollback     "                        "                  ─► virt-api ─► virt-controller ─► virt-handler ─► Deployed
//!  removal    kinds, and with them their objects ─► webhooks, policies ─► processes ─► the rest ─► Deleted
//! ```
//!
//! In an update a new virt-api admits what is new only when all nodes understand it; a rollback goes the other way.
//! In a removal the processes go after the VMs, as they have to stop them.

use super::Component;
use super::resources::{Id, Stage};

/// In which order processes are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All at once: there is nothing that could disagree.
    Install,
    /// To a newer version, or one of which nothing is known.
    Update,
    /// To an older version.
    Rollback,
}

impl Mode {
    /// From what was last completely installed to what should be.
    #[must_use]
    pub fn of(observed: Option<&str>, target: &str) -> Self {
        match observed {
            None => Self::Install,
            Some(observed) if observed == target => Self::Install,
            Some(observed) => match (numbers(observed), numbers(target)) {
                (Some(old), Some(new)) if new < old => Self::Rollback,
                _ => Self::Update,
            },
        }
    }

    fn steps(self) -> &'static [Step] {
        const API: Step = &[Stage::Workload(Component::Api)];
        const CONTROLLER: Step = &[Stage::Workload(Component::Controller)];
        const HANDLER: Step = &[Stage::Workload(Component::Handler)];
        const FIRST: [Step; 2] = [&[Stage::Definitions], &[Stage::Base]];
        const ALL: Step = &[
            Stage::Workload(Component::Api),
            Stage::Workload(Component::Controller),
            Stage::Workload(Component::Handler),
        ];
        match self {
            Self::Install => &[FIRST[0], FIRST[1], ALL],
            Self::Update => &[FIRST[0], FIRST[1], HANDLER, CONTROLLER, API],
            Self::Rollback => &[FIRST[0], FIRST[1], API, CONTROLLER, HANDLER],
        }
    }
}

type Step = &'static [Stage];

/// The numbers of a version such as `v1.2.3-rc`.
fn numbers(version: &str) -> Option<Vec<u64>> {
    let core = version.strip_prefix('v').unwrap_or(version);
    let core = core.split(['-', '+']).next().unwrap_or_default();
    core.split('.').map(|n| n.parse().ok()).collect()
}

/// What is known of an object that should exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its stage.
    pub stage: Stage,
    /// It exists.
    pub present: bool,
    /// It is as it should be.
    pub current: bool,
    /// It does what it is for: a kind is served, a process has been rolled out.
    pub ready: bool,
}

/// The next step; ask again when something has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Write these.
    Apply(Vec<usize>),
    /// Wait for these.
    Wait(Vec<usize>),
    /// Everything is there and works.
    Done,
}

/// Decides what is installed next. Answers with places in `objects`.
#[must_use]
pub fn next(objects: &[Seen], mode: Mode) -> Next {
    let places = |test: &dyn Fn(&Seen) -> bool| -> Vec<usize> {
        let all = objects.iter().enumerate();
        all.filter(|(_, seen)| test(seen)).map(|(at, _)| at).collect()
    };
    for step in mode.steps() {
        let is_workload = matches!(step.first(), Some(Stage::Workload(_)));
        // A process that is not there at all serves nobody, whatever its turn is.
        let missing = |seen: &Seen| is_workload && !seen.present && matches!(seen.stage, Stage::Workload(_));
        let todo = places(&|seen| !seen.current && (step.contains(&seen.stage) || missing(seen)));
        if !todo.is_empty() {
            return Next::Apply(todo);
        }
        let waiting = places(&|seen| !seen.ready && step.contains(&seen.stage));
        if !waiting.is_empty() {
            return Next::Wait(waiting);
        }
    }
    Next::Done
}

/// What is removed next, of all that the operator has installed and that is still there. When nothing is left, the
/// removal is complete.
#[must_use]
pub fn removal(present: &[Id]) -> Vec<Id> {
    const STEPS: [&[&str]; 3] = [
        &["CustomResourceDefinition"],
        &[
            "ValidatingWebhookConfiguration",
            "MutatingWebhookConfiguration",
            "ValidatingAdmissionPolicyBinding",
            "ValidatingAdmissionPolicy",
            "APIService",
        ],
        &["Deployment", "DaemonSet"],
    ];
    for step in STEPS {
        let now: Vec<Id> = present
            .iter()
            .filter(|id| step.contains(&id.kind.kind))
            .cloned()
            .collect();
        if !now.is_empty() {
            return now;
        }
    }
    let mut rest = present.to_vec();
    rest.sort_by(|a, b| b.cmp(a));
    rest
}

#[cfg(test)]
mod tests {
    use super::super::resources::Kind;
    use super::*;

    #[test]
    fn modes() {
        for (observed, target, expected) in [
            (None, "v1.0.0", Mode::Install),
            (Some("v1.0.0"), "v1.0.0", Mode::Install),
            (Some("v1.9.0"), "v1.10.0", Mode::Update),
            (Some("v1.10.0"), "v1.9.3", Mode::Rollback),
            (Some("devel"), "v1.0.0", Mode::Update),
            (Some("v1.0.0"), "latest", Mode::Update),
        ] {
            assert_eq!(Mode::of(observed, target), expected, "{observed:?} → {target}");
        }
    }

    fn seen(stage: Stage, word: &str) -> Seen {
        Seen {
            stage,
            present: word != "missing",
            current: matches!(word, "current" | "ready"),
            ready: matches!(word, "ready" | "old"),
        }
    }

    #[test]
    fn steps() {
        use Component::{Api, Controller, Handler};
        use Next::{Apply, Done, Wait};
        // Kinds, base, virt-api, virt-controller, virt-handler.
        for (mode, states, expected) in [
            (Mode::Install, ["missing"; 5], Apply(vec![0])),
            (
                Mode::Install,
                ["current", "missing", "missing", "missing", "missing"],
                Wait(vec![0]),
            ),
            (
                Mode::Install,
                ["ready", "missing", "missing", "missing", "missing"],
                Apply(vec![1]),
            ),
            (
                Mode::Install,
                ["ready", "ready", "missing", "missing", "missing"],
                Apply(vec![2, 3, 4]),
            ),
            (
                Mode::Install,
                ["ready", "ready", "ready", "current", "current"],
                Wait(vec![3, 4]),
            ),
            (Mode::Install, ["ready"; 5], Done),
            // Somebody edited or removed something.
            (
                Mode::Install,
                ["ready", "old", "ready", "ready", "missing"],
                Apply(vec![1]),
            ),
            (Mode::Update, ["old"; 5], Apply(vec![0])),
            (Mode::Update, ["ready", "ready", "old", "old", "old"], Apply(vec![4])),
            (Mode::Update, ["ready", "ready", "old", "old", "current"], Wait(vec![4])),
            (Mode::Update, ["ready", "ready", "old", "old", "ready"], Apply(vec![3])),
            (
                Mode::Update,
                ["ready", "ready", "old", "current", "ready"],
                Wait(vec![3]),
            ),
            (
                Mode::Update,
                ["ready", "ready", "old", "ready", "ready"],
                Apply(vec![2]),
            ),
            (
                Mode::Update,
                ["ready", "ready", "missing", "old", "current"],
                Apply(vec![2]),
            ),
            (Mode::Rollback, ["ready", "ready", "old", "old", "old"], Apply(vec![2])),
            (
                Mode::Rollback,
                ["ready", "ready", "current", "old", "old"],
                Wait(vec![2]),
            ),
            (
                Mode::Rollback,
                ["ready", "ready", "ready", "ready", "old"],
                Apply(vec![4]),
            ),
        ] {
            let stages = [
                Stage::Definitions,
                Stage::Base,
                Stage::Workload(Api),
                Stage::Workload(Controller),
                Stage::Workload(Handler),
            ];
            let objects: Vec<Seen> = stages.into_iter().zip(states).map(|(s, w)| seen(s, w)).collect();
            assert_eq!(next(&objects, mode), expected, "{mode:?} {states:?}");
        }
    }

    #[test]
    fn removal_goes_from_users_to_foundations() {
        let id = |kind: &str| Id {
            kind: Kind::named(kind),
            namespace: String::new(),
            name: "x".to_owned(),
        };
        let mut left: Vec<Id> = [
            "Secret",
            "ClusterRole",
            "DaemonSet",
            "APIService",
            "CustomResourceDefinition",
            "Deployment",
            "Service",
        ]
        .map(id)
        .to_vec();
        let mut order = Vec::new();
        while !left.is_empty() {
            let step = removal(&left);
            left.retain(|id| !step.contains(id));
            order.push(step.iter().map(|id| id.kind.kind).collect::<Vec<_>>().join(" "));
        }
        assert_eq!(
            order,
            [
                "CustomResourceDefinition",
                "APIService",
                "DaemonSet Deployment",
                "Service Secret ClusterRole"
            ]
        );
    }
}
