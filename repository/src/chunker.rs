//! Cutting streams into chunks: at places that the content decides, by a gear table that is the
//! tenant's own, so that lengths tell nobody which public data a database holds (rule 20).

use fastcdc::v2020::{Normalization, cut_gear, select_masks};

use crate::{keys::TenantKeys, open::ChunkSizes};

/// Finds the ends of chunks.
#[derive(Clone)]
pub(crate) enum Chunker {
    /// By content.
    Content(Box<Gear>),
    /// At multiples of so many bytes.
    Fixed(usize),
}

#[derive(Clone)]
pub(crate) struct Gear {
    sizes: ChunkSizes,
    masks: (u64, u64),
    table: [u64; 256],
    shifted: [u64; 256],
}

impl Chunker {
    pub(crate) fn content(keys: &TenantKeys, sizes: ChunkSizes) -> Self {
        let table = *keys.gear();
        Self::Content(Box::new(Gear {
            sizes,
            masks: select_masks(sizes.average as usize, Normalization::Level1),
            table,
            shifted: table.map(|value| value << 1),
        }))
    }

    /// Cuts of whole pages, near the size that is usual for pages.
    pub(crate) fn pages(page_bytes: u32, sizes: ChunkSizes) -> Self {
        let page = page_bytes.clamp(1, sizes.most) as usize;
        Self::Fixed((sizes.pages as usize / page).max(1) * page)
    }

    /// The ends of the chunks that begin in `bytes`, in order. Unless these are the last bytes, what is
    /// behind the last end is to be given again with more behind it.
    pub(crate) fn cuts(&self, bytes: &[u8], last: bool) -> Vec<usize> {
        let mut ends = Vec::new();
        let mut begin = 0;
        while begin < bytes.len() {
            let rest = &bytes[begin..];
            let (length, certain) = match self {
                Self::Fixed(size) => (rest.len().min(*size), rest.len() >= *size),
                Self::Content(gear) => gear.next(rest),
            };
            if !certain && !last {
                break;
            }
            begin += length;
            ends.push(begin);
        }
        ends
    }
}

impl Gear {
    /// The length of the first chunk, and whether more bytes behind would not change it.
    fn next(&self, bytes: &[u8]) -> (usize, bool) {
        let most = self.sizes.most as usize;
        let (_, length) = cut_gear(
            bytes,
            self.sizes.least as usize,
            self.sizes.average as usize,
            most,
            self.masks.0,
            self.masks.1,
            self.masks.0 << 1,
            self.masks.1 << 1,
            &self.table,
            &self.shifted,
        );
        // A cut before the end was found in the content; one at the end is there for want of more.
        (length, length < bytes.len() || length >= most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::DataKey;
    use proptest::prelude::*;

    fn sizes() -> ChunkSizes {
        ChunkSizes {
            least: 64,
            average: 256,
            most: 1024,
            pages: 512,
        }
    }

    fn noise() -> Vec<u8> {
        (0..100_000u32)
            .map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[0])
            .collect()
    }

    /// The chunks of a stream that comes in pieces of these sizes.
    fn chunks(chunker: &Chunker, bytes: &[u8], pieces: &[usize]) -> Vec<Vec<u8>> {
        let (mut chunks, mut pending, mut rest) = (Vec::new(), Vec::new(), bytes);
        let mut pieces = pieces.iter().cycle();
        loop {
            let piece = (*pieces.next().unwrap()).min(rest.len());
            pending.extend_from_slice(&rest[..piece]);
            rest = &rest[piece..];
            let mut begin = 0;
            for end in chunker.cuts(&pending, rest.is_empty()) {
                chunks.push(pending[begin..end].to_vec());
                begin = end;
            }
            pending.drain(..begin);
            if rest.is_empty() {
                assert!(pending.is_empty());
                return chunks;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn chunks_do_not_depend_on_how_a_stream_arrives(
            bytes in proptest::collection::vec(any::<u8>(), 0..20_000),
            pieces in proptest::collection::vec(1usize..3000, 1..5),
        ) {
            let keys = TenantKeys::derive(&DataKey::random());
            for chunker in [Chunker::content(&keys, sizes()), Chunker::pages(100, sizes())] {
                let whole = chunks(&chunker, &bytes, &[bytes.len().max(1)]);
                prop_assert_eq!(whole.concat(), bytes.clone());
                prop_assert!(whole.iter().all(|chunk| chunk.len() <= 1024));
                prop_assert_eq!(chunks(&chunker, &bytes, &pieces), whole);
            }
        }
    }

    #[test]
    fn rule_20_two_tenants_cut_the_same_bytes_at_different_places() {
        let bytes = noise();
        let cut = || {
            let keys = TenantKeys::derive(&DataKey::random());
            Chunker::content(&keys, sizes()).cuts(&bytes, true)
        };
        assert_ne!(cut(), cut());
    }

    #[test]
    fn an_insertion_moves_few_cuts() {
        let keys = TenantKeys::derive(&DataKey::random());
        let chunker = Chunker::content(&keys, sizes());
        let bytes = noise();
        let mut changed = bytes.clone();
        changed.splice(50_000..50_000, *b"something");
        let before: std::collections::HashSet<_> = chunks(&chunker, &bytes, &[usize::MAX])
            .into_iter()
            .collect();
        let after = chunks(&chunker, &changed, &[usize::MAX]);
        let new = after
            .iter()
            .filter(|chunk| !before.contains(*chunk))
            .count();
        // How soon the cuts agree again depends on the key.
        assert!(new <= 16, "{new} of {} chunks are new", after.len());
    }
}
