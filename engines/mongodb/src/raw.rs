//! Documents as the bytes that they are: fields by name, the key of a document, forms that can be compared.

use bson::{
    RawDocument, RawDocumentBuf,
    raw::{BindRawBsonRef, CString, RawBsonRef},
};

/// The name of the field that names a document.
pub(crate) const ID: &str = "_id";

/// Adds a field whose name may be anybody's.
pub(crate) fn put(document: &mut RawDocumentBuf, name: &str, value: impl BindRawBsonRef) {
    let name = CString::try_from(name.to_owned()).expect(
        "names of fields that came in a document, or stand in this code, have no zero byte",
    );
    document.append(&name, value);
}

/// The elements of a document, each as its type, its name and the bytes of its value.
///
/// # Errors
///
/// In words, for a document that is none.
pub(crate) fn elements(
    document: &RawDocument,
) -> impl Iterator<Item = Result<(u8, &str, &[u8]), String>> {
    document.iter_elements().map(|element| {
        let element = element.map_err(|error| error.to_string())?;
        let name = element.key().as_str();
        let value = value_bytes(document, name, element.size())
            .ok_or_else(|| "a document that is none".to_owned())?;
        Ok((element.element_type() as u8, name, value))
    })
}

/// The bytes of a value that ends where `size` says, found by where its name lies.
fn value_bytes<'a>(document: &'a RawDocument, name: &'a str, size: usize) -> Option<&'a [u8]> {
    let whole = document.as_bytes();
    // The name is a part of the document's own bytes, and the value begins behind its zero byte.
    let at = (name.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)? + name.len() + 1;
    whole.get(at..at.checked_add(size)?)
}

/// What stands for a document's `_id` where only sameness counts: 16 bytes that are the same where the server's unique index
/// takes two for the same. Numbers are one whatever their type; nothing where the document has no `_id`.
pub(crate) fn id_key(document: &RawDocument) -> Result<Option<[u8; 16]>, String> {
    // It is the first element of all that a server stores but for some of its own.
    for element in elements(document) {
        let (kind, name, value) = element?;
        if name == ID {
            return Ok(Some(key_of(kind, value)));
        }
    }
    Ok(None)
}

const DOUBLE: u8 = 0x01;
const INT32: u8 = 0x10;
const INT64: u8 = 0x12;

fn key_of(kind: u8, value: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    match whole_number(kind, value) {
        Some(number) => {
            hasher.update(b"number");
            hasher.update(&number.to_le_bytes());
        }
        None => {
            hasher.update(&[kind]);
            hasher.update(value);
        }
    }
    let hash = hasher.finalize();
    std::array::from_fn(|at| hash.as_bytes()[at])
}

/// A number that is whole and fits, of any type.
fn whole_number(kind: u8, value: &[u8]) -> Option<i64> {
    match kind {
        INT32 => Some(i64::from(i32::from_le_bytes(value.try_into().ok()?))),
        INT64 => Some(i64::from_le_bytes(value.try_into().ok()?)),
        DOUBLE => {
            let number = f64::from_le_bytes(value.try_into().ok()?);
            // 2^63 is the first that no longer fits.
            (number.fract() == 0.0 && number.abs() < 9_223_372_036_854_775_808.0)
                .then_some(number as i64)
        }
        _ => None,
    }
}

/// The `_id` of a document alone, as a document.
pub(crate) fn id_of(document: &RawDocument) -> Option<RawDocumentBuf> {
    let id = document.get(ID).ok()??;
    let mut alone = RawDocumentBuf::new();
    put(&mut alone, ID, id);
    Some(alone)
}

/// A form of a document in which the order of its fields makes no difference, nor the type of a number; the order inside of
/// values does.
pub(crate) fn sorted_form(document: &RawDocument) -> Result<Vec<u8>, String> {
    let mut fields = Vec::new();
    for element in elements(document) {
        let (kind, name, value) = element?;
        let mut field = name.as_bytes().to_vec();
        field.push(0);
        match whole_number(kind, value) {
            Some(number) => {
                field.push(0);
                field.extend_from_slice(&number.to_le_bytes());
            }
            None => {
                field.push(kind);
                field.extend_from_slice(value);
            }
        }
        fields.push(field);
    }
    fields.sort_unstable();
    let mut form = Vec::new();
    for field in fields {
        form.extend_from_slice(&(field.len() as u64).to_le_bytes());
        form.extend_from_slice(&field);
    }
    Ok(form)
}

/// A copy without some fields.
pub(crate) fn without(document: &RawDocument, names: &[&str]) -> RawDocumentBuf {
    let mut copy = RawDocumentBuf::new();
    for (name, value) in document.iter().flatten() {
        if !names.contains(&name.as_str()) {
            put(&mut copy, name.as_str(), value);
        }
    }
    copy
}

