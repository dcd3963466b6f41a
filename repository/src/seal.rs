//! Sealing: every object but the config and the wrapped keys is a header and sealed frames. Each object
//! has a key of its own, made from the tenant's key and the object's salt; a frame's nonce is its
//! position, and what it is bound to (repository, tenant, kind, name, position) is authenticated, so
//! that a frame that was moved, swapped or replayed does not open (rule 20).

use std::{cell::RefCell, sync::Arc};

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use zstd::{
    bulk::{Compressor, Decompressor},
    zstd_safe::CParameter,
};

use crate::{
    RepositoryError,
    keys::TenantKeys,
    layout::{FORMAT, Kind, ObjectName, RepositoryId, TenantFolder, random_bytes},
};

/// What an object begins with, before the format's number.
const MAGIC: &[u8; 7] = b"FETTLER";

/// Bytes before the first frame: magic and format (8), kind and seven zeros (8), salt (32).
pub(crate) const HEADER_BYTES: usize = 48;

/// Bytes that sealing adds to a frame.
pub(crate) const TAG_BYTES: usize = 16;

/// The level of compression: the fastest one, since the source is to be the limit.
const ZSTD_LEVEL: i32 = 1;

/// Bytes that a match has at least, and the logarithm of the table in which matches are looked for. On rows
/// of databases a table that fills no more than half of the processor's nearest cache is faster than the level's own, and
/// loses nothing: measured on three kinds of tables, an eighth faster with a result that is 1 to 2 % smaller.
const ZSTD_PARAMETERS: [CParameter; 2] = [CParameter::MinMatch(7), CParameter::HashLog(12)];

/// The first byte of a frame whose rest is plain.
const PLAIN: u8 = 0;

/// The first byte of a frame whose rest is one zstd frame.
const ZSTD: u8 = 1;

/// The most that a frame of a small object may hold; the content size is in the zstd frame itself.
const MAX_SMALL_FRAME_BYTES: usize = 1 << 30;

/// What every frame of a tenant is bound to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Binding {
    pub(crate) repository: RepositoryId,
    pub(crate) folder: TenantFolder,
}

/// Seals and opens the frames of one object.
pub(crate) struct ObjectSeal {
    key: LessSafeKey,
    bound_to: [u8; Self::BOUND_BYTES],
}

impl ObjectSeal {
    /// Format, repository, tenant's folder, kind, name.
    const BOUND_BYTES: usize = 1 + 16 + 16 + 1 + 32;

    pub(crate) fn new(
        keys: &TenantKeys,
        binding: Binding,
        kind: Kind,
        name: ObjectName,
        salt: &[u8; 32],
    ) -> Self {
        let mut bound_to = [0; Self::BOUND_BYTES];
        bound_to[0] = FORMAT as u8;
        bound_to[1..17].copy_from_slice(&binding.repository.0);
        bound_to[17..33].copy_from_slice(&binding.folder.0);
        bound_to[33] = kind as u8;
        bound_to[34..].copy_from_slice(&name.0);
        Self {
            key: keys.object_key(kind, salt),
            bound_to,
        }
    }

    fn associated(&self, position: u64) -> Aad<[u8; Self::BOUND_BYTES + 8]> {
        let mut bytes = [0; Self::BOUND_BYTES + 8];
        bytes[..Self::BOUND_BYTES].copy_from_slice(&self.bound_to);
        bytes[Self::BOUND_BYTES..].copy_from_slice(&position.to_be_bytes());
        Aad::from(bytes)
    }

    fn nonce(position: u64) -> Nonce {
        let mut bytes = [0; 12];
        bytes[4..].copy_from_slice(&position.to_be_bytes());
        Nonce::assume_unique_for_key(bytes)
    }

    /// Seals a frame where it lies; its last [`TAG_BYTES`] are room for the tag.
    pub(crate) fn seal_in_place(&self, position: u64, frame: &mut [u8]) {
        let (text, room) = frame.split_at_mut(frame.len() - TAG_BYTES);
        let tag = self
            .key
            .seal_in_place_separate_tag(Self::nonce(position), self.associated(position), text)
            .expect("a frame is far below AES-GCM's bound");
        room.copy_from_slice(tag.as_ref());
    }

