//! How to reach a server: what a target's URL says.
//!
//! | form | |
//! |---|---|
//! | `clickhouse://user@host:8123/shop` | the HTTP interface; a database behind the port narrows a backup or a restore to it |
//! | `clickhouses://user@host?ca=…&identity=…` | over TLS (port 8443): the authority to trust, and a client's certificate with its key |
//!
//! `?cluster=NAME` means all shards of a cluster that the server knows, `?replicated=plain` makes a restore create replicated tables as plain ones, and `?hostaddr=` names the addresses to connect to.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use fettler_engine::{EngineError, Target};
use fettler_model::{Engine, Secret};
use percent_encoding::percent_decode_str;
use url::Url;

/// The port of the HTTP interface with TLS, as the server's own configuration has it.
const TLS_PORT: u16 = 8443;
/// The port of the protocol that `clickhouse-client` speaks.
const NATIVE_PORTS: [u16; 2] = [9000, 9440];

/// Files for TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The authority to trust beside the machine's.
    pub(crate) ca: Option<PathBuf>,
    /// One file with the client's certificate and its key.
    pub(crate) identity: Option<PathBuf>,
}

/// Everything that is needed to connect.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    /// The one database that is meant; all where none is named.
    pub(crate) database: Option<String>,
    /// The addresses to connect to in the stead of the host's name; the name is what a certificate is compared with.
    pub(crate) addresses: Vec<IpAddr>,
    /// Replicated tables are created as plain ones.
    pub(crate) plain_replicated: bool,
    /// The cluster that is meant, of those that the server knows; the server alone where none is named.
    pub(crate) cluster: Option<String>,
    /// The place is a proof's scratch area: databases have this before their names.
    pub(crate) sandbox_prefix: Option<String>,
}

impl Params {
    /// Reads a target.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] (`url`), which names the part that cannot be used.
    pub(crate) fn of(target: &Target) -> Result<Self, EngineError> {
        let url = Url::parse(target.url.as_str()).map_err(|error| invalid(&error.to_string()))?;
        let mut tls = (url.scheme() == "clickhouses").then(TlsFiles::default);
        let mut params = Self {
            host: decoded(url.host_str().unwrap_or_default())
                .trim_matches(['[', ']'])
                .to_ascii_lowercase(),
            port: url.port().unwrap_or(match tls {
                Some(_) => TLS_PORT,
                None => Engine::Clickhouse
                    .default_port()
                    .expect("ClickHouse has a default port"),
            }),
            tls: None,
            user: Some(decoded(url.username())).filter(|user| !user.is_empty()),
            password: target.password.clone(),
            database: Some(decoded(url.path().trim_matches('/'))).filter(|name| !name.is_empty()),
            addresses: Vec::new(),
            plain_replicated: false,
            cluster: None,
            sandbox_prefix: None,
        };
        if params.host.is_empty() {
            return Err(invalid("it names no host"));
        }
        if NATIVE_PORTS.contains(&params.port) {
            return Err(invalid(&format!(
                "port {} is that of `clickhouse-client`, and Fettler speaks HTTP",
                params.port
            )));
        }
        for (name, value) in url.query_pairs() {
            match (name.as_ref(), &mut tls) {
                ("user", _) => params.user = Some(value.into_owned()),
                ("ca", Some(files)) => files.ca = Some(PathBuf::from(value.as_ref())),
                ("identity", Some(files)) => files.identity = Some(PathBuf::from(value.as_ref())),
                ("ca" | "identity", None) => {
                    return Err(invalid(&format!("`{name}` is for `clickhouses://`")));
                }
                ("hostaddr", _) => {
                    params.addresses = value
                        .split(',')
                        .map(|one| {
                            one.parse()
                                .map_err(|_| invalid(&format!("{one:?} is not an address")))
                        })
                        .collect::<Result<_, _>>()?;
                }
                ("replicated", _) if value == "plain" => params.plain_replicated = true,
                ("cluster", _) if !value.is_empty() => params.cluster = Some(value.into_owned()),
                ("sandbox", _) => params.sandbox_prefix = Some(value.into_owned()),
                (other, _) => {
                    return Err(invalid(&format!("the parameter `{other}` is not known")));
                }
            }
        }
        params.tls = tls;
        Ok(params)
    }

