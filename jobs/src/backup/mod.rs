//! `backup`: reads a database at one consistent point into the repository.
//!
//! 1. Ask the database who it is, so that other jobs on the same database wait (rule 17).
//! 2. Preflight: what stops the backup stops it before any byte is read.
//! 3. The hook before.
//! 4. Announce the backup in the repository and find its parent; a manifest of this job that is there
//!    already is adopted (rules 21 and 22).
//! 5. Let the engine read into streams; what the parent holds is taken over.
//! 6. Compare with the parent, commit the manifest, record the backup in the catalogue.
//! 7. The hook after; submit the proof that was asked for.

mod sink;
mod suspicion;

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use fettler_engine::{BackupOptions, DatabaseEngine, Identity, PreflightLevel, Target};
use fettler_fault_points::{Point, reached};
use fettler_model::{
    BackupFacts, BackupId, ErrorClass, ExclusionClass, JobId, JobRequest, JobTerms, Priority,
    Problem, SlotClass, Timestamp, Warning,
};
use fettler_repository::{
    BackupWriter, BeginBackup, Begun, Manifest, ManifestBody, Parent, TenantRepository,
};
use fettler_telemetry::metric;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use sink::RepositorySink;

use crate::{
    BackupPlace, DatabaseRecord, JobContext, JobKind,
    archive::report_of,
    by_server,
    hooks::Hooks,
    prove::{Prove, ProveArguments},
    throttle,
};

/// Packs that are on their way to the store at once: enough to hide the store's latency, few enough
/// for the worker's memory.
pub(crate) const UPLOADS_AT_ONCE: usize = 2;

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Backup;

/// What a backup takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BackupArguments {
    /// The repository; the configured one when nothing is said.
    pub place: BackupPlace,
    /// Objects whose rows are left out, by name or pattern.
    pub exclude: Vec<String>,
    /// Reads at most so many bytes a second.
    pub max_bytes_per_second: Option<u64>,
    /// Free words, for keep rules and for people.
    pub tags: Vec<String>,
    /// Reads everything, also what the source says is unchanged.
    pub read_everything: bool,
    /// Where the server puts a backup of its own, in the stead of streams: for Elasticsearch and OpenSearch a repository of
    /// the server, `fs:/folder`, `s3:bucket/folder`, `gcs:bucket/folder` or `azure:container/folder`.
    pub by_server: Option<String>,
    /// Proves the backup as soon as it is complete.
    pub prove: bool,
    /// Reads as fast as it goes, also while the source's answers take longer than usual.
    pub full_speed: bool,
    /// Commands around the backup.
    pub hooks: Hooks,
}

/// What a backup did.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BackupOutput {
    /// The backup.
    pub backup: BackupId,
    /// The database's name.
    pub database: String,
    /// The engine.
    pub engine: String,
    /// The backup whose content it could take over.
    pub parent: Option<BackupId>,
    /// Bytes read from the source, or taken over unread.
    pub bytes_read: u64,
    /// Bytes that no earlier backup held.
    pub bytes_new: u64,
    /// Bytes put into the store.
    pub bytes_stored: u64,
    /// Number of streams.
    pub streams: u64,
    /// How long it took.
    pub duration_seconds: f64,
    /// What a person should look at.
    pub warnings: Vec<Warning>,
    /// The job that proves it, where one was asked for.
    pub proof_job: Option<JobId>,
}

/// The key under which a database's backups find their parent: it means the same in every ledger, so
/// that a repository can outlive all of them.
pub(crate) fn parent_key(database: &DatabaseRecord) -> String {
    format!("{}:{}", database.url.engine(), database.name)
}

