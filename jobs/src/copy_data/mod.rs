//! `copy-data`: copies a database into another of the same engine, without a configured repository between.
//!
//! 1. Look at both ends: one engine, two places, what the source allows, room for the pipe.
//! 2. Read the source at one consistent point into the pipe, a repository in the scratch folder of this machine (see [`pipe`]).
//! 3. Fill the target from it, as a restore does.
//! 4. Read the target, and compare it with what was read of the source; let go what stood still meanwhile.
//! 5. Remove the pipe.
//!
//! The stages follow each other, since engines read streams in an order of their own and some of them twice. An attempt goes on
//! in the stage in which the last one stopped: a source that was read in part is read again under a new snapshot, what was
//! read whole is not.

mod pipe;
mod progress;

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use fettler_engine::{
    BackupOptions, DatabaseEngine, EngineError, Identity, PreflightLevel, RestoreOptions, Target,
};
use fettler_model::{
    BackupId, DatabaseUrl, Engine, ErrorClass, ExclusionClass, Problem, ProofVerdict,
    SecretReference, SlotClass, Warning,
};
use fettler_repository::{BeginBackup, Begun, Parent};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    BackupArguments, DatabaseRecord, JobContext, JobKind,
    archive::Archive,
    backup::{Reading, UPLOADS_AT_ONCE, preflight},
    prove::compare,
};

use pipe::Pipe;
pub use pipe::remove_artefact;
use progress::{AtSource, CopyProgress, Keeper, Stage};

/// The member of an artefact's data that says that it lies on the source of a copy.
pub const AT_SOURCE: &str = "fettler_at_source";

/// The pipe takes about a third of what a database takes, compressed; with less room than this part of it nothing is begun.
const PIPE_PART: u64 = 2;

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct CopyData;

/// What a copy takes. The source is the job's database.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyDataArguments {
    /// Where to copy to.
    pub to: DatabaseUrl,
    /// Where the password for it lies.
    #[serde(default)]
    pub password: Option<SecretReference>,
    /// Only these objects, by name, schema or pattern.
    #[serde(default)]
    pub only: Vec<String>,
    /// Whether what is at the target may be replaced.
    #[serde(default)]
    pub overwrite: bool,
    /// Reads at most so many bytes a second.
    #[serde(default)]
    pub max_bytes_per_second: Option<u64>,
    /// Reads as fast as it goes, also while the source's answers take longer than usual.
    #[serde(default)]
    pub full_speed: bool,
    /// Looks at both ends and says what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a copy did.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CopyDataOutput {
    /// The source's name.
    pub database: String,
    /// The engine.
    pub engine: String,
    /// Where it was copied to.
    pub to: DatabaseUrl,
    /// Whether nothing was done but looked at.
    pub dry_run: bool,
    /// Whether all that was compared is the same; nothing of a dry run.
    pub equal: Option<bool>,
    /// Bytes read from the source; of a dry run about how many there are.
    pub bytes_read: u64,
    /// Bytes that the pipe took in the scratch folder; of a dry run how many may be needed.
    pub bytes_in_scratch: u64,
    /// Bytes of content written.
    pub bytes: u64,
    /// Rows written.
    pub rows: u64,
    /// How many fingerprints, counts and values were compared.
    pub fingerprints_compared: u64,
    /// What differs.
    pub mismatches: Vec<String>,
    /// What keeps a copy without differences from being proven whole, and what was left out of the comparison.
    pub notes: Vec<String>,
    /// What lies beside the copy at the target.
    pub beside: Vec<String>,
    /// Statements that failed.
    pub failed_statements: Vec<String>,
    /// What a person should look at.
    pub warnings: Vec<Warning>,
    /// How long the attempt that ended it took.
    pub duration_seconds: f64,
}

