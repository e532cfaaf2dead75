//! `virtctl ssh` and `scp`: the local programs, whose connection goes through `virtctl port-forward --stdio`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};

use crate::cli::{Global, Scp, Ssh, SshFlags};
use crate::connection;
use crate::target::{Login, Target};

/// Becomes the local ssh.
pub(crate) fn ssh(global: &Global, arguments: &Ssh) -> anyhow::Result<ExitCode> {
    let login = Login::parse(&arguments.target).map_err(anyhow::Error::msg)?;
    let namespace = namespace(global, &login.target)?;
    let proxy = proxy_command(&program()?, global, &login.target, &namespace, &arguments.flags)?;
    become_program("ssh", ssh_arguments(arguments, &login, &namespace, &proxy))
}

/// Becomes the local scp.
pub(crate) fn scp(global: &Global, arguments: &Scp) -> anyhow::Result<ExitCode> {
    let copy = Copy::parse(&arguments.source, &arguments.destination)?;
    let target = &copy.remote().login.target;
    let namespace = namespace(global, target)?;
    let proxy = proxy_command(&program()?, global, target, &namespace, &arguments.flags)?;
    become_program("scp", scp_arguments(arguments, &copy, &namespace, &proxy))
}

fn program() -> anyhow::Result<String> {
    let path = std::env::current_exe().context("cannot find this program")?;
    path.into_os_string()
        .into_string()
        .map_err(|path| anyhow!("the path of this program is not UTF-8: {path:?}"))
}

fn namespace(global: &Global, target: &Target) -> anyhow::Result<String> {
    match &target.namespace {
        Some(namespace) => Ok(namespace.clone()),
        None => connection::namespace(global),
    }
}

/// Replaces this process, so that the terminal, signals and the exit code are those of `program`.
fn become_program(program: &str, arguments: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let error = std::process::Command::new(program).args(arguments).exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        bail!("{program} is not installed here: install the package openssh-client");
    }
    Err(error).with_context(|| format!("cannot start {program}"))
}

/// What ssh runs to reach the guest. It goes through ssh's own expansion of `%` and then a shell.
fn proxy_command(
    program: &str,
    global: &Global,
    target: &Target,
    namespace: &str,
    flags: &SshFlags,
) -> anyhow::Result<String> {
    let mut words = vec![program.to_owned()];
    let mut flag = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            words.push(format!("--{name}={value}"));
        }
    };
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .ok_or_else(|| anyhow!("{path:?} is not UTF-8"))
    };
    let kubeconfig = global.kubeconfig.as_deref().map(text).transpose()?;
    let authority = global.certificate_authority.as_deref().map(text).transpose()?;
    let certificate = global.client_certificate.as_deref().map(text).transpose()?;
    let key = global.client_key.as_deref().map(text).transpose()?;
    flag("kubeconfig", kubeconfig.as_deref());
    flag("context", global.context.as_deref());
    flag("cluster", global.cluster.as_deref());
    flag("user", global.user.as_deref());
    flag("server", global.server.as_deref());
    flag("token", global.token.as_deref());
    flag("as", global.impersonate.as_deref());
    for group in &global.impersonate_groups {
        flag("as-group", Some(group));
    }
    flag("certificate-authority", authority.as_deref());
    flag("client-certificate", certificate.as_deref());
    flag("client-key", key.as_deref());
    flag(
        "insecure-skip-tls-verify",
        global.insecure_skip_tls_verify.then_some("true"),
    );
    flag("tls-server-name", global.tls_server_name.as_deref());
    words.extend(["port-forward".to_owned(), "--stdio=true".to_owned()]);
    if flags.vsock {
        // SSH encrypts by itself.
        words.extend(["--vsock".to_owned(), "--vsock-tls=false".to_owned()]);
    }
    words.extend([
        format!("{}/{}/{namespace}", target.kind.short(), target.name),
        flags.port.to_string(),
    ]);
    let quoted: Vec<String> = words.iter().map(|word| quote(word)).collect();
    Ok(quoted.join(" ").replace('%', "%%"))
}

