//! Old rows: which table is meant, how its rows are found again, and what depends on them.

use fettler_engine::EngineError;
use fettler_model::{CleanupAction, CleanupItem, CleanupPlan, Referenced, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    names::{Pattern, display_name, literal, qualified, quote_ident},
    wire::Session,
};

use super::{Visit, refuse};

/// The bit of `pg_trigger.tgtype` for each event.
pub(super) const ON_INSERT: i32 = 4;
pub(super) const ON_DELETE: i32 = 8;

/// A column that is archived: all but those that the server computes itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Column {
    pub(super) name: String,
    /// Its type without a length, in SQL; of a domain what it is made of.
    pub(super) of_type: String,
}

/// A column of the key by which a row is found again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyColumn {
    /// Its place among the columns.
    pub(super) column: usize,
    /// The operator of the index for equality, in SQL.
    pub(super) equals: String,
}

/// A pair of columns of a foreign key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pair {
    /// The column that refers.
    pub(super) from: String,
    /// The column that is referred to.
    pub(super) to: String,
    /// `to = from`, in SQL.
    pub(super) equals: String,
}

/// A foreign key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ForeignKey {
    pub(super) name: String,
    /// The other table: that which refers to ours, or that to which ours refers.
    pub(super) schema: String,
    pub(super) table: String,
    /// What a delete does: a no action, r restrict, c cascade, n set null, d set default.
    pub(super) action: char,
    pub(super) pairs: Vec<Pair>,
    /// Whether the table refers to itself.
    pub(super) is_own: bool,
}

/// The table whose rows go, as the plan keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RowsData {
    pub(super) oid: u32,
    pub(super) schema: String,
    pub(super) table: String,
    pub(super) columns: Vec<Column>,
    pub(super) key: Vec<KeyColumn>,
    /// Which rows go, in SQL, of the table under the name `t`.
    pub(super) condition: String,
    /// Foreign keys that refer to the table.
    pub(super) referring: Vec<ForeignKey>,
}

impl RowsData {
    pub(super) fn sql_name(&self) -> String {
        qualified(&self.schema, &self.table)
    }

    pub(super) fn display(&self) -> String {
        display_name(&self.schema, &self.table)
    }

    /// The columns in SQL, with something before each name.
    pub(super) fn column_list(&self, before: &str) -> String {
        let names: Vec<String> = self
            .columns
            .iter()
            .map(|column| format!("{before}{}", quote_ident(&column.name)))
            .collect();
        names.join(", ")
    }

    /// A condition that is true where a row of `t` is referred to by one of these, but for the row itself.
    pub(super) fn is_referred_to(&self, key: &ForeignKey, besides: &str) -> String {
        let pairs: Vec<String> = key
            .pairs
            .iter()
            .map(|pair| {
                format!(
                    "t.{} {} r.{}",
                    quote_ident(&pair.to),
                    pair.equals,
                    quote_ident(&pair.from)
                )
            })
            .collect();
        let own = if key.is_own {
            " AND r.ctid <> t.ctid"
        } else {
            ""
        };
        format!(
            "EXISTS (SELECT FROM {} AS r WHERE {}{own}{besides})",
            qualified(&key.schema, &key.table),
            pairs.join(" AND ")
        )
    }
}

/// A table that a user named.
pub(super) struct Named {
    pub(super) oid: u32,
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) kind: char,
}

/// Finds the one table of this name.
pub(super) async fn find(session: &mut Session, text: &str) -> Result<Named, EngineError> {
    let pattern = Pattern::parse(text);
    let rows = session
        .query(
            "SELECT c.oid, n.nspname, c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
                 AND n.nspname <> 'information_schema' ORDER BY 2, 3",
        )
        .await
        .map_err(|error| error.doing("looking for the table"))?;
    let mut found = Vec::new();
    for row in &rows {
        let (schema, name) = (row.string(1)?, row.string(2)?);
        // A schema's own name is no table.
        let by_name = pattern.matches("", &name) || text.contains('.');
        if by_name && pattern.matches(&schema, &name) {
            found.push(Named {
                oid: row.get(0)?,
                schema,
                name,
                kind: row.get(3)?,
            });
        }
    }
    let missing = |what: String, remedy: String| EngineError::Missing {
        code: "table",
        what,
        remedy,
    };
    if found.len() > 1 {
        let names: Vec<String> = found
            .iter()
            .take(5)
            .map(|one| display_name(&one.schema, &one.name))
            .collect();
        return Err(missing(
            format!(
                "{text:?} is the name of several tables: {}",
                names.join(", ")
            ),
            "name one of them, with its schema".to_owned(),
        ));
    }
    found.pop().ok_or_else(|| {
        missing(
            format!("there is no table {text:?}"),
            "write `schema.table`, with quotes around a name that has capitals".to_owned(),
        )
    })
}

