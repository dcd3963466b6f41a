//! Places for proofs, and how they go.

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use fettler_engine::{
    Artefact, DatabaseEngine as _, EngineError, Identity, RestoreOptions, SandboxRequest,
    SandboxSpec,
};
use fettler_model::Engine;
use fettler_test_servers::wait_until;

use crate::common::{
    Attempt, ENGINE, back_up, client, close, fill, keys_in, mismatches, request, run, server,
    target,
};

const WAIT: Duration = Duration::from_secs(60);

fn folder_of(artefact: &Artefact) -> PathBuf {
    artefact.data["folder"].as_str().unwrap().into()
}

fn runs(artefact: &Artefact) -> bool {
    let id = artefact.data["process"][0].as_i64().unwrap();
    fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_server_is_recorded_listens_on_no_network_and_goes() {
    let source = server();
    fill(&mut client(&source.url()));
    let (_, report) = back_up(&source.url()).await;
    let attempt = Attempt::new();
    let sandbox = ENGINE
        .open_sandbox(&attempt.context, &request(&report))
        .await
        .unwrap();
    assert_eq!(attempt.record.artefacts(), sandbox.artefacts);
    let artefact = &sandbox.artefacts[0];
    assert!(artefact.name.contains(&attempt.context.attempt.to_string()));
    assert!(runs(artefact));
    let mut inside = client(sandbox.target.url.as_str());
    for (name, value) in [
        ("port", "0"),
        ("save", ""),
        ("appendonly", "no"),
        ("maxmemory", "0"),
    ] {
        let pair: Vec<String> = redis::cmd("CONFIG")
            .arg("GET")
            .arg(name)
            .query(&mut inside)
            .unwrap();
        assert_eq!(pair[1], value, "{name}");
    }
    assert!(sandbox.target.url.path().is_none() && sandbox.target.url.server().is_none());
    // Rule 31: functions are code of the backup's.
    let id = artefact.data["process"][0].as_i64().unwrap();
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    assert!(!status.contains("\nUid:\t0\t"), "{status}");
    let folder = folder_of(artefact);
    assert!(folder.is_dir());
    for _ in 0..2 {
        close(&sandbox, None).await;
        assert!(!folder.exists() && !runs(artefact));
    }
}

#[tokio::test]
async fn what_was_recorded_and_never_made_is_removed_without_an_error_and_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let artefact = |path: PathBuf| Artefact {
        engine: Engine::Redis,
        kind: "server".to_owned(),
        name: "x".to_owned(),
        data: serde_json::json!({"what": "server", "folder": path, "process": null}),
        until_job_ends: false,
    };
    let never = artefact(folder.path().join("redis-never-made"));
    ENGINE.remove_artefact(&never, None).await.unwrap();
    let others = artefact(folder.path().to_owned());
    assert!(ENGINE.remove_artefact(&others, None).await.is_err());
    assert!(folder.path().is_dir());
}

/// Opens a sandbox, says where, and waits to be killed. Run by the test below in a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a helper of another test"]
async fn helper_that_opens_a_sandbox_and_waits_to_be_killed() {
    let Some(place) = std::env::var_os("FETTLER_TEST_PLACE").map(PathBuf::from) else {
        return;
    };
    let request = SandboxRequest {
        spec: SandboxSpec::Automatic,
        server: None,
        identity: Identity {
            engine: Engine::Redis,
            version: "7.0.15".to_owned(),
            key: String::new(),
            lineage: String::new(),
            suggested_name: "redis".parse().unwrap(),
            estimated_bytes: 0,
        },
        estimated_bytes: 0,
        left: None,
    };
    let attempt = Attempt::new();
    let sandbox = ENGINE.open_sandbox(&attempt.context, &request).await;
    let said = match sandbox {
        Ok(sandbox) => serde_json::to_string(&sandbox.artefacts[0]).unwrap(),
        Err(error) => error.to_string(),
    };
    fs::write(place.join("saying"), said).unwrap();
    fs::rename(place.join("saying"), place.join("said")).unwrap();
    std::future::pending::<()>().await;
}

