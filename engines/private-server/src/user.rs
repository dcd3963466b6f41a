//! Whom a server runs as.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use rustix::process::geteuid;

/// A user of this machine and its group, as the kernel numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's number.
    pub id: u32,
    /// The number of the user's group.
    pub group: u32,
}

impl User {
    /// Whether this process may choose whom a server runs as.
    #[must_use]
    pub fn may_be_chosen() -> bool {
        geteuid().is_root()
    }

    /// The first of these that the machine knows; none where this process may not choose, and a server runs as the same user
    /// as this process.
    #[must_use]
    pub fn first_of(names: &[&str]) -> Option<Self> {
        if !Self::may_be_chosen() {
            return None;
        }
        let users = fs::read_to_string("/etc/passwd").ok()?;
        names.iter().find_map(|name| Self::in_passwd(&users, name))
    }

    fn in_passwd(users: &str, name: &str) -> Option<Self> {
        let line = users
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2).map(|field| field.parse().ok());
        Some(Self {
            id: numbers.next()??,
            group: numbers.next()??,
        })
    }

    /// Whether this user can pass through a folder and all that are above it.
    #[must_use]
    pub fn can_pass(self, folder: &Path) -> bool {
        folder.ancestors().all(|folder| {
            fs::metadata(folder).is_ok_and(|metadata| {
                let bit = if metadata.uid() == self.id {
                    0o100
                } else if metadata.gid() == self.group {
                    0o010
                } else {
                    0o001
                };
                metadata.permissions().mode() & bit != 0
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\nredis-old:x:7:8::/:/bin/false\nredis:x:112:120::/:/bin/false\n";
        let found = User::in_passwd(users, "redis");
        assert_eq!(
            found,
            Some(User {
                id: 112,
                group: 120
            })
        );
        assert_eq!(User::in_passwd(users, "postgres"), None);
    }

    #[test]
    fn a_closed_folder_lets_nobody_else_through() {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let stranger = User {
            id: u32::MAX - 1,
            group: u32::MAX - 1,
        };
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(stranger.can_pass(&inner));
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!stranger.can_pass(&inner));
    }
}
