//! What a snapshot of a ClickHouse server is made of.

use super::{Asked, MOST_ITEMS, Section};

/// The first version whose tables and functions the questions know.
const SINCE: &str = ">=21.10";

/// What is asked. Without the privilege that is named, the server's tables show a part of what there is.
pub(super) const QUESTIONS: &[Asked] = &[
    Asked::of(Section::Roles, USERS)
        .versions(SINCE)
        .needs("SHOW USERS"),
    Asked::of(Section::Roles, ROLES)
        .versions(SINCE)
        .needs("SHOW ROLES"),
    Asked::of(Section::Grants, GRANTS)
        .versions(SINCE)
        .needs("SHOW ACCESS"),
    Asked::of(Section::AccessRules, POLICIES)
        .versions(SINCE)
        .needs("SHOW ROW POLICIES"),
    Asked::of(Section::Settings, PROFILES)
        .versions(SINCE)
        .needs("SHOW SETTINGS PROFILES"),
    Asked::of(Section::Settings, SERVER_SETTINGS).versions(">=23.4"),
    Asked::of(Section::Schema, TABLES)
        .versions(SINCE)
        .needs("SHOW TABLES"),
    Asked::of(Section::Schema, FUNCTIONS).versions(SINCE),
];

/// How users show who they are, never by what.
const USERS: &str = "
    SELECT concat('user ', name) AS name,
        concat('logs in by ', toString(auth_type), ', from ', toString(host_ip), toString(host_names), toString(host_names_regexp), toString(host_names_like),
            if(default_roles_all, ', all roles', concat(', default roles ', toString(default_roles_list)))) AS state
    FROM system.users";

const ROLES: &str = "
    SELECT concat('role ', name) AS name, 'role' AS state FROM system.roles
    UNION ALL
    SELECT concat('membership of ', coalesce(user_name, role_name, ''), ' in ', granted_role_name), if(with_admin_option, 'with admin option', 'member')
    FROM system.role_grants";

const GRANTS: &str = "
    SELECT concat('grants of ', coalesce(user_name, role_name, ''), ' on ', coalesce(database, '*'), '.', coalesce(table, '*'), coalesce(concat('.', column), '')) AS name,
        concat(if(is_partial_revoke, 'not ', ''), toString(access_type), if(grant_option, ' with grant option', '')) AS state
    FROM system.grants";

const POLICIES: &str = "
    SELECT concat('row policy ', short_name, ' on ', database, '.', table) AS name,
        concat(if(is_restrictive, 'restrictive', 'permissive'), if(apply_to_all, ', for all', concat(', for ', toString(apply_to_list))), toString(apply_to_except),
            ', filter ', hex(sipHash64(coalesce(select_filter, '')))) AS state
    FROM system.row_policies";

const PROFILES: &str = "
    SELECT concat('setting ', coalesce(setting_name, 'inherited'), ' of ', coalesce(concat('profile ', profile_name), concat('user ', user_name), concat('role ', role_name), '')) AS name,
        concat(coalesce(value, inherit_profile, ''), coalesce(concat(', at least ', min), ''), coalesce(concat(', at most ', max), '')) AS state
    FROM system.settings_profile_elements";

/// Values in which a password may stand are told as being set only.
const SERVER_SETTINGS: &str = "
    SELECT concat('server setting ', name) AS name, if(match(name, '(pass|secret|key|token|credential)'), 'set', value) AS state
    FROM system.server_settings WHERE changed";

/// Tables that a materialised view keeps for itself, and those of work on backups, come and go.
const TABLES: &str = "
    SELECT concat(if(engine LIKE '%View', 'view ', if(engine = 'Dictionary', 'dictionary ', 'table ')), database, '.', name) AS name,
        concat(engine, ', definition ', hex(sipHash64(create_table_query))) AS state
    FROM system.tables
    WHERE NOT is_temporary AND database NOT IN ('system', 'INFORMATION_SCHEMA', 'information_schema') AND NOT startsWith(database, 'fettler') AND NOT startsWith(name, '.inner')";

const FUNCTIONS: &str = "
    SELECT concat('function ', name) AS name, concat('definition ', hex(sipHash64(create_query))) AS state
    FROM system.functions WHERE toString(origin) = 'SQLUserDefined'";

/// One line of all that a question gives.
pub(super) fn whole(text: &str) -> String {
    format!(
        "SELECT toUInt32(count()) AS items_seen,
            if(count() <= {MOST_ITEMS}, toJSONString(CAST((groupArray(name), groupArray(state)), 'Map(String, String)')), NULL) AS items
         FROM (SELECT name, arrayStringConcat(arraySort(groupArray(state)), ', ') AS state FROM (\n{text}\n) GROUP BY name)"
    )
}