/// Plans the removal of old rows.
pub(super) async fn plan(visit: &mut Visit, plan: &mut CleanupPlan) -> Result<(), EngineError> {
    let CleanupAction::Rows {
        table,
        column,
        referenced,
        fire_triggers,
        ..
    } = plan.what.clone()
    else {
        return Ok(());
    };
    let named = find(&mut visit.session, &table).await?;
    if !is_plain(visit, plan, &named).await? {
        return Ok(());
    }
    let cutoff = plan.cutoff.unwrap_or(plan.made);
    let session = &mut visit.session;
    let display = display_name(&named.schema, &named.name);
    let condition = match condition(session, named.oid, &column, cutoff).await? {
        Ok(condition) => condition,
        Err((what, remedy)) => {
            refuse(plan, format!("{display}: {what}"), remedy);
            return Ok(());
        }
    };
    let columns = columns(session, named.oid, visit.server.major()).await?;
    let key = key(session, named.oid, &columns).await?;
    if key.is_empty() {
        refuse(
            plan,
            format!(
                "{display} has no primary key, and no other key without NULL by which a row is found again"
            ),
            format!(
                "add one: ALTER TABLE {} ADD PRIMARY KEY (…)",
                qualified(&named.schema, &named.name)
            ),
        );
        return Ok(());
    }
    let data = RowsData {
        oid: named.oid,
        schema: named.schema.clone(),
        table: named.name.clone(),
        columns,
        key,
        condition,
        referring: foreign_keys(session, named.oid, visit.server.major(), true).await?,
    };
    if !may_clean(session, plan, &data).await? {
        return Ok(());
    }
    what_depends(session, plan, &data, referenced, fire_triggers).await?;
    plan.items.push(count(session, &data, &column).await?);
    plan.can_be_undone = true;
    plan.engine_data = serde_json::to_value(&data).expect("plain data can be JSON");
    Ok(())
}

/// Whether it is a table whose own rows are all there is to it; the plan says why not.
async fn is_plain(
    visit: &mut Visit,
    plan: &mut CleanupPlan,
    named: &Named,
) -> Result<bool, EngineError> {
    let display = display_name(&named.schema, &named.name);
    match named.kind {
        'r' => {}
        'p' => {
            refuse(
                plan,
                format!("{display} is partitioned"),
                "drop its old partitions (`--partitions`), or name one partition",
            );
            return Ok(false);
        }
        _ => {
            refuse(
                plan,
                format!("{display} is no table with rows of its own"),
                "name a table",
            );
            return Ok(false);
        }
    }
    let row = visit
        .session
        .one(&format!(
            "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhparent = {oid}),
                EXISTS (SELECT FROM pg_rewrite WHERE ev_class = {oid} AND ev_type IN ('3', '4') AND ev_enabled <> 'D')",
            oid = named.oid
        ))
        .await
        .map_err(|error| error.doing("looking at the table"))?;
    if row.flag(0)? {
        refuse(
            plan,
            format!("other tables inherit from {display}"),
            "name those tables one by one; chunks of TimescaleDB go by its own drop_chunks()",
        );
    }
    if row.flag(1)? {
        refuse(
            plan,
            format!(
                "{display} has a rule for INSERT or DELETE, which would change the work's own statements"
            ),
            "drop or disable the rule",
        );
    }
    if visit.server.encoding == "SQL_ASCII" {
        refuse(
            plan,
            "the database's encoding is SQL_ASCII, in which a text may be anything",
            "move it to a database in UTF8",
        );
    }
    Ok(plan.refusals.is_empty())
}

