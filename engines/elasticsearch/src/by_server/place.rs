//! Where a server puts its snapshots: a repository that it knows already, or a folder or bucket that Fettler registers.
//!
//! | form | |
//! |---|---|
//! | `nightly` | the repository that the server knows by this name |
//! | `fs:/mnt/snapshots` | a folder that every node sees, below one of their `path.repo` |
//! | `s3:bucket/folder`, `gcs:bucket/folder`, `azure:container/folder` | a bucket; the login lies in each node's keystore |
//! | `s3:bucket?client=other&max_snapshot_bytes_per_sec=40mb` | settings of the repository, as the server names them |

use fettler_engine::EngineError;
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::client::{Client, encoded};

/// What the names of places begin with that Fettler registers.
const PREFIX: &str = "fettler-";
/// What names a login. It belongs into the keystore of the nodes: a repository's settings are shown to whoever asks.
const SECRETS: [&str; 7] = [
    "access_key",
    "secret_key",
    "session_token",
    "key",
    "sas_token",
    "account",
    "credentials_file",
];

/// A place for snapshots, as a person names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// One that the server knows.
    Known(String),
    /// One that it may have to be told of.
    New {
        name: String,
        kind: String,
        settings: Map<String, Value>,
    },
}

/// A place as a server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repository {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) settings: Map<String, Value>,
}

fn unusable(text: &str, why: &str) -> EngineError {
    EngineError::Missing {
        code: "by_server",
        what: format!("`{text}` is no place for a server's snapshots: {why}"),
        remedy: "name a repository of the server, or write fs:/folder, s3:bucket/folder, gcs:bucket/folder or azure:container/folder".to_owned(),
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
        let Some((kind, rest)) = text.split_once(':') else {
            let is_name = !text.is_empty()
                && !text.starts_with('_')
                && !text
                    .chars()
                    .any(|letter| "/\\*?\"<>| ,#".contains(letter) || letter.is_uppercase());
            return if is_name {
                Ok(Self::Known(text.to_owned()))
            } else {
                Err(unusable("no repository can be called that"))
            };
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut settings = Map::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if SECRETS.contains(&name.as_ref()) {
                return Err(unusable(&format!(
                    "`{name}` belongs into the keystore of the server's nodes, since a repository's settings are no secret"
                )));
            }
            settings.insert(name.into_owned(), json!(value));
        }
        if place.is_empty() {
            return Err(unusable("it names no folder and no bucket"));
        }
        if kind == "fs" {
            if !place.starts_with('/') {
                return Err(unusable("a folder is named from the root on"));
            }
            settings.insert("location".to_owned(), json!(place));
        } else {
            let (bucket, folder) = place.split_once('/').unwrap_or((place, ""));
            let word = match kind {
                "s3" | "gcs" => "bucket",
                "azure" => "container",
                _ => return Err(unusable(&format!("`{kind}` is not known"))),
            };
            settings.insert(word.to_owned(), json!(bucket));
            let folder = folder.trim_matches('/');
            if !folder.is_empty() {
                settings.insert("base_path".to_owned(), json!(folder));
            }
        }
        let digest = blake3::hash(format!("{kind}:{place}").as_bytes()).to_hex();
        Ok(Self::New {
            name: format!("{PREFIX}{}", &digest[..12]),
            kind: kind.to_owned(),
            settings,
        })
    }

    /// Looks for the place at a server, and registers it where it is not known. The server tries it on every node.
    pub(crate) async fn ready(&self, client: &Client) -> Result<Repository, EngineError> {
        match self {
            Self::Known(name) => match find(client, name).await? {
                Some(repository) => Ok(repository),
                None => Err(EngineError::Missing {
                    code: "by_server",
                    what: format!("{} knows no repository {name}", client.server()),
                    remedy: "look at `GET /_snapshot`, or name a folder or bucket: fs:/folder, s3:bucket/folder, gcs:bucket/folder, azure:container/folder".to_owned(),
                }),
            },
            Self::New {
                name,
                kind,
                settings,
            } => {
                if let Some(repository) = find(client, name).await?
                    && repository.kind == *kind
                {
                    return Ok(repository);
                }
                let repository = Repository {
                    name: name.clone(),
                    kind: kind.clone(),
                    settings: settings.clone(),
                };
                repository.register(client).await?;
                Ok(repository)
            }
        }
    }
}

/// Asks for a place.
pub(crate) async fn find(client: &Client, name: &str) -> Result<Option<Repository>, EngineError> {
    let path = format!("/_snapshot/{}", encoded(name));
    let found = match client.try_get(&path).await? {
        Ok(found) => found,
        Err(refusal) if refusal.is_not_found() => return Ok(None),
        Err(refusal) => return Err(refusal.doing(client.server(), format!("looking for {name}"))),
    };
    let of_server = &found[name];
    Ok(of_server["type"].as_str().map(|kind| Repository {
        name: name.to_owned(),
        kind: kind.to_owned(),
        settings: of_server["settings"]
            .as_object()
            .cloned()
            .unwrap_or_default(),
    }))
}

impl Repository {
    /// Tells a server of the place.
    pub(crate) async fn register(&self, client: &Client) -> Result<(), EngineError> {
        let body = json!({"type": self.kind, "settings": self.settings});
        let path = format!("/_snapshot/{}", encoded(&self.name));
        let answer = client.try_ask(Method::PUT, &path, body).await?;
        answer.map(drop).map_err(|refusal| match refusal.status {
            400 | 404 | 500 => EngineError::Missing {
                code: "by_server",
                what: format!(
                    "{} cannot use the place for snapshots ({}): {refusal}",
                    client.server(),
                    self.kind
                ),
                remedy: match self.kind.as_str() {
                    "fs" => "every node has to see the folder, it has to lie below one of their `path.repo`, and the server's user has to be allowed to write there".to_owned(),
                    _ => "install the plugin for it where the server has none, and put the login into the keystore of every node".to_owned(),
                },
            },
            _ => refusal.doing(client.server(), "registering a place for snapshots"),
        })
    }

    /// The same place, where nothing may be written: another server's.
    pub(crate) fn to_be_read(&self) -> Self {
        let mut settings = self.settings.clone();
        settings.insert("readonly".to_owned(), json!("true"));
        Self {
            settings,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_name_a_folder_or_a_bucket() {
        assert_eq!(
            Place::read("nightly").unwrap(),
            Place::Known("nightly".to_owned())
        );
        for (text, kind, settings) in [
            ("fs:/mnt/a", "fs", json!({"location": "/mnt/a"})),
            (
                "s3:b/x/y/",
                "s3",
                json!({"bucket": "b", "base_path": "x/y"}),
            ),
            ("gcs:b", "gcs", json!({"bucket": "b"})),
            (
                "azure:c/x?client=second&compress=false",
                "azure",
                json!({"container": "c", "base_path": "x", "client": "second", "compress": "false"}),
            ),
        ] {
            let Place::New {
                name,
                kind: found,
                settings: read,
            } = Place::read(text).unwrap()
            else {
                panic!("{text} is no name");
            };
            assert_eq!((found.as_str(), Value::Object(read)), (kind, settings));
            assert!(name.starts_with("fettler-") && name.len() == 20, "{name}");
        }
    }

    #[test]
    fn what_is_no_place_is_refused_with_the_reason() {
        for (text, word) in [
            ("", "called"),
            ("a b", "called"),
            ("Nightly", "called"),
            ("_all", "called"),
            ("fs:", "no folder"),
            ("fs:snapshots", "root"),
            ("ftp:x", "ftp"),
            ("s3:b?access_key=AKIA", "keystore"),
        ] {
            let error = Place::read(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
