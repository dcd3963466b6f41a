//! The encodings that keep a small value in one string: listpacks, ziplists, sets of integers, zipmaps.

use std::io::Write as _;

/// An entry of a listpack or a ziplist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packed<'a> {
    Bytes(&'a [u8]),
    Integer(i64),
}

/// Room for the digits of any integer of 64 bits.
pub(super) type Digits = [u8; 20];

/// The digits of an integer.
pub(super) fn digits(value: i64, room: &mut Digits) -> &[u8] {
    let mut rest = &mut room[..];
    write!(rest, "{value}").expect("20 bytes hold each integer of 64 bits");
    let unused = rest.len();
    &room[..20 - unused]
}

impl<'a> Packed<'a> {
    /// The entry as the string that it stands for.
    pub(super) fn text<'b>(self, room: &'b mut Digits) -> &'b [u8]
    where
        'a: 'b,
    {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Integer(value) => digits(value, room),
        }
    }

    /// The entry as a number, where it is one.
    pub(super) fn integer(self) -> Option<i64> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
            Self::Integer(value) => Some(value),
        }
    }

    /// The entry as a score, where it is one.
    pub(super) fn score(self) -> Option<f64> {
        match self {
            Self::Bytes(bytes) => score(bytes),
            #[expect(
                clippy::cast_precision_loss,
                reason = "the server reads it as a double too"
            )]
            Self::Integer(value) => Some(value as f64),
        }
    }
}

/// The score that this text stands for; nothing for NaN.
pub(super) fn score(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text)
        .ok()?
        .parse()
        .ok()
        .filter(|score: &f64| !score.is_nan())
}

/// What is wrong with a packed value.
pub(super) type Wrong = &'static str;

/// Takes so many bytes off the front.
fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(*taken)
}

/// An integer of three bytes.
fn int24(bytes: [u8; 3]) -> i64 {
    i64::from(i32::from_le_bytes([0, bytes[0], bytes[1], bytes[2]]) >> 8)
}

/// The entries of a listpack.
#[derive(Debug)]
pub(super) struct ListPack<'a> {
    rest: &'a [u8],
    ended: bool,
}

impl<'a> ListPack<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Wrong> {
        const HEADER: usize = 6;
        let mut rest = bytes;
        let total = take_array(&mut rest).map(u32::from_le_bytes);
        if bytes.len() <= HEADER || total != u32::try_from(bytes.len()).ok() {
            return Err("a listpack is not as long as it says");
        }
        Ok(Self {
            rest: &bytes[HEADER..],
            ended: false,
        })
    }

    fn entry(&mut self) -> Option<Packed<'a>> {
        let before = self.rest.len();
        let rest = &mut self.rest;
        let [first] = take_array(rest)?;
        let entry = match first {
            0..=0x7f => Packed::Integer(i64::from(first)),
            0x80..=0xbf => Packed::Bytes(take(rest, usize::from(first & 63))?),
            0xc0..=0xdf => {
                let [second] = take_array(rest)?;
                // 13 bits with a sign.
                let bits = i16::from_be_bytes([first << 3 | second >> 5, second << 3]);
                Packed::Integer(i64::from(bits >> 3))
            }
            0xe0..=0xef => {
                let [second] = take_array(rest)?;
                let length = usize::from(first & 15) << 8 | usize::from(second);
                Packed::Bytes(take(rest, length)?)
            }
            0xf0 => {
                let length = u32::from_le_bytes(take_array(rest)?);
                Packed::Bytes(take(rest, length as usize)?)
            }
            0xf1 => Packed::Integer(i64::from(i16::from_le_bytes(take_array(rest)?))),
            0xf2 => Packed::Integer(int24(take_array(rest)?)),
            0xf3 => Packed::Integer(i64::from(i32::from_le_bytes(take_array(rest)?))),
            0xf4 => Packed::Integer(i64::from_le_bytes(take_array(rest)?)),
            _ => return None,
        };
        let length = before - rest.len();
        take(rest, back_length_bytes(length))?;
        Some(entry)
    }
}

/// Bytes of the number after an entry of a listpack that says how long the entry is.
pub(super) fn back_length_bytes(entry: usize) -> usize {
    match entry {
        0..=127 => 1,
        128..=16_382 => 2,
        16_383..=2_097_150 => 3,
        2_097_151..=268_435_454 => 4,
        _ => 5,
    }
}

impl<'a> Iterator for ListPack<'a> {
    type Item = Result<Packed<'a>, Wrong>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if self.rest == [0xff] {
            self.ended = true;
            return None;
        }
        let entry = self.entry();
        self.ended = entry.is_none();
        Some(entry.ok_or("an entry of a listpack is damaged"))
    }
}

/// The entries of a ziplist.
#[derive(Debug)]
pub(super) struct ZipList<'a> {
    rest: &'a [u8],
    ended: bool,
}

