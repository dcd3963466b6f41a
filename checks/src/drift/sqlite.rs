//! What a snapshot of a SQLite file is made of: its schema, and what of its settings is kept in the file.

use super::{Asked, MOST_ITEMS, Section};

/// What is asked.
pub(super) const QUESTIONS: &[Asked] = &[
    Asked::of(Section::Schema, SCHEMA),
    Asked::of(Section::Settings, SETTINGS),
];

/// Definitions as they were written; only their digests are kept.
const SCHEMA: &str = "
    SELECT type || ' ' || name AS name, 'on ' || tbl_name || ', definition ' || char(1) || sql AS state
    FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";

const SETTINGS: &str = "
    SELECT 'page_size' AS name, page_size AS state FROM pragma_page_size
    UNION ALL SELECT 'encoding', encoding FROM pragma_encoding
    UNION ALL SELECT 'auto_vacuum', auto_vacuum FROM pragma_auto_vacuum
    UNION ALL SELECT 'application_id', application_id FROM pragma_application_id
    UNION ALL SELECT 'user_version', user_version FROM pragma_user_version";

/// One line of all that a question gives.
pub(super) fn whole(text: &str) -> String {
    format!(
        "SELECT count(*) AS items_seen, CASE WHEN count(*) <= {MOST_ITEMS} THEN json_group_object(name, CAST(state AS TEXT)) END AS items
         FROM (\n{text}\n)"
    )
}
