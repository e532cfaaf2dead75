//! What a stream goes to: `vm/NAME`, `vmi/NAME/NAMESPACE`, `user@vm/NAME`.

/// Kind of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `VirtualMachine`.
    Vm,
    /// `VirtualMachineInstance`.
    Vmi,
}

impl Kind {
    /// Reads the ways that people spell it.
    ///
    /// # Errors
    /// Says what is possible.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.to_lowercase().as_str() {
            "vm" | "vms" | "virtualmachine" | "virtualmachines" => Ok(Self::Vm),
            "vmi" | "vmis" | "virtualmachineinstance" | "virtualmachineinstances" => Ok(Self::Vmi),
            _ => Err(format!("unsupported resource type {text:?}: use vm or vmi")),
        }
    }

    /// Name in paths of the API.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Vm => "virtualmachines",
            Self::Vmi => "virtualmachineinstances",
        }
    }

    /// Short name, as on the command line.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Vmi => "vmi",
        }
    }
}

/// An object that streams go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its namespace, if the user says so.
    pub namespace: Option<String>,
}

impl Target {
    /// Reads `TYPE/NAME[/NAMESPACE]`.
    ///
    /// # Errors
    /// Says what is wrong, and how it is written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (kind, name, namespace) = match parts.as_slice() {
            [kind, name] => (kind, name, None),
            [kind, name, namespace] => (kind, name, Some(*namespace)),
            _ => {
                return Err(format!(
                    "target {text:?} must contain type and name separated by '/', for example vm/myvm or vmi/myvmi/mynamespace"
                ));
            }
        };
        let kind = Kind::parse(kind)?;
        if name.is_empty() {
            return Err(format!("target {text:?}: expected a name after '/'"));
        }
        if namespace == Some("") {
            return Err(format!("target {text:?}: expected a namespace after the second '/'"));
        }
        if let Some(odd) = [*name, namespace.unwrap_or_default()]
            .into_iter()
            .find(|part| !is_name(part))
        {
            return Err(format!("target {text:?}: {odd:?} is no name of a Kubernetes object"));
        }
        Ok(Self {
            kind,
            name: (*name).to_owned(),
            namespace: namespace.map(str::to_owned),
        })
    }
}

/// Names go into URLs and into shell commands: only what Kubernetes allows gets there.
pub(crate) fn is_name(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
        && !text.starts_with(['-', '.'])
}

/// A target and who logs in there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user, if given.
    pub user: Option<String>,
    /// Where.
    pub target: Target,
}

impl Login {
    /// Reads `[USER@]TYPE/NAME[/NAMESPACE]`.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        // A user's name may contain '@', a target cannot.
        let (user, target) = match text.rsplit_once('@') {
            Some(("", _)) => return Err(format!("target {text:?}: expected a user before '@'")),
            Some((user, target)) => (Some(user.to_owned()), target),
            None => (None, text),
        };
        Ok(Self {
            user,
            target: Target::parse(target)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let target = |kind, name: &str, namespace: Option<&str>| {
            Ok(Target {
                kind,
                name: name.into(),
                namespace: namespace.map(Into::into),
            })
        };
        for (text, expected) in [
            ("vm/a", target(Kind::Vm, "a", None)),
            ("vmi/a.b/ns", target(Kind::Vmi, "a.b", Some("ns"))),
            ("VirtualMachineInstances/a", target(Kind::Vmi, "a", None)),
        ] {
            assert_eq!(Target::parse(text), expected, "{text}");
        }
        for (text, why) in [
            ("a", "type and name"),
            ("pod/a", "use vm or vmi"),
            ("vm/", "expected a name"),
            ("vm/a/", "expected a namespace"),
            ("vm/a/b/c", "type and name"),
            ("vm/$(x)", "no name"),
            ("vm/-a", "no name"),
        ] {
            let error = Target::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn logins() {
        let login = Login::parse("u@corp@vmi/a/ns").unwrap();
        assert_eq!(
            (login.user.as_deref(), login.target.name.as_str()),
            (Some("u@corp"), "a")
        );
        assert_eq!(Login::parse("vm/a").unwrap().user, None);
        assert!(Login::parse("@vm/a").is_err());
        assert!(Login::parse("u@a").is_err());
    }
}
