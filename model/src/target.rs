//! Where a database is: a URL without its password, and the engine that its scheme names.

use std::{fmt, path::PathBuf, str::FromStr};

use percent_encoding::percent_decode_str;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use url::Url;

use crate::Secret;

/// The database engines that Fettler knows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// PostgreSQL, with TimescaleDB.
    Postgres,
    /// SQLite.
    Sqlite,
    /// Redis and Valkey.
    Redis,
    /// MongoDB.
    Mongodb,
    /// ClickHouse, over its HTTP interface.
    Clickhouse,
    /// Elasticsearch and OpenSearch.
    Elasticsearch,
}

impl Engine {
    /// The engine's name as it stands in URLs, manifests and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
            Self::Redis => "redis",
            Self::Mongodb => "mongodb",
            Self::Clickhouse => "clickhouse",
            Self::Elasticsearch => "elasticsearch",
        }
    }

    /// The port where its servers listen unless a URL says otherwise; nothing for databases that are files.
    #[must_use]
    pub const fn default_port(self) -> Option<u16> {
        match self {
            Self::Postgres => Some(5432),
            Self::Sqlite => None,
            Self::Redis => Some(6379),
            Self::Mongodb => Some(27017),
            Self::Clickhouse => Some(8123),
            Self::Elasticsearch => Some(9200),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Engine {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        match text {
            "postgres" | "postgresql" => Ok(Self::Postgres),
            "sqlite" => Ok(Self::Sqlite),
            "redis" | "rediss" | "redis+unix" | "redis+sentinel" | "rediss+sentinel" | "valkey"
            | "valkeys" | "valkey+sentinel" | "valkeys+sentinel" | "rdb" => Ok(Self::Redis),
            "mongodb" | "mongodb+srv" => Ok(Self::Mongodb),
            "clickhouse" | "clickhouses" => Ok(Self::Clickhouse),
            "elasticsearch" | "elasticsearch+https" | "opensearch" | "opensearch+https" => {
                Ok(Self::Elasticsearch)
            }
            other => Err(InvalidUrl::UnknownScheme(other.to_owned())),
        }
    }
}

/// Why a database's URL was refused. No message repeats the URL, since it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidUrl {
    /// No engine has this scheme.
    #[error(
        "the URL's scheme {0:?} names no engine that Fettler knows: use `postgres://user@host/database`, `redis://host`, `mongodb://host`, `clickhouse://host`, `elasticsearch://host` or the path of a SQLite file"
    )]
    UnknownScheme(String),
    /// Not a URL, not a path.
    #[error(
        "the database's URL cannot be read ({0}): write it as `postgres://user@host:port/database`, `redis://host:port` or `mongodb://host:port`"
    )]
    Malformed(String),
}

/// The schemes of places that are files.
const FILE_SCHEMES: [(&str, Engine); 2] = [("sqlite", Engine::Sqlite), ("rdb", Engine::Redis)];

/// Where a sentinel of Redis listens unless a URL says otherwise.
pub const SENTINEL_PORT: u16 = 26379;

/// The parameter that holds the hosts of a URL behind the first.
const HOSTS: &str = "hosts";

/// The same URL with its first host alone, and the others: a URL as it is generally understood has one host. They are kept as
/// a parameter ([`HOSTS`]).
fn with_one_host(text: &str) -> Result<(String, Option<String>), InvalidUrl> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok((text.to_owned(), None));
    };
    let authority_ends = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, behind) = rest.split_at(authority_ends);
    let hosts_begin = authority.rfind('@').map_or(0, |at| at + 1);
    let (login, hosts) = authority.split_at(hosts_begin);
    let Some((first, others)) = hosts.split_once(',') else {
        return Ok((text.to_owned(), None));
    };
    let is_host = |host: &str| {
        !host.is_empty()
            && host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b))
    };
    if !others.split(',').chain([first]).all(is_host) {
        return Err(InvalidUrl::Malformed(
            "several hosts are written as `host:port,host:port`".to_owned(),
        ));
    }
    Ok((
        format!("{scheme}://{login}{first}{behind}"),
        Some(others.to_ascii_lowercase()),
    ))
}