impl<'a> ZipList<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Wrong> {
        const HEADER: usize = 10;
        let mut rest = bytes;
        let total = take_array(&mut rest).map(u32::from_le_bytes);
        if bytes.len() <= HEADER || total != u32::try_from(bytes.len()).ok() {
            return Err("a ziplist is not as long as it says");
        }
        Ok(Self {
            rest: &bytes[HEADER..],
            ended: false,
        })
    }

    fn entry(&mut self) -> Option<Packed<'a>> {
        let rest = &mut self.rest;
        // The length of the entry before.
        if let [0xfe] = take_array(rest)? {
            take(rest, 4)?;
        }
        let [first] = take_array(rest)?;
        Some(match first {
            0..=0x3f => Packed::Bytes(take(rest, usize::from(first))?),
            0x40..=0x7f => {
                let [second] = take_array(rest)?;
                let length = usize::from(first & 63) << 8 | usize::from(second);
                Packed::Bytes(take(rest, length)?)
            }
            0x80..=0xbf => {
                let length = u32::from_be_bytes(take_array(rest)?);
                Packed::Bytes(take(rest, length as usize)?)
            }
            0xc0 => Packed::Integer(i64::from(i16::from_le_bytes(take_array(rest)?))),
            0xd0 => Packed::Integer(i64::from(i32::from_le_bytes(take_array(rest)?))),
            0xe0 => Packed::Integer(i64::from_le_bytes(take_array(rest)?)),
            0xf0 => Packed::Integer(int24(take_array(rest)?)),
            0xfe => Packed::Integer(i64::from(i8::from_le_bytes(take_array(rest)?))),
            0xf1..=0xfd => Packed::Integer(i64::from(first & 15) - 1),
            _ => return None,
        })
    }
}

impl<'a> Iterator for ZipList<'a> {
    type Item = Result<Packed<'a>, Wrong>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if self.rest == [0xff] {
            self.ended = true;
            return None;
        }
        let entry = self.entry();
        self.ended = entry.is_none();
        Some(entry.ok_or("an entry of a ziplist is damaged"))
    }
}

/// The members of a set of integers.
pub(super) fn integers(bytes: &[u8]) -> Result<impl Iterator<Item = i64>, Wrong> {
    const WRONG: Wrong = "a set of integers is damaged";
    let mut rest = bytes;
    let width = take_array(&mut rest).map(u32::from_le_bytes).ok_or(WRONG)?;
    let count = take_array(&mut rest).map(u32::from_le_bytes).ok_or(WRONG)?;
    let width = width as usize;
    if !matches!(width, 2 | 4 | 8) || Some(rest.len()) != width.checked_mul(count as usize) {
        return Err(WRONG);
    }
    Ok(rest.chunks_exact(width).map(move |member| {
        // The bytes go to the upper end, and come down with their sign.
        let mut wide = [0; 8];
        wide[8 - width..].copy_from_slice(member);
        i64::from_le_bytes(wide) >> (64 - 8 * width)
    }))
}

/// The fields of a zipmap with their values.
#[derive(Debug)]
pub(super) struct ZipMap<'a> {
    rest: &'a [u8],
    ended: bool,
}

impl<'a> ZipMap<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Wrong> {
        // The first byte counts the fields up to 253.
        let rest = bytes.get(1..).ok_or("a zipmap is empty")?;
        Ok(Self { rest, ended: false })
    }

    fn length(rest: &mut &[u8]) -> Option<usize> {
        match take_array(rest)? {
            [0xfe] => Some(u32::from_le_bytes(take_array(rest)?) as usize),
            [0xff] => None,
            [length] => Some(usize::from(length)),
        }
    }

    fn entry(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let rest = &mut self.rest;
        let length = Self::length(rest)?;
        let field = take(rest, length)?;
        let length = Self::length(rest)?;
        let [unused] = take_array(rest)?;
        let value = take(rest, length)?;
        take(rest, usize::from(unused))?;
        Some((field, value))
    }
}

impl<'a> Iterator for ZipMap<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), Wrong>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if self.rest == [0xff] {
            self.ended = true;
            return None;
        }
        let entry = self.entry();
        self.ended = entry.is_none();
        Some(entry.ok_or("a field of a zipmap is damaged"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_integer_of_a_listpack_has_its_sign() {
        let entries: [&[u8]; 8] = [
            &[0x7f, 1],
            &[0xdf, 0xff, 2],
            &[0xcf, 0xff, 2],
            &[0xd0, 0x00, 2],
            &[0xf1, 0x00, 0x80, 3],
            &[0xf2, 0x00, 0x00, 0x80, 4],
            &[0xf3, 0xff, 0xff, 0xff, 0xff, 5],
            &[0xf4, 0, 0, 0, 0, 0, 0, 0, 0x80, 9],
        ];
        let mut bytes = vec![0; 6];
        bytes.extend(entries.concat());
        bytes.push(0xff);
        let total = bytes.len() as u32;
        bytes[..4].copy_from_slice(&total.to_le_bytes());
        let read: Vec<_> = ListPack::new(&bytes)
            .unwrap()
            .map(|entry| entry.unwrap().integer().unwrap())
            .collect();
        assert_eq!(
            read,
            [127, -1, 4095, -4096, -32768, -8_388_608, -1, i64::MIN]
        );
    }

    #[test]
    fn digits_of_the_extremes_fit() {
        let mut room = [0; 20];
        assert_eq!(digits(i64::MIN, &mut room), b"-9223372036854775808");
        assert_eq!(digits(i64::MAX, &mut room), b"9223372036854775807");
        assert_eq!(digits(0, &mut room), b"0");
    }

    #[test]
    fn scores_keep_their_sign_and_are_never_nan() {
        assert!(score(b"-0").unwrap().is_sign_negative());
        assert_eq!(score(b"inf"), Some(f64::INFINITY));
        assert_eq!(score(b"-inf"), Some(f64::NEG_INFINITY));
        assert_eq!(score(b"nan"), None);
        assert_eq!(score(b"17 "), None);
    }
}
