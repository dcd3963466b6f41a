//! From what a user types to what is meant: a database by URL, path or name; a backup by `latest`, id or
//! a part of one; a job by a part of its id.

use std::collections::BTreeMap;

use fettler_engine::{SandboxSpec, Target};
use fettler_jobs::{Services, is_cleanup_archive};
use fettler_ledger::{
    BackupFilter, BackupRecord, DatabaseChange, DatabaseRecord, DatabaseTerms, LedgerError,
};
use fettler_model::{
    BackupId, DatabaseId, DatabaseName, DatabaseUrl, Engine, Secret, SecretReference, Timestamp,
};
use fettler_repository::{BackupListing, ManifestSummary, TenantRepository};
use serde_json::{Value, json};

use crate::{
    app::App,
    args::{DatabaseArg, ReferenceArg, SandboxArgs},
    failure::Failure,
    remote::{Remote, escaped},
};

/// A part of an id that is shorter could be anything.
const MIN_PART: usize = 4;
/// As many databases as get numbered names before a person has to choose one.
const MAX_NUMBERED: u32 = 999;

/// Reads a place, and makes a file's path absolute.
pub(crate) fn place(text: &str) -> Result<(DatabaseUrl, Option<Secret>), Failure> {
    let (url, password) = DatabaseUrl::parse_with_password(text).map_err(|error| {
        Failure::usage(
            error.to_string(),
            "write `postgres://user@host/database`, `redis://host`, `mongodb://host`, `clickhouse://host`, `elasticsearch://host`, or the path of a SQLite file",
        )
    })?;
    let url = url
        .absolute()
        .map_err(|error| Failure::local("the current folder cannot be told", &error))?;
    Ok((url, password))
}

/// A place as it is sent to another Fettler, with a password that it holds: the other side seals it. A file's
/// path is made absolute, though it is the other side's file.
pub(crate) fn absolute_place(text: &str) -> Result<String, Failure> {
    let (url, _) = place(text)?;
    Ok(match url.path() {
        Some(_) => url.as_str().to_owned(),
        None => text.to_owned(),
    })
}

/// Where proofs restore to, as it is sent to another Fettler.
pub(crate) fn sent_sandbox(given: &SandboxArgs) -> Result<Option<Value>, Failure> {
    let Some(text) = &given.sandbox else {
        return Ok(None);
    };
    Ok(Some(match text.as_str() {
        "automatic" => json!({"kind": "automatic"}),
        "source-server" | "source_server" => json!({"kind": "source_server"}),
        url => {
            let mut sandbox = json!({"kind": "server", "url": absolute_place(url)?});
            if let Some(reference) = &given.sandbox_password {
                sandbox["password"] = json!(reference.get()?);
            }
            sandbox
        }
    }))
}

/// The reference to a password: the given one, or a sealed one for what the URL held.
pub(crate) async fn password(
    app: &App,
    given: Option<&ReferenceArg>,
    in_url: Option<&Secret>,
) -> Result<Option<SecretReference>, Failure> {
    match (given, in_url) {
        (Some(_), Some(_)) => Err(Failure::usage(
            "the password is given twice, in the URL and with `--password-from`",
            "leave it out of the URL",
        )),
        (Some(reference), None) => reference.get().map(Some),
        (None, Some(secret)) => {
            let services = app.services().await?;
            services.seal(app.tenant(), secret).await.map(Some)
        }
        (None, None) => Ok(None),
    }
}

