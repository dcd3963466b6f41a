//! Lists of chunks: where each chunk of a stream lies. Binary, since there is one entry for each quarter
//! of a megabyte of every database: a table of packs, then entries of 48 bytes.

use std::collections::HashMap;

use crate::layout::ObjectName;

/// A chunk's keyed hash.
pub(crate) type ChunkId = [u8; 32];

/// The most entries in one index object; a longer stream has several.
pub(crate) const MAX_ENTRIES: usize = 1 << 16;

/// Up to this many entries are kept in the manifest itself.
pub(crate) const MAX_INLINE_ENTRIES: usize = 16;

/// Bytes of an entry: id, pack's place in the table, offset, sealed length, plain length.
const ENTRY_BYTES: usize = 32 + 4 * 4;

/// Bytes before the table of packs: how many packs, how many entries.
const COUNTS_BYTES: usize = 8;

/// A chunk and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: ChunkId,
    /// Its pack's place in the table of packs.
    pub(crate) pack: u32,
    /// Where in the pack.
    pub(crate) offset: u32,
    /// Sealed bytes.
    pub(crate) sealed: u32,
    /// Bytes of the chunk itself.
    pub(crate) plain: u32,
}

/// A list of chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) packs: Vec<ObjectName>,
    pub(crate) entries: Vec<Entry>,
}

impl Index {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(
            COUNTS_BYTES + 32 * self.packs.len() + ENTRY_BYTES * self.entries.len(),
        );
        for count in [self.packs.len(), self.entries.len()] {
            let count = u32::try_from(count).expect("an index is bounded");
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        for pack in &self.packs {
            bytes.extend_from_slice(&pack.0);
        }
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.id);
            for number in [entry.pack, entry.offset, entry.sealed, entry.plain] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| -> Option<u32> {
            Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
        };
        let (packs, entries) = (number(0)? as usize, number(4)? as usize);
        let table = bytes.get(COUNTS_BYTES..)?;
        let (table, rest) = table.split_at_checked(packs.checked_mul(32)?)?;
        if rest.len() != entries.checked_mul(ENTRY_BYTES)? {
            return None;
        }
        let packs: Vec<ObjectName> = table
            .chunks_exact(32)
            .map(|name| ObjectName(name.try_into().expect("32 bytes")))
            .collect();
        let entries = rest
            .chunks_exact(ENTRY_BYTES)
            .map(|bytes| {
                let number = |at: usize| {
                    let at = 32 + 4 * at;
                    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
                };
                let entry = Entry {
                    id: bytes[..32].try_into().expect("32 bytes"),
                    pack: number(0),
                    offset: number(1),
                    sealed: number(2),
                    plain: number(3),
                };
                ((entry.pack as usize) < packs.len()).then_some(entry)
            })
            .collect::<Option<_>>()?;
        Some(Self { packs, entries })
    }
}

/// Builds an index from chunks whose packs are known by a number of the caller's.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder {
    index: Index,
    places: HashMap<u32, u32>,
}

impl IndexBuilder {
    pub(crate) fn len(&self) -> usize {
        self.index.entries.len()
    }

    /// Adds a chunk; `entry.pack` is the caller's number of the pack `name`.
    pub(crate) fn push(&mut self, entry: Entry, name: impl FnOnce() -> ObjectName) {
        let packs = &mut self.index.packs;
        let place = *self.places.entry(entry.pack).or_insert_with(|| {
            packs.push(name());
            u32::try_from(packs.len() - 1).expect("an index is bounded")
        });
        self.index.entries.push(Entry {
            pack: place,
            ..entry
        });
    }

    pub(crate) fn take(&mut self) -> Index {
        self.places.clear();
        std::mem::take(&mut self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_index_reads_as_it_was_written(chunks: Vec<([u8; 32], u8, u32, u32, u32)>) {
            let names: Vec<_> = (0..=255u8).map(|n| ObjectName([n; 32])).collect();
            let mut builder = IndexBuilder::default();
            for (id, pack, offset, sealed, plain) in &chunks {
                let entry = Entry { id: *id, pack: (*pack).into(), offset: *offset, sealed: *sealed, plain: *plain };
                builder.push(entry, || names[*pack as usize]);
            }
            let index = builder.take();
            let bytes = index.encode();
            prop_assert_eq!(Index::decode(&bytes), Some(index.clone()));
            for (entry, chunk) in index.entries.iter().zip(&chunks) {
                prop_assert_eq!(index.packs[entry.pack as usize], names[chunk.1 as usize]);
            }
            prop_assert_eq!(Index::decode(&bytes[..bytes.len() - 1]), None);
        }

        #[test]
        fn garbage_is_no_index_and_no_panic(bytes: Vec<u8>) {
            let _either_way_no_panic = Index::decode(&bytes);
        }
    }
}
