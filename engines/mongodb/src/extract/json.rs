//! Documents as canonical extended JSON, version 2 (MongoDB's specification "Extended JSON"): types are kept, the order of
//! fields too, and a name that stands twice stands twice.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bson::{RawArray, RawBsonRef, RawDocument, RawDocumentBuf};

use crate::raw::put;

fn put_text(text: &str, to: &mut Vec<u8>) {
    to.extend_from_slice(serde_json::Value::from(text).to_string().as_bytes());
}

/// Adds `{"name":"text"}`.
fn put_one(name: &str, text: &str, to: &mut Vec<u8>) {
    to.push(b'{');
    put_text(name, to);
    to.push(b':');
    put_text(text, to);
    to.push(b'}');
}

/// Adds a document.
pub(super) fn put_document(document: &RawDocument, to: &mut Vec<u8>) -> Result<(), String> {
    to.push(b'{');
    for (at, element) in document.iter().enumerate() {
        let (name, value) = element.map_err(|error| error.to_string())?;
        if at > 0 {
            to.push(b',');
        }
        put_text(name.as_ref(), to);
        to.push(b':');
        put_value(value, to)?;
    }
    to.push(b'}');
    Ok(())
}

fn put_array(array: &RawArray, to: &mut Vec<u8>) -> Result<(), String> {
    to.push(b'[');
    for (at, value) in array.into_iter().enumerate() {
        if at > 0 {
            to.push(b',');
        }
        put_value(value.map_err(|error| error.to_string())?, to)?;
    }
    to.push(b']');
    Ok(())
}

fn double(number: f64) -> String {
    if number.is_nan() {
        "NaN".to_owned()
    } else if number.is_infinite() {
        (if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        })
        .to_owned()
    } else {
        // The shortest digits that read as the same number again; with a point or an exponent, so that it is no integer.
        format!("{number:?}")
    }
}

fn put_value(value: RawBsonRef<'_>, to: &mut Vec<u8>) -> Result<(), String> {
    match value {
        RawBsonRef::Double(number) => put_one("$numberDouble", &double(number), to),
        RawBsonRef::String(text) => put_text(text, to),
        RawBsonRef::Array(array) => put_array(array, to)?,
        RawBsonRef::Document(document) => put_document(document, to)?,
        RawBsonRef::Boolean(flag) => {
            to.extend_from_slice(if flag { b"true" } else { b"false" });
        }
        RawBsonRef::Null => to.extend_from_slice(b"null"),
        RawBsonRef::RegularExpression(regex) => {
            to.extend_from_slice(b"{\"$regularExpression\":{\"pattern\":");
            put_text(regex.pattern.as_ref(), to);
            to.extend_from_slice(b",\"options\":");
            put_text(regex.options.as_ref(), to);
            to.extend_from_slice(b"}}");
        }
        RawBsonRef::JavaScriptCode(code) => put_one("$code", code, to),
        RawBsonRef::JavaScriptCodeWithScope(code) => {
            to.extend_from_slice(b"{\"$code\":");
            put_text(code.code, to);
            to.extend_from_slice(b",\"$scope\":");
            put_document(code.scope, to)?;
            to.push(b'}');
        }
        RawBsonRef::Int32(number) => put_one("$numberInt", &number.to_string(), to),
        RawBsonRef::Int64(number) => put_one("$numberLong", &number.to_string(), to),
        RawBsonRef::Timestamp(stamp) => to.extend_from_slice(
            format!(
                "{{\"$timestamp\":{{\"t\":{},\"i\":{}}}}}",
                stamp.time, stamp.increment
            )
            .as_bytes(),
        ),
        RawBsonRef::Binary(binary) => {
            to.extend_from_slice(b"{\"$binary\":{\"base64\":\"");
            to.extend_from_slice(STANDARD.encode(binary.bytes).as_bytes());
            to.extend_from_slice(
                format!("\",\"subType\":\"{:02x}\"}}}}", u8::from(binary.subtype)).as_bytes(),
            );
        }
        RawBsonRef::ObjectId(id) => put_one("$oid", &id.to_hex(), to),
        RawBsonRef::DateTime(moment) => {
            to.extend_from_slice(b"{\"$date\":");
            put_one("$numberLong", &moment.timestamp_millis().to_string(), to);
            to.push(b'}');
        }
        RawBsonRef::Symbol(text) => put_one("$symbol", text, to),
        RawBsonRef::Decimal128(number) => put_one("$numberDecimal", &number.to_string(), to),
        RawBsonRef::Undefined => to.extend_from_slice(b"{\"$undefined\":true}"),
        RawBsonRef::MaxKey => to.extend_from_slice(b"{\"$maxKey\":1}"),
        RawBsonRef::MinKey => to.extend_from_slice(b"{\"$minKey\":1}"),
        RawBsonRef::DbPointer(_) => put_pointer(value, to)?,
    }
    Ok(())
}

