//! What happened, in an order that a reader can resume: positions rise in the order in which readers
//! can see them, so that whoever has seen one never misses one before it (rule 10). The end of a job is
//! an event by its row in the history; the rest has rows of its own.

use fettler_model::{JobId, JobState, Problem};
use serde_json::json;
use sqlx::any::AnyRow;

use crate::{
    EventFilter, EventPosition, EventRecord, Ledger, Result, codes, row::Fields, store::V,
};

const DOING: &str = "reading events";
/// How many events one page has at most.
const MAX_PAGE: usize = 1000;

impl Ledger {
    /// The events after this position, in order.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn events_after(
        &self,
        position: EventPosition,
        limit: usize,
    ) -> Result<Vec<EventRecord>> {
        self.events(&EventFilter::default(), position, limit).await
    }

    /// The events after this position that fit, in order.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn events(
        &self,
        filter: &EventFilter,
        position: EventPosition,
        limit: usize,
    ) -> Result<Vec<EventRecord>> {
        let limit = limit.clamp(1, MAX_PAGE);
        let store = &self.inner.store;
        let settled = store.dialect.settled();
        let mut values = vec![V::N(position.transaction), V::N(position.number)];
        let (mut of_event, mut of_history) = (String::new(), String::new());
        if let Some(tenant) = &filter.tenant {
            values.push(V::T(tenant.as_str()));
            let condition = format!(" AND tenant = ${}", values.len());
            of_event.push_str(&condition);
            of_history.push_str(&condition);
        }
        if let Some(job) = filter.job {
            values.push(V::S(job.to_string()));
            of_event.push_str(&format!(" AND job = ${}", values.len()));
            of_history.push_str(&format!(" AND id = ${}", values.len()));
        }
        // One statement, so that both halves see one moment.
        let sql = format!(
            "SELECT * FROM (
                 SELECT * FROM (
                     SELECT tx, seq, at, tenant, kind, job, data, CAST(NULL AS INTEGER) AS state, CAST(NULL AS BIGINT) AS submitted,
                            CAST(NULL AS BIGINT) AS started, CAST(NULL AS BIGINT) AS token, CAST(NULL AS TEXT) AS problem
                     FROM event WHERE (tx, seq) > ($1, $2) AND {settled}{of_event} ORDER BY tx, seq LIMIT {limit}) e
                 UNION ALL
                 SELECT * FROM (
                     SELECT tx, seq, ended AS at, tenant, kind, id AS job, CAST(NULL AS TEXT) AS data, state, submitted,
                            started, token, problem
                     FROM history WHERE (tx, seq) > ($1, $2) AND {settled}{of_history} ORDER BY tx, seq LIMIT {limit}) h
             ) u ORDER BY tx, seq LIMIT {limit}"
        );
        let rows = store.read(DOING, sql, &values).await?;
        rows.iter().map(event_record).collect()
    }

    /// Where the newest event stands that readers can see: who begins to read after it sees what happens
    /// from now on.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn newest_event(&self) -> Result<EventPosition> {
        let store = &self.inner.store;
        let settled = store.dialect.settled();
        let newest = |table: &str| {
            format!(
                "SELECT * FROM (SELECT tx, seq FROM {table} WHERE {settled} ORDER BY tx DESC, seq DESC LIMIT 1) {table}_newest"
            )
        };
        let sql = format!(
            "SELECT tx, seq FROM ({} UNION ALL {}) u ORDER BY tx DESC, seq DESC LIMIT 1",
            newest("event"),
            newest("history"),
        );
        let row = store.read_one(DOING, sql, &[]).await?;
        row.map_or_else(
            || Ok(EventPosition::default()),
            |row| {
                let fields = Fields::of(&row, DOING);
                Ok(EventPosition {
                    transaction: fields.number("tx")?,
                    number: fields.number("seq")?,
                })
            },
        )
    }
}

fn event_record(row: &AnyRow) -> Result<EventRecord> {
    let fields = Fields::of(row, DOING);
    let position = EventPosition {
        transaction: fields.number("tx")?,
        number: fields.number("seq")?,
    };
    let job: Option<JobId> = fields.parsed_or_none("job")?;
    let kind = fields.text("kind")?;
    let (kind, data) = if fields.number_or_none("state")?.is_some() {
        let state: JobState = fields.code("state", codes::state_of)?;
        let problem: Option<Problem> = fields.json_or_none("problem")?;
        let data = json!({
            "kind": kind,
            "submitted": fields.time("submitted")?,
            "started": fields.time_or_none("started")?,
            "attempts": fields.number("token")? >> 32,
            "problem": problem,
        });
        (format!("job.{state}"), data)
    } else {
        (kind, fields.json("data")?)
    };
    Ok(EventRecord {
        position,
        at: fields.time("at")?,
        tenant: fields.parsed("tenant")?,
        kind,
        job,
        data,
    })
}
