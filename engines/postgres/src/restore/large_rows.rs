//! Rows with large values on their way into the server that a proof starts for itself: see [`crate::large_values`].
//!
//! All other rows go in by the COPY that runs. Before a row with a large value that COPY ends; the value is written to a large object
//! as it arrives, the rest of the row is copied into a temporary table, and one INSERT joins them. Then the COPY begins again.

use std::{collections::HashMap, fmt::Write as _, sync::Arc};

use fettler_engine::EngineError;

use crate::{
    copy::{BINARY_HEADER, BINARY_TRAILER},
    data::{BackupData, TableData},
    large_values::{Column, Failed, LARGE_FROM_BYTES, PIECE_BYTES, Stored, columns},
    names::quote_ident,
    sandbox,
    wire::Session,
};

use super::{batches::Batches, place::MARKER_SCHEMA, rows::send};

/// Bytes of rows that are sent at once.
const HELD_BYTES: usize = 256 * 1024;
/// As long as a row has no more bytes before its first large value, that value can still pass in pieces: so many are held back.
const BEGINNING_BYTES: usize = 8 * 1024 * 1024;

/// The tables with large rows, by their number at the source.
#[derive(Debug, Default)]
pub(super) struct LargeTables(HashMap<u32, Arc<LargeTable>>);

/// A table that has columns with large values.
#[derive(Debug)]
pub(super) struct LargeTable {
    into: String,
    /// All columns, as they are copied.
    names: Vec<String>,
    columns: Vec<Column>,
}

impl LargeTables {
    /// Prepares the tables of a proof's own server: what comes from now on is stored neither compressed nor in
    /// one piece. Needs a superuser, and the marker's schema.
    pub(super) async fn prepare(
        session: &mut Session,
        kind: sandbox::Kind,
        data: &BackupData,
        chosen: &(dyn Fn(&TableData) -> bool + Sync),
    ) -> Result<Self, EngineError> {
        let mut tables = HashMap::new();
        if kind != sandbox::Kind::Private {
            return Ok(Self(tables));
        }
        for table in data.tables.iter().filter(|table| chosen(table)) {
            let columns = columns(session, table).await?;
            if !columns.is_empty() {
                let large = LargeTable {
                    into: table.quoted(),
                    names: table.columns.iter().map(|name| quote_ident(name)).collect(),
                    columns,
                };
                large.store(session, |_| 'e').await?;
                tables.insert(table.oid, Arc::new(large));
            }
        }
        if !tables.is_empty() {
            // The server keeps a text as it keeps bytes, and only a superuser may say so.
            session
                .execute(&format!(
                    "CREATE OR REPLACE FUNCTION {MARKER_SCHEMA}.text_of(oid) RETURNS pg_catalog.text
                     LANGUAGE internal STRICT AS 'be_lo_get'"
                ))
                .await
                .map_err(|error| error.doing("preparing for large values"))?;
        }
        Ok(Self(tables))
    }

    pub(super) fn get(&self, table: u32) -> Option<Arc<LargeTable>> {
        self.0.get(&table).cloned()
    }

    /// Makes the definitions what they were.
    pub(super) async fn finish(self, session: &mut Session) -> Result<(), EngineError> {
        for table in self.0.values() {
            table.store(session, |column| column.storage).await?;
        }
        Ok(())
    }
}

impl LargeTable {
    async fn store(
        &self,
        session: &mut Session,
        how: impl Fn(&Column) -> char,
    ) -> Result<(), EngineError> {
        for column in &self.columns {
            let storage = match how(column) {
                'p' => "PLAIN",
                'e' => "EXTERNAL",
                'm' => "MAIN",
                _ => "EXTENDED",
            };
            session
                .execute(&format!(
                    "ALTER TABLE ONLY {} ALTER COLUMN {} SET STORAGE {storage}",
                    self.into, column.name
                ))
                .await
                .map_err(|error| error.doing("preparing for large values"))?;
        }
        Ok(())
    }

    /// Makes the table for one row, in the transaction that copies.
    pub(super) fn begin_sql(&self) -> String {
        let shown: Vec<String> = self
            .names
            .iter()
            .enumerate()
            .map(|(at, name)| match self.column(at) {
                Some(column) => format!("NULL::{} AS {name}", column.stored_as.type_name()),
                None => name.clone(),
            })
            .collect();
        format!(
            "CREATE TEMP TABLE large_row ON COMMIT DROP AS SELECT {} FROM ONLY {} WITH NO DATA",
            shown.join(", "),
            self.into
        )
    }

