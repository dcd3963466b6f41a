//! What a command has at hand: the settings, and, once it asks for them, the ledger and the repository.

use std::sync::Arc;

use fettler_api::SocketClient;
use fettler_config::{Loaded, Settings, Sources};
use fettler_ledger::{Ledger, Readied};
use fettler_model::{JobId, TenantId};
use fettler_queue::{Queue, WireItem};
use fettler_queue_redis::{RedisQueue, RedisQueueOptions};
use fettler_repository::TenantRepository;
use tokio::sync::OnceCell;

use crate::{
    args::{Cli, Command, Global},
    desk::Desk,
    failure::Failure,
    folder,
    output::Output,
    remote::Remote,
    services::{LocalServices, Use},
};

/// A command's world.
pub(crate) struct App {
    pub(crate) output: Output,
    remote: Option<Remote>,
    named_tenant: Option<TenantId>,
    pub(crate) sources: Sources,
    pub(crate) loaded: Loaded,
    ledger: OnceCell<Ledger>,
    queue: OnceCell<Option<Arc<RedisQueue>>>,
    services: OnceCell<Arc<LocalServices>>,
}

/// The places that settings come from, with the options of this command line.
pub(crate) fn sources(global: &Global) -> Result<Sources, Failure> {
    let sources = Sources::of_process()
        .map_err(|error| Failure::local("the current folder cannot be told", &error))?;
    let text = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
    let mut sources = sources
        .flag("--folder", "folder", global.folder.as_ref().map(text))
        .flag(
            "--repository",
            "repository.place",
            global.repository.clone(),
        )
        .flag(
            "--key-file",
            "keys.file",
            global.key_file.as_ref().map(text),
        )
        .flag(
            "--tenant",
            "tenant",
            global.tenant.as_ref().map(ToString::to_string),
        );
    sources.file.clone_from(&global.config);
    Ok(sources)
}

/// The same, with the options that only this command has.
pub(crate) fn sources_for(cli: &Cli) -> Result<Sources, Failure> {
    let sources = sources(&cli.global)?;
    let Command::Api(args) = &cli.command else {
        return Ok(sources);
    };
    let text = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
    Ok(sources
        .flag("--listen", "api.listen", args.listen.clone())
        .flag(
            "--tls-certificate",
            "api.tls_certificate",
            args.tls_certificate.as_ref().map(text),
        )
        .flag("--tls-key", "api.tls_key", args.tls_key.as_ref().map(text)))
}

impl App {
    pub(crate) fn new(output: Output, sources: Sources, loaded: Loaded) -> Self {
        Self {
            output,
            remote: None,
            named_tenant: None,
            sources,
            loaded,
            ledger: OnceCell::new(),
            queue: OnceCell::new(),
            services: OnceCell::new(),
        }
    }

    /// With what else the command line says.
    pub(crate) fn told(mut self, global: &Global) -> Result<Self, Failure> {
        if let Some(server) = &global.server {
            self.remote = Some(Remote::new(server, self.settings())?);
        }
        self.named_tenant.clone_from(&global.tenant);
        Ok(self)
    }

    /// The other Fettler that was named with `--server`.
    pub(crate) const fn remote(&self) -> Option<&Remote> {
        self.remote.as_ref()
    }

