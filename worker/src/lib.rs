//! Claims, leases, heartbeats, retries, checkpoints, cancellation, drain.
