//! Each model names the functions that it models, and the page of promises the tests that defend them. They are
//! looked for in the sources, so that whoever renames or replaces one comes by the model and the page.

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

/// What stands in backquotes and is a path: `folder/file.rs`, `folder/file.rs::test`, `folder/{one,other}.rs`.
fn paths_of(text: &str) -> Vec<(String, Option<String>)> {
    let mut paths = Vec::new();
    for quoted in text.split('`').skip(1).step_by(2) {
        let (path, test) = match quoted.split_once("::") {
            Some((path, test)) => (path, Some(test.to_owned())),
            None => (quoted, None),
        };
        if !path.contains('/') || path.contains([' ', '*', '<', '-']) || path.starts_with('/') {
            continue;
        }
        match (path.find('{'), path.find('}')) {
            (Some(from), Some(to)) => {
                for choice in path[from + 1..to].split(',') {
                    let path = format!("{}{choice}{}", &path[..from], &path[to + 1..]);
                    paths.push((path, test.clone()));
                }
            }
            _ => paths.push((path.to_owned(), test)),
        }
    }
    paths
}

#[test]
fn every_test_that_the_page_of_promises_names_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).unwrap();
    let page = fs::read_to_string(root.join("docs/promises.md")).unwrap();
    let paths = paths_of(&page);
    assert!(paths.len() > 40, "{paths:?}");
    for (path, test) in paths {
        let there = root.join(&path);
        assert!(
            there.exists(),
            "docs/promises.md names {path}, which is not there"
        );
        if let Some(test) = test {
            let source = fs::read_to_string(&there).unwrap();
            assert!(
                source.contains(&format!("fn {test}(")),
                "docs/promises.md names {test} in {path}, where it is not"
            );
        }
    }
    for number in 1..=12 {
        assert!(
            page.contains(&format!("| **P{number}** ")),
            "docs/promises.md has no line for P{number}"
        );
    }
}
