//! The shadow of a table: its rows as they are at one moment, in a scratch database, where nothing changes them.
//!
//! Tables of the MergeTree family give their parts by hard links, which takes an instant and no space, into an empty table whose
//! merges were stopped before it had a part. What cannot be had that way is copied by the server itself: tables without
//! parts, partitions under patches (lightweight updates, whose change lies beside the part), tables with mutations that are
//! not done. A copy takes space and time, and is said.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use fettler_engine::{Artefact, EngineContext, EngineError};
use fettler_model::{Engine, JobId, Warning};
use serde::{Deserialize, Serialize};

use crate::{
    catalogue::{Content, SCRATCH_PREFIX, TableDefinition},
    error::{Refusal, codes},
    fingerprint::AS_STORED,
    freeze,
    http::{Session, Setting},
    sql::{literal, quoted, table as full_table, without_replication},
};

/// How long emptying a scratch database may take; who comes later finds less to do.
const EMPTY_WITHIN: Duration = Duration::from_secs(600);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Dropping is not refused for its size: nobody else's rows are dropped.
pub(crate) const DROP_ANY_SIZE: [Setting; 2] = [
    ("max_table_size_to_drop", "0"),
    ("max_partition_size_to_drop", "0"),
];
/// Rows in the order in which they lie, and mutations that are not done as if they were.
const COPYING: [Setting; 4] = [
    ("max_threads", "1"),
    ("max_insert_threads", "1"),
    ("apply_mutations_on_fly", "1"),
    ("optimize_on_insert", "0"),
];

/// Something that is read in one piece.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    /// The table that it is in, quoted.
    pub(crate) table: String,
    /// The part's name there.
    pub(crate) part: String,
    pub(crate) partition_id: String,
    /// The partition as the server shows it.
    pub(crate) partition: String,
    /// How many rows the server counts, without reading them; nothing where it counts deleted ones too.
    pub(crate) rows: Option<u64>,
    /// What says that its bytes are those of a part of an earlier backup.
    pub(crate) hash: Option<String>,
}

/// A scratch database.
#[derive(Clone, Debug)]
pub(crate) struct Scratch {
    pub(crate) name: String,
    artefact: Artefact,
}

/// What a job's scratch databases are called before the token.
fn prefix_of(job: JobId) -> String {
    format!("{SCRATCH_PREFIX}{}_", job.uuid().simple())
}

/// A database that was made by Fettler, as it is recorded.
pub(crate) fn database_artefact(name: &str) -> Artefact {
    Artefact {
        engine: Engine::Clickhouse,
        kind: "database".to_owned(),
        name: name.to_owned(),
        data: serde_json::Value::Null,
        until_job_ends: false,
    }
}

impl Scratch {
    /// Makes one for an attempt, after what earlier attempts of the job left is gone.
    pub(crate) async fn make(
        session: &Session,
        context: &EngineContext,
    ) -> Result<Self, EngineError> {
        Self::make_as(session, context, "", serde_json::Value::Null, false).await
    }

    /// The same, which is left to the job's next attempt when this one dies.
    pub(crate) async fn make_until_job_ends(
        session: &Session,
        context: &EngineContext,
    ) -> Result<Self, EngineError> {
        Self::make_as(session, context, "", serde_json::Value::Null, true).await
    }

    /// The same on a shard of a cluster: its record says which server has it.
    pub(crate) async fn make_on_shard(
        session: &Session,
        context: &EngineContext,
        shard: u32,
    ) -> Result<Self, EngineError> {
        let data = serde_json::json!({ "host": session.params().host });
        let suffix = format!("_shard{shard}");
        Self::make_as(session, context, &suffix, data, false).await
    }

    async fn make_as(
        session: &Session,
        context: &EngineContext,
        suffix: &str,
        data: serde_json::Value,
        until_job_ends: bool,
    ) -> Result<Self, EngineError> {
        let prefix = prefix_of(context.attempt.job);
        let left = session
            .rows(
                "SELECT name FROM system.databases",
                "looking for what an earlier attempt left",
            )
            .await?;
        for name in left.into_iter().flatten() {
            if name.starts_with(&prefix) {
                context.fence.check().await?;
                drop_database(session, &name).await?;
            }
        }
        let name = format!("{prefix}{}{suffix}", context.attempt.token);
        let artefact = Artefact {
            data,
            until_job_ends,
            ..database_artefact(&name)
        };
        context.artefacts.record(&artefact).await?;
        context.fence.check().await?;
        session
            .run(
                &format!("CREATE DATABASE {}", quoted(&name)),
                &[],
                "making a scratch database",
            )
            .await?;
        Ok(Self { name, artefact })
    }

