//! The log of a database's changes, beside its backups: numbered objects, each sealed like a manifest.
//!
//! **Who writes.** Number *n* + 1 is created only if absent, by whoever has read number *n*. A writer whose successor has begun
//! finds its next number taken and stops; whatever it wrote before is a part of the one order and was read by the successor.
//! So nothing of a superseded writer can mix in, whether it knows of its successor or not.
//!
//! **How it stays small in objects.** Numbers *a* to *b* are merged into one object that bears both; it is written before the
//! parts are deleted, and a reader who finds both takes the wider one. The newest numbers are never merged, so that
//! the next one is always free or taken for the reason above.
//!
//! **How long it is kept.** An object is deleted by a collection once it was written before the oldest backup of its database
//! that is still there was begun, by the store's own clock.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use fettler_model::{LogMoment, LogSpan, Timestamp};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::{
    Damage, Fence, RepositoryError, TenantRepository,
    collect::is_old,
    layout::{Kind, ObjectName},
    seal::{from_json, to_json},
    store::{Listed, Put, SMALL_REQUESTS},
};

/// Bytes that are read of an object to see what it holds.
const HEAD_BYTES: u64 = 16 * 1024;
/// So many objects are merged into one.
const MERGED_AT_ONCE: usize = 64;
/// The newest objects, which are not merged.
const NEVER_MERGED: usize = 64;
/// An object that is not made larger.
const FULL_BYTES: u64 = 16 << 20;
/// The most that is merged into one object; it is in memory as a whole.
const MOST_MERGED_BYTES: u64 = 32 << 20;
/// How much longer than needed an object is kept, unless the grace is shorter: parts of a store may have clocks of their own.
const KEEP_MARGIN: Duration = Duration::from_secs(60 * 60);

/// One object of a log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogEntry {
    /// The numbers that it holds.
    first: u64,
    last: u64,
    /// What it holds.
    pub span: LogSpan,
    /// Bytes in the store.
    pub stored_bytes: u64,
    /// When it was written, by the store's clock.
    pub written: Timestamp,
}

/// Changes that go into a log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogPart {
    /// What they are.
    pub span: LogSpan,
    /// The moments that they reach.
    pub moments: Vec<LogMoment>,
    /// The changes themselves.
    pub bytes: Bytes,
}

/// The first frame of an object; moments and changes follow.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Head {
    /// The key of the database, as manifests have it.
    database: String,
    first: u64,
    last: u64,
    #[serde(flatten)]
    span: LogSpan,
}

/// The log of one database.
#[derive(Clone, Debug)]
pub struct ChangeLog {
    tenant: TenantRepository,
    database: String,
    folder: ObjectName,
}

fn object_name(first: u64, last: u64) -> ObjectName {
    let mut name = ObjectName::number(last).0;
    name[16..24].copy_from_slice(&first.to_be_bytes());
    ObjectName(name)
}

fn numbers_of(name: ObjectName) -> (u64, u64) {
    let first = u64::from_be_bytes(name.0[16..24].try_into().expect("eight bytes"));
    (first, name.as_number())
}

impl TenantRepository {
    /// The log of the database of this key (see [`crate::BeginBackup::database`]).
    #[must_use]
    pub fn change_log(&self, database: &str) -> ChangeLog {
        ChangeLog {
            tenant: self.clone(),
            database: database.to_owned(),
            folder: self.sealer().keys.log_name(database),
        }
    }

