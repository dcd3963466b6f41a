//! Rows with a value of hundreds of megabytes, in the server that a proof starts for itself.
//!
//! A server holds such a value three times while COPY takes it in (the message's field, the value, the tuple), and three times while COPY
//! gives it out (the value, what its type's function makes of it, the message). The server of a proof is a child of the worker, so that its
//! memory counts as Fettler's own. There a large value comes in as a large object, piece by piece, and becomes a value
//! in the statement that inserts its row; and it is read back in slices, for which the server needs no more than a slice, since it is stored
//! neither compressed nor in one piece. The row's hash is the same, however its bytes arrive.
//!
//! Only text and bytea (and what is stored like them) can be handled so: what COPY writes of them is what the server keeps.

use fettler_engine::{EngineContext, EngineError, RowHasher};
use fettler_model::Fingerprint;

use crate::{
    copy::{BINARY_HEADER, BINARY_TRAILER, Format},
    data::TableData,
    error::WireError,
    names::{literal, quote_ident},
    wire::{Arrived, Session},
};

/// From this size on a value passes in pieces.
pub(crate) const LARGE_FROM_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of a piece.
pub(crate) const PIECE_BYTES: usize = 1024 * 1024;

/// A column whose values can pass in pieces.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// Its place among the columns that are copied.
    pub(crate) at: usize,
    pub(crate) name: String,
    pub(crate) stored_as: Stored,
    /// How its values are stored: a letter of the catalogue.
    pub(crate) storage: char,
}

/// What a server keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Text,
    Bytes,
}

impl Stored {
    /// The plain type of this form.
    pub(crate) const fn type_name(self) -> &'static str {
        match self {
            Self::Text => "pg_catalog.text",
            Self::Bytes => "pg_catalog.bytea",
        }
    }
}

/// The columns of a table whose values can pass in pieces; none where no row of it is large.
pub(crate) async fn columns(
    session: &mut Session,
    table: &TableData,
) -> Result<Vec<Column>, EngineError> {
    if table.largest_row < LARGE_FROM_BYTES
        || table.rows_as != Format::Binary
        || table.through.is_some()
        || !table.condition.is_empty()
    {
        return Ok(Vec::new());
    }
    // A domain, and whatever is the same as a text, sends its values by the function of what it is made of.
    let rows = session
        .query(&format!(
            "SELECT a.attname, t.typsend = 'pg_catalog.byteasend'::regproc, a.attstorage
             FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
             WHERE a.attrelid = {}::regclass AND a.attnum > 0 AND NOT a.attisdropped
             AND t.typsend IN ('pg_catalog.textsend'::regproc, 'pg_catalog.varcharsend'::regproc, 'pg_catalog.byteasend'::regproc)",
            literal(&table.quoted())
        ))
        .await
        .map_err(|error| error.doing("looking for columns of large values"))?;
    let mut columns = Vec::new();
    for row in &rows {
        let name = row.text(0)?;
        if let Some(at) = table.columns.iter().position(|column| column == name) {
            columns.push(Column {
                at,
                name: quote_ident(name),
                stored_as: if row.flag(1)? {
                    Stored::Bytes
                } else {
                    Stored::Text
                },
                storage: row.get(2)?,
            });
        }
    }
    Ok(columns)
}

/// Leaves the rows with large values out of what is read of a table.
pub(crate) fn leave_out(table: &mut TableData, columns: &[Column]) {
    table.condition = format!("WHERE NOT ({})", any_large(columns));
}

fn any_large(columns: &[Column]) -> String {
    let each: Vec<String> = columns
        .iter()
        .map(|column| {
            format!(
                "coalesce(pg_catalog.octet_length({}), 0) >= {LARGE_FROM_BYTES}",
                column.name
            )
        })
        .collect();
    each.join(" OR ")
}

/// Reads the rows that [`leave_out`] left out, and hashes them as COPY would have written them. The session may be no other than one in a
/// proof's own server.
pub(crate) async fn read(
    context: &EngineContext,
    session: &mut Session,
    table: &TableData,
    columns: &[Column],
) -> Result<(Fingerprint, u64), EngineError> {
    let doing = format!("comparing {}", table.display());
    let asked = |error: WireError| error.doing(&doing);
    session
        .execute(
            "CREATE OR REPLACE FUNCTION pg_temp.slice(pg_catalog.text, int4, int4) RETURNS bytea
             LANGUAGE internal STRICT AS 'bytea_substr'",
        )
        .await
        .map_err(asked)?;
    let large = session
        .query(&format!(
            "SELECT ctid FROM ONLY {} WHERE {}",
            table.quoted(),
            any_large(columns)
        ))
        .await
        .map_err(asked)?;
    let hasher = RowHasher::new(&context.fingerprint_key);
    let (mut fingerprint, mut bytes) = (Fingerprint::empty(), 0);
    for row in &large {
        let from = format!(
            "FROM ONLY {} WHERE ctid = {}",
            table.quoted(),
            literal(row.text(0)?)
        );
        bytes += read_row(
            context,
            session,
            table,
            columns,
            &from,
            &hasher,
            &mut fingerprint,
        )
        .await
        .map_err(|error| error.doing(&doing))?;
    }
    Ok((fingerprint, bytes))
}

/// What ended the way of a row.
#[derive(Debug)]
pub(crate) enum Failed {
    Wire(WireError),
    Other(EngineError),
}