    fn column(&self, at: usize) -> Option<&Column> {
        self.columns.iter().find(|column| column.at == at)
    }

    /// Joins the row and the large objects of its large values.
    fn insert_sql(&self, large: &[(usize, u32)]) -> String {
        let values: Vec<String> = self
            .names
            .iter()
            .enumerate()
            .map(|(at, name)| {
                let object = large.iter().find(|(column, _)| *column == at);
                match (object, self.column(at).map(|column| column.stored_as)) {
                    (Some((_, object)), Some(Stored::Text)) => {
                        format!("{MARKER_SCHEMA}.text_of({object})")
                    }
                    (Some((_, object)), _) => format!("pg_catalog.lo_get({object})"),
                    (None, _) => name.clone(),
                }
            })
            .collect();
        let mut sql = format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM pg_temp.large_row; TRUNCATE pg_temp.large_row;",
            self.into,
            self.names.join(", "),
            values.join(", ")
        );
        for (_, object) in large {
            let _written = write!(sql, "SELECT pg_catalog.lo_unlink({object});");
        }
        sql
    }
}

/// Follows a stream of rows in binary, and takes those with large values out of it.
pub(super) struct LargeRows {
    table: Arc<LargeTable>,
    at: At,
    /// Rows that were not sent yet, and the beginning of the current one.
    held: Vec<u8>,
    /// Where in `held` the current row begins.
    row: usize,
    /// Whether the beginning of the current row was sent already.
    begun: bool,
    /// How many fields the row has, and which of them is next.
    fields: usize,
    field: usize,
    /// The large values of the current row: their columns, and their large objects. While there are some, no COPY runs.
    large: Vec<(usize, u32)>,
    piece: Vec<u8>,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum At {
    /// So many bytes of the header.
    Header(usize),
    /// The number of fields, or the length of one, from here in `held`.
    Number(usize),
    /// So many bytes of a field.
    Field(usize),
    /// So many bytes of a large value, behind so many that are written.
    Large(usize, usize),
    /// The trailer has passed.
    Rest,
}

impl LargeRows {
    pub(super) fn new(table: Arc<LargeTable>) -> Self {
        Self {
            table,
            at: At::Header(BINARY_HEADER.len()),
            held: Vec::with_capacity(2 * HELD_BYTES),
            row: 0,
            begun: false,
            fields: 0,
            field: 0,
            large: Vec::new(),
            piece: Vec::new(),
        }
    }

    /// Whether a COPY runs: none does while a large value comes in.
    pub(super) fn copies(&self) -> bool {
        self.large.is_empty()
    }

    /// Sends one piece of a stream. Gives back the rows of what ended.
    pub(super) async fn send(
        &mut self,
        session: &mut Session,
        copy: &str,
        mut bytes: &[u8],
        batches: &mut Batches,
    ) -> Result<u64, Failed> {
        let mut rows = 0;
        while !bytes.is_empty() {
            match self.at {
                At::Header(left) => {
                    let left = self.hold(&mut bytes, left);
                    self.row = self.held.len();
                    self.at = if left == 0 {
                        At::Number(self.row)
                    } else {
                        At::Header(left)
                    };
                }
                At::Number(from) => {
                    let wanted = if self.fields == 0 { 2 } else { 4 };
                    if self.hold(&mut bytes, from + wanted - self.held.len()) == 0 {
                        rows += self.number(session, copy, batches, from).await?;
                    }
                }
                At::Field(left) => {
                    let left = self.hold(&mut bytes, left);
                    self.at = At::Field(left);
                    if left == 0 {
                        rows += self.field_ended(session, copy).await?;
                    }
                }
                At::Large(left, written) => {
                    let take = left.min(bytes.len()).min(PIECE_BYTES - self.piece.len());
                    self.piece.extend_from_slice(&bytes[..take]);
                    bytes = &bytes[take..];
                    let left = left - take;
                    let mut written = written;
                    if left == 0 || self.piece.len() == PIECE_BYTES {
                        written += self.write_piece(session, written).await?;
                    }
                    self.at = At::Large(left, written);
                    if left == 0 {
                        rows += self.field_ended(session, copy).await?;
                    }
                }
                At::Rest => {
                    self.held.extend_from_slice(bytes);
                    self.row = self.held.len();
                    bytes = &[];
                }
            }
            let beginning = self.held.len() - self.row;
            if matches!(self.at, At::Field(_))
                && self.large.is_empty()
                && beginning > BEGINNING_BYTES
            {
                // A row that is large otherwise: it goes on as it comes.
                self.row = self.held.len();
                self.begun = true;
            }
            if self.row >= HELD_BYTES {
                rows += self.flush(session, copy, batches).await?;
            }
        }
        Ok(rows + self.flush(session, copy, batches).await?)
    }

