//! What a job kind is, and the list of all of them.

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use fettler_model::{ExclusionClass, JobKindName, Problem, SlotClass};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use thiserror::Error;

use crate::JobContext;

/// One kind of job.
#[async_trait]
pub trait JobKind: Send + Sync + 'static {
    /// Its name, as users write it.
    const NAME: &'static str;
    /// Rises when arguments change so that an older worker would misread them.
    const VERSION: u32 = 1;
    /// What may run beside it on its database.
    const EXCLUSION: ExclusionClass;
    /// Which slot of a worker it takes.
    const SLOT: SlotClass;
    /// How often it is tried before it is dead.
    const MAX_TRIES: u32 = 5;
    /// What it takes.
    type Arguments: DeserializeOwned + Serialize + JsonSchema + Send;
    /// What it gives.
    type Output: Serialize + JsonSchema + Send;

    /// Does the work. May be called again after any crash, with the checkpoint of the last attempt.
    async fn run(
        &self,
        context: &JobContext,
        arguments: Self::Arguments,
    ) -> Result<Self::Output, Problem>;
}

/// A [`JobKind`] whose types are hidden behind JSON.
#[async_trait]
pub trait DynKind: Send + Sync {
    /// Its name.
    fn name(&self) -> JobKindName;
    /// See [`JobKind::VERSION`].
    fn version(&self) -> u32;
    /// What may run beside it on its database.
    fn exclusion(&self) -> ExclusionClass;
    /// Which slot of a worker it takes.
    fn slot(&self) -> SlotClass;
    /// How often it is tried before it is dead.
    fn max_tries(&self) -> u32;
    /// The JSON schema of its arguments.
    fn argument_schema(&self) -> Value;
    /// Refuses arguments that the kind cannot read, naming the field.
    fn check_arguments(&self, arguments: &Value) -> Result<(), Problem>;
    /// Does the work.
    async fn run(&self, context: &JobContext, arguments: Value) -> Result<Value, Problem>;
}

#[async_trait]
impl<K: JobKind> DynKind for K {
    fn name(&self) -> JobKindName {
        K::NAME.parse().expect("the names of job kinds are valid")
    }

    fn version(&self) -> u32 {
        K::VERSION
    }

    fn exclusion(&self) -> ExclusionClass {
        K::EXCLUSION
    }

    fn slot(&self) -> SlotClass {
        K::SLOT
    }

    fn max_tries(&self) -> u32 {
        K::MAX_TRIES
    }

    fn argument_schema(&self) -> Value {
        schemars::schema_for!(K::Arguments).into()
    }

    fn check_arguments(&self, arguments: &Value) -> Result<(), Problem> {
        read_arguments::<K>(arguments).map(drop)
    }

    async fn run(&self, context: &JobContext, arguments: Value) -> Result<Value, Problem> {
        let arguments = read_arguments::<K>(&arguments)?;
        let output = JobKind::run(self, context, arguments).await?;
        serde_json::to_value(output).map_err(|error| {
            Problem::permanent(
                "job.result",
                format!("the result of a {} job cannot be written: {error}", K::NAME),
                "",
            )
        })
    }
}

fn read_arguments<K: JobKind>(arguments: &Value) -> Result<K::Arguments, Problem> {
    let given = if arguments.is_null() {
        Value::Object(serde_json::Map::new())
    } else {
        arguments.clone()
    };
    serde_json::from_value(given).map_err(|error| {
        Problem::permanent(
            "job.arguments",
            format!("the arguments of a {} job cannot be read: {error}", K::NAME),
            format!("`fettler kinds {}` shows what it takes", K::NAME),
        )
    })
}

/// A kind of this name is not known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no job kind is called {name:?}: there are {known}")]
pub struct UnknownKind {
    name: String,
    known: String,
}

/// The job kinds that a process knows.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: BTreeMap<String, Arc<dyn DynKind>>,
}

impl Registry {
    /// No kinds.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Adds a kind.
    #[must_use]
    pub fn with(mut self, kind: impl JobKind) -> Self {
        let kind: Arc<dyn DynKind> = Arc::new(kind);
        self.kinds.insert(kind.name().to_string(), kind);
        self
    }

    /// The kind of this name.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn get(&self, name: &str) -> Result<&Arc<dyn DynKind>, UnknownKind> {
        self.kinds.get(name).ok_or_else(|| UnknownKind {
            name: name.to_owned(),
            known: self.kinds.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// All kinds, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn DynKind>> {
        self.kinds.values()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.kinds.keys()).finish()
    }
}
