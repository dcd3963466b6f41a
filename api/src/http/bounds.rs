//! Tenants are strangers (P6): what a tenant's token may name. A job runs on the operator's machines, with
//! the operator's files, environment and network around it; so the words of a tenant may not reach what the
//! operator did not list for it: environment variables, files, other repositories, commands, server
//! processes, and addresses inside.
//!
//! Paths, references and addresses are looked at when they are submitted. A name is resolved then, and all
//! its addresses are looked at; since a name may mean something else a moment later, a worker looks again
//! when it runs the job ([`Deny::pinned`]) and connects to the very addresses that it has looked at.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Component, Path, PathBuf},
    time::Duration,
};

use fettler_model::{DatabaseUrl, Engine, SecretReference};
use ipnet::IpNet;
use serde_json::Value;
use thiserror::Error;
use url::Url;

/// How long a name may take to be resolved.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);
/// Parameters of a URL that name nothing on the machine which connects.
const HARMLESS_PARAMETERS: [&str; 16] = [
    "replicated",
    "sslmode",
    "connect_timeout",
    "application_name",
    "channel_binding",
    "user",
    "dbname",
    "db",
    "authSource",
    "authMechanism",
    "directConnection",
    "replicaSet",
    "tls",
    "ssl",
    "auth",
    "prefix",
];
/// Members of arguments whose texts are words of the user's: they name nothing outside the database.
const FREE_WORDS: [&str; 6] = ["tags", "only", "exclude", "labels", "table", "column"];

/// What the operator listed for a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// References to secrets, where a `*` at the end stands for any rest: `env:ACME_*`.
    pub references: Vec<String>,
    /// Folders whose files it may name.
    pub paths: Vec<PathBuf>,
    /// Repositories beside its own.
    pub repositories: Vec<String>,
    /// Whether it may run commands on workers (hooks).
    pub commands: bool,
    /// Whether it may ask for a server process on a worker as the sandbox of a proof.
    pub process_sandboxes: bool,
    /// Addresses that it may name although they are denied.
    pub addresses: Vec<IpNet>,
}

/// Addresses that no tenant may name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deny {
    /// Networks.
    pub networks: Vec<IpNet>,
    /// Servers of the operator's own, by name and port: the ledger, Redis.
    pub servers: Vec<(String, u16)>,
    /// Whether the machines' own addresses (127.0.0.0/8, `::1`) are denied.
    pub loopback: bool,
}

/// What is beyond a tenant's bounds.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{what}")]
pub struct OutOfBounds {
    /// The field that names it.
    pub field: String,
    /// What it is.
    pub what: String,
    /// Whether nobody knows yet: the name could not be resolved.
    pub may_pass: bool,
}

impl OutOfBounds {
    fn new(field: &str, what: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            what: what.into(),
            may_pass: false,
        }
    }

    /// What the caller can do.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        "the operator can list it for the tenant (`allow` in config/tenants/NAME.toml)"
    }
}

/// Something that arguments name.
#[derive(Clone, Debug, PartialEq)]
enum Named {
    Reference(SecretReference),
    Place {
        url: DatabaseUrl,
        has_password: bool,
    },
    Repository(String),
    Commands,
    ProcessSandbox,
}

impl Bounds {
    /// Whether a tenant may refer to this secret. What is sealed is its own: the ledger gives it to nobody else.
    ///
    /// # Errors
    ///
    /// When it was not listed.
    pub fn reference(&self, field: &str, reference: &SecretReference) -> Result<(), OutOfBounds> {
        let text = reference.to_string();
        let is_listed = match reference {
            SecretReference::Sealed(_) => true,
            SecretReference::File(path) if !is_plain(path) => false,
            _ => self.references.iter().any(|pattern| fits(pattern, &text)),
        };
        if is_listed {
            return Ok(());
        }
        Err(OutOfBounds::new(
            field,
            format!("the reference `{text}` was not listed for this tenant"),
        ))
    }

