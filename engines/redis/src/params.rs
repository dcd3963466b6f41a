//! How to reach a server: what a target's URL says.
//!
//! | form | |
//! |---|---|
//! | `redis://user@host:port/3` | without TLS; the number of a database narrows a backup or a restore to it |
//! | `rediss://user@host?ca=…&cert=…&key=…` | with TLS: the authority to trust, and a client's certificate |
//! | `redis+unix:///run/redis.sock?user=…&db=3` | over a socket of this machine |
//! | `redis://user@node:7000,node:7001` | a cluster, by some of its nodes; one is enough where it answers |
//! | `redis+sentinel://user@host:26379,host/service/3` | the primary that sentinels name for a service; `rediss+sentinel://` with TLS to both |
//!
//! `?read=replica` lets a backup read a replica. `sentinel_user` and `sentinel_password_file` are for sentinels that have
//! users of their own. `valkey` may stand for `redis` anywhere. `rdb:/path` is no server: a backup can be restored to it.
//! What a URL names and which server is reached in the end may be two things: [`crate::locate`].

use std::{net::IpAddr, path::PathBuf};

use fettler_engine::{EngineError, Target};
use fettler_engine_tls::TlsFiles;
use fettler_model::{Engine, SENTINEL_PORT, Secret};
use percent_encoding::percent_decode_str;
use url::Url;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// Who is asked for a server, where sentinels watch it.
#[derive(Clone, Debug)]
pub(crate) struct Sentinels {
    /// What they call it.
    pub(crate) service: String,
    /// Their own user and password, where these are not the server's.
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
}

/// Everything that is needed to connect.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    /// The server; of a URL with sentinels the first of them, until the server was looked up.
    pub(crate) place: Place,
    /// The other hosts that were named: sentinels, or nodes of a cluster.
    pub(crate) more_hosts: Vec<(String, u16)>,
    pub(crate) sentinels: Option<Sentinels>,
    /// Whether a backup reads a replica.
    pub(crate) reads_replica: bool,
    /// What the database is known by, where the server that is reached may be another one tomorrow.
    pub(crate) key: Option<String>,
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
        let (scheme, by_sentinels) = match url.scheme().strip_suffix("+sentinel") {
            Some(scheme) => (scheme, true),
            None => (url.scheme(), false),
        };
        let default_port = if by_sentinels {
            SENTINEL_PORT
        } else {
            Engine::Redis
                .default_port()
                .expect("Redis has a default port")
        };
        let mut params = Self {
            place: Place::Unix(PathBuf::new()),
            more_hosts: Vec::new(),
            sentinels: None,
            reads_replica: false,
            key: None,
            addresses: Vec::new(),
            tls: matches!(scheme, "rediss" | "valkeys").then(TlsFiles::default),
            user: Some(decoded(url.username())).filter(|user| !user.is_empty()),
            password: target.password.clone(),
            database: None,
        };
        let (mut cert, mut key) = (None, None);
        let (mut sentinel_user, mut sentinel_password) = (None, None);
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
                "read" => {
                    params.reads_replica = match value.as_ref() {
                        "replica" => true,
                        "primary" => false,
                        other => {
                            return Err(invalid(&format!(
                                "`read` is `primary` or `replica` and not {other:?}"
                            )));
                        }
                    }
                }
                "hosts" => {
                    params.more_hosts = value
                        .split(',')
                        .map(|one| host_and_port(one, default_port))
                        .collect::<Result<_, _>>()?;
                }
                "sentinel_user" | "sentinel_password_file" if !by_sentinels => {
                    return Err(invalid(&format!("`{name}` is for `redis+sentinel://`")));
                }
                "sentinel_user" => sentinel_user = Some(value.into_owned()),
                "sentinel_password_file" => sentinel_password = Some(password_in(&value)?),
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
        let port = url.port().unwrap_or(default_port);
        params.place = Place::Tcp { host, port };
        let mut number = path.trim_matches('/');
        if by_sentinels {
            let (service, rest) = number.split_once('/').unwrap_or((number, ""));
            if service.is_empty() {
                return Err(invalid(
                    "behind the sentinels stands the name of the service that they watch: `redis+sentinel://host:26379/mymaster`",
                ));
            }
            params.sentinels = Some(Sentinels {
                service: service.to_owned(),
                user: sentinel_user,
                password: sentinel_password,
            });
            number = rest;
        }
        if !number.is_empty() {
            params.database = Some(database_number(number)?);
        }
        Ok(params)
    }

    /// All hosts that were named, as `host:port` in the order of letters, so that their order in a URL means nothing.
    pub(crate) fn hosts(&self) -> String {
        let mut hosts: Vec<String> = self
            .more_hosts
            .iter()
            .map(|(host, port)| shown(host, *port))
            .chain([self.server()])
            .collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts.join(",")
    }

    /// The same login for another server, which this one named.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] (`address`), where addresses were looked at before (`hostaddr`) and this is none of them: a
    /// server that somebody else chose could lead anywhere.
    pub(crate) fn of_other(&self, host: &str, port: u16) -> Result<Self, EngineError> {
        let mut addresses = Vec::new();
        if !self.addresses.is_empty() {
            let known = host
                .parse()
                .ok()
                .filter(|address| self.addresses.contains(address));
            addresses.push(known.ok_or_else(|| EngineError::Missing {
                code: "address",
                what: format!(
                    "{} leads to {}, which is not among the addresses that may be used for it",
                    self.server(),
                    shown(host, port)
                ),
                remedy: "the operator of Fettler may name the cluster by two or more of its nodes (`redis://node1:6379,node2:6379`), which are then trusted to lead to the others".to_owned(),
            })?);
        }
        Ok(Self {
            place: Place::Tcp {
                host: host.to_ascii_lowercase(),
                port,
            },
            addresses,
            ..self.clone()
        })
    }

    /// The server's name in messages: `host:port`, or the path of its socket.
    pub(crate) fn server(&self) -> String {
        match &self.place {
            Place::Tcp { host, port } => shown(host, *port),
            Place::Unix(path) => path.display().to_string(),
        }
    }
}

