//! Puts the documents of a shard in the order in which a backup keeps them: that of their shard's history.
//!
//! A server gives its documents in the order of its files, which merging changes. Each change of a document gets the next
//! number of its shard's history (`_seq_no`), and keeps it whatever is merged. In that order, what was not changed stays where
//! it was beside its neighbours, and what is new comes at the end.

use std::{io, path::Path};

use bytes::Bytes;
use fettler_engine::{EngineError, RowHasher};
use fettler_engine_order::{BUCKETS, Partitions};
use fettler_model::Fingerprint;

use crate::hits::{Form, Hit, Page, Unusable, add_to, put_lines};

/// Pieces in which a stream is given back.
const PIECE_BYTES: usize = 256 << 10;
/// Bytes of an entry before its lines: the number that it is ordered by.
const NUMBER_BYTES: usize = 8;

/// Takes the documents of a shard page by page. Blocks.
///
/// Some 30 MiB of memory are used whatever the size of the shard; the disk has to have room for its documents once.
#[derive(Debug)]
pub(crate) struct Collector {
    form: Form,
    hasher: RowHasher,
    /// How far numbers are moved up, so that the first bits of the largest one tell them apart.
    shift: u32,
    /// Nothing where only the fingerprint is wanted.
    entries: Option<Partitions>,
    fingerprint: Fingerprint,
    room: Vec<u8>,
    loses_a_document: bool,
}

impl Collector {
    /// For a fingerprint alone.
    pub(crate) fn of_copy(hasher: RowHasher) -> Self {
        Self {
            form: Form::Index,
            hasher,
            shift: 0,
            entries: None,
            fingerprint: Fingerprint::empty(),
            room: Vec::new(),
            loses_a_document: false,
        }
    }

    /// For a backup; `most` is about the largest number of the shard's history. `loses_a_document` is only for the test
    /// of rule 30.
    pub(crate) fn of_backup(
        hasher: RowHasher,
        form: Form,
        most: u64,
        folder: &Path,
        loses_a_document: bool,
    ) -> Self {
        Self {
            form,
            shift: shift_for(most),
            entries: Some(Partitions::new(folder)),
            loses_a_document,
            ..Self::of_copy(hasher)
        }
    }

    /// Takes a page as it was sent.
    pub(crate) fn take(&mut self, page: &[u8]) -> Result<(), CollectError> {
        let page = Page::read(page)?;
        for hit in &page.hits.hits {
            if std::mem::take(&mut self.loses_a_document) {
                continue;
            }
            add_to(&mut self.fingerprint, &self.hasher, hit, &mut self.room)?;
            self.keep(hit)?;
        }
        Ok(())
    }

    fn keep(&mut self, hit: &Hit<'_>) -> Result<(), CollectError> {
        let Some(entries) = &mut self.entries else {
            return Ok(());
        };
        let number = hit.seq_no.unwrap_or(0);
        self.room.clear();
        self.room.extend_from_slice(&number.to_be_bytes());
        put_lines(hit, self.form, &mut self.room)?;
        entries.push(scaled(number, self.shift), &self.room)?;
        Ok(())
    }

    /// What was seen.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Gives the lines of all documents in order, in pieces of about 256 KiB.
    pub(crate) fn drain(
        mut self,
        on: &mut dyn FnMut(Bytes) -> Result<(), CollectError>,
    ) -> Result<(), CollectError> {
        let Some(entries) = &mut self.entries else {
            return Ok(());
        };
        let mut piece = Vec::with_capacity(PIECE_BYTES + (16 << 10));
        for bucket in 0..BUCKETS {
            entries.drain(bucket, Ord::cmp, &mut |entry, _| {
                piece.extend_from_slice(entry.get(NUMBER_BYTES..).unwrap_or_default());
                if piece.len() >= PIECE_BYTES {
                    on(Bytes::from(std::mem::take(&mut piece)))?;
                }
                Ok::<_, CollectError>(())
            })?;
        }
        if piece.is_empty() {
            return Ok(());
        }
        on(Bytes::from(piece))
    }
}

