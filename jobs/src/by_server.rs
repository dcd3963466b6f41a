//! Backups that a database's server makes and holds itself ([`fettler_engine::BackupOptions::by_server`]): which they are, from
//! which one a new one takes over, and how the server is told to let one go.
//!
//! A backup is forgotten in the repository first and let go by its server afterwards, so that nothing is listed as complete
//! that is not there any more (P4). Whatever dies between leaves a backup at the server that the repository knows as forgotten:
//! the next look finds it by that, and by nothing else. What the repository knows nothing of is another's and stays.

use fettler_engine::{BackupReport, DatabaseEngine, EngineError, Target};
use fettler_model::{BackupFacts, BackupId, Problem};
use fettler_repository::{Parent, TenantRepository};

use crate::{DatabaseRecord, JobContext, archive::report_of};

/// The tag of such a backup, which nobody else can give.
pub const TAG: &str = "by-server";
/// Among how many backups, newest first, one is looked for that says where the server puts them.
const LOOKED_AT: usize = 10;

/// Refuses what cannot be.
pub(crate) fn look_at(
    engine: &dyn DatabaseEngine,
    by_server: Option<&str>,
    tags: &[String],
) -> Result<(), Problem> {
    if by_server.is_some() && !engine.has_own_backups() {
        return Err(Problem::permanent(
            "backup.by_server",
            format!(
                "Fettler drives no backups of the server's own for {}",
                engine.engine()
            ),
            "leave `--by-server` out: Fettler reads the database itself",
        ));
    }
    if by_server.is_none() && tags.iter().any(|tag| tag == TAG) {
        return Err(Problem::permanent(
            "backup.tag",
            format!("the tag {TAG} is that of backups which a server holds itself"),
            "choose another word",
        ));
    }
    Ok(())
}

/// The backup to take over from: the newest that was made in the same way, since the others hold nothing of use for it.
pub(crate) async fn parent(
    repository: &TenantRepository,
    key: &str,
    own: BackupId,
    by_server: bool,
) -> Result<Parent, Problem> {
    let listing = repository.backups().await?.backups;
    let of_database = || listing.iter().filter(|other| other.database == key);
    let is_such = |tags: &[String]| tags.iter().any(|tag| tag == TAG);
    if !by_server && !of_database().any(|other| is_such(&other.tags)) {
        return Ok(Parent::Auto);
    }
    let newest = of_database()
        .filter(|other| is_such(&other.tags) == by_server && !other.damaged && other.id != own)
        .max_by_key(|other| other.started);
    Ok(newest.map_or(Parent::None, |other| Parent::Backup(other.id)))
}

/// What such backups say of where they are: those that are to be forgotten, read before that, and the newest other one. An attempt
/// that comes after the death of one that forgot finds the place by the latter.
pub(crate) async fn known(
    repository: &TenantRepository,
    of_database: &[&BackupFacts],
    forgotten: &[BackupId],
) -> Vec<BackupReport> {
    let such = of_database
        .iter()
        .filter(|facts| facts.tags.iter().any(|tag| tag == TAG));
    let (wanted, mut others): (Vec<_>, Vec<_>) =
        such.partition(|facts| forgotten.contains(&facts.id));
    others.sort_by_key(|facts: &&&BackupFacts| std::cmp::Reverse(facts.started));
    let mut reports = Vec::new();
    for facts in wanted {
        reports.extend(report_if_there(repository, facts.id).await);
    }
    for facts in others.into_iter().take(LOOKED_AT) {
        if let Some(report) = report_if_there(repository, facts.id).await {
            reports.push(report);
            break;
        }
    }
    reports
}

/// What a backup says; nothing of one that was forgotten, or cannot be read.
async fn report_if_there(repository: &TenantRepository, id: BackupId) -> Option<BackupReport> {
    let manifest = repository.manifest(id).await.ok()?;
    report_of(&manifest).ok()
}

/// Lets the server of a database let go what was forgotten, as far as it can: what stays does not keep the others. Gives how many
/// went.
pub(crate) async fn let_go_what_was_forgotten(
    context: &JobContext,
    repository: &TenantRepository,
    database: &DatabaseRecord,
    known: &[BackupReport],
) -> Result<u64, Problem> {
    let engine = fettler_engines::engine(database.url.engine());
    if !engine.has_own_backups() {
        return Ok(0);
    }
    let server = context
        .target(&database.url, database.password.as_ref())
        .await?;
    let (mut gone, mut failed) = (0, None);
    let held = engine.held(&server, known).await;
    for held in held.map_err(|error| context.problem(error))? {
        if !repository.was_forgotten(BackupId::of_job(held.job)).await? {
            continue;
        }
        let fenced = context.fence.check().await;
        fenced.map_err(|error| context.problem(error))?;
        if let Err(error) = engine.let_go(&server, &held).await {
            let problem = context.problem(error);
            context
                .ledger
                .log(&format!("{} stays in {}: {problem}", held.name, held.place))
                .await;
            failed.get_or_insert(problem);
            continue;
        }
        gone += 1;
        context
            .ledger
            .log(&format!("{} was removed from {}", held.name, held.place))
            .await;
    }
    failed.map_or(Ok(gone), Err)
}

/// The same after something was forgotten. `must` says whether a backup was among it that the server holds: then a server
/// that does not answer fails the job, whose next attempt looks again; otherwise it is only told.
pub(crate) async fn after_forgetting(
    context: &JobContext,
    repository: &TenantRepository,
    database: &DatabaseRecord,
    known: &[BackupReport],
    must: bool,
) -> Result<(), Problem> {
    match let_go_what_was_forgotten(context, repository, database, known).await {
        Err(problem) if !must => {
            let line = format!("the server was not asked what it still holds: {problem}");
            context.ledger.log(&line).await;
            Ok(())
        }
        result => result.map(drop),
    }
}

/// Lets a server let go what this very job asked for and nobody will go on with.
pub(crate) async fn let_go_of_job(
    context: &JobContext,
    engine: &dyn DatabaseEngine,
    server: &Target,
) {
    let gone = async {
        for held in engine.held(server, &[]).await? {
            if held.job == context.job.id {
                engine.let_go(server, &held).await?;
            }
        }
        Ok::<_, EngineError>(())
    };
    if let Err(error) = gone.await {
        let line = format!("what the server made of this backup is left there: {error}");
        context.ledger.log(&line).await;
    }
}
