//! What goes wrong around Fettler, through the binary: each a clear error that says what to do, no panic,
//! and nothing half-listed. What is asked for in wrong words is the command line's own suite's matter.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, process::Command, time::Duration};

use fettler_tests::{
    Installation, Size,
    servers::{
        MinioServer, PgMajor, PostgresOptions, PostgresServer, S3Action, S3Proxy, wait_until,
    },
    sqlite,
};
use rstest::rstest;
use serde_json::{Value, json};

/// The error of a command that must fail with this code, as its document tells it.
#[track_caller]
fn error_of(fettler: &Installation, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.push("--json");
    let answer = fettler.run(&all);
    assert_eq!(answer.code, 1, "{answer:#?}");
    assert!(!answer.stderr.contains("panicked"), "{answer:#?}");
    let error = answer.json()["error"].clone();
    let remedy = error["remedy"].as_str().unwrap_or_default();
    assert!(!remedy.is_empty(), "nothing says what to do: {error:#}");
    error
}

#[track_caller]
fn assert_tells(error: &Value, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not told: {error:#}");
    }
}

fn no_backups(fettler: &Installation) {
    assert_eq!(fettler.json(&["backups"])["backups"], json!([]));
}

#[rstest]
fn a_wrong_password_a_role_without_rights_and_a_missing_pg_dump_are_told_apart(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("guarded").unwrap();
    // Roles are the server's, and other tests work on it too.
    let guest = format!("guest_of_{}", source.name());
    source
        .psql(&format!(
            "CREATE TABLE t (n int); CREATE ROLE {guest} LOGIN PASSWORD 'g'"
        ))
        .unwrap();
    let fettler =
        Installation::of_size(size).with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());

    let error = error_of(
        &fettler,
        &["backup", &source.url_as(server.user(), "not-it")],
    );
    assert_tells(&error, &["password"]);
    assert!(!error.to_string().contains("not-it"), "P9: {error:#}");

    let error = error_of(&fettler, &["backup", &source.url_as(&guest, "g")]);
    assert_tells(&error, &["pg_read_all_data"]);

    let empty = fettler.path("no-programs");
    fs::create_dir(&empty).unwrap();
    let without = Installation::of_size(size).with("FETTLER_PG_BIN", empty.to_str().unwrap());
    let error = error_of(&without, &["backup", &source.url()]);
    assert_tells(&error, &["pg_dump", "15"]);

    no_backups(&fettler);
    no_backups(&without);
}

#[rstest]
fn a_pg_dump_that_is_older_than_the_server_is_named_with_the_one_that_is_needed(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let server = PostgresServer::shared(PgMajor::V18);
    let source = server.create_database("newer").unwrap();
    let old = PgMajor::V15.bin_dir().unwrap();
    let fettler = Installation::of_size(size).with("FETTLER_PG_BIN", old.to_str().unwrap());
    let error = error_of(&fettler, &["backup", &source.url()]);
    assert_tells(&error, &["pg_dump", "15", "18"]);
    no_backups(&fettler);
}

#[rstest]
fn p7_a_database_that_is_not_empty_is_left_alone(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("source").unwrap();
    source.psql("CREATE TABLE t AS SELECT 1 AS n").unwrap();
    let full = server.create_database("full").unwrap();
    full.psql("CREATE TABLE precious AS SELECT 42 AS n")
        .unwrap();
    let fettler =
        Installation::of_size(size).with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());
    fettler.json(&["backup", &source.url()]);
    let error = error_of(&fettler, &["restore", "latest", "--to", &full.url()]);
    assert_tells(&error, &["empty"]);
    assert_eq!(full.psql("SELECT n FROM precious").unwrap(), "42");

    let file = fettler.path("precious.sqlite");
    sqlite::make_bank(&file, 100_000);
    let before = fs::read(&file).unwrap();
    fettler.json(&["backup", file.to_str().unwrap(), "--name", "bank"]);
    let target = fettler.path("target.sqlite");
    fs::copy(&file, &target).unwrap();
    error_of(
        &fettler,
        &["restore", "latest", "--to", target.to_str().unwrap()],
    );
    assert_eq!(fs::read(&target).unwrap(), before);
}

