//! Where a binary COPY into the server has to end, so that the server does not gather too much.
//!
//! The server writes rows in batches of 1000 (`MAX_BUFFERED_TUPLES`) or of 64 KB, but it counts the bytes of rows that come as
//! text only (`CopyMultiInsertInfoStore` in `copyfrom.c` gets the length of the line, which is 0 in binary): a thousand
//! rows of 8 MB each are 8 GB in its memory. The end of a COPY writes what was gathered, and the next one goes on in the
//! same transaction.

use crate::copy::{BINARY_HEADER, Format};

/// Rows that the server gathers before it writes them.
const ROWS_A_BATCH: u64 = 1000;
/// Bytes that it may gather.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Follows the rows of a stream that arrives in pieces of any size.
#[derive(Debug)]
pub(crate) struct Batches {
    at: At,
    /// Fields of the row that are still to come.
    fields_left: u32,
    /// The number that is being read, and how many of its bytes have come.
    number: u32,
    number_bytes: u32,
    /// Rows and bytes since the server wrote what it had.
    rows: u64,
    bytes: usize,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum At {
    /// So many bytes of the header.
    Header(usize),
    FieldCount,
    FieldLength,
    /// So many bytes of a field.
    Field(usize),
    /// Nothing that matters: rows of text, what follows the trailer, or a form that the server will refuse.
    Rest,
}

impl Batches {
    pub(crate) const fn of(format: Format) -> Self {
        Self {
            at: match format {
                Format::Binary => At::Header(BINARY_HEADER.len()),
                Format::Text => At::Rest,
            },
            fields_left: 0,
            number: 0,
            number_bytes: 0,
            rows: 0,
            bytes: 0,
        }
    }

    /// Reads on in `piece`, up to the end of a row after which the COPY has to end: how many bytes of `piece` that is. What
    /// comes after them is to be given to the next call. `None` where all of the piece was read.
    pub(crate) fn end_in(&mut self, piece: &[u8]) -> Option<usize> {
        let mut rest = piece;
        loop {
            match self.at {
                At::Rest => return None,
                At::Header(bytes) => {
                    self.at = match skip(&mut rest, bytes) {
                        0 => At::FieldCount,
                        left => At::Header(left),
                    };
                }
                At::FieldCount => {
                    let count = self.number(&mut rest, 2)?;
                    self.fields_left = count;
                    self.at = match u16::try_from(count).map(u16::cast_signed) {
                        // The trailer is a row of -1 fields.
                        Err(_) | Ok(i16::MIN..0) => At::Rest,
                        Ok(0) => At::FieldCount,
                        Ok(_) => At::FieldLength,
                    };
                    self.rows += 1;
                }
                At::FieldLength => {
                    // NULL has the length -1, and no bytes.
                    let length = self.number(&mut rest, 4)?;
                    self.fields_left -= 1;
                    self.at = At::Field(if length == u32::MAX {
                        0
                    } else {
                        length as usize
                    });
                }
                At::Field(bytes) => {
                    let left = skip(&mut rest, bytes);
                    self.bytes += bytes - left;
                    self.at = match (left, self.fields_left) {
                        (0, 0) => At::FieldCount,
                        (0, _) => At::FieldLength,
                        (left, _) => At::Field(left),
                    };
                    if matches!(self.at, At::FieldCount) && self.is_full() {
                        return Some(piece.len() - rest.len());
                    }
                }
            }
            if rest.is_empty() && !matches!(self.at, At::Field(0)) {
                return None;
            }
        }
    }

    /// At the end of a row: whether the server has gathered too much. It is told, or has written all by itself.
    fn is_full(&mut self) -> bool {
        let is_full = self.bytes >= BATCH_BYTES;
        if is_full || self.rows >= ROWS_A_BATCH {
            self.rows = 0;
            self.bytes = 0;
        }
        is_full
    }

    /// A number of so many bytes, most significant first, once all of them have come.
    fn number(&mut self, rest: &mut &[u8], bytes: u32) -> Option<u32> {
        while let Some((byte, others)) = rest.split_first() {
            *rest = others;
            self.number = self.number << 8 | u32::from(*byte);
            self.number_bytes += 1;
            if self.number_bytes == bytes {
                self.number_bytes = 0;
                return Some(std::mem::take(&mut self.number));
            }
        }
        None
    }
}

/// Leaves out up to so many bytes: how many of them have not come yet.
fn skip(rest: &mut &[u8], bytes: usize) -> usize {
    let skipped = bytes.min(rest.len());
    *rest = &rest[skipped..];
    bytes - skipped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::copy::BINARY_TRAILER;

    /// Rows of one number, one NULL and one value of so many bytes.
    fn stream(values: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = BINARY_HEADER.to_vec();
        let mut ends = Vec::new();
        for value in values {
            bytes.extend(3_i16.to_be_bytes());
            bytes.extend(4_i32.to_be_bytes());
            bytes.extend(i32::MAX.to_be_bytes());
            bytes.extend((-1_i32).to_be_bytes());
            bytes.extend(i32::try_from(*value).unwrap().to_be_bytes());
            bytes.resize(bytes.len() + value, 0xff);
            ends.push(bytes.len());
        }
        bytes.extend(BINARY_TRAILER);
        (bytes, ends)
    }

    fn cuts(bytes: &[u8], piece: usize) -> Vec<usize> {
        let mut batches = Batches::of(Format::Binary);
        let mut found = Vec::new();
        for (number, mut piece_left) in bytes.chunks(piece).enumerate() {
            let mut at = number * piece;
            while let Some(end) = batches.end_in(piece_left) {
                at += end;
                found.push(at);
                piece_left = &piece_left[end..];
            }
        }
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_copy_ends_at_the_first_end_of_a_row_at_which_the_server_has_gathered_too_much(
            values in prop::collection::vec(0_usize..5 * 1024 * 1024, 0..20),
            piece in 1_usize..20,
        ) {
            let (bytes, ends) = stream(&values);
            let mut expected = Vec::new();
            let mut gathered = 0;
            for (value, end) in values.iter().zip(&ends) {
                gathered += 4 + value;
                if gathered >= BATCH_BYTES {
                    expected.push(*end);
                    gathered = 0;
                }
            }
            prop_assert_eq!(cuts(&bytes, piece * 65_536 - 7), expected);
        }

        #[test]
        fn what_is_found_does_not_depend_on_how_the_bytes_arrive(piece in 1_usize..64) {
            let (bytes, ends) = stream(&[7, BATCH_BYTES, 0, 3, BATCH_BYTES]);
            prop_assert_eq!(cuts(&bytes, piece), [ends[1], ends[4]]);
        }
    }

    #[test]
    fn small_rows_are_left_to_the_server() {
        let (bytes, _) = stream(&[5_000; 3_500]);
        assert_eq!(cuts(&bytes, 256 * 1024), Vec::<usize>::new());
        let mut batches = Batches::of(Format::Text);
        assert_eq!(batches.end_in(&vec![0; 2 * BATCH_BYTES]), None);
    }

    #[test]
    fn rows_without_columns_are_rows() {
        let mut bytes = BINARY_HEADER.to_vec();
        bytes.extend([0; 4]);
        bytes.extend(BINARY_TRAILER);
        let mut batches = Batches::of(Format::Binary);
        assert_eq!(batches.end_in(&bytes), None);
        assert!(matches!(batches.at, At::Rest));
    }
}
