//! `archive`: keeps the changes of a database beside its backups, as they happen, until it is cancelled.
//!
//! 1. Read where the database's log ends; take its next number, so that whoever wrote before finds that taken and stops (P2).
//! 2. Let the engine read on from there, or from the newest backup, or from now: what is missing between is a gap of
//!    the log, and everybody is told of it.
//! 3. Write each batch as one object, and only then let the engine acknowledge it. Merge old objects now and then.
//! 4. Where no backup lies in what is archived, ask for one: changes alone restore nothing.
//!
//! A worker that dies takes with it what it had not written yet, about a second's worth, and that only as long as the
//! server keeps it too: the next attempt asks the server for what comes behind the log's end.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use fettler_engine::{ArchiveStart, ChangeBatch, ChangeSink, EngineError};
use fettler_model::{
    ExclusionClass, JobRequest, JobTerms, LogMoment, LogSpan, Priority, Problem, SlotClass,
    Timeline, Timestamp,
};
use fettler_repository::{ChangeLog, LogPart, TenantRepository};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    Backup, BackupArguments, BackupPlace, JobContext, JobKind, backup::parent_key, moments::bases,
};

/// How often it is looked whether objects are to be merged.
const MERGE_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked whether a backup lies in what is archived, while none does.
const LOOK_FOR_BASE_EVERY: Duration = Duration::from_secs(60);
/// How often one is asked for, should the one before have failed.
const ASK_FOR_BASE_EVERY: Duration = Duration::from_secs(3600);

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Archive;

/// What archiving takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ArchiveArguments {
    /// The repository; the configured one when nothing is said.
    pub place: BackupPlace,
    /// Ends after so many seconds; never when nothing is said.
    pub for_seconds: Option<u64>,
}

/// What was archived.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ArchiveOutput {
    /// The database's name.
    pub database: String,
    /// Bytes of changes.
    pub bytes: u64,
    /// Objects that were written.
    pub objects: u64,
    /// Up to which second everything is archived.
    pub until: Option<Timestamp>,
    /// How often changes were missed, so that the log began anew.
    pub gaps: u64,
}

#[async_trait]
impl JobKind for Archive {
    const NAME: &'static str = "archive";
    // It reads what the server sends anyway: backups, proofs and checks run beside it.
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    // It never ends, and must not take the place of a backup.
    const SLOT: SlotClass = SlotClass::Short;
    // Each time the server is away for long spends one; it never gives up by itself.
    const MAX_TRIES: u32 = 1_000_000;
    type Arguments = ArchiveArguments;
    type Output = ArchiveOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: ArchiveArguments,
    ) -> Result<ArchiveOutput, Problem> {
        let database = context.database().await?;
        let source = context
            .target(&database.url, database.password.as_ref())
            .await?;
        let engine = fettler_engines::engine(database.url.engine());
        let (repository, _) = context
            .services
            .repository(&context.job.tenant, &arguments.place)
            .await?;
        let key = parent_key(&database);
        let log = repository.change_log(&key);
        let entries = log.entries().await?;
        let positions = bases(&repository, &key).await?;
        let last_moment = entries.iter().rev().find_map(|entry| entry.span.edges);
        let start = ArchiveStart {
            end: entries.last().map(|entry| entry.span.end_position()),
            base: positions.last().map(fettler_model::Base::needs),
            last_moment: last_moment.map(|(_, last)| last),
        };
        let mut working = context
            .engine_context(repository.fingerprint_key(), None)
            .await?;
        // A time that is over ends the work well; a request to stop is another matter.
        let time_is_over = CancellationToken::new();
        let over = time_is_over.clone();
        let asked = context.stopping.token().clone();
        working.stop = asked.child_token();
        let (stop, limit) = (working.stop.clone(), arguments.for_seconds);
        let timer = tokio::spawn(async move {
            let Some(seconds) = limit else { return };
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            over.cancel();
            stop.cancel();
        });
        context.progress.begin("archiving", 0, 0);
        let sink = LogSink {
            context,
            repository: &repository,
            log: log.clone(),
            key: &key,
            place: &arguments.place,
            state: Mutex::new(Written {
                next: ChangeLog::next_number(&entries),
                spans: entries.iter().map(|entry| entry.span.clone()).collect(),
                ..Written::default()
            }),
        };
        let outcome = engine.archive(&working, &source, &start, &sink).await;
        timer.abort();
        context.remove_scratch(&working).await;
        let written = sink.state.into_inner();
        if let Some(merging) = written.merging {
            merging.abort();
        }
        match outcome {
            Err(EngineError::Stopped) | Ok(()) if time_is_over.is_cancelled() => {
                Ok(ArchiveOutput {
                    database: database.name.to_string(),
                    bytes: written.bytes,
                    objects: written.objects,
                    until: written.until,
                    gaps: written.gaps,
                })
            }
            Ok(()) => Err(context.stopping.problem()),
            Err(error) => Err(context.problem(error)),
        }
    }
}

/// Writes batches into the log.
struct LogSink<'a> {
    context: &'a JobContext,
    repository: &'a TenantRepository,
    log: ChangeLog,
    key: &'a str,
    place: &'a BackupPlace,
    state: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    next: u64,
    /// What the log holds; of the run that is written only the outlines.
    spans: Vec<LogSpan>,
    objects: u64,
    bytes: u64,
    gaps: u64,
    until: Option<Timestamp>,
    has_base: bool,
    looked_for_base: Option<Instant>,
    /// Since when one is asked for.
    without_base: Option<Instant>,
    looked_for_merge: Option<Instant>,
    merging: Option<JoinHandle<()>>,
}

