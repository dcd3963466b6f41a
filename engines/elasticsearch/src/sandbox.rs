//! A place for a proof: scratch indices on a server that the operator names, or on the source's own where that is asked for.
//!
//! Their names begin with a prefix that no other index has, `fettler-proof-` with the job and the attempt, which is recorded
//! before the first of them is made. Whatever has this prefix is removed at the end, one by one and by its whole name. Backups
//! leave scratch indices out.

use fettler_engine::{
    Artefact, EngineContext, EngineError, Sandbox, SandboxRequest, SandboxSpec, Target,
};
use fettler_model::{DatabaseUrl, Engine};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{
    client::{Body, Client, encoded},
    params::Params,
    server::Server,
};

/// What the names of all scratch indices begin with.
const PREFIX: &str = "fettler-proof-";
/// Digits of the job in it, and of the attempt.
const JOB_DIGITS: usize = 12;
const ATTEMPT_DIGITS: usize = 16;

/// What is recorded of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Made {
    prefix: String,
}

/// Whether an index is one of a proof.
pub(crate) fn is_scratch(name: &str) -> bool {
    name.get(..PREFIX.len() + JOB_DIGITS + 1 + ATTEMPT_DIGITS + 1)
        .is_some_and(is_scratch_prefix)
}

/// Whether this is the prefix of one proof and of nothing else.
fn is_scratch_prefix(prefix: &str) -> bool {
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    prefix
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_suffix('-'))
        .and_then(|rest| rest.split_once('-'))
        .is_some_and(|(job, attempt)| is_hex(job, JOB_DIGITS) && is_hex(attempt, ATTEMPT_DIGITS))
}

fn prefix_of(context: &EngineContext) -> String {
    let job = context.attempt.job.uuid().simple().to_string();
    let attempt = format!("{:0>16}", context.attempt.token.to_string());
    let attempt = &attempt[attempt.len() - ATTEMPT_DIGITS..];
    format!("{PREFIX}{}-{attempt}-", &job[job.len() - JOB_DIGITS..])
}

/// Makes a place for a proof.
pub(crate) async fn open(
    context: &EngineContext,
    request: &SandboxRequest,
) -> Result<Sandbox, EngineError> {
    let missing = |what: &str| {
        EngineError::Missing {
        code: "sandbox",
        what: what.to_owned(),
        remedy: "name a server with `--sandbox elasticsearch://user@host`, or the source's own with `--sandbox source-server`: a proof makes scratch indices there, and removes them".to_owned(),
    }
    };
    let server = match (&request.spec, &request.server) {
        (SandboxSpec::Automatic, _) => {
            return Err(missing(
                "a proof of Elasticsearch needs a server to restore to, and starts none by itself",
            ));
        }
        (_, Some(server)) => server,
        (_, None) => return Err(missing("the sandbox's server is not known")),
    };
    let params = Params::of(server)?;
    let client = Client::of_attempt(&params, context)?;
    Server::of(&client).await?;
    if let Some(free_bytes) = crate::identify::free_disk(&client).await?
        && free_bytes < request.estimated_bytes
    {
        return Err(EngineError::NoSpace {
            place: format!("the disks of {}", client.server()),
            free_bytes,
            needed_bytes: request.estimated_bytes,
        });
    }
    let prefix = prefix_of(context);
    let artefact = Artefact {
        engine: Engine::Elasticsearch,
        kind: "indices".to_owned(),
        name: format!("{} {prefix}*", context.attempt),
        data: serde_json::to_value(Made {
            prefix: prefix.clone(),
        })
        .expect("plain data can be JSON"),
        until_job_ends: false,
    };
    context.artefacts.record(&artefact).await?;
    Ok(Sandbox {
        target: behind(server, &prefix)?,
        artefacts: vec![artefact],
        continued: false,
    })
}

