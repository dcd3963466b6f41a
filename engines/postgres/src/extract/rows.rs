//! Rows out of the streams of a table, whichever form they were copied in.

use crate::copy::{BINARY_HEADER, Format};

use super::{
    shape::Shape,
    value::{Bytes, Malformed, Read, put_value},
};

/// Cuts rows out of the bytes of one stream, which come in pieces.
pub(crate) struct Rows {
    format: Format,
    held: Vec<u8>,
    /// Where the next row begins.
    at: usize,
    /// So far was looked for its end.
    looked: usize,
    header_left: usize,
    is_over: bool,
}

/// One row as it stands in the stream, without its end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Row<'a> {
    /// Fields behind their lengths.
    Binary(&'a [u8], usize),
    /// A line of COPY's text form.
    Text(&'a [u8]),
}

impl Rows {
    pub(crate) fn new(format: Format) -> Self {
        Self {
            format,
            held: Vec::new(),
            at: 0,
            looked: 0,
            header_left: if format == Format::Binary {
                BINARY_HEADER.len()
            } else {
                0
            },
            is_over: false,
        }
    }

    /// Takes the next piece.
    pub(crate) fn feed(&mut self, piece: &[u8]) {
        self.held.drain(..self.at);
        self.looked -= self.at;
        self.at = 0;
        self.held.extend_from_slice(piece);
    }

    /// The next row that is whole.
    pub(crate) fn next(&mut self) -> Read<Option<Row<'_>>> {
        match self.format {
            Format::Text => Ok(self.next_line()),
            Format::Binary => self.next_binary(),
        }
    }

    fn next_line(&mut self) -> Option<Row<'_>> {
        let Some(end) = self.held[self.looked..]
            .iter()
            .position(|byte| *byte == b'\n')
        else {
            self.looked = self.held.len();
            return None;
        };
        let (from, end) = (self.at, self.looked + end);
        (self.at, self.looked) = (end + 1, end + 1);
        Some(Row::Text(&self.held[from..end]))
    }

    fn next_binary(&mut self) -> Read<Option<Row<'_>>> {
        if self.header_left > 0 {
            let Some(header) = self.held[self.at..].first_chunk() else {
                return Ok(None);
            };
            if *header != BINARY_HEADER {
                return Err(Malformed("its header is not known"));
            }
            self.at += BINARY_HEADER.len();
            self.header_left = 0;
        }
        self.looked = self.at;
        if self.is_over {
            return if self.at == self.held.len() {
                Ok(None)
            } else {
                Err(Malformed("something follows its end"))
            };
        }
        let rest = &self.held[self.at..];
        let Some(count) = rest.first_chunk().map(|head| i16::from_be_bytes(*head)) else {
            return Ok(None);
        };
        let Ok(count) = usize::try_from(count) else {
            self.is_over = true;
            self.at += 2;
            self.looked = self.at;
            return Ok(None);
        };
        let mut length = 2;
        for _ in 0..count {
            let Some(head) = rest.get(length..).and_then(<[u8]>::first_chunk) else {
                return Ok(None);
            };
            length += 4 + usize::try_from(i32::from_be_bytes(*head)).unwrap_or(0);
        }
        if rest.len() < length {
            return Ok(None);
        }
        let from = self.at + 2;
        self.at += length;
        self.looked = self.at;
        Ok(Some(Row::Binary(&self.held[from..self.at], count)))
    }

    /// Whether the stream ended where a stream ends.
    pub(crate) fn is_whole(&self) -> bool {
        self.at == self.held.len() && (self.format == Format::Text || self.is_over)
    }
}

impl Row<'_> {
    /// Gives each value as text, or that it is NULL, in the order of the columns. `text` is room that is used again.
    pub(crate) fn values(
        self,
        shapes: &[Shape],
        text: &mut Vec<u8>,
        mut each: impl FnMut(usize, Option<&[u8]>),
    ) -> Read<()> {
        match self {
            Self::Binary(fields, count) => {
                if count != shapes.len() {
                    return Err(Malformed("a row has another number of columns"));
                }
                let mut fields = Bytes(fields);
                for (column, shape) in shapes.iter().enumerate() {
                    match fields.value()? {
                        None => each(column, None),
                        Some(value) => {
                            text.clear();
                            put_value(shape, value, text)?;
                            each(column, Some(text));
                        }
                    }
                }
            }
            Self::Text(line) => {
                for (column, field) in line.split(|byte| *byte == b'\t').enumerate() {
                    if field == b"\\N" {
                        each(column, None);
                    } else {
                        text.clear();
                        put_unescaped(field, text)?;
                        each(column, Some(text));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Takes back what COPY's text form escapes.
fn put_unescaped(field: &[u8], to: &mut Vec<u8>) -> Read<()> {
    let mut bytes = field.iter();
    while let Some(byte) = bytes.next() {
        if *byte != b'\\' {
            to.push(*byte);
            continue;
        }
        to.push(match bytes.next() {
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'v') => 0x0b,
            Some(other) => *other,
            None => return Err(Malformed("a backslash at the end")),
        });
    }
    Ok(())
}

/// Adds a value as COPY's text form escapes it.
pub(crate) fn put_escaped(value: &[u8], to: &mut Vec<u8>) {
    for byte in value {
        let letter = match byte {
            0x08 => b'b',
            0x0c => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0x0b => b'v',
            b'\\' => b'\\',
            other => {
                to.push(*other);
                continue;
            }
        };
        to.extend_from_slice(&[b'\\', letter]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8], cut: usize) -> Vec<Vec<Option<Vec<u8>>>> {
        let mut rows = Rows::new(Format::Text);
        let (mut found, mut text) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(cut) {
            rows.feed(piece);
            while let Some(row) = rows.next().unwrap() {
                let mut values = Vec::new();
                row.values(&[], &mut text, |_, value| {
                    values.push(value.map(<[u8]>::to_vec));
                })
                .unwrap();
                found.push(values);
            }
        }
        assert!(rows.is_whole());
        found
    }

    #[test]
    fn text_rows_are_cut_wherever_pieces_end_and_escapes_are_taken_back() {
        let value = b"a\tb\\N\n\r\x08\x0b\x0c\\";
        let mut line = b"\\N\t\t".to_vec();
        put_escaped(value, &mut line);
        line.push(b'\n');
        let bytes = line.repeat(3);
        for cut in 1..bytes.len() {
            let expected = vec![None, Some(Vec::new()), Some(value.to_vec())];
            assert_eq!(lines(&bytes, cut), vec![expected; 3]);
        }
    }

    #[test]
    fn a_binary_stream_is_whole_with_its_trailer_only() {
        let mut bytes = BINARY_HEADER.to_vec();
        bytes.extend([0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, b'x']);
        for (end, whole) in [(&[][..], false), (&[0xff, 0xff][..], true)] {
            for cut in 1..bytes.len() {
                let mut rows = Rows::new(Format::Binary);
                let mut found = 0;
                for piece in bytes.chunks(cut).chain(std::iter::once(end)) {
                    rows.feed(piece);
                    while let Some(row) = rows.next().unwrap() {
                        let Row::Binary(fields, 2) = row else {
                            panic!("another row");
                        };
                        assert_eq!(fields.len(), 9);
                        found += 1;
                    }
                }
                assert_eq!((found, rows.is_whole()), (1, whole));
            }
        }
    }
}
