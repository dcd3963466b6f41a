//! Redis: memory and what is evicted, large and hot keys, encodings just above their limits, expiry, persistence.
//!
//! Keys are sampled by `SCAN`, whose order says nothing of age or name, within a limit of time. Names of keys may name people:
//! only what stands before the last `:` is shown. Settings are changed (`CONFIG SET`) only where no client can lose anything by it.

mod advice;
mod sample;

use std::collections::BTreeMap;

use fettler_engine::{EngineError, StatementError, Workbench};
use fettler_model::{Engine, TuningRecord};
use serde_json::Value;

use self::sample::{Sample, sample};
use crate::{
    Look,
    advice::{Advice, told},
};

/// What is known of a server.
struct Facts {
    /// `INFO everything`.
    info: BTreeMap<String, String>,
    /// `CONFIG GET *`, or why it is not told.
    config: Result<BTreeMap<String, String>, String>,
    sample: Sample,
}

impl Facts {
    fn number(&self, name: &str) -> f64 {
        self.info
            .get(name)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0.0)
    }

    fn setting(&self, name: &str) -> Option<&str> {
        Some(self.config.as_ref().ok()?.get(name)?.as_str())
    }

    fn setting_number(&self, name: &str) -> Option<f64> {
        self.setting(name)?.parse().ok()
    }
}

/// A command as the workbench takes it.
fn words(words: &[&str]) -> String {
    Value::from(words).to_string()
}

/// Looks at a server, and changes nothing.
///
/// # Errors
///
/// When it cannot be asked.
pub async fn look(
    bench: &mut dyn Workbench,
    records: &[TuningRecord],
) -> Result<Look, EngineError> {
    let mut info = told(bench, &words(&["INFO", "everything"])).await?;
    if info.is_err() {
        info = told(bench, &words(&["INFO"])).await?;
    }
    let info = info.map_err(|error| {
        StatementError::Refused {
            code: "INFO".to_owned(),
            message: error,
        }
        .doing("asking the server about itself")
    })?;
    let info = fields(info.as_str().unwrap_or_default());
    let config = told(bench, &words(&["CONFIG", "GET", "*"]))
        .await?
        .map(|value| pairs(&value));
    let is_lfu = config.as_ref().is_ok_and(|config| {
        config
            .get("maxmemory-policy")
            .is_some_and(|name| name.contains("lfu"))
    });
    let facts = Facts {
        sample: sample(bench, &info, is_lfu).await?,
        info,
        config,
    };
    let mut advice = Advice::of(Engine::Redis);
    advice::advise(&mut advice, &facts);
    let version = facts.info.get("redis_version").cloned().unwrap_or_default();
    Ok(advice.end(version, records))
}

fn fields(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.trim_end().split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A map, or a list of names and values in turn, as the protocol's older version has it.
fn pairs(value: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match value {
        Value::Object(map) => map
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), text(value)?)))
            .collect(),
        Value::Array(list) => list
            .chunks_exact(2)
            .filter_map(|pair| Some((text(&pair[0])?, text(&pair[1])?)))
            .collect(),
        _ => BTreeMap::new(),
    }
}