/// The same server, with a prefix before the names of indices.
fn behind(server: &Target, prefix: &str) -> Result<Target, EngineError> {
    let failed = |error: String| EngineError::Database {
        what: format!("the sandbox's own URL: {error}"),
        transient: false,
    };
    let mut url = Url::parse(server.url.as_str()).map_err(|error| failed(error.to_string()))?;
    // Indices that the source's URL names are no part of the place.
    url.set_path("");
    let kept: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| name != "prefix")
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    url.query_pairs_mut()
        .clear()
        .extend_pairs(kept)
        .append_pair("prefix", prefix);
    let (url, _) = DatabaseUrl::parse_with_password(url.as_str())
        .map_err(|error| failed(error.to_string()))?;
    Ok(Target {
        url,
        password: server.password.clone(),
    })
}

/// Removes what was made.
pub(crate) async fn remove(
    artefact: &Artefact,
    server: Option<&Target>,
) -> Result<(), EngineError> {
    let made = Made::deserialize(&artefact.data)
        .ok()
        .filter(|made| is_scratch_prefix(&made.prefix))
        .ok_or_else(|| EngineError::Unusable {
            what: format!(
                "the record of {} {:?} names no sandbox",
                artefact.kind, artefact.name
            ),
            remedy: "remove it by hand, if there is one".to_owned(),
        })?;
    let server = server.ok_or_else(|| EngineError::Missing {
        code: "sandbox",
        what: "the sandbox's server is not known, and its indices cannot be removed".to_owned(),
        remedy: format!(
            "remove the indices whose names begin with {} by hand",
            made.prefix
        ),
    })?;
    let (client, _) = Client::of(server)?;
    // From a server's own snapshot data streams come back as such, and hold the indices behind them.
    let streams = client.try_get("/_data_stream").await?.unwrap_or_default();
    for stream in streams["data_streams"].as_array().into_iter().flatten() {
        let name = stream["name"].as_str().unwrap_or_default();
        if name.starts_with(&made.prefix) {
            let path = format!("/_data_stream/{}", encoded(name));
            let doing = format!("removing {name}");
            client
                .ask(Method::DELETE, &path, Body::Nothing, doing)
                .await?;
        }
    }
    let path = format!(
        "/_cat/indices/{}*?expand_wildcards=all&format=json&h=index",
        encoded(&made.prefix)
    );
    let found = match client.try_get(&path).await? {
        Ok(found) => found,
        Err(refusal) if refusal.is_not_found() => return Ok(()),
        Err(refusal) => return Err(refusal.doing(client.server(), "looking for scratch indices")),
    };
    let found = found.as_array().map_or(&[][..], Vec::as_slice);
    for index in found {
        let Some(name) = index["index"]
            .as_str()
            .filter(|name| name.starts_with(&made.prefix))
        else {
            continue;
        };
        let removed = client
            .try_ask(
                Method::DELETE,
                &format!("/{}", encoded(name)),
                Body::Nothing,
            )
            .await?;
        match removed {
            Ok(_) => {}
            Err(refusal) if refusal.is_not_found() => {}
            Err(refusal) => return Err(refusal.doing(client.server(), format!("removing {name}"))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_proof_names_is_scratch() {
        let prefix = "fettler-proof-0123456789ab-00000001c0ffee00-";
        assert!(is_scratch_prefix(prefix));
        assert!(is_scratch(&format!("{prefix}shop")));
        for name in [
            "fettler-proof-shop",
            "fettler-proof-0123456789ab-",
            "fettler-proof-0123456789aX-00000001c0ffee00-shop",
            "shop",
            "",
        ] {
            assert!(!is_scratch(name) && !is_scratch_prefix(name), "{name}");
        }
    }

    #[test]
    fn a_place_for_a_proof_is_the_whole_server_behind_a_prefix() {
        let (url, password) =
            DatabaseUrl::parse_with_password("opensearch+https://u:p@h:1/logs-*?ca=/x&prefix=a-")
                .unwrap();
        let place = behind(&Target { url, password }, "fettler-x-").unwrap();
        assert_eq!(
            place.url.as_str(),
            "opensearch+https://u@h:1?ca=%2Fx&prefix=fettler-x-"
        );
        assert!(place.password.is_some());
    }
}