/// Runs the helper in another process until it has said something.
fn helper(path: Option<&str>) -> (std::process::Child, String) {
    let place = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "sandbox::helper_that_opens_a_sandbox_and_waits_to_be_killed",
            "--ignored",
        ])
        .env("FETTLER_TEST_PLACE", place.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let child = command.spawn().unwrap();
    wait_until("the helper to say something", WAIT, || {
        place.path().join("said").exists()
    })
    .unwrap();
    (
        child,
        fs::read_to_string(place.path().join("said")).unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_server_ends_with_its_worker_and_another_process_removes_it() {
    for ended_first in [true, false] {
        let (mut child, said) = helper(None);
        let artefact: Artefact = serde_json::from_str(&said).unwrap();
        assert!(runs(&artefact));
        if ended_first {
            child.kill().unwrap();
            child.wait().unwrap();
            wait_until("the server to end with its worker", WAIT, || {
                !runs(&artefact)
            })
            .unwrap();
            assert!(folder_of(&artefact).exists());
        }
        ENGINE.remove_artefact(&artefact, None).await.unwrap();
        assert!(!runs(&artefact) && !folder_of(&artefact).exists());
        let _already = child.kill();
        child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_without_the_servers_program_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, said) = helper(Some(folder.path().to_str().unwrap()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        said.contains("redis-server") && said.contains("PATH"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_server_is_used_when_it_is_empty_and_emptied_only_by_its_mark() {
    let source = server();
    fill(&mut client(&source.url()));
    let (backup, report) = back_up(&source.url()).await;
    let other = server();
    let named = |url: &str| SandboxRequest {
        spec: SandboxSpec::Server {
            url: target(url).url,
            password: None,
        },
        server: Some(target(url)),
        ..request(&report)
    };
    let attempt = Attempt::new();
    let sandbox = ENGINE
        .open_sandbox(&attempt.context, &named(&other.url()))
        .await
        .unwrap();
    let restored = ENGINE
        .restore(
            &attempt.context,
            &backup,
            &report,
            &sandbox.target,
            &RestoreOptions::default(),
        )
        .await
        .unwrap();
    assert_eq!(restored.failed_statements, Vec::<String>::new());
    let copy = ENGINE
        .facts(&attempt.context, &sandbox.target, &report)
        .await
        .unwrap();
    assert_eq!(mismatches(&report.objects, &copy), Vec::<String>::new());
    // A second proof does not take the first one's place.
    let error = ENGINE
        .open_sandbox(&Attempt::new().context, &named(&other.url()))
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::NotEmpty { .. }), "{error:?}");
    close(&sandbox, Some(&target(&other.url()))).await;
    let mut inside = client(&other.url());
    assert_eq!((keys_in(&mut inside, 0), keys_in(&mut inside, 15)), (0, 0));
    // Whatever somebody puts there afterwards is theirs.
    run(&mut inside, "SET theirs 1");
    close(&sandbox, Some(&target(&other.url()))).await;
    assert_eq!(keys_in(&mut inside, 15), 1);
    let error = ENGINE
        .open_sandbox(&Attempt::new().context, &named(&other.url()))
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::NotEmpty { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sources_own_server_a_single_database_and_an_evicting_server_are_refused() {
    let source = server();
    let (_, report) = back_up(&source.url()).await;
    let evicts = server();
    let mut inside = client(&evicts.url());
    run(&mut inside, "CONFIG SET maxmemory 10mb");
    run(&mut inside, "CONFIG SET maxmemory-policy allkeys-lru");
    let one = format!("{}3", source.url());
    for (spec, server) in [
        (SandboxSpec::SourceServer, source.url()),
        (
            SandboxSpec::Server {
                url: target(&one).url,
                password: None,
            },
            one.clone(),
        ),
        (
            SandboxSpec::Server {
                url: target(&evicts.url()).url,
                password: None,
            },
            evicts.url(),
        ),
    ] {
        let attempt = Attempt::new();
        let asked = SandboxRequest {
            spec,
            server: Some(target(&server)),
            ..request(&report)
        };
        let error = ENGINE
            .open_sandbox(&attempt.context, &asked)
            .await
            .unwrap_err();
        assert!(matches!(error, EngineError::Missing { .. }), "{error:?}");
        assert_eq!(attempt.record.artefacts(), []);
    }
}
