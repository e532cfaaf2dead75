//! `virtctl adm log-verbosity`: how much the components log, in the KubeVirt object.

use anyhow::{Context, bail};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Map, Value, json};

use crate::cli::LogVerbosity;
use crate::connection::Connection;
use crate::{kubevirt, say};

/// Of a component of which nothing is said.
const DEFAULT: i64 = 2;

/// Shows or sets.
pub(crate) async fn run(connection: &Connection, arguments: &LogVerbosity) -> anyhow::Result<()> {
    let plan = plan(arguments)?;
    let found = kubevirt::find(connection).await?;
    let levels = match plan {
        Plan::Show(components) => return say(shown(&components, &found.data)),
        Plan::Set(levels) => levels,
    };
    let patch = json!({"spec": {"configuration": {"developerConfiguration": {"logVerbosity": levels}}}});
    let (namespace, name) = (found.namespace().unwrap_or_default(), found.name_any());
    let patched = kubevirt::of(connection, &namespace)
        .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
        .await;
    patched.with_context(|| format!("cannot change KubeVirt {namespace}/{name}"))?;
    say("successfully set/reset the log verbosity")
}

/// What is to be done.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Names of components and of their fields.
    Show(Vec<(&'static str, &'static str)>),
    /// Fields with their new values; null: the default.
    Set(Map<String, Value>),
}

/// # Errors
/// The flags ask for nothing, or for both.
fn plan(arguments: &LogVerbosity) -> anyhow::Result<Plan> {
    let LogVerbosity {
        virt_operator,
        virt_api,
        virt_controller,
        virt_handler,
        virt_launcher,
        all,
        reset,
    } = arguments;
    let components = [
        ("virt-api", "virtAPI", virt_api),
        ("virt-controller", "virtController", virt_controller),
        ("virt-handler", "virtHandler", virt_handler),
        ("virt-launcher", "virtLauncher", virt_launcher),
        ("virt-operator", "virtOperator", virt_operator),
    ];
    let mut show = Vec::new();
    let mut set = Map::new();
    for (name, field, given) in components {
        match all {
            Some(Some(level)) => drop(set.insert(field.to_owned(), (*level).into())),
            Some(None) => show.push((name, field)),
            None if *reset => drop(set.insert(field.to_owned(), Value::Null)),
            None => {}
        }
        match given {
            Some(Some(level)) => drop(set.insert(field.to_owned(), (*level).into())),
            Some(None) if *all != Some(None) => show.push((name, field)),
            Some(None) | None => {}
        }
    }
    match (show.is_empty(), set.is_empty(), reset) {
        (false, true, false) => Ok(Plan::Show(show)),
        (true, false, _) => Ok(Plan::Set(set)),
        (true, true, _) => {
            bail!("name a component, such as --virt-handler or --virt-handler=7, or use --all or --reset")
        }
        (false, ..) => bail!("levels are either shown or set: give all components a level, or none"),
    }
}

fn shown(components: &[(&str, &str)], kubevirt: &Value) -> String {
    let levels = &kubevirt["spec"]["configuration"]["developerConfiguration"]["logVerbosity"];
    let level = |field: &str| levels[field].as_i64().filter(|level| *level != 0).unwrap_or(DEFAULT);
    let lines = components
        .iter()
        .map(|(name, field)| format!("{name} = {}", level(field)));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;
    use crate::cli::{Adm, Cli, Command, command};

    fn planned(line: &str) -> anyhow::Result<Plan> {
        let words = ["virtctl", "adm", "log-verbosity"]
            .into_iter()
            .chain(line.split_whitespace());
        let cli = Cli::from_arg_matches(&command("virtctl").try_get_matches_from(words)?)?;
        let Command::Adm(Adm::LogVerbosity(arguments)) = cli.command else {
            panic!("{line} is no log-verbosity");
        };
        plan(&arguments)
    }

    #[test]
    fn levels_are_set() {
        for (line, expected) in [
            ("--virt-handler=7", json!({"virtHandler": 7})),
            (
                "--virt-api=0 --virt-launcher=9",
                json!({"virtAPI": 0, "virtLauncher": 9}),
            ),
            (
                "--all=3 --virt-api=5",
                json!({"virtAPI": 5, "virtController": 3, "virtHandler": 3, "virtLauncher": 3, "virtOperator": 3}),
            ),
            (
                "--reset --virt-launcher=4",
                json!({"virtAPI": null, "virtController": null, "virtHandler": null, "virtLauncher": 4,
                    "virtOperator": null}),
            ),
        ] {
            let Plan::Set(found) = planned(line).unwrap() else {
                panic!("{line} sets nothing");
            };
            assert_eq!(Value::from(found), expected, "{line}");
        }
        for (line, why) in [
            ("", "name a component"),
            ("--virt-api --virt-handler=3", "either shown or set"),
            ("--all --virt-handler=3", "either shown or set"),
            ("--reset --virt-api", "either shown or set"),
            ("--virt-api=10", "from 0 to 9"),
            ("--virt-api=x", "from 0 to 9"),
        ] {
            let error = planned(line).unwrap_err().to_string();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn levels_are_shown() {
        let levels = json!({"virtHandler": 7});
        let kubevirt = json!({"spec": {"configuration": {"developerConfiguration": {"logVerbosity": levels}}}});
        for (line, expected) in [
            ("--virt-handler --virt-api", "virt-api = 2\nvirt-handler = 7"),
            (
                "--all",
                "virt-api = 2\nvirt-controller = 2\nvirt-handler = 7\nvirt-launcher = 2\nvirt-operator = 2",
            ),
        ] {
            let Plan::Show(found) = planned(line).unwrap() else {
                panic!("{line} shows nothing");
            };
            assert_eq!(shown(&found, &kubevirt), expected, "{line}");
        }
    }
}