/// How far numbers up to about `most` can be moved up. One more bit is left for those that come while it is read.
fn shift_for(most: u64) -> u32 {
    most.leading_zeros().saturating_sub(1)
}

/// A number moved up; the few that are too large for that come last together, and are told apart by the numbers themselves.
fn scaled(number: u64, shift: u32) -> u64 {
    number.min(u64::MAX >> shift) << shift
}

/// Why documents could not be collected.
#[derive(Debug)]
pub(crate) enum CollectError {
    /// A file of the scratch folder.
    Local(io::Error),
    /// What the server sent.
    Unusable(Unusable),
    /// Nobody wants the documents any more; whoever did has the reason.
    Unheard,
}

impl CollectError {
    /// What it means.
    pub(crate) fn doing(self, doing: &str) -> EngineError {
        match self {
            Self::Local(error) => EngineError::local(doing.to_owned(), error),
            Self::Unusable(Unusable(what)) => EngineError::Database {
                what: format!("{doing}: the server answered what was not expected: {what}"),
                transient: false,
            },
            Self::Unheard => EngineError::Stopped,
        }
    }
}

impl From<io::Error> for CollectError {
    fn from(error: io::Error) -> Self {
        Self::Local(error)
    }
}

impl From<Unusable> for CollectError {
    fn from(error: Unusable) -> Self {
        Self::Unusable(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(numbers: &[u64]) -> String {
        let hits: Vec<String> = numbers
            .iter()
            .map(|number| format!(r#"{{"_id":"d{number}","_version":1,"_seq_no":{number},"_source":{{"n":{number}}}}}"#))
            .collect();
        format!(r#"{{"hits":{{"hits":[{}]}}}}"#, hits.join(","))
    }

    fn stored(pages: &[&[u64]], most: u64) -> String {
        let folder = tempfile::tempdir().unwrap();
        let mut collector = Collector::of_backup(
            RowHasher::new(&[7; 32]),
            Form::Create,
            most,
            folder.path(),
            false,
        );
        for numbers in pages {
            collector.take(page(numbers).as_bytes()).unwrap();
        }
        let mut bytes = Vec::new();
        collector
            .drain(&mut |piece| {
                bytes.extend_from_slice(&piece);
                Ok(())
            })
            .unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn documents_are_kept_in_the_order_of_their_shards_history_however_they_come() {
        let expected = stored(&[&[0, 1, 5, 900, 70_000]], 70_000);
        let order: Vec<&str> = expected
            .lines()
            .filter(|line| line.starts_with("{\"n\""))
            .collect();
        assert_eq!(
            order,
            [
                r#"{"n":0}"#,
                r#"{"n":1}"#,
                r#"{"n":5}"#,
                r#"{"n":900}"#,
                r#"{"n":70000}"#
            ]
        );
        assert_eq!(stored(&[&[900, 5], &[70_000, 0, 1]], 70_000), expected);
        // Also where more came than was known of at the beginning.
        assert_eq!(stored(&[&[900, 5], &[70_000, 0, 1]], 3), expected);
        assert_eq!(stored(&[&[900, 5], &[70_000, 0, 1]], u64::MAX), expected);
    }

    #[test]
    fn numbers_keep_their_order_when_they_are_moved_up() {
        for most in [0, 1, 5, 1 << 40, u64::MAX] {
            let shift = shift_for(most);
            let mut numbers = [0, 1, most / 2, most, most.saturating_mul(2), u64::MAX];
            numbers.sort_unstable();
            assert!(
                numbers
                    .windows(2)
                    .all(|pair| scaled(pair[0], shift) <= scaled(pair[1], shift)),
                "{most}"
            );
        }
        assert!(scaled(1 << 20, shift_for(1 << 20)) >> 58 > 0);
    }
}
