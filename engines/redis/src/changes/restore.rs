//! The restore to a moment: the target is made a replica of this worker, gets the backup and the changes behind it,
//! and is then a primary of its own.

use std::net::{IpAddr, Ipv4Addr};

use fettler_engine::{
    BackupReport, ChangeSource, Ending, EngineContext, EngineError, RestoreOptions, RestoreReport,
    StreamSource, Target,
};
use fettler_model::{Secret, Warning};
use redis::{Value, cmd};

use super::serve::Primary;
use crate::{
    connect::{Info, Session, end_predecessors, local_address},
    extract::{rdb_version, write_rdb},
    identify::require_plain,
    params::{Params, Place},
};

/// What the passwords begin with that a target is given for the time of a restore.
const TOKEN: &str = "fettler-";

/// Brings a server to a moment.
pub(crate) async fn restore_to_moment(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    changes: &dyn ChangeSource,
    target: &Target,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    if !options.only.is_empty() {
        return Err(EngineError::Missing {
            code: "selection",
            what: "changes can only be played on a whole backup".to_owned(),
            remedy: "restore to a moment without `--only` on another server, back that up, and restore the part from there"
                .to_owned(),
        });
    }
    let params = Params::of(target)?;
    if params.sentinels.is_some() {
        return Err(EngineError::Missing {
            code: "url",
            what: "a server that sentinels watch cannot be restored to a moment: it has to be a replica for a while, which they would undo"
                .to_owned(),
            remedy: "restore to a server that runs alone, and copy from there".to_owned(),
        });
    }
    if params.tls.is_some() || params.database.is_some() {
        return Err(EngineError::Missing {
            code: "url",
            what: format!(
                "a whole server is restored to a moment, and over a link without TLS; {} asks for something else",
                target.url
            ),
            remedy: "name a server on the worker's machine or in its own network, as redis://host:port, and copy from there"
                .to_owned(),
        });
    }
    context.check_stop()?;
    let mut session = Session::of_attempt(&params, context).await?;
    end_predecessors(&mut session, context).await?;
    let info = session.info().await?;
    require_plain(&params, &info)?;
    if info.rdb_version() < rdb_version(&report.identity.version) {
        return Err(EngineError::Missing {
            code: "version",
            what: format!(
                "{} has the version {}, and changes of {} can only be played on the same or a newer one",
                params.server(),
                info.version_text(),
                report.identity.version
            ),
            remedy: "name a server of the source's version".to_owned(),
        });
    }
    let found = Found::of(&mut session, &info, context).await?;
    if let Some(Ending { report, .. }) = Ending::load(context).await? {
        found.as_replica(&mut session).stand_alone().await?;
        return Ok(report);
    }
    if !found.is_left_by_this_job && !options.overwrite {
        found.refuse_what_is_there(&params, &info)?;
    }

    // Nothing at the target is touched before the backup was read to its end.
    context.progress.item("the backup");
    let rdb = context.scratch.join("moment.rdb");
    let written = write_rdb(context, backup, report, &rdb, &[]).await?;
    let address = match &params.place {
        Place::Unix(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Place::Tcp { .. } => local_address(&params).await?,
    };
    let token = found.token(context);
    let history = hex::encode(&blake3::hash(token.expose().as_bytes()).as_bytes()[..20]);
    let primary = Primary::listen(address, token.clone(), history).await?;

    context.fence.check().await?;
    context.progress.item("the changes since");
    let mut target = found.as_replica(&mut session);
    let played = match target.follow(&primary, &token).await {
        Ok(()) => context
            .stop
            .run_until_cancelled(primary.serve(context, &rdb, changes))
            .await
            .unwrap_or(Err(EngineError::Stopped)),
        Err(error) => Err(error),
    };
    drop(primary);
    let played = match played {
        Ok(played) => played,
        Err(error) => {
            if !matches!(error, EngineError::Stopped) {
                // Why it failed says more than that the settings stay.
                let _settings_stay = target.stand_alone().await;
            }
            return Err(error);
        }
    };
    let mut warnings = written.warnings;
    if played.left_out > 0 {
        warnings.push(Warning {
            code: "redis.open_transaction".to_owned(),
            message: format!(
                "the last {} bytes belong to a transaction that ends behind the moment: it has no effect",
                played.left_out
            ),
        });
    }
    tracing::info!(played.commands, played.bytes, "played the archived changes");
    let ending = Ending {
        report: RestoreReport {
            bytes: written.bytes + played.bytes,
            rows: written.rows,
            failed_statements: written.failed_statements,
            warnings,
        },
        file: None,
    };
    ending.save(context).await?;
    // One that was superseded leaves the target to its successor.
    context.fence.check().await?;
    target.stand_alone().await?;
    Ok(ending.report)
}

/// How the target is now.
struct Found {
    keys: u64,
    /// What it says to its primary, which is kept where there is one.
    masterauth: String,
    masteruser: String,
    is_left_by_this_job: bool,
}

impl Found {
    async fn of(
        session: &mut Session,
        info: &Info,
        context: &EngineContext,
    ) -> Result<Self, EngineError> {
        let masterauth = setting(session, "masterauth").await?;
        Ok(Self {
            keys: info.keys().values().sum(),
            is_left_by_this_job: masterauth.starts_with(&token_prefix(context)),
            masteruser: setting(session, "masteruser").await?,
            masterauth,
        })
    }

    fn refuse_what_is_there(&self, params: &Params, info: &Info) -> Result<(), EngineError> {
        if info.text("role") == "slave" && !self.masterauth.starts_with(TOKEN) {
            return Err(EngineError::Missing {
                code: "primary",
                what: format!(
                    "{} is a replica of {}:{}",
                    params.server(),
                    info.text("master_host"),
                    info.text("master_port")
                ),
                remedy: "name a server that runs alone".to_owned(),
            });
        }
        if self.keys > 0 {
            return Err(EngineError::NotEmpty {
                what: format!("{} holds {} keys", params.server(), self.keys),
                remedy:
                    "name another server, or say that what is there may be replaced (`--overwrite`): all of it is"
                        .to_owned(),
            });
        }
        Ok(())
    }

    fn as_replica<'a>(&self, session: &'a mut Session) -> Replica<'a> {
        Replica {
            session,
            sets_password: self.sets_password(),
            masteruser: self.masteruser.clone(),
        }
    }

    fn sets_password(&self) -> bool {
        self.masterauth.is_empty() || self.masterauth.starts_with(TOKEN)
    }

    /// What the target will say.
    fn token(&self, context: &EngineContext) -> Secret {
        if self.sets_password() {
            let mut random = [0; 16];
            getrandom::fill(&mut random).expect("the system's random generator works");
            Secret::new(format!("{}{}", token_prefix(context), hex::encode(random)))
        } else {
            Secret::new(self.masterauth.clone())
        }
    }
}

