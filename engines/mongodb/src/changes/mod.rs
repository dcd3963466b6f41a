//! Points in time: the oplog behind a backup is archived as it grows ([`archive`], by [`tail`] and [`clock`]), and played on the
//! backup when that is put back ([`play`], by [`shapes`] for what becomes of collections themselves).
//!
//! A position is an operation time ([`number_of`]). An archive holds entries as the server wrote them, one after another, without
//! those that change nothing and those of databases that are the server's own, or a sandbox's.

pub(crate) mod archive;
mod clock;
pub(crate) mod play;
mod shapes;
mod tail;

use bson::Timestamp;
use fettler_engine::BackupReport;
use fettler_model::LogPosition;

use crate::{sandbox, session::Session};

/// Databases of which no entry is kept.
const OWN_DATABASES: [&str; 2] = ["config", "local"];
/// What the order is called of a server that has an oplog and tells no set's name.
const NO_SET: &str = "oplog";

/// An operation time as a number: seconds, then the counter within them. It rises with the oplog.
pub(crate) fn number_of(moment: Timestamp) -> u64 {
    u64::from(moment.time) << 32 | u64::from(moment.increment)
}

/// The operation time of a number.
fn moment_of(number: u64) -> Timestamp {
    Timestamp {
        time: u32::try_from(number >> 32).expect("32 bits are left"),
        increment: u32::try_from(number & u64::from(u32::MAX)).expect("32 bits are left"),
    }
}

/// Whose order of changes it is. Whether it is the same that was read before is told by its entries: that of the last
/// operation time must still be there.
pub(crate) fn history(session: &Session) -> String {
    session
        .hello
        .set_name
        .clone()
        .unwrap_or_else(|| NO_SET.to_owned())
}

/// The place of a backup in the oplog, where it is of a whole server and of one moment.
pub(crate) fn log_position(report: &BackupReport) -> Option<LogPosition> {
    let field = |name: &str| u32::try_from(report.position.get(name)?.as_u64()?).ok();
    Some(LogPosition {
        history: report.position.get("history")?.as_str()?.to_owned(),
        offset: number_of(Timestamp {
            time: field("time")?,
            increment: field("increment")?,
        }),
    })
}

/// Where the backup's reading began: a transaction that was open at the backup's moment has no entry before.
pub(crate) fn changes_since(report: &BackupReport) -> Option<u64> {
    report.position.get("since")?.as_u64()
}

/// Whether entries of a database are of no use.
fn is_left_out(database: &str) -> bool {
    OWN_DATABASES.contains(&database) || sandbox::is_some_scratch(database)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_an_operation_time_and_keeps_its_order() {
        let moments = [(1, 7), (1, 8), (2, 0), (u32::MAX, u32::MAX)]
            .map(|(time, increment)| Timestamp { time, increment });
        assert!(moments.is_sorted_by_key(|moment| number_of(*moment)));
        for moment in moments {
            assert_eq!(moment_of(number_of(moment)), moment);
        }
    }

    #[test]
    fn databases_of_the_servers_own_and_of_sandboxes_are_left_out() {
        assert!(is_left_out("config") && is_left_out("local"));
        assert!(!is_left_out("shop") && !is_left_out("admin"));
    }
}
