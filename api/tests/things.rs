//! What is looked after, over HTTP: changed only by whoever has seen it, its passwords sealed, and a tenant
//! kept to what was listed for it. And TLS.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod support;

use std::{collections::HashMap, process::Command};

use fettler_api::http::{HttpOptions, bounds::Bounds};
use fettler_config::SealedSecrets;
use fettler_ledger::Ledger;
use fettler_model::{JobId, Role, SecretReference, TenantId};
use serde_json::{Value, json};
use support::{Client, Server, World, generous, make_token};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_changed_only_by_who_has_seen_it_as_it_is() {
    let world = World::new().await;
    let admin = world.admin().await;
    let body = json!({"name": "shop", "url": "/data/shop.sqlite", "labels": {"zone": "dmz"}});
    let added = admin.post("/api/v1/databases", &body).await.expect(201);
    let etag = added.header("etag").to_owned();
    let path = added.header("location").to_owned();
    admin.post("/api/v1/databases", &body).await.expect(409);
    assert_eq!(
        admin
            .get("/api/v1/databases/shop")
            .await
            .expect(200)
            .header("etag"),
        etag
    );

    let change = json!({"labels": {"zone": "lan"}});
    admin
        .with_body("PATCH", &path, &change, &[])
        .await
        .expect(428);
    admin
        .with_body("PATCH", &path, &change, &[("if-match", "")])
        .await
        .expect(428);
    admin
        .with_body("PATCH", &path, &change, &[("if-match", "\"other\"")])
        .await
        .expect(412);
    let changed = admin
        .with_body("PATCH", &path, &change, &[("if-match", &etag)])
        .await
        .expect(200);
    assert_eq!(changed.json()["labels"], json!({"zone": "lan"}));
    assert_eq!(changed.json()["url"], "sqlite:/data/shop.sqlite");
    // Who comes second has seen what is not there any more.
    admin
        .with_body("PATCH", &path, &change, &[("if-match", &etag)])
        .await
        .expect(412);
    // What a job finds out by itself hinders nobody.
    let id = changed.json()["id"].as_str().unwrap().parse().unwrap();
    world.ledger.set_identity(id, "1:2", None).await.unwrap();
    let etag = changed.header("etag").to_owned();
    admin
        .with_body(
            "PATCH",
            &path,
            &json!({"name": "store"}),
            &[("if-match", &etag)],
        )
        .await
        .expect(200);
    for (body, field) in [
        (json!({"nmae": "x"}), "nmae"),
        (json!({"name": "No"}), "name"),
        (json!({"url": "oracle://x/y"}), "url"),
        (json!({"url": "relative.sqlite"}), "url"),
        (
            json!({"sandbox": {"kind": "server", "url": "/a/file"}}),
            "sandbox.url",
        ),
    ] {
        let answer = admin
            .with_body("PATCH", &path, &body, &[("if-match", "*")])
            .await
            .expect(422);
        assert_eq!(answer.fields(), [field], "{body}");
    }
    admin.with_headers("DELETE", &path, &[]).await.expect(428);
    admin
        .with_headers("DELETE", &path, &[("if-match", "*")])
        .await
        .expect(204);
    admin.get(&path).await.expect(404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_takes_a_window_and_limits_and_only_an_operator_says_which_workers_reach_it() {
    let world = World::new().await;
    let operator = world.admin().await;
    let window = json!({"from": "22:00", "to": "04:00", "time_zone": "Europe/Berlin"});
    let terms = json!({"window": window, "load": {"connections": 80}, "reach": {"zone": "dmz"}});
    let body = json!({"name": "shop", "url": "/data/shop.sqlite", "terms": terms});
    let added = operator.post("/api/v1/databases", &body).await.expect(201);
    assert_eq!(added.json()["terms"], terms);
    let path = added.header("location").to_owned();
    let (token, _) = make_token(&world.ledger, Role::Admin, Some("default"), None).await;
    let own = world.client(&token);
    let change = |terms: Value| json!({"terms": terms});
    let anyway = [("if-match", "*")];
    let refused = own
        .with_body("PATCH", &path, &change(json!({"window": window})), &anyway)
        .await
        .expect(422);
    assert_eq!(refused.fields(), ["terms.reach"]);
    let allowed = json!({"load": {"latency_milliseconds": 250}, "reach": {"zone": "dmz"}});
    let changed = own
        .with_body("PATCH", &path, &change(allowed.clone()), &anyway)
        .await
        .expect(200);
    assert_eq!(changed.json()["terms"], allowed);
    for (terms, field) in [
        (
            json!({"window": {"from": "22:00", "to": "04:00", "time_zone": "Mars"}}),
            "terms.window",
        ),
        (json!({"reach": {"": "dmz"}}), "terms.reach"),
    ] {
        let refused = operator
            .with_body("PATCH", &path, &change(terms), &anyway)
            .await
            .expect(422);
        assert_eq!(refused.fields(), [field]);
    }
    let taken_away = operator
        .with_body("PATCH", &path, &change(json!({})), &anyway)
        .await
        .expect(200);
    assert_eq!(taken_away.json()["terms"], json!({}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_tells_its_next_due_times_and_refuses_what_could_never_run() {
    let world = World::new().await;
    let admin = world.admin().await;
    let database = json!({"name": "shop", "url": "/data/shop.sqlite"});
    admin.post("/api/v1/databases", &database).await.expect(201);
    let spec = json!({"kind": "backup", "cron": "0 2 * * *", "time_zone": "Europe/Berlin", "keep": {"daily": 7}});
    let body = json!({"name": "nightly", "database": "shop", "spec": spec});
    let added = admin.post("/api/v1/policies", &body).await.expect(201);
    let (path, etag) = (
        added.header("location").to_owned(),
        added.header("etag").to_owned(),
    );
    let document = added.json();
    assert_eq!(document["upcoming"].as_array().unwrap().len(), 10);
    assert_eq!(document["policy"]["next_due"], document["upcoming"][0]);

    for (change, field) in [
        (
            json!({"spec": {"kind": "backup", "cron": "at night", "time_zone": "UTC"}}),
            "spec.cron",
        ),
        (
            json!({"spec": {"kind": "backup", "cron": "0 2 * * *", "time_zone": "Mars"}}),
            "spec.cron",
        ),
        (
            json!({"spec": {"kind": "nothing", "cron": "0 2 * * *", "time_zone": "UTC"}}),
            "spec.kind",
        ),
        (
            json!({"spec": {"kind": "verify", "cron": "0 2 * * *", "time_zone": "UTC", "prove": "daily", "arguments": {"backup": JobId::new()}}}),
            "spec.kind",
        ),
        (
            json!({"spec": {"kind": "backup", "cron": "0 2 * * *", "time_zone": "UTC", "windwo": {}}}),
            "spec.windwo",
        ),
        (json!({"database": null}), "database"),
        (json!({"database": "nobody"}), "database"),
    ] {
        let answer = admin
            .with_body("PATCH", &path, &change, &[("if-match", &etag)])
            .await
            .expect(422);
        assert_eq!(answer.fields(), [field], "{change}");
    }
    let mut paused = spec.clone();
    paused["paused"] = json!(true);
    // A due time that passes meanwhile hinders nobody.
    let id = document["policy"]["id"].as_str().unwrap().parse().unwrap();
    world.ledger.set_next_due(id, None).await.unwrap();
    let changed = admin
        .with_body(
            "PATCH",
            &path,
            &json!({"spec": paused}),
            &[("if-match", &etag)],
        )
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&changed["policy"]["next_due"], &changed["upcoming"]),
        (&Value::Null, &json!([]))
    );
    admin
        .with_headers("DELETE", &path, &[("if-match", &etag)])
        .await
        .expect(412);
    admin
        .with_headers("DELETE", "/api/v1/policies/nightly", &[("if-match", "*")])
        .await
        .expect(204);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_a_password_in_a_url_is_sealed_for_its_tenant_and_never_comes_back() {
    let world = World::new().await;
    let admin = world.admin().await;
    let secret = "corr3ct-horse";
    let body = json!({"name": "shop", "url": format!("postgres://ann:{secret}@192.0.2.1/app")});
    let added = admin.post("/api/v1/databases", &body).await.expect(201);
    assert!(!added.text.contains(secret), "{added:?}");
    let reference: SecretReference =
        serde_json::from_value(added.json()["password"].clone()).unwrap();
    let SecretReference::Sealed(id) = reference else {
        panic!("{reference}");
    };
    let tenant = TenantId::default_tenant();
    let sealed = world.ledger.sealed(&tenant, id).await.unwrap();
    let opener = SealedSecrets::new(world.path("secrets.key"));
    assert_eq!(opener.open(&tenant, &sealed).unwrap().expose(), secret);
    let other: TenantId = "acme".parse().unwrap();
    assert!(
        world.ledger.sealed(&other, id).await.is_err() && opener.open(&other, &sealed).is_err()
    );

    let restore = json!({"kind": "restore", "arguments": {
        "backup": JobId::new(), "to": format!("postgres://ann:{secret}@192.0.2.1/copy"),
    }});
    let submitted = admin
        .with_body(
            "POST",
            "/api/v1/jobs",
            &restore,
            &[("idempotency-key", "r")],
        )
        .await
        .expect(202);
    let job = admin.get(submitted.header("location")).await.expect(200);
    assert!(!job.text.contains(secret), "{job:?}");
    assert!(
        job.json()["arguments"]["password"]
            .as_str()
            .unwrap()
            .starts_with("sealed:")
    );
    admin
        .with_body(
            "POST",
            "/api/v1/jobs",
            &restore,
            &[("idempotency-key", "r")],
        )
        .await
        .expect(202);

    // Nor does it in words that say that there is no such thing.
    let by_url = format!("/api/v1/databases/postgres%3A%2F%2Fann%3A{secret}%40192.0.2.7%2Fapp");
    assert!(!admin.get(&by_url).await.expect(404).text.contains(secret));

    // Another place does not get the old one's password, and nobody names a sealed one himself.
    let path = added.header("location");
    let elsewhere = json!({"url": "postgres://ann@198.51.100.1/app"});
    let refused = admin
        .with_body("PATCH", path, &elsewhere, &[("if-match", "*")])
        .await
        .expect(422);
    assert_eq!(refused.fields(), ["url"]);
    let stolen = json!({"kind": "restore", "arguments": {
        "backup": JobId::new(), "to": "postgres://eve@198.51.100.1/x", "password": format!("sealed:{id}"),
    }});
    let refused = admin.post("/api/v1/jobs", &stolen).await.expect(422);
    assert_eq!(refused.fields(), ["arguments.password"]);
    let new = json!({"url": "postgres://ann:n3w@198.51.100.1/app"});
    admin
        .with_body("PATCH", path, &new, &[("if-match", "*")])
        .await
        .expect(200);
    assert!(
        world.ledger.sealed(&tenant, id).await.is_err(),
        "the old one is forgotten"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_tenants_token_names_nothing_that_was_not_listed_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
    let ledger = Ledger::open(&url).await.unwrap();
    let tenant: TenantId = "acme".parse().unwrap();
    ledger.add_tenant(&tenant).await.unwrap();
    let listed = Bounds {
        references: vec!["env:ACME_*".to_owned()],
        paths: vec!["/data/acme".into()],
        ..Bounds::default()
    };
    let bounds = HashMap::from([(tenant, listed)]);
    let server = Server::start_bounded(ledger.clone(), &folder, generous(), bounds).await;
    let (token, _) = make_token(&ledger, Role::Admin, Some("acme"), None).await;
    let client = Client::new(&server.url, Some(&token));

    for (name, body) in [
        ("url", json!({"name": "x", "url": "/etc/fettler/ledger.db"})),
        (
            "url",
            json!({"name": "x", "url": "postgres://u:p@127.0.0.1/app"}),
        ),
        (
            "url",
            json!({"name": "x", "url": "postgres://u:p@localhost/app"}),
        ),
        (
            "url",
            json!({"name": "x", "url": "postgres://u:p@169.254.169.254/app"}),
        ),
        (
            "url",
            json!({"name": "x", "url": "postgres://u@192.0.2.1/app"}),
        ),
        (
            "password",
            json!({"name": "x", "url": "postgres://u@192.0.2.1/app", "password": "env:FETTLER_PASSPHRASE"}),
        ),
        (
            "password",
            json!({"name": "x", "url": "postgres://u@192.0.2.1/app", "password": "file:/etc/shadow"}),
        ),
        (
            "sandbox.url",
            json!({"name": "x", "url": "/data/acme/x.db", "sandbox": {"kind": "server", "url": "postgres://u:p@127.0.0.1/x"}}),
        ),
    ] {
        let answer = client.post("/api/v1/databases", &body).await;
        assert_eq!(
            (answer.status, answer.fields()),
            (403, vec![name.to_owned()]),
            "{body}: {answer:?}"
        );
    }
    for fine in [
        json!({"name": "a", "url": "/data/acme/shop.sqlite"}),
        json!({"name": "b", "url": "postgres://u@192.0.2.1/app", "password": "env:ACME_DB"}),
        json!({"name": "c", "url": "postgres://u:p@192.0.2.1/app"}),
    ] {
        client.post("/api/v1/databases", &fine).await.expect(201);
    }
    let answer = client
        .with_body(
            "PATCH",
            "/api/v1/databases/c",
            &json!({"password": null}),
            &[("if-match", "*")],
        )
        .await;
    assert_eq!(
        answer.status, 403,
        "the worker's own password would be used: {answer:?}"
    );
    for arguments in [
        json!({"hooks": {"before": "id"}}),
        json!({"place": "s3://backups/zeta"}),
        json!({"place": "/var/backups"}),
    ] {
        let body = json!({"kind": "backup", "database": "a", "arguments": arguments});
        client.post("/api/v1/jobs", &body).await.expect(403);
        let spec = json!({"kind": "backup", "cron": "* * * * *", "time_zone": "UTC", "arguments": arguments});
        let policy = json!({"name": "p", "database": "a", "spec": spec});
        client.post("/api/v1/policies", &policy).await.expect(403);
    }
    client
        .post("/api/v1/jobs", &json!({"kind": "backup", "database": "a", "arguments": {"place": "s3://backups/acme"}}))
        .await
        .expect(202);
    // Nor does it make a token that sees more than itself.
    let made = client
        .post("/api/v1/tokens", &json!({"name": "more", "role": "admin"}))
        .await
        .expect(201);
    assert_eq!(made.json()["token"]["tenant"], "acme");
    client
        .post(
            "/api/v1/tokens",
            &json!({"name": "other", "role": "admin", "tenant": "default"}),
        )
        .await
        .expect(404);
    let new = Client::new(&server.url, made.json()["text"].as_str());
    assert_eq!(
        new.get("/api/v1/whoami").await.expect(200).json()["tenant"],
        "acme"
    );
    let path = made.header("location").to_owned();
    client.with_headers("DELETE", &path, &[]).await.expect(204);
    new.get("/api/v1/whoami").await.expect(401);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_come_and_go_and_their_tokens_with_them() {
    let world = World::new().await;
    let admin = world.admin().await;
    admin
        .post("/api/v1/tenants", &json!({"id": "acme"}))
        .await
        .expect(201);
    admin
        .post("/api/v1/tenants", &json!({"id": "acme"}))
        .await
        .expect(409);
    admin
        .post("/api/v1/tenants", &json!({"id": "No Name"}))
        .await
        .expect(422);
    let theirs = world.client(&world.token(Role::Admin, Some("acme")).await);
    let listed = theirs.get("/api/v1/tenants").await.expect(200).json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    let all = admin
        .get("/api/v1/tenants?limit=1")
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&all["items"][0]["id"], &all["next"]),
        (&json!("acme"), &json!("acme"))
    );
    theirs
        .with_headers("DELETE", "/api/v1/tenants/acme", &[])
        .await
        .expect(403);
    admin
        .with_headers("DELETE", "/api/v1/tenants/acme", &[])
        .await
        .expect(204);
    theirs.get("/api/v1/tenants").await.expect(401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_speaks_tls_with_the_certificate_that_it_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args([
            "-days",
            "2",
            "-subj",
            "/CN=fettler",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
    let ledger = Ledger::open(&url).await.unwrap();
    let options = HttpOptions {
        tls: Some((certificate.clone(), key.clone())),
        ..generous()
    };
    let server = Server::start(ledger.clone(), &folder, options).await;
    assert!(server.url.starts_with("https://"));
    let (token, _) = make_token(&ledger, Role::Viewer, None, None).await;
    let root = reqwest::Certificate::from_pem(&std::fs::read(&certificate).unwrap()).unwrap();
    let http = reqwest::Client::builder()
        .tls_certs_only([root])
        .build()
        .unwrap();
    let client = Client::over(http, &server.url, &token);
    client.get("/api/v1/whoami").await.expect(200);
    // Who does not know the certificate does not talk to it, and plain HTTP gets no answer.
    assert!(
        reqwest::Client::new()
            .get(format!("{}/healthz", server.url))
            .send()
            .await
            .is_err()
    );
    let plain = server.url.replace("https", "http");
    assert!(reqwest::get(format!("{plain}/healthz")).await.is_err());
    client.get("/api/v1/whoami").await.expect(200);

    let wrong = HttpOptions {
        tls: Some((key, certificate)),
        ..generous()
    };
    let refused = fettler_api::http::HttpServer::open("127.0.0.1:0", wrong)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("key.pem"), "{refused}");
    server.stop().await;
}