/// The database that is meant; one that is not known is added. Whoever adds one looks at once whether
/// it can be reached: a slip in a URL is told then, and not after many tries.
pub(crate) async fn database(
    app: &App,
    given: &DatabaseArg,
    name: Option<&DatabaseName>,
) -> Result<DatabaseRecord, Failure> {
    if let Some(remote) = app.remote() {
        return database_there(app, remote, given, name).await;
    }
    let ledger = app.ledger().await?;
    let text = &given.database;
    if let Some(known) = known_database(app, text).await? {
        let reference = password(app, given.password.as_ref(), None).await?;
        return match reference {
            Some(reference) => change_password(app, &known, reference).await,
            None => Ok(known),
        };
    }
    let (url, secret) = place(text)?;
    if let Some(path) = url.path()
        && !path.exists()
    {
        return Err(Failure::usage(
            format!("no database is called {text:?}, and there is no file of that name"),
            "give the URL, the path of a SQLite file, or a name from `fettler database list`",
        ));
    }
    look(app, &url, given.password.as_ref(), secret.as_ref()).await?;
    let reference = password(app, given.password.as_ref(), secret.as_ref()).await?;
    let databases = ledger.databases(Some(app.tenant())).await?;
    if let Some(known) = databases.iter().find(|record| record.url == url) {
        if let Some(name) = name
            && *name != known.name
        {
            return Err(Failure::usage(
                format!("the database is known as {:?} already", known.name.as_str()),
                format!(
                    "leave `--name` out, or `fettler database edit {} --rename {name}`",
                    known.name
                ),
            ));
        }
        return match reference {
            Some(reference) => change_password(app, known, reference).await,
            None => Ok(known.clone()),
        };
    }
    let name = match name {
        Some(name) => name.clone(),
        None => free_name(&url, |name| {
            databases.iter().any(|record| record.name == *name)
        })?,
    };
    let added = ledger
        .add_database(&new_record(app, name, url, reference))
        .await;
    match added {
        Ok(record) => Ok(record),
        // Another command was quicker.
        Err(LedgerError::Exists { .. }) => Ok(ledger.find_database(app.tenant(), text).await?),
        Err(error) => Err(error.into()),
    }
}

/// The same through another Fettler. Whether the database can be reached is the other side's to find out.
async fn database_there(
    app: &App,
    remote: &Remote,
    given: &DatabaseArg,
    name: Option<&DatabaseName>,
) -> Result<DatabaseRecord, Failure> {
    let text = &given.database;
    if let Some(known) = known_database(app, text).await? {
        if given.password.is_some() {
            return Err(Failure::usage(
                format!(
                    "the database {} is known, with its own password",
                    known.name
                ),
                format!(
                    "`fettler database edit {} --password-from …` changes it",
                    known.name
                ),
            ));
        }
        return Ok(known);
    }
    let (url, _) = place(text)?;
    let databases = app.desk().await?.databases(app.tenant()).await?;
    if let Some(known) = databases.iter().find(|record| record.url == url) {
        return Ok(known.clone());
    }
    let name = match name {
        Some(name) => name.clone(),
        None => free_name(&url, |name| {
            databases.iter().any(|record| record.name == *name)
        })?,
    };
    let mut body = json!({"name": name, "url": absolute_place(text)?});
    if let Some(reference) = &given.password {
        body["password"] = json!(reference.get()?);
    }
    let path = format!("/api/v1/databases?tenant={}", app.tenant());
    remote.post(&path, &body).await
}

/// The backup that is meant, by the other side's catalogue.
pub(crate) async fn backup_there(
    app: &App,
    remote: &Remote,
    text: &str,
) -> Result<BackupRecord, Failure> {
    if text != "latest" {
        return remote
            .get(&format!("/api/v1/backups/{}", escaped(text)))
            .await;
    }
    let filter = BackupFilter {
        tenant: Some(app.tenant().clone()),
        limit: 1,
        ..BackupFilter::default()
    };
    app.desk()
        .await?
        .backups(&filter)
        .await?
        .pop()
        .ok_or_else(|| {
            Failure::nothing("there is no backup", "`fettler backup DATABASE` makes one")
        })
}