#[async_trait]
impl JobKind for CopyData {
    const NAME: &'static str = "copy-data";
    const EXCLUSION: ExclusionClass = ExclusionClass::Backup;
    const SLOT: SlotClass = SlotClass::Long;
    type Arguments = CopyDataArguments;
    type Output = CopyDataOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: CopyDataArguments,
    ) -> Result<CopyDataOutput, Problem> {
        let began = Instant::now();
        let ends = Ends::look(context, &arguments).await?;
        if arguments.dry_run {
            return ends.plan(context, &arguments, began).await;
        }
        let keeper = Keeper::load(context.checkpoints.clone())
            .await
            .map_err(|error| context.problem(error))?;
        let keeper = Arc::new(keeper);
        let pipe = pipe::open(context, ends.engine.engine()).await?;
        let copy = Copy {
            context: JobContext {
                checkpoints: keeper.clone(),
                ..context.clone()
            },
            keeper,
            ends: &ends,
            arguments: &arguments,
            pipe: &pipe,
        };
        match copy.run(began).await {
            Ok(output) => {
                pipe.remove(context)
                    .await
                    .map_err(|error| context.problem(error))?;
                Ok(output)
            }
            Err(problem) => {
                if matches!(problem.class, ErrorClass::Cancelled | ErrorClass::Permanent)
                    && let Err(error) = pipe.remove(context).await
                {
                    tracing::warn!(%error, "the pipe of a copy is left for rescue to remove");
                }
                Err(problem)
            }
        }
    }
}

/// Both ends of a copy.
struct Ends {
    engine: Arc<dyn DatabaseEngine>,
    database: DatabaseRecord,
    source: Target,
    target: Target,
    identity: Identity,
}

impl Ends {
    /// Looks at both: one engine, and two places.
    async fn look(context: &JobContext, arguments: &CopyDataArguments) -> Result<Self, Problem> {
        let database = context.database().await?;
        let engine = fettler_engines::engine(database.url.engine());
        if arguments.to.engine() != engine.engine() {
            return Err(Problem::permanent(
                "copy.other_engine",
                format!(
                    "the source is a {} database and the target is {}",
                    engine.engine(),
                    arguments.to.engine()
                ),
                "a copy goes to the same engine; `fettler extract` writes a part of a backup in an open format",
            ));
        }
        let source = context
            .target(&database.url, database.password.as_ref())
            .await?;
        let target = context
            .target(&arguments.to, arguments.password.as_ref())
            .await?;
        context.progress.begin("looking at both databases", 0, 0);
        let identity = engine
            .identify(&source)
            .await
            .map_err(|error| context.problem(error))?;
        context
            .ledger
            .set_identity(database.id, &identity.key)
            .await?;
        let there = match engine.identify(&target).await {
            Ok(there) => Some(there),
            Err(
                error @ (EngineError::Unreachable { .. }
                | EngineError::LoginRefused { .. }
                | EngineError::Stopped),
            ) if !is_a_file(&arguments.to) => return Err(context.problem(error)),
            // A database that is not there yet is made.
            Err(_) => None,
        };
        if let Some(there) = there
            && is_one_place(&identity, &there, &arguments.to)
        {
            return Err(Problem::permanent(
                "copy.same_database",
                format!("{} is the source itself, or holds it", arguments.to),
                "name another database, another server, or (Elasticsearch) a prefix for all names: `?prefix=copy-`",
            ));
        }
        if let Some(path) = arguments.to.path()
            && engine.engine() == Engine::Sqlite
            && arguments.only.is_empty()
            && !arguments.overwrite
            && context
                .checkpoints
                .load()
                .await
                .map_err(|error| context.problem(error))?
                .is_none()
            && std::fs::metadata(&path).is_ok_and(|found| found.len() > 0)
        {
            return Err(Problem::permanent(
                "engine.not_empty",
                format!("{} exists and is not empty", path.display()),
                "name another file, or say `--overwrite` to replace the database",
            ));
        }
        Ok(Self {
            engine,
            database,
            source,
            target,
            identity,
        })
    }

