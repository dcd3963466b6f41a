//! What a snapshot of an Elasticsearch or OpenSearch cluster is made of. The engine puts the lines together: the products tell the
//! same by different requests.

use super::{Asked, Section};

/// What is asked. Without the privilege that is named, a part of the indices would be seen.
pub(super) const QUESTIONS: &[Asked] = &[
    Asked::of(Section::Roles, "KEPT USERS"),
    Asked::of(Section::Grants, "KEPT ROLES"),
    Asked::of(Section::Settings, "KEPT SETTINGS"),
    Asked::of(Section::Settings, "KEPT REPOSITORIES"),
    Asked::of(Section::AccessRules, "KEPT ROLE MAPPINGS"),
    Asked::of(Section::Schema, "KEPT SCHEMA").needs("view_index_metadata"),
    Asked::of(Section::Extensions, "KEPT PLUGINS"),
];
