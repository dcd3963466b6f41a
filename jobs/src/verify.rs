//! `verify`: reads and authenticates a backup's stored bytes, all of them or a sample, without any
//! database. What is found damaged is never taken over by a later backup, and the backup loses
//! `complete` (rule 24).

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use fettler_engine::EngineError;
use fettler_model::{BackupId, BackupState, ExclusionClass, Problem, SlotClass};
use fettler_repository::{Damage, Depth, TenantRepository, Verified};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackupPlace, JobContext, JobKind, archive::report_of, by_server};

/// How often it is saved what was found sound: so much is read again at most by the next attempt.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Verify;

/// What a verification takes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyArguments {
    /// The repository; the configured one when nothing is said.
    #[serde(default)]
    pub place: BackupPlace,
    /// The backup.
    pub backup: BackupId,
    /// Reads only about this share of the packs; all when nothing is said.
    #[serde(default)]
    pub sample_percent: Option<f64>,
}

/// What a verification found.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VerifyOutput {
    /// The backup.
    pub backup: BackupId,
    /// Whether nothing was found wrong.
    pub ok: bool,
    /// Bytes that were read from the store.
    pub bytes_read: u64,
    /// What is damaged or missing.
    pub damaged: Vec<DamageOutput>,
}

/// One damaged or missing thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DamageOutput {
    /// The object in the store.
    pub object: String,
    /// The stream that it harms; nothing when the whole backup is harmed.
    pub stream: Option<String>,
    /// Where in the stream.
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl From<Damage> for DamageOutput {
    fn from(damage: Damage) -> Self {
        Self {
            object: damage.object,
            stream: damage.stream,
            offset: damage.offset,
            what: damage.what,
        }
    }
}

#[async_trait]
impl JobKind for Verify {
    const NAME: &'static str = "verify";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Long;
    type Arguments = VerifyArguments;
    type Output = VerifyOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: VerifyArguments,
    ) -> Result<VerifyOutput, Problem> {
        let depth = match arguments.sample_percent {
            None => Depth::Everything,
            Some(percent) if percent > 0.0 && percent <= 100.0 => Depth::Sample { percent },
            Some(percent) => {
                return Err(Problem::permanent(
                    "verify.sample",
                    format!("a sample of {percent} % cannot be read"),
                    "give a share above 0 and up to 100",
                ));
            }
        };
        let (repository, place) = context
            .services
            .repository(&context.job.tenant, &arguments.place)
            .await?;
        context.progress.begin("reading stored bytes", 0, 0);
        let verified = Mutex::new(verified_before(context).await?);
        let mut count = |bytes| context.progress.add(bytes, 0);
        let work = repository.verify_on(
            arguments.backup,
            depth,
            &verified,
            &mut count,
            context.stopping.token(),
        );
        let report = saving(context, &verified, work)
            .await?
            .map_err(|error| context.problem_of_store(error))?;
        context
            .fence
            .check()
            .await
            .map_err(|error| context.problem(error))?;
        if !report.is_ok() {
            tell_catalogue(context, &repository).await?;
        }
        let bytes_read = report.bytes_read;
        let mut damaged: Vec<DamageOutput> = report.damaged.into_iter().map(Into::into).collect();
        // Where the manifest is damaged, nobody knows what a server holds.
        if damaged.is_empty() {
            damaged.extend(at_the_server(context, &repository, &place, arguments.backup).await?);
        }
        Ok(VerifyOutput {
            backup: arguments.backup,
            ok: damaged.is_empty(),
            bytes_read,
            damaged,
        })
    }
}

/// What is missing at the database's own server, where that holds the backup: the backup loses `complete` then. Its bytes there
/// are not read; a proof reads them.
async fn at_the_server(
    context: &JobContext,
    repository: &TenantRepository,
    place: &str,
    backup: BackupId,
) -> Result<Option<DamageOutput>, Problem> {
    let manifest = repository.manifest(backup).await?;
    if !manifest
        .summary
        .tags
        .iter()
        .any(|tag| tag == by_server::TAG)
    {
        return Ok(None);
    }
    let known = context.catalogue.backups(place, None).await?;
    let record = known.iter().find(|record| record.facts.id == backup);
    let Some(database) = record.and_then(|record| record.facts.database) else {
        return Err(Problem::permanent(
            "verify.no_database",
            "the backup is held by its database's own server, and no database of that name is known here",
            "add the database (`fettler database add`), and back it up once",
        ));
    };
    let database = context.ledger.database(database).await?;
    let server = context
        .target(&database.url, database.password.as_ref())
        .await?;
    let engine = fettler_engines::engine(database.url.engine());
    let report = report_of(&manifest)?;
    match engine.require_held(&report, &server).await {
        Ok(()) => Ok(None),
        Err(EngineError::Unusable { what, .. }) => {
            context
                .catalogue
                .set_state(backup, BackupState::Damaged, &what)
                .await?;
            Ok(Some(DamageOutput {
                object: "the server's own backup".to_owned(),
                stream: None,
                offset: None,
                what,
            }))
        }
        Err(error) => Err(context.problem(error)),
    }
}

/// What earlier attempts found sound. A checkpoint that cannot be read is as good as none.
async fn verified_before(context: &JobContext) -> Result<Verified, Problem> {
    let saved = context
        .checkpoints
        .load()
        .await
        .map_err(|error| context.problem(error))?;
    let verified: Verified = saved
        .and_then(|saved| serde_json::from_value(saved).ok())
        .unwrap_or_default();
    if verified.bytes() > 0 {
        let line = format!(
            "{} bytes were verified by an earlier attempt",
            verified.bytes()
        );
        context.ledger.log(&line).await;
        context.progress.add(verified.bytes(), 0);
    }
    Ok(verified)
}

/// Does the work and saves now and then, and at its end, what was found sound (P3).
async fn saving<T, E>(
    context: &JobContext,
    verified: &Mutex<Verified>,
    work: impl Future<Output = Result<T, E>>,
) -> Result<Result<T, E>, Problem> {
    let mut work = std::pin::pin!(work);
    let mut every = tokio::time::interval(CHECKPOINT_EVERY);
    every.tick().await;
    loop {
        tokio::select! {
            ended = &mut work => {
                if ended.is_err() {
                    save(context, verified).await?;
                }
                return Ok(ended);
            }
            _ = every.tick() => save(context, verified).await?,
        }
    }
}

async fn save(context: &JobContext, verified: &Mutex<Verified>) -> Result<(), Problem> {
    let saved = {
        let verified = verified.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_value(&*verified).expect("names and numbers can be written")
    };
    context
        .checkpoints
        .save(saved)
        .await
        .map_err(|error| context.problem(error))
}

/// Damage in one backup harms every backup that names the same packs: all of them lose `complete`.
async fn tell_catalogue(
    context: &JobContext,
    repository: &TenantRepository,
) -> Result<(), Problem> {
    for backup in repository.backups().await?.backups {
        if backup.damaged {
            context
                .catalogue
                .set_state(
                    backup.id,
                    BackupState::Damaged,
                    "a verification found damage",
                )
                .await?;
        }
    }
    Ok(())
}