/// Looks whether a database answers.
async fn look(
    app: &App,
    url: &DatabaseUrl,
    reference: Option<&ReferenceArg>,
    secret: Option<&Secret>,
) -> Result<(), Failure> {
    let password = match reference {
        Some(reference) => {
            let services = app.services().await?;
            match services.secret(app.tenant(), &reference.get()?).await {
                Ok(secret) => Some(secret),
                // The process that runs the folder may have what this one has not.
                Err(_) if crate::run::is_up(app).await => return Ok(()),
                Err(problem) => return Err(problem.into()),
            }
        }
        None => secret.cloned(),
    };
    let target = Target {
        url: url.clone(),
        password,
    };
    fettler_engines::engine(url.engine())
        .identify(&target)
        .await?;
    Ok(())
}

/// A record that says nothing but where the database is.
pub(crate) fn new_record(
    app: &App,
    name: DatabaseName,
    url: DatabaseUrl,
    password: Option<SecretReference>,
) -> DatabaseRecord {
    DatabaseRecord {
        id: DatabaseId::new(),
        tenant: app.tenant().clone(),
        name,
        url,
        password,
        identity_key: None,
        labels: BTreeMap::new(),
        sandbox: serde_json::to_value(SandboxSpec::Automatic).expect("a sandbox is plain data"),
        created: Timestamp::now(),
        terms: DatabaseTerms::default(),
    }
}

async fn change_password(
    app: &App,
    known: &DatabaseRecord,
    reference: SecretReference,
) -> Result<DatabaseRecord, Failure> {
    let ledger = app.ledger().await?;
    let changed = ledger
        .edit_database(
            known.id,
            DatabaseChange {
                password: Some(Some(reference)),
                ..DatabaseChange::default()
            },
        )
        .await?;
    if let Some(SecretReference::Sealed(old)) = known.password {
        ledger.remove_sealed(app.tenant(), old).await?;
    }
    Ok(changed)
}

/// A database of this name, id or URL, if there is one.
pub(crate) async fn known_database(
    app: &App,
    text: &str,
) -> Result<Option<DatabaseRecord>, Failure> {
    app.desk().await?.find_database(app.tenant(), text).await
}

/// A database that must be known.
pub(crate) async fn existing_database(app: &App, text: &str) -> Result<DatabaseRecord, Failure> {
    if let Some(record) = known_database(app, text).await? {
        return Ok(record);
    }
    if let Ok((url, _)) = place(text)
        && let Some(record) = known_database(app, url.as_str()).await?
    {
        return Ok(record);
    }
    let known = app.desk().await?.databases(app.tenant()).await?;
    Err(Failure::usage(
        format!("no database is called {text:?}"),
        if known.is_empty() {
            "`fettler database add NAME URL` adds one".to_owned()
        } else {
            let names: Vec<&str> = known.iter().map(|record| record.name.as_str()).collect();
            format!("there are: {}", names.join(", "))
        },
    ))
}

