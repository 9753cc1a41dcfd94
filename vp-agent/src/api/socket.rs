//! The Unix socket: who may connect.

use anyhow::{Context, Result, bail};
use axum::serve::Listener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::Path;
use tokio::net::unix::{SocketAddr, UCred};
use tokio::net::{UnixListener, UnixStream};

const GROUP: &str = "vp";
const MODE: u32 = 0o660;

/// Takes connections of root, of the agent's own user and of the group's members only.
pub struct Guarded {
    listener: UnixListener,
    own: u32,
}

#[derive(Clone, Debug)]
struct Group {
    id: u32,
    members: Vec<u32>,
}

/// Makes the socket. One that nobody answers on is replaced; anything else in its place is not touched.
pub async fn bind(path: &Path) -> Result<Guarded> {
    let at = || format!("socket {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(at)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => bail!("{}: there is something else in its place", at()),
        Ok(_) if UnixStream::connect(path).await.is_ok() => bail!("{}: another vp-agent answers there", at()),
        Ok(_) => std::fs::remove_file(path).with_context(at)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).with_context(at)?;
    give_to_group(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE)).with_context(at)?;
    Ok(Guarded { listener, own: crate::sys::effective_user() })
}

/// Where there is one; it may have been made since the start.
pub fn give_to_group(path: &Path) -> Result<()> {
    give(path, Group::read().as_ref())
}

fn give(path: &Path, group: Option<&Group>) -> Result<()> {
    let Some(group) = group else { return Ok(()) };
    chown(path, None, Some(group.id)).with_context(|| format!("socket {}", path.display()))
}

impl Guarded {
    fn admits(&self, peer: &UCred) -> bool {
        // Looked up anew: members come and go while the agent runs.
        let member = |group: Group| peer.gid() == group.id || group.members.contains(&peer.uid());
        peer.uid() == 0 || peer.uid() == self.own || Group::read().is_some_and(member)
    }
}

impl Listener for Guarded {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => match stream.peer_cred() {
                    Ok(peer) if self.admits(&peer) => return (stream, address),
                    Ok(peer) => tracing::warn!("user {} may not use the socket", peer.uid()),
                    Err(error) => tracing::warn!("a socket's user cannot be told: {error}"),
                },
                Err(error) => {
                    tracing::warn!("accepting on the socket failed: {error}");
                    // Out of descriptors, most likely: let some go first.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Group {
    fn read() -> Option<Self> {
        let groups = std::fs::read_to_string("/etc/group").ok()?;
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self::parse(&groups, &users)
    }

    /// The lines of group(5) and passwd(5).
    fn parse(groups: &str, users: &str) -> Option<Self> {
        let line = groups.lines().find(|line| line.split(':').next() == Some(GROUP))?;
        let mut fields = line.split(':').skip(2);
        let id = fields.next()?.parse().ok()?;
        let names: Vec<&str> = fields.next().unwrap_or_default().split(',').filter(|name| !name.is_empty()).collect();
        let user = |line: &str| {
            let mut fields = line.split(':');
            let named = fields.next().is_some_and(|name| names.contains(&name));
            fields.nth(1).filter(|_| named)?.parse().ok()
        };
        Some(Self { id, members: users.lines().filter_map(user).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_is_made_later_gets_the_socket() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("agent.sock");
        let _socket = std::os::unix::net::UnixListener::bind(&path).expect("socket");
        let own = std::fs::metadata(&path).expect("socket").gid();
        give(&path, None).expect("nothing to do");
        assert_eq!(std::fs::metadata(&path).expect("socket").gid(), own);
        // Who is not root may give it to a group of his own only.
        let id = if crate::sys::effective_user() == 0 { 998 } else { own };
        give(&path, Some(&Group { id, members: Vec::new() })).expect("given");
        assert_eq!(std::fs::metadata(&path).expect("socket").gid(), id);
    }

    #[test]
    fn the_group_and_its_members_are_read_as_the_system_writes_them() {
        let groups = "root:x:0:\nvpn:x:7:eve\nvp:x:998:ada,bob\n";
        let users =
            "root:x:0:0::/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\neve:x:1001:1001:::\nbob:x:1002:1002:::\n";
        let group = Group::parse(groups, users).expect("there is one");
        assert_eq!((group.id, group.members), (998, vec![1000, 1002]));
        assert!(Group::parse("root:x:0:\n", users).is_none());
    }
}
