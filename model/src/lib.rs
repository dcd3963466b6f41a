//! The words that all rooms share.