/// Which rows are old, in SQL; or why that cannot be said, and what to do.
async fn condition(
    session: &mut Session,
    oid: u32,
    column: &str,
    cutoff: Timestamp,
) -> Result<Result<String, (String, String)>, EngineError> {
    let rows = session
        .query(&format!(
            "SELECT a.attname, t.typname FROM pg_attribute a JOIN pg_type b ON b.oid = a.atttypid
             JOIN pg_type t ON t.oid = CASE WHEN b.typtype = 'd' THEN b.typbasetype ELSE b.oid END
             WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
        ))
        .await
        .map_err(|error| error.doing("looking at the columns"))?;
    let mut times = Vec::new();
    let mut found = None;
    for row in &rows {
        let (name, of_type) = (row.string(0)?, row.string(1)?);
        if matches!(of_type.as_str(), "timestamptz" | "timestamp" | "date") {
            times.push(name.clone());
        }
        if name == column {
            found = Some(of_type);
        }
    }
    // A time without a zone is read as UTC.
    let utc = cutoff.to_string();
    let value = match found.as_deref() {
        Some("timestamptz") => format!("{}::timestamptz", literal(&utc)),
        Some("timestamp") => format!("{}::timestamp", literal(utc.trim_end_matches('Z'))),
        Some("date") => format!("{}::date", literal(utc.split('T').next().unwrap_or(&utc))),
        Some(other) => {
            return Ok(Err((
                format!("the column {column} is a {other}, and says no time"),
                format!(
                    "name a column of the type timestamptz, timestamp or date: {}",
                    listed(&times)
                ),
            )));
        }
        None => {
            return Ok(Err((
                format!("there is no column {column:?}"),
                format!("columns that say a time: {}", listed(&times)),
            )));
        }
    };
    Ok(Ok(format!("t.{} < {value}", quote_ident(column))))
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        "there is none".to_owned()
    } else {
        names.join(", ")
    }
}

/// The columns that are archived.
pub(super) async fn columns(
    session: &mut Session,
    oid: u32,
    major: u32,
) -> Result<Vec<Column>, EngineError> {
    let not_generated = if major >= 12 {
        "AND a.attgenerated = ''"
    } else {
        ""
    };
    // A type by itself, without the length of this column: what is read has it already, and `character` alone would mean
    // one letter.
    let rows = session
        .query(&format!(
            "WITH RECURSIVE base AS (
                SELECT a.attnum, a.attname, t.oid, t.typtype, t.typbasetype FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped {not_generated}
                UNION ALL
                SELECT b.attnum, b.attname, t.oid, t.typtype, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.typbasetype
                WHERE b.typtype = 'd'
            )
            SELECT attname, format_type(oid, -1) FROM base WHERE typtype <> 'd' ORDER BY attnum"
        ))
        .await
        .map_err(|error| error.doing("looking at the columns"))?;
    rows.iter()
        .map(|row| {
            Ok(Column {
                name: row.string(0)?,
                of_type: row.string(1)?,
            })
        })
        .collect()
}

/// The key by which rows are found again; nothing where there is none.
pub(super) async fn key(
    session: &mut Session,
    oid: u32,
    columns: &[Column],
) -> Result<Vec<KeyColumn>, EngineError> {
    let rows = session
        .query(&format!(
            "WITH best AS (
                SELECT i.indexrelid, i.indkey, i.indclass FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                JOIN pg_am m ON m.oid = c.relam AND m.amname = 'btree'
                WHERE i.indrelid = {oid} AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL
                    AND i.indexprs IS NULL AND NOT EXISTS (
                        SELECT FROM unnest(i.indkey::int2[], i.indclass::oid[]) AS k(number, opclass)
                        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
                        WHERE k.opclass IS NOT NULL AND NOT a.attnotnull)
                ORDER BY i.indisprimary DESC, i.indnatts, i.indexrelid LIMIT 1
            )
            SELECT a.attname, 'OPERATOR(' || quote_ident(n.nspname) || '.' || o.oprname || ')'
            FROM best, unnest(best.indkey::int2[], best.indclass::oid[]) WITH ORDINALITY AS k(number, opclass, place)
            JOIN pg_attribute a ON a.attrelid = {oid} AND a.attnum = k.number
            JOIN pg_opclass c ON c.oid = k.opclass
            JOIN pg_amop e ON e.amopfamily = c.opcfamily AND e.amoplefttype = c.opcintype
                AND e.amoprighttype = c.opcintype AND e.amopstrategy = 3
            JOIN pg_operator o ON o.oid = e.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace
            ORDER BY k.place"
        ))
        .await
        .map_err(|error| error.doing("looking for a key"))?;
    let mut key = Vec::new();
    for row in &rows {
        let name = row.text(0)?;
        let Some(column) = columns.iter().position(|column| column.name == name) else {
            // A column that the server computes.
            return Ok(Vec::new());
        };
        key.push(KeyColumn {
            column,
            equals: row.string(1)?,
        });
    }
    Ok(key)
}

