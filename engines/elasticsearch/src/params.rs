//! How to reach a server: what a target's URL says.
//!
//! | form | |
//! |---|---|
//! | `elasticsearch://user@host:9200` | over HTTP, with a user and a password |
//! | `elasticsearch+https://user@host:9200?ca=…&cert=…&key=…` | with TLS: the authority to trust, and a client's certificate |
//! | `elasticsearch+https://:KEY@host` | a password without a user is an API key; with `?auth=bearer` a token |
//! | `elasticsearch://host/logs-*,shop` | these indices and data streams only |
//! | `elasticsearch://host?prefix=copy-` | a restore puts this before the name of each index; a proof's scratch indices have one |
//!
//! `opensearch://` and `opensearch+https://` mean the same: what a server is, it says itself.

use std::{net::IpAddr, path::PathBuf};

use fettler_engine::{EngineError, Target};
use fettler_model::{Engine, Secret};
use percent_encoding::percent_decode_str;
use url::Url;

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) enum Login {
    Nobody,
    User { name: String, password: Secret },
    ApiKey(Secret),
    Bearer(Secret),
}

/// Everything that is needed to connect.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) is_tls: bool,
    /// The addresses to connect to in the stead of the host's name; the name is what a certificate is compared with.
    pub(crate) addresses: Vec<IpAddr>,
    /// The authorities to trust instead of the machine's.
    pub(crate) ca: Option<PathBuf>,
    /// The client's own certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) login: Login,
    /// The names or patterns that are meant; everything where there is none.
    pub(crate) only: Vec<String>,
    /// What stands before the names of indices at this place.
    pub(crate) prefix: String,
}

impl Params {
    /// Reads a target.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] (`url`), which names the part that cannot be used.
    pub(crate) fn of(target: &Target) -> Result<Self, EngineError> {
        let url = Url::parse(target.url.as_str()).map_err(|error| invalid(&error.to_string()))?;
        let is_tls = url.scheme().ends_with("+https");
        let host = decoded(url.host_str().unwrap_or_default()).to_ascii_lowercase();
        if host.is_empty() {
            return Err(invalid("it names no host"));
        }
        let port = url
            .port()
            .or(Engine::Elasticsearch.default_port())
            .expect("Elasticsearch has a default port");
        let mut params = Self {
            host,
            port,
            is_tls,
            addresses: Vec::new(),
            ca: None,
            identity: None,
            login: Login::Nobody,
            only: decoded(url.path())
                .split(['/', ','])
                .filter(|name| !name.is_empty())
                .map(ToOwned::to_owned)
                .collect(),
            prefix: String::new(),
        };
        let (mut cert, mut key, mut is_bearer) = (None, None, false);
        for (name, value) in url.query_pairs() {
            let file = || {
                if is_tls {
                    Ok(PathBuf::from(value.as_ref()))
                } else {
                    Err(invalid(&format!(
                        "`{name}` is for `{}+https://`",
                        url.scheme()
                    )))
                }
            };
            match name.as_ref() {
                "ca" => params.ca = Some(file()?),
                "cert" => cert = Some(file()?),
                "key" => key = Some(file()?),
                "auth" if value == "bearer" => is_bearer = true,
                "auth" => return Err(invalid("`auth` can only be `bearer`")),
                "prefix" => params.prefix = prefix(&value)?,
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
        params.identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(invalid("`cert` and `key` belong together")),
        };
        let user = decoded(url.username());
        params.login = match (&target.password, user.is_empty()) {
            (Some(token), true) if is_bearer => Login::Bearer(token.clone()),
            (Some(key), true) => Login::ApiKey(key.clone()),
            (Some(password), false) => Login::User {
                name: user,
                password: password.clone(),
            },
            // A user without a password may still be meant: the server says whether it is one.
            (None, false) => Login::User {
                name: user,
                password: Secret::new(String::new()),
            },
            (None, true) => Login::Nobody,
        };
        Ok(params)
    }

    /// The server's name in messages.
    pub(crate) fn server(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// What the addresses of requests begin with.
    pub(crate) fn base(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host, self.port)
    }
}

fn invalid(what: &str) -> EngineError {
    EngineError::Missing {
        code: "url",
        what: format!("the database's URL cannot be used: {what}"),
        remedy: "write it as `elasticsearch://user@host:port`, or `elasticsearch+https://…?ca=/path` for TLS; `/logs-*` behind the port names indices".to_owned(),
    }
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Reads what stands before names: what may begin the name of an index, and no pattern.
fn prefix(text: &str) -> Result<String, EngineError> {
    let is_plain = |letter: char| matches!(letter, 'a'..='z' | '0'..='9' | '-' | '_' | '.');
    if text.chars().all(is_plain) && !text.starts_with(['-', '_']) {
        return Ok(text.to_owned());
    }
    Err(invalid(
        "`prefix` is made of small letters, digits, `-`, `_` and `.`, and does not begin with `-` or `_`",
    ))
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
    fn a_url_names_place_login_indices_and_files() {
        let plain = read("elasticsearch://ann:s%3Acret@Search.example/logs-*,shop").unwrap();
        assert_eq!(plain.base(), "http://search.example:9200");
        assert!(
            matches!(&plain.login, Login::User { name, password } if name == "ann" && password.expose() == "s:cret")
        );
        assert_eq!(plain.only, ["logs-*", "shop"]);

        let tls =
            read("opensearch+https://:key@[::1]:9243?ca=/ca.pem&cert=/c.pem&key=/k.pem").unwrap();
        assert_eq!(tls.base(), "https://[::1]:9243");
        assert!(matches!(&tls.login, Login::ApiKey(key) if key.expose() == "key"));
        assert_eq!(tls.ca, Some("/ca.pem".into()));
        assert_eq!(tls.identity, Some(("/c.pem".into(), "/k.pem".into())));

        let token = read("elasticsearch+https://:t@h?auth=bearer&prefix=copy-").unwrap();
        assert!(matches!(token.login, Login::Bearer(_)));
        assert_eq!(token.prefix, "copy-");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, named) in [
            ("elasticsearch:///x", "host"),
            ("elasticsearch://h?ca=/x", "+https"),
            ("elasticsearch+https://h?cert=/x", "belong together"),
            ("elasticsearch://h?sslmode=require", "sslmode"),
            ("elasticsearch://h?prefix=A*", "prefix"),
            ("elasticsearch://h?auth=magic", "bearer"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
