//! The OpenAPI document, made from the routes themselves and from the schemas of the types that they take
//! and give. Those types have schemas already (job kinds and settings need them), in the very dialect that
//! OpenAPI 3.1 uses, so that no second description of them is kept.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    access::Permission,
    problem::{PROBLEM_JSON, ProblemDocument},
    route::{Answer, Content, Route, schema_of},
};

/// Where the schemas stand in the document.
const SCHEMAS: &str = "/components/schemas/";

/// What stands between braces in paths.
const PATH_PARAMETERS: [(&str, &str, &str); 7] = [
    (
        "job",
        "A job's id, or a beginning or ending of it that is unique.",
        "0198a1b2-c3d4-7000-8000-000000000001",
    ),
    ("tenant", "A tenant's name.", "acme"),
    ("database", "A database's name or id.", "shop"),
    ("policy", "A policy's name or id.", "nightly"),
    (
        "backup",
        "A backup's id, or a beginning or ending of it that is unique.",
        "0198a1b2-c3d4-7000-8000-000000000001",
    ),
    ("kind", "A job kind's name.", "backup"),
    (
        "token",
        "A token's id.",
        "0198a1b2-c3d4-7000-8000-000000000001",
    ),
];

/// Makes the document.
pub(crate) fn document(routes: &[Route]) -> Value {
    let mut given = SchemaSettings::draft2020_12().for_serialize();
    given.definitions_path = SCHEMAS.into();
    let mut taken = SchemaSettings::draft2020_12().for_deserialize();
    taken.definitions_path = SCHEMAS.into();
    let (mut given, mut taken) = (given.into_generator(), taken.into_generator());
    let problem: Value = schema_of::<ProblemDocument>(&mut given).into();

    let mut paths = Map::new();
    // Requests are written apart, since their schemas may get other names.
    let mut bodies = Vec::new();
    for route in routes {
        let mut operation = operation(route, &mut given, &mut taken);
        if let Some((schema, example)) = &route.body {
            let schema: Value = schema(&mut taken).into();
            operation["requestBody"] = json!({
                "required": true,
                "content": {"application/json": {"schema": schema, "example": example}},
            });
            bodies.push((route.path, route.method.as_str().to_lowercase()));
        }
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_lowercase()] = operation;
    }

    let mut schemas = given.take_definitions(true);
    let inputs = renamed(taken.take_definitions(true), &mut schemas);
    for (path, method) in bodies {
        let body = &mut paths[path][method]["requestBody"];
        point_to(body, &inputs);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Fettler",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Keeps databases in order: backs them up, proves that the backups restore, and restores them.",
            "description": "Each route names the permission that it needs as `x-permission`; docs/api.md has the table of roles. Errors are problem documents (RFC 9457).",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": tags(routes),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "A token of `fettler token add`."}},
            "responses": common_answers(&problem),
        },
        "security": [{"token": []}],
    })
}

/// The subject of a route: what stands after the version in its path.
fn tag(route: &Route) -> &str {
    route
        .path
        .strip_prefix("/api/v1/")
        .and_then(|rest| rest.split('/').next())
        .unwrap_or("service")
}

fn tags(routes: &[Route]) -> Value {
    let names: BTreeSet<&str> = routes.iter().map(tag).collect();
    names
        .into_iter()
        .map(|name| json!({"name": name}))
        .collect()
}

fn operation(route: &Route, given: &mut SchemaGenerator, taken: &mut SchemaGenerator) -> Value {
    let mut parameters = Vec::new();
    for part in route.path.split('/') {
        if let Some(name) = part
            .strip_prefix('{')
            .and_then(|part| part.strip_suffix('}'))
        {
            let (_, description, example) = PATH_PARAMETERS
                .iter()
                .find(|(known, ..)| *known == name)
                .copied()
                .unwrap_or((name, "", ""));
            parameters.push(json!({
                "name": name, "in": "path", "required": true, "description": description,
                "schema": {"type": "string", "minLength": 1}, "example": example,
            }));
        }
    }
    if let Some(schema) = route.parameters {
        let schema: Value = schema(taken).into();
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let mut field = field.clone();
            let description = field
                .as_object_mut()
                .and_then(|field| field.remove("description"))
                .unwrap_or_default();
            let is_required = schema["required"]
                .as_array()
                .is_some_and(|required| required.iter().any(|one| one == name));
            parameters.push(json!({
                "name": name, "in": "query", "required": is_required, "description": description,
                "schema": without_null(field),
            }));
        }
    }
    for header in &route.headers {
        let mut schema = json!({"type": "string", "minLength": 1});
        if let Some(most) = header.max_length {
            schema["maxLength"] = json!(most);
        }
        parameters.push(json!({
            "name": header.name, "in": "header", "required": header.is_required,
            "description": header.description, "schema": schema, "example": header.example,
        }));
    }

    let mut answers = Map::new();
    for answer in &route.answers {
        answers.insert(
            answer.status.as_str().to_owned(),
            self::answer(answer, given),
        );
    }
    let mut common = vec!["400", "503"];
    if route.permission != Permission::Public {
        common.extend(["401", "403", "429"]);
    }
    for status in common {
        answers
            .entry(status)
            .or_insert_with(|| json!({"$ref": format!("#/components/responses/{status}")}));
    }
    let mut operation = json!({
        "operationId": route.id,
        "tags": [tag(route)],
        "summary": route.summary,
        "parameters": parameters,
        "responses": answers,
    });
    if !route.description.is_empty() {
        operation["description"] = json!(route.description);
    }
    match route.permission.grant() {
        Some(grant) => {
            operation["x-permission"] = json!(grant.name);
            operation["x-fleet-only"] = json!(grant.fleet_only);
        }
        None => operation["security"] = json!([]),
    }
    operation
}

