//! Delivery: how a job's id comes from the ledger to a worker that has room for it.
//!
//! The ledger is the truth, a queue is the wire: what a queue loses, forgets or doubles costs time, never
//! a job (P1). So a queue knows of a job only what [`WireItem`] holds, and a worker gets a job only by
//! the ledger's claim. [`Queue`] is what a wire must do; [`LedgerQueue`] is the embedded one, in which the
//! ledger itself is asked and a notification stands for a push. [`Deliveries`] turns any of them into an
//! apalis backend. This room knows nothing of what a job does.

mod deliveries;
mod embedded;
mod queue;
mod slots;

pub use deliveries::{Deliveries, Delivery, DeliveryOptions};
pub use embedded::LedgerQueue;
pub use queue::{Arrivals, Queue, QueueError, WireItem};
pub use slots::{Reporting, Slot};
