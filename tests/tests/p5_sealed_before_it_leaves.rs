//! P5: the store sees neither plaintext nor names. Every stored object, and the folder of the ledger's
//! repository, is searched for what is in the source; and every stored object is damaged in turn.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use fettler_tests::{Installation, Size, sqlite};
use rstest::rstest;

fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[rstest]
fn no_stored_object_holds_a_value_a_table_name_or_a_column_name(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let fettler = Installation::of_size(size);
    let repository = fettler.folder().join("repository");
    let source = fettler.path("shop.sqlite");
    sqlite::make_bank(&source, 1 << 20);
    fettler.run(&["backup", source.to_str().unwrap()]).done();
    let stored = objects(&repository);
    assert!(stored.len() >= 4, "{stored:?}");
    for object in stored {
        let bytes = fs::read(&object).unwrap();
        let name = object.to_string_lossy().into_owned();
        for needle in [
            "Ålesund customer",
            "entry number",
            "account",
            "balance",
            "entry_by_account",
            "shop",
        ] {
            assert!(
                !holds(&bytes, needle.as_bytes()),
                "{needle:?} stands in {name}"
            );
            let inside = object.strip_prefix(&repository).unwrap().to_string_lossy();
            assert!(
                !inside.contains(needle),
                "{needle:?} is told by the name {inside}"
            );
        }
    }
}

#[rstest]
fn verify_names_the_object_in_which_a_byte_was_flipped_and_exits_with_3(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let fettler = Installation::of_size(size);
    let repository = fettler.folder().join("repository");
    let source = fettler.path("shop.sqlite");
    sqlite::make_bank(&source, 3 << 20);
    fettler.run(&["backup", source.to_str().unwrap()]).done();
    let largest = objects(&repository)
        .into_iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let sound = fs::read(&largest).unwrap();
    for at in [0, sound.len() / 2, sound.len() - 1] {
        let mut damaged = sound.clone();
        damaged[at] ^= 0x10;
        fs::write(&largest, &damaged).unwrap();
        let answer = fettler.run(&["verify", "latest", "--json"]);
        assert_eq!(answer.code, 3, "a flipped byte at {at}: {answer:#?}");
        let object = largest.file_name().unwrap().to_string_lossy();
        let document = answer.json();
        assert_eq!(document["ok"], false);
        assert!(
            document["damaged"].to_string().contains(&*object),
            "{object} is not named: {document:#}"
        );
        fs::write(&largest, &sound).unwrap();
    }

    // Damage that stays: the next backup stores anew what the damaged pack held.
    let mut damaged = sound.clone();
    damaged[sound.len() / 2] ^= 0x10;
    fs::write(&largest, &damaged).unwrap();
    assert_eq!(fettler.run(&["verify", "latest"]).code, 3);
    fettler.run(&["backup", source.to_str().unwrap()]).done();
    fettler.run(&["verify", "latest"]).done();
    fettler.run(&["prove", "latest"]).done();
}
