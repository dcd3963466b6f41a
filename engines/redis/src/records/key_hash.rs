//! signatures only in this commit

use fettler_engine::RowHasher;
use fettler_model::Fingerprint;

use super::{Element, KeyHead};

/// Hashes keys, one row each, element by element as [`Element`] orders them; the members and fields of
/// sets, sorted sets and hashes in any order, each once.
#[derive(Debug)]
pub(crate) struct KeyHasher {}

impl KeyHasher {
    /// A hasher under the tenant's key.
    pub(crate) fn new(rows: RowHasher) -> Self {
        let _ = rows;
        unimplemented!()
    }

    /// Begins a key. What a key before it left unfinished is dropped.
    pub(crate) fn begin(&mut self, head: &KeyHead<'_>) {
        let _ = head;
        unimplemented!()
    }

    /// Adds a piece of its value.
    pub(crate) fn element(&mut self, element: &Element<'_>) {
        let _ = element;
        unimplemented!()
    }

    /// Ends the key and adds its row to the fingerprint of its database and kind.
    pub(crate) fn end(&mut self, to: &mut Fingerprint) {
        let _ = to;
        unimplemented!()
    }
}
