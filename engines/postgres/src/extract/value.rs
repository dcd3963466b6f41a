//! Values of binary COPY as text: what the type's output function writes under the settings of a backup's sessions (dates
//! as ISO, the time zone UTC, bytes in hexadecimal, intervals in the server's own style, money as in the locale C).
//!
//! Forms are those of `src/backend/utils/adt` of PostgreSQL; tested type by type against the server's own COPY.

use std::fmt::Write as _;

use super::{
    moments::{put_date, put_interval, put_time, put_time_zone, put_timestamp},
    numbers::{put_float4, put_float8, put_money, put_numeric},
    search::{put_tsquery, put_tsvector},
    shape::Shape,
};

/// Bytes that are no value of their type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// The result of reading a value.
pub(crate) type Read<T> = Result<T, Malformed>;

/// Bytes that are read from the front.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Read<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(Malformed("it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or(Malformed("it ends early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Read<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn i16(&mut self) -> Read<i16> {
        self.array().map(i16::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> Read<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn i32(&mut self) -> Read<i32> {
        self.array().map(i32::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn i64(&mut self) -> Read<i64> {
        self.array().map(i64::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn f64(&mut self) -> Read<f64> {
        self.array().map(f64::from_be_bytes)
    }

    /// A value behind its length; nothing for NULL.
    pub(crate) fn value(&mut self) -> Read<Option<&'a [u8]>> {
        match self.i32()? {
            -1 => Ok(None),
            length => self
                .take(usize::try_from(length).map_err(|_| Malformed("a negative length"))?)
                .map(Some),
        }
    }

    /// A count of things that follow.
    pub(crate) fn count(&mut self) -> Read<usize> {
        usize::try_from(self.i32()?).map_err(|_| Malformed("a negative count"))
    }

    /// Bytes up to a zero, which is taken too.
    pub(crate) fn terminated(&mut self) -> Read<&'a [u8]> {
        let end = self
            .0
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(Malformed("a text without an end"))?;
        let text = self.take(end)?;
        self.u8()?;
        Ok(text)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Adds a value as text.
pub(crate) fn put_value(shape: &Shape, value: &[u8], to: &mut Vec<u8>) -> Read<()> {
    let mut bytes = Bytes(value);
    match shape {
        Shape::Enum => {
            to.extend_from_slice(value);
            return Ok(());
        }
        Shape::Plain(name) => put_plain(name, &mut bytes, to)?,
        Shape::Array(element) => put_array(element, &mut bytes, to)?,
        Shape::Range(of) => put_range(of, &mut bytes, to)?,
        Shape::Multirange(of) => {
            to.push(b'{');
            for number in 0..bytes.count()? {
                if number > 0 {
                    to.push(b',');
                }
                let range = bytes.value()?.ok_or(Malformed("a range that is NULL"))?;
                let mut range = Bytes(range);
                put_range(of, &mut range, to)?;
            }
            to.push(b'}');
        }
        Shape::Composite(fields) => put_composite(fields, &mut bytes, to)?,
    }
    if bytes.is_empty() {
        Ok(())
    } else {
        Err(Malformed("bytes are left over"))
    }
}

fn put_plain(name: &str, bytes: &mut Bytes<'_>, to: &mut Vec<u8>) -> Read<()> {
    let mut text = String::new();
    let out = &mut text;
    // Writing to a String cannot fail.
    let _written = match name {
        "text" | "varchar" | "bpchar" | "name" | "json" | "refcursor" => {
            to.extend_from_slice(std::mem::take(&mut bytes.0));
            return Ok(());
        }
        "jsonb" | "jsonpath" => {
            if bytes.u8()? != 1 {
                return Err(Malformed("a version that is not known"));
            }
            to.extend_from_slice(std::mem::take(&mut bytes.0));
            return Ok(());
        }
        "bytea" => {
            to.extend_from_slice(b"\\x");
            to.extend_from_slice(hex::encode(std::mem::take(&mut bytes.0)).as_bytes());
            return Ok(());
        }
        "char" => {
            match bytes.u8()? {
                0 => {}
                byte if byte < 0x80 => to.push(byte),
                byte => to.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
            }
            return Ok(());
        }
        "tsvector" => return put_tsvector(bytes, to),
        "tsquery" => return put_tsquery(bytes, to),
        "bool" => {
            to.push(if bytes.u8()? == 0 { b'f' } else { b't' });
            return Ok(());
        }
        "int2" => write!(out, "{}", bytes.i16()?),
        "int4" => write!(out, "{}", bytes.i32()?),
        "int8" => write!(out, "{}", bytes.i64()?),
        "oid" | "xid" | "cid" => write!(out, "{}", bytes.u32()?),
        "xid8" => write!(out, "{}", bytes.u64()?),
        "tid" => write!(out, "({},{})", bytes.u32()?, bytes.u16()?),
        "pg_lsn" => write!(out, "{:X}/{:X}", bytes.u32()?, bytes.u32()?),
        "float4" => {
            put_float4(f32::from_bits(bytes.u32()?), out);
            Ok(())
        }
        "float8" => {
            put_float8(bytes.f64()?, out);
            Ok(())
        }
        "numeric" => {
            put_numeric(bytes, out)?;
            Ok(())
        }
        "money" => {
            put_money(bytes.i64()?, out);
            Ok(())
        }
        "uuid" => {
            let hex = hex::encode(bytes.take(16)?);
            write!(
                out,
                "{}-{}-{}-{}-{}",
                &hex[..8],
                &hex[8..12],
                &hex[12..16],
                &hex[16..20],
                &hex[20..]
            )
        }
        "date" => {
            put_date(bytes.i32()?, out);
            Ok(())
        }
        "time" => {
            put_time(bytes.i64()?, out);
            Ok(())
        }
        "timetz" => {
            put_time(bytes.i64()?, out);
            put_time_zone(bytes.i32()?, out);
            Ok(())
        }
        "timestamp" => {
            put_timestamp(bytes.i64()?, false, out);
            Ok(())
        }
        "timestamptz" => {
            put_timestamp(bytes.i64()?, true, out);
            Ok(())
        }
        "interval" => {
            let (microseconds, days, months) = (bytes.i64()?, bytes.i32()?, bytes.i32()?);
            put_interval(microseconds, days, months, out);
            Ok(())
        }
        "bit" | "varbit" => {
            let length = bytes.count()?;
            let bits = bytes.take(length.div_ceil(8))?;
            to.extend((0..length).map(|at| b'0' + (bits[at / 8] >> (7 - at % 8) & 1)));
            return Ok(());
        }
        "macaddr" | "macaddr8" => {
            let parts: Vec<String> = std::mem::take(&mut bytes.0)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            out.push_str(&parts.join(":"));
            Ok(())
        }
        "inet" | "cidr" => {
            put_address(bytes, out)?;
            Ok(())
        }
        "txid_snapshot" | "pg_snapshot" => {
            let count = bytes.count()?;
            write!(out, "{}:{}:", bytes.u64()?, bytes.u64()?).map_err(|_| Malformed("no room"))?;
            for number in 0..count {
                if number > 0 {
                    out.push(',');
                }
                out.push_str(&bytes.u64()?.to_string());
            }
            Ok(())
        }
        "point" => {
            put_point(bytes, out)?;
            Ok(())
        }
        "lseg" => put_points(bytes, 2, ("[", "]"), out).map(Ok)?,
        "box" => put_points(bytes, 2, ("", ""), out).map(Ok)?,
        "path" => {
            let is_closed = bytes.u8()? != 0;
            let count = bytes.count()?;
            let around = if is_closed { ("(", ")") } else { ("[", "]") };
            put_points(bytes, count, around, out).map(Ok)?
        }
        "polygon" => {
            let count = bytes.count()?;
            put_points(bytes, count, ("(", ")"), out).map(Ok)?
        }
        "line" => {
            for before in ['{', ',', ','] {
                out.push(before);
                put_float8(bytes.f64()?, out);
            }
            out.push('}');
            Ok(())
        }
        "circle" => {
            out.push('<');
            put_point(bytes, out)?;
            out.push(',');
            put_float8(bytes.f64()?, out);
            out.push('>');
            Ok(())
        }
        _ => return Err(Malformed("its type is not known")),
    };
    to.extend_from_slice(text.as_bytes());
    Ok(())
}

fn put_point(bytes: &mut Bytes<'_>, out: &mut String) -> Read<()> {
    out.push('(');
    put_float8(bytes.f64()?, out);
    out.push(',');
    put_float8(bytes.f64()?, out);
    out.push(')');
    Ok(())
}

fn put_points(
    bytes: &mut Bytes<'_>,
    count: usize,
    (before, after): (&str, &str),
    out: &mut String,
) -> Read<()> {
    out.push_str(before);
    for number in 0..count {
        if number > 0 {
            out.push(',');
        }
        put_point(bytes, out)?;
    }
    out.push_str(after);
    Ok(())
}

/// The number that stands for IPv4 in `inet`'s binary form, whatever the system's own number is.
const FAMILY_4: u8 = 2;

fn put_address(bytes: &mut Bytes<'_>, out: &mut String) -> Read<()> {
    let family = bytes.u8()?;
    let bits = bytes.u8()?;
    let is_network = bytes.u8()? != 0;
    let length = bytes.u8()?;
    let (text, most) = if family == FAMILY_4 {
        let four: [u8; 4] = bytes.array()?;
        (std::net::Ipv4Addr::from(four).to_string(), 32)
    } else {
        let sixteen: [u8; 16] = bytes.array()?;
        (address6(std::net::Ipv6Addr::from(sixteen)), 128)
    };
    if u32::from(length) * 8 != most {
        return Err(Malformed("an address of another length"));
    }
    out.push_str(&text);
    if is_network || u32::from(bits) != most {
        out.push_str(&format!("/{bits}"));
    }
    Ok(())
}

/// An IPv6 address as the server writes it: IPv4 inside one is shown as such where the first 96 bits are zero (and the next 16
/// too, or not), or are those of mapped addresses.
fn address6(address: std::net::Ipv6Addr) -> String {
    let segments = address.segments();
    let octets = address.octets();
    let four = || std::net::Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]);
    // The longest run of zeros of at least two words, the first of equals.
    let (mut best, mut run) = ((0, 0), (0, 0));
    for (at, segment) in segments.iter().enumerate() {
        if *segment == 0 {
            if run.1 == 0 {
                run.0 = at;
            }
            run.1 += 1;
            if run.1 > best.1 {
                best = run;
            }
        } else {
            run = (0, 0);
        }
    }
    let (start, length) = if best.1 >= 2 { best } else { (8, 0) };
    let mut text = String::new();
    let mut at = 0;
    while at < 8 {
        if at == start {
            text.push_str("::");
            at += length;
            continue;
        }
        if at > 0 && !text.ends_with(':') {
            text.push(':');
        }
        // As the server's `inet_net_ntop_ipv6`: the last two words as IPv4.
        if at == 6
            && start == 0
            && (length == 6
                || (length == 7 && segments[7] != 1)
                || (length == 5 && segments[5] == 0xffff))
        {
            text.push_str(&four().to_string());
            break;
        }
        text.push_str(&format!("{:x}", segments[at]));
        at += 1;
    }
    text
}

/// What the flags of a range say.
mod range {
    pub(super) const EMPTY: u8 = 0x01;
    pub(super) const LOWER_INCLUSIVE: u8 = 0x02;
    pub(super) const UPPER_INCLUSIVE: u8 = 0x04;
    pub(super) const LOWER_INFINITE: u8 = 0x08;
    pub(super) const UPPER_INFINITE: u8 = 0x10;
}

fn put_range(of: &Shape, bytes: &mut Bytes<'_>, to: &mut Vec<u8>) -> Read<()> {
    let flags = bytes.u8()?;
    let has = |flag: u8| flags & flag != 0;
    if has(range::EMPTY) {
        to.extend_from_slice(b"empty");
        return Ok(());
    }
    to.push(if has(range::LOWER_INCLUSIVE) {
        b'['
    } else {
        b'('
    });
    let mut bound = |to: &mut Vec<u8>| -> Read<()> {
        let value = bytes.value()?.ok_or(Malformed("a bound that is NULL"))?;
        let mut text = Vec::new();
        put_value(of, value, &mut text)?;
        put_quoted_doubling(&text, b"\"\\()[],", to);
        Ok(())
    };
    if !has(range::LOWER_INFINITE) {
        bound(to)?;
    }
    to.push(b',');
    if !has(range::UPPER_INFINITE) {
        bound(to)?;
    }
    to.push(if has(range::UPPER_INCLUSIVE) {
        b']'
    } else {
        b')'
    });
    Ok(())
}

/// Whether the server takes a byte for white space.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// A bound or a field: in quotes where it is empty or holds something special, with quotes and backslashes doubled.
fn put_quoted_doubling(text: &[u8], special: &[u8], to: &mut Vec<u8>) {
    let needs_quotes = text.is_empty()
        || text
            .iter()
            .any(|byte| special.contains(byte) || is_space(*byte));
    if !needs_quotes {
        to.extend_from_slice(text);
        return;
    }
    to.push(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            to.push(*byte);
        }
        to.push(*byte);
    }
    to.push(b'"');
}

fn put_composite(fields: &[Shape], bytes: &mut Bytes<'_>, to: &mut Vec<u8>) -> Read<()> {
    if bytes.count()? != fields.len() {
        return Err(Malformed("another number of fields"));
    }
    to.push(b'(');
    for (number, field) in fields.iter().enumerate() {
        if number > 0 {
            to.push(b',');
        }
        let _type = bytes.u32()?;
        if let Some(value) = bytes.value()? {
            let mut text = Vec::new();
            put_value(field, value, &mut text)?;
            put_quoted_doubling(&text, b"\"\\(),", to);
        }
    }
    to.push(b')');
    Ok(())
}

fn put_array(element: &Shape, bytes: &mut Bytes<'_>, to: &mut Vec<u8>) -> Read<()> {
    let dimensions = bytes.count()?;
    let _has_null = bytes.i32()?;
    let _type = bytes.u32()?;
    let mut sizes = Vec::with_capacity(dimensions);
    let mut bounds = Vec::with_capacity(dimensions);
    for _ in 0..dimensions {
        sizes.push(bytes.count()?);
        bounds.push(i64::from(bytes.i32()?));
    }
    if sizes.iter().product::<usize>() == 0 || dimensions == 0 {
        to.extend_from_slice(b"{}");
        return Ok(());
    }
    if bounds.iter().any(|lower| *lower != 1) {
        for (size, lower) in sizes.iter().zip(&bounds) {
            let upper = lower + *size as i64 - 1;
            to.extend_from_slice(format!("[{lower}:{upper}]").as_bytes());
        }
        to.push(b'=');
    }
    put_dimension(element, element.delimiter(), &sizes, bytes, to)
}

fn put_dimension(
    element: &Shape,
    delimiter: u8,
    sizes: &[usize],
    bytes: &mut Bytes<'_>,
    to: &mut Vec<u8>,
) -> Read<()> {
    let Some((size, inner)) = sizes.split_first() else {
        match bytes.value()? {
            None => to.extend_from_slice(b"NULL"),
            Some(value) => {
                let mut text = Vec::new();
                put_value(element, value, &mut text)?;
                put_element(&text, delimiter, to);
            }
        }
        return Ok(());
    };
    to.push(b'{');
    for number in 0..*size {
        if number > 0 {
            to.push(delimiter);
        }
        put_dimension(element, delimiter, inner, bytes, to)?;
    }
    to.push(b'}');
    Ok(())
}

/// An element of an array: in quotes where it is empty, `NULL`, or holds something special, with a backslash before quotes and
/// backslashes.
fn put_element(text: &[u8], delimiter: u8, to: &mut Vec<u8>) {
    let needs_quotes = text.is_empty()
        || text.eq_ignore_ascii_case(b"null")
        || text.iter().any(|byte| {
            matches!(byte, b'"' | b'\\' | b'{' | b'}') || *byte == delimiter || is_space(*byte)
        });
    if !needs_quotes {
        to.extend_from_slice(text);
        return;
    }
    to.push(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            to.push(b'\\');
        }
        to.push(*byte);
    }
    to.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_ends_early_or_late_is_malformed() {
        let int4 = Shape::Plain("int4".to_owned());
        let mut to = Vec::new();
        assert!(put_value(&int4, &[0, 0, 1], &mut to).is_err());
        assert!(put_value(&int4, &[0, 0, 0, 1, 9], &mut to).is_err());
        assert!(put_value(&Shape::Plain("unheard of".to_owned()), &[], &mut to).is_err());
    }
}
