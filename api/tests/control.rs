//! Control over HTTP: pauses, limits, priorities, many jobs at once; each within what the bearer of a token may see.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod support;

use fettler_model::Role;
use serde_json::{Value, json};
use support::{Client, World};

/// A job that no worker takes: there is none.
fn waiting() -> Value {
    json!({"kind": "collect", "arguments": {"dry_run": true}})
}

/// Two tenants, each with an administrator and some jobs that wait.
async fn two_tenants(world: &World, jobs: usize) -> (Client, Client) {
    let mut admins = Vec::new();
    for tenant in ["acme", "zeta"] {
        world
            .ledger
            .ensure_tenant(&tenant.parse().unwrap())
            .await
            .unwrap();
        let admin = world.client(&world.token(Role::Admin, Some(tenant)).await);
        for _ in 0..jobs {
            admin.post("/api/v1/jobs", &waiting()).await.expect(202);
        }
        admins.push(admin);
    }
    let zeta = admins.pop().unwrap();
    (admins.pop().unwrap(), zeta)
}

async fn queued(client: &Client) -> usize {
    let page = client
        .get("/api/v1/jobs?state=queued")
        .await
        .expect(200)
        .json();
    page["items"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_tenant_pauses_itself_and_nobody_else() {
    let world = World::new().await;
    let (acme, zeta) = two_tenants(&world, 1).await;
    let paused = acme
        .post(
            "/api/v1/pauses",
            &json!({"scope": "tenant/acme", "because": "moving house"}),
        )
        .await
        .expect(200)
        .json();
    assert_eq!(paused["because"], "moving house");
    for (scope, status) in [("tenant/zeta", 404), ("all", 403), ("kind/backup", 403)] {
        let input = json!({ "scope": scope });
        acme.post("/api/v1/pauses", &input).await.expect(status);
        acme.post("/api/v1/pauses/resume", &input)
            .await
            .expect(status);
    }
    let names_no_scope = acme
        .post("/api/v1/pauses", &json!({"scope": "acme"}))
        .await
        .expect(422);
    assert!(
        names_no_scope.text.contains("tenant/"),
        "{names_no_scope:?}"
    );
    let pauses = |answer: Value| answer["pauses"].as_array().unwrap().len();
    assert_eq!(
        pauses(acme.get("/api/v1/pauses").await.expect(200).json()),
        1
    );
    assert_eq!(
        pauses(zeta.get("/api/v1/pauses").await.expect(200).json()),
        0
    );
    let resumed = acme
        .post("/api/v1/pauses/resume", &json!({"scope": "tenant/acme"}))
        .await
        .expect(200)
        .json();
    assert_eq!(resumed["resumed"], "tenant/acme");
    assert_eq!(
        pauses(acme.get("/api/v1/pauses").await.expect(200).json()),
        0
    );
    let viewer = world.client(&world.token(Role::Viewer, Some("acme")).await);
    viewer
        .post("/api/v1/pauses", &json!({"scope": "tenant/acme"}))
        .await
        .expect(403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_much_of_the_fleet_a_tenant_has_is_for_the_operator_to_say() {
    let world = World::new().await;
    let (acme, zeta) = two_tenants(&world, 0).await;
    let operator = world.admin().await;
    let limit = json!({"scope": "tenant/acme", "most": 2});
    for (client, status) in [(&acme, 403), (&zeta, 404)] {
        client
            .with_body("PUT", "/api/v1/limits", &limit, &[])
            .await
            .expect(status);
    }
    let set = operator
        .with_body("PUT", "/api/v1/limits", &limit, &[])
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&set["scope"], &set["most"]),
        (&json!("tenant/acme"), &json!(2))
    );
    let listed = acme.get("/api/v1/limits").await.expect(200).json();
    assert_eq!(listed["limits"].as_array().unwrap().len(), 1);
    let listed = zeta.get("/api/v1/limits").await.expect(200).json();
    assert_eq!(listed["limits"], json!([]));
    let path = "/api/v1/limits?scope=tenant%2Facme";
    acme.with_headers("DELETE", path, &[]).await.expect(403);
    operator.with_headers("DELETE", path, &[]).await.expect(204);
    operator.with_headers("DELETE", path, &[]).await.expect(404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_many_jobs_are_cancelled_and_done_again_within_a_tenant() {
    let world = World::new().await;
    let (acme, zeta) = two_tenants(&world, 3).await;
    let cancel = |dry_run: bool| json!({"kind": "collect", "dry_run": dry_run});
    let counted = acme
        .post("/api/v1/jobs/cancel", &cancel(true))
        .await
        .expect(200);
    assert_eq!(counted.json()["cancelled"], 3);
    assert_eq!(queued(&acme).await, 3, "a dry run changes nothing");
    let operator = world.client(&world.token(Role::Operator, Some("acme")).await);
    operator
        .post("/api/v1/jobs/cancel", &cancel(false))
        .await
        .expect(403);
    let done = acme
        .post("/api/v1/jobs/cancel", &cancel(false))
        .await
        .expect(200);
    assert_eq!(done.json()["cancelled"], 3);
    assert_eq!((queued(&acme).await, queued(&zeta).await), (0, 3));

    let replay = json!({"kind": "collect", "states": ["cancelled"]});
    let again = acme
        .post("/api/v1/jobs/replay", &replay)
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&again["submitted"], &again["already"]),
        (&json!(3), &json!(0))
    );
    let once_more = acme
        .post("/api/v1/jobs/replay", &replay)
        .await
        .expect(200)
        .json();
    assert_eq!(once_more["submitted"], 0, "{once_more}");
    assert_eq!(queued(&acme).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_waits_is_given_another_priority() {
    let world = World::new().await;
    let (acme, zeta) = two_tenants(&world, 0).await;
    let submitted = acme
        .post("/api/v1/jobs", &waiting())
        .await
        .expect(202)
        .json();
    let path = format!(
        "/api/v1/jobs/{}/priority",
        submitted["id"].as_str().unwrap()
    );
    let high = json!({"priority": "high"});
    let changed = acme.post(&path, &high).await.expect(200).json();
    assert_eq!(changed["priority"], "high");
    zeta.post(&path, &high).await.expect(404);
    let wrong = acme
        .post(&path, &json!({"priority": "sky-high"}))
        .await
        .expect(422);
    assert_eq!(wrong.fields(), ["priority"]);
}
