//! One stream of keys into a server, or into the nodes of a cluster.

use std::sync::Arc;

use fettler_engine::{EngineContext, EngineError, StreamSource};
use futures::TryStreamExt as _;
use redis::pipe;

use super::commands::{Commands, Outcome, Plan, Planned};
use crate::{
    cluster::Router,
    connect::{Answer, Session},
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
    let mut way = if plan.is_cluster {
        Way::Many(Box::new(Router::open(context, params).await?))
    } else {
        Way::One(Session::of_attempt(params, context).await?)
    };
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
            send(context, &mut way, &mut commands).await?;
            commands.outcome.bytes += fed.len() as u64;
            context.progress.add(fed.len() as u64, 0);
        }
    }
    reader.finish().map_err(unusable)?;
    Ok(commands.outcome)
}

/// The way that commands go.
enum Way {
    One(Session),
    Many(Box<Router>),
}

/// Sends what is planned and looks at every answer.
async fn send(
    context: &EngineContext,
    way: &mut Way,
    commands: &mut Commands,
) -> Result<(), EngineError> {
    context.check_stop()?;
    let mut planned = std::mem::take(&mut commands.planned).into_iter().peekable();
    while planned.peek().is_some() {
        context.fence.check().await?;
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < PIPELINE_BYTES
            && batch.len() < PIPELINE_COMMANDS
            && let Some(one) = planned.next()
        {
            bytes += one.bytes;
            batch.push(one);
        }
        let (server, answers, what) = match way {
            Way::One(session) => send_to_one(session, batch).await?,
            Way::Many(router) => send_to_owners(context, router, batch).await?,
        };
        for (answer, (doing, completes)) in answers.iter().zip(&what) {
            match answer {
                Ok(_) => commands.outcome.rows += u64::from(*completes),
                Err(refusal) => commands.outcome.refused(&server, doing, refusal)?,
            }
        }
    }
    Ok(())
}

/// The server's name, its answers, and what each of them was for.
type Sent = (String, Vec<Answer>, Vec<(String, bool)>);

async fn send_to_one(session: &mut Session, planned: Vec<Planned>) -> Result<Sent, EngineError> {
    let (mut batch, mut what) = (pipe(), Vec::new());
    for one in planned {
        if let Some(select) = session.selecting(one.database) {
            batch.add_command(select);
            what.push((format!("choosing database {}", one.database), false));
        }
        batch.add_command(one.command);
        what.push((one.doing, one.completes));
    }
    let answers = session.ask_all(&batch).await?;
    Ok((session.server().to_owned(), answers, what))
}

async fn send_to_owners(
    context: &EngineContext,
    router: &mut Router,
    planned: Vec<Planned>,
) -> Result<Sent, EngineError> {
    let (batch, what): (Vec<_>, Vec<_>) = planned
        .into_iter()
        .map(|one| ((one.slot, one.command), (one.doing, one.completes)))
        .unzip();
    let answers = router.send(context, &batch).await?;
    Ok((router.server(), answers, what))
}
