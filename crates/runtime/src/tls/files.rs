//! Identities and authorities that live in files which change.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio_util::sync::CancellationToken;

use super::{Authorities, Identity, TlsError};
use crate::logs;

/// Names of a Secret of type `kubernetes.io/tls`.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Several files change together: they are read when nothing has happened for so long.
const SETTLE: Duration = Duration::from_millis(100);
/// Files that cannot be used are read again after so long, even if nothing seems to happen.
const RETRY: Duration = Duration::from_secs(5);

/// The files that a process's certificates are in.
#[derive(Debug, Default)]
pub struct Files {
    sources: Vec<Source>,
}

#[derive(Debug)]
enum Source {
    Identity(PathBuf, Identity),
    Authorities(PathBuf, Authorities),
}

impl Files {
    /// The identity in `tls.crt` and `tls.key` of `directory`.
    ///
    /// # Errors
    /// They cannot be read or used.
    pub fn identity(&mut self, directory: impl Into<PathBuf>) -> Result<Identity, TlsError> {
        let directory = directory.into();
        let identity = Identity::from_pem(&read(&directory.join(CERTIFICATE))?, &read(&directory.join(KEY))?)?;
        self.sources.push(Source::Identity(directory, identity.clone()));
        Ok(identity)
    }

    /// The authorities in a PEM file.
    ///
    /// # Errors
    /// It cannot be read or used.
    pub fn authorities(&mut self, file: impl Into<PathBuf>) -> Result<Authorities, TlsError> {
        let file = file.into();
        let authorities = Authorities::from_pem(&read(&file)?)?;
        self.sources.push(Source::Authorities(file, authorities.clone()));
        Ok(authorities)
    }

    /// Keeps what was handed out at what the files say, until `stop`. Files that cannot be used are logged, and what
    /// was read before stays in force.
    ///
    /// # Errors
    /// The directories cannot be watched.
    pub async fn follow(self, stop: CancellationToken) -> Result<(), TlsError> {
        let directories: BTreeSet<&Path> = self.sources.iter().map(Source::directory).collect();
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::Watch { path, source }
        };
        let first = directories.first().copied().unwrap_or(Path::new("/"));
        let inotify = Inotify::init().map_err(failed(first))?;
        // The kubelet renames a symbolic link over `..data`; others write or rename the files themselves.
        let mask = WatchMask::CREATE | WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::DELETE;
        for directory in directories {
            inotify.watches().add(directory, mask).map_err(failed(directory))?;
        }
        let mut events = inotify.into_event_stream([0; 4096]).map_err(failed(first))?;
        // They may have changed before the watch began.
        let mut fine = self.reload();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                event = events.next() => match event {
                    Some(Ok(_)) => {}
                    Some(Err(source)) => return Err(failed(first)(source)),
                    None => return Err(failed(first)(std::io::ErrorKind::UnexpectedEof.into())),
                },
                () = tokio::time::sleep(RETRY), if !fine => {}
            }
            while let Ok(Some(Ok(_))) = tokio::time::timeout(SETTLE, events.next()).await {}
            fine = self.reload();
        }
    }

    /// Whether all could be read.
    fn reload(&self) -> bool {
        let mut fine = true;
        for source in &self.sources {
            let path = source.path().display();
            match source.reload() {
                Ok(true) => tracing::info!(%path, "certificates changed"),
                Ok(false) => {}
                Err(error) => {
                    fine = false;
                    tracing::warn!(%path, error = %logs::chain(&error), "the certificates of before are kept");
                }
            }
        }
        fine
    }
}

impl Source {
    fn path(&self) -> &Path {
        let (Self::Identity(path, _) | Self::Authorities(path, _)) = self;
        path
    }

    fn directory(&self) -> &Path {
        match self {
            Self::Identity(directory, _) => directory,
            Self::Authorities(file, _) => match file.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            },
        }
    }

    fn reload(&self) -> Result<bool, TlsError> {
        match self {
            Self::Identity(directory, identity) => {
                identity.replace(&read(&directory.join(CERTIFICATE))?, &read(&directory.join(KEY))?)
            }
            Self::Authorities(file, authorities) => authorities.replace(&read(file)?),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}
