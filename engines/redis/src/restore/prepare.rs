//! Before the keys: what goes where, what is in the way, and what the server has beside keys.

use std::collections::BTreeMap;

use fettler_engine::{AttemptName, BackupReport, EngineContext, EngineError};
use fettler_model::Warning;
use redis::{Value, cmd};

use super::{commands::Outcome, servers::Servers};
use crate::{
    backup::BackupData,
    connect::{Info, Session},
    identify::require_database_0,
    params::Params,
    sandbox,
    scan::milliseconds,
    select::Selection,
    server_data::{ServerData, functions_of, library_name},
};

/// Keys looked at in one step when a pattern is looked for.
const KEYS_A_LOOK: usize = 1000;
/// The key that says that a database was not restored to its end.
const MARK: &str = "fettler/restoring";
/// How to go on where something is in the way.
const REPLACE_IT: &str = "name another server or another database, or say that what is there may be replaced (`--overwrite`)";

/// An error for a replica that takes no writes.
pub(super) fn require_primary(params: &Params, info: &Info) -> Result<(), EngineError> {
    if info.text("role") == "slave" && info.text("slave_read_only") != "0" {
        return Err(EngineError::Missing {
            code: "primary",
            what: format!("{} is a replica and takes no writes", params.server()),
            remedy: format!(
                "name its primary, {}:{}",
                info.text("master_host"),
                info.text("master_port")
            ),
        });
    }
    Ok(())
}

/// The databases of the backup that are restored, each with its number at the target.
pub(crate) fn databases(
    report: &BackupReport,
    data: &BackupData,
    params: &Params,
    selection: &Selection,
) -> Result<BTreeMap<u32, u32>, EngineError> {
    for part in selection.parts() {
        if !data.databases.contains(&part.database) {
            let there: Vec<String> = data.databases.iter().map(|n| format!("db{n}")).collect();
            return Err(EngineError::Missing {
                code: "selection",
                what: format!("the backup has no database {}", part.database),
                remedy: format!("it has {}", there.join(", ")),
            });
        }
    }
    let has_keys = |number: &u32| {
        report
            .objects
            .iter()
            .find(|object| object.name == format!("db{number}"))
            .and_then(|object| object.fingerprint)
            .is_none_or(|fingerprint| fingerprint.rows > 0)
    };
    let chosen: Vec<u32> = data
        .databases
        .iter()
        .copied()
        .filter(|number| selection.may_have(*number) && has_keys(number))
        .collect();
    match (params.database, chosen.as_slice()) {
        (None, _) => Ok(chosen.iter().map(|number| (*number, *number)).collect()),
        (Some(_), []) => Ok(BTreeMap::new()),
        (Some(number), [only]) => Ok([(*only, number)].into()),
        (Some(_), _) => Err(EngineError::Missing {
            code: "selection",
            what: format!(
                "the target names one database, and {} are to be restored",
                chosen.len()
            ),
            remedy: "leave the number out of the target's URL, or choose one with `--only db3`"
                .to_owned(),
        }),
    }
}

/// An error where something would go into a database that a cluster does not have.
pub(super) fn require_one_database(
    params: &Params,
    databases: &BTreeMap<u32, u32>,
) -> Result<(), EngineError> {
    require_database_0(params)?;
    let others: Vec<String> = databases
        .values()
        .filter(|number| **number != 0)
        .map(ToString::to_string)
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(EngineError::Missing {
        code: "database",
        what: format!(
            "the backup has keys in the databases {}, and {} is a cluster, which has database 0 alone",
            others.join(", "),
            params.server()
        ),
        remedy: "restore database 0 with `--only db0`; another one goes there with `--only db3` and `/0` behind the target's host"
            .to_owned(),
    })
}

/// The server's time in milliseconds since 1970.
pub(crate) async fn now(session: &mut Session) -> Result<i64, EngineError> {
    let time: Value = session.ask(&cmd("TIME"), "asking for the time").await?;
    milliseconds(time).ok_or_else(|| session.unexpected("asking for the time", &"no time"))
}

/// What is allowed to a restore that finds something in its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowed {
    /// The target is a sandbox, and holds its mark.
    pub(super) is_sandbox: bool,
    /// What is there may be replaced.
    pub(super) overwrite: bool,
    /// What an earlier restore left half-done may be removed.
    pub(super) start_again: bool,
}

