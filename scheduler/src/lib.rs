//! Policies into jobs, rescue, retention, the watch for silence.

pub mod calendar;