/// A parameter that is not given is left out, and never null.
fn without_null(mut schema: Value) -> Value {
    if let Some(kinds) = schema["type"].as_array_mut() {
        kinds.retain(|kind| kind != "null");
        if let [only] = kinds.as_slice() {
            schema["type"] = only.clone();
        }
    } else if let Some(choices) = schema["anyOf"].as_array_mut() {
        choices.retain(|choice| choice["type"] != "null");
    }
    if let Some(members) = schema.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    schema
}

fn answer(answer: &Answer, given: &mut SchemaGenerator) -> Value {
    let mut document = json!({"description": answer.description});
    match &answer.content {
        Content::Nothing => {}
        Content::Json(schema, example) => {
            let schema: Value = schema(given).into();
            let mut content = json!({"schema": schema});
            if let Some(example) = example {
                content["example"] = example.clone();
            }
            document["content"] = json!({"application/json": content});
        }
        Content::Text(media_type) => {
            document["content"] = json!({*media_type: {"schema": {"type": "string"}}});
        }
        Content::Problem => {
            let schema: Value = schema_of::<ProblemDocument>(given).into();
            document["content"] = json!({PROBLEM_JSON: {"schema": schema}});
        }
    }
    let headers: Map<String, Value> = answer
        .headers
        .iter()
        .map(|(name, description)| {
            let header =
                json!({"description": description, "required": true, "schema": {"type": "string"}});
            ((*name).to_owned(), header)
        })
        .collect();
    if !headers.is_empty() {
        document["headers"] = headers.into();
    }
    document
}

fn common_answers(problem: &Value) -> Value {
    let of = |status: StatusCode, description: &str| {
        let example = json!({
            "type": "urn:fettler:problem:request.example",
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "detail": description,
            "remedy": "what to do about it",
        });
        let mut answer = json!({
            "description": description,
            "content": {PROBLEM_JSON: {"schema": problem, "example": example}},
        });
        let header = |text: &str| json!({"description": text, "required": true, "schema": {"type": "string"}});
        match status {
            StatusCode::UNAUTHORIZED => {
                answer["headers"] = json!({"WWW-Authenticate": header("`Bearer`")});
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                answer["headers"] = json!({"Retry-After": header("How many seconds to wait.")});
            }
            _ => {}
        }
        (status.as_str().to_owned(), answer)
    };
    [
        of(
            StatusCode::BAD_REQUEST,
            "The request cannot be read, or a parameter cannot be used.",
        ),
        of(
            StatusCode::UNAUTHORIZED,
            "The request bears no token that is known.",
        ),
        of(
            StatusCode::FORBIDDEN,
            "The token's role does not allow it, or what is named is not for this tenant.",
        ),
        of(
            StatusCode::TOO_MANY_REQUESTS,
            "The token's rate is used up, or too many streams are open.",
        ),
        of(
            StatusCode::SERVICE_UNAVAILABLE,
            "The ledger does not answer at this moment.",
        ),
    ]
    .into_iter()
    .collect::<Map<_, _>>()
    .into()
}

/// Puts the schemas of what is taken beside those of what is given. Where the two differ (a field with a
/// default need not be sent, and always comes), the one that is taken gets a name of its own. Gives the
/// names that changed.
fn renamed(mut taken: Map<String, Value>, schemas: &mut Map<String, Value>) -> BTreeSet<String> {
    let mut different: BTreeSet<String> = taken
        .iter()
        .filter(|(name, schema)| schemas.get(*name).is_some_and(|given| given != *schema))
        .map(|(name, _)| name.clone())
        .collect();
    // What refers to one that changed its name changes too.
    loop {
        let more: Vec<String> = taken
            .iter()
            .filter(|(name, schema)| {
                !different.contains(*name)
                    && schemas.contains_key(*name)
                    && refers(schema, &different)
            })
            .map(|(name, _)| name.clone())
            .collect();
        if more.is_empty() {
            break;
        }
        different.extend(more);
    }
    for (name, schema) in &mut taken {
        let mut schema = schema.take();
        point_to(&mut schema, &different);
        let name = if different.contains(name) {
            input_name(name)
        } else {
            name.clone()
        };
        schemas.insert(name, schema);
    }
    different
}

fn input_name(name: &str) -> String {
    format!("{name}Input")
}

fn reference(name: &str) -> String {
    format!("#{SCHEMAS}{name}")
}

fn refers(schema: &Value, names: &BTreeSet<String>) -> bool {
    match schema {
        Value::Object(members) => members.iter().any(|(key, value)| {
            let is_one = key == "$ref"
                && value
                    .as_str()
                    .is_some_and(|target| names.iter().any(|name| target == reference(name)));
            is_one || refers(value, names)
        }),
        Value::Array(items) => items.iter().any(|item| refers(item, names)),
        _ => false,
    }
}

fn point_to(schema: &mut Value, names: &BTreeSet<String>) {
    match schema {
        Value::Object(members) => {
            for (key, value) in members {
                match value {
                    Value::String(target) if key == "$ref" => {
                        if let Some(name) = names.iter().find(|name| *target == reference(name)) {
                            *target = reference(&input_name(name));
                        }
                    }
                    other => point_to(other, names),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| point_to(item, names)),
        _ => {}
    }
}
