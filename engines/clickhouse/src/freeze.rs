//! `FREEZE`, for servers that know no `ATTACH PARTITION … FROM` (before 18.12).
//!
//! It links all parts of a table at one moment, into the server's folder `shadow`, where no statement reaches them: somebody has
//! to link them from there into `detached` of the table that attaches them. Where this process sees the server's own folders (a worker
//! on its machine, as its user or as root), it does that. Whether these are the folders of this very server is known by the
//! scratch database, whose name nothing else has. Everywhere else the server copies the rows, which needs nobody's help.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use fettler_engine::EngineError;

use crate::{
    http::Session,
    sql::{literal, table as full_table},
};

/// From this version on tables link each other's parts, and folders are laid out in another way.
const NOT_SINCE: (u32, u32) = (20, 4);
/// The server's folder of tables.
const DATA: &str = "data";
/// The server's folder of what was frozen.
const SHADOW: &str = "shadow";

/// The folder of the server's data, from the path of a part: `ROOT/data/DATABASE/TABLE/PART/`.
fn root_of(part: &Path) -> Option<&Path> {
    let tables = part.parent()?.parent()?.parent()?;
    (tables.file_name()? == DATA).then(|| tables.parent())?
}

/// Gives a shadow the parts of its original; `false` where it has to be copied.
pub(crate) async fn link(
    session: &Session,
    original: &(String, String),
    scratch: &str,
    shadow: &str,
) -> Result<bool, EngineError> {
    let doing = "freezing a table";
    if session.version_numbers() >= NOT_SINCE {
        return Ok(false);
    }
    let found = session
        .try_rows(
            &format!(
                "SELECT path FROM system.parts WHERE active AND database = {} AND table = {} LIMIT 1",
                literal(&original.0),
                literal(&original.1)
            ),
            &[],
            doing,
        )
        .await?;
    let Some(part) = found
        .ok()
        .and_then(|rows| rows.into_iter().flatten().next())
    else {
        return Ok(false);
    };
    let part = PathBuf::from(part);
    let Some(root) = root_of(&part).map(Path::to_owned) else {
        return Ok(false);
    };
    let into = root.join(DATA).join(scratch).join(shadow);
    if !into.is_dir() {
        return Ok(false);
    }
    let name = format!("{scratch}_{shadow}");
    let freeze = format!(
        "ALTER TABLE {} FREEZE WITH NAME {}",
        full_table(&original.0, &original.1),
        literal(&name)
    );
    if session.try_run(&freeze, &[], doing).await?.is_err() {
        return Ok(false);
    }
    let frozen = root.join(SHADOW).join(&name);
    let linked = tokio::task::spawn_blocking(move || link_parts(&frozen, &into.join("detached")))
        .await
        .map_err(|error| EngineError::local(doing, io::Error::other(error)))?;
    let Ok(parts) = linked else {
        return Ok(false);
    };
    let place = full_table(scratch, shadow);
    for part in parts {
        let attach = format!("ALTER TABLE {place} ATTACH PART {}", literal(&part));
        session.run(&attach, &[], doing).await?;
    }
    Ok(true)
}

/// Links what was frozen into a folder, and removes what was frozen. Gives the names of the parts.
fn link_parts(frozen: &Path, into: &Path) -> io::Result<Vec<String>> {
    let linked = || -> io::Result<Vec<String>> {
        let mut parts = Vec::new();
        let databases = frozen.join(DATA);
        for part in folders(&databases)?
            .iter()
            .map(|database| folders(database))
            .collect::<io::Result<Vec<_>>>()?
            .iter()
            .flatten()
            .map(|table| folders(table))
            .collect::<io::Result<Vec<_>>>()?
            .concat()
        {
            let name = part.file_name().unwrap_or_default().to_owned();
            let place = into.join(&name);
            fs::create_dir_all(&place)?;
            for file in fs::read_dir(&part)? {
                let file = file?;
                fs::hard_link(file.path(), place.join(file.file_name()))?;
            }
            parts.push(name.to_string_lossy().into_owned());
        }
        parts.sort();
        Ok(parts)
    }();
    let removed = fs::remove_dir_all(frozen);
    let parts = linked?;
    removed?;
    Ok(parts)
}

fn folders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            all.push(entry.path());
        }
    }
    Ok(all)
}

/// Removes what an attempt that died has frozen and not linked, where this process sees it.
pub(crate) async fn remove(session: &Session, scratch: &str) -> Result<(), EngineError> {
    if session.version_numbers() >= NOT_SINCE {
        return Ok(());
    }
    let found = session
        .try_rows(
            "SELECT path FROM system.parts LIMIT 1",
            &[],
            "looking for what was frozen",
        )
        .await?;
    let part = found
        .ok()
        .and_then(|rows| rows.into_iter().flatten().next());
    let Some(root) = part.and_then(|part| root_of(Path::new(&part)).map(Path::to_owned)) else {
        return Ok(());
    };
    let prefix = format!("{scratch}_");
    let removed = tokio::task::spawn_blocking(move || {
        let Ok(frozen) = folders(&root.join(SHADOW)) else {
            return Ok(());
        };
        frozen
            .into_iter()
            .filter(|folder| {
                let name = folder.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&prefix)
            })
            .try_for_each(fs::remove_dir_all)
    })
    .await
    .unwrap_or_else(|error| Err(io::Error::other(error)));
    removed.map_err(|error| EngineError::local("removing what was frozen", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_folder_is_known_by_where_a_part_lies() {
        let root = |text| root_of(Path::new(text)).map(|path| path.display().to_string());
        assert_eq!(
            root("/var/lib/clickhouse/data/shop/t%2F1/all_1_1_0/").as_deref(),
            Some("/var/lib/clickhouse")
        );
        assert_eq!(
            root("/var/lib/clickhouse/store/abc/abcdef/all_1_1_0/"),
            None
        );
        assert_eq!(root("all_1_1_0"), None);
    }
}