/// Foreign keys that refer to a table (`to`), or by which it refers to others.
pub(super) async fn foreign_keys(
    session: &mut Session,
    oid: u32,
    major: u32,
    to: bool,
) -> Result<Vec<ForeignKey>, EngineError> {
    let (ours, other) = if to {
        ("confrelid", "conrelid")
    } else {
        ("conrelid", "confrelid")
    };
    // Each partition has one of its own, which says the same.
    let topmost = if major >= 11 && to {
        "AND c.conparentid = 0"
    } else {
        ""
    };
    let rows = session
        .query(&format!(
            "SELECT c.conname, n.nspname, t.relname, c.confdeltype, c.conrelid = c.confrelid, (
                SELECT json_agg(json_build_array(f.attname, p.attname,
                    'OPERATOR(' || quote_ident(s.nspname) || '.' || o.oprname || ')') ORDER BY k.place)
                FROM unnest(c.conkey, c.confkey, c.conpfeqop) WITH ORDINALITY AS k(referring, referred, operator, place)
                JOIN pg_attribute f ON f.attrelid = c.conrelid AND f.attnum = k.referring
                JOIN pg_attribute p ON p.attrelid = c.confrelid AND p.attnum = k.referred
                JOIN pg_operator o ON o.oid = k.operator JOIN pg_namespace s ON s.oid = o.oprnamespace)
             FROM pg_constraint c JOIN pg_class t ON t.oid = c.{other} JOIN pg_namespace n ON n.oid = t.relnamespace
             WHERE c.contype = 'f' AND c.{ours} = {oid} {topmost} ORDER BY 2, 3, 1"
        ))
        .await
        .map_err(|error| error.doing("looking at foreign keys"))?;
    rows.iter()
        .map(|row| {
            let pairs: Vec<(String, String, String)> =
                serde_json::from_str(row.text(5)?).map_err(|error| EngineError::Database {
                    what: format!("a foreign key cannot be read: {error}"),
                    transient: false,
                })?;
            Ok(ForeignKey {
                name: row.string(0)?,
                schema: row.string(1)?,
                table: row.string(2)?,
                action: row.get(3)?,
                is_own: row.flag(4)?,
                pairs: pairs
                    .into_iter()
                    .map(|(from, to, equals)| Pair { from, to, equals })
                    .collect(),
            })
        })
        .collect()
}

/// Whether the role may do what there is to do; refuses where not.
async fn may_clean(
    session: &mut Session,
    plan: &mut CleanupPlan,
    data: &RowsData,
) -> Result<bool, EngineError> {
    let row = session
        .one(&format!(
            "SELECT current_user, has_table_privilege({oid}, 'SELECT'), has_table_privilege({oid}, 'DELETE'),
                has_table_privilege({oid}, 'UPDATE')",
            oid = data.oid
        ))
        .await
        .map_err(|error| error.doing("looking at rights"))?;
    let may = row.flag(1)? && row.flag(2)? && row.flag(3)?;
    if !may {
        let role = row.text(0)?;
        refuse(
            plan,
            format!(
                "the role {role} may not read, lock and delete rows of {} (a row is locked before it is deleted, which needs UPDATE)",
                data.display()
            ),
            format!(
                "{};",
                crate::grants::clean_table(&data.schema, &data.table, role)
            ),
        );
    }
    Ok(may)
}