impl Failed {
    /// Says at what.
    pub(crate) fn doing(self, doing: &str) -> EngineError {
        match self {
            Self::Wire(error) => error.doing(doing),
            Self::Other(error) => error,
        }
    }
}

impl From<WireError> for Failed {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl From<EngineError> for Failed {
    fn from(error: EngineError) -> Self {
        Self::Other(error)
    }
}

async fn read_row(
    context: &EngineContext,
    session: &mut Session,
    table: &TableData,
    columns: &[Column],
    from: &str,
    hasher: &RowHasher,
    to: &mut Fingerprint,
) -> Result<u64, Failed> {
    let lengths: Vec<String> = columns
        .iter()
        .map(|column| format!("pg_catalog.octet_length({})", column.name))
        .collect();
    let row = session
        .one(&format!("SELECT {} {from}", lengths.join(", ")))
        .await?;
    let mut large = Vec::new();
    for (number, column) in columns.iter().enumerate() {
        let length = row.maybe(number)?.and_then(|text| text.parse().ok());
        // Whatever is longer than a piece passes in pieces, once the row is one of the large ones.
        if let Some(length) = length.filter(|length| *length > PIECE_BYTES) {
            large.push((column, length));
        }
    }
    let shown: Vec<String> = table
        .columns
        .iter()
        .enumerate()
        .map(
            |(at, name)| match large.iter().find(|(column, _)| column.at == at) {
                Some((column, _)) => format!("NULL::{}", column.stored_as.type_name()),
                None => quote_ident(name),
            },
        )
        .collect();
    let rest = gather(session, &format!("SELECT {} {from}", shown.join(", "))).await?;
    let unreadable = || EngineError::Database {
        what: format!(
            "a row of {} came in another form than expected",
            table.display()
        ),
        transient: false,
    };
    let mut fields = Fields::of(&rest).ok_or_else(unreadable)?;
    let mut hash = hasher.begin();
    hash.update(fields.count);
    let mut bytes = fields.count.len() as u64;
    for at in 0..table.columns.len() {
        let (length, value) = fields.next().ok_or_else(unreadable)?;
        let Some((column, length)) = large.iter().find(|(column, _)| column.at == at) else {
            hash.update(length);
            hash.update(value);
            bytes += (length.len() + value.len()) as u64;
            continue;
        };
        let header = u32::try_from(*length).map_err(|_| unreadable())?;
        hash.update(&header.to_be_bytes());
        bytes += 4 + *length as u64;
        let slice = match column.stored_as {
            Stored::Text => "pg_temp.slice",
            Stored::Bytes => "pg_catalog.substring",
        };
        for begin in (0..*length).step_by(PIECE_BYTES) {
            context.check_stop()?;
            let sql = format!(
                "SELECT {slice}({}, {}, {PIECE_BYTES}) {from}",
                column.name,
                begin + 1
            );
            let copied = gather(session, &sql).await?;
            let (_, piece) = Fields::of(&copied)
                .and_then(|mut fields| fields.next())
                .filter(|(_, piece)| piece.len() == PIECE_BYTES.min(*length - begin))
                .ok_or_else(unreadable)?;
            hash.update(piece);
            context.progress.add(piece.len() as u64, 0);
        }
    }
    hash.add(to);
    context.progress.add(0, 1);
    Ok(bytes)
}

/// The one row that a statement gives, in the file form of binary COPY.
async fn gather(session: &mut Session, sql: &str) -> Result<Vec<u8>, WireError> {
    session
        .begin_copy_out(&format!("COPY ({sql}) TO STDOUT (FORMAT binary)"))
        .await?;
    let mut gathered = Vec::new();
    loop {
        let take = |piece: &[u8], _| {
            gathered.extend_from_slice(piece);
            false
        };
        if session.copy_rows(take)? == Arrived::End {
            return Ok(gathered);
        }
        session.copy_wait().await?;
    }
}

/// The fields of one row that is there whole.
struct Fields<'a> {
    count: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn of(copied: &'a [u8]) -> Option<Self> {
        let row = copied
            .strip_prefix(&BINARY_HEADER)?
            .strip_suffix(&BINARY_TRAILER)?;
        let (count, rest) = row.split_at_checked(2)?;
        Some(Self { count, rest })
    }

    /// The next field: its length as it is written, and its bytes.
    fn next(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let (length, rest) = self.rest.split_at_checked(4)?;
        let bytes = i32::from_be_bytes(length.try_into().ok()?);
        let (value, rest) = rest.split_at_checked(usize::try_from(bytes).unwrap_or(0))?;
        self.rest = rest;
        Some((length, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_a_row_are_found_and_a_cut_row_has_none() {
        let mut copied = BINARY_HEADER.to_vec();
        copied.extend([0, 2]);
        copied.extend((-1_i32).to_be_bytes());
        copied.extend([0, 0, 0, 2, 7, 8]);
        copied.extend(BINARY_TRAILER);
        let mut fields = Fields::of(&copied).unwrap();
        assert_eq!(fields.count, [0, 2]);
        assert_eq!(fields.next(), Some((&[0xff; 4][..], &[][..])));
        assert_eq!(fields.next(), Some((&[0, 0, 0, 2][..], &[7, 8][..])));
        assert_eq!(fields.next(), None);
        assert!(Fields::of(&copied[..copied.len() - 1]).is_none());
    }
}