#[async_trait]
impl ChangeSink for LogSink<'_> {
    async fn append(&self, batch: ChangeBatch) -> Result<(), EngineError> {
        let mut state = self.state.lock().await;
        let part = LogPart {
            span: batch.span(batch.continues && state.next > 1),
            moments: batch.moments,
            bytes: batch.bytes,
        };
        let is_ours = self
            .log
            .append(state.next, &part, &*self.context.repository_fence())
            .await
            .map_err(Problem::from)?;
        if !is_ours {
            return Err(EngineError::Outside(Problem::transient(
                "archive.superseded",
                "another attempt archives this database by now",
                "if no other job does, this one goes on by itself",
            )));
        }
        state.next += 1;
        state.objects += 1;
        state.bytes += part.bytes.len() as u64;
        state.until = part.moments.last().map(|last| last.until).or(state.until);
        if !part.span.continues {
            if state.next > 2 {
                state.gaps += 1;
                self.say_gap(state.spans.last(), &part.span).await;
            }
            state.has_base = false;
            state.looked_for_base = None;
            state.without_base = None;
        }
        state.note(part.span);
        self.look_for_base(&mut state).await?;
        self.merge(&mut state);
        Ok(())
    }

    async fn warn(&self, what: &str) {
        tracing::warn!("{what}");
        self.context.ledger.log(what).await;
    }
}

impl Written {
    /// Adds a span; the outlines of a run are enough to see what lies in it.
    fn note(&mut self, span: LogSpan) {
        match self.spans.last_mut() {
            Some(last) if span.continues && last.history == span.history => {
                last.end = span.end;
                let edges: Vec<LogMoment> = [last.edges, span.edges]
                    .into_iter()
                    .flatten()
                    .flat_map(|(first, last)| [first, last])
                    .collect();
                last.edges = edges.first().copied().zip(edges.last().copied());
            }
            _ => self.spans.push(span),
        }
    }

    /// The server's history that is archived now, and where the run of changes without a gap begins.
    fn run(&self) -> (String, u64) {
        let mut run = (String::new(), 0);
        for span in &self.spans {
            if !span.continues || span.history != run.0 {
                run = (span.history.clone(), span.begin);
            }
        }
        run
    }
}

impl LogSink<'_> {
    /// Tells of changes that are missing.
    async fn say_gap(&self, before: Option<&LogSpan>, after: &LogSpan) {
        let until = before.and_then(|span| span.edges).map_or_else(
            || "the last object".to_owned(),
            |(_, last)| last.until.to_string(),
        );
        let text = format!(
            "gap: the server does not have what came behind {until} any more; what is archived goes on at offset {} of {}",
            after.begin, after.history
        );
        tracing::warn!("{text}");
        self.context.ledger.log(&text).await;
    }

    /// Asks for a backup while none lies in what is being archived.
    async fn look_for_base(&self, state: &mut Written) -> Result<(), EngineError> {
        if state.has_base
            || state
                .looked_for_base
                .is_some_and(|looked| looked.elapsed() < LOOK_FOR_BASE_EVERY)
        {
            return Ok(());
        }
        state.looked_for_base = Some(Instant::now());
        let bases = bases(self.repository, self.key)
            .await
            .map_err(Problem::from)?;
        state.has_base = Timeline::new(&state.spans, &bases).end_has_a_base();
        if state.has_base {
            return Ok(());
        }
        let since = *state.without_base.get_or_insert_with(Instant::now);
        let asks = since.elapsed().as_secs() / ASK_FOR_BASE_EVERY.as_secs();
        let (history, begin) = state.run();
        let arguments = BackupArguments {
            place: self.place.clone(),
            ..BackupArguments::default()
        };
        let database = self.context.job.database;
        let job = self
            .context
            .ledger
            .submit(JobRequest {
                tenant: self.context.job.tenant.clone(),
                kind: Backup::NAME
                    .parse()
                    .expect("the names of job kinds are valid"),
                kind_version: <Backup as JobKind>::VERSION,
                database,
                arguments: serde_json::to_value(arguments).expect("the arguments hold only text"),
                exclusion: Backup::EXCLUSION,
                slot: Backup::SLOT,
                priority: Priority::default(),
                not_before: None,
                deadline: None,
                max_tries: Backup::MAX_TRIES,
                // The same key gives the same job, also one that has ended: each run of changes has a key of its own.
                unique_key: database
                    .map(|database| format!("archive-base/{database}/{history}/{begin}/{asks}")),
                retry_of: None,
                tags: self.context.job.tags.clone(),
                terms: JobTerms::default(),
            })
            .await?;
        self.context
            .ledger
            .log(&format!(
                "no backup lies in what is archived: job {} makes one",
                job.short()
            ))
            .await;
        Ok(())
    }

    /// Merges old objects beside the work.
    fn merge(&self, state: &mut Written) {
        let is_busy = state
            .merging
            .as_ref()
            .is_some_and(|merging| !merging.is_finished());
        let is_early = state
            .looked_for_merge
            .is_some_and(|looked| looked.elapsed() < MERGE_EVERY);
        if is_busy || is_early {
            return;
        }
        state.looked_for_merge = Some(Instant::now());
        let (log, fence) = (self.log.clone(), self.context.repository_fence());
        state.merging = Some(tokio::spawn(async move {
            loop {
                match log.merge(&*fence).await {
                    Ok(0) => return,
                    Ok(merged) => tracing::debug!(merged, "merged objects of the log"),
                    Err(error) => {
                        tracing::warn!(%error, "objects of the log could not be merged");
                        return;
                    }
                }
            }
        }));
    }
}