async fn what_depends(
    session: &mut Session,
    plan: &mut CleanupPlan,
    data: &RowsData,
    referenced: Referenced,
    fire_triggers: bool,
) -> Result<(), EngineError> {
    for key in &data.referring {
        let (does, would) = match key.action {
            'c' => ("ON DELETE CASCADE", "would be deleted with them"),
            'n' => ("ON DELETE SET NULL", "would be changed with them"),
            'd' => ("ON DELETE SET DEFAULT", "would be changed with them"),
            _ => ("which forbids their deletion", "forbid it"),
        };
        let other = display_name(&key.schema, &key.table);
        plan.depends.push(format!(
            "{other} refers to it by the foreign key {} ({does})",
            key.name
        ));
        // Rows of the same table that go too are no hindrance.
        let besides = if key.is_own {
            format!(
                " AND ({}) IS NOT TRUE",
                data.condition.replacen("t.", "r.", 1)
            )
        } else {
            String::new()
        };
        let sql = format!(
            "SELECT count(*) FROM ONLY {} AS t WHERE {} AND {}",
            data.sql_name(),
            data.condition,
            data.is_referred_to(key, &besides)
        );
        let rows: u64 = session
            .one(&sql)
            .await
            .map_err(|error| error.doing(format!("counting what {other} refers to")))?
            .get(0)?;
        if rows == 0 {
            continue;
        }
        match referenced {
            Referenced::Refuse => refuse(
                plan,
                format!(
                    "{rows} of the rows that would go are referred to by rows of {other}, which {would}"
                ),
                format!("clean {other} first, or say `--referenced keep`: then these rows stay"),
            ),
            Referenced::Keep => plan.notes.push(format!(
                "{rows} rows stay, since rows of {other} refer to them"
            )),
        }
    }
    let triggers = triggers(session, data.oid, ON_DELETE).await?;
    for trigger in &triggers {
        plan.depends
            .push(format!("the trigger {} fires on each delete", trigger.name));
    }
    if !triggers.is_empty() && !fire_triggers {
        refuse(
            plan,
            "triggers would fire, and what they do is not in the archive",
            "look at what they do; say `--fire-triggers` to let them, or disable them for the time of the work",
        );
    }
    let rows = session
        .query(&format!(
            "SELECT DISTINCT pubname FROM pg_publication_tables WHERE schemaname = {} AND tablename = {} ORDER BY 1",
            literal(&data.schema),
            literal(&data.table)
        ))
        .await
        .map_err(|error| error.doing("looking at publications"))?;
    for row in &rows {
        plan.depends.push(format!(
            "the publication {} hands its deletes on to subscribers",
            row.text(0)?
        ));
    }
    Ok(())
}

/// A trigger of a user's that is switched on.
pub(super) struct Trigger {
    pub(super) name: String,
    /// O in usual sessions, R in those that replay a source's changes, A in all.
    pub(super) enabled: char,
}

/// The triggers of a table for an event.
pub(super) async fn triggers(
    session: &mut Session,
    oid: u32,
    event: i32,
) -> Result<Vec<Trigger>, EngineError> {
    let rows = session
        .query(&format!(
            "SELECT tgname, tgenabled FROM pg_trigger
             WHERE tgrelid = {oid} AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & {event} <> 0 ORDER BY tgname"
        ))
        .await
        .map_err(|error| error.doing("looking at triggers"))?;
    rows.iter()
        .map(|row| {
            Ok(Trigger {
                name: row.string(0)?,
                enabled: row.get(1)?,
            })
        })
        .collect()
}

async fn count(
    session: &mut Session,
    data: &RowsData,
    column: &str,
) -> Result<CleanupItem, EngineError> {
    let column = quote_ident(column);
    let row = session
        .one(&format!(
            "SELECT count(*), COALESCE(sum(pg_column_size(t)), 0), min(t.{column})::text, max(t.{column})::text
             FROM ONLY {} AS t WHERE {}",
            data.sql_name(),
            data.condition
        ))
        .await
        .map_err(|error| error.doing(format!("counting the old rows of {}", data.display())))?;
    Ok(CleanupItem {
        name: data.display(),
        rows: row.get(0)?,
        bytes: row.get(1)?,
        oldest: row.maybe_string(2)?,
        newest: row.maybe_string(3)?,
        note: format!(
            "DELETE FROM {} AS t WHERE {}",
            data.sql_name(),
            data.condition
        ),
    })
}
