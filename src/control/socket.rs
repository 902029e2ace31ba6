//! The daemon's Unix socket.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Why the socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers there.
    #[error("another daemon answers at {}", .0.display())]
    InUse(PathBuf),
    /// There is something else at that place.
    #[error("{} is there and is no socket; move it away, or set control.socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("cannot listen at {}", path.display())]
    Io {
        /// The place.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A Unix socket that is listened on; its file is removed when this is dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
}

impl Socket {
    /// Listens at `path`. A socket that a dead process left there is replaced. Who may connect is decided
    /// by the process's umask at this moment.
    ///
    /// # Errors
    /// When another process answers there, or the place cannot be used.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let io = |source| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Ok(_answers) => return Err(SocketError::InUse(path.to_owned())),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(io)?;
                }
                Err(error) => return Err(io(error)),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        let listener = UnixListener::bind(path).map_err(io)?;
        Ok((
            Self {
                path: path.to_owned(),
            },
            listener,
        ))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runwatch.sock");
        // Dropping a listener leaves its file behind, as a killed process does.
        drop(UnixListener::bind(&path).unwrap());
        let (socket, listener) = Socket::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse(_))));
        drop((socket, listener));
        assert!(!path.exists());
        std::fs::write(&path, "kept").unwrap();
        assert!(matches!(
            Socket::bind(&path),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");
        assert!(matches!(
            Socket::bind(&dir.path().join("no/such")),
            Err(SocketError::Io { .. })
        ));
    }
}
