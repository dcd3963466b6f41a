//! Keys as rows of fingerprints (rules 27 and 28).

use fettler_engine::{LongRow, RowHasher};
use fettler_model::Fingerprint;

use super::{Element, KeyHead, Kind, StreamId};

/// What a nested row speaks of.
mod row {
    pub(super) const MEMBER: u8 = 1;
    pub(super) const SCORED: u8 = 2;
    pub(super) const FIELD: u8 = 3;
    pub(super) const FACTS: u8 = 4;
    pub(super) const GROUP: u8 = 5;
    pub(super) const PENDING: u8 = 6;
    pub(super) const CONSUMER: u8 = 7;
    pub(super) const CONSUMER_PENDING: u8 = 8;
}

/// Hashes keys, one row each, whatever the encoding of the value and wherever its pieces are cut.
///
/// A row is the database, the kind, the expiry, the key, then the value: of strings and modules the bytes, of lists
/// the items and of streams the entries, each in their order, and for everything without an order (members, fields,
/// what belongs to groups) the keyed sum of rows of their own. So elements of sets, sorted sets and hashes may come in any
/// order, each once, and a value of any size needs no memory. When a consumer was active last does not count, nor what
/// only repeats how much follows.
#[derive(Debug)]
pub(crate) struct KeyHasher {
    rows: RowHasher,
    row: LongRow,
    unordered: Fingerprint,
    /// The names of the group and the consumer that came last.
    group: Vec<u8>,
    consumer: Vec<u8>,
}

/// Adds texts so that no two series of texts are the same bytes.
trait Framed {
    fn number(&mut self, number: u64);
    fn text(&mut self, text: &[u8]);
    fn id(&mut self, id: StreamId);
}

impl Framed for LongRow {
    fn number(&mut self, number: u64) {
        self.update(&number.to_le_bytes());
    }

    fn text(&mut self, text: &[u8]) {
        self.number(text.len() as u64);
        self.update(text);
    }

    fn id(&mut self, id: StreamId) {
        self.number(id.milliseconds);
        self.number(id.sequence);
    }
}

impl KeyHasher {
    /// A hasher under the tenant's key.
    pub(crate) fn new(rows: RowHasher) -> Self {
        Self {
            row: rows.begin(),
            rows,
            unordered: Fingerprint::empty(),
            group: Vec::new(),
            consumer: Vec::new(),
        }
    }

    /// Begins a key. What a key before it left unfinished is dropped.
    pub(crate) fn begin(&mut self, head: &KeyHead<'_>) {
        self.row = self.rows.begin();
        self.unordered = Fingerprint::empty();
        let (kind, module) = match head.kind {
            Kind::String => (0, 0),
            Kind::List => (1, 0),
            Kind::Set => (2, 0),
            Kind::SortedSet => (3, 0),
            Kind::Hash => (4, 0),
            Kind::Stream => (5, 0),
            Kind::Module(id) => (6, id),
        };
        self.row.number(u64::from(head.database));
        self.row.number(kind);
        self.row.number(module);
        self.row.number(u64::from(head.expiry.is_some()));
        self.row.number(head.expiry.unwrap_or(0).cast_unsigned());
        self.row.text(head.key);
    }

    fn nested(&mut self, tag: u8, fill: impl FnOnce(&mut LongRow, &Self)) {
        let mut row = self.rows.begin();
        row.update(&[tag]);
        fill(&mut row, self);
        row.add(&mut self.unordered);
    }

    /// Adds a piece of its value.
    pub(crate) fn element(&mut self, element: &Element<'_>) {
        match *element {
            Element::StringPiece(piece) | Element::ModulePiece(piece) => self.row.update(piece),
            Element::Item(item) => self.row.text(item),
            Element::Member(member) => self.nested(row::MEMBER, |row, _| row.text(member)),
            Element::Scored { member, score } => self.nested(row::SCORED, |row, _| {
                row.number(score.to_bits());
                row.text(member);
            }),
            Element::Field {
                field,
                value,
                expiry,
            } => self.nested(row::FIELD, |row, _| {
                row.number(expiry.unwrap_or(0));
                row.text(field);
                row.text(value);
            }),
            Element::Entry { id, fields } => {
                self.row.id(id);
                self.row.number(fields.len() as u64);
                fields.iter().for_each(|text| self.row.text(text));
            }
            Element::StreamFacts {
                last_id,
                max_deleted_id,
                entries_added,
                groups: _,
            } => self.nested(row::FACTS, |row, _| {
                row.id(last_id);
                row.id(max_deleted_id);
                row.number(entries_added);
            }),
            Element::Group {
                name,
                last_id,
                entries_read,
                pending: _,
            } => {
                name.clone_into(&mut self.group);
                self.nested(row::GROUP, |row, _| {
                    row.text(name);
                    row.id(last_id);
                    row.number(u64::from(entries_read.is_some()));
                    row.number(entries_read.unwrap_or(0));
                });
            }
            Element::Pending {
                id,
                delivered,
                deliveries,
            } => self.nested(row::PENDING, |row, of| {
                row.text(&of.group);
                row.id(id);
                row.number(delivered.cast_unsigned());
                row.number(deliveries);
            }),
            Element::Consumers(_) => {}
            Element::Consumer {
                name,
                seen,
                active: _,
                pending: _,
            } => {
                name.clone_into(&mut self.consumer);
                self.nested(row::CONSUMER, |row, of| {
                    row.text(&of.group);
                    row.text(name);
                    row.number(seen.cast_unsigned());
                });
            }
            Element::ConsumerPending(id) => self.nested(row::CONSUMER_PENDING, |row, of| {
                row.text(&of.group);
                row.text(&of.consumer);
                row.id(id);
            }),
        }
    }

    /// Ends the key and adds its row to the fingerprint of its database and kind.
    pub(crate) fn end(&mut self, to: &mut Fingerprint) {
        let mut row = std::mem::replace(&mut self.row, self.rows.begin());
        // Whether there is a sum is a matter of the kind. It always has 85 characters, so that what stands before is always
        // told apart from it.
        if self.unordered.rows > 0 {
            row.update(format!("{:>85}", self.unordered.to_string()).as_bytes());
        }
        row.add(to);
    }
}
