//! Definitions as digests: one an object, so that a proof can say what differs.
//!
//! Where source and copy were dumped by the same `pg_dump` from servers of the same major version, what it
//! writes must be the same text, whatever the order. Otherwise the catalogues are compared, object by object, in words
//! that mean the same in all versions: `pg_dump` words some things by the server's version.

use std::{collections::BTreeMap, path::Path};

use fettler_engine::{EngineContext, EngineError};

use crate::{
    catalogue::ServerFacts,
    data::SchemaData,
    tools::{self, Tool},
    wire::Session,
};

/// The name of the object in a manifest.
pub(crate) const OBJECT_NAME: &str = "definitions";
/// Differences that a message names.
const DIFFERENCES_NAMED: usize = 12;

/// Digests the definitions in an archive.
pub(crate) async fn definitions_of_archive(
    context: &EngineContext,
    dump: &Tool,
    archive: &Path,
) -> Result<SchemaData, EngineError> {
    let mut command = tokio::process::Command::new(dump.sibling("pg_restore"));
    command
        .arg("--file=-")
        .arg(archive)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let mut entries = Entries::new(context.fingerprint_key);
    let ended = tools::run(command, "pg_restore", &context.stop, &mut |line| {
        entries.line(line);
    })
    .await?;
    if !ended.status.success() {
        return Err(ended.error("pg_restore"));
    }
    Ok(entries.finish())
}

/// Takes the text that `pg_restore` writes apart into objects.
struct Entries {
    key: [u8; 32],
    current: Option<(String, blake3::Hasher, Option<blake3::Hasher>)>,
    /// Blank lines count only between others.
    blank_lines: u32,
    definitions: BTreeMap<String, Vec<String>>,
    owners: BTreeMap<String, Vec<String>>,
}

impl Entries {
    fn new(key: [u8; 32]) -> Self {
        Self {
            key,
            current: None,
            blank_lines: 0,
            definitions: BTreeMap::new(),
            owners: BTreeMap::new(),
        }
    }

    fn line(&mut self, line: &[u8]) {
        if let Some(name) = entry_name(line) {
            self.end_entry();
            self.current = Some((name, blake3::Hasher::new_keyed(&self.key), None));
            return;
        }
        let key = self.key;
        let Some((_, definition, owner)) = &mut self.current else {
            return;
        };
        if line.is_empty() {
            self.blank_lines += 1;
            return;
        }
        // Between two objects stand what the next one's storage is and the frame of its heading.
        let between = line == b"--"
            || line.starts_with(b"\\")
            || line.starts_with(b"SET default_tablespace = ")
            || line.starts_with(b"SET default_table_access_method = ")
            || line == b"-- PostgreSQL database dump complete";
        if between {
            return;
        }
        if line.starts_with(b"ALTER ") && line.ends_with(b";") && contains(line, b" OWNER TO ") {
            owner
                .get_or_insert_with(|| blake3::Hasher::new_keyed(&key))
                .update(line);
            return;
        }
        for _ in 0..std::mem::take(&mut self.blank_lines) {
            definition.update(b"\n");
        }
        definition.update(line).update(b"\n");
    }

    fn end_entry(&mut self) {
        self.blank_lines = 0;
        if let Some((name, definition, owner)) = self.current.take() {
            // A copy makes no subscription: it would subscribe.
            if name.starts_with("SUBSCRIPTION ") {
                return;
            }
            if let Some(owner) = owner {
                self.owners
                    .entry(name.clone())
                    .or_default()
                    .push(short(&owner));
            }
            self.definitions
                .entry(name)
                .or_default()
                .push(short(&definition));
        }
    }

    fn finish(mut self) -> SchemaData {
        self.end_entry();
        let merged = |entries: BTreeMap<String, Vec<String>>| {
            entries
                .into_iter()
                .map(|(name, mut digests)| {
                    digests.sort_unstable();
                    (name, digests.join("+"))
                })
                .collect()
        };
        SchemaData {
            definitions: merged(self.definitions),
            owners: merged(self.owners),
            ..SchemaData::default()
        }
    }
}