    /// Deletes, or counts where nothing is to be changed, the objects of logs that no backup needs any more. Gives
    /// their number and bytes.
    pub(crate) async fn prune_logs(
        &self,
        now: Timestamp,
        grace: Duration,
        is_trial: bool,
    ) -> Result<(u64, u64), RepositoryError> {
        let logs = self.inner.folder.folder(Kind::Log);
        let folders = self.store().folders(&logs).await?;
        if folders.is_empty() {
            return Ok((0, 0));
        }
        let manifests: HashMap<ObjectName, Timestamp> = self
            .list(Kind::Manifest)
            .await?
            .iter()
            .filter_map(|listed| Some((listed.name()?, listed.modified)))
            .collect();
        let listing = self.backups().await?;
        // Whoever does not know all backups does not know what they need.
        if !listing.unreadable.is_empty() {
            return Ok((0, 0));
        }
        let (mut objects, mut bytes) = (0, 0);
        for folder in folders {
            let Ok(folder) = folder.parse() else { continue };
            let (entries, parts) = self.log_entries(folder, None).await?;
            let mut unneeded: Vec<Listed> = parts;
            if let Some((database, _)) = entries.first() {
                let begun = listing
                    .backups
                    .iter()
                    .filter(|backup| backup.database == *database)
                    .map(|backup| {
                        let name = self.sealer().keys.backup_name(backup.id);
                        let written = manifests.get(&name).copied();
                        written
                            .unwrap_or(Timestamp::from_micros(0))
                            .minus(backup.finished.since(backup.started) + KEEP_MARGIN.min(grace))
                    })
                    .min();
                // Without a backup nobody can tell what the next one will need.
                let begun = begun.unwrap_or(Timestamp::from_micros(0));
                let newest = entries.len() - 1;
                unneeded.extend(
                    entries
                        .iter()
                        .enumerate()
                        .take_while(|(at, (_, entry))| *at < newest && entry.written < begun)
                        .map(|(_, (_, entry))| Listed {
                            path: self
                                .inner
                                .folder
                                .log_object(folder, object_name(entry.first, entry.last)),
                            size: entry.stored_bytes,
                            modified: entry.written,
                        }),
                );
            }
            unneeded.retain(|listed| is_old(now, grace, listed.modified));
            objects += unneeded.len() as u64;
            bytes += unneeded.iter().map(|listed| listed.size).sum::<u64>();
            if !is_trial {
                // The oldest first, so that what is left has no hole whatever happens.
                for listed in unneeded {
                    self.store().delete(&listed.path).await?;
                }
            }
        }
        Ok((objects, bytes))
    }

