//! Redis and Valkey: backups as a replica takes them, key by key.

mod rdb;
mod records;