/// A word that a POSIX shell reads back unchanged.
fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,@".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The name that known host keys are kept under.
fn host(target: &Target, namespace: &str) -> String {
    format!("{}.{}.{namespace}", target.kind.short(), target.name)
}

fn common_arguments(flags: &SshFlags, proxy: &str) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["-o".into(), format!("ProxyCommand={proxy}").into()];
    let known_hosts = flags.known_hosts.as_deref().unwrap_or("~/.ssh/kubevirt_known_hosts");
    if !known_hosts.is_empty() {
        let value = known_hosts.replace('%', "%%").replace(' ', "\\ ");
        arguments.extend(["-o".into(), format!("UserKnownHostsFile={value}").into()]);
    }
    if let Some(path) = &flags.identity_file {
        arguments.extend(["-i".into(), path.clone().into_os_string()]);
    }
    arguments.extend(flags.local_ssh_opts.iter().map(OsString::from));
    arguments
}

fn ssh_arguments(arguments: &Ssh, login: &Login, namespace: &str, proxy: &str) -> Vec<OsString> {
    let mut list = common_arguments(&arguments.flags, proxy);
    if let Some(user) = login.user.as_ref().or(arguments.flags.username.as_ref()) {
        list.extend(["-l".into(), user.into()]);
    }
    list.push(host(&login.target, namespace).into());
    if let Some(command) = &arguments.command {
        list.extend(["--".into(), command.into()]);
    }
    list
}

fn scp_arguments(arguments: &Scp, copy: &Copy, namespace: &str, proxy: &str) -> Vec<OsString> {
    let mut list = common_arguments(&arguments.flags, proxy);
    if arguments.recursive {
        list.push("-r".into());
    }
    if arguments.preserve {
        list.push("-p".into());
    }
    let remote = copy.remote();
    let user = remote.login.user.as_ref().or(arguments.flags.username.as_ref());
    let user = user.map(|user| format!("{user}@")).unwrap_or_default();
    let there: OsString = format!("{user}{}:{}", host(&remote.login.target, namespace), remote.path).into();
    list.push("--".into());
    match copy {
        Copy::From(_, local) => list.extend([there, local.into()]),
        Copy::To(local, _) => list.extend([local.into(), there]),
    }
    list
}

/// A path in a guest.
#[derive(Debug)]
struct Remote {
    login: Login,
    path: String,
}

impl Remote {
    /// `None` for a local path.
    fn parse(text: &str) -> Option<anyhow::Result<Self>> {
        let (login, path) = text.split_once(':')?;
        if login.starts_with(['/', '.', '~']) || !login.contains('/') {
            return None;
        }
        Some(Login::parse(login).map_err(anyhow::Error::msg).map(|login| Self {
            login,
            path: path.to_owned(),
        }))
    }
}

/// What is copied where.
#[derive(Debug)]
enum Copy {
    /// From a guest to here.
    From(Remote, String),
    /// From here to a guest.
    To(String, Remote),
}

impl Copy {
    fn parse(source: &str, destination: &str) -> anyhow::Result<Self> {
        match (
            Remote::parse(source).transpose()?,
            Remote::parse(destination).transpose()?,
        ) {
            (Some(from), None) => Ok(Self::From(from, destination.to_owned())),
            (None, Some(to)) => Ok(Self::To(source.to_owned(), to)),
            (Some(_), Some(_)) => bail!("copying from a remote location to another remote location is not supported"),
            (None, None) => bail!(
                "neither {source:?} nor {destination:?} is a remote location: write it as [USER@]vm/NAME[/NAMESPACE]:PATH"
            ),
        }
    }

