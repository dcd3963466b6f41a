//! One stream of keys into a server.

use std::sync::Arc;

use fettler_engine::{EngineContext, EngineError, StreamSource};
use futures::TryStreamExt as _;
use redis::pipe;

use super::commands::{Commands, Outcome, Plan};
use crate::{
    connect::Session,
    params::Params,
    records::{RecordReader, StoredError},
};

/// Bytes of a stream that are made into commands at once.
const FEED_BYTES: usize = 256 * 1024;
/// Bytes sent before their answers are waited for.
const PIPELINE_BYTES: usize = 1024 * 1024;
/// Commands sent before their answers are waited for.
const PIPELINE_COMMANDS: usize = 1000;

/// Restores what the plan has of a stream.
pub(super) async fn stream(
    context: &EngineContext,
    backup: &dyn StreamSource,
    params: &Params,
    plan: Arc<Plan>,
    name: &str,
) -> Result<Outcome, EngineError> {
    let unusable = |error: StoredError| EngineError::Unusable {
        what: format!("the stream {name} cannot be read: {error}"),
        remedy: "verify the backup, and restore another one".to_owned(),
    };
    context.progress.item(name);
    let mut session = Session::of_attempt(params, context).await?;
    let mut bytes = backup.read(name).await?;
    let mut reader = RecordReader::new();
    let mut commands = Commands::new(&plan, name);
    while let Some(piece) = bytes.try_next().await? {
        for fed in piece.chunks(FEED_BYTES) {
            reader
                .feed(fed, &mut |event| {
                    commands.take(&plan, &event);
                    Ok(())
                })
                .map_err(unusable)?;
            send(context, &mut session, &mut commands).await?;
            commands.outcome.bytes += fed.len() as u64;
            context.progress.add(fed.len() as u64, 0);
        }
    }
    reader.finish().map_err(unusable)?;
    Ok(commands.outcome)
}

/// Sends what is planned and looks at every answer.
async fn send(
    context: &EngineContext,
    session: &mut Session,
    commands: &mut Commands,
) -> Result<(), EngineError> {
    context.check_stop()?;
    let mut planned = std::mem::take(&mut commands.planned).into_iter().peekable();
    while planned.peek().is_some() {
        context.fence.check().await?;
        let (mut batch, mut what) = (pipe(), Vec::new());
        let mut bytes = 0;
        while bytes < PIPELINE_BYTES
            && what.len() < PIPELINE_COMMANDS
            && let Some(one) = planned.next()
        {
            if let Some(select) = session.selecting(one.database) {
                batch.add_command(select);
                what.push((format!("choosing database {}", one.database), false));
            }
            bytes += one.bytes;
            batch.add_command(one.command);
            what.push((one.doing, one.completes));
        }
        for (answer, (doing, completes)) in session.ask_all(&batch).await?.iter().zip(&what) {
            match answer {
                Ok(_) => commands.outcome.rows += u64::from(*completes),
                Err(refusal) => commands.outcome.refused(session.server(), doing, refusal)?,
            }
        }
    }
    Ok(())
}