fn token_prefix(context: &EngineContext) -> String {
    format!("{TOKEN}{}-", context.attempt.job.uuid().simple())
}

async fn setting(session: &mut Session, name: &str) -> Result<String, EngineError> {
    match session.try_ask(cmd("CONFIG").arg("GET").arg(name)).await? {
        Ok(value) => {
            let pairs: Vec<String> = redis::from_redis_value(value)
                .map_err(|error| session.unexpected("reading its settings", &error))?;
            Ok(pairs.into_iter().nth(1).unwrap_or_default())
        }
        Err(refusal) if refusal.is_not_allowed() => Err(not_allowed("CONFIG", &refusal)),
        Err(refusal) => Err(refusal.doing(session.server(), "reading its settings")),
    }
}

fn not_allowed(command: &str, refusal: &dyn std::fmt::Display) -> EngineError {
    EngineError::Missing {
        code: "replicaof",
        what: format!(
            "a target is restored to a moment by being this worker's replica for a while, and it does not allow `{command}`: {refusal}"
        ),
        remedy: "give the user `REPLICAOF` and `CONFIG` (`ACL SETUSER name +replicaof +config`), or restore to a server of your own and \
                 copy from there; managed servers allow neither"
            .to_owned(),
    }
}

/// The target while it is a replica.
struct Replica<'a> {
    session: &'a mut Session,
    sets_password: bool,
    masteruser: String,
}

impl Replica<'_> {
    async fn follow(&mut self, primary: &Primary, token: &Secret) -> Result<(), EngineError> {
        if self.sets_password {
            self.set("masteruser", "").await?;
            self.set("masterauth", token.expose()).await?;
        }
        self.ask(
            cmd("REPLICAOF")
                .arg(primary.address.ip().to_string())
                .arg(primary.address.port()),
            "REPLICAOF",
        )
        .await
    }

    /// Makes the target a server of its own, with the settings that it had. What can be put right is, whatever fails.
    async fn stand_alone(&mut self) -> Result<(), EngineError> {
        let promoted = self
            .ask(cmd("REPLICAOF").arg("NO").arg("ONE"), "REPLICAOF")
            .await;
        if self.sets_password {
            let user = self.masteruser.clone();
            let user = self.set("masteruser", &user).await;
            // The last, since an attempt knows its job's target by it.
            let auth = self.set("masterauth", "").await;
            return promoted.and(user).and(auth);
        }
        promoted
    }

    async fn set(&mut self, name: &str, value: &str) -> Result<(), EngineError> {
        self.ask(cmd("CONFIG").arg("SET").arg(name).arg(value), "CONFIG")
            .await
    }

    async fn ask(&mut self, command: &redis::Cmd, name: &str) -> Result<(), EngineError> {
        let _: Value = match self.session.try_ask(command).await? {
            Ok(answer) => answer,
            Err(refusal) if refusal.is_not_allowed() => return Err(not_allowed(name, &refusal)),
            Err(refusal) => {
                return Err(refusal.doing(self.session.server(), "making it a replica"));
            }
        };
        Ok(())
    }
}
