//! What the tests of the HTTP interface share: a real ledger, real servers on free ports, tokens, and a client.

#![allow(dead_code)]

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use fettler_api::http::{
    HttpOptions, HttpServer, Surroundings,
    access::mint_token,
    bounds::{Bounds, Deny},
};
use fettler_config::SealedSecrets;
use fettler_jobs::Registry;
use fettler_ledger::{Ledger, NewToken, SealedId, TokenRecord};
use fettler_model::{Problem, Role, Secret, TenantId, Timestamp};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The process around the interface: secrets are sealed for real, and the bounds are the test's.
pub struct House {
    ledger: Ledger,
    sealed: SealedSecrets,
    pub bounds: HashMap<TenantId, Bounds>,
    deny: Deny,
}

#[async_trait]
impl Surroundings for House {
    fn bounds(&self, tenant: &TenantId) -> Result<Bounds, Problem> {
        Ok(self.bounds.get(tenant).cloned().unwrap_or_default())
    }

    fn deny(&self) -> &Deny {
        &self.deny
    }

    fn repository_place(&self, tenant: &TenantId) -> Result<String, Problem> {
        Ok(format!("s3://backups/{tenant}"))
    }

    async fn seal(&self, tenant: &TenantId, secret: &Secret) -> Result<SealedId, Problem> {
        let sealed = self.sealed.seal(tenant, secret)?;
        Ok(self.ledger.put_sealed(tenant, &sealed).await?)
    }
}

/// An interface that answers, as one more process would.
pub struct Server {
    pub url: String,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Server {
    pub async fn start(ledger: Ledger, folder: &TempDir, options: HttpOptions) -> Self {
        Self::start_bounded(ledger, folder, options, HashMap::new()).await
    }

    pub async fn start_bounded(
        ledger: Ledger,
        folder: &TempDir,
        options: HttpOptions,
        bounds: HashMap<TenantId, Bounds>,
    ) -> Self {
        let server = HttpServer::open("127.0.0.1:0", options).await.unwrap();
        let url = server.url();
        let stop = CancellationToken::new();
        let house = House {
            ledger: ledger.clone(),
            sealed: SealedSecrets::new(folder.path().join("secrets.key")),
            bounds,
            deny: Deny {
                loopback: true,
                ..Deny::default()
            },
        };
        let registry = Arc::new(Registry::standard());
        let serving =
            tokio::spawn(server.serve(ledger, registry, Arc::new(house), None, stop.clone()));
        Self { url, stop, serving }
    }

    /// Stops it, and waits until it has stopped.
    pub async fn stop(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
    }
}

/// A ledger in a file, and one interface over it.
pub struct World {
    pub folder: TempDir,
    pub ledger: Ledger,
    pub server: Server,
}

/// Rates that no test reaches by accident.
pub fn generous() -> HttpOptions {
    HttpOptions {
        requests_per_second: 100_000,
        ..HttpOptions::default()
    }
}

impl World {
    pub async fn new() -> Self {
        Self::with(generous()).await
    }

    pub async fn with(options: HttpOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
        let ledger = Ledger::open(&url).await.unwrap();
        let server = Server::start(ledger.clone(), &folder, options).await;
        Self {
            folder,
            ledger,
            server,
        }
    }

    /// A token; its text.
    pub async fn token(&self, role: Role, tenant: Option<&str>) -> String {
        make_token(&self.ledger, role, tenant, None).await.0
    }

    /// Asks with the token of an operator of the fleet.
    pub async fn admin(&self) -> Client {
        let token = self.token(Role::Admin, None).await;
        Client::new(&self.server.url, Some(&token))
    }

    pub fn client(&self, token: &str) -> Client {
        Client::new(&self.server.url, Some(token))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A token with a name of its own.
pub async fn make_token(
    ledger: &Ledger,
    role: Role,
    tenant: Option<&str>,
    expires: Option<Timestamp>,
) -> (String, TokenRecord) {
    let (text, hash) = mint_token();
    let tenant: Option<TenantId> = tenant.map(|tenant| tenant.parse().unwrap());
    let record = ledger
        .add_token(&NewToken {
            name: format!("t{}", uuid::Uuid::new_v4().simple())
                .parse()
                .unwrap(),
            tenant,
            role,
            expires,
            hash,
        })
        .await
        .unwrap();
    (text.expose().to_owned(), record)
}

/// Asks one interface with one token.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:#?}");
        self
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name}: {self:?}"))
            .to_str()
            .unwrap()
    }

    /// The fields that a problem document names.
    pub fn fields(&self) -> Vec<String> {
        let errors = self.json()["errors"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        errors
            .iter()
            .map(|error| error["field"].as_str().unwrap().to_owned())
            .collect()
    }
}

impl Client {
    pub fn new(base: &str, token: Option<&str>) -> Self {
        Self {
            http: reqwest::Client::new(),
            base: base.to_owned(),
            token: token.map(ToOwned::to_owned),
        }
    }

    pub fn over(http: reqwest::Client, base: &str, token: &str) -> Self {
        Self {
            http,
            base: base.to_owned(),
            token: Some(token.to_owned()),
        }
    }

    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().unwrap();
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        // A stream is not waited for.
        let is_stream = headers
            .get("content-type")
            .is_some_and(|kind| kind == "text/event-stream");
        let text = if is_stream {
            String::new()
        } else {
            response.text().await.unwrap()
        };
        Answer {
            status,
            headers,
            text,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request("GET", path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.with_body("POST", path, body, &[]).await
    }

    pub async fn with_body(
        &self,
        method: &str,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = self
            .request(method, path)
            .header("content-type", "application/json")
            .body(body.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request).await
    }

    pub async fn with_headers(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let request = headers
            .iter()
            .fold(self.request(method, path), |request, (name, value)| {
                request.header(*name, *value)
            });
        self.send(request).await
    }
}
