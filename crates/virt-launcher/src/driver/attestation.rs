//! What the owner of a guest in AMD SEV's encrypted memory asks before it lets the guest run.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use ferrovirt_protocol::launcher::{SevMeasurementReply, SevPlatformReply};
use sha2::{Digest, Sha256};

use super::admission::{Attestation, admit_attestation};
use super::{Driver, Reply, RequestError};
use crate::hypervisor::sev::Secret;

/// Largest firmware that is read; OVMF has 4 MiB.
const MAX_FIRMWARE: u64 = 64 << 20;

impl Driver {
    /// In the background, as statistics are.
    pub(super) fn sev_platform(&self, reply: Reply<SevPlatformReply>) {
        if let Err(denied) = admit_attestation(self.state.phase(), Attestation::Platform) {
            return drop(reply.send(Err(RequestError::Denied(denied))));
        }
        let hypervisor = self.parts.hypervisor.clone();
        tokio::spawn(async move {
            let platform = hypervisor.sev_platform().await.map(|platform| SevPlatformReply {
                pdh: platform.pdh,
                cert_chain: platform.cert_chain,
            });
            let _ = reply.send(platform.map_err(RequestError::from));
        });
    }

    pub(super) fn sev_measurement(&self, reply: Reply<SevMeasurementReply>) {
        if let Err(denied) = admit_attestation(self.state.phase(), Attestation::Measurement) {
            return drop(reply.send(Err(RequestError::Denied(denied))));
        }
        let hypervisor = self.parts.hypervisor.clone();
        tokio::spawn(async move {
            let measured = async {
                let launch = hypervisor.sev_launch().await?;
                let loader = launch.loader.clone();
                let sum = tokio::task::spawn_blocking(move || sum(&loader)).await;
                let loader_sha = sum.map_err(io::Error::other).flatten();
                Ok::<_, RequestError>(SevMeasurementReply {
                    loader_sha: loader_sha.map_err(|error| RequestError::Firmware(launch.loader, error))?,
                    measurement: launch.measurement,
                    api_major: launch.api.0,
                    api_minor: launch.api.1,
                    build_id: launch.build_id,
                    policy: launch.policy,
                })
            };
            let _ = reply.send(measured.await);
        });
    }

    /// Waits for it: the guest must not be let run meanwhile.
    pub(super) async fn sev_secret(&self, secret: Secret) -> Result<(), RequestError> {
        admit_attestation(self.state.phase(), Attestation::Secret).map_err(RequestError::Denied)?;
        Ok(self.parts.hypervisor.sev_secret(secret).await?)
    }
}

/// SHA-256 of a file, in hexadecimal.
fn sum(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if file.metadata()?.len() > MAX_FIRMWARE {
        return Err(io::Error::other(format!(
            "it is larger than {} MiB",
            MAX_FIRMWARE >> 20
        )));
    }
    let mut file = file.take(MAX_FIRMWARE);
    let mut sum = Sha256::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            length => sum.update(&piece[..length]),
        }
    }
    Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_is_summed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.fd");
        std::fs::write(&path, "abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sum(&path).unwrap(), expected);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(MAX_FIRMWARE + 1)
            .unwrap();
        assert!(sum(&path).unwrap_err().to_string().contains("64 MiB"));
        assert!(sum(&directory.path().join("none")).is_err());
    }
}
