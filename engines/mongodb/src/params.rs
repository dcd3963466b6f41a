//! How to reach a server: what a target's URL says.
//!
//! | form | |
//! |---|---|
//! | `mongodb://user@host:port/shop?authSource=admin` | the name of a database narrows a backup or a restore to it |
//! | `mongodb://user@host/?tls=true&ca=…&cert=…&key=…` | with TLS: the authority to trust, and a client's certificate (`tlsCAFile` is `ca`; `tlsCertificateKeyFile` is both others) |
//! | `mongodb://%2Frun%2Fmongodb.sock/` | over a socket of this machine |
//!
//! One server is named, and no other is connected to, whatever a replica set tells of its members: who may name a server has
//! been asked for this one alone. So `replicaSet`, `directConnection` and the other settings of drivers change nothing, but for
//! `readPreference=secondary`: the oplog is archived from the server that is named where that is a secondary, and not otherwise.

use std::{net::IpAddr, path::PathBuf};

use fettler_engine::{EngineError, Target};
use fettler_engine_tls::TlsFiles;
use fettler_model::{Engine, Secret};
use percent_encoding::percent_decode_str;
use url::Url;

/// The longest name of a database, in bytes (MongoDB manual, "MongoDB Limits and Thresholds").
const LONGEST_DATABASE: usize = 63;
/// Bytes of a digest that stands for the end of a name that is too long.
const DIGEST_BYTES: usize = 8;
/// Settings of drivers that mean nothing to a single connection.
const IGNORED: [&str; 14] = [
    "replicaset",
    "directconnection",
    "retrywrites",
    "retryreads",
    "w",
    "wtimeoutms",
    "journal",
    "appname",
    "readconcernlevel",
    "maxpoolsize",
    "minpoolsize",
    "compressors",
    "connecttimeoutms",
    "sockettimeoutms",
];

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// A way of logging in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mechanism {
    ScramSha1,
    ScramSha256,
    Plain,
    X509,
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
    /// The database that knows the user.
    pub(crate) auth_source: String,
    /// What the URL asks for; the best that the server offers where it asks for nothing.
    pub(crate) mechanism: Option<Mechanism>,
    /// The one database that is meant; all where none is named.
    pub(crate) database: Option<String>,
    /// What the names of all databases begin with: the target is a scratch area.
    pub(crate) scratch: Option<String>,
    /// Whether the URL says `readPreference=secondary`: the oplog is not to be read from a primary.
    pub(crate) wants_secondary: bool,
}

impl Params {
    /// Reads a target.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] (`url`), which names the part that cannot be used.
    pub(crate) fn of(target: &Target) -> Result<Self, EngineError> {
        let url = Url::parse(target.url.as_str()).map_err(|error| invalid(&error.to_string()))?;
        if url.scheme() != "mongodb" {
            return Err(invalid(&format!(
                "`{}://` looks servers up in the DNS, and one server has to be named",
                url.scheme()
            )));
        }
        let mut wants_tls = None;
        let mut files = TlsFiles::default();
        let mut wants_secondary = false;
        let (mut cert, mut key, mut mechanism, mut auth_source, mut scratch) =
            (None, None, None, None, None);
        let mut addresses = Vec::new();
        for (name, value) in url.query_pairs() {
            match name.to_ascii_lowercase().as_str() {
                "tls" | "ssl" => {
                    wants_tls = Some(value.parse::<bool>().map_err(|_| {
                        invalid(&format!("`{name}` is `true` or `false`, not {value:?}"))
                    })?);
                }
                "ca" | "tlscafile" => files.ca = Some(PathBuf::from(value.as_ref())),
                "cert" => cert = Some(PathBuf::from(value.as_ref())),
                "key" => key = Some(PathBuf::from(value.as_ref())),
                "tlscertificatekeyfile" => {
                    cert = Some(PathBuf::from(value.as_ref()));
                    key = Some(PathBuf::from(value.as_ref()));
                }
                "authsource" => auth_source = Some(value.into_owned()),
                "authmechanism" => mechanism = Some(mechanism_of(&value)?),
                "readpreference" => wants_secondary = value.eq_ignore_ascii_case("secondary"),
                "fettlerscratch" => scratch = Some(value.into_owned()),
                "hostaddr" => {
                    addresses = value
                        .split(',')
                        .map(|one| {
                            one.parse()
                                .map_err(|_| invalid(&format!("{one:?} is not an address")))
                        })
                        .collect::<Result<_, _>>()?;
                }
                other if IGNORED.contains(&other) => {}
                _ => return Err(invalid(&format!("the parameter `{name}` is not known"))),
            }
        }
        files.identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(invalid("`cert` and `key` belong together")),
        };
        let has_files = files != TlsFiles::default();
        if has_files && wants_tls == Some(false) {
            return Err(invalid("it names files for TLS and says `tls=false`"));
        }
        let tls = (wants_tls == Some(true) || has_files).then_some(files);

