//! How to reach a server: what the URL says, what libpq's environment variables add, and where the
//! password comes from. The same answers are given to the sessions of this process and, through the
//! environment, to `pg_dump` and its like, so that both reach the same database in the same way.

use std::{
    env, fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use fettler_engine::{EngineError, Target};
use fettler_model::Secret;
use url::Url;

/// Where Debian's and most other packages put the sockets; libpq's own default is `/tmp`.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const DEFAULT_PORT: u16 = 5432;
/// How long a server may take to accept a connection.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// One place where a server may listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Tcp(String),
    /// The folder that holds the socket.
    Unix(PathBuf),
}

/// How much of TLS is wanted, in libpq's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// Everything that is needed to connect.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub(crate) hosts: Vec<(Host, u16)>,
    /// The addresses to connect to in the stead of the host's name, as libpq's `hostaddr`; the name is what a
    /// certificate is compared with.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) user: String,
    pub(crate) database: String,
    password: Option<Secret>,
    pub(crate) ssl_mode: SslMode,
    /// A file of trusted certificates; `system` and none mean those that the machine trusts.
    pub(crate) ssl_root_cert: Option<PathBuf>,
    pub(crate) ssl_cert: Option<PathBuf>,
    pub(crate) ssl_key: Option<PathBuf>,
    pub(crate) options: Option<String>,
    pub(crate) connect_timeout: Duration,
    pub(crate) require_channel_binding: bool,
}

impl Params {
    /// Reads a target.
    pub(crate) fn of(target: &Target) -> Result<Self, EngineError> {
        Self::read(target, &|name| {
            env::var(name).ok().filter(|value| !value.is_empty())
        })
    }

    fn read(target: &Target, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, EngineError> {
        let invalid = |what: String| EngineError::Missing {
            code: "url",
            what: format!("the database's URL cannot be used: {what}"),
            remedy: "write it as `postgres://user@host:port/database?sslmode=…`".to_owned(),
        };
        let url = Url::parse(target.url.as_str()).map_err(|error| invalid(error.to_string()))?;
        let query = |wanted: &str| {
            url.query_pairs()
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.into_owned())
                .filter(|value| !value.is_empty())
        };
        let decoded = |text: &str| percent_decoded(text).filter(|text| !text.is_empty());

        let port_text = query("port").or_else(|| env("PGPORT"));
        let default_port = match (url.port(), port_text) {
            (Some(port), _) => port,
            (None, None) => DEFAULT_PORT,
            (None, Some(text)) => text
                .parse()
                .map_err(|_| invalid(format!("{text:?} is not a port")))?,
        };
        let host_text = query("host")
            .or_else(|| url.host_str().and_then(decoded))
            .or_else(|| env("PGHOST"));
        let hosts = match host_text {
            Some(text) => text
                .split(',')
                .map(|host| (host_of(host), default_port))
                .collect(),
            None => vec![(default_host(default_port), default_port)],
        };
        let addresses = query("hostaddr")
            .map(|text| {
                text.split(',')
                    .map(|one| {
                        one.parse()
                            .map_err(|_| invalid(format!("{one:?} is not an address")))
                    })
                    .collect::<Result<Vec<IpAddr>, _>>()
            })
            .transpose()?
            .unwrap_or_default();
        let user = query("user")
            .or_else(|| decoded(url.username()))
            .or_else(|| env("PGUSER"))
            .or_else(|| env("USER"))
            .or_else(|| env("LOGNAME"))
            .ok_or_else(|| invalid("it names no user".to_owned()))?;
        let database = query("dbname")
            .or_else(|| decoded(url.path().trim_start_matches('/')))
            .or_else(|| env("PGDATABASE"))
            .unwrap_or_else(|| user.clone());
        let ssl_mode = match query("sslmode").or_else(|| env("PGSSLMODE")).as_deref() {
            None | Some("prefer" | "allow") => SslMode::Prefer,
            Some("disable") => SslMode::Disable,
            Some("require") => SslMode::Require,
            Some("verify-ca") => SslMode::VerifyCa,
            Some("verify-full") => SslMode::VerifyFull,
            Some(other) => {
                return Err(invalid(format!(
                    "sslmode {other:?} is none of disable, prefer, require, verify-ca and verify-full"
                )));
            }
        };
        let ssl_root_cert = query("sslrootcert")
            .or_else(|| env("PGSSLROOTCERT"))
            .filter(|path| path != "system")
            .map(PathBuf::from);
        // libpq: a file of trusted certificates turns `require` into `verify-ca`.
        let ssl_mode = match (ssl_mode, &ssl_root_cert) {
            (SslMode::Require, Some(_)) => SslMode::VerifyCa,
            (mode, _) => mode,
        };
        let connect_timeout = query("connect_timeout")
            .or_else(|| env("PGCONNECT_TIMEOUT"))
            .and_then(|text| text.parse().ok())
            .filter(|seconds| *seconds > 0)
            .map_or(DEFAULT_CONNECT_TIMEOUT, Duration::from_secs);
        let mut params = Self {
            hosts,
            addresses,
            user,
            database,
            password: target.password.clone(),
            ssl_mode,
            ssl_root_cert,
            ssl_cert: query("sslcert")
                .or_else(|| env("PGSSLCERT"))
                .map(PathBuf::from),
            ssl_key: query("sslkey")
                .or_else(|| env("PGSSLKEY"))
                .map(PathBuf::from),
            options: query("options").or_else(|| env("PGOPTIONS")),
            connect_timeout,
            require_channel_binding: query("channel_binding").as_deref() == Some("require"),
        };
        if params.password.is_none() {
            params.password = env("PGPASSWORD").map(Secret::new);
        }
        if params.password.is_none() {
            let passfile = query("passfile")
                .or_else(|| env("PGPASSFILE"))
                .map(PathBuf::from)
                .or_else(|| env("HOME").map(|home| Path::new(&home).join(".pgpass")));
            params.password = passfile.and_then(|path| params.look_up(&path));
        }
        Ok(params)
    }

