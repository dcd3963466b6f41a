//! What is restored, where to, and what is in the way there.

use std::collections::{BTreeMap, BTreeSet};

use fettler_engine::{EngineContext, EngineError, StreamSource};

use super::{has_stand_in, is_chosen};
use crate::{
    backup::{Definitions, PartStream, TableRecord},
    catalogue::Content,
    cluster::Share,
    http::Session,
    mapping::Mapping,
    params::Params,
    select::{Chosen, Selection},
    shadow::DROP_ANY_SIZE,
    sql::{
        literal, quoted, table as full_table, with_databases_renamed, with_materialized_as_default,
        without_replication,
    },
};

/// How to go on where something is in the way.
const REPLACE_IT: &str = "name another server or another database (`clickhouse://host/other`, with `--only` for one database), or say that what is there may be replaced (`--overwrite`)";
/// The first version whose `DROP TABLE` can be waited for.
const SYNC_SINCE: (u32, u32) = (20, 10);

/// A table that is restored.
#[derive(Debug)]
pub(super) struct Planned<'a> {
    pub(super) record: &'a TableRecord,
    pub(super) chosen: Chosen,
    /// Its database and name there.
    pub(super) target: (String, String),
    create: String,
    stand_in: bool,
    share: Share,
}

impl Planned<'_> {
    /// Its name at the source.
    pub(super) fn source_name(&self) -> String {
        self.record.definition.full_name()
    }

    /// Its name there, quoted.
    pub(super) fn place(&self) -> String {
        full_table(&self.target.0, &self.target.1)
    }

    /// Whether MATERIALIZED columns have to be ordinary ones until they have their values.
    pub(super) fn materializes_late(&self, session: &Session) -> bool {
        !session.knows("insert_allow_materialized_columns")
            && self.record.definition.content == Content::Parts
            && !self.record.definition.is_view()
            && self
                .record
                .definition
                .columns
                .iter()
                .any(|column| column.default_kind == "MATERIALIZED")
    }

    /// The statement that makes it.
    pub(super) fn create(&self, session: &Session) -> String {
        if self.stand_in {
            let columns: Vec<String> = self
                .record
                .definition
                .columns
                .iter()
                .filter(|column| column.is_stored())
                .map(|column| format!("{} {}", quoted(&column.name), column.kind))
                .collect();
            return format!(
                "CREATE TABLE {} ({}) ENGINE = Null",
                self.place(),
                columns.join(", ")
            );
        }
        if self.materializes_late(session) {
            return with_materialized_as_default(&self.create);
        }
        self.create.clone()
    }

    /// The streams of its rows that were chosen.
    pub(super) fn parts(&self) -> Vec<&PartStream> {
        self.parts_of_all()
            .filter(|part| self.share.has(self.record, part))
            .collect()
    }

    /// The same, of all servers that get some.
    fn parts_of_all(&self) -> impl Iterator<Item = &PartStream> {
        self.record.parts.iter().filter(|part| match &self.chosen {
            Chosen::Nothing => false,
            Chosen::Everything => true,
            Chosen::Partitions(wanted) => wanted
                .iter()
                .any(|one| *one == part.partition_id || *one == part.partition),
        })
    }

    /// Whether another replica fills it: nothing may be done with its rows here.
    pub(super) fn is_filled_elsewhere(&self) -> bool {
        self.share.leaves_to_others(self.record)
    }

    /// The ids of the partitions that were chosen; nothing where the whole table was.
    pub(super) fn partition_ids(&self) -> Option<BTreeSet<String>> {
        matches!(self.chosen, Chosen::Partitions(_)).then(|| {
            let parts = self.parts();
            parts.iter().map(|part| part.partition_id.clone()).collect()
        })
    }
}

/// A restore.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) tables: Vec<Planned<'a>>,
    whole_databases: Vec<String>,
}

