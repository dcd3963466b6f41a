//! Where a server puts its own backups, in the words of a person and in those of a `BACKUP` statement.
//!
//! | form | `BACKUP … TO` |
//! |---|---|
//! | `file:nightly`, `file:/backups/nightly` | `File('…')`: a folder below `backups.allowed_path` |
//! | `disk:backups/nightly` | `Disk('backups', 'nightly/…')`: a disk that `backups.allowed_disk` names |
//! | `s3:https://host/bucket/folder` | `S3('https://…')`: the login lies in the server's configuration |
//! | `s3:collection/folder`, `azure:collection/folder` | `S3(collection, 'folder/…')`, `AzureBlobStorage(…)`: a named collection of the server's |

use std::fmt;

use fettler_engine::EngineError;
use fettler_model::JobId;

use crate::sql::literal;

/// What the names of backups begin with that Fettler asked for; the job's id and the attempt's token follow.
const PREFIX: &str = "fettler-";

/// A place for backups.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A folder.
    File(String),
    /// A disk of the server's, and a folder there.
    Disk { disk: String, folder: String },
    /// A bucket, by its address.
    Bucket(String),
    /// What a named collection names, and a folder there.
    Collection {
        kind: Kind,
        name: String,
        folder: String,
    },
}

/// What a named collection leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    S3,
    Azure,
}

/// The name of the backup of an attempt.
pub(crate) fn name_of(job: JobId, token: impl fmt::Display) -> String {
    format!("{PREFIX}{}-{token}", job.uuid().simple())
}

/// The job whose backup has this name.
pub(crate) fn job_of(name: &str) -> Option<JobId> {
    let (job, token) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let digits = job.len() == 32 && job.bytes().all(|byte| byte.is_ascii_hexdigit());
    let job: JobId = job.parse().ok().filter(|_| is_token && digits)?;
    name.starts_with(&format!("{PREFIX}{}-", job.uuid().simple()))
        .then_some(job)
}

fn unusable(text: &str, why: &str) -> EngineError {
    EngineError::Missing {
        code: "by_server",
        what: format!("`{text}` is no place for a server's backups: {why}"),
        remedy: "write file:folder (below the server's `backups.allowed_path`), disk:name/folder (a disk of its `backups.allowed_disk`), s3:https://host/bucket/folder, s3:collection/folder or azure:collection/folder (a named collection)".to_owned(),
    }
}

impl Place {
    /// Reads what a person wrote.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] (`by_server`), which says what is wrong with it.
    pub(crate) fn read(text: &str) -> Result<Self, EngineError> {
        let unusable = |why: &str| unusable(text, why);
        let (kind, rest) = text
            .split_once(':')
            .ok_or_else(|| unusable("it does not say what it is"))?;
        if rest.is_empty() {
            return Err(unusable("it names nothing"));
        }
        if rest.contains(['\'', '\\', '\n', '*', '?', '{', '}']) {
            return Err(unusable(
                "there is a letter in it that has a meaning of its own",
            ));
        }
        if rest.split('/').any(|step| step == "..") {
            return Err(unusable("it goes up with `..`"));
        }
        let folder = rest.trim_end_matches('/');
        match kind {
            "file" => Ok(Self::File(if folder.is_empty() {
                "/".to_owned()
            } else {
                folder.to_owned()
            })),
            "disk" => {
                let (disk, folder) = split(rest);
                Ok(Self::Disk { disk, folder })
            }
            "s3" if folder.starts_with("http://") || folder.starts_with("https://") => {
                if folder.contains('@') {
                    return Err(unusable(
                        "a login belongs into the server's configuration, or into a named collection",
                    ));
                }
                Ok(Self::Bucket(folder.to_owned()))
            }
            "s3" | "azure" => {
                let (name, folder) = split(rest);
                let is_name = name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                    && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
                if !is_name {
                    return Err(unusable(&format!("no named collection is called {name}")));
                }
                let kind = if kind == "s3" { Kind::S3 } else { Kind::Azure };
                Ok(Self::Collection { kind, name, folder })
            }
            other => Err(unusable(&format!("`{other}` is not known"))),
        }
    }

    /// The place of a backup in it, as `BACKUP` and `RESTORE` take it.
    pub(crate) fn destination(&self, name: &str) -> String {
        match self {
            Self::File(folder) => format!("File({})", literal(&within(folder, name))),
            Self::Disk { disk, folder } => format!(
                "Disk({}, {})",
                literal(disk),
                literal(&within(folder, name))
            ),
            Self::Bucket(url) => format!("S3({})", literal(&within(url, name))),
            Self::Collection {
                kind,
                name: collection,
                folder,
            } => {
                let engine = match kind {
                    Kind::S3 => "S3",
                    Kind::Azure => "AzureBlobStorage",
                };
                format!("{engine}({collection}, {})", literal(&within(folder, name)))
            }
        }
    }