    /// Bytes that the pipe may need, and those that are free where it would lie.
    async fn room(&self, context: &JobContext) -> Result<(u64, Option<u64>), Problem> {
        let scratch = context.services.scratch().join("pipe");
        let place = DatabaseUrl::try_from(format!("sqlite:{}", scratch.display()))
            .map_err(|error| Problem::permanent("copy.scratch", error.to_string(), ""))?;
        // The file system of this machine, as the engine of files asks it.
        let free = fettler_engines::engine(Engine::Sqlite)
            .free_bytes(&Target {
                url: place,
                password: None,
            })
            .await
            .map_err(|error| context.problem(error))?;
        Ok((self.identity.estimated_bytes, free))
    }

    /// What a dry run says.
    async fn plan(
        &self,
        context: &JobContext,
        arguments: &CopyDataArguments,
        began: Instant,
    ) -> Result<CopyDataOutput, Problem> {
        let items = self
            .engine
            .preflight(&self.source, &BackupOptions::default())
            .await
            .map_err(|error| context.problem(error))?;
        let (needed, free) = self.room(context).await?;
        let mut notes: Vec<String> = items
            .into_iter()
            .filter(|item| item.level != PreflightLevel::Fine)
            .map(|item| {
                let word = match item.level {
                    PreflightLevel::Stops => "would stop it",
                    _ => "is to be known",
                };
                format!(
                    "{}: {word}: {} ({})",
                    item.subject, item.message, item.remedy
                )
            })
            .collect();
        notes.push(format!(
            "the scratch folder {} takes up to {needed} bytes for the time of the copy, and mostly a third of that{}",
            context.services.scratch().display(),
            free.map_or_else(String::new, |free| format!("; {free} bytes are free"))
        ));
        notes.push(if arguments.overwrite {
            "what is at the target under the same names would be replaced".to_owned()
        } else {
            "the copy would end where something is at the target under the same names".to_owned()
        });
        Ok(CopyDataOutput {
            bytes_read: self.identity.estimated_bytes,
            bytes_in_scratch: needed,
            notes,
            ..self.output(arguments, began)
        })
    }

    fn output(&self, arguments: &CopyDataArguments, began: Instant) -> CopyDataOutput {
        CopyDataOutput {
            database: self.database.name.to_string(),
            engine: self.engine.engine().to_string(),
            to: arguments.to.clone(),
            dry_run: arguments.dry_run,
            equal: None,
            bytes_read: 0,
            bytes_in_scratch: 0,
            bytes: 0,
            rows: 0,
            fingerprints_compared: 0,
            mismatches: Vec::new(),
            notes: Vec::new(),
            beside: Vec::new(),
            failed_statements: Vec::new(),
            warnings: Vec::new(),
            duration_seconds: began.elapsed().as_secs_f64(),
        }
    }
}

fn is_a_file(url: &DatabaseUrl) -> bool {
    url.path().is_some()
}

/// Whether the target is the source, or one of the two is a part of the other. On a search cluster a prefix makes names others.
fn is_one_place(source: &Identity, target: &Identity, to: &DatabaseUrl) -> bool {
    let is_part = |whole: &str, part: &str| {
        part.strip_prefix(whole)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let has_other_names = to.engine() == Engine::Elasticsearch && to.as_str().contains("prefix=");
    !has_other_names && (is_part(&source.key, &target.key) || is_part(&target.key, &source.key))
}

/// A copy at work.
struct Copy<'a> {
    /// The job's, with checkpoints that are the engine's own.
    context: JobContext,
    keeper: Arc<Keeper>,
    ends: &'a Ends,
    arguments: &'a CopyDataArguments,
    pipe: &'a Pipe,
}