    /// Whether a tenant may name this place of a database. A server needs a password of the tenant's: without
    /// one the worker would use its own.
    ///
    /// # Errors
    ///
    /// When the place is not for this tenant.
    pub async fn place(
        &self,
        deny: &Deny,
        field: &str,
        url: &DatabaseUrl,
        has_password: bool,
    ) -> Result<(), OutOfBounds> {
        match url.path() {
            Some(path) => {
                let is_listed = is_plain(&path)
                    && self
                        .paths
                        .iter()
                        .any(|folder| path.starts_with(folder) && path != *folder);
                if is_listed {
                    return Ok(());
                }
                Err(OutOfBounds::new(
                    field,
                    format!("the file {} was not listed for this tenant", path.display()),
                ))
            }
            None => {
                let parsed = parse(field, url)?;
                if let Some((name, _)) = parsed
                    .query_pairs()
                    .find(|(name, value)| !is_harmless(name, value))
                {
                    return Err(OutOfBounds::new(
                        field,
                        format!(
                            "the parameter `{name}` of the URL reaches into the machine that connects"
                        ),
                    ));
                }
                if !has_password {
                    return Err(OutOfBounds::new(
                        field,
                        "the place of a tenant's database needs a password of its own: one in the URL, which is sealed, or a reference",
                    ));
                }
                self.server(deny, field, &parsed).await.map(drop)
            }
        }
    }

    /// Whether a tenant may name this server; gives the addresses that were looked at, as far as the name can
    /// be resolved here.
    async fn server(
        &self,
        deny: &Deny,
        field: &str,
        url: &Url,
    ) -> Result<Vec<IpAddr>, OutOfBounds> {
        let (host, port) = host_of(field, url)?;
        if deny
            .servers
            .iter()
            .any(|(name, at)| *at == port && name.eq_ignore_ascii_case(&host))
        {
            return Err(deny.refusal(field, &host));
        }
        let addresses = resolve(&host, port).await;
        for address in &addresses {
            self.address(deny, field, &host, *address)?;
            for (name, at) in deny.servers.iter().filter(|(_, at)| *at == port) {
                if resolve(name, *at).await.contains(address) {
                    return Err(deny.refusal(field, &host));
                }
            }
        }
        Ok(addresses)
    }

    fn address(
        &self,
        deny: &Deny,
        field: &str,
        host: &str,
        address: IpAddr,
    ) -> Result<(), OutOfBounds> {
        let plain = unwrapped(address);
        if self
            .addresses
            .iter()
            .any(|network| network.contains(&plain))
        {
            return Ok(());
        }
        if deny.denies(plain) {
            return Err(deny.refusal(field, host));
        }
        Ok(())
    }

    /// Whether a tenant may submit these arguments, for a job whose backups go to `own_repository` when
    /// nothing else is said.
    ///
    /// # Errors
    ///
    /// When they name something beyond its bounds.
    pub async fn arguments(
        &self,
        deny: &Deny,
        field: &str,
        arguments: &Value,
        own_repository: &str,
    ) -> Result<(), OutOfBounds> {
        let mut named = Vec::new();
        collect(arguments, field, "", &mut named)?;
        for (at, named) in named {
            match named {
                Named::Reference(reference) => self.reference(&at, &reference)?,
                Named::Place { url, has_password } => {
                    self.place(deny, &at, &url, has_password).await?;
                }
                Named::Repository(place) => {
                    if place != own_repository && !self.repositories.contains(&place) {
                        return Err(OutOfBounds::new(
                            &at,
                            "the repository was not listed for this tenant",
                        ));
                    }
                }
                Named::Commands if !self.commands => {
                    return Err(OutOfBounds::new(
                        &at,
                        "commands on workers are not for this tenant",
                    ));
                }
                Named::ProcessSandbox if !self.process_sandboxes => {
                    return Err(OutOfBounds::new(
                        &at,
                        "server processes on workers are not for this tenant: leave the sandbox out, or name a server",
                    ));
                }
                Named::Commands | Named::ProcessSandbox => {}
            }
        }
        Ok(())
    }
}