fn contains(line: &[u8], wanted: &[u8]) -> bool {
    line.windows(wanted.len()).any(|window| window == wanted)
}

fn short(hasher: &blake3::Hasher) -> String {
    hasher.finalize().to_hex()[..16].to_owned()
}

/// The name in `-- Name: orders; Type: TABLE; Schema: public; Owner: ann`.
fn entry_name(line: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?.strip_prefix("-- Name: ")?;
    let (line, _owner) = line.rsplit_once("; Owner: ")?;
    let (line, schema) = line.rsplit_once("; Schema: ")?;
    let (name, kind) = line.rsplit_once("; Type: ")?;
    Some(if schema == "-" {
        format!("{kind} {name}")
    } else {
        format!("{kind} {schema}.{name}")
    })
}

/// Adds what the catalogue says, and the digest over all.
pub(crate) async fn with_catalogue(
    session: &mut Session,
    mut schema: SchemaData,
    key: &[u8; 32],
) -> Result<SchemaData, EngineError> {
    let server = ServerFacts::read(session).await?;
    let rows = session
        .query(&catalogue_query(&server))
        .await
        .map_err(|error| error.doing("describing the definitions"))?;
    let mut objects: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for row in &rows {
        objects
            .entry(row.string(0)?)
            .or_default()
            .push(row.text(1)?);
    }
    schema.catalogue = objects
        .into_iter()
        .map(|(name, mut lines)| {
            lines.sort_unstable();
            let mut hasher = blake3::Hasher::new_keyed(key);
            for line in lines {
                hasher.update(line.as_bytes()).update(b"\0");
            }
            (name, short(&hasher))
        })
        .collect();
    let mut hasher = blake3::Hasher::new_keyed(key);
    for (name, digest) in schema.definitions.iter().chain(&schema.owners) {
        hasher
            .update(name.as_bytes())
            .update(b"\0")
            .update(digest.as_bytes())
            .update(b"\0");
    }
    schema.digest = hasher.finalize().to_hex()[..32].to_owned();
    Ok(schema)
}

/// The indexes that are not in use because building them failed.
pub(crate) async fn invalid_indexes(session: &mut Session) -> Result<Vec<String>, EngineError> {
    session
        .query(
            "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT i.indisvalid AND n.nspname !~ '^pg_' ORDER BY 1",
        )
        .await
        .map_err(|error| error.doing("looking for invalid indexes"))?
        .iter()
        .map(|row| row.string(0))
        .collect()
}

/// Which parts of two schemas can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Comparable {
    /// Whether the texts of one and the same `pg_dump` are at hand.
    pub(crate) text: bool,
    /// Whether the copy was given owners and grants.
    pub(crate) owners: bool,
}

/// What a copy's definitions are: the expected digest where they are the same, else a list of differences.
pub(crate) fn value_of_copy(expected: &SchemaData, copy: &SchemaData, how: Comparable) -> String {
    let differences = if how.text {
        let mut found = differences(&expected.definitions, &copy.definitions, how.owners);
        if how.owners {
            let owners = differences(&expected.owners, &copy.owners, true);
            found.extend(owners.into_iter().map(|what| format!("owner of {what}")));
        }
        found
    } else {
        differences(&expected.catalogue, &copy.catalogue, how.owners)
    };
    if differences.is_empty() {
        return expected.digest.clone();
    }
    let mut text = differences[..differences.len().min(DIFFERENCES_NAMED)].join("; ");
    if differences.len() > DIFFERENCES_NAMED {
        text.push_str(&format!(
            "; and {} more",
            differences.len() - DIFFERENCES_NAMED
        ));
    }
    text
}