fn invalid(what: &str) -> EngineError {
    EngineError::Missing {
        code: "url",
        what: format!("the database's URL cannot be used: {what}"),
        remedy: "write it as `redis://user@host:port`, `rediss://…?ca=/path` for TLS, or `redis+unix:///path/of/socket`, or `redis+sentinel://host:26379/service`; `/3` behind the port names one database".to_owned(),
    }
}

fn shown(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Reads `host`, `host:port`, `[::1]` or `[::1]:port`.
fn host_and_port(text: &str, default_port: u16) -> Result<(String, u16), EngineError> {
    let bad = || invalid(&format!("{text:?} is not a host and a port"));
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| bad())?),
        _ => (text, default_port),
    };
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    if host.is_empty() {
        return Err(bad());
    }
    Ok((host, port))
}

/// The password that a file holds, without the end of its line.
fn password_in(path: &str) -> Result<Secret, EngineError> {
    let text = std::fs::read_to_string(path).map_err(|error| EngineError::Missing {
        code: "sentinel",
        what: format!("the file {path}, which holds the sentinels' password, cannot be read: {error}"),
        remedy: "let the user of this process read it, or leave `sentinel_password_file` out where the sentinels have the server's own password or none".to_owned(),
    })?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()))
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
    fn sentinels_nodes_and_replicas_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "theirs\n").unwrap();
        let text = format!(
            "rediss+sentinel://ann:own@S2,s1:7/shop/3?read=replica&sentinel_user=eve&sentinel_password_file={}",
            file.display()
        );
        let params = read(&text).unwrap();
        assert_eq!(params.hosts(), "s1:7,s2:26379");
        assert!(params.tls.is_some() && params.reads_replica);
        assert_eq!(params.database, Some(3));
        assert_eq!(params.password.unwrap().expose(), "own");
        let sentinels = params.sentinels.unwrap();
        assert_eq!(sentinels.service, "shop");
        assert_eq!(sentinels.user.as_deref(), Some("eve"));
        assert_eq!(sentinels.password.unwrap().expose(), "theirs");

        let nodes = read("redis://n2,[::1]:7001").unwrap();
        assert_eq!(nodes.hosts(), "[::1]:7001,n2:6379");
        assert!(nodes.sentinels.is_none() && !nodes.reads_replica);
    }

    #[test]
    fn a_server_that_was_looked_at_leads_nowhere_else() {
        let open = read("redis://ann:x@node/3").unwrap();
        let other = open.of_other("10.0.0.7", 7001).unwrap();
        assert_eq!(other.server(), "10.0.0.7:7001");
        assert_eq!(other.user.as_deref(), Some("ann"));
        let looked_at = read("redis://node?hostaddr=192.0.2.1,192.0.2.2").unwrap();
        let other = looked_at.of_other("192.0.2.2", 7001).unwrap();
        assert_eq!(other.addresses.len(), 1);
        for elsewhere in ["127.0.0.1", "localhost"] {
            let error = looked_at.of_other(elsewhere, 7001).unwrap_err();
            assert!(matches!(
                error,
                EngineError::Missing {
                    code: "address",
                    ..
                }
            ));
        }
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
            ("redis+sentinel://h", "mymaster"),
            ("redis+sentinel://h/", "mymaster"),
            ("redis+sentinel://h/shop/x", "\"x\""),
            ("redis://h?read=any", "primary"),
            ("redis://h?sentinel_user=x", "redis+sentinel"),
            (
                "redis+sentinel://h/s?sentinel_password_file=/nowhere",
                "/nowhere",
            ),
            ("redis://h?hosts=a:b", "a:b"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