impl Copy<'_> {
    async fn run(&self, began: Instant) -> Result<CopyDataOutput, Problem> {
        let mut warnings = Vec::new();
        let mut progress = self.keeper.progress();
        if progress.stage > Stage::Reading && !self.pipe.continued {
            self.context
                .ledger
                .log(
                    "the pipe of the last attempt is not on this machine: the source is read again",
                )
                .await;
            progress = progress.without_pipe();
            self.go_to(progress.clone()).await?;
        }
        let id = BackupId::of_job(self.context.job.id);
        let manifest = match self.read(id, &mut warnings).await? {
            Some(manifest) => manifest,
            None => self.pipe.repository.manifest(id).await?,
        };
        let archive = Archive::of(&self.pipe.repository, &manifest)?;
        if progress.stage == Stage::Reading {
            progress.stage = Stage::Restoring;
            progress.engine = None;
            self.go_to(progress.clone()).await?;
        }
        let restored = match progress.restored.clone() {
            Some(restored) => restored,
            None => {
                let restored = self.restore(&archive, &progress).await?;
                progress = CopyProgress {
                    stage: Stage::Comparing,
                    restored: Some(restored.clone()),
                    ..CopyProgress::default()
                };
                self.go_to(progress).await?;
                restored
            }
        };
        fettler_fault_points::reached(fettler_fault_points::Point::SandboxFilled);
        let compared = self.compare(&archive).await?;
        let found = compare::compare(
            &compared.expected,
            &compared.found,
            &restored.failed_statements,
        );
        for mismatch in &found.mismatches {
            let line = format!("mismatch: {mismatch}");
            self.context.ledger.log(&line).await;
        }
        let mut notes = if compared.expected.is_empty() {
            vec![
                "nothing of what was copied has a fingerprint of its own: nothing was compared"
                    .to_owned(),
            ]
        } else {
            found.doubts
        };
        notes.extend(compared.notes);
        warnings.extend(restored.warnings);
        Ok(CopyDataOutput {
            equal: Some(found.verdict != ProofVerdict::Failed),
            bytes_read: manifest.summary.bytes_read,
            bytes_in_scratch: pipe::bytes_of(&self.context).await,
            bytes: restored.bytes,
            rows: restored.rows,
            fingerprints_compared: found.compared,
            mismatches: found.mismatches,
            notes,
            beside: compared.beside,
            failed_statements: restored.failed_statements,
            warnings,
            ..self.ends.output(self.arguments, began)
        })
    }

    async fn go_to(&self, progress: CopyProgress) -> Result<(), Problem> {
        self.keeper
            .go_to(progress)
            .await
            .map_err(|error| self.context.problem(error))
    }

    /// Reads the source into the pipe; nothing where an earlier attempt has.
    async fn read(
        &self,
        id: BackupId,
        warnings: &mut Vec<Warning>,
    ) -> Result<Option<fettler_repository::Manifest>, Problem> {
        let begun = self
            .pipe
            .repository
            .begin_backup(BeginBackup {
                backup: id,
                database: "source".to_owned(),
                parent: Parent::Auto,
                read_everything: false,
                fence: self.context.repository_fence(),
                upload_parallel: UPLOADS_AT_ONCE,
            })
            .await?;
        let writer = match begun {
            Begun::AlreadyCommitted(manifest) => return Ok(Some(*manifest)),
            Begun::Writer(writer) => Arc::new(writer),
        };
        let (needed, free) = self.ends.room(&self.context).await?;
        if let Some(free_bytes) = free.filter(|free| *free < needed / PIPE_PART) {
            return Err(self.context.problem(EngineError::NoSpace {
                place: format!(
                    "the scratch folder {}",
                    self.context.services.scratch().display()
                ),
                free_bytes,
                needed_bytes: needed / PIPE_PART,
            }));
        }
        let options = BackupOptions::default();
        let context = JobContext {
            artefacts: Arc::new(AtSource(self.context.artefacts.clone())),
            ..self.context.clone()
        };
        warnings
            .extend(preflight(&context, &*self.ends.engine, &self.ends.source, &options).await?);
        let arguments = BackupArguments {
            max_bytes_per_second: self.arguments.max_bytes_per_second,
            full_speed: self.arguments.full_speed,
            ..BackupArguments::default()
        };
        let reading = Reading {
            context: &context,
            engine: &*self.ends.engine,
            database: &self.ends.database,
            source: &self.ends.source,
            identity: &self.ends.identity,
            options: &options,
            arguments: &arguments,
            fingerprint_key: self.pipe.repository.fingerprint_key(),
        };
        let mut told = Vec::new();
        let manifest = reading.read_and_commit(writer, &mut told).await?;
        warnings.extend(told);
        Ok(Some(manifest))
    }

    async fn restore(
        &self,
        archive: &Archive,
        progress: &CopyProgress,
    ) -> Result<progress::Restored, Problem> {
        let working = self
            .context
            .engine_context(archive.fingerprint_key, None)
            .await?;
        // What an attempt before began with another reading is the job's own.
        let begins_again = progress.begins_again && progress.engine.is_none();
        let options = RestoreOptions {
            only: self.arguments.only.clone(),
            overwrite: self.arguments.overwrite || progress.begins_again,
            start_again: begins_again,
            still: true,
        };
        self.context
            .progress
            .begin("filling the target", archive.bytes(), 0);
        let restored = self
            .ends
            .engine
            .restore(
                &working,
                archive,
                &archive.report,
                &self.ends.target,
                &options,
            )
            .await;
        self.context.remove_scratch(&working).await;
        match restored {
            Ok(report) => Ok(report.into()),
            Err(error) => {
                let is_refusal = matches!(
                    error,
                    EngineError::NotEmpty { .. }
                        | EngineError::Missing { .. }
                        | EngineError::LoginRefused { .. }
                );
                let mut problem = self.context.problem(error);
                if problem.class == ErrorClass::Permanent && !is_refusal {
                    problem.remedy = format!(
                        "{}{}{} may hold a part of the copy: `--overwrite` replaces it",
                        problem.remedy,
                        if problem.remedy.is_empty() { "" } else { ". " },
                        self.arguments.to
                    );
                }
                Err(problem)
            }
        }
    }

    async fn compare(&self, archive: &Archive) -> Result<fettler_engine::CopyFacts, Problem> {
        let working = self
            .context
            .engine_context(archive.fingerprint_key, None)
            .await?;
        self.context
            .progress
            .begin("comparing the target", archive.bytes(), 0);
        let compared = self
            .ends
            .engine
            .compare_copy(
                &working,
                archive,
                &archive.report,
                &self.ends.target,
                &self.arguments.only,
            )
            .await;
        self.context.remove_scratch(&working).await;
        compared.map_err(|error| self.context.problem(error))
    }
}