        let database = Some(decoded(url.path().trim_matches('/'))).filter(|name| !name.is_empty());
        if let Some(name) = &database
            && (name.len() > LONGEST_DATABASE
                || name.contains(['/', '\\', '.', ' ', '"', '$', '\0']))
        {
            return Err(invalid(&format!("{name:?} is not the name of a database")));
        }
        let auth_source = match mechanism {
            // Users of these are not MongoDB's own.
            Some(Mechanism::Plain | Mechanism::X509) => {
                auth_source.unwrap_or_else(|| "$external".to_owned())
            }
            _ => auth_source
                .or_else(|| database.clone())
                .unwrap_or_else(|| "admin".to_owned()),
        };
        Ok(Self {
            place: place_of(&url)?,
            addresses,
            tls,
            user: Some(decoded(url.username())).filter(|user| !user.is_empty()),
            password: target.password.clone(),
            auth_source,
            mechanism,
            database,
            scratch,
            wants_secondary,
        })
    }

    /// The same login for a member of a shard (`host:port`), which the router named.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] (`address`), where addresses were looked at before (`hostaddr`) and this is none of them: a server
    /// that somebody else chose could lead anywhere.
    pub(crate) fn of_member(&self, member: &str) -> Result<Self, EngineError> {
        let at = Url::parse(&format!("mongodb://{member}/"))
            .map_err(|_| invalid(&format!("the shard's member {member:?} is no place")))?;
        let place = place_of(&at)?;
        let mut addresses = Vec::new();
        if !self.addresses.is_empty() {
            let known = match &place {
                Place::Tcp { host, .. } => host.parse().ok(),
                Place::Unix(_) => None,
            };
            let known = known.filter(|address| self.addresses.contains(address));
            addresses.push(known.ok_or_else(|| EngineError::Missing {
                code: "address",
                what: format!(
                    "{} leads to {member}, which is not among the addresses that may be used for it",
                    self.server()
                ),
                remedy: "the operator of Fettler may register the cluster, which is then trusted to lead to its shards".to_owned(),
            })?);
        }
        Ok(Self {
            place,
            addresses,
            ..self.clone()
        })
    }

    /// The server's name in messages: `host:port`, or the path of its socket.
    pub(crate) fn server(&self) -> String {
        match &self.place {
            Place::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Place::Tcp { host, port } => format!("{host}:{port}"),
            Place::Unix(path) => path.display().to_string(),
        }
    }

    /// What a database of a backup is called at this target.
    pub(crate) fn placed(&self, database: &str) -> String {
        match &self.scratch {
            Some(prefix) => scratch_name(prefix, database),
            None => database.to_owned(),
        }
    }
}

/// The name of a database in a scratch area. One that would be too long ends with a digest of the whole.
fn scratch_name(prefix: &str, database: &str) -> String {
    let whole = format!("{prefix}{database}");
    if whole.len() <= LONGEST_DATABASE {
        return whole;
    }
    let digest = hex::encode(&blake3::hash(database.as_bytes()).as_bytes()[..DIGEST_BYTES]);
    let mut end = LONGEST_DATABASE - digest.len() - 1;
    while !whole.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}_{digest}", &whole[..end])
}

fn place_of(url: &Url) -> Result<Place, EngineError> {
    let host = decoded(url.host_str().unwrap_or_default());
    if host.starts_with('/') {
        return Ok(Place::Unix(PathBuf::from(host)));
    }
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    if host.is_empty() {
        return Err(invalid("it names no host"));
    }
    if host.contains(',') {
        return Err(invalid(
            "it names several servers: name one, such as a secondary",
        ));
    }
    let port = url
        .port()
        .or(Engine::Mongodb.default_port())
        .expect("MongoDB has a default port");
    Ok(Place::Tcp { host, port })
}