    /// Opens a sealed frame where it lies; nothing when it is not what was sealed here.
    pub(crate) fn open_in_place<'a>(
        &self,
        position: u64,
        frame: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        self.key
            .open_in_place(Self::nonce(position), self.associated(position), frame)
            .ok()
    }
}

/// The header of an object.
pub(crate) fn header(kind: Kind, salt: &[u8; 32]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..7].copy_from_slice(MAGIC);
    header[7] = FORMAT as u8;
    header[8] = kind as u8;
    header[16..].copy_from_slice(salt);
    header
}

/// Looks at the header of an object and gives back its salt.
pub(crate) fn read_header(
    object: &str,
    kind: Kind,
    bytes: &[u8],
) -> Result<[u8; 32], RepositoryError> {
    let damaged = |what| RepositoryError::damaged(object, what);
    let header: &[u8; HEADER_BYTES] = bytes
        .first_chunk()
        .ok_or_else(|| damaged("it is shorter than its header"))?;
    if &header[..7] != MAGIC {
        return Err(damaged("its header is not one of a repository's object"));
    }
    if u32::from(header[7]) > FORMAT {
        return Err(RepositoryError::NewerFormat {
            object: object.to_owned(),
            version: header[7].into(),
            known: FORMAT,
        });
    }
    if u32::from(header[7]) != FORMAT || header[8] != kind as u8 || header[9..16] != [0; 7] {
        return Err(damaged("its header is not the one that was written"));
    }
    Ok(header[16..].try_into().expect("32 bytes"))
}

/// What compresses on one thread: its tables, and room for a result, both used again and again.
struct Compression {
    compressor: Compressor<'static>,
    room: Vec<u8>,
}

impl Compression {
    fn new() -> Self {
        let mut compressor = Compressor::new(ZSTD_LEVEL).expect("level 1 exists");
        for parameter in ZSTD_PARAMETERS {
            compressor
                .set_parameter(parameter)
                .expect("the parameters lie within zstd's bounds");
        }
        Self {
            compressor,
            room: Vec::new(),
        }
    }

    /// The compressed form, where it has at most so many bytes.
    fn run(&mut self, plain: &[u8], most: usize) -> Option<&[u8]> {
        self.room.clear();
        self.room.reserve(most);
        // It fails when the room is too small.
        self.compressor
            .compress_to_buffer(plain, &mut self.room)
            .ok()
            .filter(|bytes| *bytes <= most)?;
        Some(&self.room)
    }
}

thread_local! {
    static COMPRESSION: RefCell<Compression> = RefCell::new(Compression::new());
    static DECOMPRESSOR: RefCell<Decompressor<'static>> = RefCell::new(
        Decompressor::new().expect("a decompressor without a dictionary")
    );
}

/// Appends what `plain` is framed as, with room for the tag: a byte that says how, then the bytes,
/// compressed where that pays.
pub(crate) fn append_frame(plain: &[u8], out: &mut Vec<u8>) {
    // Compression that gains less than a sixteenth costs more at each read than it saves.
    let worth = plain.len() - plain.len() / 16;
    COMPRESSION.with_borrow_mut(|compression| {
        let (how, bytes) = match compression.run(plain, worth) {
            Some(compressed) => (ZSTD, compressed),
            None => (PLAIN, plain),
        };
        out.reserve(1 + bytes.len() + TAG_BYTES);
        out.push(how);
        out.extend_from_slice(bytes);
    });
    out.resize(out.len() + TAG_BYTES, 0);
}

/// What a frame of known length says.
pub(crate) fn unframe_exactly(frame: &[u8], plain_bytes: usize) -> Option<Vec<u8>> {
    let (how, rest) = frame.split_first()?;
    let plain = match *how {
        PLAIN => rest.to_vec(),
        ZSTD => {
            let mut plain = vec![0; plain_bytes];
            let bytes = DECOMPRESSOR
                .with_borrow_mut(|decompressor| {
                    decompressor.decompress_to_buffer(rest, &mut plain[..])
                })
                .ok()?;
            plain.truncate(bytes);
            plain
        }
        _ => return None,
    };
    (plain.len() == plain_bytes).then_some(plain)
}

