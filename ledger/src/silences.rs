//! What should have been heard of and was not (P11). A silence is a row for as long as it lasts; its beginning and
//! its end are an event each, written in the transaction that changes the row, so that several watchers tell of it
//! once.

use std::collections::BTreeMap;

use fettler_model::{TenantId, Timestamp};
use serde_json::{Value, json};
use sqlx::any::AnyRow;

use crate::{
    Ledger, Result,
    job::event,
    row::{Fields, json_text},
    store::{Transaction, V},
};

const DOING: &str = "telling of a silence";

/// What is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SilenceKind {
    /// No scheduler leads.
    Leader,
    /// A policy's due time passed and was not decided.
    Policy,
    /// A backup should have been proven and was not.
    Proof,
    /// A worker vanished, and none stands in for it.
    Worker,
}

impl SilenceKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Leader, Self::Policy, Self::Proof, Self::Worker];

    /// The kind's name; its events are `silence.<name>` and `silence.<name>.over`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Policy => "policy",
            Self::Proof => "proof",
            Self::Worker => "worker",
        }
    }
}

/// One thing that is silent.
#[derive(Clone, Debug, PartialEq)]
pub struct Silence {
    /// Names it among those of its kind.
    pub name: String,
    /// Whose it is; the operator's own tenant where it is the fleet's.
    pub tenant: TenantId,
    /// Since when.
    pub since: Timestamp,
    /// What else there is to say.
    pub data: Value,
}

/// What became silent, and what was heard of again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SilenceChange {
    /// It is silent now and was not before.
    pub raised: Vec<Silence>,
    /// It was silent and is not now.
    pub cleared: Vec<Silence>,
}

impl Ledger {
    /// Says what of a kind is silent now. What is new is raised, what is not among it any more is cleared; each is
    /// told to one caller only.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn set_silences(
        &self,
        kind: SilenceKind,
        silent: &[Silence],
    ) -> Result<SilenceChange> {
        let known = self.silences(kind).await?;
        let now_silent: BTreeMap<&str, &Silence> = silent
            .iter()
            .map(|silence| (silence.name.as_str(), silence))
            .collect();
        let before: BTreeMap<&str, &Silence> = known
            .iter()
            .map(|silence| (silence.name.as_str(), silence))
            .collect();
        let new: Vec<&Silence> = now_silent
            .values()
            .copied()
            .filter(|silence| !before.contains_key(silence.name.as_str()))
            .collect();
        let over: Vec<&Silence> = before
            .values()
            .copied()
            .filter(|silence| !now_silent.contains_key(silence.name.as_str()))
            .collect();
        let mut change = SilenceChange::default();
        if new.is_empty() && over.is_empty() {
            return Ok(change);
        }
        let mut transaction = self.inner.store.begin(DOING).await?;
        let now = transaction.now().await?;
        // In the order of their names, as every watcher does.
        for silence in new {
            let added = transaction
                .execute(
                    "INSERT INTO silence (kind, name, tenant, since, data) VALUES ($1, $2, $3, $4, $5)
                     ON CONFLICT (kind, name) DO NOTHING",
                    &[
                        V::T(kind.as_str()),
                        V::T(&silence.name),
                        V::T(silence.tenant.as_str()),
                        V::N(silence.since.micros()),
                        V::S(json_text(&silence.data)?),
                    ],
                )
                .await?;
            if added > 0 {
                tell(&mut transaction, now, kind, silence, "").await?;
                change.raised.push(silence.clone());
            }
        }
        for silence in over {
            let removed = transaction
                .execute(
                    "DELETE FROM silence WHERE kind = $1 AND name = $2",
                    &[V::T(kind.as_str()), V::T(&silence.name)],
                )
                .await?;
            if removed > 0 {
                tell(&mut transaction, now, kind, silence, ".over").await?;
                change.cleared.push(silence.clone());
            }
        }
        transaction.commit().await?;
        Ok(change)
    }

    /// What of a kind is silent, by name.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn silences(&self, kind: SilenceKind) -> Result<Vec<Silence>> {
        let rows = self
            .inner
            .store
            .read(
                DOING,
                "SELECT name, tenant, since, data FROM silence WHERE kind = $1 ORDER BY name",
                &[V::T(kind.as_str())],
            )
            .await?;
        rows.iter().map(silence).collect()
    }
}

/// Tells that a silence began, or is over.
async fn tell(
    transaction: &mut Transaction,
    now: Timestamp,
    kind: SilenceKind,
    silence: &Silence,
    suffix: &str,
) -> Result<()> {
    let name = format!("silence.{}{suffix}", kind.as_str());
    let data = json!({"name": silence.name, "since": silence.since, "about": silence.data});
    event(transaction, now, &silence.tenant, &name, None, &data).await
}

fn silence(row: &AnyRow) -> Result<Silence> {
    let fields = Fields::of(row, DOING);
    Ok(Silence {
        name: fields.text("name")?,
        tenant: fields.parsed("tenant")?,
        since: fields.time("since")?,
        data: fields.json("data")?,
    })
}
