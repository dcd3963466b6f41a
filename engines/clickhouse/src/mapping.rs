//! What databases are called where a backup is put back.

use fettler_engine::EngineError;

use crate::params::Params;

/// Names of databases at the source and at the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// As they were.
    Same,
    /// With something before them.
    Prefix(String),
    /// One database with another name.
    One { from: String, to: String },
}

impl Mapping {
    /// The mapping of a target for the databases of a backup that are wanted.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] (`selection`) where several would have one name.
    pub(crate) fn of(params: &Params, databases: &[String]) -> Result<Self, EngineError> {
        match (&params.sandbox_prefix, &params.database, databases) {
            (Some(prefix), _, _) if prefix.is_empty() => Ok(Self::Same),
            (Some(prefix), _, _) => Ok(Self::Prefix(prefix.clone())),
            (None, None, _) => Ok(Self::Same),
            (None, Some(to), [from]) => Ok(Self::One {
                from: from.clone(),
                to: to.clone(),
            }),
            (None, Some(to), []) => Ok(Self::One {
                from: to.clone(),
                to: to.clone(),
            }),
            (None, Some(_), several) => Err(EngineError::Missing {
                code: "selection",
                what: format!(
                    "the target names one database, and {} are to be restored",
                    several.len()
                ),
                remedy: format!(
                    "leave the database out of the target's URL, or choose one: `--only {}`",
                    several[0]
                ),
            }),
        }
    }

    /// A database's name at the target.
    pub(crate) fn at_target(&self, name: &str) -> String {
        match self {
            Self::Prefix(prefix) => format!("{prefix}{name}"),
            Self::One { from, to } if from == name => to.clone(),
            Self::Same | Self::One { .. } => name.to_owned(),
        }
    }

    /// A database's name at the source; nothing for one that does not come from there.
    pub(crate) fn at_source(&self, name: &str) -> Option<String> {
        match self {
            Self::Same => Some(name.to_owned()),
            Self::Prefix(prefix) => name.strip_prefix(prefix.as_str()).map(str::to_owned),
            Self::One { from, to } => (name == to).then(|| from.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_to_the_target_and_back() {
        for mapping in [
            Mapping::Same,
            Mapping::Prefix("p_".to_owned()),
            Mapping::One {
                from: "shop".to_owned(),
                to: "copy".to_owned(),
            },
        ] {
            let there = mapping.at_target("shop");
            assert_eq!(mapping.at_source(&there).as_deref(), Some("shop"));
        }
    }
}