    /// Holds up to so many bytes back: how many of them have not come yet.
    fn hold(&mut self, bytes: &mut &[u8], wanted: usize) -> usize {
        let take = wanted.min(bytes.len());
        self.held.extend_from_slice(&bytes[..take]);
        *bytes = &bytes[take..];
        wanted - take
    }

    /// Sends what is held before the current row.
    async fn flush(
        &mut self,
        session: &mut Session,
        copy: &str,
        batches: &mut Batches,
    ) -> Result<u64, Failed> {
        if self.row == 0 || !self.large.is_empty() {
            return Ok(0);
        }
        let rows = send(session, copy, &self.held[..self.row], batches).await?;
        self.held.drain(..self.row);
        if let At::Number(from) = &mut self.at {
            *from -= self.row;
        }
        self.row = 0;
        Ok(rows)
    }

    /// Understands a number that has come whole: of fields, or the length of the next one.
    async fn number(
        &mut self,
        session: &mut Session,
        copy: &str,
        batches: &mut Batches,
        from: usize,
    ) -> Result<u64, Failed> {
        let read = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |number, byte| number << 8 | u32::from(*byte))
        };
        let number = read(&self.held[from..]);
        if self.fields == 0 {
            // The trailer is a row of -1 fields.
            if number > i16::MAX as u32 {
                self.row = self.held.len();
                self.at = At::Rest;
                return Ok(0);
            }
            self.fields = number as usize;
            self.field = 0;
            return self.next_field(session, copy).await;
        }
        let length = if number == u32::MAX {
            0
        } else {
            number as usize
        };
        let passes = length as u64 >= LARGE_FROM_BYTES
            && !self.begun
            && self.table.column(self.field).is_some();
        if !passes {
            self.at = At::Field(length);
            return if length == 0 {
                self.field_ended(session, copy).await
            } else {
                Ok(0)
            };
        }
        let mut rows = 0;
        if self.large.is_empty() {
            rows += self.flush(session, copy, batches).await?;
            session.copy_in(&BINARY_TRAILER).await?;
            rows += session.end_copy_in().await?;
        }
        let null = self.held.len() - 4;
        self.held[null..].copy_from_slice(&(-1_i32).to_be_bytes());
        let object = session
            .one("SELECT pg_catalog.lo_create(0)")
            .await?
            .get(0)?;
        self.large.push((self.field, object));
        self.at = At::Large(length, 0);
        Ok(rows)
    }

    async fn field_ended(&mut self, session: &mut Session, copy: &str) -> Result<u64, Failed> {
        self.field += 1;
        self.next_field(session, copy).await
    }

    /// Goes on to the next field of the row, or to the next row.
    async fn next_field(&mut self, session: &mut Session, copy: &str) -> Result<u64, Failed> {
        if self.field < self.fields {
            self.at = At::Number(self.held.len());
            return Ok(0);
        }
        let mut rows = 0;
        if !self.large.is_empty() {
            self.insert(session, copy).await?;
            rows = 1;
        }
        self.fields = 0;
        self.begun = false;
        self.row = self.held.len();
        self.at = At::Number(self.row);
        Ok(rows)
    }

    /// Writes what is gathered of a large value, behind what is there.
    async fn write_piece(&mut self, session: &mut Session, behind: usize) -> Result<usize, Failed> {
        let object = self.large.last().map_or(0, |(_, object)| *object);
        let sql = format!(
            "SELECT pg_catalog.lo_put({object}, {behind}, '\\x{}')",
            hex::encode(&self.piece)
        );
        session.execute(&sql).await?;
        let written = self.piece.len();
        self.piece.clear();
        Ok(written)
    }

    /// Inserts the row, whose large values are there, and lets the COPY go on.
    async fn insert(&mut self, session: &mut Session, copy: &str) -> Result<(), Failed> {
        session
            .begin_copy_in("COPY pg_temp.large_row FROM STDIN (FORMAT binary)")
            .await?;
        for part in [&BINARY_HEADER[..], &self.held, &BINARY_TRAILER] {
            session.copy_in(part).await?;
        }
        session.end_copy_in().await?;
        session.execute(&self.table.insert_sql(&self.large)).await?;
        self.large.clear();
        self.held.clear();
        session.begin_copy_in(copy).await?;
        session.copy_in(&BINARY_HEADER).await?;
        Ok(())
    }
}