#[cfg(test)]
mod tests {
    use fettler_model::DatabaseName;

    use super::*;

    #[test]
    fn a_place_is_not_copied_onto_itself_or_into_a_part_of_itself() {
        let of = |engine, key: &str| Identity {
            engine,
            version: String::new(),
            key: key.to_owned(),
            lineage: String::new(),
            suggested_name: "x".parse::<DatabaseName>().unwrap(),
            estimated_bytes: 0,
        };
        let same = |source: &str, target: &str, to: &str| {
            let to = DatabaseUrl::try_from(to.to_owned()).unwrap();
            is_one_place(&of(to.engine(), source), &of(to.engine(), target), &to)
        };
        assert!(same("redis:1.2.3.4:1", "redis:1.2.3.4:1", "redis://a"));
        assert!(same("redis:1.2.3.4:1", "redis:1.2.3.4:1/3", "redis://a/3"));
        assert!(same("redis:1.2.3.4:1/3", "redis:1.2.3.4:1", "redis://a"));
        assert!(!same(
            "redis:1.2.3.4:1/3",
            "redis:1.2.3.4:1/4",
            "redis://a/4"
        ));
        assert!(!same("redis:1.2.3.4:1", "redis:1.2.3.4:11", "redis://a:11"));
        assert!(same(
            "elasticsearch:u",
            "elasticsearch:u",
            "elasticsearch://a"
        ));
        let prefixed = "elasticsearch://a/?prefix=copy-";
        assert!(!same("elasticsearch:u", "elasticsearch:u", prefixed));
    }
}