/// Refuses what is in the way, or removes it where that was allowed. All is looked at before anything is removed. Each
/// database that is restored as a whole gets a mark, which says until its end that what it holds is half-done.
pub(super) async fn make_room(
    context: &EngineContext,
    servers: &mut Servers,
    selection: &Selection,
    databases: &BTreeMap<u32, u32>,
    server: &ServerData,
    allowed: Allowed,
) -> Result<(), EngineError> {
    let Allowed {
        is_sandbox,
        overwrite,
        start_again,
    } = allowed;
    let mut to_empty = Vec::new();
    for (from, to) in databases {
        servers.select(*to).await?;
        if selection.has_all_of(*from) {
            let mut keys = 0;
            for one in &mut servers.all {
                let counted: u64 = one.session.ask(&cmd("DBSIZE"), "counting keys").await?;
                keys += counted;
            }
            let own = u64::from(is_sandbox && *to == sandbox::MARK_DATABASE);
            if keys > own {
                let marked = servers.of_key(MARK.as_bytes());
                let is_half_done = match half_done(marked, context).await? {
                    HalfDone::ByThisJob => true,
                    HalfDone::ByAnother => start_again,
                    HalfDone::No => false,
                };
                refuse_unless(
                    overwrite || is_half_done,
                    servers.first(),
                    &format!("database {to} holds {keys} keys"),
                )?;
                to_empty.push(*to);
            }
            continue;
        }
        let patterns = selection
            .parts()
            .iter()
            .filter(|part| part.database == *from)
            .filter_map(|part| part.pattern.as_ref());
        for pattern in patterns {
            for one in &mut servers.all {
                if !overwrite && holds(&mut one.session, pattern).await? {
                    let what = format!(
                        "database {to} holds keys that `{}` fits",
                        String::from_utf8_lossy(pattern)
                    );
                    refuse_unless(overwrite, &one.session, &what)?;
                }
            }
        }
    }
    if selection.functions && !server.functions.is_empty() && !overwrite {
        for one in &mut servers.all {
            require_no_other_library(&mut one.session, server).await?;
        }
    }
    for database in to_empty {
        for one in &mut servers.all {
            let session = &mut one.session;
            context.fence.check().await?;
            session.select(database).await?;
            let flush = cmd("FLUSHDB").arg("ASYNC").to_owned();
            session
                .ask::<()>(&flush, &format!("emptying database {database}"))
                .await?;
        }
    }
    if !is_sandbox {
        for database in whole(selection, databases) {
            context.fence.check().await?;
            let session = servers.of_key(MARK.as_bytes());
            session.select(database).await?;
            let mark = cmd("SET")
                .arg(MARK)
                .arg(context.attempt.to_string())
                .to_owned();
            session
                .ask::<()>(&mark, "marking a database as half-done")
                .await?;
        }
    }
    servers.select(0).await
}

/// An error where a server has another library of functions under a name of the backup's.
async fn require_no_other_library(
    session: &mut Session,
    server: &ServerData,
) -> Result<(), EngineError> {
    let there = functions_of(session).await?.unwrap_or_default();
    for code in &server.functions {
        if let Some(name) = library_name(code)
            && there
                .iter()
                .any(|(has, other)| *has == name && other != code)
        {
            let what = format!("there is another library of functions named {name}");
            refuse_unless(false, session, &what)?;
        }
    }
    Ok(())
}

/// The databases of the target that are restored as a whole.
fn whole(selection: &Selection, databases: &BTreeMap<u32, u32>) -> Vec<u32> {
    databases
        .iter()
        .filter(|(from, _)| selection.has_all_of(**from))
        .map(|(_, to)| *to)
        .collect()
}

/// Whether a restore left something half-done.
enum HalfDone {
    No,
    ByThisJob,
    ByAnother,
}

/// Whether what the session's database holds was left half-done by a restore.
async fn half_done(
    session: &mut Session,
    context: &EngineContext,
) -> Result<HalfDone, EngineError> {
    let mark: Option<String> = session
        .ask(cmd("GET").arg(MARK), "looking for a half-done restore")
        .await?;
    Ok(match mark {
        None => HalfDone::No,
        Some(by) if by.starts_with(&AttemptName::prefix_of(context.attempt.job)) => {
            HalfDone::ByThisJob
        }
        Some(_) => HalfDone::ByAnother,
    })
}

/// Says that nothing is half-done any more.
pub(super) async fn unmark(
    context: &EngineContext,
    params: &Params,
    selection: &Selection,
    databases: &BTreeMap<u32, u32>,
) -> Result<(), EngineError> {
    let mut servers = Servers::reach(context, params).await?;
    for database in whole(selection, databases) {
        context.fence.check().await?;
        let session = servers.of_key(MARK.as_bytes());
        session.select(database).await?;
        session
            .ask::<()>(cmd("UNLINK").arg(MARK), "ending the restore of a database")
            .await?;
    }
    Ok(())
}

