//! Reading requests: bodies and parameters, with every mistake named by its field. What no ledger can keep
//! (a NUL character) is refused here, whatever route it is for.

use std::ops::RangeInclusive;

use axum::{
    body::Body as HttpBody,
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use percent_encoding::percent_decode_str;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{App, problem::Refusal};

/// How many rows a page has when nobody says, and at most.
pub(crate) const PAGE: usize = 100;
pub(crate) const MAX_PAGE: usize = 1000;
/// More unknown fields than anybody wants to read about.
const MAX_NAMED: usize = 10;
/// The longest idempotency key that is taken.
pub(crate) const MAX_KEY_BYTES: usize = 255;
/// What to do about a field of a body that cannot be used.
pub(crate) const SEE: &str = "see /api/openapi.json for what it takes";

/// The JSON body of a request, within the limit of its size.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<Self, Refusal> {
        let RawBody(value) = RawBody::from_request(request, app).await?;
        read(value).map(Self)
    }
}

/// The same, not yet read as anything.
pub(crate) struct RawBody(pub(crate) Value);

impl FromRequest<App> for RawBody {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<Self, Refusal> {
        let kind = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .map(str::trim);
        if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "request.media_type",
                "the body is not said to be JSON",
                "send `Content-Type: application/json`",
            ));
        }
        let bytes = whole(request.into_body(), app.options.max_body_bytes).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            Refusal::unreadable(
                format!("the body is not JSON: {error}"),
                "send one JSON document",
            )
        })
    }
}

/// The whole body, when it is not too large.
async fn whole(body: HttpBody, max_bytes: usize) -> Result<axum::body::Bytes, Refusal> {
    match Limited::new(body, max_bytes).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request.too_large",
            format!("the body has more than {max_bytes} bytes"),
            "send less at once, or raise `api.max_body_kilobytes`",
        )),
        Err(_) => Err(Refusal::unreadable(
            "the body ended too early",
            "send it again",
        )),
    }
}

/// Reads a value as what a route takes. Fields that it does not know are mistakes, wherever they stand.
pub(crate) fn read<T: DeserializeOwned>(value: Value) -> Result<T, Refusal> {
    if let Some(field) = nul(&value, "") {
        return Err(Refusal::field(
            &field,
            "it holds a NUL character, which nobody can keep",
            "take the character out",
        ));
    }
    read_fields(value)
}

/// The same where the texts inside are looked at later, part by part.
pub(crate) fn read_fields<T: DeserializeOwned>(value: Value) -> Result<T, Refusal> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let reader = serde_path_to_error::Deserializer::new(value, &mut track);
    let read = serde_ignored::deserialize(reader, |path| {
        if unknown.len() < MAX_NAMED {
            unknown.push(plain_path(&path.to_string()));
        }
    });
    let read = read.map_err(|error: serde_json::Error| {
        let path = plain_path(&track.path().to_string());
        let path = if path.is_empty() {
            "body".to_owned()
        } else {
            path
        };
        Refusal::field(&path, error.to_string(), SEE)
    })?;
    if unknown.is_empty() {
        return Ok(read);
    }
    let remedy = "take it out, or look for a slip; /api/openapi.json names all fields";
    let first = Refusal::field(&unknown[0], "there is no such field", remedy);
    Err(unknown[1..].iter().fold(first, |refusal, field| {
        refusal.at(field, "there is no such field")
    }))
}

/// A path as people write it: without the marks of optional values.
fn plain_path(path: &str) -> String {
    path.split('.')
        .filter(|part| !part.is_empty() && *part != "?")
        .collect::<Vec<_>>()
        .join(".")
}

/// Where a text of the value holds a NUL character.
fn nul(value: &Value, path: &str) -> Option<String> {
    let inner = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    match value {
        Value::String(text) if text.contains('\0') => Some(if path.is_empty() {
            "body".to_owned()
        } else {
            path.to_owned()
        }),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(at, item)| nul(item, &inner(&at.to_string()))),
        Value::Object(members) => members.iter().find_map(|(name, value)| {
            if name.contains('\0') {
                Some(inner("…"))
            } else {
                nul(value, &inner(name))
            }
        }),
        _ => None,
    }
}

/// The parameters after the `?`.
pub(crate) struct Parameters<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(read)) => Ok(Self(read)),
            Err(error) => Err(Refusal::unreadable(
                format!("a parameter cannot be read: {}", error.body_text()),
                "see /api/openapi.json for what the route takes",
            )),
        }
    }
}