/// Adds a pointer of the old kind. The library keeps its parts to itself, so that they are read from its bytes.
fn put_pointer(value: RawBsonRef<'_>, to: &mut Vec<u8>) -> Result<(), String> {
    /// Length of a document, type, and the name `v`.
    const BEFORE: usize = 4 + 1 + 2;
    /// Bytes of an id.
    const ID: usize = 12;
    let mut document = RawDocumentBuf::new();
    put(&mut document, "v", value);
    let wrong = || "a pointer that cannot be read".to_owned();
    let bytes = document.as_bytes().get(BEFORE..).ok_or_else(wrong)?;
    let (length, rest) = bytes.split_first_chunk().ok_or_else(wrong)?;
    let length = usize::try_from(i32::from_le_bytes(*length)).map_err(|_| wrong())?;
    let name = rest.get(..length.saturating_sub(1)).ok_or_else(wrong)?;
    let name = std::str::from_utf8(name).map_err(|_| wrong())?;
    let id = rest.get(length..length + ID).ok_or_else(wrong)?;
    to.extend_from_slice(b"{\"$dbPointer\":{\"$ref\":");
    put_text(name, to);
    to.extend_from_slice(b",\"$id\":");
    put_one("$oid", &hex::encode(id), to);
    to.extend_from_slice(b"}}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use bson::{Binary, Bson, DateTime, Timestamp, doc, oid::ObjectId, spec::BinarySubtype};

    use super::*;

    #[test]
    fn a_pointer_of_the_old_kind_is_read() {
        let mut bytes = b"\0\0\0\0\x0cv\0\x04\0\0\0a.b\0".to_vec();
        bytes.extend([7; 12]);
        bytes.push(0);
        let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        bytes[..4].copy_from_slice(&length);
        let mut to = Vec::new();
        put_document(RawDocument::from_bytes(&bytes).unwrap(), &mut to).unwrap();
        assert_eq!(
            String::from_utf8(to).unwrap(),
            r#"{"v":{"$dbPointer":{"$ref":"a.b","$id":{"$oid":"070707070707070707070707"}}}}"#
        );
    }

    #[test]
    fn each_type_has_its_canonical_form() {
        let values: Vec<(Bson, &str)> = vec![
            (Bson::Double(1.0), r#"{"$numberDouble":"1.0"}"#),
            (Bson::Double(-0.0), r#"{"$numberDouble":"-0.0"}"#),
            (Bson::Double(f64::NAN), r#"{"$numberDouble":"NaN"}"#),
            (
                Bson::Double(f64::NEG_INFINITY),
                r#"{"$numberDouble":"-Infinity"}"#,
            ),
            (Bson::Int32(-5), r#"{"$numberInt":"-5"}"#),
            (
                Bson::Int64(9_007_199_254_740_993),
                r#"{"$numberLong":"9007199254740993"}"#,
            ),
            (Bson::String("a\"\n".to_owned()), r#""a\"\n""#),
            (Bson::Boolean(true), "true"),
            (Bson::Null, "null"),
            (Bson::Undefined, r#"{"$undefined":true}"#),
            (Bson::MinKey, r#"{"$minKey":1}"#),
            (
                Bson::ObjectId(ObjectId::from_bytes([7; 12])),
                r#"{"$oid":"070707070707070707070707"}"#,
            ),
            (
                Bson::DateTime(DateTime::from_millis(-1)),
                r#"{"$date":{"$numberLong":"-1"}}"#,
            ),
            (
                Bson::Timestamp(Timestamp {
                    time: 5,
                    increment: 6,
                }),
                r#"{"$timestamp":{"t":5,"i":6}}"#,
            ),
            (
                Bson::Binary(Binary {
                    subtype: BinarySubtype::Uuid,
                    bytes: vec![1, 2],
                }),
                r#"{"$binary":{"base64":"AQI=","subType":"04"}}"#,
            ),
            (
                Bson::Decimal128("1.20".parse().unwrap()),
                r#"{"$numberDecimal":"1.20"}"#,
            ),
            (
                Bson::Array(vec![Bson::Int32(1), Bson::Array(Vec::new())]),
                r#"[{"$numberInt":"1"},[]]"#,
            ),
            (
                Bson::Document(doc! { "z": "1", "a": {} }),
                r#"{"z":"1","a":{}}"#,
            ),
            (Bson::Symbol("s".to_owned()), r#"{"$symbol":"s"}"#),
            (Bson::JavaScriptCode("x".to_owned()), r#"{"$code":"x"}"#),
        ];
        for (value, text) in values {
            let document = RawDocumentBuf::try_from(&doc! { "v": value.clone() }).unwrap();
            let mut to = Vec::new();
            put_document(&document, &mut to).unwrap();
            assert_eq!(
                String::from_utf8(to).unwrap(),
                format!("{{\"v\":{text}}}"),
                "{value:?}"
            );
        }
    }
}
