//! The configuration by which swtpm_setup makes a new TPM: with certificates of an authority that the launcher has for
//! itself (swtpm_setup.conf(5), swtpm-localca.conf(5)). The machine's own configuration is not used: it may be missing,
//! and its authority is not the launcher's to write to.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// How much of a log's end is told.
const TAIL: u64 = 512;

/// Writes the configuration into `directory`, which is swtpm_setup's `XDG_CONFIG_HOME`.
///
/// # Errors
/// With the path that cannot be written.
pub fn configure(directory: &Path) -> Result<(), (PathBuf, io::Error)> {
    let at = |name: &str| directory.join(name);
    let authority = at("swtpm-localca");
    fs::create_dir_all(&authority).map_err(|error| (authority.clone(), error))?;
    let (config, options) = (at("swtpm-localca.conf"), at("swtpm-localca.options"));
    let authority = authority.display();
    let files = [
        (
            at("swtpm_setup.conf"),
            format!(
                "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {}\n\
                 create_certs_tool_options = {}\nactive_pcr_banks = sha256\n",
                config.display(),
                options.display()
            ),
        ),
        (
            config.clone(),
            format!(
                "statedir = {authority}\nsigningkey = {authority}/signkey.pem\n\
                 issuercert = {authority}/issuercert.pem\ncertserial = {authority}/certserial\n"
            ),
        ),
        (
            options.clone(),
            "--platform-manufacturer KubeVirt\n--platform-version 1\n--platform-model QEMU\n".to_owned(),
        ),
    ];
    for (path, text) in files {
        fs::write(&path, text).map_err(|error| (path, error))?;
    }
    Ok(())
}

/// The end of the log that an error of libvirt names, since nobody else can read it once the pod is gone.
pub fn why(error: &str, logs: &Path) -> Option<String> {
    if !error.contains("-swtpm.log") {
        return None;
    }
    let entries = fs::read_dir(logs).ok()?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    let log = paths.find(|path| path.to_string_lossy().ends_with("-swtpm.log"))?;
    let mut file = fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut end = Vec::new();
    file.take(TAIL).read_to_end(&mut end).ok()?;
    let end = String::from_utf8_lossy(&end);
    let lines: Vec<&str> = end.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_log_is_told() {
        let logs = tempfile::tempdir().unwrap();
        let error = "could not run '/usr/bin/swtpm_setup'; check error log '/x/n_a-swtpm.log' for details";
        assert_eq!(why(error, logs.path()), None);
        let text = format!("{}\nCould not create pidfile\n\nEnding\n", "x".repeat(1000));
        fs::write(logs.path().join("n_a-swtpm.log"), text).unwrap();
        assert_eq!(why("the disk is full", logs.path()), None);
        let told = why(error, logs.path()).unwrap();
        assert!(told.ends_with("x; Could not create pidfile; Ending"), "{told}");
    }

    /// Shows `spec.domain.devices.tpm`.
    ///
    /// A new TPM with certificates, by the real swtpm_setup (Debian: swtpm-tools) and without the machine's
    /// configuration.
    #[test]
    fn swtpm_setup_accepts_the_configuration() {
        let private = tempfile::tempdir().unwrap();
        configure(private.path()).unwrap();
        let state = private.path().join("state");
        fs::create_dir(&state).unwrap();
        let mut setup = std::process::Command::new("swtpm_setup");
        setup
            .env("XDG_CONFIG_HOME", private.path())
            .env("TMPDIR", private.path())
            .args([
                "--tpm2",
                "--createek",
                "--create-ek-cert",
                "--create-platform-cert",
                "--lock-nvram",
            ])
            .arg("--tpm-state")
            .arg(&state);
        let output = setup.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(state.join("tpm2-00.permall").exists());
        assert!(
            private.path().join("swtpm-localca/issuercert.pem").exists(),
            "{output:?}"
        );
    }
}