/// A name for a database, made of its place.
fn free_name(
    url: &DatabaseUrl,
    taken: impl Fn(&DatabaseName) -> bool,
) -> Result<DatabaseName, Failure> {
    let raw = match url.engine() {
        Engine::Sqlite => url.path().and_then(|path| {
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
        }),
        Engine::Postgres => url::Url::parse(url.as_str()).ok().map(|url| {
            let path = url.path().trim_matches('/').to_owned();
            if path.is_empty() {
                url.username().to_owned()
            } else {
                path
            }
        }),
        Engine::Clickhouse => url::Url::parse(url.as_str()).ok().map(|url| {
            let database = url.path().trim_matches('/');
            if database.is_empty() {
                url.host_str().unwrap_or_default().to_owned()
            } else {
                database.to_owned()
            }
        }),
        Engine::Redis => url::Url::parse(url.as_str()).ok().map(|url| {
            let host = url.host_str().unwrap_or_default();
            let number = url.path().trim_matches('/');
            if url.scheme().ends_with("+sentinel") {
                // The service, and the number of a database.
                return number.to_owned();
            }
            match (host, number) {
                // A socket: its path names nothing.
                ("", _) => String::new(),
                (host, "") => host.to_owned(),
                (host, number) => format!("{host}-{number}"),
            }
        }),
        Engine::Mongodb => url::Url::parse(url.as_str()).ok().map(|url| {
            let database = url.path().trim_matches('/');
            match (url.host_str().unwrap_or_default(), database) {
                // A socket: its path names nothing.
                (host, "") if host.contains('%') => String::new(),
                (host, "") => host.to_owned(),
                (_, database) => database.to_owned(),
            }
        }),
        Engine::Elasticsearch => url::Url::parse(url.as_str())
            .ok()
            .and_then(|url| url.host_str().map(ToOwned::to_owned)),
    }
    .unwrap_or_default();
    let mut base: String = raw
        .to_lowercase()
        .chars()
        .map(|letter| match letter {
            'a'..='z' | '0'..='9' | '-' | '_' | '.' => letter,
            _ => '-',
        })
        .take(50)
        .collect();
    base = base
        .trim_start_matches(|letter: char| !letter.is_ascii_alphanumeric())
        .to_owned();
    if base.is_empty() {
        base = url.engine().to_string();
    }
    (1..=MAX_NUMBERED)
        .filter_map(|number| {
            let text = if number == 1 {
                base.clone()
            } else {
                format!("{base}-{number}")
            };
            text.parse().ok()
        })
        .find(|name| !taken(name))
        .ok_or_else(|| {
            Failure::usage(
                format!("many databases are called {base:?} already"),
                "choose a name with `--name`",
            )
        })
}

/// Where proofs restore to, as an option says it.
pub(crate) async fn sandbox(
    app: &App,
    given: &SandboxArgs,
) -> Result<Option<SandboxSpec>, Failure> {
    let Some(text) = &given.sandbox else {
        return Ok(None);
    };
    Ok(Some(match text.as_str() {
        "automatic" => SandboxSpec::Automatic,
        "source-server" | "source_server" => SandboxSpec::SourceServer,
        url => {
            let (url, secret) = place(url)?;
            if url.path().is_some() {
                return Err(Failure::usage(
                    format!("{text:?} is no sandbox"),
                    "write `automatic`, `source-server`, or a server as `postgres://user@host/database`, `redis://host`, `mongodb://host`, `clickhouse://host` or `elasticsearch://host`",
                ));
            }
            SandboxSpec::Server {
                url,
                password: password(app, given.sandbox_password.as_ref(), secret.as_ref()).await?,
            }
        }
    }))
}

/// The backup that is meant.
pub(crate) async fn backup(
    repository: &TenantRepository,
    text: &str,
) -> Result<ManifestSummary, Failure> {
    let listing = repository.backups().await?;
    find_backup(&listing, text, repository.place())
}

/// The backup that is meant, among those that were listed.
pub(crate) fn find_backup(
    listing: &BackupListing,
    text: &str,
    place: &str,
) -> Result<ManifestSummary, Failure> {
    let none = || {
        Failure::nothing(
            format!("there is no backup in {place}"),
            "`fettler backup URL` makes one; `--repository` names another place",
        )
    };
    if text == "latest" {
        let mut newest = listing.backups.iter().rev();
        let backup = newest.find(|summary| !is_cleanup_archive(summary));
        return backup.cloned().ok_or_else(none);
    }
    let wanted = text.replace('-', "").to_lowercase();
    if wanted.len() < MIN_PART || !wanted.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Failure::usage(
            format!("{text:?} names no backup"),
            format!(
                "write `latest`, or at least {MIN_PART} digits of an id from `fettler backups`"
            ),
        ));
    }
    let mut fitting = listing.backups.iter().filter(|summary| {
        let id = digits(summary.id);
        id.starts_with(&wanted) || id.ends_with(&wanted)
    });
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Ok(one.clone()),
        (Some(_), Some(_)) => Err(Failure::usage(
            format!("{text:?} fits more than one backup"),
            "give more of the id",
        )),
        (None, _) => Err(fettler_model::Problem::permanent(
            "repository.no_such_backup",
            format!("there is no backup {text} in {place}"),
            "`fettler backups` lists what is there; it may have been forgotten, or lie in another repository",
        )
        .into()),
    }
}