/// A database's place, without the password: safe to store, print and log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct DatabaseUrl {
    engine: Engine,
    url: String,
}

impl DatabaseUrl {
    /// Reads a URL or the path of a file (`sqlite:`, or none, and `rdb:` for what a Redis server starts from), and takes the
    /// password out of it.
    ///
    /// # Errors
    ///
    /// When the scheme is unknown or the URL is malformed.
    pub fn parse_with_password(text: &str) -> Result<(Self, Option<Secret>), InvalidUrl> {
        let scheme_length = text.find(':').filter(|&at| {
            at > 1
                && text[..at]
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'+')
        });
        let Some(at) = scheme_length else {
            if text.is_empty() {
                return Err(InvalidUrl::Malformed("it is empty".to_owned()));
            }
            return Ok((Self::file("sqlite", Engine::Sqlite, text), None));
        };
        let engine: Engine = text[..at].parse()?;
        match FILE_SCHEMES
            .iter()
            .find(|(scheme, _)| *scheme == &text[..at])
        {
            Some((scheme, engine)) => {
                let path = text[at + 1..].strip_prefix("//").unwrap_or(&text[at + 1..]);
                if path.is_empty() {
                    return Err(InvalidUrl::Malformed("it names no file".to_owned()));
                }
                Ok((Self::file(scheme, *engine, path), None))
            }
            None => {
                let (text, more_hosts) = match engine {
                    Engine::Redis => with_one_host(text)?,
                    _ => (text.to_owned(), None),
                };
                let mut url =
                    Url::parse(&text).map_err(|error| InvalidUrl::Malformed(error.to_string()))?;
                let mut password = url
                    .password()
                    .map(|encoded| percent_decode_str(encoded).decode_utf8_lossy().into_owned());
                if url.password().is_some() {
                    url.set_password(None)
                        .map_err(|()| InvalidUrl::Malformed("it cannot hold a password".into()))?;
                }
                // libpq takes `?password=` too, and a socket's URL has no other place for one.
                if url.query_pairs().any(|(key, _)| key == "password") {
                    let kept: Vec<(String, String)> = url
                        .query_pairs()
                        .filter(|(key, _)| key != "password")
                        .map(|(key, value)| (key.into_owned(), value.into_owned()))
                        .collect();
                    password = url
                        .query_pairs()
                        .find(|(key, _)| key == "password")
                        .map(|(_, value)| value.into_owned());
                    url.set_query(None);
                    if !kept.is_empty() {
                        url.query_pairs_mut().extend_pairs(kept);
                    }
                }
                if engine == Engine::Redis
                    && url.query_pairs().any(|(key, _)| key == "sentinel_password")
                {
                    // It would be stored with the URL (P9).
                    return Err(InvalidUrl::Malformed(
                        "the password of sentinels does not stand in a URL: name a file that holds it as `sentinel_password_file`"
                            .to_owned(),
                    ));
                }
                if let Some(hosts) = more_hosts {
                    let query = match url.query() {
                        Some(query) if !query.is_empty() => format!("{query}&{HOSTS}={hosts}"),
                        _ => format!("{HOSTS}={hosts}"),
                    };
                    url.set_query(Some(&query));
                }
                Ok((
                    Self {
                        engine,
                        url: url.into(),
                    },
                    password.map(Secret::new),
                ))
            }
        }
    }

    fn file(scheme: &str, engine: Engine, path: &str) -> Self {
        Self {
            engine,
            url: format!("{scheme}:{path}"),
        }
    }

    /// The scheme and the path of a file.
    fn scheme_and_path(&self) -> Option<(&'static str, &str)> {
        FILE_SCHEMES.iter().find_map(|(scheme, _)| {
            let path = self.url.strip_prefix(scheme)?.strip_prefix(':')?;
            Some((*scheme, path))
        })
    }

    /// The engine that serves this database.
    #[must_use]
    pub const fn engine(&self) -> Engine {
        self.engine
    }

    /// The URL as text; it holds no password.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.url
    }

    /// For a database on a server: `host:port`, so that all databases of one server have one name.
    #[must_use]
    pub fn server(&self) -> Option<String> {
        let default_port = self.engine.default_port()?;
        let url = Url::parse(&self.url).ok()?;
        let host = url.host_str().filter(|host| !host.is_empty())?;
        // TLS has a port of its own there.
        let default_port = match url.scheme() {
            "clickhouses" => 8443,
            scheme if scheme.ends_with("+sentinel") => SENTINEL_PORT,
            _ => default_port,
        };
        let port = url.port().unwrap_or(default_port);
        Some(format!("{}:{port}", host.to_ascii_lowercase()))
    }

    /// For a database that is a file: its path.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        self.scheme_and_path().map(|(_, path)| PathBuf::from(path))
    }

    /// The same place with a file's path made absolute, so that it means the same in any folder.
    ///
    /// # Errors
    ///
    /// When the current folder cannot be told.
    pub fn absolute(self) -> std::io::Result<Self> {
        let Some((scheme, path)) = self.scheme_and_path() else {
            return Ok(self);
        };
        let path = std::path::absolute(path)?;
        Ok(Self::file(scheme, self.engine, &path.to_string_lossy()))
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl TryFrom<String> for DatabaseUrl {
    type Error = InvalidUrl;

    fn try_from(text: String) -> Result<Self, InvalidUrl> {
        Self::parse_with_password(&text).map(|(url, _)| url)
    }
}

impl From<DatabaseUrl> for String {
    fn from(url: DatabaseUrl) -> Self {
        url.url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p9_a_password_leaves_the_url() {
        for text in [
            "postgres://ann:s%40crt@db/app?sslmode=require",
            "postgresql://ann@db/app?sslmode=require&password=s@crt",
        ] {
            let (url, password) = DatabaseUrl::parse_with_password(text).unwrap();
            assert_eq!(password.unwrap().expose(), "s@crt");
            assert!(!url.to_string().contains("crt"), "{url}");
            assert!(url.as_str().contains("sslmode=require"));
        }
    }

    #[test]
    fn elasticsearch_and_opensearch_are_one_engine_with_and_without_tls() {
        for (text, stored, server) in [
            (
                "elasticsearch://ann:s%40crt@ES1/logs-*",
                "elasticsearch://ann@ES1/logs-*",
                "es1:9200",
            ),
            (
                "opensearch+https://:key@search:9243",
                "opensearch+https://search:9243",
                "search:9243",
            ),
        ] {
            let (url, password) = DatabaseUrl::parse_with_password(text).unwrap();
            assert_eq!(url.engine(), Engine::Elasticsearch);
            assert_eq!(url.as_str(), stored);
            assert!(password.is_some());
            assert_eq!(url.server().as_deref(), Some(server));
        }
    }

    #[test]
    fn redis_is_named_by_any_of_its_schemes_and_keeps_what_is_no_password() {
        for (text, kept) in [
            ("redis://:s%40crt@db/3", "redis://db/3"),
            (
                "rediss://ann:s%40crt@db:6380?ca=/x.pem",
                "rediss://ann@db:6380?ca=/x.pem",
            ),
            (
                "redis+unix:///run/redis.sock?db=3&password=s@crt",
                "redis+unix:///run/redis.sock?db=3",
            ),
            ("valkey://:s%40crt@db", "valkey://db"),
        ] {
            let (url, password) = DatabaseUrl::parse_with_password(text).unwrap();
            assert_eq!(url.engine(), Engine::Redis);
            assert_eq!(password.unwrap().expose(), "s@crt");
            assert_eq!(url.as_str(), kept);
        }
    }

    #[test]
    fn several_hosts_of_redis_are_one_host_and_a_parameter() {
        for (text, kept, server) in [
            (
                "redis+sentinel://ann:s%40crt@S1:26380,s2,[::1]:7/shop/2?read=replica",
                "redis+sentinel://ann@S1:26380/shop/2?read=replica&hosts=s2,[::1]:7",
                "s1:26380",
            ),
            (
                "rediss+sentinel://:s%40crt@s1/shop",
                "rediss+sentinel://s1/shop",
                "s1:26379",
            ),
            (
                "redis://:s%40crt@n1:7000,n2:7001",
                "redis://n1:7000?hosts=n2:7001",
                "n1:7000",
            ),
            (
                "redis://n1:7000,n2:7001?password=s%40crt",
                "redis://n1:7000?hosts=n2:7001",
                "n1:7000",
            ),
        ] {
            let (url, password) = DatabaseUrl::parse_with_password(text).unwrap();
            assert_eq!(password.unwrap().expose(), "s@crt");
            assert_eq!(url.as_str(), kept);
            assert_eq!(url.server().as_deref(), Some(server));
            // What was stored is read again as it is.
            let (again, none) = DatabaseUrl::parse_with_password(url.as_str()).unwrap();
            assert!(none.is_none());
            assert_eq!(again, url);
        }
        for text in ["redis://a,,b", "redis://a,b%2F", "redis://,a"] {
            assert!(DatabaseUrl::parse_with_password(text).is_err(), "{text}");
        }
    }

    #[test]
    fn p9_a_sentinels_password_is_refused_in_a_url() {
        let text = "redis+sentinel://s1/shop?sentinel_password=hidden";
        let error = DatabaseUrl::parse_with_password(text).unwrap_err();
        assert!(!error.to_string().contains("hidden"));
        assert!(error.to_string().contains("sentinel_password_file"));
    }

    #[test]
    fn mongodb_is_named_by_its_scheme_and_keeps_what_is_no_password() {
        let (url, password) =
            DatabaseUrl::parse_with_password("mongodb://ann:s%40crt@DB1/shop?authSource=admin")
                .unwrap();
        assert_eq!(url.engine(), Engine::Mongodb);
        assert_eq!(password.unwrap().expose(), "s@crt");
        assert_eq!(url.as_str(), "mongodb://ann@DB1/shop?authSource=admin");
        assert_eq!(url.server().unwrap(), "db1:27017");
    }

    #[test]
    fn a_path_is_a_sqlite_database() {
        for text in [
            "./shop.sqlite",
            "sqlite:./shop.sqlite",
            "sqlite://./shop.sqlite",
        ] {
            let (url, _) = DatabaseUrl::parse_with_password(text).unwrap();
            assert_eq!(url.engine(), Engine::Sqlite);
            assert_eq!(url.path().unwrap(), PathBuf::from("./shop.sqlite"));
        }
    }

    #[test]
    fn an_rdb_is_a_file_of_redis() {
        let (url, _) = DatabaseUrl::parse_with_password("rdb:out/dump.rdb").unwrap();
        assert_eq!(url.engine(), Engine::Redis);
        assert_eq!(url.path().unwrap(), PathBuf::from("out/dump.rdb"));
        assert_eq!(url.server(), None);
        let absolute = url.absolute().unwrap();
        assert!(absolute.as_str().starts_with("rdb:/"), "{absolute}");
        assert!(DatabaseUrl::parse_with_password("rdb:").is_err());
    }

    #[test]
    fn all_databases_of_a_server_name_it_alike() {
        let server = |text| DatabaseUrl::parse_with_password(text).unwrap().0.server();
        assert_eq!(server("postgres://ann@DB1/app").unwrap(), "db1:5432");
        assert_eq!(server("postgres://bob@db1:5432/other").unwrap(), "db1:5432");
        assert_eq!(server("postgres://bob@[::1]:6000/x").unwrap(), "[::1]:6000");
        assert_eq!(server("redis://DB1/3").unwrap(), "db1:6379");
        assert_eq!(server("clickhouse://ann@CH1/shop").unwrap(), "ch1:8123");
        assert_eq!(server("clickhouses://ch1").unwrap(), "ch1:8443");
        assert_eq!(server("redis+unix:///run/redis.sock"), None);
        assert_eq!(server("./shop.sqlite"), None);
    }

    #[test]
    fn an_unknown_scheme_is_named() {
        let error = DatabaseUrl::parse_with_password("oracle://x:secret@y/z").unwrap_err();
        assert!(error.to_string().contains("oracle"));
        assert!(!error.to_string().contains("secret"));
    }
}
