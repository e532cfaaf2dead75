//! What a machine says of credentials, and what is to be done. Pure.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Map, Value, json};

use crate::cli::{Goal, Way};

/// What a Secret carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    SshKey,
    Password,
}

impl Carried {
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::SshKey => "SSH key",
            Self::Password => "password",
        }
    }

    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::SshKey => "ssh-keys",
            Self::Password => "passwords",
        }
    }

    fn field(self) -> &'static str {
        match self {
            Self::SshKey => "sshPublicKey",
            Self::Password => "userPassword",
        }
    }
}

/// What becomes of a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It goes into this Secret.
    Update(String),
    /// It goes into a new Secret, with this name or any.
    Create(Option<String>),
}

fn credentials(vm: &Value) -> &[Value] {
    let list = vm
        .pointer("/spec/template/spec/accessCredentials")
        .and_then(Value::as_array);
    list.map(Vec::as_slice).unwrap_or_default()
}

/// The Secrets that the guest agent takes a user's credentials from. Those of passwords are about any user.
pub(super) fn used(vm: &Value, carried: Carried, user: &str) -> Vec<String> {
    let of_user = |credential: &&Value| {
        let agent = &credential["propagationMethod"]["qemuGuestAgent"];
        match carried {
            Carried::SshKey => agent["users"]
                .as_array()
                .is_some_and(|users| users.iter().any(|one| one == user)),
            Carried::Password => agent.is_object(),
        }
    };
    credentials(vm)
        .iter()
        .map(|credential| &credential[carried.field()])
        .filter(of_user)
        .filter_map(|credential| credential.pointer("/source/secret/secretName")?.as_str())
        .map(str::to_owned)
        .collect()
}

/// The machine's credentials with one more Secret.
pub(super) fn with(vm: &Value, carried: Carried, user: &str, secret: &str) -> Vec<Value> {
    let agent = match carried {
        Carried::SshKey => json!({"users": [user]}),
        Carried::Password => json!({}),
    };
    let mut all = credentials(vm).to_vec();
    all.push(json!({carried.field(): {
        "source": {"secret": {"secretName": secret}},
        "propagationMethod": {"qemuGuestAgent": agent},
    }}));
    all
}

/// Whether a Secret is changed or made; `known`: the Secrets in use, and whether they belong to the machine.
///
/// # Errors
/// The flags do not fit to each other or to the machine.
pub(super) fn step(way: &Way, goal: &Goal, known: &[(String, bool)]) -> Result<Step, String> {
    let named = goal.secret.as_ref();
    let chosen = match named {
        Some(name) => known.iter().find(|(known, _)| known == name),
        None => known.iter().find(|(_, own)| *own).or(known.first()),
    };
    match (way.create_secret, way.update_secret) {
        (true, true) => Err("--create-secret and --update-secret cannot be used together".to_owned()),
        (true, false) => Ok(Step::Create(named.cloned())),
        (false, true) => match (chosen, named) {
            (Some((name, _)), _) => Ok(Step::Update(name.clone())),
            (None, Some(name)) => Err(format!(
                "VirtualMachine {} takes nothing of user {} from Secret {name}: use --create-secret",
                goal.vm, goal.user
            )),
            (None, None) => Err(format!(
                "VirtualMachine {} has no Secret for user {}: use --create-secret",
                goal.vm, goal.user
            )),
        },
        (false, false) => Ok(match chosen {
            Some((name, own)) if *own || goal.force || named.is_some() => Step::Update(name.clone()),
            _ => Step::Create(named.cloned()),
        }),
    }
}

/// The entries of a Secret.
pub(super) fn text(secret: &Secret) -> BTreeMap<String, String> {
    let data = secret.data.iter().flatten();
    data.map(|(name, ByteString(bytes))| (name.clone(), String::from_utf8_lossy(bytes).into_owned()))
        .collect()
}

/// Keys are the same whatever their comments.
fn same(line: &str, key: &str) -> bool {
    let essence = |text: &str| -> Vec<String> { text.split_whitespace().take(2).map(str::to_owned).collect() };
    essence(line) == essence(key)
}

/// Whether an entry has the key.
pub(super) fn holds(entries: &BTreeMap<String, String>, key: &str) -> bool {
    entries
        .values()
        .flat_map(|text| text.lines())
        .any(|line| same(line, key))
}

