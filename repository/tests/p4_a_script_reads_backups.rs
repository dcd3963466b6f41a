//! `tools/read_backup.py` reads a backup with none of this crate's code, by what
//! `docs/repository-format.md` says.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    path::Path,
    process::{Command, Output},
};

use common::*;
use fettler_repository::{CreateKey, Repository, Unfenced, Unlock, create_key_file};

fn read_backup(arguments: &[&str], passphrase: Option<&str>) -> Output {
    let python = fettler_test_servers::server_folder("python/bin/python").unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/read_backup.py");
    let mut command = Command::new(python);
    command
        .arg(script)
        .args(arguments)
        .env_remove("FETTLER_PASSPHRASE");
    if let Some(passphrase) = passphrase {
        command.env("FETTLER_PASSPHRASE", passphrase);
    }
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_a_backup_is_listed_and_extracted_with_none_of_our_code() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("repository");
    let place = place.to_str().unwrap();
    let key = folder.path().join("key");
    create_key_file(&key).unwrap();
    let repository = Repository::open(place, options()).await.unwrap();
    let tenant = repository
        .tenant(&shop(), &passphrase(), CreateKey::IfAbsent)
        .await
        .unwrap();
    tenant.key_add(&Unlock::KeyFile(key.clone())).await.unwrap();
    let noise: Vec<u8> = (0..20_000u32)
        .flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes())
        .collect();
    let (orders, changed) = (rows(1, 2_000_000), rows(2, 300_000));
    let (first, second, gone) = (new_id(), new_id(), new_id());
    back_up(
        &tenant,
        first,
        &[("table/1", &orders), ("noise", &noise), ("empty", b"")],
    )
    .await
    .unwrap();
    let orders = [&changed[..], &orders[..]].concat();
    let streams: [(&str, &[u8]); 3] = [("table/1", &orders), ("noise", &noise), ("empty", b"")];
    back_up(&tenant, second, &streams).await.unwrap();
    back_up(&tenant, gone, &streams).await.unwrap();
    tenant.forget(gone, "test", &Unfenced).await.unwrap();

    let words = Some("correct horse battery staple");
    let listed = text(&read_backup(&[place, "list"], words));
    let ids: Vec<_> = listed
        .lines()
        .map(|line| line.split('\t').next().unwrap())
        .collect();
    assert_eq!(ids, [first.to_string(), second.to_string()]);
    let key = key.to_str().unwrap();
    let listed = text(&read_backup(
        &[place, "--key-file", key, "list", &second.to_string()],
        None,
    ));
    assert!(
        listed.contains(&format!("table/1\t{}\t1", orders.len())),
        "{listed}"
    );

    let out = folder.path().join("out");
    let extracted = text(&read_backup(
        &[
            place,
            "--key-file",
            key,
            "extract",
            &second.to_string(),
            out.to_str().unwrap(),
        ],
        None,
    ));
    assert_eq!(extracted.lines().count(), 3);
    for line in extracted.lines() {
        let [file, name, _] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let (_, bytes) = streams.iter().find(|(stream, _)| *stream == name).unwrap();
        assert!(std::fs::read(out.join(file)).unwrap() == *bytes, "{name}");
    }

    let wrong = read_backup(&[place, "list"], Some("wrong"));
    assert!(!wrong.status.success());
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("the key opens nothing here"));
    // A flipped byte is seen by the script too.
    let manifest = tenant.manifest(second).await.unwrap();
    for tenant_folder in std::fs::read_dir(Path::new(place).join("tenants")).unwrap() {
        let pack = tenant_folder
            .unwrap()
            .path()
            .join("packs")
            .join(manifest.packs[0].name());
        let mut bytes = std::fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&pack, bytes).unwrap();
    }
    let again = folder.path().join("again");
    let damaged = read_backup(
        &[
            place,
            "--key-file",
            key,
            "extract",
            &second.to_string(),
            again.to_str().unwrap(),
        ],
        None,
    );
    assert!(String::from_utf8_lossy(&damaged.stderr).contains(&manifest.packs[0].name()));
}
