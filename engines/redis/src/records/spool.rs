//! Puts keys in the order of a backup.

use std::{
    cmp::Ordering,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use fettler_engine_order::{BUCKETS, Partitions};
use highway::{HighwayHash, HighwayHasher, Key};

use super::{
    Element, KeyHead, Kind, Size,
    stored::{HEADER, head_of, put_element, put_end, put_head},
};

/// Values above this many bytes lie in a file before they are given back, and are not sorted with the others.
const LARGE_BYTES: usize = 1 << 20;

/// Pieces in which streams are given back.
const PIECE_BYTES: usize = 256 << 10;

/// Separates the order of keys from all other uses of its key.
const CONTEXT: &str = "fettler redis order of keys";

/// How an entry begins whose value follows, and how one whose value lies among the large ones.
const SMALL: u8 = 0;
const LARGE: u8 = 1;

/// Bytes of an entry before the head of its key, where its value lies elsewhere: [`LARGE`] and where.
const PLACE_BYTES: usize = 17;

/// The name of a stream of keys: `keys/00` to `keys/63`. Which of them a key belongs to depends on a keyed hash of database
/// and key alone.
pub(crate) fn stream_name(stream: u8) -> String {
    format!("keys/{stream:02}")
}

/// Why keys could not be put in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    /// A file of the scratch folder failed.
    #[error("ordering the keys in {folder}: {source}")]
    Io {
        /// The scratch folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Puts keys in the order of a backup, whatever order they come in. Blocks.
///
/// The order is that of a keyed hash over database and key, then of the database, then of the key; within sets, sorted sets and
/// hashes that of a keyed hash over member or field. It depends on nothing else, so that a key that comes, goes or changes moves
/// no other.
///
/// Whatever the size of the data, some 50 MiB of memory are used (and what the largest element needs). Small values
/// are sorted in memory, as many at a time as that allows; those above 1 MiB pass through a file piece by piece, and each
/// only once more for its order if it has none. The disk must have room for all keys once, and for the largest set,
/// sorted set or hash twice.
pub(crate) struct Spool {
    folder: PathBuf,
    order: HighwayHasher,
    keys: Partitions,
    large: Appended,
    current: Option<Current>,
    /// Room for what is kept of a key.
    entry: Vec<u8>,
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// A key that is being added.
#[derive(Debug)]
struct Current {
    database: u32,
    key: Vec<u8>,
    expiry: Option<i64>,
    kind: Kind,
    size: Size,
    /// The stored elements that lie in memory.
    elements: Vec<u8>,
    /// The hash of each of them and where it begins, where they have no order.
    marks: Vec<(u64, usize)>,
    /// Where the others lie.
    beyond: Beyond,
}

#[derive(Debug)]
enum Beyond {
    /// There are no others.
    Nothing,
    /// Among the large values, from here on.
    Large { from: u64 },
    /// In parts that are yet to be put in order.
    Parted(Partitions),
}

/// Large values, one after the other.
#[derive(Debug, Default)]
struct Appended {
    file: Option<File>,
    end: u64,
}

impl Appended {
    fn append(&mut self, bytes: &[u8], folder: &Path) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(folder)?),
        };
        file.write_all(bytes)?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

/// Hashes what the order goes by.
fn hash(order: &HighwayHasher, parts: [&[u8]; 2]) -> u64 {
    let mut order = order.clone();
    parts.iter().for_each(|part| order.append(part));
    order.finalize64()
}

impl Spool {
    /// A spool whose files, which have no names, lie in `folder`; the order is that of a keyed hash under `order_key`,
    /// which must be the same for all backups of a database: unchanged keys are not found again otherwise.
    pub(crate) fn new(folder: &Path, order_key: &[u8; 32]) -> Self {
        let key = blake3::derive_key(CONTEXT, order_key);
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(key.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Self {
            folder: folder.to_owned(),
            order: HighwayHasher::new(Key(words)),
            keys: Partitions::new(folder),
            large: Appended::default(),
            current: None,
            entry: Vec::new(),
        }
    }

    fn failed(&self, source: io::Error) -> SpoolError {
        SpoolError::Io {
            folder: self.folder.clone(),
            source,
        }
    }

    /// Begins a key. Of a key that comes twice, the last one is kept.
    ///
    /// # Errors
    ///
    /// None now.
    pub(crate) fn begin(&mut self, head: &KeyHead<'_>) -> Result<(), SpoolError> {
        let (mut key, mut elements, mut marks) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(last) = self.current.take() {
            (key, elements, marks) = (last.key, last.elements, last.marks);
            key.clear();
            elements.clear();
            marks.clear();
        }
        key.extend_from_slice(head.key);
        self.current = Some(Current {
            database: head.database,
            key,
            expiry: head.expiry,
            kind: head.kind,
            size: Size::default(),
            elements,
            marks,
            beyond: Beyond::Nothing,
        });
        Ok(())
    }

    /// Adds a piece of its value.
    pub(crate) fn element(&mut self, element: &Element<'_>) -> Result<(), SpoolError> {
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        if current.kind.is_unordered() {
            let name = match *element {
                Element::Member(member) | Element::Scored { member, .. } => member,
                Element::Field { field, .. } => field,
                _ => &[],
            };
            let mark = (hash(&self.order, [name, &[]]), current.elements.len());
            current.marks.push(mark);
        }
        put_element(element, &mut current.size, &mut current.elements);
        if current.elements.len() >= LARGE_BYTES {
            current
                .spill(&mut self.large, &self.folder)
                .map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// Ends the key.
    pub(crate) fn end(&mut self) -> Result<(), SpoolError> {
        let Some(mut current) = self.current.take() else {
            return Ok(());
        };
        let ended = self.keep(&mut current);
        // Its buffers are used again.
        self.current = Some(current);
        ended.map_err(|error| self.failed(error))
    }

    fn keep(&mut self, current: &mut Current) -> io::Result<()> {
        put_end(current.kind, &mut current.elements);
        if !matches!(current.beyond, Beyond::Nothing) {
            current.spill(&mut self.large, &self.folder)?;
        }
        let head = KeyHead {
            database: current.database,
            key: &current.key,
            expiry: current.expiry,
            kind: current.kind,
        };
        let mut entry = std::mem::take(&mut self.entry);
        entry.clear();
        entry.shrink_to(2 * LARGE_BYTES);
        match &mut current.beyond {
            Beyond::Nothing => {
                entry.push(SMALL);
                put_head(&head, &current.size, &mut entry);
                for element in current.elements_in_order() {
                    entry.extend_from_slice(element);
                }
            }
            beyond => {
                let from = match beyond {
                    Beyond::Large { from } => *from,
                    _ => self.large.end,
                };
                if let Beyond::Parted(parts) = beyond {
                    put_in_order(parts, &mut self.large, &self.folder)?;
                }
                entry.push(LARGE);
                entry.extend_from_slice(&from.to_le_bytes());
                entry.extend_from_slice(&(self.large.end - from).to_le_bytes());
                put_head(&head, &current.size, &mut entry);
            }
        }
        let hash = hash(&self.order, [&current.database.to_le_bytes(), &current.key]);
        current.beyond = Beyond::Nothing;
        self.entry = entry;
        self.keys.push(hash, &self.entry)
    }

    /// All keys are there.
    pub(crate) fn finish(self) -> OrderedStreams {
        OrderedStreams {
            folder: self.folder,
            keys: self.keys,
            large: self.large,
        }
    }
}

impl Current {
    /// The stored elements that lie in memory, in the order in which they are kept.
    fn elements_in_order(&mut self) -> impl Iterator<Item = &[u8]> {
        let elements = &self.elements;
        let element = |begin: usize, next: Option<&(u64, usize)>| {
            &elements[begin..next.map_or(elements.len(), |(_, next)| *next)]
        };
        let mut ranges: Vec<(u64, &[u8])> = if self.kind.is_unordered() {
            self.marks
                .iter()
                .enumerate()
                .map(|(at, (hash, begin))| (*hash, element(*begin, self.marks.get(at + 1))))
                .collect()
        } else {
            vec![(0, elements)]
        };
        ranges.sort_unstable();
        ranges.into_iter().map(|(_, element)| element)
    }

    /// Moves the stored elements out of memory.
    fn spill(&mut self, large: &mut Appended, folder: &Path) -> io::Result<()> {
        if let Beyond::Nothing = self.beyond {
            self.beyond = if self.kind.is_unordered() {
                Beyond::Parted(Partitions::new(folder))
            } else {
                Beyond::Large { from: large.end }
            };
        }
        if let Beyond::Parted(parts) = &mut self.beyond {
            for (at, (hash, begin)) in self.marks.iter().enumerate() {
                let end = self
                    .marks
                    .get(at + 1)
                    .map_or(self.elements.len(), |(_, next)| *next);
                parts.push(*hash, &self.elements[*begin..end])?;
            }
        } else {
            large.append(&self.elements, folder)?;
        }
        self.elements.clear();
        self.elements.shrink_to(2 * LARGE_BYTES);
        self.marks.clear();
        Ok(())
    }
}

/// Adds the elements of parts to the large values, in order.
fn put_in_order(parts: &mut Partitions, large: &mut Appended, folder: &Path) -> io::Result<()> {
    let mut buffer = Vec::new();
    for bucket in 0..BUCKETS {
        parts.drain(bucket, Ord::cmp, &mut |element, _| {
            if buffer.len() + element.len() > PIECE_BYTES {
                large.append(&buffer, folder)?;
                buffer.clear();
            }
            if element.len() > PIECE_BYTES {
                return large.append(element, folder);
            }
            buffer.extend_from_slice(element);
            Ok::<_, io::Error>(())
        })?;
    }
    large.append(&buffer, folder)
}

/// What a stream of keys held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamTotals {
    /// Keys.
    pub(crate) keys: u64,
    /// Bytes in the stored form.
    pub(crate) bytes: u64,
}

/// The keys in order, to be read once. Blocks.
#[derive(Debug)]
pub(crate) struct OrderedStreams {
    folder: PathBuf,
    keys: Partitions,
    large: Appended,
}

/// What ends the reading of a stream early.
enum Ended<E> {
    Local(io::Error),
    Told(E),
}

impl<E> From<io::Error> for Ended<E> {
    fn from(error: io::Error) -> Self {
        Self::Local(error)
    }
}

impl OrderedStreams {
    /// The numbers of the streams that hold a key and were not read yet.
    pub(crate) fn numbers(&self) -> Vec<u8> {
        self.keys.filled().map(|number| number as u8).collect()
    }

    /// Gives the stored form of a stream in pieces of about 256 KiB and frees its files. A second reading gives
    /// nothing.
    ///
    /// # Panics
    ///
    /// If there is no stream of this number.
    pub(crate) fn read<E: From<SpoolError>>(
        &mut self,
        stream: u8,
        on: &mut impl FnMut(Bytes) -> Result<(), E>,
    ) -> Result<StreamTotals, E> {
        let Self {
            folder,
            keys,
            large,
        } = self;
        let mut pieces = Pieces {
            buffer: Vec::new(),
            totals: StreamTotals::default(),
            on,
        };
        let read = keys.drain(usize::from(stream), tie, &mut |entry, is_followed| {
            if is_followed {
                return Ok(());
            }
            if pieces.totals.keys == 0 {
                pieces.add(&HEADER)?;
            }
            pieces.totals.keys += 1;
            match place(entry) {
                None => pieces.add(&entry[1..]),
                Some((from, bytes)) => {
                    pieces.add(&entry[PLACE_BYTES..])?;
                    pieces.add_from(large, from, bytes)
                }
            }
        });
        match read.and_then(|()| pieces.hand_on()) {
            Ok(()) => Ok(pieces.totals),
            Err(Ended::Told(error)) => Err(error),
            Err(Ended::Local(source)) => Err(SpoolError::Io {
                folder: folder.clone(),
                source,
            }
            .into()),
        }
    }
}

/// Where the value of an entry lies, where it is not the entry's own, and its length.
fn place(entry: &[u8]) -> Option<(u64, u64)> {
    let (tag, rest) = entry.split_first()?;
    let (from, rest) = rest.split_first_chunk()?;
    let bytes = rest.first_chunk()?;
    (*tag == LARGE).then(|| (u64::from_le_bytes(*from), u64::from_le_bytes(*bytes)))
}

/// Orders keys of one hash.
fn tie(one: &[u8], other: &[u8]) -> Ordering {
    let of = |entry: &[u8]| {
        let head = match place(entry) {
            None => 1,
            Some(_) => PLACE_BYTES,
        };
        head_of(&entry[head..]).map(|head| (head.database, head.key.to_vec()))
    };
    of(one).cmp(&of(other))
}

/// Hands bytes on in pieces.
struct Pieces<'a, F> {
    buffer: Vec<u8>,
    totals: StreamTotals,
    on: &'a mut F,
}

impl<E, F: FnMut(Bytes) -> Result<(), E>> Pieces<'_, F> {
    fn add(&mut self, bytes: &[u8]) -> Result<(), Ended<E>> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE_BYTES {
            self.hand_on()?;
        }
        Ok(())
    }

    fn add_from(&mut self, large: &mut Appended, from: u64, bytes: u64) -> Result<(), Ended<E>> {
        let file = large
            .file
            .as_mut()
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        file.seek(SeekFrom::Start(from))?;
        let mut left = bytes;
        while left > 0 {
            let count = left.min(PIECE_BYTES as u64);
            if file.take(count).read_to_end(&mut self.buffer)? as u64 != count {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            left -= count;
            if self.buffer.len() >= PIECE_BYTES {
                self.hand_on()?;
            }
        }
        Ok(())
    }

    fn hand_on(&mut self) -> Result<(), Ended<E>> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.buffer));
        self.totals.bytes += piece.len() as u64;
        (self.on)(piece).map_err(Ended::Told)
    }
}
