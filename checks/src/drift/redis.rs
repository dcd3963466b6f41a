//! What a snapshot of a Redis server is made of. The engine puts the lines together: no command gives them in this form.

use super::{Asked, Section};

/// What is asked.
pub(super) const QUESTIONS: &[Asked] = &[
    Asked::of(Section::Roles, "KEPT USERS").versions(">=6"),
    Asked::of(Section::Settings, "KEPT SETTINGS"),
    Asked::of(Section::Extensions, "KEPT MODULES"),
];
