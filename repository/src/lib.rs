//! The backup repository.
