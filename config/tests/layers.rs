//! What users may rely on when they write settings: layers, origins, and every mistake at its place.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs, path::Path};

use fettler_config::{ConfigError, KeyChoice, Loaded, SandboxKind, Source, Sources, load};
use fettler_model::SecretReference;
use proptest::prelude::*;

fn sources(folder: &Path, variables: &[(&str, &str)]) -> Sources {
    let mut all = BTreeMap::from([("HOME".to_owned(), "/home/ann".to_owned())]);
    for (name, value) in variables {
        all.insert((*name).to_owned(), (*value).to_owned());
    }
    Sources {
        current_folder: folder.to_path_buf(),
        file: None,
        variables: all,
        flags: Vec::new(),
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn origin(loaded: &Loaded, field: &str) -> String {
    loaded
        .shown
        .iter()
        .find(|shown| shown.field == field)
        .unwrap_or_else(|| panic!("{field} is not shown"))
        .origin
        .clone()
}

fn mistakes(folder: &Path, sources: &Sources) -> Vec<String> {
    match load(sources) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Mistakes(mistakes)) => mistakes
            .iter()
            .map(|mistake| {
                mistake
                    .to_string()
                    .replace(&format!("{}/", folder.display()), "")
            })
            .collect(),
        Err(other) => vec![other.to_string()],
    }
}

#[test]
fn nothing_has_to_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let loaded = load(&sources(folder.path(), &[])).unwrap();
    let settings = loaded.settings;
    assert_eq!(settings.folder, Path::new("/home/ann/.local/share/fettler"));
    assert_eq!(
        settings.ledger_url(),
        "sqlite:/home/ann/.local/share/fettler/ledger.db"
    );
    assert_eq!(
        settings.key(),
        KeyChoice::File("/home/ann/.local/share/fettler/keys/default.key".into())
    );
    assert!(loaded.files.is_empty());
}

#[test]
fn each_layer_overrules_the_one_before_and_the_origin_tells_which_did() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    write(
        path,
        "fettler.toml",
        "tenant = \"acme\"\n[worker]\nlong_slots = 3\nshort_slots = 3\nparallel = 3\n\n[repository]\nplace = \"base\"\n",
    );
    write(
        path,
        "config/environments/staging.yaml",
        "worker:\n  short_slots: 4\n  parallel: 4\nrepository:\n  place: staging\n",
    );
    write(
        path,
        "config/tenants/acme.toml",
        "[repository]\nplace = \"s3://acme/x\"\n",
    );
    let sources = sources(
        path,
        &[
            ("FETTLER_ENV", "staging"),
            ("FETTLER_WORKER__PARALLEL", "5"),
        ],
    )
    .flag("--folder", "folder", Some("data"));
    let loaded = load(&sources).unwrap();
    let worker = &loaded.settings.worker;
    assert_eq!(
        (worker.long_slots, worker.short_slots, worker.parallel),
        (3, 4, 5)
    );
    assert_eq!(loaded.settings.repository_place(), "s3://acme/x");
    assert_eq!(loaded.settings.folder, path.join("data"));
    assert_eq!(loaded.files.len(), 3);
    let at = |name: &str| format!("{}/{name}", path.display());
    assert_eq!(
        origin(&loaded, "worker.long_slots"),
        at("fettler.toml:3:14")
    );
    assert_eq!(
        origin(&loaded, "worker.short_slots"),
        at("config/environments/staging.yaml:2:16")
    );
    assert_eq!(
        origin(&loaded, "worker.parallel"),
        "variable FETTLER_WORKER__PARALLEL"
    );
    assert_eq!(
        origin(&loaded, "repository.place"),
        at("config/tenants/acme.toml:2:9")
    );
    assert_eq!(origin(&loaded, "folder"), "flag --folder");
    assert_eq!(origin(&loaded, "worker.lease_seconds"), "default");
}

#[test]
fn every_mistake_is_named_with_file_line_column_and_field() {
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        "fettler.toml",
        "\
tenant = \"Acme Ltd\"
folder = 7

[worker]
lease_secnds = 30
long_slots = 0
short_slots = \"many\"
heartbeat_seconds = 20

[wroker]
parallel = 2

[sandbox]
kind = \"servr\"
url = \"postgres://ann:hunter2@host/x\"
password = \"hunter2\"

[retention.keep]
dialy = 3
tags = [\"a\", 4]
",
    );
    insta::assert_snapshot!(mistakes(folder.path(), &sources(folder.path(), &[])).join("\n"));
}

#[test]
fn mistakes_in_yaml_have_places_too() {
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        "fettler.yml",
        "worker:\n  long_slots: [1]\n  lease: 3\nlog: loud\nscheduler:\n",
    );
    insta::assert_snapshot!(mistakes(folder.path(), &sources(folder.path(), &[])).join("\n"));
}