#[async_trait]
impl JobKind for Backup {
    const NAME: &'static str = "backup";
    const EXCLUSION: ExclusionClass = ExclusionClass::Backup;
    const SLOT: SlotClass = SlotClass::Long;
    type Arguments = BackupArguments;
    type Output = BackupOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: BackupArguments,
    ) -> Result<BackupOutput, Problem> {
        let began = Instant::now();
        let database = context.database().await?;
        let source = context
            .target(&database.url, database.password.as_ref())
            .await?;
        let engine = fettler_engines::engine(database.url.engine());
        let (place, tags) = (arguments.by_server.as_deref(), &arguments.tags);
        by_server::look_at(&*engine, place, tags)?;
        context.progress.begin("looking at the database", 0, 0);
        let identity = engine
            .identify(&source)
            .await
            .map_err(|error| context.problem(error))?;
        context
            .ledger
            .set_identity(database.id, &identity.key)
            .await?;
        let options = BackupOptions {
            exclude: arguments.exclude.clone(),
            by_server: arguments.by_server.clone(),
        };
        let mut warnings = preflight(context, &*engine, &source, &options).await?;
        arguments.hooks.run_before(context).await?;

        let (repository, place) = context
            .services
            .repository(&context.job.tenant, &arguments.place)
            .await?;
        let (own, key) = (BackupId::of_job(context.job.id), parent_key(&database));
        let is_by_server = arguments.by_server.is_some();
        let parent = if engine.has_own_backups() {
            by_server::parent(&repository, &key, own, is_by_server).await?
        } else {
            Parent::Auto
        };
        let begun = repository
            .begin_backup(BeginBackup {
                backup: own,
                database: key,
                parent,
                read_everything: arguments.read_everything,
                fence: context.repository_fence(),
                upload_parallel: UPLOADS_AT_ONCE,
            })
            .await?;
        let manifest = match begun {
            Begun::AlreadyCommitted(manifest) => {
                context
                    .ledger
                    .log("an earlier attempt had committed the backup; it is adopted")
                    .await;
                *manifest
            }
            Begun::Writer(writer) => {
                let writer = Arc::new(writer);
                let job = Reading {
                    context,
                    engine: &*engine,
                    database: &database,
                    source: &source,
                    identity: &identity,
                    options: &options,
                    arguments: &arguments,
                    fingerprint_key: repository.fingerprint_key(),
                };
                match job.read_and_commit(writer, &mut warnings).await {
                    Ok(manifest) => manifest,
                    Err(problem) => {
                        if matches!(problem.class, ErrorClass::Cancelled | ErrorClass::Permanent) {
                            abandon(context, &repository).await;
                            if is_by_server && context.fence.check().await.is_ok() {
                                by_server::let_go_of_job(context, &*engine, &source).await;
                            }
                        }
                        return Err(problem);
                    }
                }
            }
        };

        let facts = facts_of_manifest(&manifest, &database)?;
        context.catalogue.record_backup(&place, &facts).await?;
        reached(Point::BackupCatalogued);
        for warning in &facts.warnings {
            context
                .ledger
                .log(&format!("warning: {}", warning.message))
                .await;
        }
        arguments.hooks.run_after(context).await?;
        let proof_job = if arguments.prove {
            Some(submit_proof(context, &arguments, manifest.id()).await?)
        } else {
            None
        };
        Ok(BackupOutput {
            backup: manifest.id(),
            database: database.name.to_string(),
            engine: identity.engine.to_string(),
            parent: facts.parent,
            bytes_read: facts.bytes_read,
            bytes_new: facts.bytes_new,
            bytes_stored: facts.bytes_stored,
            streams: facts.streams,
            duration_seconds: began.elapsed().as_secs_f64(),
            warnings: facts.warnings,
            proof_job,
        })
    }
}

/// Gives a backup up that no attempt will go on with: what it stored need not wait for a collection to notice.
async fn abandon(context: &JobContext, repository: &TenantRepository) {
    // A newer attempt may go on with it.
    if context.repository_fence().check().await.is_err() {
        return;
    }
    let id = BackupId::of_job(context.job.id);
    if let Err(error) = repository.abandon(id, "its job ended without it").await {
        tracing::warn!(%error, "what the backup stored is left for a later collection to find");
    }
}

/// Says what the preflight found; an error when it stops the backup.
pub(crate) async fn preflight(
    context: &JobContext,
    engine: &dyn DatabaseEngine,
    source: &Target,
    options: &BackupOptions,
) -> Result<Vec<Warning>, Problem> {
    let items = engine
        .preflight(source, options)
        .await
        .map_err(|error| context.problem(error))?;
    let stops: Vec<_> = items
        .iter()
        .filter(|item| item.level == PreflightLevel::Stops)
        .collect();
    if !stops.is_empty() {
        let told = |tell: fn(&&fettler_engine::PreflightItem) -> String| {
            stops.iter().map(tell).collect::<Vec<_>>().join("; ")
        };
        return Err(Problem::permanent(
            "backup.preflight",
            told(|item| format!("{}: {}", item.subject, item.message)),
            told(|item| item.remedy.clone()),
        ));
    }
    Ok(items
        .into_iter()
        .filter(|item| item.level == PreflightLevel::Missing)
        .map(|item| Warning {
            code: format!("preflight.{}", item.subject.replace(' ', "_")),
            message: format!("{} ({})", item.message, item.remedy),
        })
        .collect())
}

/// A database that is read into a repository.
pub(crate) struct Reading<'a> {
    pub(crate) context: &'a JobContext,
    pub(crate) engine: &'a dyn DatabaseEngine,
    pub(crate) database: &'a DatabaseRecord,
    pub(crate) source: &'a Target,
    pub(crate) identity: &'a Identity,
    pub(crate) options: &'a BackupOptions,
    /// Of these the rate and the tags count.
    pub(crate) arguments: &'a BackupArguments,
    pub(crate) fingerprint_key: [u8; 32],
}