    /// The one that an earlier attempt of the job made and left, which is this attempt's from now on; nothing where it is gone.
    pub(crate) async fn left(
        session: &Session,
        context: &EngineContext,
        name: &str,
    ) -> Result<Option<Self>, EngineError> {
        let there = session
            .rows(
                &format!(
                    "SELECT name FROM system.databases WHERE name = {}",
                    literal(name)
                ),
                "looking for what an earlier attempt left",
            )
            .await?;
        if there.is_empty() || !name.starts_with(&prefix_of(context.attempt.job)) {
            return Ok(None);
        }
        let artefact = Artefact {
            until_job_ends: true,
            ..database_artefact(name)
        };
        context.artefacts.record(&artefact).await?;
        Ok(Some(Self {
            name: name.to_owned(),
            artefact,
        }))
    }

    /// Drops it with all that is in it.
    pub(crate) async fn drop(
        self,
        session: &Session,
        context: &EngineContext,
    ) -> Result<(), EngineError> {
        drop_database(session, &self.name).await?;
        context.artefacts.removed(&self.artefact).await
    }
}

/// Drops a database of ours, whatever is in it and however large it is. Where the limit on drops is no setting of a statement
/// (before 23.12), its tables are emptied first.
pub(crate) async fn drop_database(session: &Session, name: &str) -> Result<(), EngineError> {
    let doing = "dropping a scratch database";
    let drop = format!("DROP DATABASE IF EXISTS {}", quoted(name));
    match session.try_run(&drop, &DROP_ANY_SIZE, doing).await? {
        Ok(()) => return Ok(()),
        Err(refusal) if refusal.code == codes::TOO_LARGE_TO_DROP => {}
        Err(refusal) => return Err(refusal.doing(&session.server(), doing)),
    }
    empty_tables(session, name, doing).await?;
    session.run(&drop, &DROP_ANY_SIZE, doing).await
}