fn refuse_unless(overwrite: bool, session: &Session, what: &str) -> Result<(), EngineError> {
    if overwrite {
        return Ok(());
    }
    Err(EngineError::NotEmpty {
        what: format!("{}: {what}", session.server()),
        remedy: REPLACE_IT.to_owned(),
    })
}

/// Whether there is a key that a pattern fits.
async fn holds(session: &mut Session, pattern: &[u8]) -> Result<bool, EngineError> {
    let mut cursor = 0;
    loop {
        let look = cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(pattern)
            .arg("COUNT")
            .arg(KEYS_A_LOOK)
            .to_owned();
        let (next, keys): (u64, Vec<Vec<u8>>) =
            session.ask(&look, "looking for keys in the way").await?;
        if !keys.is_empty() {
            return Ok(true);
        }
        cursor = next;
        if cursor == 0 {
            return Ok(false);
        }
    }
}

/// Puts the libraries of functions back.
pub(super) async fn load_functions(
    context: &EngineContext,
    session: &mut Session,
    server: &ServerData,
    outcome: &mut Outcome,
) -> Result<(), EngineError> {
    for code in &server.functions {
        context.fence.check().await?;
        let load = cmd("FUNCTION")
            .arg("LOAD")
            .arg("REPLACE")
            .arg(code)
            .to_owned();
        if let Err(refusal) = session.try_ask(&load).await? {
            let name = library_name(code).unwrap_or_default();
            outcome.refused(
                session.server(),
                &format!("loading the library of functions {name}"),
                &refusal,
            )?;
        }
    }
    Ok(())
}

/// Puts the users back, but for the one that everybody is who does not log in.
pub(super) async fn set_users(
    context: &EngineContext,
    session: &mut Session,
    server: &ServerData,
    outcome: &mut Outcome,
    warnings: &mut Vec<Warning>,
) -> Result<(), EngineError> {
    let Some(users) = &server.users else {
        return Err(EngineError::Missing {
            code: "selection",
            what: "the backup has no users: they could not be read when it was made".to_owned(),
            remedy: "leave `acl` out".to_owned(),
        });
    };
    for line in users {
        let mut words = line.split(' ');
        let (Some("user"), Some(name)) = (words.next(), words.next()) else {
            continue;
        };
        if name == "default" {
            let left = Warning {
                code: "redis.default_user".to_owned(),
                message: "the user `default` was left as it is at the target".to_owned(),
            };
            if !warnings.contains(&left) {
                warnings.push(left);
            }
            continue;
        }
        context.fence.check().await?;
        let mut set = cmd("ACL");
        set.arg("SETUSER").arg(name).arg("reset");
        for rule in rules_of(words) {
            set.arg(rule);
        }
        if let Err(refusal) = session.try_ask(&set).await? {
            outcome.refused(
                session.server(),
                &format!("making the user {name}"),
                &refusal,
            )?;
        }
    }
    Ok(())
}

/// The rules of a user's line. A selector in parentheses is one rule, blanks and all.
fn rules_of<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut rules: Vec<String> = Vec::new();
    let mut is_open = false;
    for word in words {
        match rules.last_mut().filter(|_| is_open) {
            Some(selector) => {
                selector.push(' ');
                selector.push_str(word);
            }
            None => rules.push(word.to_owned()),
        }
        is_open = (is_open || word.starts_with('(')) && !word.ends_with(')');
    }
    rules
}

/// A word on users that a whole restore does not put back.
pub(crate) fn unrestored_users(report: &BackupReport) -> Option<Warning> {
    report
        .objects
        .iter()
        .any(|object| object.name == "acl users")
        .then(|| Warning {
            code: "redis.users_not_restored".to_owned(),
            message: "users and configuration are in the backup and were not restored; `--only acl` restores the users".to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_rules_are_told_apart() {
        let line = "on #ab12 ~a:* resetchannels -@all +get (~b:* -@all +set) (%R~c +get)";
        assert_eq!(
            rules_of(line.split(' ')),
            [
                "on",
                "#ab12",
                "~a:*",
                "resetchannels",
                "-@all",
                "+get",
                "(~b:* -@all +set)",
                "(%R~c +get)"
            ]
        );
    }
}
