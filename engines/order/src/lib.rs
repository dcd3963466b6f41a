//! Puts entries in an order that does not depend on how they come, within bounded memory: what engines whose servers give
//! their rows in an order of the moment store them by, so that the next backup finds the unchanged ones again.

use std::{
    cmp::Ordering,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, Write as _},
    path::{Path, PathBuf},
};

/// Bits of the hash that choose a bucket.
const BUCKET_BITS: u32 = 6;

/// How many buckets there are.
pub const BUCKETS: usize = 1 << BUCKET_BITS;

/// Bytes of a bucket that lie in memory before they are written out.
const BUFFER_BYTES: usize = 128 << 10;

/// Bytes of a bucket that may lie in memory to be sorted.
const LOADED_BYTES: u64 = 16 << 20;

/// Bytes before an entry: its hash and its length.
const ENTRY_HEAD: usize = 16;

/// How entries of one hash are ordered; equal ones are the same to their owner.
pub type Tie = fn(&[u8], &[u8]) -> Ordering;

/// Takes an entry, and whether an equal one follows.
pub type Take<'a, E> = dyn FnMut(&[u8], bool) -> Result<(), E> + 'a;

/// Entries in buckets by the upper bits of their hash. A bucket that is too large to be sorted in memory goes into
/// buckets by the next bits, and so on.
///
/// The files have no names: nothing is left of them, however the process ends.
#[derive(Debug)]
pub struct Partitions {
    folder: PathBuf,
    level: u32,
    buckets: Vec<Bucket>,
}

#[derive(Debug, Default)]
struct Bucket {
    buffer: Vec<u8>,
    file: Option<File>,
    file_bytes: u64,
}

impl Bucket {
    fn bytes(&self) -> u64 {
        self.file_bytes + self.buffer.len() as u64
    }
}

impl Partitions {
    /// No entries; files lie in `folder`.
    pub fn new(folder: &Path) -> Self {
        Self::at_level(folder, 0)
    }

    fn at_level(folder: &Path, level: u32) -> Self {
        Self {
            folder: folder.to_owned(),
            level,
            buckets: std::iter::repeat_with(Bucket::default)
                .take(BUCKETS)
                .collect(),
        }
    }

    /// Which bucket a hash belongs to.
    fn bucket_of(&self, hash: u64) -> usize {
        (hash >> (u64::BITS - BUCKET_BITS * (self.level + 1))) as usize % BUCKETS
    }

    /// Whether the next bits can part a bucket's entries.
    fn can_split(&self) -> bool {
        BUCKET_BITS * (self.level + 2) <= u64::BITS
    }

    /// Adds an entry.
    ///
    /// # Errors
    ///
    /// Those of the folder's disk.
    pub fn push(&mut self, hash: u64, entry: &[u8]) -> io::Result<()> {
        let at = self.bucket_of(hash);
        let bucket = &mut self.buckets[at];
        bucket.buffer.extend_from_slice(&hash.to_le_bytes());
        bucket
            .buffer
            .extend_from_slice(&(entry.len() as u64).to_le_bytes());
        let is_long = entry.len() >= BUFFER_BYTES;
        if !is_long {
            bucket.buffer.extend_from_slice(entry);
        }
        if is_long || bucket.buffer.len() >= BUFFER_BYTES {
            let file = match &mut bucket.file {
                Some(file) => file,
                none => none.insert(tempfile::tempfile_in(&self.folder)?),
            };
            file.write_all(&bucket.buffer)?;
            bucket.file_bytes += bucket.buffer.len() as u64;
            bucket.buffer.clear();
            if is_long {
                file.write_all(entry)?;
                bucket.file_bytes += entry.len() as u64;
            }
        }
        Ok(())
    }

    /// The buckets that hold something.
    pub fn filled(&self) -> impl Iterator<Item = usize> {
        self.buckets
            .iter()
            .enumerate()
            .filter(|(_, bucket)| bucket.bytes() > 0)
            .map(|(at, _)| at)
    }