impl Reading<'_> {
    pub(crate) async fn read_and_commit(
        &self,
        writer: Arc<BackupWriter>,
        warnings: &mut Vec<Warning>,
    ) -> Result<Manifest, Problem> {
        let started = Timestamp::now();
        let parent = writer.parent().map(report_of).transpose();
        // A parent that this version cannot read is no parent to compare with.
        let parent_report = parent.ok().flatten();
        let same_lineage = parent_report
            .as_ref()
            .is_some_and(|report| report.identity.lineage == self.identity.lineage);
        let working = self
            .context
            .engine_context(self.fingerprint_key, self.arguments.max_bytes_per_second)
            .await?;
        self.context
            .progress
            .begin("reading", self.identity.estimated_bytes, 0);
        let sink = RepositorySink::new(writer.clone(), same_lineage);
        let watch = throttle::watch(
            self.context,
            &working,
            self.engine,
            self.source,
            self.arguments.full_speed,
        )
        .await;
        let read = self
            .engine
            .backup(&working, self.source, self.options, &sink)
            .await;
        drop(watch);
        self.context.remove_scratch(&working).await;
        drop(sink);
        let report = match read {
            Ok(report) => report,
            Err(error) => {
                // What was uploaded is left for the next attempt to find.
                let problem = self.context.problem(error);
                if let Err(error) = writer.checkpoint().await {
                    self.context
                        .ledger
                        .log(&format!(
                            "the last checkpoint could not be written: {error}"
                        ))
                        .await;
                }
                return Err(problem);
            }
        };
        warnings.extend(report.warnings.iter().cloned());
        if let Some(parent) = &parent_report {
            warnings.extend(suspicion::compare_with_parent(parent, &report));
        }
        self.context.progress.begin("committing", 0, 0);
        let report = fettler_engine::BackupReport {
            warnings: warnings.clone(),
            ..report
        };
        let committed = writer
            .commit(ManifestBody {
                database_name: self.database.name.to_string(),
                engine: report.identity.engine.to_string(),
                started,
                tags: self.tags(),
                report: serde_json::to_value(&report).map_err(|error| {
                    Problem::permanent(
                        "backup.report",
                        format!("what the engine said cannot be written: {error}"),
                        "",
                    )
                })?,
            })
            .await
            .map_err(|error| self.context.problem_of_store(error))?;
        let summary = &committed.manifest.summary;
        for (name, bytes) in [
            (metric::BACKUP_READ, summary.bytes_read),
            (metric::BACKUP_STORED, summary.bytes_stored),
        ] {
            let tenant = self.context.job.tenant.to_string();
            metrics::counter!(name, "tenant" => tenant).increment(bytes);
        }
        Ok(committed.manifest)
    }

    fn tags(&self) -> Vec<String> {
        let mut tags = self.context.job.tags.clone();
        tags.extend(self.arguments.tags.iter().cloned());
        tags.retain(|tag| tag != by_server::TAG);
        if self.arguments.by_server.is_some() {
            tags.push(by_server::TAG.to_owned());
        }
        tags.sort();
        tags.dedup();
        tags
    }
}

/// What the catalogue is told of a manifest.
///
/// # Errors
///
/// When the engine's report in it cannot be read.
pub fn facts_of_manifest(
    manifest: &Manifest,
    database: &DatabaseRecord,
) -> Result<BackupFacts, Problem> {
    let report = report_of(manifest)?;
    let summary = &manifest.summary;
    Ok(BackupFacts {
        id: manifest.id(),
        tenant: database.tenant.clone(),
        database: Some(database.id),
        database_name: database.name.clone(),
        engine: report.identity.engine,
        parent: summary.parent,
        started: summary.started,
        finished: summary.finished,
        bytes_read: summary.bytes_read,
        bytes_new: summary.bytes_new,
        bytes_stored: summary.bytes_stored,
        streams: summary.streams,
        tags: summary.tags.clone(),
        warnings: report.warnings,
    })
}

async fn submit_proof(
    context: &JobContext,
    arguments: &BackupArguments,
    backup: BackupId,
) -> Result<JobId, Problem> {
    let proof = ProveArguments {
        place: arguments.place.clone(),
        backup,
        sandbox: None,
    };
    context
        .ledger
        .submit(JobRequest {
            tenant: context.job.tenant.clone(),
            kind: Prove::NAME
                .parse()
                .expect("the names of job kinds are valid"),
            kind_version: <Prove as JobKind>::VERSION,
            database: context.job.database,
            arguments: serde_json::to_value(proof).expect("the arguments hold only text"),
            exclusion: Prove::EXCLUSION,
            slot: Prove::SLOT,
            priority: Priority::default(),
            not_before: None,
            deadline: None,
            max_tries: Prove::MAX_TRIES,
            unique_key: Some(format!("prove/{backup}")),
            retry_of: None,
            tags: context.job.tags.clone(),
            terms: JobTerms::default(),
        })
        .await
}