fn digits(id: BackupId) -> String {
    id.uuid().simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(ids: &[u128]) -> BackupListing {
        BackupListing {
            backups: ids
                .iter()
                .map(|id| ManifestSummary {
                    id: BackupId::from_uuid(uuid::Uuid::from_u128(*id)),
                    database: "sqlite:shop".into(),
                    database_name: "shop".into(),
                    engine: "sqlite".into(),
                    parent: None,
                    tags: Vec::new(),
                    started: Timestamp::from_micros(0),
                    finished: Timestamp::from_micros(0),
                    bytes_read: 0,
                    bytes_new: 0,
                    bytes_stored: 0,
                    streams: 0,
                    since_full_read: 0,
                    damaged: false,
                    held: false,
                })
                .collect(),
            unreadable: Vec::new(),
        }
    }

    #[test]
    fn a_backup_is_found_by_any_beginning_or_ending_that_is_unique() {
        let one = 0x0190_0000_0000_7000_8000_0000_0000_aaaa;
        let two = 0x0190_0000_0000_7000_8000_0000_0000_bbbb;
        let both = listing(&[one, two]);
        let found = |text: &str| find_backup(&both, text, "/x").map(|found| found.id);
        assert_eq!(found("aaaa").unwrap(), both.backups[0].id);
        assert_eq!(found("latest").unwrap(), both.backups[1].id);
        assert_eq!(
            found("01900000-0000-7000-8000-00000000bbbb").unwrap(),
            both.backups[1].id
        );
        let ambiguous = found("0190").unwrap_err();
        assert_eq!(ambiguous.exit, crate::failure::Exit::Usage);
        assert_eq!(
            found("cccc").unwrap_err().exit,
            crate::failure::Exit::Failed
        );
        assert_eq!(found("xyz").unwrap_err().exit, crate::failure::Exit::Usage);
        assert_eq!(
            find_backup(&listing(&[]), "latest", "/x").unwrap_err().exit,
            crate::failure::Exit::Nothing
        );
    }

    #[test]
    fn names_are_made_of_files_and_databases() {
        let name = |text: &str, taken: &[&str]| {
            let (url, _) = DatabaseUrl::parse_with_password(text).unwrap();
            free_name(&url, |name| taken.contains(&name.as_str()))
                .unwrap()
                .to_string()
        };
        assert_eq!(name("/srv/Shop Data.sqlite", &[]), "shop-data");
        assert_eq!(name("/srv/shop.db", &["shop", "shop-2"]), "shop-3");
        assert_eq!(name("postgres://ann@db/App", &[]), "app");
        assert_eq!(name("postgres://ann@db", &[]), "ann");
        assert_eq!(name("redis://Cache.example:6380/3", &[]), "cache.example-3");
        assert_eq!(name("redis+unix:///run/x.sock", &[]), "redis");
        assert_eq!(name("redis+sentinel://s1,s2:7/Shop/2", &[]), "shop-2");
        assert_eq!(
            name("mongodb://Data.example:7000/?tls=true", &[]),
            "data.example"
        );
        assert_eq!(name("mongodb://data.example/Shop", &[]), "shop");
        assert_eq!(name("mongodb://%2Frun%2Fx.sock/", &[]), "mongodb");
        assert_eq!(
            name("elasticsearch+https://Search.example/logs-*", &[]),
            "search.example"
        );
        assert_eq!(name("/srv/_.db", &[]), "sqlite");
    }
}
