//! The SQL truth.
