//! The suite of stores on S3: a real MinIO server, opened by URL and `AWS_*` variables as users do. The
//! variables are a process's own, so the suite runs in a child process that has them.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/suite.rs"]
mod suite;

use std::process::Command;

use common::*;
use fettler_model::Problem;
use fettler_repository::{CreateKey, OpenOptions, Repository};
use fettler_test_servers::MinioServer;

/// Set in the child process.
const INSIDE: &str = "FETTLER_TEST_INSIDE_S3";

/// Runs one test of this binary in a child process with the server's variables.
fn run_inside(test: &str, variables: &[(&str, String)]) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .envs(variables.iter().map(|(name, value)| (*name, value)))
        .status()
        .unwrap();
    assert!(status.success());
}

fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

#[test]
fn the_suite_passes_on_s3() {
    if !inside() {
        let server = MinioServer::start().unwrap();
        server.create_bucket("backups").unwrap();
        return run_inside("the_suite_passes_on_s3", &server.env());
    }
    run(async {
        for number in 0..suite::CASES {
            let place = format!("s3://backups/some/prefix-{number}");
            suite::case(number, async || {
                let repository = Repository::open(&place, options()).await.unwrap();
                repository
                    .tenant(&shop(), &passphrase(), CreateKey::IfAbsent)
                    .await
                    .unwrap()
            })
            .await;
        }
    });
}

#[test]
fn what_an_s3_store_refuses_is_told_with_the_bucket_and_the_remedy() {
    if !inside() {
        let server = MinioServer::start().unwrap();
        server.create_bucket("backups").unwrap();
        return run_inside(
            "what_an_s3_store_refuses_is_told_with_the_bucket_and_the_remedy",
            &server.env(),
        );
    }
    run(async {
        let error = Repository::open("s3://no-such-bucket/x", options())
            .await
            .unwrap_err();
        let problem = Problem::from(error);
        assert_eq!(problem.code, "repository.store_refused", "{problem:?}");
        assert!(problem.what.contains("s3://no-such-bucket"), "{problem:?}");
        assert!(problem.remedy.contains("AWS_ACCESS_KEY_ID"), "{problem:?}");
    });
}

#[test]
fn a_wrong_secret_is_refused_and_not_shown() {
    if !inside() {
        let server = MinioServer::start().unwrap();
        server.create_bucket("backups").unwrap();
        let mut variables = server.env();
        for (name, value) in &mut variables {
            if *name == "AWS_SECRET_ACCESS_KEY" {
                *value = "a-wrong-secret-for-this-test".into();
            }
        }
        return run_inside("a_wrong_secret_is_refused_and_not_shown", &variables);
    }
    run(async {
        let error = Repository::open("s3://backups/x", options())
            .await
            .unwrap_err();
        let problem = Problem::from(error);
        assert_eq!(problem.code, "repository.store_refused", "{problem:?}");
        assert!(!format!("{problem:?}").contains("a-wrong-secret"));
    });
}

#[test]
fn a_server_that_goes_away_is_a_matter_of_waiting() {
    if !inside() {
        let mut server = MinioServer::start().unwrap();
        server.create_bucket("backups").unwrap();
        let variables = server.env();
        server.stop().unwrap();
        return run_inside("a_server_that_goes_away_is_a_matter_of_waiting", &variables);
    }
    run(async {
        let error = Repository::open(
            "s3://backups/x",
            OpenOptions {
                create: true,
                ..options()
            },
        )
        .await
        .unwrap_err();
        assert_eq!(
            error.class(),
            fettler_model::ErrorClass::Transient,
            "{error:?}"
        );
        assert_eq!(error.code(), "repository.store_unavailable");
    });
}
