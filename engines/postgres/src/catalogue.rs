//! Reading the catalogue: which tables, sequences and views there are, what is in them, and in which
//! form rows can be copied. Everything here runs in the session that exported the snapshot, or in one that
//! shares it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fettler_engine::EngineError;

use crate::{
    copy::Format,
    data::{
        DatabaseData, GrantData, MaterializedView, RoleData, SequenceData, SettingData, TableData,
    },
    extract::Shape,
    names::{literal, qualified},
    wire::{Row, Session},
};

/// OIDs below this are written down in PostgreSQL's sources and mean the same on every server.
const FIRST_FREE_OID: u32 = 10_000;
/// How many relations one statement names.
pub(crate) const RELATIONS_A_STATEMENT: usize = 200;

/// Which relations belong to the user: no system schemas, nothing temporary, and of extensions only the
/// configuration tables that they declare.
const USERS_RELATIONS: &str = "
    c.relpersistence <> 't'
    AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'fettler_restore')
    AND (config.condition IS NOT NULL OR NOT EXISTS (
        SELECT FROM pg_depend d
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e'))";
const FROM_RELATIONS: &str = "
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN (SELECT unnest(extconfig) AS oid, unnest(extcondition) AS condition FROM pg_extension) config
        ON config.oid = c.oid";

/// What a server is.
#[derive(Clone, Debug)]
pub(crate) struct ServerFacts {
    /// `server_version_num`.
    pub(crate) version: u32,
    pub(crate) version_text: String,
    pub(crate) encoding: String,
    pub(crate) block_bytes: u64,
    pub(crate) is_superuser: bool,
    pub(crate) in_recovery: bool,
}

impl ServerFacts {
    pub(crate) async fn read(session: &mut Session) -> Result<Self, EngineError> {
        let row = session
            .one(
                "SELECT current_setting('server_version_num'), current_setting('server_version'),
                    current_setting('server_encoding'), current_setting('block_size'),
                    (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user),
                    pg_catalog.pg_is_in_recovery()",
            )
            .await
            .map_err(|error| error.doing("asking the server who it is"))?;
        Ok(Self {
            version: row.get(0)?,
            version_text: row.string(1)?,
            encoding: row.string(2)?,
            block_bytes: row.get(3)?,
            is_superuser: row.flag(4)?,
            in_recovery: row.flag(5)?,
        })
    }

    pub(crate) fn major(&self) -> u32 {
        self.version / 10_000
    }
}

/// The settings under which rows are read, the same for source and copy: those of `pg_dump`, and those
/// that keep the text of values the same on every server.
pub(crate) async fn settle(session: &mut Session, server: &ServerFacts) -> Result<(), EngineError> {
    let mut sql = String::from(
        "SELECT pg_catalog.set_config('search_path', '', false);
         SET client_min_messages = error; SET statement_timeout = 0; SET lock_timeout = 0;
         SET idle_in_transaction_session_timeout = 0; SET row_security = off;
         SET synchronize_seqscans = off; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres';
         SET extra_float_digits = 3; SET bytea_output = 'hex'; SET TimeZone = 'UTC'; SET lc_monetary = 'C';
         SET xmloption = 'content'; SET standard_conforming_strings = on; SET quote_all_identifiers = off;
         SET max_parallel_workers_per_gather = 0;",
    );
    if server.major() >= 11 {
        sql.push_str("SET jit = off;");
    }
    if server.major() >= 14 {
        // A session whose client is gone ends within seconds, also in a long count.
        sql.push_str("SET idle_session_timeout = 0; SET client_connection_check_interval = '2s';");
    }
    if server.major() >= 17 {
        sql.push_str("SET transaction_timeout = 0;");
    }
    session
        .execute(&sql)
        .await
        .map_err(|error| error.doing("preparing a session"))
}

/// A user's relation.
#[derive(Clone, Debug)]
pub(crate) struct Relation {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// `r` table, `p` partitioned, `m` materialised view, `S` sequence, `f` foreign table.
    pub(crate) kind: char,
    pub(crate) unlogged: bool,
    pub(crate) access_method: String,
    /// Which rows of an extension's table are the user's.
    pub(crate) condition: String,
    pub(crate) populated: bool,
    /// Changes when the definition or the file changes: compared before and after the locks.
    pub(crate) mark: String,
}

/// Lists the user's relations.
pub(crate) async fn relations(
    session: &mut Session,
    server: &ServerFacts,
) -> Result<Vec<Relation>, EngineError> {
    let access_method = if server.major() >= 12 {
        "COALESCE((SELECT amname FROM pg_am WHERE pg_am.oid = c.relam), '')"
    } else {
        "'heap'"
    };
    let rows = session
        .query(&format!(
            "SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence = 'u', {access_method},
                COALESCE(config.condition, ''), c.relispopulated,
                c.relfilenode || ':' || COALESCE((
                    SELECT md5(string_agg(concat_ws('/', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attisdropped), ',' ORDER BY a.attnum))
                    FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND c.relkind IN ('r', 'p')), '')
             {FROM_RELATIONS}
             WHERE c.relkind IN ('r', 'p', 'm', 'S', 'f') AND {USERS_RELATIONS} ORDER BY c.oid"
        ))
        .await
        .map_err(|error| error.doing("listing the tables"))?;
    rows.iter()
        .map(|row| {
            Ok(Relation {
                oid: row.get(0)?,
                schema: row.string(1)?,
                name: row.string(2)?,
                kind: row.get(3)?,
                unlogged: row.flag(4)?,
                access_method: row.string(5)?,
                condition: row.string(6)?,
                populated: row.flag(7)?,
                mark: row.string(8)?,
            })
        })
        .collect()
}

/// How many pages and bytes each table has. Only under a lock: the server waits for one here.
pub(crate) async fn sizes(
    session: &mut Session,
    oids: &[u32],
    server: &ServerFacts,
) -> Result<HashMap<u32, (u64, u64)>, EngineError> {
    let mut found = HashMap::new();
    for part in oids.chunks(RELATIONS_A_STATEMENT * 10) {
        let list: Vec<String> = part.iter().map(u32::to_string).collect();
        let rows = session
            .query(&format!(
                "SELECT oid, pg_relation_size(oid) / {}, pg_table_size(oid) FROM unnest('{{{}}}'::oid[]) AS oid",
                server.block_bytes,
                list.join(",")
            ))
            .await
            .map_err(|error| error.doing("asking for the size of the tables"))?;
        for row in rows {
            // Nothing is told of a table that is gone.
            if let (Some(pages), Some(bytes)) = (row.maybe(1)?, row.maybe(2)?) {
                let number = |text: &str| text.parse().unwrap_or(0);
                found.insert(row.get(0)?, (number(pages), number(bytes)));
            }
        }
    }
    Ok(found)
}

/// The tables with their columns and the form in which their rows are copied.
pub(crate) async fn tables(
    session: &mut Session,
    server: &ServerFacts,
    relations: &[Relation],
) -> Result<Vec<TableData>, EngineError> {
    let not_generated = if server.major() >= 12 {
        "AND a.attgenerated = ''"
    } else {
        ""
    };
    let rows = session
        .query(&format!(
            "SELECT a.attrelid, a.attname, a.atttypid {FROM_RELATIONS}
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped {not_generated}
             WHERE c.relkind = 'r' AND {USERS_RELATIONS} ORDER BY a.attrelid, a.attnum"
        ))
        .await
        .map_err(|error| error.doing("listing the columns"))?;
    let mut columns: HashMap<u32, Vec<(String, u32)>> = HashMap::new();
    let mut types = BTreeSet::new();
    for row in &rows {
        let of_type = row.get(2)?;
        types.insert(of_type);
        columns
            .entry(row.get(0)?)
            .or_default()
            .push((row.string(1)?, of_type));
    }
    let types = Types::read(session, server, types).await?;
    let through = restored_through(session, server).await?;
    Ok(relations
        .iter()
        .filter(|relation| relation.kind == 'r')
        .map(|relation| {
            let columns = columns.remove(&relation.oid).unwrap_or_default();
            let binary = columns.iter().all(|(_, of_type)| types.is_binary(*of_type));
            let shapes: Option<Vec<Shape>> = columns
                .iter()
                .map(|(_, of_type)| types.shape(*of_type))
                .collect();
            TableData {
                oid: relation.oid,
                schema: relation.schema.clone(),
                name: relation.name.clone(),
                columns: columns.into_iter().map(|(name, _)| name).collect(),
                shapes: shapes.filter(|_| binary).unwrap_or_default(),
                rows_as: if binary { Format::Binary } else { Format::Text },
                condition: relation.condition.clone(),
                through: through.get(&relation.oid).cloned(),
                largest_row: 0,
                excluded: false,
                streams: Vec::new(),
            }
        })
        .collect())
}

/// Partitions of tables that are split by the hash of an enum: that hash is of the label's OID, so that
/// a row belongs to another partition in the copy. They are restored through the topmost such table.
async fn restored_through(
    session: &mut Session,
    server: &ServerFacts,
) -> Result<HashMap<u32, (String, String)>, EngineError> {
    if server.major() < 11 {
        return Ok(HashMap::new());
    }
    let rows = session
        .query(
            "WITH RECURSIVE unsafe AS (
                SELECT partrelid AS oid FROM pg_partitioned_table p
                WHERE partstrat = 'h' AND EXISTS (
                    SELECT FROM unnest(p.partclass) AS class JOIN pg_opclass o ON o.oid = class
                    WHERE o.opcname = 'enum_ops')
            ), below AS (
                SELECT i.inhrelid AS oid, u.oid AS top, 1 AS depth FROM unsafe u JOIN pg_inherits i ON i.inhparent = u.oid
                UNION ALL
                SELECT i.inhrelid, b.top, b.depth + 1 FROM below b JOIN pg_inherits i ON i.inhparent = b.oid
            )
            SELECT DISTINCT ON (b.oid) b.oid, n.nspname, c.relname
            FROM below b JOIN pg_class c ON c.oid = b.top JOIN pg_namespace n ON n.oid = c.relnamespace
            ORDER BY b.oid, b.depth DESC",
        )
        .await
        .map_err(|error| error.doing("looking at partitions"))?;
    rows.iter()
        .map(|row| Ok((row.get(0)?, (row.string(1)?, row.string(2)?))))
        .collect()
}

/// Types whose binary form holds no OID that means something else on another server, and is read
/// back as it was written. Tested one by one in `tests/types.rs`.
///
/// Not on it: the `reg…` types (numbers of other objects), `int2vector` and `oidvector` (empty ones are not read back),
/// `xml` (its encoding is written anew).
const BINARY_TYPES: [&str; 48] = [
    "bool",
    "bytea",
    "char",
    "name",
    "int8",
    "int2",
    "int4",
    "text",
    "oid",
    "tid",
    "xid",
    "cid",
    "json",
    "point",
    "lseg",
    "path",
    "box",
    "polygon",
    "line",
    "float4",
    "float8",
    "circle",
    "money",
    "macaddr",
    "inet",
    "cidr",
    "macaddr8",
    "bpchar",
    "varchar",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "interval",
    "timetz",
    "bit",
    "varbit",
    "numeric",
    "uuid",
    "pg_lsn",
    "tsvector",
    "tsquery",
    "jsonb",
    "txid_snapshot",
    "jsonpath",
    "xid8",
    "pg_snapshot",
    "refcursor",
];

#[derive(Clone, Debug)]
struct TypeFacts {
    built_in: bool,
    name: String,
    kind: char,
    is_array: bool,
    element: u32,
    base: u32,
    /// The subtype of a range or of a multirange.
    subtype: u32,
    fields: Vec<u32>,
}

/// The types of all columns, down to elements and fields.
struct Types(HashMap<u32, TypeFacts>);

impl Types {
    async fn read(
        session: &mut Session,
        server: &ServerFacts,
        mut wanted: BTreeSet<u32>,
    ) -> Result<Self, EngineError> {
        let multirange = if server.major() >= 14 {
            "OR r.rngmultitypid = t.oid"
        } else {
            ""
        };
        let mut known = HashMap::new();
        while !wanted.is_empty() {
            let list: Vec<String> = wanted.iter().map(u32::to_string).collect();
            let rows = session
                .query(&format!(
                    "SELECT t.oid, n.nspname = 'pg_catalog', t.typname, t.typtype,
                        EXISTS (SELECT FROM pg_type e WHERE e.oid = t.typelem AND e.typarray = t.oid), t.typelem,
                        t.typbasetype,
                        COALESCE((SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid {multirange}), 0),
                        CASE WHEN t.typtype = 'c' THEN (SELECT string_agg(a.atttypid::text, ',' ORDER BY a.attnum)
                            FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) END
                     FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
                     WHERE t.oid = ANY ('{{{}}}'::oid[])",
                    list.join(",")
                ))
                .await
                .map_err(|error| error.doing("looking at the columns' types"))?;
            wanted.clear();
            for row in &rows {
                let oid: u32 = row.get(0)?;
                let facts = TypeFacts {
                    built_in: row.flag(1)? && oid < FIRST_FREE_OID,
                    name: row.string(2)?,
                    kind: row.get(3)?,
                    is_array: row.flag(4)?,
                    element: row.get(5)?,
                    base: row.get(6)?,
                    subtype: row.get(7)?,
                    fields: row
                        .maybe(8)?
                        .map(|list| list.split(',').filter_map(|oid| oid.parse().ok()).collect())
                        .unwrap_or_default(),
                };
                wanted.extend([facts.element, facts.base, facts.subtype]);
                wanted.extend(&facts.fields);
                known.insert(oid, facts);
            }
            wanted.retain(|oid| *oid != 0 && !known.contains_key(oid));
        }
        Ok(Self(known))
    }

    /// Whether a column of this type is read and written in binary.
    fn is_binary(&self, oid: u32) -> bool {
        let Some(facts) = self.0.get(&oid) else {
            return false;
        };
        // Inside arrays and composites stands the OID of the element's type itself.
        let inner = |oid: u32| oid < FIRST_FREE_OID && self.is_binary(oid);
        match facts.kind {
            'e' => true,
            'd' => self.is_binary(facts.base),
            'r' | 'm' => facts.subtype != 0 && self.is_binary(facts.subtype),
            'c' => !facts.fields.is_empty() && facts.fields.iter().all(|field| inner(*field)),
            'b' if facts.built_in && BINARY_TYPES.contains(&facts.name.as_str()) => true,
            'b' if facts.is_array => inner(facts.element),
            _ => false,
        }
    }

    /// What values of a type are made of; nothing for what is not copied in binary.
    fn shape(&self, oid: u32) -> Option<Shape> {
        let facts = self.0.get(&oid)?;
        let shape = |oid: u32| self.shape(oid).map(Box::new);
        match facts.kind {
            'e' => Some(Shape::Enum),
            'd' => self.shape(facts.base),
            'r' => Some(Shape::Range(shape(facts.subtype)?)),
            'm' => Some(Shape::Multirange(shape(facts.subtype)?)),
            'c' => {
                let fields: Option<Vec<Shape>> = facts
                    .fields
                    .iter()
                    .map(|field| self.shape(*field))
                    .collect();
                fields.map(Shape::Composite)
            }
            'b' if facts.built_in && BINARY_TYPES.contains(&facts.name.as_str()) => {
                Some(Shape::Plain(facts.name.clone()))
            }
            'b' if facts.is_array => Some(Shape::Array(shape(facts.element)?)),
            _ => None,
        }
    }
}

/// Reads where sequences stand. A sequence knows no snapshot: it is read after the rows' moment was fixed.
pub(crate) async fn sequences(
    session: &mut Session,
    relations: &[Relation],
) -> Result<Vec<SequenceData>, EngineError> {
    let sequences: Vec<&Relation> = relations
        .iter()
        .filter(|relation| relation.kind == 'S')
        .collect();
    let mut found = Vec::with_capacity(sequences.len());
    for part in sequences.chunks(RELATIONS_A_STATEMENT) {
        let selects: Vec<String> = part
            .iter()
            .enumerate()
            .map(|(at, sequence)| {
                let name = qualified(&sequence.schema, &sequence.name);
                format!("SELECT {at}, last_value, is_called FROM {name}")
            })
            .collect();
        let rows = session
            .query(&selects.join(" UNION ALL "))
            .await
            .map_err(|error| error.doing("reading the sequences"))?;
        for row in rows {
            let sequence = part[row.get::<usize>(0)?];
            found.push(SequenceData {
                schema: sequence.schema.clone(),
                name: sequence.name.clone(),
                last_value: row.get(1)?,
                is_called: row.flag(2)?,
            });
        }
    }
    Ok(found)
}

/// The materialised views.
pub(crate) fn materialized_views(relations: &[Relation]) -> Vec<MaterializedView> {
    relations
        .iter()
        .filter(|relation| relation.kind == 'm')
        .map(|relation| MaterializedView {
            schema: relation.schema.clone(),
            name: relation.name.clone(),
            populated: relation.populated,
        })
        .collect()
}

/// Reads what `ALTER DATABASE` and `CREATE DATABASE` need.
pub(crate) async fn database(
    session: &mut Session,
    server: &ServerFacts,
) -> Result<DatabaseData, EngineError> {
    let major = server.major();
    let provider = if major >= 15 {
        "d.datlocprovider"
    } else {
        "'c'"
    };
    let locale = match major {
        17.. => "d.datlocale",
        15.. => "d.daticulocale",
        _ => "NULL",
    };
    let rules = if major >= 16 { "d.daticurules" } else { "NULL" };
    let row = session
        .one(&format!(
            "SELECT d.datname, pg_get_userbyid(d.datdba), pg_encoding_to_char(d.encoding), {provider},
                d.datcollate, d.datctype, {locale}, {rules}, d.datconnlimit,
                shobj_description(d.oid, 'pg_database'), d.datacl IS NULL, d.oid
             FROM pg_database d WHERE d.datname = current_database()"
        ))
        .await
        .map_err(|error| error.doing("looking at the database"))?;
    let oid: u32 = row.get(11)?;
    let grants = if row.flag(10)? {
        None
    } else {
        let rows = session
            .query(&format!(
                "SELECT NULLIF(a.grantee, 0)::regrole, a.privilege_type, a.is_grantable, r.rolname
                 FROM pg_database d, aclexplode(d.datacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
                 WHERE d.oid = {oid} AND (a.grantee = 0 OR r.rolname IS NOT NULL)"
            ))
            .await
            .map_err(|error| error.doing("looking at the database's grants"))?;
        Some(rows.iter().map(grant).collect::<Result<_, _>>()?)
    };
    let settings = session
        .query(&format!(
            "SELECT r.rolname, setting FROM pg_db_role_setting s
             LEFT JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) AS setting
             WHERE s.setdatabase = {oid} AND (s.setrole = 0 OR r.rolname IS NOT NULL) ORDER BY 1 NULLS FIRST, 2"
        ))
        .await
        .map_err(|error| error.doing("looking at the database's settings"))?
        .iter()
        .map(|row| {
            let (name, value) = row.text(1)?.split_once('=').unwrap_or_default();
            Ok(SettingData {
                role: row.maybe_string(0)?,
                name: name.to_owned(),
                value: value.to_owned(),
            })
        })
        .collect::<Result<_, EngineError>>()?;
    Ok(DatabaseData {
        name: row.string(0)?,
        owner: row.string(1)?,
        encoding: row.string(2)?,
        provider: row.string(3)?,
        collate: row.string(4)?,
        ctype: row.string(5)?,
        locale: row.maybe_string(6)?,
        icu_rules: row.maybe_string(7)?,
        connection_limit: row.get(8)?,
        comment: row.maybe_string(9)?,
        grants,
        settings,
    })
}

/// Reads a row of `aclexplode`: anything, privilege, grant option, grantee.
pub(crate) fn grant(row: &Row) -> Result<GrantData, EngineError> {
    Ok(GrantData {
        grantee: row.maybe_string(3)?,
        privilege: row.string(1)?,
        with_grant_option: row.flag(2)?,
    })
}

/// The roles of the server, with whom they belong to.
pub(crate) async fn roles(session: &mut Session) -> Result<Vec<RoleData>, EngineError> {
    let mut roles: BTreeMap<u32, RoleData> = BTreeMap::new();
    let rows = session
        .query("SELECT oid, rolname, rolsuper FROM pg_roles WHERE rolname !~ '^pg_'")
        .await
        .map_err(|error| error.doing("listing the roles"))?;
    for row in &rows {
        let role = RoleData {
            name: row.string(1)?,
            superuser: row.flag(2)?,
            member_of: Vec::new(),
        };
        roles.insert(row.get(0)?, role);
    }
    let rows = session
        .query(
            "SELECT DISTINCT m.member, r.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid
             ORDER BY 1, 2",
        )
        .await
        .map_err(|error| error.doing("listing the roles' members"))?;
    for row in &rows {
        if let Some(role) = roles.get_mut(&row.get::<u32>(0)?) {
            role.member_of.push(row.string(1)?);
        }
    }
    Ok(roles.into_values().collect())
}

/// The tablespaces that something of the database lies in.
pub(crate) async fn tablespaces(session: &mut Session) -> Result<Vec<String>, EngineError> {
    session
        .query(
            "SELECT DISTINCT t.spcname FROM pg_class c JOIN pg_tablespace t ON t.oid = c.reltablespace
             WHERE t.spcname <> 'pg_global' ORDER BY 1",
        )
        .await
        .map_err(|error| error.doing("listing the tablespaces"))?
        .iter()
        .map(|row| row.string(0))
        .collect()
}

/// Copies which object needs which: `class object needed-class needed-object kind`, a line each.
pub(crate) const COPY_DEPENDENCIES: &str = "COPY (
    SELECT classid, objid, refclassid, refobjid, deptype FROM pg_depend
    WHERE (objid >= 16384 OR refobjid >= 16384) AND (classid, objid) <> (refclassid, refobjid)
    UNION
    -- A view or a rule needs what its rewrite rule needs.
    SELECT 'pg_class'::regclass::oid, r.ev_class, d.refclassid, d.refobjid, 'n'
    FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
    WHERE d.deptype = 'n' AND (d.refclassid <> 'pg_class'::regclass OR d.refobjid <> r.ev_class)
    ORDER BY 1, 2, 3, 4, 5) TO STDOUT (FORMAT text)";

/// A setting's value, or nothing where the server does not know it.
pub(crate) async fn setting(
    session: &mut Session,
    name: &str,
) -> Result<Option<String>, EngineError> {
    session
        .one(&format!("SELECT current_setting({}, true)", literal(name)))
        .await
        .map_err(|error| error.doing("asking for a setting"))?
        .maybe_string(0)
}
