//! A backup by the server: shadows of all tables, a `BACKUP` of them under the names of their originals, and meanwhile their
//! fingerprints.
//!
//! What an attempt leaves to the next one are the shadows and the name of the backup, running or done: the server goes on by
//! itself, and whoever comes next only makes the fingerprints of the same shadows.

use std::collections::{BTreeMap, BTreeSet};

use fettler_engine::{BackupOptions, BackupReport, EngineContext, EngineError, StreamSink, Target};
use fettler_model::Warning;
use serde::{Deserialize, Serialize};

use super::{
    LONG_STATEMENT, LOOK_EVERY, OwnBackup, OwnTable, Status, look,
    place::{Place, name_of},
    refused, remove, require_backups,
};
use crate::{
    backup::{Kind, OfServer, TableRecord, catalogue_of, end_predecessors, report},
    catalogue::{Catalogue, Content},
    error::Refusal,
    http::Session,
    params::Params,
    pieces::{Reading, Shadowed, jobs_of, make_shadows, read_all},
    select::Excluded,
    shadow::{Piece, Scratch},
    space::Floor,
    sql::{literal, table as full_table},
};

/// What an attempt leaves to the next one.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Checkpoint {
    place: String,
    /// The name of the backup that was asked for.
    name: String,
    /// The scratch database of the shadows.
    scratch: String,
    catalogue: Catalogue,
    tables: Vec<TableRecord>,
    pieces: Vec<(usize, Piece)>,
    warnings: Vec<Warning>,
}

/// What all parts of the work share.
struct Making<'a> {
    context: &'a EngineContext,
    session: &'a Session,
    place: Place,
}

/// Lets a server back itself up.
pub(crate) async fn backup(
    context: &EngineContext,
    source: &Target,
    options: &BackupOptions,
    place: &str,
    sink: &dyn StreamSink,
) -> Result<BackupReport, EngineError> {
    context.progress.begin("prepare", 0, 0);
    let place = Place::read(place)?;
    let params = Params::of(source)?;
    if params.cluster.is_some() {
        return Err(EngineError::Missing {
            code: "by_server",
            what: "a server's own backup is that of one server, and the URL names a cluster".to_owned(),
            remedy: "leave `cluster` out of the URL, and back each shard's server up by itself; or leave `--by-server` out".to_owned(),
        });
    }
    let excluded = Excluded::of(&options.exclude)?;
    let session = Session::of_attempt(&params, context).await?;
    require_backups(&session).await?;
    let making = Making {
        context,
        session: &session,
        place,
    };
    let (begun, scratch) = match making.left().await? {
        Some(left) => left,
        None => making.begin(&params, &excluded).await?,
    };
    let made = making.read_and_watch(&begun, sink).await;
    let (tables, totals, own) = match made {
        // What runs goes on, and the next attempt finds it.
        Err(EngineError::Stopped) => return Err(EngineError::Stopped),
        Err(error) => {
            remove::end(&session, &begun.name).await?;
            scratch.drop(&session, context).await?;
            return Err(error);
        }
        Ok(made) => made,
    };
    scratch.drop(&session, context).await?;
    let position = serde_json::json!({
        "method": "backup",
        "place": begun.place,
        "backup": begun.name,
        "moment": "each table at a moment of its own",
    });
    let mut warnings = vec![Warning {
        code: "clickhouse.by_server".to_owned(),
        message: format!(
            "the rows lie in {} as the server writes them there: Fettler neither encrypts nor verifies them",
            begun.place
        ),
    }];
    warnings.extend(begun.warnings);
    let read = OfServer {
        catalogue: begun.catalogue,
        tables,
        totals,
        warnings,
    };
    report(
        context,
        &session,
        &params,
        read,
        sink,
        Kind::Own(own),
        position,
    )
    .await
}