/// A number of any type, as servers give counts.
pub(crate) fn number(document: &RawDocument, name: &str) -> Option<u64> {
    match document.get(name).ok()?? {
        RawBsonRef::Int32(number) => u64::try_from(number).ok(),
        RawBsonRef::Int64(number) => u64::try_from(number).ok(),
        RawBsonRef::Double(number) if number >= 0.0 => Some(number as u64),
        _ => None,
    }
}

/// Cuts documents out of bytes that come in pieces.
#[derive(Debug, Default)]
pub(crate) struct Cutter {
    held: Vec<u8>,
    at: usize,
}

/// The longest document, in bytes: what a server takes, and as much again for what Fettler puts around it.
const LONGEST_DOCUMENT: usize = 32 * 1024 * 1024;

impl Cutter {
    /// Takes the next piece.
    pub(crate) fn feed(&mut self, piece: &[u8]) {
        self.held.drain(..self.at);
        self.at = 0;
        self.held.extend_from_slice(piece);
    }

    /// The next document that is whole.
    ///
    /// # Errors
    ///
    /// In words, for bytes that are none.
    pub(crate) fn next(&mut self) -> Result<Option<&RawDocument>, String> {
        let rest = &self.held[self.at..];
        let Some(head) = rest.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = usize::try_from(i32::from_le_bytes(*head)).unwrap_or(0);
        if !(5..=LONGEST_DOCUMENT).contains(&length) {
            return Err(format!("a document of {length} bytes"));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let from = self.at;
        self.at += length;
        RawDocument::from_bytes(&self.held[from..from + length])
            .map(Some)
            .map_err(|error| error.to_string())
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use bson::{raw::RawBson, rawdoc};

    use super::*;

    fn key(id: impl Into<RawBson>) -> [u8; 16] {
        let mut document = RawDocumentBuf::new();
        put(&mut document, "_id", id.into());
        id_key(&document).unwrap().unwrap()
    }

    #[test]
    fn ids_are_the_same_where_the_server_takes_them_for_the_same() {
        assert_eq!(key(RawBson::Int32(7)), key(RawBson::Double(7.0)));
        assert_eq!(key(RawBson::Int32(7)), key(RawBson::Int64(7)));
        assert_eq!(key(RawBson::Double(-0.0)), key(RawBson::Int32(0)));
        assert_ne!(key(RawBson::Int32(7)), key(RawBson::String("7".into())));
        assert_ne!(key(RawBson::Double(7.5)), key(RawBson::Int32(7)));
        assert_ne!(key(RawBson::Null), key(RawBson::String(String::new())));
        assert_eq!(id_key(&rawdoc! { "a": 1 }).unwrap(), None);
    }

    #[test]
    fn elements_are_told_with_the_bytes_of_their_values() {
        let document = rawdoc! { "a": 1, "b": "x", "c": { "d": true } };
        let found: Vec<(u8, String, Vec<u8>)> = elements(&document)
            .map(|one| {
                one.map(|(kind, name, value)| (kind, name.to_owned(), value.to_vec()))
                    .unwrap()
            })
            .collect();
        assert_eq!(found[0], (INT32, "a".to_owned(), vec![1, 0, 0, 0]));
        assert_eq!(found[1], (2, "b".to_owned(), vec![2, 0, 0, 0, b'x', 0]));
        assert_eq!(found[2].2, rawdoc! { "d": true }.into_bytes());
    }

    #[test]
    fn the_sorted_form_forgets_the_order_of_fields_and_nothing_else() {
        let form = |document: RawDocumentBuf| sorted_form(&document).unwrap();
        let one = form(rawdoc! { "a": 1, "b": { "x": 1, "y": 2 } });
        assert_eq!(one, form(rawdoc! { "b": { "x": 1, "y": 2 }, "a": 1.0 }));
        assert_ne!(one, form(rawdoc! { "a": 1, "b": { "y": 2, "x": 1 } }));
        assert_ne!(one, form(rawdoc! { "a": 2, "b": { "x": 1, "y": 2 } }));
    }

    #[test]
    fn documents_are_cut_wherever_pieces_end() {
        let all: Vec<u8> = (0..5)
            .flat_map(|n| rawdoc! { "_id": n, "text": "x".repeat(n as usize * 7) }.into_bytes())
            .collect();
        for size in [1, 3, 10, 1000] {
            let (mut cutter, mut found) = (Cutter::default(), 0);
            for piece in all.chunks(size) {
                cutter.feed(piece);
                while let Some(document) = cutter.next().unwrap() {
                    assert_eq!(document.get_i32("_id").unwrap(), found);
                    found += 1;
                }
            }
            assert_eq!((found, cutter.is_empty()), (5, true), "in pieces of {size}");
        }
        let mut cutter = Cutter::default();
        cutter.feed(&[1, 0, 0, 0, 0]);
        assert!(cutter.next().is_err());
    }
}
