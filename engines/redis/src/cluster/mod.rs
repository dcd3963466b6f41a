//! Redis Cluster: who serves which slots, reading all of its primaries, and writing to the one that a key belongs to.
//!
//! A cluster has no moment. Each primary is read at a moment of its own, all begun at once. Between these moments a slot
//! may move from one primary to another, and its keys would be read twice or never. Therefore every primary is
//! asked, before the first fork and after the last, which slots it serves, under which epoch, and which are on the move; where
//! the two answers differ, everything is read anew ([`read`]).

mod layout;
pub(crate) mod read;
mod router;
mod slots;

pub(crate) use layout::Primaries;
pub(crate) use router::Router;
pub(crate) use slots::{SlotSet, slot_of, tag_of};
