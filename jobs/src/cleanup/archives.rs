//! The archives of cleanups in a repository: which they are, and until when they are kept.
//!
//! They stand beside the backups under keys of their own. No list of backups shows them, none is taken for a database's last
//! backup, and no keep rule counts them.

use fettler_model::{Problem, Timestamp};
use fettler_repository::{ManifestSummary, TenantRepository};

use crate::{DatabaseRecord, JobContext};

/// What the key of an archive begins with. No engine has this name, so that no backup's key does.
const KEY: &str = "cleanup/";
/// What the tag begins with that says until when it is kept.
const UNTIL: &str = "undo-until:";

/// The key under which a database's archives stand.
pub(super) fn archive_key(database: &DatabaseRecord) -> String {
    format!("{KEY}{}:{}", database.url.engine(), database.name)
}

/// The tag that says until when an archive is kept.
pub(super) fn until_tag(until: Timestamp) -> String {
    format!("{UNTIL}{}", until.micros())
}

/// Until when an archive with these tags is kept.
pub(super) fn undo_until(tags: &[String]) -> Option<Timestamp> {
    tags.iter()
        .find_map(|tag| tag.strip_prefix(UNTIL))
        .and_then(|micros| micros.parse().ok())
        .map(Timestamp::from_micros)
}

/// Whether what a repository lists is the archive of a cleanup, and no backup.
#[must_use]
pub fn is_cleanup_archive(summary: &ManifestSummary) -> bool {
    summary.database.starts_with(KEY)
}

/// Forgets the archives of the job's tenant whose time is over. One that somebody holds stays.
pub(crate) async fn forget_expired(
    context: &JobContext,
    repository: &TenantRepository,
) -> Result<u64, Problem> {
    let now = Timestamp::now();
    let mut forgotten = 0;
    for summary in repository.backups().await?.backups {
        let is_over = is_cleanup_archive(&summary)
            && !summary.held
            && undo_until(&summary.tags).is_some_and(|until| until < now);
        if is_over {
            repository
                .forget(
                    summary.id,
                    "the time for an undo is over",
                    &*context.repository_fence(),
                )
                .await?;
            forgotten += 1;
        }
    }
    Ok(forgotten)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_archives_time_is_read_as_it_was_written() {
        let until = Timestamp::from_micros(1_700_000_000_000_001);
        let tags = ["other".to_owned(), until_tag(until)];
        assert_eq!(undo_until(&tags), Some(until));
        assert_eq!(undo_until(&tags[..1]), None);
    }
}