/// What a frame that says its own length says.
fn unframe(frame: &[u8]) -> Option<Vec<u8>> {
    let (how, rest) = frame.split_first()?;
    let plain_bytes = match *how {
        PLAIN => rest.len(),
        ZSTD => usize::try_from(zstd::zstd_safe::get_frame_content_size(rest).ok()??)
            .ok()
            .filter(|bytes| *bytes <= MAX_SMALL_FRAME_BYTES)?,
        _ => return None,
    };
    unframe_exactly(frame, plain_bytes)
}

/// Seals the small objects of a tenant, those that are read whole.
#[derive(Clone, Debug)]
pub(crate) struct Sealer {
    pub(crate) keys: Arc<TenantKeys>,
    pub(crate) binding: Binding,
}

impl Sealer {
    pub(crate) fn object(&self, kind: Kind, name: ObjectName, salt: &[u8; 32]) -> ObjectSeal {
        ObjectSeal::new(&self.keys, self.binding, kind, name, salt)
    }

    /// A whole object of these frames: all but the last are preceded by their sealed length.
    pub(crate) fn seal(&self, kind: Kind, name: ObjectName, frames: &[&[u8]]) -> Bytes {
        self.seal_with_salt(kind, name, &random_bytes(), frames)
    }

    /// The same with a salt that the caller drew for this object alone.
    pub(crate) fn seal_with_salt(
        &self,
        kind: Kind,
        name: ObjectName,
        salt: &[u8; 32],
        frames: &[&[u8]],
    ) -> Bytes {
        let seal = self.object(kind, name, salt);
        let mut object = header(kind, salt).to_vec();
        for (at, frame) in frames.iter().enumerate() {
            let length_at = object.len();
            let last = at + 1 == frames.len();
            if !last {
                object.extend_from_slice(&[0; 4]);
            }
            let begin = object.len();
            append_frame(frame, &mut object);
            seal.seal_in_place(at as u64, &mut object[begin..]);
            if !last {
                let length = u32::try_from(object.len() - begin).expect("a frame is below 4 GiB");
                object[length_at..begin].copy_from_slice(&length.to_le_bytes());
            }
        }
        object.into()
    }

    /// The frames of a whole object.
    pub(crate) fn open<const N: usize>(
        &self,
        kind: Kind,
        name: ObjectName,
        object: &str,
        bytes: &[u8],
    ) -> Result<[Vec<u8>; N], RepositoryError> {
        let mut frames = [const { Vec::new() }; N];
        let seal = self.object(kind, name, &read_header(object, kind, bytes)?);
        let mut rest = &bytes[HEADER_BYTES..];
        for (at, frame) in frames.iter_mut().enumerate() {
            let sealed = if at + 1 == N {
                rest
            } else {
                let (sealed, behind) = first_frame(rest).ok_or_else(|| not_sealed_here(object))?;
                rest = behind;
                sealed
            };
            *frame = open_frame(&seal, at as u64, sealed).ok_or_else(|| not_sealed_here(object))?;
        }
        Ok(frames)
    }

    /// The first of several frames of an object of which only the beginning was read; nothing when
    /// the frame does not end within it.
    pub(crate) fn open_first(
        &self,
        kind: Kind,
        name: ObjectName,
        object: &str,
        bytes: &[u8],
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        let seal = self.object(kind, name, &read_header(object, kind, bytes)?);
        let Some((sealed, _)) = first_frame(&bytes[HEADER_BYTES..]) else {
            return Ok(None);
        };
        open_frame(&seal, 0, sealed)
            .ok_or_else(|| not_sealed_here(object))
            .map(Some)
    }

    /// An object whose one frame is JSON.
    pub(crate) fn seal_json(&self, kind: Kind, name: ObjectName, value: &impl Serialize) -> Bytes {
        self.seal(kind, name, &[&to_json(value)])
    }

