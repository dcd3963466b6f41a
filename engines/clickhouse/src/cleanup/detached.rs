//! Detached parts: what a server took out of a table since it was broken, replaced or left over, and what somebody took out by hand.
//! Nobody reads them; they keep their space until somebody drops them.

use async_trait::async_trait;
use fettler_engine::{EngineContext, EngineError, WholeFate, WholeRemover, remove_wholes};
use fettler_model::{CleanupAction, CleanupItem, CleanupPlan, CleanupRemoved, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    error::{Refusal, codes},
    http::Session,
    select::Excluded,
    sql::{literal, table as full_table},
};

const DOING: &str = "looking at detached parts";
/// Reasons that say that somebody works on the part at this moment.
const IN_WORK: [&str; 3] = ["attaching", "deleting", "tmp-fetch"];
/// Reasons of parts that may hold what nothing else does, where there is no replica.
const MAY_BE_ALONE: [&str; 4] = [
    "broken",
    "broken-on-start",
    "unexpected",
    "covered-by-broken",
];
/// Columns that a server must tell; the last of them came in 23.1.
const NEEDED: [&str; 2] = ["bytes_on_disk", "modification_time"];

/// A part, as the plan keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    database: String,
    table: String,
    name: String,
    reason: String,
    bytes: u64,
    /// Seconds since 1970.
    written: i64,
}

impl Part {
    fn shown(&self) -> String {
        format!("{}.{}/{}", self.database, self.table, self.name)
    }
}

/// What the plan keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DetachedData {
    parts: Vec<Part>,
}

async fn list(session: &Session, condition: &str) -> Result<Vec<Part>, EngineError> {
    let rows = session
        .rows(
            &format!(
                "SELECT database, table, name, ifNull(reason, ''), toString(bytes_on_disk), toString(toUnixTimestamp(modification_time)) \
                 FROM system.detached_parts{condition} ORDER BY database, table, name"
            ),
            DOING,
        )
        .await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| <[String; 6]>::try_from(row).ok())
        .map(|[database, table, name, reason, bytes, written]| Part {
            database,
            table,
            name,
            reason,
            bytes: bytes.parse().unwrap_or(0),
            written: written.parse().unwrap_or(i64::MAX),
        })
        .collect())
}

/// Plans.
pub(super) async fn plan(
    session: &Session,
    mut plan: CleanupPlan,
) -> Result<CleanupPlan, EngineError> {
    let CleanupAction::DetachedParts { only, by_hand, .. } = plan.what.clone() else {
        return Ok(plan);
    };
    for column in NEEDED {
        if !session.has_column("detached_parts", column).await? {
            return Err(EngineError::Missing {
                code: "version",
                what: format!(
                    "{} is ClickHouse {}, which does not tell how large and how old detached parts are (`system.detached_parts.{column}`)",
                    session.server(),
                    session.version
                ),
                remedy: "ClickHouse 23.1 and later tell; before, remove them by hand from the folders `detached`".to_owned(),
            });
        }
    }
    let named = Excluded::of(&only)?;
    let cutoff = plan
        .cutoff
        .unwrap_or(plan.made)
        .micros()
        .div_euclid(1_000_000);
    let (mut parts, mut by_hand_left, mut may_be_alone) = (Vec::new(), (0, 0), 0);
    for part in list(session, "").await? {
        let name = format!("{}.{}", part.database, part.table);
        let is_meant = session
            .params()
            .database
            .as_ref()
            .is_none_or(|database| *database == part.database)
            && (only.is_empty() || named.has(&name));
        if !is_meant || part.written >= cutoff {
            continue;
        }
        if IN_WORK.contains(&part.reason.as_str()) {
            plan.notes.push(format!(
                "{} stays: somebody may be working on it ({})",
                part.shown(),
                part.reason
            ));
            continue;
        }
        if part.reason.is_empty() && !by_hand {
            by_hand_left.0 += 1;
            by_hand_left.1 += part.bytes;
            continue;
        }
        may_be_alone += u64::from(MAY_BE_ALONE.contains(&part.reason.as_str()));
        let written = Timestamp::from_micros(part.written * 1_000_000).to_string();
        plan.items.push(CleanupItem {
            name: part.shown(),
            rows: 1,
            bytes: part.bytes,
            oldest: Some(written.clone()),
            newest: Some(written),
            note: if part.reason.is_empty() {
                "detached by hand".to_owned()
            } else {
                part.reason.clone()
            },
        });
        parts.push(part);
    }
    if by_hand_left.0 > 0 {
        plan.notes.push(format!(
            "{} parts of {} bytes stay: somebody has detached them by hand (`--by-hand` takes them too)",
            by_hand_left.0, by_hand_left.1
        ));
    }
    if may_be_alone > 0 {
        plan.notes.push(format!(
            "{may_be_alone} of the parts are broken or were not expected: where no replica has their rows, nothing else may have them"
        ));
    }
    plan.engine_data = json!(DetachedData { parts });
    Ok(plan)
}

/// Drops them.
pub(super) async fn remove(
    context: &EngineContext,
    session: &Session,
    data: &DetachedData,
) -> Result<CleanupRemoved, EngineError> {
    let names: Vec<String> = data.parts.iter().map(Part::shown).collect();
    let mut remover = Remover {
        session,
        parts: &data.parts,
    };
    remove_wholes(context, &names, &mut remover).await
}

struct Remover<'a> {
    session: &'a Session,
    parts: &'a [Part],
}

#[async_trait]
impl WholeRemover for Remover<'_> {
    async fn remove(&mut self, number: usize) -> Result<WholeFate, EngineError> {
        let part = &self.parts[number];
        let condition = format!(
            " WHERE database = {} AND table = {} AND name = {}",
            literal(&part.database),
            literal(&part.table),
            literal(&part.name)
        );
        match list(self.session, &condition).await?.as_slice() {
            [] => return Ok(WholeFate::gone()),
            [now] if now == part => {}
            _ => return Ok(WholeFate::changed("it is another one than at the plan")),
        }
        let drop = format!(
            "ALTER TABLE {} DROP DETACHED PART {} SETTINGS allow_drop_detached = 1",
            full_table(&part.database, &part.table),
            literal(&part.name)
        );
        match self
            .session
            .try_run(&drop, &[], "dropping a detached part")
            .await?
        {
            Ok(()) => Ok(WholeFate::removed()),
            Err(Refusal { code, .. }) if is_missing(code) => Ok(WholeFate::gone()),
            Err(refusal) if refusal.is_not_allowed() => {
                Err(refusal.doing(&self.session.server(), "dropping a detached part"))
            }
            Err(refusal) => Ok(WholeFate::busy(format!("the server refuses ({refusal})"))),
        }
    }
}

/// UNKNOWN_TABLE, BAD_DATA_PART_NAME
fn is_missing(code: u32) -> bool {
    matches!(code, codes::UNKNOWN_TABLE | 233)
}
