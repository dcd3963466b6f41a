//! What a snapshot of a MongoDB server is made of. The engine puts the lines together: no command gives them in this form.

use super::{Asked, Section};

/// What is asked.
pub(super) const QUESTIONS: &[Asked] = &[
    Asked::of(Section::Roles, "KEPT USERS"),
    Asked::of(Section::Grants, "KEPT ROLES"),
    Asked::of(Section::Settings, "KEPT SETTINGS"),
    Asked::of(Section::Settings, "KEPT MEMBERS"),
    Asked::of(Section::Schema, "KEPT SCHEMA"),
];
