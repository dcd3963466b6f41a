//! Users and roles, as far as a server shows them.

use bson::{RawDocument, RawDocumentBuf, rawdoc};
use fettler_engine::EngineError;

use crate::{error::Refusal, session::Session};

/// Reads all users with their credentials (which are hashes; the backup is sealed) and all roles that somebody made.
pub(crate) async fn read(
    session: &mut Session,
) -> Result<Result<Vec<RawDocumentBuf>, Refusal>, EngineError> {
    let asked = [
        (
            "users",
            rawdoc! { "usersInfo": { "forAllDBs": true }, "showCredentials": true },
        ),
        (
            "roles",
            rawdoc! { "rolesInfo": 1, "showPrivileges": true, "showBuiltinRoles": false },
        ),
    ];
    let mut found = Vec::new();
    for (what, command) in asked {
        let answer = match session.try_run("admin", command).await? {
            Ok(answer) => answer,
            Err(refusal) => return Ok(Err(refusal)),
        };
        for one in listed(&answer, what) {
            let mut kept = rawdoc! { "what": what };
            crate::raw::put(&mut kept, "is", one);
            found.push(kept);
        }
    }
    Ok(Ok(found))
}

fn listed<'a>(answer: &'a RawDocument, what: &str) -> Vec<&'a RawDocument> {
    answer
        .get_array(what)
        .map(|list| {
            list.into_iter()
                .filter_map(|one| one.ok()?.as_document())
                .collect()
        })
        .unwrap_or_default()
}