impl Deny {
    fn denies(&self, address: IpAddr) -> bool {
        let is_inside = match address {
            IpAddr::V4(v4) => {
                v4.is_link_local() || v4.is_multicast() || v4.is_broadcast() || v4.is_unspecified()
            }
            IpAddr::V6(v6) => {
                v6.is_unicast_link_local()
                    || v6.is_multicast()
                    || v6.is_unspecified()
                    || v6 == METADATA
            }
        };
        is_inside
            || (self.loopback && address.is_loopback())
            || self
                .networks
                .iter()
                .any(|network| network.contains(&address))
    }

    fn refusal(&self, field: &str, host: &str) -> OutOfBounds {
        OutOfBounds::new(field, format!("the address of {host} is not for tenants"))
    }

    /// Looks at a place once more, when a worker is about to connect, and gives the same place with the
    /// addresses that were looked at in the stead of its name, as `hostaddr`: what the name means a moment
    /// later does not matter any more. A place of a form that no tenant's token can name (a socket, several
    /// hosts) was named by the operator, and stays as it is.
    ///
    /// # Errors
    ///
    /// When an address is denied, or the name cannot be resolved.
    pub async fn pinned(
        &self,
        bounds: &Bounds,
        url: &DatabaseUrl,
    ) -> Result<DatabaseUrl, OutOfBounds> {
        const FIELD: &str = "url";
        if url.engine().default_port().is_none() {
            return Ok(url.clone());
        }
        let mut parsed = parse(FIELD, url)?;
        let is_a_tenants = parsed
            .query_pairs()
            .all(|(name, value)| is_harmless(&name, &value));
        let (true, Ok((host, _))) = (is_a_tenants, host_of(FIELD, &parsed)) else {
            return Ok(url.clone());
        };
        let addresses = bounds.server(self, FIELD, &parsed).await?;
        if addresses.is_empty() {
            // Whoever connects must not ask once more: the answer might be another one.
            return Err(OutOfBounds {
                may_pass: true,
                ..OutOfBounds::new(FIELD, format!("the name {host} cannot be resolved"))
            });
        }
        let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        parsed
            .query_pairs_mut()
            .append_pair("hostaddr", &list.join(","));
        DatabaseUrl::parse_with_password(parsed.as_str())
            .map(|(url, _)| url)
            .map_err(|error| OutOfBounds::new(FIELD, error.to_string()))
    }
}

/// Amazon's metadata service over IPv6; the one over IPv4 is link-local.
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254);

/// An IPv4 address that is written as an IPv6 one, as itself: mapped, translated (NAT64) and 6to4.
fn unwrapped(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return IpAddr::V4(v4);
    }
    let [first, second, third, fourth, fifth, sixth, high, low] = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match (first, second, third, fourth, fifth, sixth) {
        (0x0064, 0xff9b, 0, 0, 0, 0) => v4(high, low),
        (0x2002, ..) => v4(second, third),
        // `::a.b.c.d`, long out of use; `::` and `::1` stay what they are.
        (0, 0, 0, 0, 0, 0) if high != 0 => v4(high, low),
        _ => address,
    }
}

fn parse(field: &str, url: &DatabaseUrl) -> Result<Url, OutOfBounds> {
    Url::parse(url.as_str()).map_err(|error| OutOfBounds::new(field, error.to_string()))
}

/// The one server that a URL names.
fn host_of(field: &str, url: &Url) -> Result<(String, u16), OutOfBounds> {
    if url.scheme().ends_with("+sentinel") {
        // They name the server, and may name any.
        return Err(OutOfBounds::new(
            field,
            "sentinels have to be named by the operator: they lead to other servers",
        ));
    }
    let host = url
        .host_str()
        .map(|host| {
            percent_encoding::percent_decode_str(host)
                .decode_utf8_lossy()
                .into_owned()
        })
        .unwrap_or_default();
    let host = host.trim_matches(['[', ']']).to_owned();
    if host.is_empty() || host.contains(['/', ',', '\\', '@', '%']) {
        return Err(OutOfBounds::new(
            field,
            "the URL has to name one server, by its name or its address",
        ));
    }
    let default_port = || match url.scheme() {
        "clickhouses" => Some(8443),
        scheme => scheme.parse::<Engine>().ok()?.default_port(),
    };
    let port = url.port().or_else(default_port);
    port.map(|port| (host, port))
        .ok_or_else(|| OutOfBounds::new(field, "the URL names no port"))
}

