//! Large objects, which `pg_dump --schema-only` leaves out: their pages, owners, grants and comments.

use fettler_engine::{Cut, EngineContext, EngineError, StreamEnd, StreamSink};
use fettler_model::{ObjectFacts, ObjectKind};

use crate::{
    backup::{Found, Work, WorkKind, plain_count},
    catalogue::ServerFacts,
    copy::Format,
    data::{GrantData, LARGE_OBJECTS_STREAM, LargeObjectData, LargeObjectFacts},
    wire::Session,
};

/// The name of the object in a manifest.
pub(crate) const OBJECT_NAME: &str = "large objects";
/// Objects whose numbers share all but the last bits go to one stream.
const NUMBERS_A_STREAM: u64 = 8192;
/// Objects described by one statement.
const OBJECTS_A_STATEMENT: usize = 5000;
/// Bytes of an object in one row, where pages cannot be read.
const PIECE_BYTES: u64 = 256 * 1024;

/// How the large objects are read.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pages: bool,
    page_bytes: u64,
    /// Bytes that `lo_get` is asked for at once, where pages cannot be read.
    piece_bytes: u64,
    count: u64,
    /// Before version 12 there is no such word, and it is what happens.
    materialized: &'static str,
    /// Which groups of numbers hold objects.
    groups: Vec<u64>,
}

/// Looks at what there is; nothing where there is none.
pub(crate) async fn plan(
    session: &mut Session,
    server: &ServerFacts,
) -> Result<Option<Plan>, EngineError> {
    let doing = "looking at the large objects";
    let pages = session
        .one("SELECT has_table_privilege('pg_catalog.pg_largeobject', 'SELECT')")
        .await
        .map_err(|error| error.doing(doing))?
        .flag(0)?;
    let rows = session
        .query(&format!(
            "SELECT oid::bigint / {NUMBERS_A_STREAM}, count(*) FROM pg_catalog.pg_largeobject_metadata GROUP BY 1 ORDER BY 1"
        ))
        .await
        .map_err(|error| error.doing(doing))?;
    let mut plan = Plan {
        pages,
        // LOBLKSIZE in PostgreSQL's sources.
        page_bytes: server.block_bytes / 4,
        piece_bytes: PIECE_BYTES,
        materialized: if server.major() >= 12 {
            "MATERIALIZED"
        } else {
            ""
        },
        count: 0,
        groups: Vec::with_capacity(rows.len()),
    };
    for row in &rows {
        plan.groups.push(row.get(0)?);
        plan.count += row.get::<u64>(1)?;
    }
    Ok((plan.count > 0).then_some(plan))
}

impl Plan {
    /// A plan for reading a copy in the same way.
    pub(crate) async fn like(
        session: &mut Session,
        server: &ServerFacts,
        expected: &LargeObjectData,
    ) -> Result<Option<Self>, EngineError> {
        // Where the copy's pages cannot be read as the original's were, objects are read in pieces of a page, which
        // gives the same rows. Only an object with holes differs then: its missing pages come as zeros.
        Ok(plan(session, server).await?.map(|found| Self {
            pages: expected.pages && found.pages,
            page_bytes: expected.page_bytes,
            piece_bytes: if expected.pages {
                expected.page_bytes
            } else {
                PIECE_BYTES
            },
            ..found
        }))
    }

    fn stream(group: u64) -> String {
        format!("large_objects/{group:06}")
    }

    pub(crate) fn data(self) -> LargeObjectData {
        LargeObjectData {
            pages: self.pages,
            page_bytes: self.page_bytes,
            count: self.count,
            streams: self.groups.into_iter().map(Self::stream).collect(),
        }
    }

    /// What is to be read.
    pub(crate) fn work(&self) -> Vec<Work> {
        let work = |sql, kind| Work {
            table: None,
            what: "reading the large objects".to_owned(),
            sql,
            kind,
            lock: None,
        };
        let mut all: Vec<Work> = self
            .groups
            .iter()
            .map(|group| {
                let (from, to) = (group * NUMBERS_A_STREAM, (group + 1) * NUMBERS_A_STREAM - 1);
                let rows = if self.pages {
                    format!(
                        "SELECT loid, pageno, data FROM pg_catalog.pg_largeobject
                         WHERE loid BETWEEN '{from}'::oid AND '{to}'::oid ORDER BY loid, pageno"
                    )
                } else {
                    // Each step waits for the one before, so that no more than one object is open.
                    format!(
                        "WITH opened AS {materialized} (SELECT oid, lo_open(oid, 262144) AS handle
                            FROM pg_catalog.pg_largeobject_metadata
                            WHERE oid BETWEEN '{from}'::oid AND '{to}'::oid),
                         measured AS {materialized} (SELECT oid, handle, lo_lseek64(handle, 0, 2) AS bytes FROM opened),
                         closed AS {materialized} (SELECT oid, bytes, lo_close(handle) FROM measured)
                         SELECT oid, (at / {page})::int4, lo_get(oid, at, {piece})
                         FROM closed, generate_series(0, bytes - 1, {piece}) AS at ORDER BY 1, 2",
                        materialized = self.materialized,
                        page = self.page_bytes,
                        piece = self.piece_bytes,
                    )
                };
                work(
                    format!("COPY ({rows}) TO STDOUT (FORMAT binary)"),
                    WorkKind::Rows(Format::Binary, Some(Self::stream(*group))),
                )
            })
            .collect();
        if self.pages {
            all.push(work(
                plain_count("pg_catalog.pg_largeobject"),
                WorkKind::Count,
            ));
        }
        all
    }
}

