//! Lists the files of the checks, so that a new check is a new file and nothing else.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo says where it is"));
    let folder = root.join("checks");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files = Vec::new();
    files_below(&folder, &mut files);
    files.sort();
    let mut list = String::from("&[\n");
    for file in files {
        println!("cargo::rerun-if-changed={}", file.display());
        let name = file.strip_prefix(&root).expect("it lies below the folder");
        writeln!(
            list,
            "({:?}, include_str!({:?})),",
            name.display().to_string(),
            file
        )
        .expect("writing to a string does not fail");
    }
    list.push(']');
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo says where to write"));
    fs::write(out.join("checks.rs"), list).expect("the list can be written");
}

/// A folder an engine, and in it one for its audit.
fn files_below(folder: &Path, files: &mut Vec<PathBuf>) {
    println!("cargo::rerun-if-changed={}", folder.display());
    for entry in fs::read_dir(folder).expect("the folder of checks can be read") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            files_below(&path, files);
        } else {
            files.push(path);
        }
    }
}
