//! The numbers of the file format, from the documentation of Redis and the files that its versions write.

use crc::{CRC_64_REDIS, Crc, Table};

/// The checksum at the end of files and of payloads.
pub(super) static CHECKSUM: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_REDIS);

/// What a file begins with, before four digits that are its version.
pub(super) const MAGIC: &[u8; 5] = b"REDIS";

/// The first version with a checksum at the end.
pub(super) const CHECKSUM_SINCE: u32 = 5;

/// Bytes after the value in a payload of `DUMP`: two of the version, eight of the checksum.
pub(super) const PAYLOAD_FOOTER: usize = 10;

/// What stands where a key's type could stand.
pub(super) mod opcode {
    pub(in crate::rdb) const SLOT_INFO: u8 = 244;
    pub(in crate::rdb) const FUNCTION: u8 = 245;
    pub(in crate::rdb) const FUNCTION_OF_CANDIDATES: u8 = 246;
    pub(in crate::rdb) const MODULE_AUX: u8 = 247;
    pub(in crate::rdb) const IDLE: u8 = 248;
    pub(in crate::rdb) const FREQUENCY: u8 = 249;
    pub(in crate::rdb) const AUX: u8 = 250;
    pub(in crate::rdb) const RESIZE: u8 = 251;
    pub(in crate::rdb) const EXPIRY_MILLISECONDS: u8 = 252;
    pub(in crate::rdb) const EXPIRY_SECONDS: u8 = 253;
    pub(in crate::rdb) const DATABASE: u8 = 254;
    pub(in crate::rdb) const END: u8 = 255;
}

/// How a value is encoded.
pub(super) mod value_type {
    pub(in crate::rdb) const STRING: u8 = 0;
    pub(in crate::rdb) const LIST: u8 = 1;
    pub(in crate::rdb) const SET: u8 = 2;
    pub(in crate::rdb) const SORTED_SET: u8 = 3;
    pub(in crate::rdb) const HASH: u8 = 4;
    pub(in crate::rdb) const SORTED_SET_2: u8 = 5;
    pub(in crate::rdb) const MODULE_2: u8 = 7;
    pub(in crate::rdb) const HASH_ZIPMAP: u8 = 9;
    pub(in crate::rdb) const LIST_ZIPLIST: u8 = 10;
    pub(in crate::rdb) const SET_INTSET: u8 = 11;
    pub(in crate::rdb) const SORTED_SET_ZIPLIST: u8 = 12;
    pub(in crate::rdb) const HASH_ZIPLIST: u8 = 13;
    pub(in crate::rdb) const LIST_QUICKLIST: u8 = 14;
    pub(in crate::rdb) const STREAM: u8 = 15;
    pub(in crate::rdb) const HASH_LISTPACK: u8 = 16;
    pub(in crate::rdb) const SORTED_SET_LISTPACK: u8 = 17;
    pub(in crate::rdb) const LIST_QUICKLIST_2: u8 = 18;
    pub(in crate::rdb) const STREAM_2: u8 = 19;
    pub(in crate::rdb) const SET_LISTPACK: u8 = 20;
    pub(in crate::rdb) const STREAM_3: u8 = 21;
    /// As the release candidates of 7.4 wrote it.
    pub(in crate::rdb) const HASH_EXPIRING_OF_CANDIDATES: u8 = 22;
    /// As the release candidates of 7.4 wrote it.
    pub(in crate::rdb) const HASH_EXPIRING_LISTPACK_OF_CANDIDATES: u8 = 23;
    pub(in crate::rdb) const HASH_EXPIRING: u8 = 24;
    pub(in crate::rdb) const HASH_EXPIRING_LISTPACK: u8 = 25;
}

/// How a string is encoded whose length byte says that it is not plain.
pub(super) mod string_encoding {
    pub(in crate::rdb) const INT8: u8 = 0;
    pub(in crate::rdb) const INT16: u8 = 1;
    pub(in crate::rdb) const INT32: u8 = 2;
    pub(in crate::rdb) const LZF: u8 = 3;
}

/// What a module's payload is made of.
pub(super) mod module_opcode {
    pub(in crate::rdb) const END: u64 = 0;
    pub(in crate::rdb) const SIGNED: u64 = 1;
    pub(in crate::rdb) const UNSIGNED: u64 = 2;
    pub(in crate::rdb) const FLOAT: u64 = 3;
    pub(in crate::rdb) const DOUBLE: u64 = 4;
    pub(in crate::rdb) const STRING: u64 = 5;
}

/// What a node of a list is made of, in [`value_type::LIST_QUICKLIST_2`].
pub(super) mod list_node {
    pub(in crate::rdb) const PLAIN: u64 = 1;
    pub(in crate::rdb) const PACKED: u64 = 2;
}

/// The first byte of a score in [`value_type::SORTED_SET`], where it is no length of a text.
pub(super) mod text_score {
    pub(in crate::rdb) const NAN: u8 = 253;
    pub(in crate::rdb) const INFINITY: u8 = 254;
    pub(in crate::rdb) const NEG_INFINITY: u8 = 255;
}

/// Flags of an entry in a node of a stream.
pub(super) mod entry_flag {
    pub(in crate::rdb) const DELETED: i64 = 1;
    pub(in crate::rdb) const SAME_FIELDS: i64 = 2;
}
