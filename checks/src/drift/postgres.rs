//! What a snapshot of a PostgreSQL server is made of: lines of a name and a state. Lines of one name are put together.

use super::{Asked, MOST_ITEMS, Section};

/// What is asked.
pub(super) const QUESTIONS: &[Asked] = &[
    Asked::of(Section::Roles, ROLES),
    Asked::of(Section::Roles, MEMBERSHIPS),
    Asked::of(Section::Roles, ROLE_SETTINGS),
    Asked::of(Section::Grants, GRANTS),
    Asked::of(Section::Settings, SETTINGS),
    Asked::of(Section::AccessRules, ACCESS_RULES).versions(">=10"),
    Asked::of(Section::Schema, RELATIONS).versions(">=10"),
    Asked::of(Section::Schema, FUNCTIONS).versions(">=11"),
    Asked::of(Section::Extensions, EXTENSIONS),
];

/// One line of all that a question gives.
pub(super) fn whole(text: &str) -> String {
    format!(
        "SELECT count(*) AS items_seen, CASE WHEN count(*) <= {MOST_ITEMS} THEN json_object_agg(name, state) END AS items
         FROM (SELECT name, string_agg(state, '; ' ORDER BY state) AS state FROM (\n{text}\n) AS seen (name, state)
               WHERE name IS NOT NULL AND state IS NOT NULL GROUP BY name) AS things"
    )
}

/// No password is read: pg_roles shows none.
const ROLES: &str = "
    SELECT 'role ' || rolname AS name,
           concat_ws(', ', CASE WHEN rolcanlogin THEN 'login' ELSE 'no login' END, CASE WHEN rolsuper THEN 'superuser' END,
                     CASE WHEN rolcreaterole THEN 'createrole' END, CASE WHEN rolcreatedb THEN 'createdb' END,
                     CASE WHEN rolreplication THEN 'replication' END, CASE WHEN rolbypassrls THEN 'bypassrls' END,
                     CASE WHEN NOT rolinherit THEN 'noinherit' END, CASE WHEN rolconnlimit >= 0 THEN 'connection limit ' || rolconnlimit END,
                     'valid until ' || nullif(rolvaliduntil, 'infinity')) AS state
    FROM pg_catalog.pg_roles WHERE rolname !~ '^pg_'";

const MEMBERSHIPS: &str = "
    SELECT 'membership of ' || u.rolname || ' in ' || g.rolname, CASE WHEN m.admin_option THEN 'with admin option' ELSE 'member' END
    FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid JOIN pg_catalog.pg_roles u ON u.oid = m.member
    WHERE u.rolname !~ '^pg_'";

/// Values of the server's own parameters only: what an application sets may be a secret.
const ROLE_SETTINGS: &str = "
    SELECT 'settings of ' || coalesce('role ' || r.rolname, 'all roles') || coalesce(' in database ' || d.datname, ''),
           CASE WHEN split_part(c.one, '=', 1) IN (SELECT p.name FROM pg_catalog.pg_settings p WHERE p.name NOT LIKE '%.%')
                THEN c.one ELSE split_part(c.one, '=', 1) || ' is set' END
    FROM pg_catalog.pg_db_role_setting s
    LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase,
    LATERAL unnest(s.setconfig) AS c(one)";

const GRANTS: &str = "
    SELECT name, coalesce((SELECT string_agg(a.acl::text, ' ' ORDER BY a.acl::text) FROM unnest(acl) AS a(acl)), 'nothing')
    FROM (SELECT 'grants on database ' || datname AS name, datacl AS acl FROM pg_catalog.pg_database WHERE NOT datistemplate
          UNION ALL
          SELECT 'grants on schema ' || quote_ident(nspname), nspacl FROM pg_catalog.pg_namespace
          WHERE nspname !~ '^pg_(toast|temp)'
          UNION ALL
          SELECT 'grants on ' || c.oid::regclass, c.relacl FROM pg_catalog.pg_class c
          WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f', 'S') AND c.relacl IS NOT NULL
            AND c.relnamespace::regnamespace::text !~ '^pg_(toast|temp)'
          UNION ALL
          SELECT 'grants on column ' || a.attrelid::regclass || '.' || quote_ident(a.attname), a.attacl
          FROM pg_catalog.pg_attribute a WHERE a.attacl IS NOT NULL AND NOT a.attisdropped
          UNION ALL
          SELECT 'grants on function ' || p.oid::regprocedure, p.proacl FROM pg_catalog.pg_proc p WHERE p.proacl IS NOT NULL
          UNION ALL
          SELECT 'grants on language ' || lanname, lanacl FROM pg_catalog.pg_language WHERE lanacl IS NOT NULL
          UNION ALL
          SELECT 'grants on foreign server ' || quote_ident(srvname), srvacl FROM pg_catalog.pg_foreign_server WHERE srvacl IS NOT NULL
          UNION ALL
          SELECT 'grants on tablespace ' || quote_ident(spcname), spcacl FROM pg_catalog.pg_tablespace WHERE spcacl IS NOT NULL
          UNION ALL
          SELECT 'default grants of ' || d.defaclrole::regrole || coalesce(' in schema ' || nullif(d.defaclnamespace, 0)::regnamespace, '')
                 || ' on ' || CASE d.defaclobjtype WHEN 'r' THEN 'tables' WHEN 'S' THEN 'sequences' WHEN 'f' THEN 'functions'
                                  WHEN 'T' THEN 'types' WHEN 'n' THEN 'schemas' ELSE 'large objects' END, d.defaclacl
          FROM pg_catalog.pg_default_acl d) AS of_all";