fn mechanism_of(text: &str) -> Result<Mechanism, EngineError> {
    match text {
        "SCRAM-SHA-1" => Ok(Mechanism::ScramSha1),
        "SCRAM-SHA-256" => Ok(Mechanism::ScramSha256),
        "PLAIN" => Ok(Mechanism::Plain),
        "MONGODB-X509" => Ok(Mechanism::X509),
        other => Err(invalid(&format!(
            "the way {other:?} of logging in is not known: there are SCRAM-SHA-256, SCRAM-SHA-1, PLAIN and MONGODB-X509"
        ))),
    }
}

fn invalid(what: &str) -> EngineError {
    EngineError::Missing {
        code: "url",
        what: format!("the database's URL cannot be used: {what}"),
        remedy: "write it as `mongodb://user@host:port/?authSource=admin`, with `tls=true&ca=/path` for TLS, or `mongodb://%2Fpath%2Fof%2Fsocket/`; `/shop` behind the port names one database".to_owned(),
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
        let plain = read("mongodb://ann:s%3Acret@Data.example:7000/shop?replicaSet=rs0").unwrap();
        assert_eq!(plain.server(), "data.example:7000");
        assert_eq!(plain.user.as_deref(), Some("ann"));
        assert_eq!(plain.password.unwrap().expose(), "s:cret");
        assert_eq!(plain.database.as_deref(), Some("shop"));
        assert_eq!(plain.auth_source, "shop");
        assert_eq!(plain.tls, None);

        let least = read("mongodb://[::1]").unwrap();
        assert_eq!(least.server(), "[::1]:27017");
        assert_eq!((least.user, least.database), (None, None));
        assert_eq!(least.auth_source, "admin");

        let tls =
            read("mongodb://h/shop?authSource=admin&ca=/ca.pem&cert=/c.pem&key=/k.pem").unwrap();
        assert_eq!(tls.auth_source, "admin");
        let files = tls.tls.unwrap();
        assert_eq!(files.ca, Some("/ca.pem".into()));
        assert_eq!(files.identity, Some(("/c.pem".into(), "/k.pem".into())));
        assert_eq!(
            read("mongodb://h/?tls=true").unwrap().tls,
            Some(TlsFiles::default())
        );

        let socket = read("mongodb://ann@%2Frun%2Fa%20b.sock/shop").unwrap();
        assert_eq!(socket.place, Place::Unix("/run/a b.sock".into()));
        let x509 = read("mongodb://h/?authMechanism=MONGODB-X509&cert=/c&key=/k").unwrap();
        assert_eq!(x509.auth_source, "$external");
    }

    #[test]
    fn a_secondary_is_asked_for_by_name_alone() {
        let wants = |text: &str| read(text).unwrap().wants_secondary;
        assert!(wants("mongodb://h/?readPreference=secondary&replicaSet=a"));
        assert!(!wants("mongodb://h/?readPreference=secondaryPreferred"));
        assert!(!wants("mongodb://h/"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, named) in [
            ("mongodb:///shop", "host"),
            ("mongodb://a,b/shop", "several"),
            ("mongodb+srv://cluster.example/shop", "DNS"),
            ("mongodb://h/a.b", "a.b"),
            ("mongodb://h/?cert=/x", "belong together"),
            ("mongodb://h/?tls=false&ca=/x", "tls=false"),
            ("mongodb://h/?sslmode=require", "sslmode"),
            ("mongodb://h/?authMechanism=GSSAPI", "GSSAPI"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn names_in_a_scratch_area_are_short_enough_and_differ() {
        let long = "x".repeat(63);
        let other = format!("{}y", "x".repeat(62));
        assert_eq!(scratch_name("p_", "shop"), "p_shop");
        let (one, two) = (scratch_name("p_", &long), scratch_name("p_", &other));
        assert!(one.len() <= LONGEST_DATABASE && one != two);
        let odd = scratch_name("p_", &"ü".repeat(31));
        assert!(odd.len() <= LONGEST_DATABASE);
    }
}