    /// Where this command looks and what it changes.
    pub(crate) async fn desk(&self) -> Result<Desk<'_>, Failure> {
        match &self.remote {
            Some(remote) => Ok(Desk::There(remote)),
            None => Ok(Desk::Here(self.ledger().await?)),
        }
    }

    /// The tenant, where the command line names one.
    pub(crate) const fn named_tenant(&self) -> Option<&TenantId> {
        self.named_tenant.as_ref()
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.loaded.settings
    }

    pub(crate) fn tenant(&self) -> &TenantId {
        &self.loaded.settings.tenant
    }

    /// The way to the process that runs the folder, if there is one.
    pub(crate) fn socket(&self) -> SocketClient {
        SocketClient::new(&self.settings().socket())
    }

    /// The ledger, opened and made when it is not there.
    pub(crate) async fn ledger(&self) -> Result<&Ledger, Failure> {
        if self.remote.is_some() {
            return Err(Failure::usage(
                "this can be done on the machine of the ledger only, and `--server` asks another one",
                "leave `--server` (or FETTLER_SERVER) out, or run it there",
            ));
        }
        self.ledger
            .get_or_try_init(|| async {
                folder::make(&self.settings().folder)?;
                let ledger = Ledger::open(&self.settings().ledger_url()).await?;
                ledger.ensure_tenant(self.tenant()).await?;
                let socket = self.socket();
                let runtime = tokio::runtime::Handle::current();
                ledger.set_wake_hook(Arc::new(move || {
                    let socket = socket.clone();
                    runtime.spawn(async move {
                        // Where nobody listens there is nobody to wake.
                        if let Err(error) = socket.wake().await {
                            tracing::debug!(%error, "no other process was woken");
                        }
                    });
                }));
                Ok::<_, Failure>(ledger)
            })
            .await
    }

    /// The queue of the fleet, where the settings name one. Otherwise the ledger is the queue.
    pub(crate) async fn queue(&self) -> Result<Option<Arc<dyn Queue>>, Failure> {
        let queue = self
            .queue
            .get_or_try_init(|| async {
                let settings = &self.settings().queue;
                let Some(url) = &settings.url else {
                    return Ok::<_, Failure>(None);
                };
                let root_certificate = match &settings.root_certificate {
                    Some(path) => Some(std::fs::read(path).map_err(|error| {
                        Failure::local(
                            format!("`queue.root_certificate` {} cannot be read", path.display()),
                            &error,
                        )
                    })?),
                    None => None,
                };
                let options = RedisQueueOptions {
                    root_certificate,
                    fleet: settings.fleet.clone(),
                    ..RedisQueueOptions::new(url)
                };
                let queue = RedisQueue::start(self.ledger().await?.clone(), options)?;
                Ok(Some(Arc::new(queue)))
            })
            .await?;
        Ok(queue.clone().map(|queue| queue as Arc<dyn Queue>))
    }

    /// Tells the fleet of a job that this process has submitted and will not wait for. What is not told here, a
    /// worker finds in the ledger.
    pub(crate) async fn push(&self, job: JobId) -> Result<(), Failure> {
        if let Some(queue) = self.queue().await? {
            let item = WireItem::from(&self.ledger().await?.job(job).await?);
            if let Err(error) = queue.push(&[item]).await {
                tracing::debug!(%error, "the queue was not told of the job");
            }
        }
        Ok(())
    }

    /// Does what lets jobs start that could not, and tells the fleet's queue of them.
    pub(crate) async fn readying<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        if self.remote.is_some() {
            // The other side tells its own.
            return work.await;
        }
        let readied = self.ledger().await?.readied();
        let done = work.await?;
        self.push_readied(readied).await?;
        Ok(done)
    }

    /// Tells the fleet of the jobs that commits of this process have made claimable since it listens.
    async fn push_readied(
        &self,
        mut readied: tokio::sync::broadcast::Receiver<Arc<[Readied]>>,
    ) -> Result<(), Failure> {
        let Some(queue) = self.queue().await? else {
            return Ok(());
        };
        let ledger = self.ledger().await?;
        // What it missed is found by comparing the queue with the ledger.
        while let Ok(some) = readied.try_recv() {
            let jobs = ledger.queued(some.iter().cloned()).await?;
            let items: Vec<WireItem> = jobs
                .iter()
                .map(|job| WireItem::of_queued(job, ledger.ageing()))
                .collect();
            if let Err(error) = queue.push(&items).await {
                tracing::debug!(%error, "the queue was not told of the jobs");
                break;
            }
        }
        Ok(())
    }

    /// The tenant that this command line names.
    pub(crate) fn asked_tenant(&self) -> Option<&TenantId> {
        self.sources
            .flags
            .iter()
            .any(|flag| flag.name == "--tenant")
            .then(|| self.tenant())
    }

    /// Refuses `--tenant` where something of all tenants is meant.
    pub(crate) fn not_of_one_tenant(&self, what: &str) -> Result<(), Failure> {
        match self.asked_tenant() {
            None => Ok(()),
            Some(_) => Err(Failure::usage(
                format!("{what} is the same for all tenants"),
                "leave `--tenant` out",
            )),
        }
    }

    /// What this process offers to jobs.
    pub(crate) async fn services(&self) -> Result<&Arc<LocalServices>, Failure> {
        self.services
            .get_or_try_init(|| async {
                let ledger = self.ledger().await?.clone();
                Ok::<_, Failure>(Arc::new(LocalServices::new(
                    self.sources.clone(),
                    self.settings().clone(),
                    ledger,
                    self.output,
                )?))
            })
            .await
    }

    /// The tenant's part of the configured repository.
    pub(crate) async fn repository(&self, how: Use) -> Result<TenantRepository, Failure> {
        let (repository, _) = self
            .services()
            .await?
            .open(self.tenant(), None, how)
            .await?;
        Ok(repository)
    }

    /// Ends connections in good order.
    pub(crate) async fn close(&self) {
        if let Some(ledger) = self.ledger.get() {
            ledger.close().await;
        }
    }
}