/// How many rows a page is to have.
pub(crate) fn limit(asked: Option<usize>) -> Result<usize, Refusal> {
    match asked {
        None => Ok(PAGE),
        Some(limit) if (1..=MAX_PAGE).contains(&limit) => Ok(limit),
        Some(_) => Err(Refusal::parameter(
            "limit",
            format!("it is a number from 1 to {MAX_PAGE}"),
        )),
    }
}

/// Says what is wrong with a text that is shorter or longer, in characters, than the document of the API says.
pub(crate) fn length(text: Option<&str>, taken: RangeInclusive<usize>) -> Result<(), String> {
    let Some(characters) = text.map(|text| text.chars().count()) else {
        return Ok(());
    };
    if taken.contains(&characters) {
        return Ok(());
    }
    Err(format!(
        "it has {} to {} characters, and this one has {characters}",
        taken.start(),
        taken.end()
    ))
}

/// Words that are separated by commas.
pub(crate) fn words<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &str,
    text: Option<&str>,
) -> Result<Vec<T>, Refusal> {
    text.into_iter()
        .flat_map(|text| text.split(','))
        .map(|word| {
            word.parse()
                .map_err(|error: T::Err| Refusal::parameter(name, error.to_string()))
        })
        .collect()
}

/// The key under which a request may be repeated.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .filter(|key| !key.is_empty() && key.len() <= MAX_KEY_BYTES)
        .map(|key| Some(key.to_owned()))
        .ok_or_else(|| {
            Refusal::parameter(
                "Idempotency-Key",
                format!("it has 1 to {MAX_KEY_BYTES} visible characters"),
            )
        })
}

/// The mark of a thing's state, for whoever changes it.
pub(crate) fn etag(of: &impl Serialize) -> String {
    let text = serde_json::to_vec(of).expect("records are text, numbers and lists");
    format!("\"{}\"", &blake3::hash(&text).to_hex()[..32])
}

/// Refuses a change of what its changer has not seen.
pub(crate) fn if_match(headers: &HeaderMap, etag: &str) -> Result<(), Refusal> {
    let wanted = headers
        .get(header::IF_MATCH)
        .filter(|wanted| !wanted.as_bytes().trim_ascii().is_empty());
    let Some(wanted) = wanted else {
        return Err(Refusal::new(
            StatusCode::PRECONDITION_REQUIRED,
            "request.if_match",
            "the change does not say which state of the thing it changes",
            "get the thing first, and send its `ETag` as `If-Match`",
        ));
    };
    let matches = wanted.to_str().is_ok_and(|wanted| {
        wanted
            .split(',')
            .map(str::trim)
            .any(|one| one == "*" || one == etag)
    });
    if matches {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::PRECONDITION_FAILED,
        "ledger.changed",
        "it was changed by somebody else meanwhile",
        "get it again, and then change it",
    ))
}

/// Refuses addresses that no text can be read from.
pub(crate) async fn readable(request: Request, next: Next) -> Response {
    let uri = request.uri();
    let is_text = |part: &str| {
        percent_decode_str(part)
            .decode_utf8()
            .is_ok_and(|text| !text.contains('\0'))
    };
    if is_text(uri.path()) && uri.query().is_none_or(is_text) {
        return next.run(request).await;
    }
    Refusal::unreadable(
        "the address holds a NUL character, or bytes that are not UTF-8",
        "encode it as UTF-8",
    )
    .into_response()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[serde(default)]
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        #[allow(dead_code, reason = "only whether it can be read is asked")]
        number: u32,
    }

    fn mistakes(value: Value) -> Vec<String> {
        let refusal = read::<Outer>(value).unwrap_err();
        let errors = refusal.document().errors;
        errors.into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn a_mistake_in_a_body_is_named_by_its_field() {
        assert!(
            read::<Outer>(json!({"inner": {"number": 1}}))
                .unwrap()
                .inner
                .is_some()
        );
        assert_eq!(
            mistakes(json!({"inner": {"number": "x"}})),
            ["inner.number"]
        );
        assert_eq!(
            mistakes(json!({"iner": 1, "inner": {"number": 1, "numbre": 2}})),
            ["iner", "inner.numbre"]
        );
        assert_eq!(
            mistakes(json!({"inner": {"number": "a\u{0}"}})),
            ["inner.number"]
        );
    }
}
