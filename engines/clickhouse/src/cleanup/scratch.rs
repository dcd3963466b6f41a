//! Tables like the one that is cleaned: in a scratch database where nothing lasts, and beside it where a partition waits for the last
//! look at it.

use fettler_engine::{EngineContext, EngineError, StreamSource};
use fettler_model::JobId;

use crate::{
    backup::drop_scratch,
    error::codes,
    http::Session,
    restore::put_stream,
    shadow::{DROP_ANY_SIZE, LOOSE_TYPES, Scratch, stop_merges},
    sql::{literal, quoted, table as full_table},
};

use super::{
    archive::{Contents, Stored},
    partitions::PartitionsData,
};

/// Makes an empty table like the cleaned one, whose parts nothing merges. `place` is quoted.
pub(super) async fn beside(
    session: &Session,
    data: &PartitionsData,
    place: &str,
) -> Result<(), EngineError> {
    let create = format!("CREATE TABLE IF NOT EXISTS {place} AS {}", data.table());
    session
        .run(&create, &LOOSE_TYPES, "making a table beside another")
        .await?;
    stop_merges(session, place).await
}

/// Does something with a scratch database, which is dropped in the end, whatever comes of it.
pub(super) async fn with_scratch<T>(
    context: &EngineContext,
    session: &Session,
    work: impl AsyncFnOnce(&str) -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    let scratch = Scratch::make(session, context).await?;
    match work(&scratch.name).await {
        Ok(done) => {
            scratch.drop(session, context).await?;
            Ok(done)
        }
        Err(error) => {
            drop_scratch(context, session, scratch, &error).await?;
            Err(error)
        }
    }
}

/// Puts the rows of an archived partition into a table of a scratch database, and compares what the server made of them with what
/// was archived. Gives the table, quoted.
pub(super) async fn fill(
    context: &EngineContext,
    session: &Session,
    data: &PartitionsData,
    scratch: &str,
    archive: &dyn StreamSource,
    (contents, stored): (&Contents, &Stored),
) -> Result<String, EngineError> {
    let place = full_table(scratch, "rows");
    beside(session, data, &place).await?;
    let columns: Vec<String> = stored.record.read.iter().map(|name| quoted(name)).collect();
    let into = format!("{place} ({})", columns.join(", "));
    let name = data.shown(&stored.partition);
    for part in &stored.record.parts {
        put_stream(context, archive, session, part, &into, &name).await?;
    }
    let columns = stored.record.definition.stored();
    let doing = format!("trying the archive of {name} out");
    let hash = contents.hash(context)?;
    let print = context
        .progress
        .while_waiting(hash.of(session, &place, &columns, None, &doing))
        .await?;
    if print != stored.fingerprint {
        return Err(EngineError::Unusable {
            what: format!("{doing}: the server makes other rows of it than were archived"),
            remedy: "whether the table's columns were changed since tells `SHOW CREATE TABLE`; `fettler extract` takes the rows out of the archive".to_owned(),
        });
    }
    Ok(place)
}

/// A table beside the cleaned one, in its database, in which one partition waits for the last look. It has rows that may be in no
/// archive: nothing drops it but what has looked.
pub(super) struct Aside<'a> {
    session: &'a Session,
    data: &'a PartitionsData,
    name: String,
}

const ASIDE: &str = "keeping a partition aside";

impl<'a> Aside<'a> {
    /// That of a cleanup's partition of this number.
    pub(super) fn of(
        session: &'a Session,
        data: &'a PartitionsData,
        cleanup: JobId,
        number: usize,
    ) -> Self {
        Self {
            session,
            data,
            name: format!("fettler_cleanup_{}_{number}", cleanup.uuid().simple()),
        }
    }

    /// The table, quoted.
    pub(super) fn place(&self) -> String {
        full_table(&self.data.definition.database, &self.name)
    }

    /// Whether it is there, and holds rows.
    pub(super) async fn holds_rows(&self) -> Result<bool, EngineError> {
        let there = self
            .session
            .rows(
                &format!(
                    "SELECT name FROM system.tables WHERE database = {} AND name = {}",
                    literal(&self.data.definition.database),
                    literal(&self.name)
                ),
                ASIDE,
            )
            .await?;
        if there.is_empty() {
            return Ok(false);
        }
        let rows = self
            .session
            .rows(
                &format!("SELECT toString(count()) FROM {}", self.place()),
                ASIDE,
            )
            .await?;
        Ok(rows.first().is_some_and(|row| row[0] != "0"))
    }

    /// Takes a partition out of the cleaned table; why the server refuses.
    pub(super) async fn take(&self, partition: &str) -> Result<Result<(), String>, EngineError> {
        beside(self.session, self.data, &self.place()).await?;
        let take = self.moving(&self.data.table(), partition, &self.place());
        let taken = self.session.try_run(&take, &[], ASIDE).await?;
        match taken {
            Err(refusal) if refusal.is_not_allowed() => {
                Err(refusal.doing(&self.session.server(), ASIDE))
            }
            other => Ok(other.map_err(|refusal| refusal.to_string())),
        }
    }

    /// Gives the partition back to the cleaned table.
    pub(super) async fn give_back(&self, partition: &str) -> Result<(), EngineError> {
        let back = self.moving(&self.place(), partition, &self.data.table());
        let doing = format!(
            "giving a partition back that was taken out of its table and is in {}",
            self.place()
        );
        self.session.run(&back, &[], &doing).await
    }

    fn moving(&self, from: &str, partition: &str, to: &str) -> String {
        format!(
            "ALTER TABLE {from} MOVE PARTITION ID {} TO TABLE {to}",
            literal(partition)
        )
    }

    /// Drops the table with what is in it; why the server refuses.
    pub(super) async fn drop(&self) -> Result<Result<(), String>, EngineError> {
        let drop = format!("DROP TABLE IF EXISTS {} SYNC", self.place());
        let dropped = self.session.try_run(&drop, &DROP_ANY_SIZE, ASIDE).await?;
        match dropped {
            Ok(()) => Ok(Ok(())),
            Err(refusal) if refusal.code == codes::TOO_LARGE_TO_DROP => Ok(Err(format!(
                "it is larger than the server's limit on drops (`max_table_size_to_drop`): {refusal}"
            ))),
            Err(refusal) => Err(refusal.doing(&self.session.server(), ASIDE)),
        }
    }
}