#[rstest]
fn a_store_that_refuses_and_one_that_ignores_create_only_are_told_before_anything_is_read(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let minio = MinioServer::start().unwrap();
    minio.create_bucket("backups").unwrap();
    let proxy = S3Proxy::start(minio.port()).unwrap();
    let mut fettler = Installation::of_size(size).with("FETTLER_REPOSITORY", "s3://backups/here");
    for (name, value) in minio.env_via(&proxy.url()) {
        fettler = fettler.with(name, value);
    }
    let source = fettler.path("bank.sqlite");
    sqlite::make_bank(&source, 1 << 20);
    let source = source.to_str().unwrap();

    proxy.decide(|request| match request.method.as_str() {
        "PUT" => S3Action::Answer(403),
        _ => S3Action::Forward,
    });
    assert_tells(&error_of(&fettler, &["backup", source]), &["backups"]);

    // Rule 23: it says yes to whatever is to be created only where it is not.
    proxy.decide(|request| match request.method.as_str() {
        "PUT" if request.key.contains("trials/") => S3Action::Answer(200),
        _ => S3Action::Forward,
    });
    assert_tells(&error_of(&fettler, &["backup", source]), &["only"]);

    proxy.forward_all();
    assert_eq!(minio_objects(&minio, "packs"), 0);
    fettler.json(&["backup", source]);
    assert_eq!(fettler.json(&["prove", "latest"])["proven"], true);
}

fn minio_objects(minio: &MinioServer, folder: &str) -> usize {
    let found = Command::new("find")
        .arg(minio.data_dir())
        .args(["-path", &format!("*/{folder}/*"), "-name", "xl.meta"])
        .output()
        .unwrap();
    String::from_utf8(found.stdout).unwrap().lines().count()
}

#[rstest]
fn a_corrupt_manifest_is_named_and_the_other_backups_stay_usable(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let fettler = Installation::of_size(size);
    let repository = fettler.path("repository");
    let fettler = fettler.with("FETTLER_REPOSITORY", repository.to_str().unwrap());
    let source = fettler.path("bank.sqlite");
    sqlite::make_bank(&source, 1 << 20);
    let source = source.to_str().unwrap();
    let first = fettler.json(&["backup", source]);
    let manifests = |of: &Path| -> Vec<_> {
        let found = Command::new("find")
            .arg(of)
            .args(["-path", "*/manifests/*", "-type", "f"])
            .output()
            .unwrap();
        String::from_utf8(found.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    };
    let before = manifests(&repository);
    let second = fettler.json(&["backup", source]);
    let of_second = manifests(&repository)
        .into_iter()
        .find(|path| !before.contains(path))
        .unwrap();
    let mut bytes = fs::read(&of_second).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&of_second, bytes).unwrap();

    let name = Path::new(&of_second).file_name().unwrap().to_str().unwrap();
    let checked = fettler.run(&["check", "--json"]);
    assert_eq!(checked.code, 3, "{checked:#?}");
    assert!(checked.stdout.contains(name), "{checked:#?}");
    let verified = fettler.run(&["verify", second["backup"].as_str().unwrap(), "--json"]);
    assert_eq!(verified.code, 3, "{verified:#?}");
    assert!(verified.stdout.contains(name), "{verified:#?}");
    assert_eq!(
        fettler.json(&["verify", first["backup"].as_str().unwrap()])["ok"],
        true
    );
    // The next one takes over from what is sound.
    let third = fettler.json(&["backup", source]);
    assert_eq!(third["parent"], first["backup"]);
    assert_eq!(fettler.json(&["prove", "latest"])["proven"], true);
}

