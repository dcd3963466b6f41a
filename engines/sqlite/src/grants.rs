//! What SQLite asks of whoever opens a database: it has no users and no grants, and the permissions of files are all there is.

use fettler_engine::{EngineError, Grant, GrantRequest, Grants, Purpose, folder_of};

/// The remedy of a file that cannot be opened.
pub(crate) const READ_IT: &str = "give the user that runs Fettler the right to read the file, and for a database in WAL mode to write in its folder";

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What the user of the operating system needs.
pub(crate) fn grants(request: &GrantRequest<'_>) -> Result<Grants, EngineError> {
    let user = request.role;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if user.is_empty() || user.starts_with('-') || !user.bytes().all(is_plain) {
        return Err(request.invalid_role(
            "it is the user of the operating system that runs Fettler: letters, digits, `-`, `_` and `.`",
        ));
    }
    let path = request.url.path().unwrap_or_default();
    let (file, folder) = (
        quoted(&path.to_string_lossy()),
        quoted(&folder_of(&path).to_string_lossy()),
    );
    let mut statements = Vec::new();
    if [Purpose::Backup, Purpose::Health, Purpose::Audit]
        .into_iter()
        .any(|purpose| request.is_for(purpose))
    {
        statements.push(Grant::new(
            "backup, health: to read the file",
            format!("setfacl -m u:{user}:r {file}"),
        ));
        statements.push(Grant::new(
            "backup, health: in WAL mode every reader writes into the -shm file beside the database, and makes it where it is not there",
            format!("setfacl -m u:{user}:rwx -m d:u:{user}:rw {folder}"),
        ));
    }
    if request.is_for(Purpose::Restore) {
        statements.push(Grant::new(
            "restore: to write a file beside the target and to rename it into its place",
            format!("setfacl -m u:{user}:rwx {folder}"),
        ));
    }
    if request.is_for(Purpose::Cleanup) {
        statements.push(Grant::new(
            "cleanup: to write the file, and its journal or WAL beside it",
            format!(
                "setfacl -m u:{user}:rw {file} && setfacl -m u:{user}:rwx -m d:u:{user}:rw {folder}"
            ),
        ));
    }
    if statements.is_empty() {
        statements.push(Grant::new(
            "prove: nothing; the sandbox of a proof is a file in Fettler's own folder",
            "true",
        ));
    }
    Ok(Grants {
        language: "shell",
        comment: Some("#"),
        statements,
        notes: vec![
            "SQLite has no users and no grants: whoever may open the file may read all of it. These are permissions of the \
             operating system for the user that runs Fettler; `setfacl` belongs to the package acl, and `chown`, `chgrp` and \
             `chmod` do as well"
                .to_owned(),
        ],
    })
}

#[cfg(test)]
mod tests {
    use fettler_model::DatabaseUrl;

    use super::*;

    #[test]
    fn permissions_are_of_the_file_and_its_folder_quoted_for_a_shell() {
        let (url, _) = DatabaseUrl::parse_with_password("sqlite:/data/ann's shop.db").unwrap();
        let of = |role: &str, purposes: &[Purpose]| {
            grants(&GrantRequest {
                url: &url,
                role,
                purposes,
            })
        };
        let text = of("fettler", &[Purpose::Backup]).unwrap().to_text();
        assert!(
            text.contains(r"setfacl -m u:fettler:r '/data/ann'\''s shop.db'"),
            "{text}"
        );
        assert!(text.contains("no users and no grants"));
        assert!(
            of("fettler", &[Purpose::Prove])
                .unwrap()
                .to_text()
                .contains("nothing")
        );
        assert!(of("a b", &[Purpose::Backup]).is_err());
    }
}