    /// What an object whose one frame is JSON says.
    pub(crate) fn open_json<T: DeserializeOwned>(
        &self,
        kind: Kind,
        name: ObjectName,
        object: &str,
        bytes: &[u8],
    ) -> Result<T, RepositoryError> {
        let [frame] = self.open(kind, name, object, bytes)?;
        from_json(object, &frame)
    }
}

/// Values of this crate as JSON.
pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("the crate's own types have text keys")
}

/// JSON that was authentic but may be of another form.
pub(crate) fn from_json<T: DeserializeOwned>(
    object: &str,
    bytes: &[u8],
) -> Result<T, RepositoryError> {
    serde_json::from_slice(bytes)
        .map_err(|error| RepositoryError::damaged(object, format!("it does not read: {error}")))
}

fn first_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

fn open_frame(seal: &ObjectSeal, position: u64, sealed: &[u8]) -> Option<Vec<u8>> {
    let mut frame = sealed.to_vec();
    let opened = seal.open_in_place(position, &mut frame)?;
    unframe(opened)
}

fn not_sealed_here(object: &str) -> RepositoryError {
    RepositoryError::damaged(
        object,
        "its seal does not match: it was changed, cut, or belongs elsewhere",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::DataKey;
    use proptest::prelude::*;

    fn sealer() -> Sealer {
        let keys = TenantKeys::derive(&DataKey::random());
        Sealer {
            keys: Arc::new(keys),
            binding: Binding {
                repository: RepositoryId([1; 16]),
                folder: TenantFolder([2; 16]),
            },
        }
    }

    #[test]
    fn p5_a_flipped_bit_anywhere_in_an_object_is_seen() {
        let (sealer, name) = (sealer(), ObjectName::random());
        let object = sealer.seal(Kind::Manifest, name, &[b"summary", b"body"]);
        let opened = sealer.open::<2>(Kind::Manifest, name, "it", &object);
        assert_eq!(opened.unwrap(), [b"summary".to_vec(), b"body".to_vec()]);
        for at in 0..object.len() {
            let mut bad = object.to_vec();
            bad[at] ^= 0x10;
            let outcome = sealer.open::<2>(Kind::Manifest, name, "it", &bad);
            assert!(outcome.is_err(), "byte {at}");
        }
        for length in 0..object.len() {
            let outcome = sealer.open::<2>(Kind::Manifest, name, "it", &object[..length]);
            assert!(outcome.is_err(), "cut to {length}");
        }
    }

    #[test]
    fn rule_20_an_object_opens_under_its_own_name_kind_and_tenant_only() {
        let (sealer, name) = (sealer(), ObjectName::random());
        let object = sealer.seal(Kind::Hold, name, &[b"x"]);
        let other = ObjectName::random();
        assert!(sealer.open::<1>(Kind::Hold, other, "it", &object).is_err());
        let moved = Sealer {
            binding: Binding {
                folder: TenantFolder([3; 16]),
                ..sealer.binding
            },
            ..sealer.clone()
        };
        assert!(moved.open::<1>(Kind::Hold, name, "it", &object).is_err());
        assert!(sealer.open::<1>(Kind::Hold, name, "it", &object).is_ok());
    }

    #[test]
    fn p9_keys_cannot_be_printed() {
        let sealer = sealer();
        assert!(format!("{sealer:?}").contains("***"));
        assert_eq!(format!("{:?}", DataKey::random()), "DataKey(***)");
    }

    proptest! {
        #[test]
        fn a_frame_says_what_was_framed(plain in proptest::collection::vec(0u8..4, 0..5000), noise: Vec<u8>) {
            for plain in [plain, noise] {
                let mut frame = Vec::new();
                append_frame(&plain, &mut frame);
                frame.truncate(frame.len() - TAG_BYTES);
                prop_assert_eq!(unframe(&frame).unwrap(), plain.clone());
                prop_assert_eq!(unframe_exactly(&frame, plain.len()).unwrap(), plain.clone());
                prop_assert!(unframe_exactly(&frame, plain.len() + 1).is_none());
            }
        }
    }
}