/// Takes all rows out of a database's tables by mutations: the limit on drops holds for replaced and detached partitions too,
/// and not for rows that are deleted. Waits until it is done.
async fn empty_tables(session: &Session, database: &str, doing: &str) -> Result<(), EngineError> {
    let filled = format!(
        "SELECT DISTINCT table FROM system.parts WHERE active AND rows > 0 AND database = {}",
        literal(database)
    );
    for table in session.rows(&filled, doing).await?.into_iter().flatten() {
        let table = full_table(database, &table);
        // What stops merges stops mutations too.
        session
            .run(&format!("SYSTEM START MERGES {table}"), &[], doing)
            .await?;
        session
            .run(&format!("ALTER TABLE {table} DELETE WHERE 1"), &[], doing)
            .await?;
    }
    let begun = Instant::now();
    while !session.rows(&filled, doing).await?.is_empty() {
        if begun.elapsed() > EMPTY_WITHIN {
            return Err(EngineError::Busy {
                wait: EMPTY_WITHIN,
                what: format!(
                    "{database} is larger than the server's limit on drops, and is not emptied after {} s",
                    EMPTY_WITHIN.as_secs()
                ),
            });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Makes shadows in a scratch database.
#[derive(Debug)]
pub(crate) struct Shadows<'a> {
    session: &'a Session,
    scratch: &'a str,
    /// Tables with mutations that are not done.
    mutating: BTreeSet<(String, String)>,
    has_hashes: bool,
    has_masks: bool,
    pub(crate) warnings: Vec<Warning>,
    /// What was made since somebody took it away.
    pub(crate) made: Vec<Shadow>,
    numbered: usize,
}

/// A table in the scratch database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shadow {
    /// Its name there.
    pub(crate) name: String,
    /// Whether its parts are those of the original, and not a copy of rows.
    pub(crate) is_linked: bool,
    /// The one partition that it is a copy of.
    pub(crate) partition_id: Option<String>,
}

impl<'a> Shadows<'a> {
    pub(crate) async fn new(session: &'a Session, scratch: &'a str) -> Result<Self, EngineError> {
        let mutating = session
            .rows(
                "SELECT DISTINCT database, table FROM system.mutations WHERE NOT is_done",
                "looking for mutations",
            )
            .await?
            .into_iter()
            .filter_map(|row| <[String; 2]>::try_from(row).ok())
            .map(|[database, table]| (database, table))
            .collect();
        Ok(Self {
            session,
            scratch,
            mutating,
            has_hashes: session.has_column("parts", "hash_of_all_files").await?,
            has_masks: session
                .has_column("parts", "has_lightweight_delete")
                .await?,
            warnings: Vec::new(),
            made: Vec::new(),
            numbered: 0,
        })
    }

    /// Makes the shadow of a table; gives its pieces in their order. A table that is gone has none: `None`.
    pub(crate) async fn of(
        &mut self,
        table: &TableDefinition,
    ) -> Result<Option<Vec<Piece>>, EngineError> {
        let place = (
            table.database.clone(),
            table.inner.clone().unwrap_or_else(|| table.name.clone()),
        );
        let source = full_table(&place.0, &place.1);
        if table.content == Content::Parts && !self.mutating.contains(&place) {
            return self.linked(table, &place, &source).await;
        }
        if table.content == Content::Parts {
            self.warn(table, "has mutations that are not done");
        }
        self.copied(table, &source, None).await
    }

    /// Links a table's parts.
    async fn linked(
        &mut self,
        table: &TableDefinition,
        place: &(String, String),
        source: &str,
    ) -> Result<Option<Vec<Piece>>, EngineError> {
        let name = self.next_name(true, None);
        let shadow = full_table(self.scratch, &name);
        let doing = format!("making a shadow of {}", table.full_name());
        let described = self
            .session
            .rows(
                &format!(
                    "SELECT engine, engine_full FROM system.tables WHERE database = {} AND name = {}",
                    literal(&place.0),
                    literal(&place.1)
                ),
                &doing,
            )
            .await?;
        let Some([engine, engine_full]) = described
            .into_iter()
            .next()
            .and_then(|row| <[String; 2]>::try_from(row).ok())
        else {
            return Ok(None);
        };
        // A replica's name may be taken once.
        let own_engine = if engine.starts_with("Replicated") {
            format!(" ENGINE = {}", without_replication(&engine_full))
        } else {
            String::new()
        };
        let create = format!("CREATE TABLE {shadow} AS {source}{own_engine}");
        if let Err(refusal) = self.session.try_run(&create, &LOOSE_TYPES, &doing).await? {
            if refusal.code == crate::error::codes::UNKNOWN_TABLE {
                return Ok(None);
            }
            return Err(refusal.doing(&self.session.server(), &doing));
        }
        self.stop_merges(&shadow).await?;
        let all = format!("ALTER TABLE {shadow} ATTACH PARTITION ALL FROM {source}");
        let mut pieces = Vec::new();
        if self.session.try_run(&all, &[], &doing).await?.is_err() {
            // An old server, or a table of which some partition cannot be linked.
            let warnings = self.warnings.len();
            let partitions = self.partitions(place).await?;
            if partitions.len() > 1 {
                self.warnings.push(Warning {
                    code: "clickhouse.partitions_not_one_moment".to_owned(),
                    message: format!(
                        "the partitions of {} were linked one after another: each is as it was at one moment, and not all at the same one",
                        table.full_name()
                    ),
                });
            }
            let mut is_first = true;
            for partition in partitions {
                let one = format!(
                    "ALTER TABLE {shadow} ATTACH PARTITION ID {} FROM {source}",
                    literal(&partition)
                );
                let linked = self.session.try_run(&one, &[], &doing).await?;
                let has_none = std::mem::take(&mut is_first)
                    && linked.as_ref().is_err_and(Refusal::is_not_understood);
                if has_none && freeze::link(self.session, place, self.scratch, &name).await? {
                    // All partitions, at one moment.
                    self.warnings.truncate(warnings);
                    break;
                }
                if let Err(refusal) = linked {
                    self.warn(
                        table,
                        &format!("cannot be linked in its partition {partition} ({refusal})"),
                    );
                    pieces.extend(
                        self.copied(table, source, Some(&partition))
                            .await?
                            .unwrap_or_default(),
                    );
                }
            }
        }
        pieces.extend(self.pieces(&name, true, None).await?);
        Ok(Some(pieces))
    }

    async fn partitions(&self, place: &(String, String)) -> Result<Vec<String>, EngineError> {
        let rows = self
            .session
            .rows(
                &format!(
                    "SELECT DISTINCT partition_id FROM system.parts WHERE active AND database = {} AND table = {} AND partition_id NOT LIKE 'patch-%' ORDER BY partition_id",
                    literal(&place.0),
                    literal(&place.1)
                ),
                "listing partitions",
            )
            .await?;
        Ok(rows.into_iter().flatten().collect())
    }

    /// Lets the server copy a table's rows, or those of one partition.
    async fn copied(
        &mut self,
        table: &TableDefinition,
        source: &str,
        partition: Option<&str>,
    ) -> Result<Option<Vec<Piece>>, EngineError> {
        let name = self.next_name(false, partition);
        let copy = full_table(self.scratch, &name);
        let doing = format!("copying {}", table.full_name());
        let stored = table.stored();
        let columns: Vec<String> = stored
            .iter()
            .map(|(name, kind)| format!("{} {kind}", quoted(name)))
            .collect();
        let names: Vec<String> = stored.iter().map(|(name, _)| quoted(name)).collect();
        self.session
            .run(
                &format!(
                    "CREATE TABLE {copy} ({}) ENGINE = MergeTree ORDER BY tuple()",
                    columns.join(", ")
                ),
                &LOOSE_TYPES,
                &doing,
            )
            .await?;
        self.stop_merges(&copy).await?;
        let condition = partition.map_or_else(String::new, |partition| {
            format!(" WHERE _partition_id = {}", literal(partition))
        });
        let names = names.join(", ");
        let insert =
            format!("INSERT INTO {copy} ({names}) SELECT {names} FROM {source}{condition}");
        let settings = [AS_STORED.as_slice(), &COPYING].concat();
        if let Err(refusal) = self.session.try_run(&insert, &settings, &doing).await? {
            if refusal.code == crate::error::codes::UNKNOWN_TABLE {
                return Ok(None);
            }
            return Err(refusal.doing(&self.session.server(), &doing));
        }
        self.pieces(&name, false, partition).await.map(Some)
    }

    async fn stop_merges(&self, table: &str) -> Result<(), EngineError> {
        stop_merges(self.session, table).await
    }

    /// The parts of a shadow; of a copy with the partition that it is a copy of.
    pub(crate) async fn pieces(
        &self,
        name: &str,
        is_linked: bool,
        partition: Option<&str>,
    ) -> Result<Vec<Piece>, EngineError> {
        let hash = if self.has_hashes {
            "hash_of_all_files"
        } else {
            "''"
        };
        let mask = if self.has_masks {
            "toString(has_lightweight_delete)"
        } else {
            "'0'"
        };
        let rows = self
            .session
            .rows(
                &format!(
                    "SELECT name, partition_id, partition, toString(rows), {hash}, {mask} FROM system.parts WHERE active AND database = {} AND table = {} ORDER BY partition_id, min_block_number, name",
                    literal(self.scratch),
                    literal(name)
                ),
                "listing the parts of a shadow",
            )
            .await?;
        let table = full_table(self.scratch, name);
        Ok(rows
            .into_iter()
            .filter_map(|row| <[String; 6]>::try_from(row).ok())
            .map(|[part, partition_id, shown, rows, hash, mask]| {
                let is_masked = mask != "0";
                Piece {
                    table: table.clone(),
                    part,
                    partition_id: partition.map_or(partition_id, str::to_owned),
                    partition: partition.map_or(shown, str::to_owned),
                    rows: rows.parse().ok().filter(|_| !is_masked),
                    hash: Some(hash).filter(|hash| is_linked && !is_masked && !hash.is_empty()),
                }
            })
            .collect())
    }

    fn next_name(&mut self, is_linked: bool, partition_id: Option<&str>) -> String {
        self.numbered += 1;
        let name = format!("t{}", self.numbered);
        self.made.push(Shadow {
            name: name.clone(),
            is_linked,
            partition_id: partition_id.map(str::to_owned),
        });
        name
    }

    fn warn(&mut self, table: &TableDefinition, why: &str) {
        self.warnings.push(Warning {
            code: "clickhouse.copied".to_owned(),
            message: format!(
                "{} {why}: the server copied those rows to give them as they were at one moment",
                table.full_name()
            ),
        });
    }
}

/// Stops merges of a table that is quoted.
pub(crate) async fn stop_merges(session: &Session, table: &str) -> Result<(), EngineError> {
    session
        .run(
            &format!("SYSTEM STOP MERGES {table}"),
            &[],
            "stopping merges",
        )
        .await
}

/// Types that a server asks a sign of consent for, which whoever made the table gave.
pub(crate) const LOOSE_TYPES: [Setting; 13] = [
    ("flatten_nested", "0"),
    ("allow_experimental_low_cardinality_type", "1"),
    ("allow_suspicious_low_cardinality_types", "1"),
    ("allow_suspicious_fixed_string_types", "1"),
    ("allow_suspicious_variant_types", "1"),
    ("allow_suspicious_codecs", "1"),
    ("allow_suspicious_ttl_expressions", "1"),
    ("allow_suspicious_indices", "1"),
    ("allow_experimental_json_type", "1"),
    ("allow_experimental_dynamic_type", "1"),
    ("allow_experimental_variant_type", "1"),
    ("allow_experimental_object_type", "1"),
    ("allow_experimental_decimal_type", "1"),
];
