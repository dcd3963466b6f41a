//! The hash of a row, of which fingerprints are sums (rule 28).
//!
//! Each row of a database is hashed once when it is backed up and once when it is proven, most of them with 100
//! to 500 bytes: a tree hash made for long messages spends more on such a row than compression does. This is
//! HighwayHash, a keyed pseudo-random function of 128 bits made for short input, by the fastest
//! instructions that the processor has. Nothing more is needed of it: whoever wants rows to collide would have to
//! know the key, which never leaves the tenant's own processes, and the hash of a single row is never shown.

use fettler_model::Fingerprint;
use highway::{HighwayHash, HighwayHasher, Key};

/// What the hash is called where a backup says by which one its fingerprints were made. Fingerprints of other
/// names cannot be compared with these.
pub const ROW_HASH: &str = "highwayhash-128";

/// Separates this use of the fingerprint key from all others.
const CONTEXT: &str = "fettler row hash highwayhash-128";

/// Hashes rows under a tenant's key. A clone has the same key and nothing of the row.
#[derive(Clone)]
pub struct RowHasher(HighwayHasher);

impl std::fmt::Debug for RowHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RowHasher(***)")
    }
}

impl RowHasher {
    /// A hasher under the key of [`EngineContext::fingerprint_key`](crate::EngineContext::fingerprint_key).
    #[must_use]
    pub fn new(fingerprint_key: &[u8; 32]) -> Self {
        let key = blake3::derive_key(CONTEXT, fingerprint_key);
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(key.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Self(HighwayHasher::new(Key(words)))
    }

    /// Adds a row that lies in memory whole.
    #[inline]
    pub fn add(&self, row: &[u8], to: &mut Fingerprint) {
        to.add_row_hash(self.0.clone().hash128(row));
    }

    /// The hash of a row alone, for sums that are made later of only some rows. It is never shown.
    #[inline]
    #[must_use]
    pub fn hash(&self, row: &[u8]) -> [u64; 2] {
        self.0.clone().hash128(row)
    }

    /// Begins a row that comes in pieces.
    #[must_use]
    pub fn begin(&self) -> LongRow {
        LongRow(self.0.clone())
    }
}

/// A row that comes in pieces. Where they are cut makes no difference.
#[derive(Clone)]
pub struct LongRow(HighwayHasher);

impl std::fmt::Debug for LongRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LongRow(***)")
    }
}

impl LongRow {
    /// Takes the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.append(piece);
    }

    /// Adds the row, which is whole now.
    pub fn add(self, to: &mut Fingerprint) {
        to.add_row_hash(self.0.finalize128());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(key: u8, row: &[u8]) -> Fingerprint {
        let mut print = Fingerprint::empty();
        RowHasher::new(&[key; 32]).add(row, &mut print);
        print
    }

    #[test]
    fn the_hash_is_highwayhash_as_its_authors_published_it() {
        // The first vector of the reference implementation, for a key of the bytes 0 to 31 and no input.
        let key = Key([
            0x0706_0504_0302_0100,
            0x0f0e_0d0c_0b0a_0908,
            0x1716_1514_1312_1110,
            0x1f1e_1d1c_1b1a_1918,
        ]);
        assert_eq!(HighwayHasher::new(key).hash64(&[]), 0x907A_56DE_22C2_6E53);
    }

    #[test]
    fn a_row_in_pieces_has_the_hash_of_the_whole_row() {
        let row: Vec<u8> = (0..2000u32).map(|n| ((n * 7919) >> 3) as u8).collect();
        for cut in [1, 3, 31, 32, 33, 64, 1000, 2000] {
            let mut long = RowHasher::new(&[7; 32]).begin();
            row.chunks(cut).for_each(|piece| long.update(piece));
            let mut print = Fingerprint::empty();
            long.add(&mut print);
            assert_eq!(print, whole(7, &row), "in pieces of {cut}");
        }
    }

    #[test]
    fn rule_28_each_bit_and_each_byte_of_length_and_the_key_count() {
        let row = [0u8; 100];
        let mut seen = std::collections::HashSet::from([whole(7, &row), whole(8, &row)]);
        for length in 0..100 {
            seen.insert(whole(7, &row[..length]));
        }
        for bit in 0..800 {
            let mut other = row;
            other[bit / 8] ^= 1 << (bit % 8);
            seen.insert(whole(7, &other));
        }
        assert_eq!(seen.len(), 2 + 100 + 800);
    }
}
