//! The compose file and the image's recipe, as far as they can be held to what they name without running them: services, the
//! commands and settings of this very binary, files of this repository.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use fettler_tests::Installation;
use saphyr::{LoadableYamlNode, Yaml};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

fn words(node: &Yaml<'_>) -> Vec<String> {
    node.as_sequence()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap().to_owned())
        .collect()
}

fn names<'y>(node: &'y Yaml<'_>) -> Vec<&'y str> {
    node.as_mapping()
        .unwrap()
        .keys()
        .map(|key| key.as_str().unwrap())
        .collect()
}

#[test]
fn every_role_of_the_compose_file_is_a_command_of_this_binary() {
    let text = read("docker-compose.yml");
    let documents = Yaml::load_from_str(&text).unwrap();
    let services = &documents[0]["services"];
    let fettler = Installation::new();
    for role in ["api", "scheduler", "worker"] {
        let mut command = words(&services[role]["command"]);
        assert_eq!(command[0], role);
        command.push("--help".to_owned());
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        fettler.run(&command).done();
    }
    let known = names(services);
    for wanted in names(&documents[0]["x-fettler"]["depends_on"]) {
        assert!(known.contains(&wanted), "{wanted}");
    }
}

#[test]
fn every_setting_of_the_compose_file_is_one_of_this_binary() {
    let text = read("docker-compose.yml");
    let documents = Yaml::load_from_str(&text).unwrap();
    let environment = &documents[0]["x-fettler"]["environment"];
    let mut fettler = Installation::new();
    let mut seen = 0;
    for name in names(environment) {
        let value = environment[name].as_str().unwrap();
        // What compose takes from its own environment is a word here.
        let mut plain = String::new();
        let mut rest = value;
        while let Some((before, after)) = rest.split_once("${") {
            plain.push_str(before);
            plain.push_str("word");
            rest = after.split_once('}').unwrap().1;
        }
        plain.push_str(rest);
        seen += usize::from(name.starts_with("FETTLER_"));
        fettler = fettler.with(name, plain);
    }
    assert!(seen >= 4, "{environment:?}");
    fettler.run(&["config", "check"]).done();
    let shown = fettler.json(&["config", "show"]).to_string();
    assert!(shown.contains("s3://backups/fleet"), "{shown}");
}

#[test]
fn what_the_image_copies_is_there_and_it_runs_as_nobody_special() {
    let text = read("Dockerfile");
    for line in text.lines().filter(|line| line.starts_with("COPY config")) {
        let source = line.split(' ').nth(1).unwrap();
        assert!(root().join(source).exists(), "{source}");
    }
    assert!(text.contains("USER 10001:10001"), "{text}");
}
