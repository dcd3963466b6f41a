//! The Redis wire of the fleet: how a job's id comes from the machine that submitted it to a worker on another one, at once
//! and in a fair order.
//!
//! Redis knows of a job only its id, generation, tenant, kind, slot class and place in the order (rule 13), and whatever it
//! forgets is in the ledger: losing it costs seconds, never a job (P1). [`RedisQueue`] is the [`fettler_queue::Queue`]; the
//! order is made by Lua scripts in `src/lua`, each of which is one step on one node. `docs/redis.md` describes the keys.
//!
//! What is deliberately absent: arguments, secrets, leases, retries, delays and limits. Those are the ledger's.

mod bell;
mod keeper;
mod link;
#[cfg(test)]
mod model;
mod options;
mod queue;
mod scripts;
mod server;

pub use options::RedisQueueOptions;
pub use queue::RedisQueue;