    /// The same server and user, another database.
    pub(crate) fn with_database(&self, database: &str) -> Self {
        Self {
            database: database.to_owned(),
            ..self.clone()
        }
    }

    /// The same place for another user without a password.
    pub(crate) fn with_user(&self, user: &str, password: Option<Secret>) -> Self {
        Self {
            user: user.to_owned(),
            password,
            ..self.clone()
        }
    }

    pub(crate) fn password(&self) -> Option<&str> {
        self.password.as_ref().map(Secret::expose)
    }

    /// The server, for people.
    pub(crate) fn server(&self) -> String {
        let places: Vec<String> = self
            .hosts
            .iter()
            .map(|(host, port)| match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(folder) => format!("{}/.s.PGSQL.{port}", folder.display()),
            })
            .collect();
        format!("PostgreSQL at {}", places.join(", "))
    }

    /// What `pg_dump` and its like find in their environment: all of the above, and nothing that this
    /// process happens to have there.
    pub(crate) fn child_environment(
        &self,
        application_name: &str,
    ) -> Vec<(&'static str, Option<String>)> {
        // libpq wants as many names and ports as addresses.
        let repeated = self.addresses.len().max(1);
        let (hosts, ports): (Vec<String>, Vec<String>) = self
            .hosts
            .iter()
            .flat_map(|host| std::iter::repeat_n(host, repeated))
            .map(|(host, port)| match host {
                Host::Tcp(name) => (name.clone(), port.to_string()),
                Host::Unix(folder) => (folder.display().to_string(), port.to_string()),
            })
            .unzip();
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let root_cert = path(&self.ssl_root_cert).or_else(|| {
            // libpq trusts no certificate of the machine by itself; this is the list that this process uses.
            matches!(self.ssl_mode, SslMode::VerifyCa | SslMode::VerifyFull)
                .then(machine_certificates)
                .flatten()
        });
        vec![
            ("PGHOST", Some(hosts.join(","))),
            ("PGPORT", Some(ports.join(","))),
            ("PGUSER", Some(self.user.clone())),
            ("PGDATABASE", Some(self.database.clone())),
            ("PGPASSWORD", self.password().map(str::to_owned)),
            // Whatever password there is was found already; this path cannot exist.
            ("PGPASSFILE", Some("/dev/null/none".to_owned())),
            ("PGSSLMODE", Some(self.ssl_mode.as_str().to_owned())),
            ("PGSSLROOTCERT", root_cert),
            ("PGSSLCERT", path(&self.ssl_cert)),
            ("PGSSLKEY", path(&self.ssl_key)),
            ("PGOPTIONS", self.options.clone()),
            ("PGAPPNAME", Some(application_name.to_owned())),
            (
                "PGCONNECT_TIMEOUT",
                Some(self.connect_timeout.as_secs().max(2).to_string()),
            ),
            ("PGCLIENTENCODING", None),
            (
                "PGHOSTADDR",
                (!self.addresses.is_empty()).then(|| {
                    let list: Vec<String> =
                        self.addresses.iter().map(ToString::to_string).collect();
                    list.join(",")
                }),
            ),
            ("PGSERVICE", None),
            ("PGSERVICEFILE", None),
            ("PGTARGETSESSIONATTRS", None),
            (
                "PGCHANNELBINDING",
                self.require_channel_binding.then(|| "require".to_owned()),
            ),
            ("PGDATESTYLE", None),
            ("PGTZ", None),
            ("LC_ALL", Some("C".to_owned())),
        ]
    }

    /// Looks the password up in a file as libpq does: `host:port:database:user:password` a line.
    fn look_up(&self, passfile: &Path) -> Option<Secret> {
        let metadata = fs::metadata(passfile).ok()?;
        if metadata.permissions().mode() & 0o077 != 0 {
            tracing::warn!(path = %passfile.display(), "a password file that others can read was ignored");
            return None;
        }
        let text = fs::read_to_string(passfile).ok()?;
        let (host, port) = self.hosts.first()?;
        let host = match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(folder)
                if SOCKET_FOLDERS
                    .iter()
                    .any(|known| folder == Path::new(known)) =>
            {
                "localhost".to_owned()
            }
            Host::Unix(folder) => folder.display().to_string(),
        };
        let wanted = [
            host,
            port.to_string(),
            self.database.clone(),
            self.user.clone(),
        ];
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .find_map(|line| password_of_line(line, &wanted))
            .map(Secret::new)
    }
}