    fn remote(&self) -> &Remote {
        match self {
            Self::From(remote, _) | Self::To(_, remote) => remote,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Cli, Command};
    use clap::FromArgMatches;

    fn parse(line: &[&str]) -> Cli {
        let found = cli::command("virtctl").try_get_matches_from(line).unwrap();
        Cli::from_arg_matches(&found).unwrap()
    }

    fn words(list: &[OsString]) -> Vec<&str> {
        list.iter().map(|word| word.to_str().unwrap()).collect()
    }

    #[test]
    fn ssh_is_called_so() {
        let line = [
            "virtctl",
            "ssh",
            "-n",
            "ns",
            "-i",
            "key",
            "-p",
            "2222",
            "-t",
            "-o StrictHostKeyChecking=no",
            "--context=a b",
            "me@vmi/x",
            "-c",
            "uname -a",
        ];
        let cli = parse(&line);
        let Command::Ssh(arguments) = cli.command else { panic!() };
        let login = Login::parse(&arguments.target).unwrap();
        let proxy = proxy_command("/opt/100%/virtctl", &cli.global, &login.target, "ns", &arguments.flags).unwrap();
        assert_eq!(
            proxy,
            "'/opt/100%%/virtctl' '--context=a b' port-forward --stdio=true vmi/x/ns 2222"
        );
        let list = ssh_arguments(&arguments, &login, "ns", "PROXY");
        assert_eq!(
            words(&list),
            [
                "-o",
                "ProxyCommand=PROXY",
                "-o",
                "UserKnownHostsFile=~/.ssh/kubevirt_known_hosts",
                "-i",
                "key",
                "-o StrictHostKeyChecking=no",
                "-l",
                "me",
                "vmi.x.ns",
                "--",
                "uname -a"
            ]
        );
    }

    #[test]
    fn sockets_and_users() {
        for (line, user, proxy) in [
            (
                &["me@vm/x", "-l", "you"][..],
                Some("me"),
                "virtctl port-forward --stdio=true vm/x/ns 22",
            ),
            (
                &["vm/x", "-l", "you"],
                Some("you"),
                "virtctl port-forward --stdio=true vm/x/ns 22",
            ),
            (
                &["vm/x", "--vsock"],
                None,
                "virtctl port-forward --stdio=true --vsock --vsock-tls=false vm/x/ns 22",
            ),
        ] {
            let cli = parse(&[&["virtctl", "ssh"], line].concat());
            let Command::Ssh(arguments) = cli.command else { panic!() };
            let login = Login::parse(&arguments.target).unwrap();
            let found = proxy_command("virtctl", &cli.global, &login.target, "ns", &arguments.flags).unwrap();
            assert_eq!(found, proxy, "{line:?}");
            let list = ssh_arguments(&arguments, &login, "ns", "PROXY");
            let list = words(&list);
            let given = list.iter().position(|word| *word == "-l").map(|index| list[index + 1]);
            assert_eq!(given, user, "{line:?}");
        }
    }

    #[test]
    fn scp_is_called_so() {
        let rows: [(&[&str], &[&str]); 3] = [
            (&["file", "me@vm/x:dir/"], &["--", "file", "me@vm.x.ns:dir/"]),
            (
                &["--recursive", "--preserve", "-l", "you", "me@vm/x/other:a:b", "."],
                &["-r", "-p", "--", "me@vm.x.ns:a:b", "."],
            ),
            (&["-l", "you", "vm/x:a", "."], &["--", "you@vm.x.ns:a", "."]),
        ];
        for (line, expected) in rows {
            let cli = parse(&[&["virtctl", "scp"], line].concat());
            let Command::Scp(arguments) = cli.command else { panic!() };
            let copy = Copy::parse(&arguments.source, &arguments.destination).unwrap();
            let list = scp_arguments(&arguments, &copy, "ns", "PROXY");
            assert_eq!(&words(&list)[4..], expected, "{line:?}");
        }
    }

    #[test]
    fn scp_needs_one_remote_side() {
        for (source, destination, why) in [
            ("a", "b", "neither"),
            ("./vm/a:b", "/vm/a:b", "neither"),
            ("vm/a:b", "vm/a:b", "another remote"),
            ("pod/a:b", "c", "use vm or vmi"),
        ] {
            let error = Copy::parse(source, destination).unwrap_err().to_string();
            assert!(error.contains(why), "{source} {destination}: {error}");
        }
    }

    #[test]
    fn quoting() {
        for (word, expected) in [
            ("a-b/c=d", "a-b/c=d"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$x", "'$x'"),
        ] {
            assert_eq!(quote(word), expected);
        }
    }
}
