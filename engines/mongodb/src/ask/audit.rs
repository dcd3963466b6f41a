//! Words of questions that an audit asks, each of which gives a line for each thing:
//!
//! - `ANONYMOUS`: what a connection without a login is let do. It is tried, and reads names alone;
//! - `NETWORK`: where this session goes, and whether it is encrypted; `LISTENING`: where the server listens; `PLAIN`: whether it takes
//!   clients without TLS beside those with it;
//! - `STARTED`, `STORAGE`, `AUDITING`: how the server was started, and the parameters it has now ([`started`]);
//! - `USERS`, `SUPERUSERS`, `ENFORCED`, `PASSWORDS`, `ROLES`, `UNUSED ROLES`: who may do what ([`users`], [`roles`], [`passwords`]);
//! - `CLIENTS`, `LOGINS`, `CERTIFICATE`, `JAVASCRIPT`, `WARNINGS`, `MEMBERS`: what goes on ([`doings`]);
//! - `PROFILES`, `FIELDS`: what is kept where ([`kept`]);
//! - those that begin with `KEPT` ([`snapshot`]).
//!
//! What a server does not know is nothing that it has no need of: it could not be asked, and passes nothing.

mod doings;
mod kept;
mod passwords;
mod roles;
mod snapshot;
mod started;
mod users;

use std::net::{IpAddr, SocketAddr};

use bson::{Document, RawDocumentBuf, rawdoc};
use fettler_engine::{Refusal as Unanswered, Row, is_public, is_remote};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Asked, Failed, named::LIST_DATABASES, plain, unread};
use crate::{
    error::code,
    params::Params,
    session::{Session, VISITOR},
};

/// How long a second connection may take to be answered.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);
/// A managed service refuses by this code what it lets nobody do (`AtlasError`).
const ATLAS: i32 = 8000;
/// The login has run out (`ReauthenticationRequired`).
const AGAIN: i32 = 391;

/// What several words want, and is asked for once.
#[derive(Default)]
pub(super) struct Known {
    started: Option<Result<started::Started, Unanswered>>,
    users: Option<Result<Vec<users::User>, Unanswered>>,
}

impl Asked {
    /// The lines of a word; none where it is no word of an audit.
    pub(super) async fn audit_rows(&mut self, word: &str) -> Option<Result<Vec<Row>, Failed>> {
        Some(match word {
            "ANONYMOUS" => self.anonymous().await,
            "NETWORK" => Ok(self.network()),
            "LISTENING" => self.listening().await,
            "PLAIN" => self.plain().await,
            "STARTED" => self.started_row().await,
            // Whether the file system below encrypts is shown by no connection.
            "STORAGE" => {
                let why =
                    "it encrypts nothing itself, and whether its file system does is not shown";
                self.of_enterprise(Unanswered::Failed(why.to_owned())).await
            }
            "AUDITING" => self.of_enterprise(Unanswered::OtherVersion).await,
            "USERS" => self.users().await,
            "ENFORCED" => self.enforced().await,
            "PASSWORDS" => self.passwords().await,
            "ROLES" => self.roles().await,
            "SUPERUSERS" => self.superusers().await,
            "UNUSED ROLES" => self.unused_roles().await,
            "CLIENTS" => self.clients().await,
            "LOGINS" => self.logins().await,
            "CERTIFICATE" => self.certificate().await,
            "JAVASCRIPT" => self.javascript().await,
            "WARNINGS" => self.warnings().await,
            "MEMBERS" => self.members().await,
            "PROFILES" => self.profiles().await,
            "FIELDS" => self.fields().await,
            "KEPT USERS" => self.kept_users().await,
            "KEPT ROLES" => self.kept_roles().await,
            "KEPT SETTINGS" => self.kept_settings().await,
            "KEPT MEMBERS" => self.kept_members().await,
            "KEPT SCHEMA" => self.kept_schema().await,
            _ => return None,
        })
    }

    /// What a command answers, as JSON.
    async fn told_by(&mut self, database: &str, command: RawDocumentBuf) -> Result<Value, Failed> {
        let name = command
            .iter()
            .next()
            .and_then(Result::ok)
            .map(|(name, _)| name.to_string())
            .unwrap_or_default();
        let answer = self
            .run(database, command)
            .await
            .map_err(|failed| known(&name, failed))?;
        Document::try_from(answer.as_ref())
            .map(|document| plain::document(&document))
            .map_err(|error| unread(format!("an answer cannot be read: {error}")))
    }

    /// The names of all databases.
    async fn databases(&mut self) -> Result<Vec<String>, Failed> {
        let listed = self
            .command(LIST_DATABASES)
            .await
            .map_err(|failed| known("listDatabases", failed))?;
        let names = listed["databases"].as_array().map(|databases| {
            databases
                .iter()
                .filter_map(|one| Some(one["name"].as_str()?.to_owned()))
                .collect()
        });
        names.ok_or_else(|| unread("it does not list its databases"))
    }

