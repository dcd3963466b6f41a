//! How to reach a server: what a target's URL says.
//!
//! | form | |
//! |---|---|
//! | `redis://user@host:port/3` | without TLS; the number of a database narrows a backup or a restore to it |
//! | `rediss://user@host?ca=…&cert=…&key=…` | with TLS: the authority to trust, and a client's certificate |
//! | `redis+unix:///run/redis.sock?user=…&db=3` | over a socket of this machine |
//!
//! `valkey://` and `valkeys://` are the first two. `rdb:/path` is no server: a backup can be restored to it.

use std::{net::IpAddr, path::PathBuf};

use fettler_engine::{EngineError, Target};
use fettler_model::{Engine, Secret};
use percent_encoding::percent_decode_str;
use url::Url;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// Files for TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The authorities to trust instead of the machine's.
    pub(crate) ca: Option<PathBuf>,
    /// The client's own certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

/// Everything that is needed to connect.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub(crate) place: Place,
    /// The addresses to connect to in the stead of the host's name; the name is what a certificate is compared with.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    /// The one database that is meant; all where none is named.
    pub(crate) database: Option<u32>,
}

impl Params {
    /// Reads a target.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] (`url`), which names the part that cannot be used.
    pub(crate) fn of(target: &Target) -> Result<Self, EngineError> {
        if let Some(path) = target.url.path() {
            return Err(EngineError::Missing {
                code: "url",
                what: format!(
                    "{} is a file, which a backup can be restored to and nothing else",
                    path.display()
                ),
                remedy: "name a server: `redis://user@host:port`; one that starts from the file is enough"
                    .to_owned(),
            });
        }
        let url = Url::parse(target.url.as_str()).map_err(|error| invalid(&error.to_string()))?;
        let mut params = Self {
            place: Place::Unix(PathBuf::new()),
            addresses: Vec::new(),
            tls: matches!(url.scheme(), "rediss" | "valkeys").then(TlsFiles::default),
            user: Some(decoded(url.username())).filter(|user| !user.is_empty()),
            password: target.password.clone(),
            database: None,
        };
        let (mut cert, mut key) = (None, None);
        for (name, value) in url.query_pairs() {
            let file = || {
                if params.tls.is_none() {
                    return Err(invalid(&format!("`{name}` is for `rediss://`")));
                }
                Ok(PathBuf::from(value.as_ref()))
            };
            match name.as_ref() {
                "user" => params.user = Some(value.into_owned()),
                "db" => params.database = Some(database_number(&value)?),
                "ca" => {
                    let file = file()?;
                    params.tls.get_or_insert_default().ca = Some(file);
                }
                "cert" => cert = Some(file()?),
                "key" => key = Some(file()?),
                "hostaddr" => {
                    params.addresses = value
                        .split(',')
                        .map(|one| {
                            one.parse()
                                .map_err(|_| invalid(&format!("{one:?} is not an address")))
                        })
                        .collect::<Result<_, _>>()?;
                }
                other => return Err(invalid(&format!("the parameter `{other}` is not known"))),
            }
        }
        match (cert, key) {
            (Some(cert), Some(key)) => {
                params.tls.get_or_insert_default().identity = Some((cert, key));
            }
            (None, None) => {}
            _ => return Err(invalid("`cert` and `key` belong together")),
        }
        let path = decoded(url.path());
        if url.scheme() == "redis+unix" {
            if !path.starts_with('/') || url.host_str().is_some_and(|host| !host.is_empty()) {
                return Err(invalid("a socket is named by its path from the root"));
            }
            params.place = Place::Unix(PathBuf::from(path));
            return Ok(params);
        }
        let host = decoded(url.host_str().unwrap_or_default());
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        if host.is_empty() {
            return Err(invalid("it names no host"));
        }
        let port = url
            .port()
            .or(Engine::Redis.default_port())
            .expect("Redis has a default port");
        params.place = Place::Tcp { host, port };
        let number = path.trim_matches('/');
        if !number.is_empty() {
            params.database = Some(database_number(number)?);
        }
        Ok(params)
    }

    /// The server's name in messages: `host:port`, or the path of its socket.
    pub(crate) fn server(&self) -> String {
        match &self.place {
            Place::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Place::Tcp { host, port } => format!("{host}:{port}"),
            Place::Unix(path) => path.display().to_string(),
        }
    }
}

fn invalid(what: &str) -> EngineError {
    EngineError::Missing {
        code: "url",
        what: format!("the database's URL cannot be used: {what}"),
        remedy: "write it as `redis://user@host:port`, `rediss://…?ca=/path` for TLS, or `redis+unix:///path/of/socket`; `/3` behind the port names one database".to_owned(),
    }
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn database_number(text: &str) -> Result<u32, EngineError> {
    text.parse()
        .map_err(|_| invalid(&format!("{text:?} is not the number of a database")))
}

#[cfg(test)]
mod tests {
    use fettler_model::DatabaseUrl;

    use super::*;

    fn read(text: &str) -> Result<Params, EngineError> {
        let (url, password) = DatabaseUrl::parse_with_password(text).unwrap();
        Params::of(&Target { url, password })
    }

    #[test]
    fn a_url_names_place_user_database_and_files() {
        let plain = read("redis://ann:s%3Acret@Cache.example:7000/3").unwrap();
        assert_eq!(plain.server(), "cache.example:7000");
        assert_eq!(plain.user.as_deref(), Some("ann"));
        assert_eq!(plain.password.unwrap().expose(), "s:cret");
        assert_eq!(plain.database, Some(3));
        assert_eq!(plain.tls, None);

        let least = read("valkey://[::1]").unwrap();
        assert_eq!(least.server(), "[::1]:6379");
        assert_eq!((least.user, least.database), (None, None));

        let tls = read("rediss://h?ca=/ca.pem&cert=/c.pem&key=/k.pem").unwrap();
        let files = tls.tls.unwrap();
        assert_eq!(files.ca, Some("/ca.pem".into()));
        assert_eq!(files.identity, Some(("/c.pem".into(), "/k.pem".into())));

        let socket = read("redis+unix:///run/a%20b.sock?user=ann&db=2").unwrap();
        assert_eq!(socket.place, Place::Unix("/run/a b.sock".into()));
        assert_eq!(socket.user.as_deref(), Some("ann"));
        assert_eq!(socket.database, Some(2));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, named) in [
            ("redis:///3", "host"),
            ("redis://h/three", "three"),
            ("redis://h?ca=/x", "rediss"),
            ("rediss://h?cert=/x", "belong together"),
            ("redis://h?sslmode=require", "sslmode"),
            ("redis+unix://h/x.sock", "path"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
