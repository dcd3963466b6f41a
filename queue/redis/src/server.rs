//! Which server holds the queue: the one that the URL names, the node of a cluster that another node named, or the master
//! that sentinels name at this moment.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use redis::{
    Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo as _, RedisError,
    TlsCertificates, TlsMode,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};

use crate::RedisQueueOptions;

/// The schemes of URLs that name sentinels, each with that of the servers which these name.
const SENTINEL_SCHEMES: [(&str, &str); 2] = [
    ("redis+sentinel://", "redis://"),
    ("rediss+sentinel://", "rediss://"),
];
/// The port of a sentinel whose address names none.
const SENTINEL_PORT: u16 = 26379;

/// Where the queue is.
pub(crate) struct Server {
    named: Named,
    /// The node of a cluster that holds the keys, once another one has named it.
    node: Mutex<Option<(String, u16)>>,
}

enum Named {
    ByUrl(ConnectionInfo),
    BySentinels(tokio::sync::Mutex<SentinelClient>),
}

impl fmt::Debug for Server {
    /// Without addresses and passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
    /// Reads the URL. What is wrong is told without repeating it: it may hold a password (P9).
    pub(crate) fn named(options: &RedisQueueOptions) -> Result<Self, String> {
        let sentinels = SENTINEL_SCHEMES.iter().find_map(|(scheme, server)| {
            let rest = options.url.strip_prefix(scheme)?;
            Some((*server, rest))
        });
        let named = match sentinels {
            Some((scheme, rest)) => Named::BySentinels(tokio::sync::Mutex::new(by_sentinels(
                scheme, rest, options,
            )?)),
            None => {
                let info = options.url.as_str().into_connection_info().map_err(|_| {
                    "it is not of the form redis://host:port/, rediss://host:port/ or redis+sentinel://host:port,host:port/service"
                        .to_owned()
                })?;
                open(info.clone(), options).map_err(|error| error.category().to_owned())?;
                Named::ByUrl(info)
            }
        };
        Ok(Self {
            named,
            node: Mutex::default(),
        })
    }

    /// A client for the server that holds the queue now.
    pub(crate) async fn client(&self, options: &RedisQueueOptions) -> Result<Client, RedisError> {
        let info = match &self.named {
            Named::ByUrl(info) => info,
            Named::BySentinels(sentinels) => {
                let mut sentinels = sentinels.lock().await;
                // Some of them may be gone, and each takes its time to be found out.
                return tokio::time::timeout(options.connect_within, sentinels.async_get_client())
                    .await
                    .map_err(|_| {
                        RedisError::from((ErrorKind::Io, "no sentinel answered in time"))
                    })?;
            }
        };
        let node = self
            .node
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some((host, port)) = node else {
            return open(info.clone(), options);
        };
        let addr = match info.addr() {
            ConnectionAddr::TcpTls {
                insecure,
                tls_params,
                ..
            } => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host, port),
        };
        open(info.clone().set_addr(addr), options)
    }

    /// A node of a cluster named the one that holds the keys.
    pub(crate) fn moved_to(&self, host: &str, port: u16) {
        *self.node.lock().unwrap_or_else(PoisonError::into_inner) = Some((host.to_owned(), port));
    }

    /// The node may have gone from the cluster: the one that the settings name knows another.
    pub(crate) fn forget_node(&self) {
        *self.node.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A client. It connects when it is used.
fn open(info: ConnectionInfo, options: &RedisQueueOptions) -> Result<Client, RedisError> {
    match (certificates(options), info.addr()) {
        (Some(certificates), ConnectionAddr::TcpTls { .. }) => {
            Client::build_with_tls(info, certificates)
        }
        _ => Client::open(info),
    }
}

fn certificates(options: &RedisQueueOptions) -> Option<TlsCertificates> {
    options
        .root_certificate
        .clone()
        .map(|certificate| TlsCertificates {
            client_tls: None,
            root_cert: Some(certificate),
        })
}

/// Reads `[user:password@]host[:port],…/service[/database]`. User and password are the servers', not the sentinels'.
fn by_sentinels(
    scheme: &str,
    rest: &str,
    options: &RedisQueueOptions,
) -> Result<SentinelClient, String> {
    const FORM: &str = "sentinels are written as redis+sentinel://[user:password@]host:port,host:port/service[/database]";
    let bad = || FORM.to_owned();
    let (authority, path) = rest.split_once('/').ok_or_else(bad)?;
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (format!("{login}@"), hosts),
        None => (String::new(), authority),
    };
    let (service, database) = match path.split_once('/') {
        Some((service, database)) => (service, database),
        None => (path, ""),
    };
    if service.is_empty() || hosts.is_empty() {
        return Err(bad());
    }
    let mut sentinels = Vec::new();
    let mut server = None;
    for host in hosts.split(',') {
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let port = if has_port {
            String::new()
        } else {
            format!(":{SENTINEL_PORT}")
        };
        let info = format!("{scheme}{login}{host}{port}/{database}")
            .into_connection_info()
            .map_err(|_| bad())?;
        sentinels.push(info.addr().clone());
        server = Some(info);
    }
    let server = server.ok_or_else(bad)?;
    let is_tls = matches!(server.addr(), ConnectionAddr::TcpTls { .. });
    let settings = server.redis_settings();
    let refused = |error: RedisError| error.category().to_owned();
    let mut builder = SentinelClientBuilder::new(sentinels, service, SentinelServerType::Master)
        .map_err(refused)?
        .set_client_to_redis_db(settings.db());
    if let Some(user) = settings.username() {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = settings.password() {
        builder = builder.set_client_to_redis_password(password);
    }
    if is_tls {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_sentinel_tls_mode(TlsMode::Secure);
        if let Some(certificates) = certificates(options) {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates);
        }
    }
    builder.build().map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(url: &str) -> Result<Server, String> {
        Server::named(&RedisQueueOptions::new(url))
    }

    #[test]
    fn urls_of_servers_and_of_sentinels_are_read() {
        for url in [
            "redis://127.0.0.1:6379/",
            "rediss://:secret@queue.example/2",
            "redis+sentinel://a,b:26380,c/fleet",
            "redis+sentinel://:secret@a,b/fleet/2",
            "rediss+sentinel://user:secret@a/fleet/2",
        ] {
            assert!(named(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn p9_a_url_that_cannot_be_read_is_refused_without_its_password() {
        for url in [
            "amqp://:secret@a/",
            "redis+sentinel://:secret@a,b",
            "redis+sentinel://:secret@/fleet",
            "redis+sentinel://:secret@a/fleet/many",
        ] {
            let said = named(url).expect_err(url);
            assert!(!said.contains("secret"), "{said}");
            assert!(said.contains("redis+sentinel://"), "{said}");
        }
    }
}