#[test]
fn a_file_that_is_neither_is_shown_at_the_place_where_it_breaks() {
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        "a.toml",
        "[worker]\nlong_slots = = 2\nparallel = \n",
    );
    write(folder.path(), "b.yaml", "worker:\n  a: b: c\n");
    for (file, place) in [("a.toml", "a.toml:2:"), ("b.yaml", "b.yaml:2:")] {
        let mut sources = sources(folder.path(), &[]);
        sources.file = Some(file.into());
        let told = mistakes(folder.path(), &sources);
        assert!(told[0].starts_with(place), "{told:?}");
    }
}

#[test]
fn variables_are_checked_like_files_and_foreign_ones_are_let_be() {
    let folder = tempfile::tempdir().unwrap();
    let sources = sources(
        folder.path(),
        &[
            ("FETTLER_WORKER__LONG_SLOTS", "many"),
            ("FETTLER_WORKER__LNG_SLOTS", "2"),
            ("FETTLER_WORKER_PARALLEL", "2"),
            ("FETTLER_REPOSITRY", "/x"),
            ("FETTLER_PORT", "tcp://10.0.0.1:80"),
            ("FETTLER_SERVICE_HOST", "10.0.0.1"),
            ("FETTLER_ENV", "nowhere"),
            ("FETTLER_SCHEDULER__ENABLED", "off"),
        ],
    );
    insta::assert_snapshot!(mistakes(folder.path(), &sources).join("\n"));
}

#[test]
fn fields_are_checked_against_each_other() {
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        "fettler.toml",
        "[worker]\nlease_seconds = 10\n[sandbox]\nkind = \"server\"\n[keys]\nfile = \"k\"\npassphrase = \"env:P\"\n",
    );
    insta::assert_snapshot!(mistakes(folder.path(), &sources(folder.path(), &[])).join("\n"));
}

#[test]
fn a_passphrase_of_the_environment_takes_the_place_of_a_key_file_of_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "fettler.toml", "[keys]\nfile = \"k\"\n");
    let loaded = load(&sources(
        folder.path(),
        &[("FETTLER_PASSPHRASE", "hunter2")],
    ))
    .unwrap();
    assert_eq!(
        loaded.settings.key(),
        KeyChoice::Passphrase(SecretReference::Environment("FETTLER_PASSPHRASE".into()))
    );
    assert!(!format!("{:?}", loaded.shown).contains("hunter2"));
    let sources = sources(folder.path(), &[("FETTLER_PASSPHRASE", "hunter2")]).flag(
        "--key-file",
        "keys.file",
        Some("/other"),
    );
    assert_eq!(
        load(&sources).unwrap().settings.key(),
        KeyChoice::File("/other".into())
    );
}

#[test]
fn p9_the_password_of_the_ledger_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let loaded = load(&sources(
        folder.path(),
        &[("FETTLER_LEDGER", "postgres://fettler:hunter2@db/ledger")],
    ))
    .unwrap();
    let shown = serde_json::to_string(&loaded.shown).unwrap();
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(
        shown.contains("postgres://fettler:***@db/ledger"),
        "{shown}"
    );
    assert!(loaded.settings.ledger_url().contains("hunter2"));
}

#[test]
fn p6_a_tenants_overlay_cannot_touch_what_is_shared() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "fettler.toml", "tenant = \"acme\"\n");
    write(
        folder.path(),
        "config/tenants/acme.toml",
        "[worker]\nlong_slots = 9\n",
    );
    let told = mistakes(folder.path(), &sources(folder.path(), &[]));
    assert_eq!(told.len(), 1);
    assert!(
        told[0].starts_with("config/tenants/acme.toml:1:2: worker:"),
        "{told:?}"
    );
}

#[test]
fn paths_start_at_the_folder_of_the_file_that_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("there");
    write(
        &there,
        "fettler.toml",
        "folder = \"~/data\"\n[repository]\nplace = \"backups\"\n[keys]\npassphrase = \"file:p\"\n",
    );
    let mut sources = sources(folder.path(), &[]);
    sources.file = Some("there/fettler.toml".into());
    let settings = load(&sources).unwrap().settings;
    assert_eq!(settings.folder, Path::new("/home/ann/data"));
    assert_eq!(
        settings.repository_place(),
        there.join("backups").to_string_lossy()
    );
    assert_eq!(
        settings.key(),
        KeyChoice::Passphrase(SecretReference::File(there.join("p")))
    );
}

