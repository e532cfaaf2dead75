//! Guests whose memory their node cannot read.

/// How a machine's memory is protected from its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaunchSecurity {
    /// AMD SEV, or SEV-ES.
    Sev {
        /// Its owner measures it before it runs: it starts paused.
        attestation: bool,
        /// Registers, too: SEV-ES.
        encrypted_state: bool,
        /// The guest owner's Diffie-Hellman key, base64.
        dh_cert: Option<String>,
        /// The guest owner's session, base64.
        session: Option<String>,
    },
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// IBM Secure Execution.
    SecureExecution,
}

impl LaunchSecurity {
    /// Last part of the label that nodes have which can do this, below `kubevirt.io`.
    #[must_use]
    pub fn node_label(&self) -> &'static str {
        match self {
            Self::Sev {
                encrypted_state: false, ..
            } => "sev",
            Self::Sev {
                encrypted_state: true, ..
            } => "sev-es",
            Self::Snp => "sev-snp",
            Self::Tdx => "tdx",
            Self::SecureExecution => "s390-pv",
        }
    }

    /// The guest's owner measures it before it runs.
    #[must_use]
    pub fn is_attested(&self) -> bool {
        matches!(self, Self::Sev { attestation: true, .. })
    }

    /// Its firmware is measured as a whole, so there are no variables beside it.
    #[must_use]
    pub fn is_firmware_stateless(&self) -> bool {
        matches!(self, Self::Snp | Self::Tdx)
    }

    /// It is the work of AMD's secure processor.
    #[must_use]
    pub fn is_amd(&self) -> bool {
        matches!(self, Self::Sev { .. } | Self::Snp)
    }
}
