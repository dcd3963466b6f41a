//! The logical form of a key and its value, whatever encoding a server keeps it in.

use std::borrow::Cow;

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// A string.
    String,
    /// A list.
    List,
    /// A set.
    Set,
    /// A sorted set.
    SortedSet,
    /// A hash.
    Hash,
    /// A stream.
    Stream,
    /// A value of a module, which only the module can read; by its type's id.
    Module(u64),
}

impl Kind {
    /// The kind's name, as `TYPE` of the server writes it: `string`, `list`, `set`, `zset`, `hash`, `stream`, or
    /// the nine letters of a module's type such as `ReJSON-RL`.
    pub(crate) fn name(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::String => "string",
            Self::List => "list",
            Self::Set => "set",
            Self::SortedSet => "zset",
            Self::Hash => "hash",
            Self::Stream => "stream",
            Self::Module(id) => return Cow::Owned(module_name(id)),
        })
    }

    /// Whether the order of the elements means nothing.
    pub(crate) fn is_unordered(self) -> bool {
        matches!(self, Self::Set | Self::SortedSet | Self::Hash)
    }
}

/// The name of a module's type: the upper 54 bits of its id hold nine letters of six bits each, the lower ten
/// the version of the type's encoding.
fn module_name(id: u64) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    (0..9)
        .map(|at| char::from(LETTERS[((id >> (58 - 6 * at)) & 63) as usize]))
        .collect()
}

/// A key, before its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyHead<'a> {
    /// The number of its database.
    pub(crate) database: u32,
    /// The key.
    pub(crate) key: &'a [u8],
    /// The moment at which it expires, in milliseconds since 1970.
    pub(crate) expiry: Option<i64>,
    /// What it holds.
    pub(crate) kind: Kind,
}

/// What is known of a value before its elements, once it has been read to its end before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// Items, members, fields; of a stream its entries; 0 for strings and values of modules.
    pub(crate) elements: u64,
    /// Bytes of the elements: exactly those of a string and of a module's payload, and about as many as the data
    /// of everything else.
    pub(crate) bytes: u64,
    /// Bytes of the largest element; 0 for strings and values of modules.
    pub(crate) largest: u64,
    /// The first moment at which a field of a hash expires, in milliseconds since 1970; 0 where none does.
    pub(crate) first_field_expiry: u64,
}

/// The id of an entry of a stream. In order as the server orders them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamId {
    /// Milliseconds since 1970.
    pub(crate) milliseconds: u64,
    /// Number within the millisecond.
    pub(crate) sequence: u64,
}

/// A piece of a value. Values come in this order:
///
/// - a string: any number of [`Element::StringPiece`];
/// - a list, a set, a sorted set, a hash: one element for each item, member or field;
/// - a stream: its [`Element::Entry`]s, one [`Element::StreamFacts`], then each [`Element::Group`] with its
///   [`Element::Pending`]s, then [`Element::Consumers`] and each [`Element::Consumer`] with its
///   [`Element::ConsumerPending`]s;
/// - a value of a module: any number of [`Element::ModulePiece`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Element<'a> {
    /// A part of a string. Where it is cut means nothing.
    StringPiece(&'a [u8]),
    /// An item of a list.
    Item(&'a [u8]),
    /// A member of a set.
    Member(&'a [u8]),
    /// A member of a sorted set.
    Scored {
        /// The member.
        member: &'a [u8],
        /// Its score: any number but NaN, -0 and 0 being two.
        score: f64,
    },
    /// A field of a hash.
    Field {
        /// The field.
        field: &'a [u8],
        /// Its value.
        value: &'a [u8],
        /// The moment at which the field alone expires, in milliseconds since 1970.
        expiry: Option<u64>,
    },
    /// An entry of a stream.
    Entry {
        /// Its id.
        id: StreamId,
        /// Fields and values by turns, in their order.
        fields: &'a [Vec<u8>],
    },
    /// What a stream holds beside its entries.
    StreamFacts {
        /// The id of the entry that was added last, even if it is gone.
        last_id: StreamId,
        /// The greatest id that was ever deleted; 0-0 for none.
        max_deleted_id: StreamId,
        /// How many entries were ever added.
        entries_added: u64,
        /// How many groups follow.
        groups: u64,
    },
    /// A group of consumers.
    Group {
        /// Its name.
        name: &'a [u8],
        /// The id of the entry that was delivered last.
        last_id: StreamId,
        /// How many entries the group has read, where the server knows.
        entries_read: Option<u64>,
        /// How many pending entries follow.
        pending: u64,
    },
    /// An entry that was delivered to the last group and not acknowledged; in the order of ids.
    Pending {
        /// The entry's id.
        id: StreamId,
        /// When it was delivered last, in milliseconds since 1970.
        delivered: i64,
        /// How often it was delivered.
        deliveries: u64,
    },
    /// How many consumers of the last group follow.
    Consumers(u64),
    /// A consumer of the last group.
    Consumer {
        /// Its name.
        name: &'a [u8],
        /// When it tried to do something last, in milliseconds since 1970.
        seen: i64,
        /// When it succeeded last, in milliseconds since 1970, -1 for never; known since Redis 7.2. No part of the
        /// fingerprint, so that a copy on an older server can be compared.
        active: Option<i64>,
        /// How many of the group's pending entries are its own; they follow.
        pending: u64,
    },
    /// One of the last group's pending entries is the last consumer's; in the order of ids.
    ConsumerPending(StreamId),
    /// A part of a module's payload: everything that the file holds of the value after its key, the type's id
    /// included. Where it is cut means nothing.
    ModulePiece(&'a [u8]),
}
