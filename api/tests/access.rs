//! Who may do what, over all routes that the OpenAPI document names: a new route is tried like the others
//! without a word here.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod support;

use std::collections::HashSet;

use fettler_ledger::{DatabaseRecord, PolicyRecord};
use fettler_model::{
    BackupFacts, BackupId, DatabaseId, DatabaseUrl, Engine, JobId, PolicyId, PolicySpec,
    ProofFacts, ProofVerdict, Role, TenantId, Timestamp,
};
use serde_json::{Value, json};
use support::{Answer, Client, World, make_token};

/// A route of the document.
#[derive(Debug)]
struct Operation {
    method: String,
    path: String,
    permission: Option<String>,
    fleet_only: bool,
    body: Option<Value>,
    takes_tenant: bool,
}

async fn document(world: &World) -> Value {
    Client::new(&world.server.url, None)
        .get("/api/openapi.json")
        .await
        .expect(200)
        .json()
}

fn operations(document: &Value) -> Vec<Operation> {
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().unwrap();
            all.push(Operation {
                method: method.to_uppercase(),
                path: path.clone(),
                permission: operation["x-permission"].as_str().map(ToOwned::to_owned),
                fleet_only: operation["x-fleet-only"] == true,
                body: operation["requestBody"]["content"]["application/json"]["example"]
                    .as_object()
                    .map(|example| Value::Object(example.clone())),
                takes_tenant: parameters
                    .iter()
                    .any(|one| one["in"] == "query" && one["name"] == "tenant"),
            });
        }
    }
    assert!(all.len() > 30, "{}", all.len());
    all
}

impl Operation {
    /// Sends it, with the thing that its path names.
    async fn send(&self, client: &Client, names: &dyn Fn(&str) -> String, query: &str) -> Answer {
        let path: Vec<String> = self
            .path
            .split('/')
            .map(|part| {
                match part
                    .strip_prefix('{')
                    .and_then(|part| part.strip_suffix('}'))
                {
                    Some(name) => names(name),
                    None => part.to_owned(),
                }
            })
            .collect();
        let mut request = client
            .request(&self.method, &format!("{}{query}", path.join("/")))
            .header("if-match", "*");
        if let Some(body) = &self.body {
            request = request
                .header("content-type", "application/json")
                .body(body.to_string());
        }
        client.send(request).await
    }

    fn is_public(&self) -> bool {
        self.permission.is_none()
    }
}

/// Everything of one kind, of one tenant.
struct Things {
    job: JobId,
    database: DatabaseId,
    policy: PolicyId,
    backup: BackupId,
    token: String,
}

impl Things {
    async fn of(world: &World, tenant: &str) -> Self {
        let name: TenantId = tenant.parse().unwrap();
        world.ledger.ensure_tenant(&name).await.unwrap();
        let database = DatabaseRecord {
            id: DatabaseId::new(),
            tenant: name.clone(),
            name: "shop".parse().unwrap(),
            url: DatabaseUrl::parse_with_password("/data/shop.sqlite")
                .unwrap()
                .0,
            password: None,
            identity_key: None,
            labels: Default::default(),
            sandbox: json!({"kind": "automatic"}),
            created: Timestamp::now(),
            terms: fettler_ledger::DatabaseTerms::default(),
        };
        let database = world.ledger.add_database(&database).await.unwrap().id;
        let spec: PolicySpec = serde_json::from_value(
            json!({"kind": "backup", "cron": "0 2 * * *", "time_zone": "UTC"}),
        )
        .unwrap();
        let policy = PolicyRecord {
            id: PolicyId::new(),
            tenant: name.clone(),
            name: "nightly".parse().unwrap(),
            database: Some(database),
            spec,
            next_due: None,
            last_job: None,
            created: Timestamp::now(),
        };
        let policy = world.ledger.add_policy(&policy).await.unwrap().id;
        let admin = world.client(&world.token(Role::Admin, Some(tenant)).await);
        let submitted = admin
            .post(
                "/api/v1/jobs",
                &json!({"kind": "backup", "database": "shop"}),
            )
            .await
            .expect(202);
        let job: JobId = submitted.json()["id"].as_str().unwrap().parse().unwrap();
        let backup = BackupId::of_job(JobId::new());
        let facts = BackupFacts {
            id: backup,
            tenant: name.clone(),
            database: Some(database),
            database_name: "shop".parse().unwrap(),
            engine: Engine::Sqlite,
            parent: None,
            started: Timestamp::from_micros(1),
            finished: Timestamp::from_micros(2),
            bytes_read: 3,
            bytes_new: 2,
            bytes_stored: 1,
            streams: 1,
            tags: Vec::new(),
            warnings: Vec::new(),
        };
        world
            .ledger
            .upsert_backup("/repository", &facts, None)
            .await
            .unwrap();
        let proof = ProofFacts {
            backup,
            verdict: ProofVerdict::Proven,
            finished: Timestamp::from_micros(3),
            restore_seconds: 0.5,
            fingerprints_compared: 1,
            mismatches: Vec::new(),
        };
        world.ledger.record_proof(&proof, None).await.unwrap();
        let (_, token) = make_token(&world.ledger, Role::Viewer, Some(tenant), None).await;
        Self {
            job,
            database,
            policy,
            backup,
            token: token.id.to_string(),
        }
    }