/// What the list of large objects says, in short.
#[derive(Clone, Debug)]
pub(crate) struct ListDigest {
    pub(crate) count: u64,
    /// Over numbers, owners, grants and comments.
    pub(crate) digest: String,
}

/// Stores owners, grants and comments.
pub(crate) async fn store_list(
    context: &EngineContext,
    session: &mut Session,
    plan: &Plan,
    sink: &dyn StreamSink,
) -> Result<ListDigest, EngineError> {
    let mut writer = sink.open(LARGE_OBJECTS_STREAM, Cut::Content).await?;
    let mut list = ListDigest {
        count: plan.count,
        digest: String::new(),
    };
    let mut hasher = blake3::Hasher::new_keyed(&context.fingerprint_key);
    let mut after = 0;
    loop {
        context.check_stop()?;
        let part = part_of_list(session, after).await?;
        let Some(last) = part.last() else {
            break;
        };
        after = last.oid;
        let mut text = String::new();
        for object in &part {
            text.push_str(&serde_json::to_string(object).map_err(|error| {
                EngineError::Database {
                    what: format!("a large object's description cannot be written: {error}"),
                    transient: false,
                }
            })?);
            text.push('\n');
        }
        hasher.update(text.as_bytes());
        writer.write(text.into()).await?;
    }
    list.digest = hasher.finalize().to_hex()[..32].to_owned();
    writer
        .finish(StreamEnd {
            rows: list.count,
            unchanged_marker: None,
        })
        .await?;
    Ok(list)
}

/// Digests the list of a copy. Without owners, those of the expected list cannot be compared.
pub(crate) async fn digest_list(
    context: &EngineContext,
    session: &mut Session,
) -> Result<ListDigest, EngineError> {
    let mut hasher = blake3::Hasher::new_keyed(&context.fingerprint_key);
    let (mut after, mut count) = (0, 0);
    loop {
        context.check_stop()?;
        let part = part_of_list(session, after).await?;
        let Some(last) = part.last() else {
            break;
        };
        after = last.oid;
        count += part.len() as u64;
        for object in &part {
            let line = serde_json::to_string(object).unwrap_or_default();
            hasher.update(line.as_bytes()).update(b"\n");
        }
    }
    Ok(ListDigest {
        count,
        digest: hasher.finalize().to_hex()[..32].to_owned(),
    })
}

async fn part_of_list(
    session: &mut Session,
    after: u32,
) -> Result<Vec<LargeObjectFacts>, EngineError> {
    let rows = session
        .query(&format!(
            "SELECT m.oid, pg_get_userbyid(m.lomowner), obj_description(m.oid, 'pg_largeobject'),
                CASE WHEN m.lomacl IS NOT NULL THEN COALESCE((
                    SELECT json_agg(json_build_object('grantee', r.rolname, 'privilege', a.privilege_type,
                        'with_grant_option', a.is_grantable) ORDER BY r.rolname, a.privilege_type)
                    FROM aclexplode(m.lomacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
                    WHERE a.grantee = 0 OR r.rolname IS NOT NULL), '[]') END
             FROM pg_catalog.pg_largeobject_metadata m WHERE m.oid > {after} ORDER BY m.oid LIMIT {OBJECTS_A_STATEMENT}"
        ))
        .await
        .map_err(|error| error.doing("listing the large objects"))?;
    rows.iter()
        .map(|row| {
            let grants: Option<Vec<GrantData>> = row
                .maybe(3)?
                .map(serde_json::from_str)
                .transpose()
                .map_err(|error| EngineError::Database {
                    what: format!("the grants of a large object cannot be read: {error}"),
                    transient: false,
                })?;
            Ok(LargeObjectFacts {
                oid: row.get(0)?,
                owner: row.string(1)?,
                comment: row.maybe_string(2)?,
                grants,
            })
        })
        .collect()
}

/// The large objects as a proof compares them.
pub(crate) fn facts(list: &ListDigest, found: Found) -> ObjectFacts {
    ObjectFacts {
        kind: ObjectKind::LargeObjects,
        name: OBJECT_NAME.to_owned(),
        fingerprint: Some(found.fingerprint),
        independent_rows: found.counted,
        bytes: found.bytes,
        value: Some(format!("{} objects, {}", list.count, list.digest)),
        format: Some(Format::Binary.as_str().to_owned()),
    }
}
