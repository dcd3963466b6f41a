//! Joining a server's stream of writes at an offset, without an RDB.
//!
//! A server keeps the end of its stream (`repl-backlog-size`, 1 MiB unless it says otherwise) and goes on from any offset
//! therein. Whether it can is read before it is asked, since it answers a question for too old an offset with
//! all that it has. Where it keeps nothing yet it begins to when a replica introduces itself.

use std::time::Duration;

use fettler_engine::{EngineContext, EngineError};
use fettler_model::LogPosition;
use redis::cmd;
use tokio::io::AsyncWriteExt as _;

use crate::{
    connect::{Info, Session},
    params::Params,
    replica::{Lines, Reads, introduce, lost},
};

/// How long a server may take until it keeps its stream.
const BACKLOG_WITHIN: Duration = Duration::from_secs(20);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A stream of writes.
pub(crate) struct Joined<'a> {
    /// Where it comes from; what was read already lies in `ahead`.
    pub(crate) lines: Lines<'a>,
    /// The offset of its first byte, in the history that the server goes on with.
    pub(crate) at: LogPosition,
    /// Whether it goes on at the first of the wanted positions.
    pub(crate) continues: bool,
}

/// Joins at the first of these positions that the server still has, or else at its present end.
pub(crate) async fn join<'a>(
    params: &Params,
    context: &'a EngineContext,
    session: &mut Session,
    end: Option<&LogPosition>,
    base: Option<&LogPosition>,
) -> Result<Joined<'a>, EngineError> {
    let mut info = session.info().await?;
    if info.text("repl_backlog_active") != "1" {
        begin_backlog(params, context, session).await?;
        info = session.info().await?;
    }
    let there = [end, base]
        .into_iter()
        .flatten()
        .find(|position| has(&info, position));
    let continues = there.is_some() && there == end;
    let from = match there {
        Some(position) => position.clone(),
        None => end_of(&info).ok_or_else(|| session.unexpected("INFO", &"no offset"))?,
    };
    let mut lines = introduce(params, context, Reads::Writes)
        .await?
        .map_err(|refusal| refusal.doing(&params.server(), "reading as a replica"))?;
    let answer = lines
        .ask(
            cmd("PSYNC")
                .arg(&from.history)
                .arg(from.offset.saturating_add(1)),
        )
        .await?
        .map_err(|refusal| refusal.doing(&params.server(), "reading as a replica"))?;
    let mut words = answer.split(' ');
    if words.next() != Some("CONTINUE") {
        // It wrote more in between than it keeps.
        return Err(EngineError::Unreachable {
            server: params.server(),
            what: format!(
                "it writes more than its `repl-backlog-size` of {} bytes holds while it is joined; make that larger",
                info.text("repl_backlog_size")
            ),
        });
    }
    let history = words
        .next()
        .filter(|id| !id.is_empty())
        .map_or(from.history, ToOwned::to_owned);
    Ok(Joined {
        lines,
        at: LogPosition {
            history,
            offset: from.offset,
        },
        continues,
    })
}

/// Where a server's stream ends.
fn end_of(info: &Info) -> Option<LogPosition> {
    Some(LogPosition {
        history: Some(info.text("master_replid"))
            .filter(|id| !id.is_empty())?
            .to_owned(),
        offset: info.number("master_repl_offset")?,
    })
}

/// Whether a server has all that comes behind a position. A history that was another server's goes on under a new name
/// (`master_replid2`) from the offset at which this one took over.
fn has(info: &Info, position: &LogPosition) -> bool {
    let number = |name| info.number(name);
    let (Some(first), Some(length)) = (
        number("repl_backlog_first_byte_offset"),
        number("repl_backlog_histlen"),
    ) else {
        return false;
    };
    let next = position.offset.saturating_add(1);
    let is_its_own = info.text("master_replid") == position.history
        || (info.text("master_replid2") == position.history
            && number("second_repl_offset").is_some_and(|until| next <= until));
    is_its_own
        && info.text("repl_backlog_active") == "1"
        && (first..=first + length).contains(&next)
}

/// Makes a server keep the end of its stream: it does once a replica has asked for everything, which is gone again before
/// anything of that was sent.
async fn begin_backlog(
    params: &Params,
    context: &EngineContext,
    session: &mut Session,
) -> Result<(), EngineError> {
    let mut lines = introduce(params, context, Reads::Rdb)
        .await?
        .map_err(|refusal| refusal.doing(&params.server(), "reading as a replica"))?;
    let ask = cmd("PSYNC").arg("?").arg(-1).get_packed_command();
    let sent = async {
        lines.wire.write_all(&ask).await?;
        lines.wire.flush().await
    };
    sent.await.map_err(|error| lost(&params.server(), &error))?;
    let began = tokio::time::Instant::now();
    while began.elapsed() < BACKLOG_WITHIN {
        context.progress.pulse();
        if session.info().await?.text("repl_backlog_active") == "1" {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(EngineError::Missing {
        code: "backlog",
        what: format!(
            "{} keeps nothing of its replication stream",
            params.server()
        ),
        remedy: "set `repl-backlog-size` to some megabytes there".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(extra: &str) -> Info {
        Info::read(&format!(
            "master_replid:new\r\nmaster_replid2:old\r\nmaster_repl_offset:200\r\nsecond_repl_offset:151\r\n\
             repl_backlog_active:1\r\nrepl_backlog_first_byte_offset:101\r\nrepl_backlog_histlen:100\r\n{extra}"
        ))
    }

    fn at(history: &str, offset: u64) -> LogPosition {
        LogPosition {
            history: history.to_owned(),
            offset,
        }
    }

    #[test]
    fn a_server_goes_on_from_what_it_keeps_and_nothing_else() {
        let server = info("");
        assert!(has(&server, &at("new", 100)));
        assert!(has(&server, &at("new", 200)));
        assert!(!has(&server, &at("new", 99)), "it was dropped");
        assert!(!has(&server, &at("new", 201)), "it lies ahead");
        assert!(!has(&server, &at("other", 150)));
        assert!(!has(&info("repl_backlog_active:0\r\n"), &at("new", 150)));
        assert_eq!(end_of(&server), Some(at("new", 200)));
    }

    #[test]
    fn a_history_goes_on_behind_a_failover_up_to_where_it_was_taken_over() {
        let server = info("");
        assert!(has(&server, &at("old", 150)));
        assert!(!has(&server, &at("old", 151)));
    }
}
