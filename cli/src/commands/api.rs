//! `fettler api`: the HTTP interface of a fleet; and the same beside the other parts of `fettler up`.

use std::{
    fs::OpenOptions, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf, sync::Arc,
};

use fettler_api::http::{HttpOptions, HttpServer, access::mint_token};
use fettler_config::ApiSettings;
use fettler_ledger::{NewToken, TokenRecord};
use fettler_model::{Problem, Role};

use crate::{app::App, failure::Failure};

/// Where `fettler api` listens when nobody says.
pub(crate) const USUAL_ADDRESS: &str = "127.0.0.1:8080";
/// What the token of `fettler up` is called.
const OWN_TOKEN: &str = "fettler-up";

/// The settings of the interface.
fn options(settings: &ApiSettings) -> HttpOptions {
    HttpOptions {
        max_body_bytes: settings.max_body_kilobytes as usize * 1024,
        requests_per_second: settings.requests_per_second,
        max_streams: settings.open_streams as usize,
        max_connections: settings.connections as usize,
        tls: settings
            .tls_certificate
            .clone()
            .zip(settings.tls_key.clone()),
    }
}

/// Opens the interface.
pub(crate) async fn open(app: &App, address: &str) -> Result<HttpServer, Failure> {
    let server = HttpServer::open(address, options(&app.settings().api)).await?;
    let is_local = address.starts_with("127.")
        || address.starts_with("[::1]")
        || address.starts_with("localhost");
    if !is_local && app.settings().api.tls_certificate.is_none() {
        app.output.notice(
            "Other machines reach the HTTP interface without TLS: tokens pass in the clear unless something in front of it encrypts.",
        );
    }
    Ok(server)
}

/// The token by which commands of this folder's owner use the interface of `fettler up`. It is another one
/// after each start, and gone when the process stops.
#[derive(Debug)]
pub(crate) struct OwnToken {
    file: PathBuf,
    record: TokenRecord,
}

impl OwnToken {
    /// Makes the token, and leaves it in its file.
    pub(crate) async fn leave(app: &App, url: &str) -> Result<Self, Failure> {
        let ledger = app.ledger().await?;
        // One that was left by a process that was killed.
        for old in ledger.tokens(None).await? {
            if old.tenant.is_none() && old.name.as_str() == OWN_TOKEN {
                ledger.remove_token(old.id).await?;
            }
        }
        let (text, hash) = mint_token();
        let token = NewToken {
            name: OWN_TOKEN.parse().expect("a constant that is a name"),
            tenant: None,
            role: Role::Admin,
            expires: None,
            hash,
        };
        let record = ledger.add_token(&token).await?;
        let file = app.settings().api_token_file();
        let draft = file.with_extension("new");
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .and_then(|mut open| writeln!(open, "{url}\n{}", text.expose()))
            .and_then(|()| std::fs::rename(&draft, &file));
        written.map_err(|error| {
            Failure::local(
                format!("the token file {} cannot be written", file.display()),
                &error,
            )
        })?;
        Ok(Self { file, record })
    }

    /// Where the file is.
    pub(crate) fn file(&self) -> &PathBuf {
        &self.file
    }

    /// Takes the token away.
    pub(crate) async fn take_away(self, app: &App) {
        if let Err(error) = std::fs::remove_file(&self.file) {
            tracing::warn!(file = %self.file.display(), %error, "the token file was left behind");
        }
        let removed = match app.ledger().await {
            Ok(ledger) => ledger
                .remove_token(self.record.id)
                .await
                .map_err(Problem::from),
            Err(failure) => Err(failure.problem),
        };
        if let Err(problem) = removed {
            tracing::warn!(
                "the token of this process was left behind: {}",
                problem.what
            );
        }
    }
}

/// What the interface knows of tenants.
pub(crate) async fn surroundings(
    app: &App,
) -> Result<Arc<dyn fettler_api::http::Surroundings>, Failure> {
    let services = app.services().await?.clone();
    Ok(services)
}
