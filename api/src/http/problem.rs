//! Refusals: what the interface answers when it does not do what was asked, in the form of RFC 9457. The
//! words come from the rooms that refuse; the status says what the caller can do.

use std::borrow::Cow;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use fettler_ledger::LedgerError;
use fettler_model::{ErrorClass, Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The media type of a problem document.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
/// When to try again what failed because somebody was away for a moment.
const RETRY_SECONDS: u64 = 2;

/// Why a request was refused (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProblemDocument {
    /// A stable name of this kind of problem: `urn:fettler:problem:` and a code.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the status means.
    pub title: String,
    /// The status.
    pub status: u16,
    /// What happened.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// Which fields of the request are wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

impl ProblemDocument {
    /// The problem's code.
    #[must_use]
    pub fn code(&self) -> &str {
        self.kind
            .strip_prefix("urn:fettler:problem:")
            .unwrap_or(&self.kind)
    }
}

/// What is wrong with one field of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FieldError {
    /// Its path, such as `arguments.to`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// A refusal on its way out.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    code: Cow<'static, str>,
    what: String,
    remedy: String,
    errors: Vec<FieldError>,
    retry_after_seconds: Option<u64>,
}

impl Refusal {
    pub(crate) fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code: code.into(),
            what: what.into(),
            remedy: remedy.into(),
            errors: Vec::new(),
            retry_after_seconds: None,
        }
    }

    /// The request cannot be read.
    pub(crate) fn unreadable(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "request.unreadable", what, remedy)
    }

    /// A parameter of the URL is wrong.
    pub(crate) fn parameter(name: &str, what: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "request.parameter",
            format!("the parameter `{name}` cannot be used"),
            "see /api/openapi.json",
        )
        .at(name, what)
    }

    /// A field of the body is wrong.
    pub(crate) fn field(field: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "request.field",
            format!("the field `{field}` cannot be used"),
            remedy,
        )
        .at(field, what)
    }

    /// There is no such thing, or it is not the caller's to see: both in the same words (P6).
    pub(crate) fn no_such(what: &'static str, name: impl Into<String>) -> Self {
        LedgerError::NotFound {
            what,
            name: name.into(),
        }
        .into()
    }

    /// The caller may not.
    pub(crate) fn forbidden(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "access.forbidden", what, remedy)
    }

    /// Nobody knows the caller. Whether a token never was, has expired or was removed is not told.
    pub(crate) fn unknown_caller() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "access.token",
            "the request bears no token that is known",
            "send `Authorization: Bearer TOKEN`; `fettler token add` makes one",
        )
    }

    /// Too much was asked for.
    pub(crate) fn too_many(what: impl Into<String>, retry_after_seconds: u64) -> Self {
        Self {
            retry_after_seconds: Some(retry_after_seconds.max(1)),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "request.too_many",
                what,
                "wait as long as `Retry-After` says",
            )
        }
    }

    /// Not now.
    pub(crate) fn unavailable(what: impl Into<String>) -> Self {
        Self {
            retry_after_seconds: Some(RETRY_SECONDS),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service.unavailable",
                what,
                "try again in a moment",
            )
        }
    }

    /// Names a field.
    pub(crate) fn at(mut self, field: &str, message: impl Into<String>) -> Self {
        self.errors.push(FieldError {
            field: field.to_owned(),
            message: message.into(),
        });
        self
    }

    /// The same refusal, told for a row of a batch.
    pub(crate) fn document(&self) -> ProblemDocument {
        ProblemDocument {
            kind: format!("urn:fettler:problem:{}", self.code),
            title: self
                .status
                .canonical_reason()
                .unwrap_or("Refused")
                .to_owned(),
            status: self.status.as_u16(),
            detail: self.what.clone(),
            remedy: self.remedy.clone(),
            errors: self.errors.clone(),
        }
    }
}

impl From<LedgerError> for Refusal {
    fn from(error: LedgerError) -> Self {
        let status = match &error {
            LedgerError::NotFound { .. } => StatusCode::NOT_FOUND,
            LedgerError::Ambiguous { .. }
            | LedgerError::Exists { .. }
            | LedgerError::Conflict { .. }
            | LedgerError::Superseded { .. } => StatusCode::CONFLICT,
            LedgerError::Changed { .. } => StatusCode::PRECONDITION_FAILED,
            LedgerError::IdempotencyMismatch { .. } | LedgerError::Refused { .. } => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            LedgerError::Unavailable { .. } | LedgerError::Busy { .. } | LedgerError::Closed => {
                // What the database said is the operator's to read.
                tracing::warn!(%error, "the ledger did not answer a request");
                return Self::unavailable("the ledger does not answer at this moment");
            }
            LedgerError::BadUrl { .. }
            | LedgerError::NewerSchema { .. }
            | LedgerError::Damaged { .. }
            | LedgerError::Database { .. } => {
                tracing::error!(%error, "a request failed");
                return Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "service.failed",
                    "the request failed for a reason that is not the caller's",
                    "the log of this process says more",
                );
            }
        };
        Self::new(status, error.code(), error.to_string(), error.remedy())
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        match problem.class {
            ErrorClass::Transient | ErrorClass::Snooze => {
                tracing::warn!(code = problem.code, "{}", problem.what);
                Self::unavailable("something that the request needs does not answer at this moment")
            }
            _ => {
                tracing::error!(code = problem.code, "{}", problem.what);
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "service.failed",
                    "the request failed for a reason that is not the caller's",
                    "the log of this process says more",
                )
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::to_string(&self.document()).expect("a problem is text and numbers");
        let mut response =
            (self.status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
