//! Policies into jobs, rescue, retention, the watch for silence.
