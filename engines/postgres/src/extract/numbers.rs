//! Floats, `numeric` and `money` as text.

use super::value::{Bytes, Read};

/// Decimal digits of a float before the server writes it with an exponent: `FLT_DIG` and `DBL_DIG`.
const FLOAT4_DIGITS: i32 = 6;
const FLOAT8_DIGITS: i32 = 15;

pub(super) fn put_float4(number: f32, out: &mut String) {
    put_float(
        f64::from(number),
        &format!("{number:e}"),
        FLOAT4_DIGITS,
        out,
    );
}

pub(super) fn put_float8(number: f64, out: &mut String) {
    put_float(number, &format!("{number:e}"), FLOAT8_DIGITS, out);
}

/// Writes a float by its shortest digits, which `scientific` holds as `d.ddde-n`.
fn put_float(number: f64, scientific: &str, digits: i32, out: &mut String) {
    if number.is_nan() {
        out.push_str("NaN");
        return;
    }
    if number.is_infinite() {
        out.push_str(if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        });
        return;
    }
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if exponent < -4 || exponent >= digits {
        let sign = if exponent < 0 { '-' } else { '+' };
        out.push_str(&format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs()));
        return;
    }
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    out.push_str(sign);
    let all: String = mantissa.chars().filter(|letter| *letter != '.').collect();
    if exponent < 0 {
        out.push_str("0.");
        out.extend(std::iter::repeat_n(
            '0',
            exponent.unsigned_abs() as usize - 1,
        ));
        out.push_str(&all);
        return;
    }
    let before = exponent.unsigned_abs() as usize + 1;
    if all.len() <= before {
        out.push_str(&all);
        out.extend(std::iter::repeat_n('0', before - all.len()));
    } else {
        out.push_str(&all[..before]);
        out.push('.');
        out.push_str(&all[before..]);
    }
}

/// The signs of `numeric` in binary.
const NUMERIC_NEGATIVE: u16 = 0x4000;
const NUMERIC_NAN: u16 = 0xC000;
const NUMERIC_INFINITY: u16 = 0xD000;
const NUMERIC_MINUS_INFINITY: u16 = 0xF000;

pub(super) fn put_numeric(bytes: &mut Bytes<'_>, out: &mut String) -> Read<()> {
    let count = bytes.i16()?;
    let weight = i32::from(bytes.i16()?);
    let sign = bytes.u16()?;
    let scale = usize::from(bytes.u16()?);
    let mut groups = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
    for _ in 0..count {
        groups.push(bytes.u16()?);
    }
    match sign {
        NUMERIC_NAN => {
            out.push_str("NaN");
            return Ok(());
        }
        NUMERIC_INFINITY => {
            out.push_str("Infinity");
            return Ok(());
        }
        NUMERIC_MINUS_INFINITY => {
            out.push_str("-Infinity");
            return Ok(());
        }
        NUMERIC_NEGATIVE => out.push('-'),
        _ => {}
    }
    let group = |at: i32| {
        usize::try_from(at)
            .ok()
            .and_then(|at| groups.get(at))
            .copied()
            .unwrap_or(0)
    };
    if weight < 0 {
        out.push('0');
    } else {
        out.push_str(&group(0).to_string());
        for at in 1..=weight {
            out.push_str(&format!("{:04}", group(at)));
        }
    }
    if scale > 0 {
        out.push('.');
        let mut fraction = String::with_capacity(scale + 4);
        let mut at = weight + 1;
        while fraction.len() < scale {
            fraction.push_str(&format!("{:04}", group(at)));
            at += 1;
        }
        out.push_str(&fraction[..scale]);
    }
    Ok(())
}

pub(super) fn put_money(amount: i64, out: &mut String) {
    let cents = amount.unsigned_abs();
    if amount < 0 {
        out.push('-');
    }
    out.push('$');
    let whole = (cents / 100).to_string();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out.push_str(&format!(".{:02}", cents % 100));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of_float8(number: f64) -> String {
        let mut out = String::new();
        put_float8(number, &mut out);
        out
    }

    #[test]
    fn floats_have_an_exponent_where_the_server_writes_one() {
        for (number, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (0.1, "0.1"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (123_456.75, "123456.75"),
            (5e-324, "5e-324"),
            (-1.5e300, "-1.5e+300"),
        ] {
            assert_eq!(text_of_float8(number), text);
        }
    }
}
