//! Free space while shadows are there: parts that merges replace stay on the disk as long as a shadow links them.
//!
//! A backup that would fill the disk of a server that people use gives up first, and drops its shadows.

use std::{collections::BTreeMap, time::Duration};

use fettler_engine::EngineError;

use crate::http::Session;

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// What a large disk keeps free.
const ENOUGH_BYTES: u64 = 16 << 30;
/// What a small one keeps free: a part of all it has.
const PART_OF_ALL: u64 = 20;
/// What a disk that is nearly full keeps: a part of what was free before.
const PART_OF_FREE: u64 = 2;

/// A disk's space, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    free: u64,
    total: u64,
}

/// How little may be free on each disk, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Floor(BTreeMap<String, u64>);

/// What is there; nothing where the server does not tell (before 19.15).
async fn rooms(session: &Session) -> Result<BTreeMap<String, Room>, EngineError> {
    let rows = session
        .try_rows(
            "SELECT name, toString(free_space), toString(total_space) FROM system.disks",
            &[],
            "asking for free space",
        )
        .await?
        .unwrap_or_default();
    Ok(rows
        .into_iter()
        .filter_map(|row| <[String; 3]>::try_from(row).ok())
        .filter_map(|[name, free, total]| {
            let room = Room {
                free: free.parse().ok()?,
                total: total.parse().ok()?,
            };
            // A disk in a bucket has as much as can be written.
            (room.total > 0 && room.total < u64::MAX / 2).then_some((name, room))
        })
        .collect())
}

const fn least(one: u64, other: u64) -> u64 {
    if one < other { one } else { other }
}

impl Room {
    const fn floor(self) -> u64 {
        least(
            least(self.total / PART_OF_ALL, ENOUGH_BYTES),
            self.free / PART_OF_FREE,
        )
    }
}

impl Floor {
    /// Looks before there are shadows.
    pub(crate) async fn of(session: &Session) -> Result<Self, EngineError> {
        let rooms = rooms(session).await?;
        Ok(Self(
            rooms
                .into_iter()
                .map(|(name, room)| (name, room.floor()))
                .collect(),
        ))
    }

    /// The first disk that has less.
    fn undercut(&self, now: &BTreeMap<String, Room>) -> Option<(String, u64, u64)> {
        now.iter().find_map(|(name, room)| {
            let floor = *self.0.get(name)?;
            (room.free < floor).then(|| (name.clone(), room.free, floor))
        })
    }

    /// An error where a disk has less.
    pub(crate) async fn look(&self, session: &Session) -> Result<(), EngineError> {
        if self.0.is_empty() {
            return Ok(());
        }
        match self.undercut(&rooms(session).await?) {
            None => Ok(()),
            Some((disk, free_bytes, needed_bytes)) => Err(EngineError::NoSpace {
                place: format!(
                    "the disk {disk} of {}, while a backup's shadows keep parts that were merged (they are dropped now),",
                    session.server()
                ),
                free_bytes,
                needed_bytes,
            }),
        }
    }

    /// Waits until a disk has less, which is an error; for ever where none has.
    pub(crate) async fn watch(&self, session: &Session) -> EngineError {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.look(session).await {
                // Whoever reads finds the same, if it lasts.
                Ok(()) | Err(EngineError::Unreachable { .. } | EngineError::Database { .. }) => {}
                Err(error) => return error,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1 << 30;

    #[test]
    fn a_disk_keeps_a_twentieth_or_16_gb_or_half_of_what_was_free() {
        for (free, total, floor) in [
            (5000 * GB, 10_000 * GB, 16 * GB),
            (50 * GB, 100 * GB, 5 * GB),
            (2 * GB, 100 * GB, GB),
        ] {
            assert_eq!(Room { free, total }.floor(), floor);
        }
    }

    #[test]
    fn the_disk_that_runs_full_is_named_and_a_new_one_is_none() {
        let floor = Floor(BTreeMap::from([("a".to_owned(), GB), ("b".to_owned(), GB)]));
        let room = |free| Room {
            free,
            total: 100 * GB,
        };
        let now = |b, c| {
            BTreeMap::from([
                ("a".to_owned(), room(GB)),
                ("b".to_owned(), room(b)),
                ("c".to_owned(), room(c)),
            ])
        };
        assert_eq!(floor.undercut(&now(2 * GB, 0)), None);
        let (name, free, needed) = floor.undercut(&now(GB - 1, 0)).unwrap();
        assert_eq!((name.as_str(), free, needed), ("b", GB - 1, GB));
    }
}
