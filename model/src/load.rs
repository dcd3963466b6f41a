//! How busy a database's server may be when long work on it begins.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Above these, a long job waits. What is not given is not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LoadLimits {
    /// How many clients may be connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// How far replicas may be behind, in seconds; on a replica, how far it is behind itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_lag_seconds: Option<u64>,
    /// How long an empty question may take, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_milliseconds: Option<u64>,
}

/// How busy a server is, as far as it tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerLoad {
    /// How many clients are connected, without the one that asks.
    pub connections: Option<u64>,
    /// How far the last of its replicas is behind, or it itself, in seconds.
    pub replication_lag_seconds: Option<u64>,
    /// How long an empty question took, in milliseconds.
    pub latency_milliseconds: Option<u64>,
}

impl LoadLimits {
    /// Whether nothing is looked at.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The first thing that is over its limit, in words: `replication lag 45 s > 30 s`.
    #[must_use]
    pub fn exceeded_by(&self, load: &ServerLoad) -> Option<String> {
        let over = |what: &str, unit: &str, seen: Option<u64>, most: Option<u64>| {
            let (seen, most) = (seen?, most?);
            (seen > most).then(|| format!("{what} {seen}{unit} > {most}{unit}"))
        };
        over("connections", "", load.connections, self.connections)
            .or_else(|| {
                over(
                    "replication lag",
                    " s",
                    load.replication_lag_seconds,
                    self.replication_lag_seconds,
                )
            })
            .or_else(|| {
                over(
                    "latency",
                    " ms",
                    load.latency_milliseconds,
                    self.latency_milliseconds,
                )
            })
    }

    /// What was to be looked at and is not told by the server.
    #[must_use]
    pub fn untold(&self, load: &ServerLoad) -> Vec<&'static str> {
        [
            ("connections", self.connections, load.connections),
            (
                "replication lag",
                self.replication_lag_seconds,
                load.replication_lag_seconds,
            ),
            (
                "latency",
                self.latency_milliseconds,
                load.latency_milliseconds,
            ),
        ]
        .into_iter()
        .filter(|(_, wanted, told)| wanted.is_some() && told.is_none())
        .map(|(what, _, _)| what)
        .collect()
    }
}

impl fmt::Display for LoadLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = [
            self.connections.map(|most| format!("connections {most}")),
            self.replication_lag_seconds
                .map(|most| format!("replication lag {most} s")),
            self.latency_milliseconds
                .map(|most| format!("latency {most} ms")),
        ]
        .into_iter()
        .flatten()
        .collect();
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_its_limit_is_said_with_both_numbers() {
        let limits = LoadLimits {
            replication_lag_seconds: Some(30),
            latency_milliseconds: Some(100),
            ..LoadLimits::default()
        };
        let busy = ServerLoad {
            connections: Some(10_000),
            replication_lag_seconds: Some(45),
            latency_milliseconds: Some(3),
        };
        assert_eq!(
            limits.exceeded_by(&busy).unwrap(),
            "replication lag 45 s > 30 s"
        );
        let silent = ServerLoad {
            latency_milliseconds: Some(100),
            ..ServerLoad::default()
        };
        assert_eq!(limits.exceeded_by(&silent), None);
        assert_eq!(limits.untold(&silent), ["replication lag"]);
    }
}
