//! The removal of a partition: the archive is tried out, the partition is moved aside in one step, looked at where nobody writes to it
//! any more, and dropped only if it is what the archive holds. Otherwise it goes back.

use async_trait::async_trait;
use fettler_engine::{
    EngineContext, EngineError, StreamSource, WholeFate, WholeRemover, remove_wholes,
};
use fettler_fault_points::{Point, reached};
use fettler_model::CleanupRemoved;

use crate::{catalogue::Catalogue, http::Session};

use super::{
    archive::{Contents, Stored},
    partitions::{Age, PartitionsData},
    scratch::{Aside, fill, with_scratch},
};

/// Removes partitions.
pub(super) async fn remove(
    context: &EngineContext,
    session: &Session,
    data: &PartitionsData,
    archive: &dyn StreamSource,
) -> Result<CleanupRemoved, EngineError> {
    let contents = Contents::of(archive).await?;
    let names: Vec<String> = data
        .partitions
        .iter()
        .map(|partition| data.shown(partition))
        .collect();
    let mut remover = Remover {
        context,
        session,
        data,
        archive,
        contents: &contents,
    };
    remove_wholes(context, &names, &mut remover).await
}

/// Whether the table is the one of the plan, with the same columns.
pub(super) async fn is_same_table(
    session: &Session,
    data: &PartitionsData,
) -> Result<bool, EngineError> {
    let planned = &data.definition;
    let catalogue = Catalogue::read(session, Some(&planned.database), None).await?;
    Ok(catalogue.tables.iter().any(|now| {
        now.name == planned.name
            && (&now.uuid, &now.engine, &now.columns)
                == (&planned.uuid, &planned.engine, &planned.columns)
    }))
}

struct Remover<'a> {
    context: &'a EngineContext,
    session: &'a Session,
    data: &'a PartitionsData,
    archive: &'a dyn StreamSource,
    contents: &'a Contents,
}

#[async_trait]
impl WholeRemover for Remover<'_> {
    async fn remove(&mut self, number: usize) -> Result<WholeFate, EngineError> {
        let (session, data) = (self.session, self.data);
        let id = &data.partitions[number].id;
        let stored = &self.contents.partitions[number];
        let aside = Aside::of(session, data, self.context.attempt.job, number);
        // An attempt that died may have left it there.
        if !aside.holds_rows().await? {
            if let Some(fate) = self.look(stored).await? {
                return self.ended(&aside, fate).await;
            }
            self.try_out(stored).await?;
            self.context.fence.check().await?;
            if let Err(why) = aside.take(id).await? {
                let fate = WholeFate::busy(format!("it cannot be moved aside ({why})"));
                return self.ended(&aside, fate).await;
            }
            reached(Point::CleanupDetached);
        }
        let hash = self.contents.hash(self.context)?;
        let columns = stored.record.definition.stored();
        let doing = "looking at a partition once more";
        let print = self
            .context
            .progress
            .while_waiting(hash.of(session, &aside.place(), &columns, None, doing))
            .await;
        let fate = match print {
            Ok(print) if print == stored.fingerprint => match aside.drop().await? {
                Ok(()) => return Ok(WholeFate::removed()),
                Err(why) => WholeFate::busy(why),
            },
            Ok(_) => WholeFate::changed("it is not what the archive holds any more"),
            Err(error) => {
                // What cannot be looked at stays, and is nobody's to wait for.
                self.give_back(number, id).await;
                return Err(error);
            }
        };
        aside.give_back(id).await?;
        self.ended(&aside, fate).await
    }
}

impl Remover<'_> {
    /// Drops the table in which the partition would wait: it is empty.
    async fn ended(&self, aside: &Aside<'_>, fate: WholeFate) -> Result<WholeFate, EngineError> {
        let _it_is_empty = aside.drop().await?;
        Ok(fate)
    }

    /// Gives a partition back after an error, as far as that is possible; the next attempt finds it otherwise.
    async fn give_back(&self, number: usize, id: &str) {
        let back = async {
            // This session's statements may be stopped.
            let visit = Session::visit(self.session.params()).await?;
            let aside = Aside::of(&visit, self.data, self.context.attempt.job, number);
            aside.give_back(id).await?;
            aside.drop().await.map(drop)
        };
        if let Err(error) = back.await {
            tracing::warn!(%error, partition = id, "a partition waits beside its table until the cleanup goes on");
        }
    }

    /// Looks before the partition is touched; what becomes of it where it does not go.
    async fn look(&self, stored: &Stored) -> Result<Option<WholeFate>, EngineError> {
        if !is_same_table(self.session, self.data).await? {
            return Ok(Some(WholeFate::changed(
                "the table is another one than at the plan, or has other columns",
            )));
        }
        let age = Age::of(self.session, self.data, &stored.partition.id).await?;
        let archived = stored.fingerprint.rows;
        Ok(if age.rows == 0 {
            Some(WholeFate::gone())
        } else if age.young > 0 {
            Some(WholeFate::changed(format!(
                "{} of its rows are not older than the cut-off any more",
                age.young
            )))
        } else if age.rows != archived {
            Some(WholeFate::changed(format!(
                "it holds {} rows, and the archive {archived}",
                age.rows
            )))
        } else {
            None
        })
    }

    /// Lets the server make rows of the archive, in a scratch database, and compares them.
    async fn try_out(&self, stored: &Stored) -> Result<(), EngineError> {
        with_scratch(self.context, self.session, async |scratch: &str| {
            let which = (self.contents, stored);
            let (context, session, data) = (self.context, self.session, self.data);
            fill(context, session, data, scratch, self.archive, which)
                .await
                .map(drop)
        })
        .await
    }
}