    /// Empties a bucket: gives its entries by hash, those of one hash by `tie`, equal ones as they were added; with
    /// each, whether an equal one follows.
    ///
    /// # Errors
    ///
    /// Those of the folder's disk, and what `on` gives.
    ///
    /// # Panics
    ///
    /// If there is no bucket of this number.
    pub fn drain<E: From<io::Error>>(
        &mut self,
        bucket: usize,
        tie: Tie,
        on: &mut Take<'_, E>,
    ) -> Result<(), E> {
        let bucket = std::mem::take(&mut self.buckets[bucket]);
        if bucket.bytes() > LOADED_BYTES && self.can_split() {
            let mut finer = Self::at_level(&self.folder, self.level + 1);
            finer.take_from(bucket)?;
            for bucket in 0..BUCKETS {
                finer.drain(bucket, tie, on)?;
            }
            return Ok(());
        }
        let mut bytes = Vec::new();
        if let Some(mut file) = bucket.file {
            bytes.reserve_exact(bucket.file_bytes as usize + bucket.buffer.len());
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
            bytes.extend_from_slice(&bucket.buffer);
        } else {
            bytes = bucket.buffer;
        }
        let mut entries = Vec::new();
        let mut at = 0;
        while let Some((hash, length)) = bytes.get(at..).and_then(entry_head) {
            let begin = at + ENTRY_HEAD;
            at = begin + length as usize;
            entries.push((hash, begin..at));
        }
        let order = |(hash, range): &(u64, std::ops::Range<usize>),
                     (other_hash, other): &(u64, std::ops::Range<usize>)| {
            hash.cmp(other_hash)
                .then_with(|| tie(&bytes[range.clone()], &bytes[other.clone()]))
        };
        entries.sort_by(order);
        for (at, entry) in entries.iter().enumerate() {
            let is_followed = entries
                .get(at + 1)
                .is_some_and(|next| order(entry, next) == Ordering::Equal);
            on(&bytes[entry.1.clone()], is_followed)?;
        }
        Ok(())
    }

    /// Adds all entries of a bucket, in their order.
    fn take_from(&mut self, bucket: Bucket) -> io::Result<()> {
        let file = match bucket.file {
            Some(mut file) => {
                file.rewind()?;
                Some(file)
            }
            None => None,
        };
        let file: &mut dyn Read = match &file {
            Some(file) => &mut { file },
            None => &mut io::empty(),
        };
        let mut source = BufReader::with_capacity(BUFFER_BYTES, file.chain(&*bucket.buffer));
        let mut entry = Vec::new();
        while !source.fill_buf()?.is_empty() {
            let mut head = [0; ENTRY_HEAD];
            source.read_exact(&mut head)?;
            let (hash, length) = entry_head(&head).ok_or(io::ErrorKind::UnexpectedEof)?;
            entry.resize(length as usize, 0);
            source.read_exact(&mut entry)?;
            self.push(hash, &entry)?;
        }
        Ok(())
    }
}

/// The hash of an entry and its length.
fn entry_head(bytes: &[u8]) -> Option<(u64, u64)> {
    let (hash, rest) = bytes.split_first_chunk()?;
    let length = rest.first_chunk()?;
    Some((u64::from_le_bytes(*hash), u64::from_le_bytes(*length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_entries_comes_out_in_order_and_no_file_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let mut partitions = Partitions::new(folder.path());
        // All of one bucket and of its first part, 40 MiB of them, so that it is split twice.
        let count = 40 << 10;
        for number in (0..count).rev() {
            let mut entry = vec![7; 1008];
            entry[..4].copy_from_slice(&u32::to_be_bytes(number));
            partitions.push(u64::from(number) << 20, &entry).unwrap();
        }
        partitions.push(17 << 20, b"again").unwrap();
        assert_eq!(partitions.filled().collect::<Vec<_>>(), [0]);
        let mut seen = Vec::new();
        partitions
            .drain(0, |_, _| Ordering::Equal, &mut |entry, is_followed| {
                if is_followed {
                    assert_eq!(entry[..4], 17u32.to_be_bytes());
                } else {
                    seen.push(entry.to_vec());
                }
                Ok::<_, io::Error>(())
            })
            .unwrap();
        assert_eq!(seen.len(), count as usize);
        assert_eq!(seen[17], b"again");
        assert!(
            seen.iter()
                .enumerate()
                .all(|(at, entry)| at == 17 || entry[..4] == (at as u32).to_be_bytes())
        );
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
