//! Policies into jobs, rescue, retention, the watch for silence.

pub mod calendar;
mod plan;
mod window;

pub use plan::{Decision, InvalidPolicy, LastJob, MAX_CAUGHT_UP_JOBS, ON_TIME_WITHIN, PolicyPlan, jitter};
pub use window::{ClockWindow, InvalidWindow};