    /// Looks whether every object of every log is there and, where `reads`, opens it. Gives what is damaged, and the
    /// bytes that were read.
    pub(crate) async fn check_logs(
        &self,
        reads: bool,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(Vec<Damage>, u64), RepositoryError> {
        let (mut damaged, mut read) = (Vec::new(), 0);
        let logs = self.inner.folder.folder(Kind::Log);
        for folder in self.store().folders(&logs).await? {
            let Ok(folder) = folder.parse::<ObjectName>() else {
                continue;
            };
            let entries = match self.log_entries(folder, None).await {
                Ok((entries, _)) => entries,
                Err(RepositoryError::Damaged(damage)) => {
                    damaged.push(damage);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for pair in entries.windows(2) {
                let ([(_, before), (_, after)], path) = (
                    [&pair[0], &pair[1]],
                    self.inner
                        .folder
                        .log_object(folder, object_name(pair[1].1.first, pair[1].1.last)),
                );
                if before.last + 1 != after.first {
                    damaged.push(Damage::of(
                        path,
                        "the object of the log before it is missing",
                    ));
                }
            }
            if !reads {
                continue;
            }
            for (database, entry) in entries {
                match self.change_log(&database).read(&entry).await {
                    Ok(None) => {}
                    Ok(Some(_)) => {
                        read += entry.stored_bytes;
                        progress(entry.stored_bytes);
                    }
                    Err(RepositoryError::Damaged(damage)) => damaged.push(damage),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((damaged, read))
    }

    /// The objects of a log in order, each with the database that it names, and beside them those that were merged into
    /// others and not deleted yet.
    async fn log_entries(
        &self,
        folder: ObjectName,
        database: Option<&str>,
    ) -> Result<(Vec<(String, LogEntry)>, Vec<Listed>), RepositoryError> {
        let mut listed: Vec<((u64, u64), Listed)> = self
            .store()
            .list(&self.inner.folder.log(folder))
            .await?
            .into_iter()
            .filter_map(|listed| Some((numbers_of(listed.name()?), listed)))
            .collect();
        listed.sort_by_key(|((first, last), _)| (*first, std::cmp::Reverse(*last)));
        let (mut kept, mut parts, mut until) = (Vec::new(), Vec::new(), None);
        for (numbers, object) in listed {
            if until.is_some_and(|until| numbers.1 <= until) {
                parts.push(object);
            } else {
                until = Some(numbers.1);
                kept.push((numbers, object));
            }
        }
        let mut entries: Vec<(String, LogEntry)> =
            futures::stream::iter(kept.into_iter().map(|(numbers, listed)| async move {
                let head = self.log_head(numbers, &listed).await?;
                if database.is_some_and(|database| database != head.database) {
                    return Err(RepositoryError::damaged(
                        listed.path,
                        "it belongs to another database's log",
                    ));
                }
                Ok((
                    head.database,
                    LogEntry {
                        first: numbers.0,
                        last: numbers.1,
                        span: head.span,
                        stored_bytes: listed.size,
                        written: listed.modified,
                    },
                ))
            }))
            .buffered(SMALL_REQUESTS)
            .try_collect()
            .await?;
        // What an object says of the one before holds only while that is there.
        for at in 1..entries.len() {
            if entries[at - 1].1.last + 1 != entries[at].1.first {
                entries[at].1.span.continues = false;
            }
        }
        Ok((entries, parts))
    }

    async fn log_head(
        &self,
        (first, last): (u64, u64),
        listed: &Listed,
    ) -> Result<Head, RepositoryError> {
        let object = listed.path.as_ref();
        let name = object_name(first, last);
        let range = 0..listed.size.min(HEAD_BYTES);
        let gone = || RepositoryError::StoreUnavailable {
            place: self.place().to_owned(),
            operation: format!("read {object}"),
            what: "it was merged or deleted while it was read: try again".to_owned(),
        };
        let bytes = self
            .store()
            .get_range(&listed.path, range)
            .await?
            .ok_or_else(gone)?;
        let mut frame = self.sealer().open_first(Kind::Log, name, object, &bytes)?;
        if frame.is_none() && listed.size > HEAD_BYTES {
            let whole = self.store().get(&listed.path).await?.ok_or_else(gone)?;
            frame = self.sealer().open_first(Kind::Log, name, object, &whole)?;
        }
        let frame = frame
            .ok_or_else(|| RepositoryError::damaged(object, "it ends within its first frame"))?;
        let head: Head = from_json(object, &frame)?;
        if (head.first, head.last) != (first, last) {
            return Err(RepositoryError::damaged(object, "it has another number"));
        }
        Ok(head)
    }
}

impl ChangeLog {
    /// The objects of the log, in order.
    ///
    /// # Errors
    ///
    /// When the store does not answer, or an object cannot be read.
    pub async fn entries(&self) -> Result<Vec<LogEntry>, RepositoryError> {
        let (entries, _) = self
            .tenant
            .log_entries(self.folder, Some(&self.database))
            .await?;
        Ok(entries.into_iter().map(|(_, entry)| entry).collect())
    }

    /// The number of the object that comes after these.
    #[must_use]
    pub fn next_number(entries: &[LogEntry]) -> u64 {
        entries.last().map_or(1, |entry| entry.last + 1)
    }

    /// Writes an object under a number that must be free. It is durable when this returns. Gives false when another writer
    /// has taken the number: then the log is that one's.
    ///
    /// # Errors
    ///
    /// When the fence or the store refuses.
    pub async fn append(
        &self,
        number: u64,
        part: &LogPart,
        fence: &dyn Fence,
    ) -> Result<bool, RepositoryError> {
        self.tenant.inner.repository.writable()?;
        fence.check().await.map_err(RepositoryError::Fenced)?;
        Ok(self.put(number, number, part).await? == Put::Created)
    }

    async fn put(&self, first: u64, last: u64, part: &LogPart) -> Result<Put, RepositoryError> {
        let head = Head {
            database: self.database.clone(),
            first,
            last,
            span: part.span.clone(),
        };
        let name = object_name(first, last);
        let (sealer, part) = (self.tenant.sealer().clone(), part.clone());
        let object = self
            .tenant
            .cpu()
            .run(move || {
                let frames = [to_json(&head), to_json(&part.moments)];
                sealer.seal(Kind::Log, name, &[&frames[0], &frames[1], &part.bytes])
            })
            .await;
        self.tenant
            .store()
            .put_new(&self.path(first, last), object.into())
            .await
    }

    fn path(&self, first: u64, last: u64) -> Path {
        let name = object_name(first, last);
        self.tenant.inner.folder.log_object(self.folder, name)
    }

    /// An object with its moments and changes; nothing where it has been merged into another one since it was listed.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is missing.
    pub async fn read(&self, entry: &LogEntry) -> Result<Option<LogPart>, RepositoryError> {
        let path = self.path(entry.first, entry.last);
        let object = path.to_string();
        let Some(bytes) = self.tenant.store().get(&path).await? else {
            let is_merged = self
                .entries()
                .await?
                .iter()
                .any(|other| other.first <= entry.first && entry.last <= other.last);
            return if is_merged {
                Ok(None)
            } else {
                Err(RepositoryError::damaged(&object, "it is missing"))
            };
        };
        let sealer = self.tenant.sealer().clone();
        let name = object_name(entry.first, entry.last);
        let span = entry.span.clone();
        let part = self.tenant.cpu().run(move || {
            let [_, moments, bytes] = sealer.open::<3>(Kind::Log, name, &object, &bytes)?;
            let part = LogPart {
                moments: from_json(&object, &moments)?,
                bytes: bytes.into(),
                span,
            };
            if !part.span.fits(part.bytes.len() as u64) {
                return Err(RepositoryError::damaged(
                    &object,
                    "it holds more or less than it says",
                ));
            }
            Ok(part)
        });
        part.await.map(Some)
    }

    /// Merges old objects where there are enough of them; one step at a time. Only the log's writer calls it. Gives how
    /// many were merged.
    ///
    /// # Errors
    ///
    /// When the fence or the store refuses, or an object cannot be read.
    pub async fn merge(&self, fence: &dyn Fence) -> Result<usize, RepositoryError> {
        let entries = self.entries().await?;
        let Some(range) = plan_merge(&entries) else {
            return Ok(0);
        };
        let parts = &entries[range];
        let (mut moments, mut bytes) = (Vec::new(), Vec::new());
        for entry in parts {
            let Some(part) = self.read(entry).await? else {
                return Ok(0);
            };
            moments.extend(part.moments);
            bytes.extend_from_slice(&part.bytes);
        }
        let (first, last) = (&parts[0], &parts[parts.len() - 1]);
        let whole = LogPart {
            span: LogSpan::new(
                first.span.history.clone(),
                first.span.begin,
                last.span.end,
                first.span.continues,
                &moments,
            )
            .counted_in(first.span.unit),
            moments,
            bytes: bytes.into(),
        };
        fence.check().await.map_err(RepositoryError::Fenced)?;
        self.put(first.first, last.last, &whole).await?;
        // Whoever else merged the same numbers merged the same bytes: what is there is looked at before anything goes.
        let merged = LogEntry {
            first: first.first,
            last: last.last,
            span: whole.span.clone(),
            stored_bytes: 0,
            written: last.written,
        };
        if self.read(&merged).await?.as_ref() != Some(&whole) {
            return Err(RepositoryError::damaged(
                self.path(first.first, last.last),
                "it is not what its parts are",
            ));
        }
        fence.check().await.map_err(RepositoryError::Fenced)?;
        let paths: Vec<Path> = parts
            .iter()
            .map(|entry| self.path(entry.first, entry.last))
            .collect();
        self.tenant.store().delete_all(paths).await?;
        Ok(parts.len())
    }
}

/// How often an object was merged: objects are merged with their like, so that each byte is written again few times.
fn level(entry: &LogEntry) -> u32 {
    (entry.last - entry.first + 1).ilog(MERGED_AT_ONCE as u64)
}

/// The oldest objects that are to become one: neighbours of one level that are enough, or after which nothing more can come.
fn plan_merge(entries: &[LogEntry]) -> Option<std::ops::Range<usize>> {
    let old = &entries[..entries.len().saturating_sub(NEVER_MERGED)];
    let mut begin = 0;
    while begin < old.len() {
        let mut end = begin + 1;
        let mut bytes = old[begin].stored_bytes;
        let mut is_closed = bytes >= FULL_BYTES;
        while !is_closed && end < old.len() && end - begin < MERGED_AT_ONCE {
            let (before, next) = (&old[end - 1], &old[end]);
            if !next.span.continues
                || next.span.history != before.span.history
                || next.span.begin != before.span.end
                || next.span.unit != before.span.unit
                || next.stored_bytes >= FULL_BYTES
                || bytes + next.stored_bytes > MOST_MERGED_BYTES
            {
                is_closed = true;
            } else if level(next) != level(before) {
                break;
            } else {
                bytes += next.stored_bytes;
                end += 1;
            }
        }
        if end - begin == MERGED_AT_ONCE || (is_closed && end - begin > 1) {
            return Some(begin..end);
        }
        begin = end;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(first: u64, last: u64, bytes: u64) -> LogEntry {
        LogEntry {
            first,
            last,
            span: LogSpan::new("a".to_owned(), first, last + 1, first > 1, &[]),
            stored_bytes: bytes,
            written: Timestamp::from_micros(0),
        }
    }

    /// Merges a list as often as there is something to merge.
    fn merge_all(entries: &mut Vec<LogEntry>) -> u64 {
        let mut written = 0;
        while let Some(range) = plan_merge(entries) {
            let parts = &entries[range.clone()];
            let bytes = parts.iter().map(|part| part.stored_bytes).sum();
            let continues = parts[0].span.continues;
            let mut merged = entry(parts[0].first, parts[parts.len() - 1].last, bytes);
            merged.span.continues = continues;
            written += bytes;
            entries.splice(range, [merged]);
        }
        written
    }

    #[test]
    fn a_week_of_small_objects_becomes_few_and_each_byte_is_written_again_few_times() {
        let mut entries = Vec::new();
        let mut written = 0;
        let count = 7 * 24 * 60 * 60 / 10;
        for number in 1..=count {
            entries.push(entry(number, number, 500));
            written += merge_all(&mut entries);
        }
        assert!(entries.len() < 4 * 64, "{}", entries.len());
        assert!(written <= 4 * 500 * count, "{written}");
        let mut next = 1;
        for entry in &entries {
            assert_eq!(entry.first, next);
            next = entry.last + 1;
        }
        assert!(
            entries[entries.len() - NEVER_MERGED..]
                .iter()
                .all(|entry| entry.first == entry.last)
        );
    }

    #[test]
    fn large_objects_and_gaps_stay_apart() {
        let mut entries: Vec<LogEntry> = (1..=300).map(|n| entry(n, n, 4 << 20)).collect();
        entries[20].span.continues = false;
        merge_all(&mut entries);
        assert!(
            entries
                .iter()
                .all(|entry| entry.stored_bytes <= MOST_MERGED_BYTES)
        );
        assert!(
            entries
                .iter()
                .any(|entry| entry.first == 21 && !entry.span.continues)
        );
        assert!(entries.len() < 300 / 4 + NEVER_MERGED, "{}", entries.len());
    }

    #[test]
    fn a_name_says_its_numbers() {
        assert_eq!(numbers_of(object_name(7, 900)), (7, 900));
        assert!(object_name(7, 7).to_string().ends_with("0000000000000007"));
    }
}