fn password_of_line(line: &str, wanted: &[String; 4]) -> Option<String> {
    let mut fields = vec![String::new()];
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        let last = fields.len() == 5;
        let field = fields.last_mut().expect("there is always a field");
        match letter {
            '\\' => field.push(letters.next().unwrap_or('\\')),
            ':' if !last => fields.push(String::new()),
            other => field.push(other),
        }
    }
    let [rest @ .., password] = fields.as_slice() else {
        return None;
    };
    (rest.len() == 4
        && rest
            .iter()
            .zip(wanted)
            .all(|(field, wanted)| field == "*" || field == wanted))
    .then(|| password.clone())
}

fn host_of(text: &str) -> Host {
    if text.starts_with('/') {
        Host::Unix(PathBuf::from(text))
    } else {
        let name = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        Host::Tcp(name.unwrap_or(text).to_owned())
    }
}

fn default_host(port: u16) -> Host {
    SOCKET_FOLDERS
        .iter()
        .map(PathBuf::from)
        .find(|folder| folder.join(format!(".s.PGSQL.{port}")).exists())
        .map_or_else(|| Host::Tcp("localhost".to_owned()), Host::Unix)
}

/// Where systems keep the certificates that they trust, in one file.
fn machine_certificates() -> Option<String> {
    [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ]
    .into_iter()
    .find(|path| Path::new(path).is_file())
    .map(str::to_owned)
}

