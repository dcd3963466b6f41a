//! A place for a proof: databases of a random name on a server that was named, or on the source's own where that was asked for.
//!
//! All names begin with a prefix of sixteen random digits, which is recorded before anything is made. Whatever begins with it
//! is ours; nothing else is ever removed. In such a place documents expire in 68 years only ([`crate::catalog`]): none may
//! vanish between the restore and the comparison.

use bson::rawdoc;
use fettler_engine::{
    Artefact, EngineContext, EngineError, Sandbox, SandboxRequest, SandboxSpec, Target,
};
use fettler_model::{DatabaseUrl, Engine};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{
    catalog::all_databases, identify::require_writable, params::Params, session::Session,
    shards::balancer,
};

/// What every prefix begins with.
const MARK: &str = "fettler_";
/// Random bytes in a prefix.
const RANDOM_BYTES: usize = 8;
/// The setting of a URL that says that all databases begin with a prefix.
const SETTING: &str = "fettlerScratch";

/// What is recorded of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
enum Made {
    /// Databases that begin with a prefix.
    Databases { prefix: String },
}

/// Whether a target is a scratch area.
pub(crate) fn is_scratch(params: &Params) -> bool {
    params.scratch.is_some()
}

/// Whether a database lies in a scratch area.
pub(crate) fn is_in(params: &Params, database: &str) -> bool {
    params
        .scratch
        .as_ref()
        .is_some_and(|prefix| database.starts_with(prefix.as_str()))
}

