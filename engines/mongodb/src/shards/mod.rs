//! Sharded clusters. What is said to a router (`mongos`) is said to all shards, so a backup reads and a restore writes through the
//! router, which knows whose a document is. Only the oplogs lie behind it: they are read from each shard ([`oplogs`]), to which
//! the router's own map leads ([`map`]). While a backup runs no chunk may move from one shard to another ([`balancer`]).
//!
//! Written from MongoDB's manual (Sharding; Back Up a Self-Managed Sharded Cluster; `listShards`, `balancerStop`, Read Concern
//! `afterClusterTime`) and its source: no cluster could be had to try it on.

pub(crate) mod balancer;
pub(crate) mod map;
pub(crate) mod oplogs;
