//! What attempts made outside and did not remove themselves (rule 6): recorded before it was made, named
//! after the attempt, and removed here once the attempt has ended, by whichever worker can.

use std::sync::LazyLock;

use fettler_engine::Artefact;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// This machine's name, as recorded with an artefact: a process or a folder can be removed only where
/// it is.
static MACHINE: LazyLock<String> = LazyLock::new(|| {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map_or_else(String::new, |name| name.trim().to_owned())
});

/// An artefact as the ledger keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RecordedArtefact {
    /// The machine on which the attempt ran.
    machine: String,
    /// What was made.
    pub(crate) artefact: Artefact,
}

impl RecordedArtefact {
    /// Something that an attempt on this machine makes.
    pub(crate) fn here(artefact: Artefact) -> Self {
        Self {
            machine: MACHINE.clone(),
            artefact,
        }
    }

    /// Reads what the ledger kept.
    pub(crate) fn from_value(value: &Value) -> Result<Self, serde_json::Error> {
        Self::deserialize(value)
    }

    /// What the ledger is to keep.
    pub(crate) fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("an artefact is plain data")
    }

    /// Names it within its job.
    pub(crate) fn name(&self) -> String {
        let Artefact {
            engine, kind, name, ..
        } = &self.artefact;
        format!("{engine}/{kind}/{name}")
    }

    /// Whether it was made on this machine.
    pub(crate) fn is_of_this_machine(&self) -> bool {
        self.machine == *MACHINE
    }
}