    fn name(&self, tenant: &str, of: &str) -> String {
        match of {
            "job" => self.job.to_string(),
            "database" => self.database.to_string(),
            "policy" => self.policy.to_string(),
            "backup" => self.backup.to_string(),
            "token" => self.token.clone(),
            "tenant" => tenant.to_owned(),
            "kind" => "backup".to_owned(),
            other => panic!("a new word in a path: {other}"),
        }
    }
}

/// A name of the same form that belongs to nothing.
fn nobody(of: &str) -> String {
    match of {
        "tenant" => "nobody".to_owned(),
        "kind" => "backup".to_owned(),
        _ => JobId::new().to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_each_route_refuses_no_token_an_expired_one_a_wrong_role_and_another_tenant() {
    let world = World::new().await;
    let operations = operations(&document(&world).await);
    let acme = Things::of(&world, "acme").await;
    Things::of(&world, "zeta").await;
    let names = |of: &str| acme.name("acme", of);

    let none = Client::new(&world.server.url, None);
    let garbage = world.client("fettler_garbage");
    let past = world.ledger.now().await.unwrap();
    let (expired, _) = make_token(&world.ledger, Role::Admin, None, Some(past)).await;
    let expired = world.client(&expired);
    let (removed, record) = make_token(&world.ledger, Role::Admin, None, None).await;
    world.ledger.remove_token(record.id).await.unwrap();
    let removed = world.client(&removed);
    for operation in &operations {
        for client in [&none, &garbage, &expired, &removed] {
            let answer = operation.send(client, &names, "").await;
            if operation.is_public() {
                assert!(answer.status < 400, "{operation:?}: {answer:?}");
                continue;
            }
            assert_eq!(answer.status, 401, "{operation:?}: {answer:?}");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
            assert_eq!(answer.json()["type"], "urn:fettler:problem:access.token");
        }
    }

    // The roles that the document's table gives each permission to, written down once more.
    let allowed = |permission: &str| -> HashSet<Role> {
        match permission {
            "look" | "look_at_fleet" => Role::ALL.into(),
            "run" => [Role::Operator, Role::Restorer, Role::Admin].into(),
            "see_tokens" => [Role::Auditor, Role::Admin].into(),
            "configure" | "configure_fleet" => [Role::Admin].into(),
            other => panic!("a new permission of a route: {other}"),
        }
    };
    for role in Role::ALL {
        for tenant in [None, Some("acme")] {
            let client = world.client(&world.token(role, tenant).await);
            for operation in operations.iter().filter(|operation| !operation.is_public()) {
                let permission = operation.permission.as_deref().unwrap();
                let may = allowed(permission).contains(&role)
                    && (tenant.is_none() || !operation.fleet_only);
                if may {
                    // What it does is the subject of other tests; here it would spoil the next request.
                    if operation.method == "GET" {
                        let answer = operation.send(&client, &names, "").await;
                        assert_eq!(answer.status, 200, "{role}, {operation:?}: {answer:?}");
                    }
                    continue;
                }
                let answer = operation.send(&client, &names, "").await;
                assert_eq!(answer.status, 403, "{role}, {operation:?}: {answer:?}");
                assert_eq!(
                    answer.json()["type"],
                    "urn:fettler:problem:access.forbidden"
                );
            }
        }
    }

    // A thing of another tenant answers as one that does not exist, to the letter.
    let stranger = world.client(&world.token(Role::Admin, Some("zeta")).await);
    let mut compared = 0;
    for operation in &operations {
        if operation.path.contains('{') && !operation.path.contains("{kind}") {
            let theirs = operation.send(&stranger, &names, "").await;
            let no_such = std::cell::RefCell::new(String::new());
            let invent = |of: &str| {
                let name = nobody(of);
                no_such.borrow_mut().clone_from(&name);
                name
            };
            let invented = operation.send(&stranger, &invent, "").await;
            let word = operation
                .path
                .split(['{', '}'])
                .nth(1)
                .map(|of| acme.name("acme", of))
                .unwrap();
            let expected = if operation.fleet_only { 403 } else { 404 };
            assert_eq!(theirs.status, expected, "{operation:?}: {theirs:?}");
            assert_eq!(theirs.status, invented.status, "{operation:?}");
            assert_eq!(
                theirs.text.replace(&word, "X"),
                invented.text.replace(&*no_such.borrow(), "X"),
                "{operation:?}"
            );
            compared += 1;
        }
        if operation.takes_tenant {
            let theirs = operation
                .send(&stranger, &invented_names, "?tenant=acme")
                .await;
            let invented = operation
                .send(&stranger, &invented_names, "?tenant=nobody")
                .await;
            assert_eq!(theirs.status, 404, "{operation:?}: {theirs:?}");
            assert_eq!(
                (theirs.status, theirs.text.replace("acme", "X")),
                (invented.status, invented.text.replace("nobody", "X")),
                "{operation:?}"
            );
            compared += 1;
        }
    }
    assert!(compared > 25, "{compared}");

    // Lists hold nothing of the other.
    for operation in &operations {
        let is_stream = operation.path.ends_with("/events");
        if operation.method != "GET"
            || operation.path.contains('{')
            || operation.is_public()
            || is_stream
        {
            continue;
        }
        let answer = operation.send(&stranger, &names, "").await;
        for word in [
            "acme",
            &acme.job.to_string(),
            &acme.database.to_string(),
            &acme.token,
        ] {
            assert!(
                !answer.text.contains(word),
                "{word} in {operation:?}: {answer:?}"
            );
        }
    }
    // And nothing was changed by all of this.
    assert_eq!(
        world.ledger.job(acme.job).await.unwrap().cancel_requested,
        None
    );
    world.ledger.database(acme.database).await.unwrap();
    world.ledger.policy(acme.policy).await.unwrap();
}

fn invented_names(of: &str) -> String {
    // Always the same one: two answers are compared.
    match of {
        "tenant" => "somebody".to_owned(),
        "kind" => "backup".to_owned(),
        _ => "0198a1b2-c3d4-7000-8000-00000000dead".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_and_what_deletes_backups_need_more_than_the_right_to_run_jobs() {
    let world = World::new().await;
    let restore = json!({"kind": "restore", "arguments": {
        "backup": JobId::new(), "to": "postgres://u:p@192.0.2.1/app",
    }});
    for (role, body, status) in [
        (Role::Operator, restore.clone(), 403),
        (Role::Restorer, restore.clone(), 202),
        (Role::Operator, json!({"kind": "collect"}), 403),
        (Role::Restorer, json!({"kind": "collect"}), 403),
        (Role::Admin, json!({"kind": "collect"}), 202),
    ] {
        let client = world.client(&world.token(role, None).await);
        client.post("/api/v1/jobs", &body).await.expect(status);
    }
    // Nor may one be cancelled or repeated without that right.
    let restorer = world.client(&world.token(Role::Restorer, None).await);
    let operator = world.client(&world.token(Role::Operator, None).await);
    let answer = restorer.post("/api/v1/jobs", &restore).await.expect(202);
    let path = answer.header("location").to_owned();
    operator
        .post(&format!("{path}/cancel"), &Value::Null)
        .await
        .expect(403);
    restorer
        .post(&format!("{path}/cancel"), &Value::Null)
        .await
        .expect(200);
    operator
        .post(&format!("{path}/retry"), &Value::Null)
        .await
        .expect(403);
    restorer
        .post(&format!("{path}/retry"), &Value::Null)
        .await
        .expect(202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_is_whole_every_reference_leads_somewhere_and_every_answer_has_a_form() {
    let world = World::new().await;
    let document = document(&world).await;
    assert_eq!(document["openapi"], "3.1.0");
    let mut references = Vec::new();
    collect_references(&document, &mut references);
    for reference in &references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(
            document.pointer(pointer).is_some(),
            "{reference} leads nowhere"
        );
    }
    let mut ids = HashSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let what = format!("{method} {path}");
            assert!(
                ids.insert(operation["operationId"].clone()),
                "{what}: its id is taken"
            );
            assert!(!operation["summary"].as_str().unwrap().is_empty(), "{what}");
            for parameter in operation["parameters"].as_array().unwrap() {
                assert!(
                    !parameter["description"].as_str().unwrap().is_empty(),
                    "{what}: {parameter}"
                );
            }
            let body = &operation["requestBody"]["content"]["application/json"];
            assert!(
                body.is_null() || body["example"].is_object(),
                "{what}: no example"
            );
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let is_json = answer["content"]["application/json"].is_object();
                let has_example = answer["content"]["application/json"]["example"].is_object();
                assert!(
                    !is_json || has_example || path == "/api/openapi.json",
                    "{what} {status}: no example"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_document_says_of_lengths_and_sizes_is_held() {
    let world = World::new().await;
    let document = document(&world).await;
    let acme = Things::of(&world, "acme").await;
    let names = |of: &str| acme.name("acme", of);
    let client = world.admin().await;
    let mut tried = 0;
    for mut operation in operations(&document) {
        let at = &document["paths"][&operation.path][operation.method.to_lowercase()];
        let what = format!("{} {}", operation.method, operation.path);
        for parameter in at["parameters"].as_array().unwrap() {
            if operation.fleet_only || parameter["in"] != "query" {
                continue;
            }
            let name = parameter["name"].as_str().unwrap();
            for value in beyond(&document, &parameter["schema"]) {
                let text = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                let query = format!("?{name}={text}");
                let answer = operation.send(&client, &names, &query).await;
                assert_eq!(answer.status, 400, "{what}: {name}: {}", answer.text);
                // What is no number of the kind is refused before the field is looked at, in words that name it.
                let is_named = answer.fields() == [name] || answer.text.contains(name);
                assert!(is_named, "{what}: {name}: {}", answer.text);
                tried += 1;
            }
        }
        let Some(example) = operation.body.take().filter(|_| !operation.fleet_only) else {
            continue;
        };
        let body = resolved(
            &document,
            &at["requestBody"]["content"]["application/json"]["schema"],
        );
        for (name, schema) in body["properties"].as_object().into_iter().flatten() {
            for value in beyond(&document, schema) {
                let mut sent = example.clone();
                sent[name] = value;
                operation.body = Some(sent);
                let answer = operation.send(&client, &names, "").await;
                assert_eq!(answer.status, 422, "{what}: {name}: {}", answer.text);
                assert_eq!(answer.fields(), [name.as_str()], "{what}");
                tried += 1;
            }
        }
    }
    assert!(tried > 20, "{tried}");
}

/// What a schema refers to, where it does.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document
            .pointer(reference.strip_prefix('#').unwrap())
            .unwrap(),
        None => schema,
    }
}

/// Values just outside of what a schema takes: texts, numbers and lists.
fn beyond(document: &Value, schema: &Value) -> Vec<Value> {
    let schema = resolved(document, schema);
    let one_of = schema["anyOf"].as_array().into_iter().flatten();
    let mut found: Vec<Value> = one_of.flat_map(|one| beyond(document, one)).collect();
    if let Some(most) = schema["maxLength"].as_u64() {
        found.push("x".repeat(most as usize + 1).into());
    }
    if schema["minLength"].as_u64() == Some(1) {
        found.push("".into());
    }
    if let Some(most) = schema["maximum"].as_i64() {
        found.push((most + 1).into());
    }
    if let Some(least) = schema["minimum"].as_i64() {
        found.push((least - 1).into());
    }
    if let Some(most) = schema["maxItems"].as_u64() {
        found.push(vec!["x"; most as usize + 1].into());
    }
    if schema["minItems"].as_u64() == Some(1) {
        found.push(json!([]));
    }
    found
}

fn collect_references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(target) if name == "$ref" => found.push(target.clone()),
                    other => collect_references(other, found),
                }
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| collect_references(item, found)),
        _ => {}
    }
}