/// Whether a text can be a prefix of ours: anything that begins with less might be somebody's.
fn is_prefix(text: &str) -> bool {
    text.strip_prefix(MARK)
        .and_then(|rest| rest.strip_suffix('_'))
        .is_some_and(|digits| {
            digits.len() == RANDOM_BYTES * 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

/// Whether a database lies in some proof's scratch area: it comes and goes, and is no part of a backup.
pub(crate) fn is_some_scratch(database: &str) -> bool {
    database
        .get(..MARK.len() + RANDOM_BYTES * 2 + 1)
        .is_some_and(is_prefix)
}

/// Makes a place for a proof.
pub(crate) async fn open(
    context: &EngineContext,
    request: &SandboxRequest,
) -> Result<Sandbox, EngineError> {
    let server = match (&request.spec, &request.server) {
        (SandboxSpec::Automatic, _) => {
            return Err(EngineError::Missing {
                code: "sandbox",
                what: "a proof of a MongoDB backup needs a server to restore to".to_owned(),
                remedy: "name one with `--sandbox mongodb://user@host` (its own databases are not touched), or use the source's with `--sandbox source-server`".to_owned(),
            });
        }
        (_, Some(server)) => server,
        (_, None) => {
            return Err(EngineError::Missing {
                code: "sandbox",
                what: "the sandbox's server is not known".to_owned(),
                remedy: "name its URL".to_owned(),
            });
        }
    };
    let mut params = Params::of(server)?;
    let mut session = Session::of_attempt(&params, context).await?;
    require_writable(&session)?;
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(|error| {
        EngineError::local("asking for random bytes", std::io::Error::other(error))
    })?;
    let prefix = format!("{MARK}{}_", hex::encode(random));
    params.scratch = Some(prefix.clone());
    if all_databases(&mut session)
        .await?
        .iter()
        .any(|name| is_in(&params, name))
    {
        return Err(EngineError::Database {
            what: format!("{} has databases of the sandbox's name", session.server()),
            transient: true,
        });
    }
    let target = scratch_target(server, &prefix)?;
    let artefact = Artefact {
        engine: Engine::Mongodb,
        kind: "databases".to_owned(),
        name: format!("{} {prefix} {}", context.attempt, params.server()),
        data: serde_json::to_value(Made::Databases { prefix }).expect("plain data can be JSON"),
        until_job_ends: false,
    };
    context.artefacts.record(&artefact).await?;
    Ok(Sandbox {
        target,
        artefacts: vec![artefact],
        continued: false,
    })
}

/// The server with the prefix, and without a database of its own; who knows the user stays the same.
fn scratch_target(server: &Target, prefix: &str) -> Result<Target, EngineError> {
    let failed = |what: String| EngineError::Database {
        what: format!("the sandbox's own URL: {what}"),
        transient: false,
    };
    let params = Params::of(server)?;
    let mut url = Url::parse(server.url.as_str()).map_err(|error| failed(error.to_string()))?;
    url.set_path("/");
    let kept: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| {
            !name.eq_ignore_ascii_case(SETTING) && !name.eq_ignore_ascii_case("authSource")
        })
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    url.query_pairs_mut()
        .clear()
        .extend_pairs(kept)
        .append_pair("authSource", &params.auth_source)
        .append_pair(SETTING, prefix);
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
    if artefact.kind == balancer::KIND {
        let server = server.ok_or_else(|| EngineError::Missing {
            code: "server",
            what: format!(
                "the router of {} is not known, and the cluster's balancer stands still",
                artefact.name
            ),
            remedy: "start it by hand: `sh.startBalancer()`".to_owned(),
        })?;
        return balancer::start(&mut Session::visit(&Params::of(server)?).await?).await;
    }
    let by_hand = || "drop the databases whose names begin with its prefix by hand".to_owned();
    let Made::Databases { prefix } =
        Made::deserialize(&artefact.data).map_err(|error| EngineError::Unusable {
            what: format!(
                "the record of {} {:?} cannot be read: {error}",
                artefact.kind, artefact.name
            ),
            remedy: by_hand(),
        })?;
    if !is_prefix(&prefix) {
        return Err(EngineError::Unusable {
            what: format!("{prefix:?} is no prefix of a sandbox's databases"),
            remedy: by_hand(),
        });
    }
    let server = server.ok_or_else(|| EngineError::Missing {
        code: "sandbox",
        what: format!(
            "the sandbox's server is not known, and its databases ({prefix}…) cannot be removed"
        ),
        remedy: by_hand(),
    })?;
    let mut session = Session::visit(&Params::of(server)?).await?;
    for name in all_databases(&mut session).await? {
        if name.starts_with(&prefix) {
            session
                .run(
                    &name,
                    rawdoc! { "dropDatabase": 1 },
                    &format!("removing {name}"),
                )
                .await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_whole_prefix_is_ours() {
        assert!(is_prefix("fettler_0123456789abcdef_"));
        for other in [
            "",
            "fettler_",
            "fettler__",
            "fettler_0123_",
            "shop",
            "fettler_0123456789abcdeg_",
            "fettler_0123456789abcdef",
        ] {
            assert!(!is_prefix(other), "{other}");
        }
    }

    #[test]
    fn databases_of_a_scratch_area_are_told_by_their_name() {
        assert!(is_some_scratch("fettler_0123456789abcdef_shop"));
        for other in [
            "fettler_shop",
            "shop",
            "fettler_0123456789abcdefshop",
            "fettler_0123456789abcde\u{e9}_x",
        ] {
            assert!(!is_some_scratch(other), "{other}");
        }
    }

    #[test]
    fn a_scratch_areas_url_keeps_who_knows_the_user() {
        let target = |text: &str| {
            let (url, password) = DatabaseUrl::parse_with_password(text).unwrap();
            Target { url, password }
        };
        for (server, source) in [
            ("mongodb://ann:x@h/shop?tls=true", "shop"),
            ("mongodb://ann:x@h/shop?authSource=admin", "admin"),
            ("mongodb://ann:x@h", "admin"),
        ] {
            let made = scratch_target(&target(server), "fettler_0123456789abcdef_").unwrap();
            let params = Params::of(&made).unwrap();
            assert_eq!(
                (params.auth_source.as_str(), params.database),
                (source, None)
            );
            assert_eq!(params.scratch.as_deref(), Some("fettler_0123456789abcdef_"));
            assert!(made.password.is_some());
        }
    }
}