#[test]
fn p6_what_a_tenant_may_name_is_listed_in_its_overlay_and_networks_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        "fettler.toml",
        "[deny]\nnetworks = [\"10.1.0.0/16\"]\n",
    );
    let overlay = "[allow]\nreferences = [\"env:ACME_*\"]\nnetworks = [\"10.1.2.3\", \"::1\"]\n";
    write(folder.path(), "config/tenants/acme.toml", overlay);
    let plain = load(&sources(folder.path(), &[])).unwrap().settings;
    assert_eq!(plain.allow, Default::default());
    assert!(!plain.is_fleet() && !plain.denies_loopback());
    let acme = [
        ("FETTLER_TENANT", "acme"),
        ("FETTLER_QUEUE__URL", "redis://queue/0"),
    ];
    let acme = load(&sources(folder.path(), &acme)).unwrap().settings;
    assert_eq!(acme.allow.references, ["env:ACME_*"]);
    assert_eq!(acme.allow.networks.len(), 2);
    assert_eq!(acme.deny.networks, plain.deny.networks);
    assert!(
        acme.denies_loopback(),
        "what is one machine's own is another's neighbour"
    );

    write(
        folder.path(),
        "fettler.toml",
        "[deny]\nnetworks = [\"10.1.0.0/64\"]\n[api]\ntls_key = \"k.pem\"\n",
    );
    let mistakes = mistakes(folder.path(), &sources(folder.path(), &[]));
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert!(
        mistakes[0].contains("deny.networks") && mistakes[0].contains("10.1.0.0/64"),
        "{mistakes:?}"
    );
    assert!(mistakes[1].contains("api.tls_certificate"), "{mistakes:?}");
}

#[test]
fn the_example_files_load_and_name_every_field() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let example = fs::read_to_string(here.join("fettler.example.toml")).unwrap();
    write(folder.path(), "fettler.toml", &example);
    for sort in ["environments", "tenants"] {
        for file in fs::read_dir(here.join(sort)).unwrap() {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            let text = fs::read_to_string(file.path()).unwrap();
            write(folder.path(), &format!("config/{sort}/{name}"), &text);
            let stem = name.split('.').next().unwrap();
            let variable = if sort == "tenants" {
                "FETTLER_TENANT"
            } else {
                "FETTLER_ENV"
            };
            let loaded = load(&sources(folder.path(), &[(variable, stem)]))
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(loaded.files.len(), 2, "{name}");
        }
    }
    let loaded = load(&sources(folder.path(), &[])).unwrap();
    let defaults = load(&sources(Path::new("/"), &[])).unwrap();
    for (example_field, default) in loaded.shown.iter().zip(&defaults.shown) {
        assert_eq!(
            (&example_field.field, &example_field.value),
            (&default.field, &default.value),
            "the example shows the defaults"
        );
        let name = default.field.rsplit('.').next().unwrap();
        assert!(example.contains(&format!("{name} = ")), "{name} is missing");
        assert!(!default.meaning.is_empty(), "{name} has no meaning");
    }
    let acme = load(&sources(folder.path(), &[("FETTLER_TENANT", "acme")])).unwrap();
    assert_eq!(acme.settings.sandbox.kind, SandboxKind::Server);

    write(
        folder.path(),
        "yaml/fettler.yaml",
        &fs::read_to_string(here.join("fettler.example.yaml")).unwrap(),
    );
    load(&sources(&folder.path().join("yaml"), &[])).unwrap();
}

/// A file of settings with some fields spelt wrong; and how many are.
fn file_with_slips() -> impl Strategy<Value = (String, Vec<(usize, String)>)> {
    let fields = [
        ("worker", "long_slots = 2"),
        ("worker", "lease_seconds = 40"),
        ("worker", "parallel = 3"),
        ("log", "filter = \"info\""),
        ("retention", "collection_grace_seconds = 500"),
        ("scheduler", "enabled = true"),
        ("repository", "place = \"/x\""),
    ];
    prop::collection::vec(any::<bool>(), fields.len()).prop_map(move |slips| {
        let mut text = String::new();
        let mut line = 0;
        let mut wrong = Vec::new();
        let mut section = "";
        for ((its_section, field), slip) in fields.iter().zip(slips) {
            if *its_section != section {
                section = its_section;
                text.push_str(&format!("\n[{section}]\n"));
                line += 2;
            }
            line += 1;
            if slip {
                let name = field.split(' ').next().unwrap();
                text.push_str(&format!("  x{field}\n"));
                wrong.push((line, format!("{section}.x{name}")));
            } else {
                text.push_str(&format!("{field}\n"));
            }
        }
        (text, wrong)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_slip_is_found_at_its_line((text, wrong) in file_with_slips()) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "fettler.toml", &text);
        let found: Vec<(usize, String)> = match load(&sources(folder.path(), &[])) {
            Ok(_) => Vec::new(),
            Err(ConfigError::Mistakes(mistakes)) => mistakes
                .into_iter()
                .map(|mistake| {
                    assert!(matches!(&*mistake.origin.source, Source::File(_)));
                    assert_eq!(mistake.origin.column, 3);
                    assert!(mistake.suggestion.is_some());
                    (mistake.origin.line, mistake.field)
                })
                .collect(),
            Err(other) => panic!("{other}"),
        };
        let mut found = found;
        found.sort();
        prop_assert_eq!(found, wrong);
    }

    #[test]
    fn no_text_whatever_makes_the_reader_panic(text in "\\PC{0,80}", yaml in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let name = if yaml { "fettler.yaml" } else { "fettler.toml" };
        write(folder.path(), name, &text);
        // Whether it is right does not matter here.
        let _either = load(&sources(folder.path(), &[]));
    }
}