    /// The same login for another server of the cluster, at the same port.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] (`address`), where addresses were looked at before (`hostaddr`) and this is none of them: a
    /// server that somebody else chose could lead anywhere.
    pub(crate) fn of_other(&self, host: &str) -> Result<Self, EngineError> {
        let mut addresses = Vec::new();
        if !self.addresses.is_empty() {
            let known = host
                .parse()
                .ok()
                .filter(|address| self.addresses.contains(address));
            addresses.push(known.ok_or_else(|| EngineError::Missing {
                code: "address",
                what: format!(
                    "{} leads to {host}, which is not among the addresses that may be used for it",
                    self.server()
                ),
                remedy: "the operator of Fettler may name each server by itself".to_owned(),
            })?);
        }
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_ascii_lowercase(),
            addresses,
            cluster: None,
            ..self.clone()
        })
    }

    /// The server's name in messages: `host:port`.
    pub(crate) fn server(&self) -> String {
        format!("{}:{}", self.bracketed_host(), self.port)
    }

    /// The address of the HTTP interface.
    pub(crate) fn base(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{}/", self.bracketed_host(), self.port)
    }

    /// The addresses to connect to, with the port.
    pub(crate) fn socket_addresses(&self) -> Vec<SocketAddr> {
        self.addresses
            .iter()
            .map(|address| SocketAddr::new(*address, self.port))
            .collect()
    }

    fn bracketed_host(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        }
    }
}

fn invalid(what: &str) -> EngineError {
    EngineError::Missing {
        code: "url",
        what: format!("the database's URL cannot be used: {what}"),
        remedy: "write it as `clickhouse://user@host:8123/database`, or `clickhouses://…?ca=/path` for TLS; without a database all of the server's are meant".to_owned(),
    }
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
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
        let plain = read("clickhouse://ann:s%3Acret@Ch.example/sh%20op").unwrap();
        assert_eq!(plain.base(), "http://ch.example:8123/");
        assert_eq!(plain.user.as_deref(), Some("ann"));
        assert_eq!(plain.password.unwrap().expose(), "s:cret");
        assert_eq!(plain.database.as_deref(), Some("sh op"));

        let tls = read("clickhouses://[::1]?ca=/ca.pem&identity=/me.pem&replicated=plain").unwrap();
        assert_eq!(tls.base(), "https://[::1]:8443/");
        let files = tls.tls.unwrap();
        assert_eq!(files.ca, Some("/ca.pem".into()));
        assert_eq!(files.identity, Some("/me.pem".into()));
        assert!(tls.plain_replicated);

        let cluster = read("clickhouse://ann:x@h:8124/d?cluster=two").unwrap();
        assert_eq!(cluster.cluster.as_deref(), Some("two"));
        let other = cluster.of_other("Ch2").unwrap();
        assert_eq!(other.base(), "http://ch2:8124/");
        assert_eq!(other.cluster, None);
        assert_eq!(other.user, cluster.user);

        let told = read("clickhouse://h?hostaddr=10.0.0.1,::1").unwrap();
        assert!(told.of_other("10.0.0.2").is_err() && told.of_other("h2").is_err());
        assert_eq!(told.of_other("::1").unwrap().socket_addresses().len(), 1);
        assert_eq!(told.socket_addresses().len(), 2);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, named) in [
            ("clickhouse://h:9000", "HTTP"),
            ("clickhouse://h?ca=/x", "clickhouses"),
            ("clickhouse://h?compress=1", "compress"),
            ("clickhouse://h?hostaddr=x", "address"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
