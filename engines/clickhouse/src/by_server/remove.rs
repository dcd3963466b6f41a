//! How a backup of the server's goes. ClickHouse has no statement for it.
//!
//! | place | what removes it |
//! |---|---|
//! | S3 | the server: a table over each object is truncated, which removes the object; Fettler needs no login to the bucket |
//! | a folder, or a local disk of the server's | Fettler, where this process sees the folder and what lies there says that it is this very backup |
//! | anything else | nobody: Fettler says what is to be removed, and where |
//!
//! What says that there is a backup (`.backup`) goes last in a bucket, so that the next look finds what is left of one.

use std::{
    io,
    path::{Path, PathBuf},
};

use fettler_engine::{EngineError, Held, Target};

use super::{
    is_there, look,
    place::{Place, job_of},
    told_of,
};
use crate::{
    catalogue::SCRATCH_PREFIX,
    http::{Session, random_word},
    params::Params,
    shadow::drop_database,
    sql::{literal, quoted, table as full_table},
};

/// The file that makes a folder a backup.
const ENTRY: &str = ".backup";
/// As much of that file as says whose it is.
const HEAD_BYTES: u64 = 4096;

/// Removes a backup, or ends one that runs.
pub(crate) async fn let_go(server: &Target, held: &Held) -> Result<(), EngineError> {
    if job_of(&held.name) != Some(held.job) {
        return Ok(());
    }
    let place = Place::read(&held.place)?;
    let params = Params::of(server)?;
    let session = Session::visit(&params).await?;
    if told_of(&session)
        .await?
        .get(&(place.clone(), held.name.clone()))
        .is_some_and(|is_running| *is_running)
    {
        end(&session, &held.name).await?;
    }
    if !is_there(&session, &place, &held.name).await? {
        return Ok(());
    }
    match &place {
        Place::Bucket(_) | Place::Collection { .. } if place.object("x").is_some() => {
            remove_objects(&session, &place, &held.name).await
        }
        _ => remove_folder(&session, &place, &held.name).await,
    }
}

/// Ends a backup that runs, and waits until the server has removed what there was of it.
pub(super) async fn end(session: &Session, id: &str) -> Result<(), EngineError> {
    let Some(status) = look(session, id).await? else {
        return Ok(());
    };
    if !status.is_running() || status.query.is_empty() {
        return Ok(());
    }
    let kill = format!(
        "KILL QUERY WHERE query_id = {} SYNC",
        literal(&status.query)
    );
    session.run(&kill, &[], "ending a backup").await?;
    while look(session, id)
        .await?
        .is_some_and(|status| status.is_running())
    {
        tokio::time::sleep(super::LOOK_EVERY).await;
    }
    Ok(())
}

/// Lets the server remove each object of a backup.
async fn remove_objects(session: &Session, place: &Place, name: &str) -> Result<(), EngineError> {
    let doing = format!("removing {name}");
    let listing = place.listing(&format!("{name}/**")).unwrap_or_default();
    let found = session
        .rows(&format!("SELECT DISTINCT _path FROM {listing}"), &doing)
        .await?;
    let mut objects: Vec<String> = found
        .into_iter()
        .flatten()
        .filter_map(|path| {
            let at = path.find(&format!("{name}/"))?;
            Some(path[at..].to_owned())
        })
        .collect();
    objects.sort_by_key(|path| path.ends_with(&format!("/{ENTRY}")));
    let scratch = format!("{SCRATCH_PREFIX}removing_{}", random_word());
    session
        .run(
            &format!("CREATE DATABASE {}", quoted(&scratch)),
            &[],
            &doing,
        )
        .await?;
    let mut removed = Ok(());
    for (at, path) in objects.iter().enumerate() {
        removed = remove_object(session, place, &scratch, at, path, &doing).await;
        if removed.is_err() {
            break;
        }
    }
    let dropped = drop_database(session, &scratch).await;
    removed?;
    dropped
}

async fn remove_object(
    session: &Session,
    place: &Place,
    scratch: &str,
    at: usize,
    path: &str,
    doing: &str,
) -> Result<(), EngineError> {
    // Where it is written as part of an address it is read as one: names of files have escapes of their own.
    let escaped = path.replace('%', "%25");
    let engine = place.object(&escaped).unwrap_or_default();
    let table = full_table(scratch, &format!("o{at}"));
    for statement in [
        format!("CREATE TABLE {table} (line String) ENGINE = {engine}"),
        format!("TRUNCATE TABLE {table}"),
        format!("DROP TABLE {table}"),
    ] {
        session.run(&statement, &[], doing).await?;
    }
    Ok(())
}

/// Removes a folder that this process sees.
async fn remove_folder(session: &Session, place: &Place, name: &str) -> Result<(), EngineError> {
    let folder = match place {
        Place::File(folder) if folder.starts_with('/') => Some(Path::new(folder).join(name)),
        Place::Disk { disk, folder } => folder_of_disk(session, disk)
            .await?
            .map(|disk| disk.join(folder).join(name)),
        _ => None,
    };
    let whose = name.to_owned();
    let path = folder.clone();
    let removed: io::Result<bool> = tokio::task::spawn_blocking(move || match path {
        Some(path) if is_this(&path, &whose)? => {
            std::fs::remove_dir_all(&path)?;
            Ok(true)
        }
        _ => Ok(false),
    })
    .await
    .map_err(|error| EngineError::local("removing a folder", io::Error::other(error)))?;
    let shown = folder.map_or_else(
        || format!("{place}/{name}"),
        |folder| folder.display().to_string(),
    );
    let why = match removed {
        Ok(true) => return Ok(()),
        Ok(false) => "this worker does not see it".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(EngineError::Missing {
        code: "by_server",
        what: format!(
            "the backup {name} is forgotten, and {} still holds it: ClickHouse has no statement that removes a backup, and {why}",
            session.server()
        ),
        remedy: format!(
            "remove {shown} on the server's machine; a worker there, whose user may do it, removes such backups by itself, as does every worker in a bucket"
        ),
    })
}

/// Where a local disk of the server's lies.
async fn folder_of_disk(session: &Session, disk: &str) -> Result<Option<PathBuf>, EngineError> {
    let rows = session
        .rows(
            &format!(
                "SELECT path FROM system.disks WHERE name = {} AND lower(type) = 'local'",
                literal(disk)
            ),
            "looking for a disk",
        )
        .await?;
    Ok(rows
        .into_iter()
        .flatten()
        .next()
        .map(PathBuf::from)
        .filter(|path| path.is_absolute()))
}

/// Whether a folder is the backup of this name: what lies there says so.
fn is_this(folder: &Path, name: &str) -> io::Result<bool> {
    use std::io::Read as _;
    let file = match std::fs::File::open(folder.join(ENTRY)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head)?;
    let head = String::from_utf8_lossy(&head);
    Ok(head.contains(&format!("<backup_id>{name}</backup_id>")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_that_says_that_it_is_the_backup_is_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_this(folder.path(), "fettler-1").unwrap());
        let entry =
            "<config><version>1</version><uuid>u</uuid><backup_id>fettler-1</backup_id><contents>";
        std::fs::write(folder.path().join(ENTRY), entry).unwrap();
        assert!(is_this(folder.path(), "fettler-1").unwrap());
        assert!(!is_this(folder.path(), "fettler-2").unwrap());
    }
}
