//! Parts: one database, one pattern, functions, users; and what is in the way.

use fettler_engine::{DatabaseEngine as _, EngineError, RestoreOptions};
use fettler_model::Problem;
use redis::cmd;

use crate::common::{
    ENGINE, back_up, client, facts, fill, keys_in, mismatches, prove, restore, run, server, target,
    try_restore,
};

fn only(names: &[&str]) -> RestoreOptions {
    RestoreOptions {
        only: names.iter().map(|&name| name.to_owned()).collect(),
        ..RestoreOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_database_one_pattern_functions_and_users_come_back_alone() {
    let source = server();
    let mut writer = client(&source.url());
    fill(&mut writer);
    run(&mut writer, "ACL SETUSER reader on >secret1 ~user:* +get");
    for at in 0..50 {
        cmd("SET")
            .arg(format!("user:{at}"))
            .arg(at)
            .exec(&mut writer)
            .unwrap();
    }
    let (backup, report) = back_up(&source.url()).await;
    let copy = server();
    let mut reader = client(&copy.url());
    // A part goes beside what is there.
    run(&mut reader, "SET mine 1");
    try_restore(&backup, &report, &copy.url(), &only(&["db15"]))
        .await
        .unwrap();
    assert_eq!((keys_in(&mut reader, 0), keys_in(&mut reader, 15)), (1, 2));
    try_restore(
        &backup,
        &report,
        &copy.url(),
        &only(&["db0/user:*", "db0/scores"]),
    )
    .await
    .unwrap();
    assert_eq!(keys_in(&mut reader, 0), 52);
    // One database of the backup becomes another one of the target.
    let other = format!("{}4", copy.url());
    try_restore(&backup, &report, &other, &only(&["db15"]))
        .await
        .unwrap();
    assert_eq!(keys_in(&mut reader, 4), 2);
    assert!(
        cmd("FCALL")
            .arg("total")
            .arg(0)
            .query::<i64>(&mut reader)
            .is_err()
    );
    try_restore(&backup, &report, &copy.url(), &only(&["functions"]))
        .await
        .unwrap();
    assert_eq!(
        cmd("FCALL")
            .arg("total")
            .arg(0)
            .query::<i64>(&mut reader)
            .unwrap(),
        42
    );
    let users = |client: &mut redis::Connection| -> Vec<String> {
        cmd("ACL").arg("USERS").query(client).unwrap()
    };
    assert_eq!(users(&mut reader), ["default"]);
    try_restore(&backup, &report, &copy.url(), &only(&["acl"]))
        .await
        .unwrap();
    assert_eq!(users(&mut reader), ["default", "reader"]);
    let mut as_user = client(&format!("redis://reader:secret1@127.0.0.1:{}", copy.port()));
    assert_eq!(
        cmd("GET").arg("user:7").query::<i64>(&mut as_user).unwrap(),
        7
    );
    assert_eq!(keys_in(&mut reader, 1), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_with_a_number_means_one_database() {
    let source = server();
    fill(&mut client(&source.url()));
    let one = format!("{}15", source.url());
    let (backup, report) = back_up(&one).await;
    let names: Vec<&str> = report.objects.iter().map(|one| one.name.as_str()).collect();
    assert!(
        names.contains(&"db15") && !names.contains(&"db0"),
        "{names:?}"
    );
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
    let copy = server();
    restore(&backup, &report, &format!("{}3", copy.url())).await;
    assert_eq!(keys_in(&mut client(&copy.url()), 3), 2);
    // All databases do not fit into one.
    let (backup, report) = back_up(&source.url()).await;
    let error = try_restore(&backup, &report, &one, &RestoreOptions::default())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("names one database"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_the_way_is_refused_untouched_and_replaced_only_when_that_was_said() {
    let source = server();
    fill(&mut client(&source.url()));
    let (backup, report) = back_up(&source.url()).await;
    let copy = server();
    let mut other = client(&copy.url());
    run(&mut other, "SET int mine");
    run(&mut other, "SELECT 7");
    run(&mut other, "SET elsewhere mine");
    run(&mut other, "SELECT 0");
    for options in [
        RestoreOptions::default(),
        only(&["db0"]),
        only(&["db0/in*"]),
    ] {
        let error = try_restore(&backup, &report, &copy.url(), &options)
            .await
            .unwrap_err();
        assert!(matches!(error, EngineError::NotEmpty { .. }), "{error:?}");
    }
    assert_eq!(
        cmd("GET").arg("int").query::<String>(&mut other).unwrap(),
        "mine"
    );
    assert_eq!(keys_in(&mut other, 1), 0);
    // A part replaces what it has; the whole replaces its databases, and leaves others alone.
    run(&mut other, "SELECT 0");
    run(&mut other, "SET unknown mine");
    let overwrite = |options: RestoreOptions| RestoreOptions {
        overwrite: true,
        ..options
    };
    try_restore(
        &backup,
        &report,
        &copy.url(),
        &overwrite(only(&["db0/in*"])),
    )
    .await
    .unwrap();
    assert_eq!(
        cmd("GET").arg("int").query::<i64>(&mut other).unwrap(),
        12345
    );
    assert_eq!(keys_in(&mut other, 0), 3);
    try_restore(
        &backup,
        &report,
        &copy.url(),
        &overwrite(RestoreOptions::default()),
    )
    .await
    .unwrap();
    assert_eq!(keys_in(&mut other, 7), 1);
    run(&mut other, "DEL elsewhere");
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &copy.url()).await),
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_selection_that_means_nothing_is_refused_by_name() {
    let source = server();
    fill(&mut client(&source.url()));
    let (backup, report) = back_up(&source.url()).await;
    let copy = server();
    for (name, said) in [
        ("db9", "no database 9"),
        ("user:*", "names no keys"),
        ("db0/", "names no keys"),
    ] {
        let error = try_restore(&backup, &report, &copy.url(), &only(&[name]))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(Problem::from(error).code, "engine.missing.selection");
    }
    assert!(
        ENGINE
            .free_bytes(&target(&copy.url()))
            .await
            .unwrap()
            .is_none()
    );
}
