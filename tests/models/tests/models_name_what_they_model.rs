//! Each model names the functions that it models. They are looked for in the sources, so that whoever renames or
//! replaces one comes by the model.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "in a test, a panic is the report"
)]

use std::{fs, path::Path};

#[test]
fn every_model_names_functions_that_exist() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).unwrap();
    for model in ["claim", "lease", "rescue", "tick", "collection", "replay"] {
        let text = fs::read_to_string(here.join("src").join(format!("{model}.rs"))).unwrap();
        let mut named = 0;
        for line in text.lines().filter_map(|line| line.strip_prefix("//! - `")) {
            let (path, functions) = line.split_once("`: ").unwrap();
            let source = fs::read_to_string(root.join(path))
                .unwrap_or_else(|error| panic!("{model} models {path}: {error}"));
            for function in functions.split(", ") {
                let function = function.trim_matches('`');
                let there = [format!("fn {function}("), format!("fn {function}<")];
                assert!(
                    there.iter().any(|there| source.contains(there)),
                    "{model} models {function} in {path}, where it is not"
                );
                named += 1;
            }
        }
        assert!(named >= 3, "{model} names what it models");
    }
}