impl<'a> Plan<'a> {
    /// Makes the plan.
    ///
    /// # Errors
    ///
    /// Where something was chosen that the backup has not, or several databases would have one name.
    pub(super) fn make(
        definitions: &'a Definitions,
        params: &Params,
        selection: &Selection,
        share: Share,
    ) -> Result<Self, EngineError> {
        let names: Vec<String> = definitions
            .tables
            .iter()
            .map(|record| record.definition.full_name())
            .collect();
        if let Some(unused) = selection.unused(&names).first() {
            let mut some: Vec<&str> = names.iter().map(String::as_str).take(10).collect();
            if names.len() > some.len() {
                some.push("…");
            }
            return Err(EngineError::Missing {
                code: "selection",
                what: format!("the backup has nothing that `{unused}` names"),
                remedy: format!("it has {}", some.join(", ")),
            });
        }
        let chosen: Vec<(&TableRecord, Chosen)> = definitions
            .tables
            .iter()
            .map(|record| (record, selection.of_table(&record.definition.full_name())))
            .filter(|(_, chosen)| is_chosen(chosen))
            .collect();
        let mut databases: BTreeSet<String> = chosen
            .iter()
            .map(|(record, _)| record.definition.database.clone())
            .collect();
        if selection.is_everything() {
            databases.extend(definitions.databases.keys().cloned());
        }
        let databases: Vec<String> = databases.into_iter().collect();
        let mapping = Mapping::of(params, &databases)?;
        let rename = |name: &str| {
            definitions
                .databases
                .contains_key(name)
                .then(|| mapping.at_target(name))
        };
        let tables: Vec<Planned<'a>> = chosen
            .into_iter()
            .map(|(record, chosen)| {
                let definition = &record.definition;
                let mut create = with_databases_renamed(&definition.create, &rename);
                if params.plain_replicated || params.sandbox_prefix.is_some() {
                    create = without_replication(&create);
                }
                Planned {
                    record,
                    chosen,
                    target: (
                        mapping.at_target(&definition.database),
                        definition.name.clone(),
                    ),
                    create,
                    stand_in: has_stand_in(definition.content, params),
                    share,
                }
            })
            .collect();
        for table in &tables {
            if let Chosen::Partitions(wanted) = &table.chosen
                && table.parts_of_all().next().is_none()
            {
                return Err(EngineError::Missing {
                    code: "selection",
                    what: format!(
                        "the backup of {} has no partition {}",
                        table.source_name(),
                        wanted.join(", ")
                    ),
                    remedy: format!("it has {}", partitions_of(table.record)),
                });
            }
        }
        Ok(Self {
            tables,
            whole_databases: databases
                .iter()
                .map(|name| mapping.at_target(name))
                .collect(),
        })
    }

    /// The databases that are needed there.
    pub(super) fn databases(&self) -> BTreeSet<String> {
        self.whole_databases.iter().cloned().collect()
    }

    /// Bytes of the streams that are read.
    pub(super) fn bytes(&self, backup: &dyn StreamSource) -> u64 {
        let bytes: BTreeMap<&str, u64> = backup
            .streams()
            .iter()
            .map(|stream| (stream.name.as_str(), stream.bytes))
            .collect();
        self.tables
            .iter()
            .flat_map(Planned::parts)
            .filter_map(|part| bytes.get(part.stream.as_str()))
            .sum()
    }

    /// Which of the tables are there.
    pub(super) async fn existing(
        &self,
        session: &Session,
    ) -> Result<BTreeSet<(String, String)>, EngineError> {
        let rows = session
            .rows(
                "SELECT database, name FROM system.tables",
                "looking for what is there",
            )
            .await?;
        let there: BTreeSet<(String, String)> = rows
            .into_iter()
            .filter_map(|row| <[String; 2]>::try_from(row).ok())
            .map(|[database, name]| (database, name))
            .collect();
        Ok(self
            .tables
            .iter()
            .map(|table| table.target.clone())
            .filter(|target| there.contains(target))
            .collect())
    }

