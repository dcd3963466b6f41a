//! JSON as it stands: documents keep the text of their numbers and doubled names, definitions are compared whatever the
//! order of their names.

use serde_json::Value;

/// Adds a JSON text without the white space between its tokens. Everything else is kept as it stands: the text of numbers
/// (`1.0e3` is not `1000`), escapes in strings, the order of names, names that come twice. So a document is one line, and the
/// same whether it was laid out or not.
pub(crate) fn put_compact(text: &[u8], to: &mut Vec<u8>) {
    to.reserve(text.len());
    let mut at = 0;
    while at < text.len() {
        // Up to the next byte that ends a run of bytes that are kept: white space or a quote.
        let rest = &text[at..];
        let run = rest
            .iter()
            .position(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | b'"'))
            .unwrap_or(rest.len());
        to.extend_from_slice(&rest[..run]);
        at += run;
        if text.get(at) == Some(&b'"') {
            let end = string_end(&text[at..]);
            to.extend_from_slice(&text[at..at + end]);
            at += end;
        } else {
            at += 1;
        }
    }
}

/// How many bytes a string has that begins here, with its quotes.
fn string_end(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// A value as text that does not depend on the order of names.
pub(crate) fn sorted_text(value: &Value) -> String {
    fn put(value: &Value, to: &mut String) {
        match value {
            Value::Object(fields) => {
                let mut names: Vec<_> = fields.iter().collect();
                names.sort_unstable_by_key(|(name, _)| *name);
                to.push('{');
                for (at, (name, value)) in names.into_iter().enumerate() {
                    if at > 0 {
                        to.push(',');
                    }
                    to.push_str(&Value::from(name.as_str()).to_string());
                    to.push(':');
                    put(value, to);
                }
                to.push('}');
            }
            Value::Array(items) => {
                to.push('[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        to.push(',');
                    }
                    put(item, to);
                }
                to.push(']');
            }
            other => to.push_str(&other.to_string()),
        }
    }
    let mut text = String::new();
    put(value, &mut text);
    text
}

/// A keyed digest of a value, whatever the order of names.
pub(crate) fn digest(key: &[u8; 32], value: &Value) -> String {
    blake3::keyed_hash(key, sorted_text(value).as_bytes())
        .to_hex()
        .to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn compact(text: &str) -> String {
        let mut to = Vec::new();
        put_compact(text.as_bytes(), &mut to);
        String::from_utf8(to).unwrap()
    }

    #[test]
    fn numbers_escapes_and_doubled_names_stay_as_they_were_written() {
        for (text, expected) in [
            (r#"{ "a" : 1.0e3 , "a": 2 }"#, r#"{"a":1.0e3,"a":2}"#),
            (
                "{\n  \"b\": [1,\t-0, 9007199254740993]\r\n}",
                r#"{"b":[1,-0,9007199254740993]}"#,
            ),
            (
                r#"{"s": "a b\" \\", "t" : "\u00e9 é"}"#,
                r#"{"s":"a b\" \\","t":"\u00e9 é"}"#,
            ),
            ("{}", "{}"),
            ("", ""),
        ] {
            assert_eq!(compact(text), expected);
        }
    }

    proptest! {
        #[test]
        fn laying_a_document_out_changes_nothing(text in r#"[ -~\n]{0,40}"#, number in any::<f64>()) {
            let value = json!({"name": text, "number": number, "list": [text, null, {"x": true}]});
            let wide = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(compact(&wide), value.to_string());
        }
    }

    #[test]
    fn the_order_of_names_means_nothing_in_a_digest_and_that_of_lists_does() {
        let of = |text: &str| digest(&[1; 32], &serde_json::from_str(text).unwrap());
        assert_eq!(
            of(r#"{"a":1,"b":{"c":2,"d":3}}"#),
            of(r#"{"b":{"d":3,"c":2},"a":1}"#)
        );
        assert_ne!(of(r#"{"a":[1,2]}"#), of(r#"{"a":[2,1]}"#));
    }
}