    /// The address that this session goes to; none where it is a socket of this machine.
    fn peer(&self) -> Option<IpAddr> {
        let address: SocketAddr = self.session.address.parse().ok()?;
        Some(address.ip().to_canonical())
    }

    /// Whether what the server says can be read by others on its way.
    fn is_overheard(&self) -> bool {
        self.params.tls.is_none() && self.peer().is_some_and(is_remote)
    }

    /// `ANONYMOUS`.
    async fn anonymous(&mut self) -> Result<Vec<Row>, Failed> {
        let shows_certificate = self
            .params
            .tls
            .as_ref()
            .is_some_and(|files| files.identity.is_some());
        let let_in = is_let_in(&self.nobody(), shows_certificate)
            .await
            .ok_or_else(|| unread("a second connection without a login was not answered"))?;
        Ok(vec![Row::from_iter([
            ("is_let_in".to_owned(), json!(let_in)),
            (
                "is_remote".to_owned(),
                json!(self.peer().is_some_and(is_remote)),
            ),
        ])])
    }

    /// The same server, for whoever has no login. A certificate would be one too.
    fn nobody(&self) -> Params {
        let mut nobody = self.params.clone();
        nobody.user = None;
        nobody.password = None;
        nobody.mechanism = None;
        if let Some(files) = &mut nobody.tls {
            files.identity = None;
        }
        nobody.addresses = self.peer().into_iter().collect();
        nobody
    }

    /// `NETWORK`.
    fn network(&self) -> Vec<Row> {
        let address = self.peer();
        let named = address.map_or_else(|| self.session.address.clone(), |one| one.to_string());
        vec![Row::from_iter([
            ("address".to_owned(), json!(named)),
            (
                "is_remote".to_owned(),
                json!(address.is_some_and(is_remote)),
            ),
            (
                "is_public".to_owned(),
                json!(address.is_some_and(is_public)),
            ),
            ("is_encrypted".to_owned(), json!(self.params.tls.is_some())),
        ])]
    }

    /// `LISTENING`.
    async fn listening(&mut self) -> Result<Vec<Row>, Failed> {
        let started = self.started().await?;
        let mut row =
            Row::from_iter([("is_encrypted".to_owned(), json!(self.params.tls.is_some()))]);
        let of_start = [
            "bind",
            "is_on_network",
            "listens_everywhere",
            "authorization",
            "tls_mode",
        ];
        add(&mut row, Some(&started), &of_start);
        Ok(vec![row])
    }

    /// `PLAIN`. Where this session is encrypted, one that is not is tried.
    async fn plain(&mut self) -> Result<Vec<Row>, Failed> {
        let is_encrypted = self.params.tls.is_some();
        let is_taken = if is_encrypted {
            let mut plain = self.nobody();
            plain.tls = None;
            let stop = CancellationToken::new();
            let tried = timeout(PATIENCE, Session::open(&plain, VISITOR, &stop)).await;
            tried.is_ok_and(|session| session.is_ok())
        } else {
            // This very session was taken without TLS; by a socket it would be in any case.
            let started = self.started().await?;
            matches!(started.row["tls_mode"].as_str(), Some("allow" | "prefer"))
        };
        Ok(vec![Row::from_iter([
            ("plain_beside_tls".to_owned(), json!(is_taken)),
            ("is_encrypted".to_owned(), json!(is_encrypted)),
            (
                "is_remote".to_owned(),
                json!(self.peer().is_some_and(is_remote)),
            ),
        ])])
    }
}

/// Adds to a line what the server's start tells. What is not shown is left out: a check that needs it cannot be made then, where
/// an empty value would be compared.
fn add(row: &mut Row, started: Option<&started::Started>, names: &[&str]) {
    for name in names {
        if let Some(value) = started.and_then(|started| started.row.get(*name)) {
            row.insert((*name).to_owned(), value.clone());
        }
    }
}

/// A command that the server does not know could not be asked: that is no pass.
fn known(name: &str, failed: Failed) -> Failed {
    match failed {
        Failed::Refused(Unanswered::OtherVersion) => {
            unread(format!("it does not know `{name}`, or not in this form"))
        }
        other => other,
    }
}

/// Whether a connection without a login may list the databases; none where nothing can be said. Where this session shows a
/// certificate, a server that takes no connection without one lets nobody in.
async fn is_let_in(nobody: &Params, shows_certificate: bool) -> Option<bool> {
    let asked = async {
        let stop = CancellationToken::new();
        let Ok(mut session) = Session::open(nobody, VISITOR, &stop).await else {
            return shows_certificate.then_some(false);
        };
        let list = rawdoc! { "listDatabases": 1, "nameOnly": true, "authorizedDatabases": false };
        match session.try_run("admin", list).await.ok()? {
            Ok(_) => Some(true),
            Err(refusal) => matches!(
                refusal.code,
                code::UNAUTHORIZED | code::AUTHENTICATION_FAILED | AGAIN | ATLAS
            )
            .then_some(false),
        }
    };
    timeout(PATIENCE, asked).await.ok()?
}
