//! Tokens of the HTTP interface. The ledger knows their hashes only; who makes a token shows it once.

use std::time::Duration;

use fettler_model::{TenantId, Timestamp, TokenId, TokenName};
use sqlx::any::AnyRow;

use crate::{
    KnownToken, Ledger, LedgerError, NewToken, Result, TokenRecord, row::Fields, store::V,
};

const READING: &str = "reading tokens";
const TOKEN: &str = "id, name, tenant, role, created, expires, last_used";
/// The last use is written at most this often.
const TOUCH_EVERY: Duration = Duration::from_secs(60);
/// A list of tokens is not longer: they are made by hand.
const MAX_LISTED: usize = 1000;

impl Ledger {
    /// Adds a token by its hash.
    ///
    /// # Errors
    ///
    /// When its tenant has a token of this name, or is not there.
    pub async fn add_token(&self, token: &NewToken) -> Result<TokenRecord> {
        if let Some(tenant) = &token.tenant {
            self.tenant(tenant).await?;
        }
        let mut transaction = self.inner.store.begin("adding a token").await?;
        let now = transaction.now().await?;
        let id = TokenId::new();
        let added = transaction
            .execute(
                "INSERT INTO token (id, hash, name, tenant, role, created, expires) VALUES ($1, $2, $3, $4, $5, $6, $7)
                 ON CONFLICT DO NOTHING",
                &[
                    V::S(id.to_string()),
                    V::B(&token.hash),
                    V::T(token.name.as_str()),
                    V::OT(token.tenant.as_ref().map(ToString::to_string)),
                    V::T(token.role.as_str()),
                    V::N(now.micros()),
                    V::ON(token.expires.map(Timestamp::micros)),
                ],
            )
            .await?;
        if added == 0 {
            return Err(LedgerError::Exists {
                what: "token",
                name: token.name.to_string(),
            });
        }
        transaction.commit().await?;
        Ok(TokenRecord {
            id,
            name: token.name.clone(),
            tenant: token.tenant.clone(),
            role: token.role,
            created: now,
            expires: token.expires,
            last_used: None,
        })
    }

    /// The tokens of a tenant, or all of them, by tenant and name.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn tokens(&self, tenant: Option<&TenantId>) -> Result<Vec<TokenRecord>> {
        let (condition, values) = match tenant {
            Some(tenant) => ("tenant = $1", vec![V::T(tenant.as_str())]),
            None => ("1 = 1", Vec::new()),
        };
        let rows = self
            .inner
            .store
            .read(
                READING,
                format!(
                    "SELECT {TOKEN} FROM token WHERE {condition} ORDER BY COALESCE(tenant, ''), name LIMIT {MAX_LISTED}"
                ),
                &values,
            )
            .await?;
        rows.iter().map(token_record).collect()
    }

    /// Takes a token away: the next request that bears it is refused.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub async fn remove_token(&self, id: TokenId) -> Result<()> {
        let mut transaction = self.inner.store.begin("removing a token").await?;
        let text = id.to_string();
        let removed = transaction
            .execute("DELETE FROM token WHERE id = $1", &[V::T(&text)])
            .await?;
        if removed == 0 {
            return Err(no_token(&text));
        }
        transaction.commit().await
    }

    /// The token with this hash, and whether it has expired by the ledger's clock.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub async fn token_by_hash(&self, hash: &[u8; 32]) -> Result<KnownToken> {
        let store = &self.inner.store;
        // One statement: each request of the interface asks this.
        let now = store.dialect.clock().map_or_else(
            || Timestamp::now().micros().to_string(),
            |clock| format!("({clock})"),
        );
        let row = store
            .read_one(
                READING,
                format!("SELECT {TOKEN}, {now} AS now FROM token WHERE hash = $1"),
                &[V::B(hash)],
            )
            .await?
            .ok_or_else(|| no_token("…"))?;
        let record = token_record(&row)?;
        let now = Fields::of(&row, READING).time("now")?;
        Ok(KnownToken {
            is_expired: record.expires.is_some_and(|expires| expires <= now),
            is_touch_due: record
                .last_used
                .is_none_or(|used| now.since(used) >= TOUCH_EVERY),
            record,
        })
    }

    /// Records that a token was used just now, unless that was recorded within the last minute.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn touch_token(&self, id: TokenId) -> Result<()> {
        let mut transaction = self
            .inner
            .store
            .begin("recording the use of a token")
            .await?;
        let now = transaction.now().await?;
        transaction
            .execute(
                "UPDATE token SET last_used = $2 WHERE id = $1 AND (last_used IS NULL OR last_used <= $3)",
                &[
                    V::S(id.to_string()),
                    V::N(now.micros()),
                    V::N(now.minus(TOUCH_EVERY).micros()),
                ],
            )
            .await?;
        transaction.commit().await
    }
}

fn no_token(name: &str) -> LedgerError {
    LedgerError::NotFound {
        what: "token",
        name: name.to_owned(),
    }
}

fn token_record(row: &AnyRow) -> Result<TokenRecord> {
    let fields = Fields::of(row, READING);
    let name: TokenName = fields.parsed("name")?;
    Ok(TokenRecord {
        id: fields.parsed("id")?,
        name,
        tenant: fields.parsed_or_none("tenant")?,
        role: fields.parsed("role")?,
        created: fields.time("created")?,
        expires: fields.time_or_none("expires")?,
        last_used: fields.time_or_none("last_used")?,
    })
}