/// The addresses of a name; none when it cannot be resolved from here.
async fn resolve(host: &str, port: u16) -> Vec<IpAddr> {
    let looked = tokio::time::timeout(RESOLVE_WITHIN, tokio::net::lookup_host((host, port))).await;
    match looked {
        Ok(Ok(found)) => {
            let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
            addresses.sort_unstable();
            addresses.dedup();
            addresses
        }
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

fn is_harmless(name: &str, value: &str) -> bool {
    HARMLESS_PARAMETERS.contains(&name) || (name == "sslrootcert" && value == "system")
}

/// Whether a path says where it leads: from the root, without `..`.
fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

fn fits(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => text.starts_with(beginning),
        None => text == pattern,
    }
}

/// Finds what arguments name, whatever their kind calls it: a kind that comes later is looked at too.
fn collect(
    value: &Value,
    path: &str,
    key: &str,
    named: &mut Vec<(String, Named)>,
) -> Result<(), OutOfBounds> {
    if FREE_WORDS.contains(&key) {
        return Ok(());
    }
    match value {
        Value::Object(members) => {
            let has_password = members
                .get("password")
                .is_some_and(|value| !value.is_null());
            if key == "hooks"
                && ["before", "after"]
                    .iter()
                    .any(|name| !value[*name].is_null())
            {
                named.push((path.to_owned(), Named::Commands));
            }
            if key == "sandbox" && value["kind"] == "automatic" {
                named.push((path.to_owned(), Named::ProcessSandbox));
            }
            for (name, member) in members {
                let at = format!("{path}.{name}");
                if let (Value::String(text), "to" | "url") = (member, name.as_str()) {
                    let (url, inside) = DatabaseUrl::parse_with_password(text)
                        .map_err(|error| OutOfBounds::new(&at, error.to_string()))?;
                    let has_password = has_password || inside.is_some();
                    named.push((at, Named::Place { url, has_password }));
                } else {
                    collect(member, &at, name, named)?;
                }
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                collect(item, &format!("{path}.{at}"), key, named)?;
            }
        }
        Value::String(text) if key == "place" => {
            named.push((path.to_owned(), Named::Repository(text.clone())));
        }
        Value::String(text) => {
            if let Ok(reference) = text.parse() {
                named.push((path.to_owned(), Named::Reference(reference)));
            } else if text.starts_with('/') || is_place_of_a_database(text) {
                return Err(OutOfBounds::new(
                    path,
                    "a path or the place of a database is not for tenants here",
                ));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

fn is_place_of_a_database(text: &str) -> bool {
    text.split_once(':')
        .is_some_and(|(scheme, _)| scheme.parse::<Engine>().is_ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fleet() -> Deny {
        Deny {
            networks: vec!["10.1.0.0/16".parse().unwrap()],
            servers: vec![
                ("ledger.internal".to_owned(), 5432),
                ("192.0.2.9".to_owned(), 6379),
            ],
            loopback: true,
        }
    }

    async fn refused(bounds: &Bounds, arguments: Value) -> Option<String> {
        bounds
            .arguments(&fleet(), "arguments", &arguments, "/own")
            .await
            .err()
            .map(|error| error.field)
    }

    #[tokio::test]
    async fn p6_a_tenant_reaches_nothing_that_was_not_listed() {
        let none = Bounds::default();
        let to = |url: &str| json!({"backup": "x", "to": url, "password": "sealed:0198a1b2-c3d4-7000-8000-000000000001"});
        for url in [
            "/etc/passwd",
            "sqlite:/var/lib/other.db",
            "shop.sqlite",
            "postgres://u@127.0.0.1/app",
            "postgres://u@localhost/app",
            "postgres://u@[::1]/app",
            "postgres://u@[::ffff:127.0.0.1]/app",
            "postgres://u@[::127.0.0.1]/app",
            "postgres://u@[64:ff9b::7f00:1]/app",
            "postgres://u@[2002:7f00:1::]/app",
            "postgres://u@0.0.0.0/app",
            "postgres://u@0/app",
            "postgres://u@2130706433/app",
            "postgres://u@127.1/app",
            "postgres://u@169.254.169.254/app",
            "postgres://u@[fd00:ec2::254]/app",
            "postgres://u@[fe80::1]/app",
            "postgres://u@10.1.2.3/app",
            "postgres://u@ledger.internal/app",
            "postgres://u@LEDGER.internal:5432/app",
            "postgres://u@192.0.2.9:6379/app",
            "postgres://u@%2Fvar%2Frun%2Fpostgresql/app",
            "postgres:///app",
            "postgres://u@192.0.2.1,127.0.0.1/app",
            "postgres://u@192.0.2.1/app?host=127.0.0.1",
            "redis://u@127.0.0.1",
            "redis://u@192.0.2.9",
            "redis://u@192.0.2.1?hostaddr=127.0.0.1",
            "rediss://u@192.0.2.1?ca=/etc/shadow",
            "redis+unix:///run/redis/redis.sock?user=u",
            "redis://u@192.0.2.1,127.0.0.1",
            "redis://u@192.0.2.1?read=replica",
            "redis+sentinel://u@192.0.2.1/shop",
            "rediss+sentinel://u@192.0.2.1:26379,192.0.2.2:26379/shop",
            "mongodb://u@127.0.0.1",
            "mongodb://u@192.0.2.1,127.0.0.1/shop",
            "mongodb+srv://u@127.0.0.1/shop",
            "mongodb://u@%2Frun%2Fmongodb.sock/shop",
            "mongodb://u@192.0.2.1/?hostaddr=127.0.0.1",
            "mongodb://u@192.0.2.1/?tlsCAFile=/etc/shadow",
            "mongodb://u@192.0.2.1/?fettlerScratch=shop",
            "elasticsearch://u@127.0.0.1",
            "elasticsearch://u@192.0.2.9:6379",
            "elasticsearch://u@192.0.2.1?hostaddr=127.0.0.1",
            "opensearch+https://u@192.0.2.1?ca=/etc/shadow",
            "clickhouse://u@127.0.0.1",
            "clickhouse://u@192.0.2.1?sandbox=shop",
            "clickhouses://u@192.0.2.1?ca=/etc/shadow",
            "rdb:/var/lib/redis/dump.rdb",
            "postgres://u@192.0.2.1/app?hostaddr=127.0.0.1",
            "postgres://u@192.0.2.1/app?sslkey=/etc/fettler/key",
            "postgres://u@192.0.2.1/app?sslrootcert=/etc/shadow",
            "postgres://u@192.0.2.1/app?passfile=/root/.pgpass",
            "postgres://u@192.0.2.1/app?options=-csearch_path%3Dx",
        ] {
            assert_eq!(
                refused(&none, to(url)).await.as_deref(),
                Some("arguments.to"),
                "{url}"
            );
        }
        assert_eq!(
            refused(&none, to("postgres://u@192.0.2.1/app?sslmode=require")).await,
            None
        );
        // Without a password of its own the worker's would be sent to a server that the tenant chose.
        let bare = json!({"to": "postgres://u@192.0.2.1/app"});
        assert_eq!(refused(&none, bare).await.as_deref(), Some("arguments.to"));

        for (arguments, field) in [
            (
                json!({"password": "env:AWS_SECRET_ACCESS_KEY"}),
                "arguments.password",
            ),
            (
                json!({"deep": [{"secret": "file:/etc/shadow"}]}),
                "arguments.deep.0.secret",
            ),
            (json!({"place": "/backups/of/others"}), "arguments.place"),
            (json!({"place": "s3://others/x"}), "arguments.place"),
            (json!({"hooks": {"before": "id"}}), "arguments.hooks"),
            (json!({"hooks": {"after": "id"}}), "arguments.hooks"),
            (
                json!({"sandbox": {"kind": "automatic"}}),
                "arguments.sandbox",
            ),
            (
                json!({"sandbox": {"kind": "server", "url": "postgres://u:p@127.0.0.1/x"}}),
                "arguments.sandbox.url",
            ),
            (json!({"into": "/tmp/x"}), "arguments.into"),
            (json!({"into": "sqlite:/tmp/x"}), "arguments.into"),
        ] {
            assert_eq!(
                refused(&none, arguments.clone()).await.as_deref(),
                Some(field),
                "{arguments}"
            );
        }
        for fine in [
            json!({}),
            Value::Null,
            json!({"place": "/own", "tags": ["env:prod", "/x"], "exclude": ["public.log_*"]}),
            json!({"hooks": {"before": null, "timeout_seconds": 5}}),
            json!({"sandbox": {"kind": "source_server"}}),
        ] {
            assert_eq!(refused(&none, fine.clone()).await, None, "{fine}");
        }
    }

    #[tokio::test]
    async fn what_the_operator_listed_is_allowed() {
        let listed = Bounds {
            references: vec![
                "env:ACME_*".to_owned(),
                "file:/etc/acme/password".to_owned(),
            ],
            paths: vec!["/data/acme".into()],
            repositories: vec!["s3://acme/backups".to_owned()],
            commands: true,
            process_sandboxes: true,
            addresses: vec!["127.0.0.1/32".parse().unwrap()],
        };
        for fine in [
            json!({"to": "/data/acme/shop.sqlite"}),
            json!({"to": "postgres://u@127.0.0.1/app", "password": "env:ACME_DB"}),
            json!({"place": "s3://acme/backups", "hooks": {"before": "id"}}),
            json!({"sandbox": {"kind": "automatic"}, "password": "file:/etc/acme/password"}),
        ] {
            assert_eq!(refused(&listed, fine.clone()).await, None, "{fine}");
        }
        for (path, field) in [
            ("/data/acme", "arguments.to"),
            ("/data/acme/../other/shop.sqlite", "arguments.to"),
            ("/data/acme2/shop.sqlite", "arguments.to"),
        ] {
            assert_eq!(
                refused(&listed, json!({"to": path})).await.as_deref(),
                Some(field),
                "{path}"
            );
        }
        let beside = json!({"password": "env:ACMF"});
        assert_eq!(
            refused(&listed, beside).await.as_deref(),
            Some("arguments.password")
        );
    }

    #[tokio::test]
    async fn a_place_is_pinned_to_the_addresses_that_were_looked_at() {
        let url = |text: &str| DatabaseUrl::parse_with_password(text).unwrap().0;
        let open = Deny {
            loopback: false,
            ..fleet()
        };
        let pinned = open
            .pinned(
                &Bounds::default(),
                &url("postgres://u@localhost:5433/app?sslmode=prefer"),
            )
            .await
            .unwrap();
        let text = pinned.as_str();
        assert!(
            text.contains("localhost:5433/app") && text.contains("hostaddr="),
            "{text}"
        );
        let shut = fleet()
            .pinned(&Bounds::default(), &url("postgres://u@localhost/app"))
            .await;
        assert!(shut.is_err());
        let nobody = open
            .pinned(
                &Bounds::default(),
                &url("postgres://u@no-such-name.invalid/app"),
            )
            .await;
        assert!(nobody.unwrap_err().may_pass);
        for operators in [
            "postgres:///app",
            "postgres://u@a,b/app",
            "postgres://u@x/app?host=127.0.0.1",
        ] {
            let place = url(operators);
            assert_eq!(
                fleet().pinned(&Bounds::default(), &place).await.unwrap(),
                place
            );
        }
        let file = url("/data/shop.sqlite");
        assert_eq!(
            fleet().pinned(&Bounds::default(), &file).await.unwrap(),
            file
        );
    }
}