fn differences(
    expected: &BTreeMap<String, String>,
    copy: &BTreeMap<String, String>,
    grants: bool,
) -> Vec<String> {
    let counts =
        |name: &str| grants || !(name.starts_with("ACL ") || name.starts_with("DEFAULT ACL "));
    let mut found = Vec::new();
    for (name, digest) in expected.iter().filter(|(name, _)| counts(name)) {
        match copy.get(name) {
            None => found.push(format!("{name} is missing")),
            Some(other) if other != digest => found.push(format!("{name} differs")),
            Some(_) => {}
        }
    }
    for name in copy.keys().filter(|name| counts(name)) {
        if !expected.contains_key(name) {
            found.push(format!("{name} is new"));
        }
    }
    found
}

/// Everything that makes an object what it is, `name` and `line`.
fn catalogue_query(server: &ServerFacts) -> String {
    let generated = if server.major() >= 12 {
        "a.attgenerated"
    } else {
        "''"
    };
    let functions = if server.major() >= 11 {
        "UNION ALL SELECT format('function %I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
            concat_ws('|', p.prokind, p.provolatile, p.proisstrict, p.prosecdef, p.proparallel,
                format_type(p.prorettype, NULL), p.proretset, p.prosrc, p.proconfig::text)
         FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
         WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'fettler_restore')
            AND NOT EXISTS (SELECT FROM members m WHERE m.classid = 'pg_proc'::regclass AND m.objid = p.oid)"
    } else {
        ""
    };
    format!(
        "WITH members AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e'),
         schemas AS (SELECT oid, nspname FROM pg_namespace
            WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'fettler_restore')),
         relations AS (SELECT c.*, format('%I.%I', n.nspname, c.relname) AS full_name
            FROM pg_class c JOIN schemas n ON n.oid = c.relnamespace
            WHERE c.relpersistence <> 't' AND NOT EXISTS (
                SELECT FROM members m WHERE m.classid = 'pg_class'::regclass AND m.objid = c.oid))
         SELECT 'schema ' || nspname, '' FROM schemas
         UNION ALL SELECT 'extension ' || extname, '' FROM pg_extension
         UNION ALL SELECT 'relation ' || full_name, concat_ws('|', relkind, relpersistence, relrowsecurity,
                relforcerowsecurity, relispartition, pg_get_expr(relpartbound, oid), reloptions::text,
                (SELECT string_agg(inhparent::regclass::text, ',' ORDER BY inhseqno) FROM pg_inherits WHERE inhrelid = relations.oid))
            FROM relations WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'c', 'S')
         UNION ALL SELECT 'relation ' || r.full_name, concat_ws('|', 'column', a.attname, format_type(a.atttypid, a.atttypmod),
                a.attnotnull, a.attidentity, {generated}, pg_get_expr(d.adbin, d.adrelid),
                (SELECT l.collname FROM pg_collation l WHERE l.oid = a.attcollation AND l.collname <> 'default'))
            FROM relations r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
            LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE r.relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
         UNION ALL SELECT 'index ' || r.full_name, concat_ws('|', pg_get_indexdef(r.oid), i.indisvalid, i.indisreplident, i.indisclustered)
            FROM relations r JOIN pg_index i ON i.indexrelid = r.oid WHERE i.indisvalid OR r.relkind = 'I'
         UNION ALL SELECT format('constraint %I on %s', c.conname, COALESCE(r.full_name, 'a domain')),
                concat_ws('|', c.contype, pg_get_constraintdef(c.oid), c.convalidated)
            FROM pg_constraint c JOIN schemas n ON n.oid = c.connamespace LEFT JOIN relations r ON r.oid = c.conrelid
            WHERE c.contype <> 'n' AND (c.conrelid = 0 OR r.oid IS NOT NULL)
         UNION ALL SELECT format('trigger %I on %s', t.tgname, r.full_name), concat_ws('|', pg_get_triggerdef(t.oid), t.tgenabled)
            FROM pg_trigger t JOIN relations r ON r.oid = t.tgrelid WHERE NOT t.tgisinternal
         UNION ALL SELECT format('policy %I on %s', p.polname, r.full_name), concat_ws('|', p.polcmd, p.polpermissive,
                pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
            FROM pg_policy p JOIN relations r ON r.oid = p.polrelid
         UNION ALL SELECT format('rule %I on %s', w.rulename, r.full_name), concat_ws('|', w.ev_type, w.ev_enabled, w.is_instead)
            FROM pg_rewrite w JOIN relations r ON r.oid = w.ev_class
         UNION ALL SELECT 'sequence ' || r.full_name, concat_ws('|', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement,
                s.seqmax, s.seqmin, s.seqcache, s.seqcycle)
            FROM relations r JOIN pg_sequence s ON s.seqrelid = r.oid
         UNION ALL SELECT format('type %I.%I', n.nspname, t.typname), concat_ws('|', t.typtype, format_type(NULLIF(t.typbasetype, 0), t.typtypmod),
                t.typnotnull, t.typdefault, (SELECT string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid),
                (SELECT format_type(g.rngsubtype, NULL) FROM pg_range g WHERE g.rngtypid = t.oid))
            FROM pg_type t JOIN schemas n ON n.oid = t.typnamespace
            WHERE t.typtype IN ('e', 'd', 'r') AND NOT EXISTS (
                SELECT FROM members m WHERE m.classid = 'pg_type'::regclass AND m.objid = t.oid)
         UNION ALL SELECT 'event trigger ' || evtname, concat_ws('|', evtevent, evtenabled, evttags::text, evtfoid::regproc::text) FROM pg_event_trigger
         UNION ALL SELECT 'publication ' || pubname, concat_ws('|', puballtables, pubinsert, pubupdate, pubdelete) FROM pg_publication
         UNION ALL SELECT 'comments on ' || classoid::regclass, md5(description) || objsubid FROM pg_description d
            WHERE objoid >= 16384 AND NOT EXISTS (SELECT FROM members m WHERE m.classid = d.classoid AND m.objid = d.objoid)
            AND classoid NOT IN ('pg_largeobject'::regclass, 'pg_extension'::regclass)
         {functions}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> SchemaData {
        let mut entries = Entries::new([1; 32]);
        text.lines().for_each(|line| entries.line(line.as_bytes()));
        entries.finish()
    }

    const ONE: &str = "--\n-- Name: a; Type: TABLE; Schema: public; Owner: ann\n--\n\nCREATE TABLE public.a ();\n\n\nALTER TABLE public.a OWNER TO ann;\n\nSET default_tablespace = x;\n";
    const TWO: &str = "--\n-- Name: f(); Type: FUNCTION; Schema: public; Owner: ann\n--\n\nCREATE FUNCTION public.f() AS $$\n\nx\n$$;\n";

    #[test]
    fn the_order_of_objects_does_not_matter() {
        assert_eq!(
            digest(&format!("{ONE}\n{TWO}")),
            digest(&format!("{TWO}\n{ONE}"))
        );
    }

    #[test]
    fn a_difference_is_named() {
        let expected = digest(&format!("{ONE}\n{TWO}"));
        let changed = digest(&format!("{}\n{TWO}", ONE.replace("()", "(id int)")));
        let whole = Comparable {
            text: true,
            owners: true,
        };
        assert_eq!(
            value_of_copy(&expected, &changed, whole),
            "TABLE public.a differs"
        );
        assert_eq!(
            value_of_copy(&expected, &digest(TWO), whole),
            "TABLE public.a is missing; owner of TABLE public.a is missing"
        );
        let other_owner = digest(&format!("{}\n{TWO}", ONE.replace("TO ann", "TO bob")));
        assert_eq!(
            value_of_copy(&expected, &other_owner, whole),
            "owner of TABLE public.a differs"
        );
        let without_owners = Comparable {
            text: true,
            owners: false,
        };
        assert_eq!(
            value_of_copy(&expected, &other_owner, without_owners),
            expected.digest
        );
    }
}
