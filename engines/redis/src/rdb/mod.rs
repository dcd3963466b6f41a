//! The file format of Redis.