    /// Reads a destination as `system.backups` shows it; nothing where it is not one of ours. Gives the place and the name there.
    pub(crate) fn of_destination(text: &str) -> Option<(Self, String)> {
        let (engine, rest) = text.split_once('(')?;
        let arguments: Vec<&str> = rest.strip_suffix(')')?.split(", ").collect();
        let text_of = |argument: &str| {
            let inner = argument.strip_prefix('\'')?.strip_suffix('\'')?;
            (!inner.contains(['\'', '\\'])).then(|| inner.to_owned())
        };
        let whole = text_of(arguments.last()?)?;
        let (folder, name) = match whole.rsplit_once('/') {
            Some(("", name)) => ("/".to_owned(), name),
            Some((folder, name)) => (folder.to_owned(), name),
            None => (String::new(), whole.as_str()),
        };
        job_of(name)?;
        let place = match (engine, arguments.as_slice()) {
            ("File", [_]) => Self::File(folder),
            ("Disk", [disk, _]) => Self::Disk {
                disk: text_of(disk)?,
                folder,
            },
            ("S3", [_]) => Self::Bucket(folder),
            ("S3" | "AzureBlobStorage", [collection, _]) if !collection.starts_with('\'') => {
                Self::Collection {
                    kind: if engine == "S3" {
                        Kind::S3
                    } else {
                        Kind::Azure
                    },
                    name: (*collection).to_owned(),
                    folder,
                }
            }
            _ => return None,
        };
        Some((place, name.to_owned()))
    }

    /// The table function that tells which objects there are, by a pattern below the place; nothing where the server has none.
    pub(crate) fn listing(&self, pattern: &str) -> Option<String> {
        match self {
            Self::Bucket(url) => Some(format!("s3({}, 'One')", literal(&within(url, pattern)))),
            Self::Collection {
                kind: Kind::S3,
                name,
                folder,
            } => Some(format!(
                "s3({name}, filename = {}, format = 'One')",
                literal(&within(folder, pattern))
            )),
            _ => None,
        }
    }

    /// The engine of a table that is one object below the place: truncating it removes the object.
    pub(crate) fn object(&self, path: &str) -> Option<String> {
        match self {
            Self::Bucket(url) => Some(format!(
                "S3({}, 'LineAsString')",
                literal(&within(url, path))
            )),
            Self::Collection {
                kind: Kind::S3,
                name,
                folder,
            } => Some(format!(
                "S3({name}, filename = {}, format = 'LineAsString')",
                literal(&within(folder, path))
            )),
            _ => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = |folder: &str| if folder.is_empty() { "" } else { "/" }.to_owned();
        match self {
            Self::File(folder) => write!(f, "file:{folder}"),
            Self::Disk { disk, folder } => write!(f, "disk:{disk}{}{folder}", slash(folder)),
            Self::Bucket(url) => write!(f, "s3:{url}"),
            Self::Collection { kind, name, folder } => {
                let kind = match kind {
                    Kind::S3 => "s3",
                    Kind::Azure => "azure",
                };
                write!(f, "{kind}:{name}{}{folder}", slash(folder))
            }
        }
    }
}

/// A name, and the folder behind it.
fn split(text: &str) -> (String, String) {
    let (name, folder) = text.split_once('/').unwrap_or((text, ""));
    (name.to_owned(), folder.trim_matches('/').to_owned())
}

fn within(folder: &str, name: &str) -> String {
    match folder {
        "" => name.to_owned(),
        folder => format!("{}/{name}", folder.trim_end_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_becomes_a_destination_and_is_known_again() {
        let name = name_of(JobId::new(), 3);
        for (text, destination) in [
            ("file:nightly", "File('nightly/NAME')"),
            ("file:/mnt/b", "File('/mnt/b/NAME')"),
            ("disk:backups", "Disk('backups', 'NAME')"),
            ("disk:backups/a/b", "Disk('backups', 'a/b/NAME')"),
            ("s3:https://h/bucket/x", "S3('https://h/bucket/x/NAME')"),
            ("s3:keys/x", "S3(keys, 'x/NAME')"),
            ("azure:keys", "AzureBlobStorage(keys, 'NAME')"),
        ] {
            let place = Place::read(text).unwrap();
            assert_eq!(place.to_string(), text);
            let made = place.destination(&name);
            assert_eq!(made, destination.replace("NAME", &name));
            assert_eq!(Place::of_destination(&made), Some((place, name.clone())));
        }
        assert_eq!(
            Place::read("disk:backups/a/").unwrap().to_string(),
            "disk:backups/a"
        );
    }

    #[test]
    fn what_is_no_place_is_refused_with_the_reason() {
        for (text, word) in [
            ("nightly", "what it is"),
            ("file:", "names nothing"),
            ("file:a/../b", ".."),
            ("file:a'b", "letter"),
            ("s3:https://key@h/b", "login"),
            ("s3:my-keys/x", "collection"),
            ("ftp:x", "ftp"),
        ] {
            let error = Place::read(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn what_others_made_is_not_ours() {
        let job = JobId::new();
        assert_eq!(job_of(&name_of(job, 12)), Some(job));
        let ours = name_of(job, 1);
        for text in [
            "File('nightly')",
            "File('fettler-1')",
            "Memory('b')",
            // A login in the statement: nothing that Fettler wrote.
            &format!("S3('https://h/b/{ours}', 'key', '[HIDDEN]')"),
            &format!("File('{ours}.zip')"),
            "",
        ] {
            assert_eq!(Place::of_destination(text), None, "{text}");
        }
    }
}
