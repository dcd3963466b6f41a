//! A route, as one value: its method and path, who may use it, what it takes and answers, and the function
//! that does it. The router, the guard before each route and the OpenAPI document are all made from the same
//! values, so that none of them can be forgotten for a new route.

use axum::{
    Router,
    http::{Method, StatusCode},
    middleware::from_fn_with_state,
    routing::MethodRouter,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;

use super::{App, access, access::Permission, input::MAX_KEY_BYTES};

/// Makes the schema of a type, or a reference to it.
pub(crate) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A route.
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) permission: Permission,
    /// Its name in the document, for programs that are made from it.
    pub(crate) id: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) description: String,
    pub(crate) parameters: Option<SchemaOf>,
    pub(crate) headers: Vec<Header>,
    pub(crate) body: Option<(SchemaOf, Value)>,
    pub(crate) answers: Vec<Answer>,
    handler: MethodRouter<App>,
}

/// A header that a route looks at.
pub(crate) struct Header {
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    pub(crate) is_required: bool,
    /// A longer value is refused.
    pub(crate) max_length: Option<usize>,
    pub(crate) example: &'static str,
}

/// One way in which a route answers.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) description: &'static str,
    pub(crate) content: Content,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
}

/// What an answer holds.
pub(crate) enum Content {
    /// Nothing.
    Nothing,
    /// A JSON document.
    Json(SchemaOf, Option<Value>),
    /// Text of this media type.
    Text(&'static str),
    /// A problem document.
    Problem,
}

pub(crate) fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn whole_schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

impl Route {
    /// A route that does nothing but look.
    pub(crate) fn get(path: &'static str, id: &'static str, handler: MethodRouter<App>) -> Self {
        Self::of(Method::GET, path, id, handler)
    }

    pub(crate) fn of(
        method: Method,
        path: &'static str,
        id: &'static str,
        handler: MethodRouter<App>,
    ) -> Self {
        let route = Self {
            method,
            path,
            permission: Permission::Look,
            id,
            summary: "",
            description: String::new(),
            parameters: None,
            headers: Vec::new(),
            body: None,
            answers: Vec::new(),
            handler,
        };
        if path.contains('{') {
            route.refuses(
                StatusCode::NOT_FOUND,
                "There is no such thing, or it is another tenant's.",
            )
        } else {
            route
        }
    }

    /// What it does, in a few words.
    pub(crate) fn does(mut self, summary: &'static str) -> Self {
        self.summary = summary;
        self
    }

    /// What else is to be known.
    pub(crate) fn note(mut self, text: impl Into<String>) -> Self {
        self.description = text.into();
        self
    }

    pub(crate) fn needs(mut self, permission: Permission) -> Self {
        self.permission = permission;
        self
    }

    /// The parameters after the `?`: the fields of this type.
    pub(crate) fn parameters<T: JsonSchema>(mut self) -> Self {
        self.parameters = Some(whole_schema_of::<T>);
        self.refuses(
            StatusCode::NOT_FOUND,
            "There is no such thing, or it is another tenant's.",
        )
    }

    pub(crate) fn body<T: JsonSchema>(mut self, example: Value) -> Self {
        self.body = Some((schema_of::<T>, example));
        self.refuses(StatusCode::PAYLOAD_TOO_LARGE, "The body is too large.")
            .refuses(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "The body is not said to be JSON.",
            )
            .refuses(
                StatusCode::UNPROCESSABLE_ENTITY,
                "A field of the body cannot be used; `errors` names it.",
            )
    }

    /// The same request may be sent again under the same key.
    pub(crate) fn idempotent(mut self) -> Self {
        self.headers.push(Header {
            name: "Idempotency-Key",
            description: "The same key within seven days gives the same job; with another request it is refused (422).",
            is_required: false,
            max_length: Some(MAX_KEY_BYTES),
            example: "nightly-2026-11-21",
        });
        self.refuses(
            StatusCode::UNPROCESSABLE_ENTITY,
            "The key was used with another request.",
        )
    }

    /// It changes something that its caller has to have seen.
    pub(crate) fn on_condition(mut self) -> Self {
        self.headers.push(Header {
            name: "If-Match",
            description: "The `ETag` of what is to be changed.",
            is_required: true,
            max_length: None,
            example: "\"3b2e1f6c9d8a47b0a1c2d3e4f5061728\"",
        });
        self.refuses(
            StatusCode::PRECONDITION_FAILED,
            "It was changed by somebody else meanwhile.",
        )
        .refuses(StatusCode::PRECONDITION_REQUIRED, "`If-Match` is missing.")
    }

    /// It answers with a JSON document.
    pub(crate) fn answers<T: JsonSchema>(
        self,
        status: StatusCode,
        description: &'static str,
        example: impl Into<Option<Value>>,
    ) -> Self {
        self.answer(
            status,
            description,
            Content::Json(schema_of::<T>, example.into()),
        )
    }

    pub(crate) fn answer(
        mut self,
        status: StatusCode,
        description: &'static str,
        content: Content,
    ) -> Self {
        self.answers.push(Answer {
            status,
            description,
            content,
            headers: Vec::new(),
        });
        self
    }

    /// A header of the answer that was named last.
    pub(crate) fn with_header(mut self, name: &'static str, description: &'static str) -> Self {
        if let Some(answer) = self.answers.last_mut() {
            answer.headers.push((name, description));
        }
        self
    }

    /// It refuses with this status.
    pub(crate) fn refuses(self, status: StatusCode, description: &'static str) -> Self {
        if self.answers.iter().any(|answer| answer.status == status) {
            return self;
        }
        self.answer(status, description, Content::Problem)
    }
}

/// The router of all routes, each behind its guard.
pub(crate) fn router(app: &App, routes: Vec<Route>) -> Router {
    routes
        .into_iter()
        .fold(Router::new(), |router, route| {
            let guard = from_fn_with_state((app.clone(), route.permission), access::admit);
            router.route(route.path, route.handler.route_layer(guard))
        })
        .with_state(app.clone())
}