impl Making<'_> {
    /// What an earlier attempt asked for, if the server still is at it or done, and its shadows are there.
    async fn left(&self) -> Result<Option<(Checkpoint, Scratch)>, EngineError> {
        let Some(left) = self
            .context
            .checkpoints
            .load()
            .await?
            .and_then(|left| Checkpoint::deserialize(left).ok())
            .filter(|left| left.place == self.place.to_string())
        else {
            return Ok(None);
        };
        let status = look(self.session, &left.name).await?;
        if !status.is_some_and(|status| status.is_running() || status.is_done()) {
            return Ok(None);
        }
        let scratch = Scratch::left(self.session, self.context, &left.scratch).await?;
        match scratch {
            Some(scratch) => Ok(Some((left, scratch))),
            None => {
                remove::end(self.session, &left.name).await?;
                Ok(None)
            }
        }
    }

    /// Makes the shadows and asks for the backup.
    async fn begin(
        &self,
        params: &Params,
        excluded: &Excluded,
    ) -> Result<(Checkpoint, Scratch), EngineError> {
        end_predecessors(self.session, self.context).await?;
        let catalogue = catalogue_of(self.session, params).await?;
        let scratch = Scratch::make_until_job_ends(self.session, self.context).await?;
        let begun = self.ask(catalogue, excluded, &scratch).await;
        match begun {
            Ok(begun) => Ok((begun, scratch)),
            Err(EngineError::Stopped) => Err(EngineError::Stopped),
            Err(error) => {
                scratch.drop(self.session, self.context).await?;
                Err(error)
            }
        }
    }

    async fn ask(
        &self,
        catalogue: Catalogue,
        excluded: &Excluded,
        scratch: &Scratch,
    ) -> Result<Checkpoint, EngineError> {
        let context = self.context;
        let Shadowed {
            mut records,
            jobs,
            shadows,
            warnings,
        } = make_shadows(
            context,
            self.session,
            &scratch.name,
            &catalogue,
            excluded,
            Reading::Fingerprints,
        )
        .await?;
        let mut elements = Vec::new();
        for (at, shadow) in shadows {
            let record = &mut records[at];
            let database = record.definition.database.clone();
            let own = OwnTable {
                name: name_in_backup(record),
                is_linked: shadow.is_linked,
                partition_id: shadow.partition_id,
            };
            elements.push(format!(
                "TABLE {} AS {}",
                full_table(&scratch.name, &shadow.name),
                full_table(&database, &own.name)
            ));
            record.own.push(own);
        }
        elements.extend(records.iter().filter_map(definition_in_backup));
        if elements.is_empty() {
            return Err(EngineError::Missing {
                code: "by_server",
                what: format!(
                    "{} has nothing that a backup of its own could hold",
                    self.session.server()
                ),
                remedy: "leave `--by-server` out".to_owned(),
            });
        }
        let begun = Checkpoint {
            place: self.place.to_string(),
            name: name_of(context.attempt.job, context.attempt.token),
            scratch: scratch.name.clone(),
            catalogue,
            tables: records,
            pieces: jobs.into_iter().map(|job| (job.table, job.piece)).collect(),
            warnings,
        };
        context
            .checkpoints
            .save(serde_json::to_value(&begun).expect("plain data can be JSON"))
            .await?;
        let ask = format!(
            "BACKUP {} TO {} SETTINGS id = {} ASYNC",
            elements.join(", "),
            self.place.destination(&begun.name),
            literal(&begun.name)
        );
        context.check_stop()?;
        context.fence.check().await?;
        let doing = "asking for a backup";
        let asked = self.session.try_run(&ask, &LONG_STATEMENT, doing).await?;
        asked.map_err(|refusal| self.refused(&refusal))?;
        Ok(begun)
    }

    fn refused(&self, refusal: &Refusal) -> EngineError {
        let place = self.place.to_string();
        refused(
            &self.session.server(),
            refusal,
            "backing up by itself",
            &place,
        )
    }

    /// Makes the fingerprints while the server copies.
    async fn read_and_watch(
        &self,
        begun: &Checkpoint,
        sink: &dyn StreamSink,
    ) -> Result<(Vec<TableRecord>, Vec<crate::pieces::Totals>, OwnBackup), EngineError> {
        let mut tables = begun.tables.clone();
        let mut of_tables: BTreeMap<usize, Vec<Piece>> = BTreeMap::new();
        for (at, piece) in &begun.pieces {
            of_tables.entry(*at).or_default().push(piece.clone());
        }
        let jobs = of_tables
            .into_iter()
            .flat_map(|(at, pieces)| jobs_of(&tables[at], at, pieces, Reading::Fingerprints))
            .collect::<Vec<_>>();
        let rows = jobs.iter().filter_map(|job| job.piece.rows).sum();
        self.context
            .progress
            .begin("the server's backup, and fingerprints", 0, rows);
        let floor = Floor::of(self.session).await?;
        let work = async {
            let reading = read_all(self.context, self.session, jobs, &mut tables, sink);
            tokio::try_join!(reading, self.watch(&begun.name))
        };
        let (mut totals, status) = tokio::select! {
            full = floor.watch(self.session) => return Err(full),
            done = work => done?,
        };
        // Nothing of the rows passes here: the server says how much they are.
        let bytes = self.bytes(&begun.scratch).await?;
        let mut counted = BTreeSet::new();
        for total in &mut totals {
            total.bytes = 0;
        }
        for (at, piece) in &begun.pieces {
            if counted.insert(&piece.table) {
                totals[*at].bytes += bytes.get(&piece.table).copied().unwrap_or(0);
            }
        }
        let own = OwnBackup {
            place: begun.place.clone(),
            name: begun.name.clone(),
            files: status.files,
            bytes: status.bytes,
        };
        Ok((tables, totals, own))
    }

    /// The bytes of each shadow, by its quoted name.
    async fn bytes(&self, scratch: &str) -> Result<BTreeMap<String, u64>, EngineError> {
        let rows = self
            .session
            .rows(
                &format!(
                    "SELECT table, toString(sum(data_uncompressed_bytes)) FROM system.parts WHERE active AND database = {} GROUP BY table",
                    literal(scratch)
                ),
                "asking for the sizes of shadows",
            )
            .await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| <[String; 2]>::try_from(row).ok())
            .map(|[table, bytes]| (full_table(scratch, &table), bytes.parse().unwrap_or(0)))
            .collect())
    }

    async fn watch(&self, name: &str) -> Result<Status, EngineError> {
        loop {
            let Some(status) = look(self.session, name).await? else {
                return Err(EngineError::Database {
                    what: format!(
                        "{} knows nothing of the backup {name} any more: it was started again",
                        self.session.server()
                    ),
                    transient: true,
                });
            };
            if status.is_done() {
                return Ok(status);
            }
            if !status.is_running() {
                return Err(self.refused(&Refusal::read(&status.error)));
            }
            self.context.progress.pulse();
            self.context
                .stop
                .run_until_cancelled(tokio::time::sleep(LOOK_EVERY))
                .await
                .ok_or(EngineError::Stopped)?;
        }
    }
}

/// What a table's rows are called in the backup. Those of a view lie in a table that the view hides.
fn name_in_backup(record: &TableRecord) -> String {
    let name = &record.definition.name;
    let base = match record.definition.inner {
        Some(_) => format!(".inner.{name}"),
        None => name.clone(),
    };
    match record.own.len() {
        0 => base,
        // Rows that could not be linked with the others.
        more => format!(".copied{more}.{base}"),
    }
}

/// What has a definition and no rows, and speaks with nobody: a definition of the others may hold a secret.
fn definition_in_backup(record: &TableRecord) -> Option<String> {
    let table = &record.definition;
    if table.content != Content::Definition {
        return None;
    }
    let name = full_table(&table.database, &table.name);
    let word = if table.create.starts_with("CREATE DICTIONARY") {
        return None;
    } else if table.is_view() {
        "VIEW"
    } else {
        "TABLE"
    };
    Some(format!("{word} {name}"))
}