/// The changed entries, as a merge patch: what has no other key is removed.
pub(super) fn without(entries: &BTreeMap<String, String>, key: &str) -> Map<String, Value> {
    let touched = entries
        .iter()
        .filter(|(_, text)| text.lines().any(|line| same(line, key)));
    touched
        .map(|(name, text)| {
            let rest: Vec<&str> = text
                .lines()
                .filter(|line| !same(line, key) && !line.trim().is_empty())
                .collect();
            let value = if rest.is_empty() {
                Value::Null
            } else {
                json!(ByteString(rest.join("\n").into_bytes()))
            };
            (name.clone(), value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> Value {
        let ssh = |secret: &str, method: Value| json!({"sshPublicKey": {"source": {"secret": {"secretName": secret}}, "propagationMethod": method}});
        json!({"spec": {"template": {"spec": {"accessCredentials": [
            ssh("boot", json!({"noCloud": {}})),
            ssh("jane", json!({"qemuGuestAgent": {"users": ["jane", "joe"]}})),
            ssh("joe", json!({"qemuGuestAgent": {"users": ["joe"]}})),
            {"userPassword": {"source": {"secret": {"secretName": "words"}}, "propagationMethod": {"qemuGuestAgent": {}}}},
        ]}}}})
    }

    #[test]
    fn secrets_in_use() {
        for (carried, user, expected) in [
            (Carried::SshKey, "jane", &["jane"][..]),
            (Carried::SshKey, "joe", &["jane", "joe"]),
            (Carried::SshKey, "none", &[]),
            (Carried::Password, "jane", &["words"]),
        ] {
            assert_eq!(used(&vm(), carried, user), expected, "{carried:?} {user}");
        }
        assert!(used(&json!({}), Carried::SshKey, "jane").is_empty());
        let more = with(&vm(), Carried::SshKey, "ann", "new");
        assert_eq!(more.len(), 5);
        let changed = json!({"spec": {"template": {"spec": {"accessCredentials": more}}}});
        assert_eq!(used(&changed, Carried::SshKey, "ann"), ["new"]);
        let first = with(&json!({}), Carried::Password, "ann", "new");
        let changed = json!({"spec": {"template": {"spec": {"accessCredentials": first}}}});
        assert_eq!(used(&changed, Carried::Password, "ann"), ["new"]);
    }

    #[test]
    fn steps() {
        let own = ("own".to_owned(), true);
        let other = ("other".to_owned(), false);
        let update = |name: &str| Ok(Step::Update(name.to_owned()));
        let create = |name: Option<&str>| Ok(Step::Create(name.map(str::to_owned)));
        for (known, secret, force, create_secret, update_secret, expected) in [
            (vec![], None, false, false, false, create(None)),
            (vec![], Some("x"), false, false, false, create(Some("x"))),
            (
                vec![other.clone(), own.clone()],
                None,
                false,
                false,
                false,
                update("own"),
            ),
            (vec![other.clone()], None, false, false, false, create(None)),
            (vec![other.clone()], None, true, false, false, update("other")),
            (vec![other.clone()], Some("other"), false, false, false, update("other")),
            (vec![own.clone()], None, false, true, false, create(None)),
            (vec![other.clone()], None, false, false, true, update("other")),
            (vec![], None, false, false, true, Err("has no Secret")),
            (vec![own.clone()], Some("x"), false, false, true, Err("from Secret x")),
            (vec![own], None, false, true, true, Err("cannot be used together")),
        ] {
            let goal = Goal {
                vm: "a".into(),
                user: "u".into(),
                secret: secret.map(Into::into),
                force,
            };
            let way = Way {
                create_secret,
                update_secret,
            };
            let found = step(&way, &goal, &known);
            match expected {
                Ok(expected) => assert_eq!(found, Ok(expected), "{known:?} {secret:?}"),
                Err(why) => assert!(found.unwrap_err().contains(why), "{known:?} {secret:?}"),
            }
        }
    }

    #[test]
    fn keys_are_found_whatever_their_comments() {
        let entries = BTreeMap::from([
            ("one".to_owned(), "ssh-ed25519 AAAA jane@home\n".to_owned()),
            ("two".to_owned(), "ssh-rsa BBBB\nssh-ed25519 AAAA other".to_owned()),
            ("three".to_owned(), "ssh-rsa CCCC".to_owned()),
        ]);
        assert!(holds(&entries, "ssh-ed25519 AAAA"));
        assert!(!holds(&entries, "ssh-ed25519 DDDD"));
        let changed = without(&entries, "ssh-ed25519 AAAA x");
        assert_eq!(
            Value::from(changed),
            json!({"one": null, "two": ByteString(b"ssh-rsa BBBB".to_vec())})
        );
    }
}