    /// Refuses what is in the way, or removes it where that was allowed. All is looked at before anything is removed.
    pub(super) async fn make_room(
        &self,
        context: &EngineContext,
        session: &Session,
        existing: &BTreeSet<(String, String)>,
        may_replace: bool,
    ) -> Result<(), EngineError> {
        let in_the_way: Vec<&Planned<'_>> = self
            .tables
            .iter()
            .filter(|table| existing.contains(&table.target))
            .collect();
        for table in &in_the_way {
            self.look_at(session, table, may_replace).await?;
        }
        // Views first: they hold on to what they read.
        let (views, tables): (Vec<&Planned<'_>>, Vec<&Planned<'_>>) = in_the_way
            .into_iter()
            .filter(|table| table.partition_ids().is_none())
            .partition(|table| table.record.definition.is_view());
        for table in views.into_iter().chain(tables) {
            context.fence.check().await?;
            let kind = if table.record.definition.engine == "Dictionary"
                && table
                    .record
                    .definition
                    .create
                    .starts_with("CREATE DICTIONARY")
            {
                "DICTIONARY"
            } else {
                "TABLE"
            };
            let sync = if session.version_numbers() >= SYNC_SINCE {
                " SYNC"
            } else {
                ""
            };
            session
                .run(
                    &format!("DROP {kind} IF EXISTS {}{sync}", table.place()),
                    &DROP_ANY_SIZE,
                    &format!("replacing {}", table.place()),
                )
                .await?;
        }
        Ok(())
    }

    /// Refuses what is there already and may not be replaced.
    async fn look_at(
        &self,
        session: &Session,
        table: &Planned<'_>,
        may_replace: bool,
    ) -> Result<(), EngineError> {
        let refuse = |what: String, remedy: &str| {
            Err(EngineError::NotEmpty {
                what,
                remedy: remedy.to_owned(),
            })
        };
        if let Some(ids) = table.partition_ids() {
            if may_replace {
                return Ok(());
            }
            let there = session
                .rows(
                    &format!(
                        "SELECT DISTINCT partition_id FROM system.parts WHERE active AND rows > 0 AND database = {} AND table = {}",
                        literal(&table.target.0),
                        literal(&table.target.1)
                    ),
                    "looking for what is there",
                )
                .await?;
            return match there.into_iter().flatten().find(|id| ids.contains(id)) {
                None => Ok(()),
                Some(id) => refuse(
                    format!("{} holds rows of the partition {id}", table.place()),
                    REPLACE_IT,
                ),
            };
        }
        if !may_replace {
            return refuse(format!("there is {} already", table.place()), REPLACE_IT);
        }
        // A view that stays would get every row once more.
        let dependents = session
            .rows(
                &format!(
                    "SELECT arrayStringConcat(arrayMap((d, t) -> concat(d, '.', t), dependencies_database, dependencies_table), ', ') FROM system.tables WHERE database = {} AND name = {}",
                    literal(&table.target.0),
                    literal(&table.target.1)
                ),
                "looking for views",
            )
            .await?;
        let text = dependents.into_iter().flatten().next().unwrap_or_default();
        for view in text.split(", ").filter(|view| !view.is_empty()) {
            let is_restored = self
                .tables
                .iter()
                .any(|other| format!("{}.{}", other.target.0, other.target.1) == view);
            if !is_restored && table.record.definition.has_rows() {
                return refuse(
                    format!(
                        "the materialised view {view} would get the rows of {} once more",
                        table.place()
                    ),
                    "drop the view first, or restore it together with its table",
                );
            }
        }
        Ok(())
    }
}

fn partitions_of(record: &TableRecord) -> String {
    let ids: BTreeSet<&str> = record
        .parts
        .iter()
        .map(|part| part.partition_id.as_str())
        .collect();
    let mut some: Vec<&str> = ids.iter().copied().take(10).collect();
    if ids.len() > some.len() {
        some.push("…");
    }
    if some.is_empty() {
        return "no rows".to_owned();
    }
    some.join(", ")
}