pub(crate) fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let pair = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use fettler_model::DatabaseUrl;

    use super::*;

    fn read(url: &str, env: &[(&str, &str)]) -> Params {
        let (url, password) = DatabaseUrl::parse_with_password(url).unwrap();
        Params::read(&Target { url, password }, &|name| {
            env.iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
        .unwrap()
    }

    #[test]
    fn a_url_says_what_libpq_reads_from_it() {
        let params = read(
            "postgres://an%20n:s3@db.example:6000/the%2Fapp?sslmode=verify-full&sslrootcert=/ca.pem",
            &[],
        );
        assert_eq!(params.hosts, [(Host::Tcp("db.example".into()), 6000)]);
        assert_eq!(
            (params.user.as_str(), params.database.as_str()),
            ("an n", "the/app")
        );
        assert_eq!(params.password(), Some("s3"));
        assert_eq!(params.ssl_mode, SslMode::VerifyFull);
        let socket = read(
            "postgres://ann@%2Ftmp%2Fx/app?port=7",
            &[("PGPASSWORD", "p")],
        );
        assert_eq!(socket.hosts, [(Host::Unix("/tmp/x".into()), 7)]);
        assert_eq!(socket.password(), Some("p"));
        let socket = read("postgres:///app?host=/tmp/y&user=bob", &[]);
        assert_eq!(socket.hosts, [(Host::Unix("/tmp/y".into()), DEFAULT_PORT)]);
        assert_eq!(socket.user, "bob");
    }

    #[test]
    fn p6_addresses_that_were_looked_at_stand_in_for_the_name_for_pg_dump_too() {
        let params = read(
            "postgres://ann@db:6000/app?hostaddr=192.0.2.1,2001:db8::1",
            &[],
        );
        assert_eq!(params.hosts, [(Host::Tcp("db".into()), 6000)]);
        assert_eq!(params.addresses.len(), 2);
        let environment = params.child_environment("x");
        let variable = |wanted: &str| {
            let (_, value) = environment
                .iter()
                .find(|(name, _)| *name == wanted)
                .unwrap();
            value.clone()
        };
        assert_eq!(variable("PGHOST").as_deref(), Some("db,db"));
        assert_eq!(variable("PGPORT").as_deref(), Some("6000,6000"));
        assert_eq!(
            variable("PGHOSTADDR").as_deref(),
            Some("192.0.2.1,2001:db8::1")
        );
        let plain = read("postgres://ann@db/app", &[("PGHOSTADDR", "192.0.2.1")]);
        assert!(plain.addresses.is_empty());
    }

    #[test]
    fn trusted_certificates_turn_require_into_verify_ca() {
        let params = read("postgres://a@h/d?sslmode=require&sslrootcert=/ca.pem", &[]);
        assert_eq!(params.ssl_mode, SslMode::VerifyCa);
    }

    #[test]
    fn a_password_file_is_read_as_libpq_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pass");
        fs::write(
            &path,
            "# x\nother:*:*:*:no\ndb:5432:app:an\\:n:se\\:cr:et\n",
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let url = format!("postgres://an%3An@db/app?passfile={}", path.display());
        assert_eq!(read(&url, &[]).password(), Some("se:cr:et"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read(&url, &[]).password(), None);
    }

    #[test]
    fn p9_the_password_reaches_children_by_environment_only_and_is_never_printed() {
        let params = read("postgres://ann:hunter2@db/app", &[]);
        let environment = params.child_environment("x");
        assert!(environment.contains(&("PGPASSWORD", Some("hunter2".into()))));
        assert!(!format!("{params:?}{}", params.server()).contains("hunter2"));
    }
}