/// A file system of this size at a folder, for the commands in `script` alone.
fn on_a_small_disk(
    fettler: &Installation,
    folder: &Path,
    size: &str,
    script: &str,
) -> std::process::Output {
    fs::create_dir_all(folder).unwrap();
    // Root of a namespace of its own may mount there, whoever it is outside.
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--map-root-user", "sh", "-c"])
        .arg(format!(
            "mount -t tmpfs -o size={size} none \"$1\" && {script}"
        ))
        .arg("sh")
        .arg(folder)
        .arg(fettler.binary())
        .env("FETTLER_FOLDER", folder.join("fettler"))
        .env("NO_COLOR", "1");
    command.output().unwrap()
}

#[test]
fn a_full_disk_is_told_and_leaves_no_backup_listed() {
    let fettler = Installation::new();
    let source = fettler.path("bank.sqlite");
    sqlite::make_bank(&source, 48 << 20);
    let folder = fettler.path("small");
    let output = on_a_small_disk(
        &fettler,
        &folder,
        "24m",
        &format!(
            "{{ \"$2\" backup {source} --json; echo \"code $?\"; \"$2\" backups --json; echo \"code $?\"; }}",
            source = source.display()
        ),
    );
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
    let (backup, rest) = told
        .split_once("code 1\n")
        .unwrap_or_else(|| panic!("{told}\n{stderr}"));
    let error: Value =
        serde_json::from_str(backup).unwrap_or_else(|error| panic!("{error}: {told}\n{stderr}"));
    assert_tells(&error["error"], &["space"]);
    let (listed, _) = rest
        .split_once("code 0\n")
        .unwrap_or_else(|| panic!("{told}\n{stderr}"));
    let listed: Value = serde_json::from_str(listed).unwrap();
    assert_eq!(listed["backups"], json!([]), "nothing is half-listed");
}

#[test]
fn a_restore_onto_a_disk_that_is_too_small_is_refused_before_it_begins() {
    let fettler = Installation::new();
    let source = fettler.path("bank.sqlite");
    sqlite::make_bank(&source, 32 << 20);
    let place = fettler.path("repository");
    fettler.json(&[
        "backup",
        source.to_str().unwrap(),
        "--repository",
        place.to_str().unwrap(),
        "--key-file",
        fettler.path("key").to_str().unwrap(),
    ]);
    let folder = fettler.path("small");
    let output = on_a_small_disk(
        &fettler,
        &folder,
        "16m",
        &format!(
            "\"$2\" restore latest --to \"$1/copy.sqlite\" --repository {} --key-file {} --json",
            place.display(),
            fettler.path("key").display()
        ),
    );
    assert_eq!(output.status.code(), Some(1), "{output:#?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_tells(&document["error"], &["space"]);
}

#[rstest]
fn a_server_that_goes_away_in_the_middle_is_waited_for(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let mut server = PostgresServer::start(PgMajor::V15, PostgresOptions::new()).unwrap();
    let source = server.create_database("going").unwrap();
    source
        .psql("CREATE TABLE t AS SELECT n, repeat(md5(n::text), 20) AS filler FROM generate_series(1, 50000) n")
        .unwrap();
    let url = source.url();
    let fettler =
        Installation::of_size(size).with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());
    let mut running = fettler.start(&["backup", &url, "--max-rate", "4MB"]);
    let the_job = || fettler.json(&["jobs", "--all"])["jobs"][0].clone();
    wait_until("rows are read", Duration::from_secs(60), || {
        the_job()["state"] == "running"
    })
    .unwrap_or_else(|error| panic!("{error}: {}", running.log()));
    server.kill_9().unwrap();
    wait_until("the job waits", Duration::from_secs(60), || {
        the_job()["state"] == "queued"
    })
    .unwrap_or_else(|error| panic!("{error}: {}", running.log()));
    assert!(
        the_job().to_string().contains("retry_at"),
        "P12: {:#}",
        the_job()
    );
    no_backups(&fettler);
    server.start_again().unwrap();
    assert_eq!(
        running.wait(Duration::from_secs(120)),
        0,
        "{}",
        running.log()
    );
    assert_eq!(fettler.json(&["prove", "latest"])["proven"], true);
}