/// What somebody has set for the server. Values in which a password may stand are told as being set only.
const SETTINGS: &str = "
    SELECT 'setting ' || name,
           CASE WHEN name ~ '(conninfo|_command$|passw|secret|key|token)' OR (name LIKE '%.%' AND name !~ '^(pgaudit|auto_explain|pg_stat_statements|rds|cloudsql|azure)\\.')
                THEN CASE WHEN coalesce(setting, '') = '' THEN 'empty' ELSE 'set' END ELSE setting END
    FROM pg_catalog.pg_settings
    WHERE source NOT IN ('default', 'override', 'client', 'session', 'environment variable', 'database', 'user', 'database user')
      AND name NOT IN ('lc_messages', 'TimeZone', 'log_timezone')";

/// The rules in their order, by their content: a rule that moves is another one. Options are told by name alone, since some
/// hold passwords (ldapbindpasswd, radiussecrets).
const ACCESS_RULES: &str = "
    SELECT 'rule ' || concat_ws(' ', type, array_to_string(database, ','), array_to_string(user_name, ','), address, netmask, auth_method),
           coalesce('options ' || (SELECT string_agg(split_part(o, '=', 1), ', ' ORDER BY o) FROM unnest(options) AS o), 'no options')
           || CASE WHEN error IS NOT NULL THEN ', not read' ELSE '' END || ', ' || auth_method
    FROM pg_catalog.pg_hba_file_rules WHERE type IS NOT NULL";

/// Definitions as digests, with what people want to read of them.
const RELATIONS: &str = "
    SELECT CASE c.relkind WHEN 'v' THEN 'view ' WHEN 'm' THEN 'materialized view ' WHEN 'S' THEN 'sequence ' WHEN 'f' THEN 'foreign table '
                ELSE 'table ' END || c.oid::regclass,
           concat_ws(', ', 'owner ' || c.relowner::regrole,
               (SELECT count(*) || ' columns ' || left(md5(string_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull), ',' ORDER BY a.attnum)), 8)
                FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
               (SELECT count(*) || ' indexes ' || left(md5(string_agg(pg_get_indexdef(i.indexrelid), ',' ORDER BY i.indexrelid::regclass::text)), 8)
                FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid HAVING count(*) > 0),
               (SELECT count(*) || ' constraints ' || left(md5(string_agg(pg_get_constraintdef(k.oid), ',' ORDER BY k.conname)), 8)
                FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid HAVING count(*) > 0),
               (SELECT count(*) || ' triggers ' || left(md5(string_agg(pg_get_triggerdef(t.oid) || t.tgenabled::text, ',' ORDER BY t.tgname)), 8)
                FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal HAVING count(*) > 0),
               (SELECT count(*) || ' row policies ' || left(md5(string_agg(concat_ws(' ', p.polname, p.polcmd, p.polpermissive, p.polroles::text, pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)), ',' ORDER BY p.polname)), 8)
                FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid HAVING count(*) > 0),
               CASE WHEN c.relrowsecurity THEN 'row security' || CASE WHEN c.relforcerowsecurity THEN ' forced' ELSE '' END END,
               CASE WHEN c.relkind IN ('v', 'm') THEN 'definition ' || left(md5(pg_get_viewdef(c.oid)), 8) END)
    FROM pg_catalog.pg_class c
    WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f', 'S') AND c.relpersistence <> 't' AND NOT c.relispartition
      AND c.relnamespace::regnamespace::text !~ '^(pg_|information_schema$)'
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.objid = c.oid AND d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype = 'e')
    UNION ALL
    SELECT 'event trigger ' || evtname, concat_ws(', ', evtevent, evtfoid::regproc, 'enabled ' || evtenabled::text) FROM pg_catalog.pg_event_trigger
    UNION ALL
    SELECT 'schema ' || quote_ident(nspname), 'owner ' || nspowner::regrole FROM pg_catalog.pg_namespace WHERE nspname !~ '^(pg_|information_schema$)'
    UNION ALL
    SELECT 'publication ' || quote_ident(pubname), 'owner ' || pubowner::regrole FROM pg_catalog.pg_publication";

const FUNCTIONS: &str = "
    SELECT CASE p.prokind WHEN 'p' THEN 'procedure ' ELSE 'function ' END || p.oid::regprocedure,
           concat_ws(', ', 'owner ' || p.proowner::regrole, l.lanname, CASE WHEN p.prosecdef THEN 'security definer' END,
                     (SELECT string_agg('sets ' || split_part(o, '=', 1), ', ' ORDER BY o) FROM unnest(p.proconfig) AS o),
                     'definition ' || left(md5(concat(p.prosrc, p.probin, p.prorettype::regtype, p.provolatile, p.proleakproof)), 8))
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
    WHERE p.pronamespace::regnamespace::text !~ '^(pg_|information_schema$)'
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.objid = p.oid AND d.classid = 'pg_catalog.pg_proc'::regclass AND d.deptype = 'e')";

const EXTENSIONS: &str = "
    SELECT 'extension ' || extname, 'version ' || extversion || ' in schema ' || extnamespace::regnamespace FROM pg_catalog.pg_extension";
