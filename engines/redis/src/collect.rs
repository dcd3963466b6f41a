//! Where the keys of a server go while they are read: into the fingerprints of what was found, and into the order of
//! the backup.

use fettler_engine::{EngineContext, EngineError, RowHasher};
use std::path::Path;

use crate::{
    cluster::{SlotSet, slot_of},
    found::{Found, FoundDatabase},
    rdb::{Event, RdbError},
    records::{Element, KeyHasher, Kind, OrderedStreams, Spool, SpoolError},
    select::Selection,
    server_data::library_name,
};

/// Separates the order of keys from all other uses of the tenant's key.
const ORDER_CONTEXT: &str = "fettler redis order of keys";
/// So many keys are counted as progress at once.
const KEYS_A_PULSE: u64 = 256;

/// Why collecting stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CollectError {
    #[error(transparent)]
    Rdb(#[from] RdbError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("stopped")]
    Stopped,
}

impl CollectError {
    /// What it means, with what was being done.
    pub(crate) fn doing(self, doing: &str) -> EngineError {
        match self {
            Self::Stopped => EngineError::Stopped,
            Self::Spool(error) => of_spool(error),
            Self::Rdb(RdbError::Unsupported { .. }) => EngineError::Missing {
                code: "version",
                what: format!("{doing}: {self}"),
                remedy:
                    "the server is newer than this version of Fettler understands: take a newer one"
                        .to_owned(),
            },
            Self::Rdb(error) => EngineError::Database {
                what: format!("{doing}: {error}"),
                transient: true,
            },
        }
    }
}

/// What a failure of ordering means.
pub(crate) fn of_spool(error: SpoolError) -> EngineError {
    let SpoolError::Io { folder, source } = error;
    EngineError::local(format!("ordering the keys in {}", folder.display()), source)
}

/// Collects keys. Blocks.
#[derive(Debug)]
pub(crate) struct Collector {
    context: EngineContext,
    selection: Selection,
    hasher: KeyHasher,
    spool: Spool,
    found: Found,
    /// The code of libraries of functions.
    functions: Vec<Vec<u8>>,
    /// The types of modules that keep something beside keys.
    modules: Vec<u64>,
    /// The slots of the node whose keys come, where it is one of a cluster.
    slots: Option<SlotSet>,
    /// Keys that were in none of its slots.
    foreign: u64,
    /// The database whose facts are told.
    database: u32,
    /// The key that is read, unless it is left out.
    key: Option<(u32, Kind)>,
    keys: u64,
    /// Only for the test of rule 30: the reader loses a key.
    loses_a_key: bool,
}

/// What was collected.
#[derive(Debug)]
pub(crate) struct Collected {
    pub(crate) found: Found,
    pub(crate) functions: Vec<Vec<u8>>,
    pub(crate) modules: Vec<u64>,
    /// Keys that were left out since their node does not serve their slots.
    pub(crate) foreign: u64,
    pub(crate) streams: OrderedStreams,
}

impl Collector {
    /// Collects what a selection has; `folder` exists and is empty.
    pub(crate) fn new(
        context: &EngineContext,
        selection: Selection,
        folder: &Path,
        loses_a_key: bool,
    ) -> Self {
        let order = blake3::derive_key(ORDER_CONTEXT, &context.fingerprint_key);
        Self {
            context: context.clone(),
            selection,
            hasher: KeyHasher::new(RowHasher::new(&context.fingerprint_key)),
            spool: Spool::new(folder, &order),
            found: Found::new(),
            functions: Vec::new(),
            modules: Vec::new(),
            slots: None,
            foreign: 0,
            database: 0,
            key: None,
            keys: 0,
            loses_a_key,
        }
    }

    /// What comes next is another node's.
    pub(crate) fn begin_node(&mut self, slots: Option<SlotSet>) {
        self.slots = slots;
        self.database = 0;
        self.key = None;
    }

    /// Whether the node whose keys come serves this one's slot.
    fn is_served(&self, key: &[u8]) -> bool {
        self.slots
            .as_ref()
            .is_none_or(|slots| slots.has(slot_of(key)))
    }

    /// Takes what comes next.
    pub(crate) fn take(&mut self, event: &Event<'_>) -> Result<(), CollectError> {
        match event {
            Event::Database(number) => self.database = *number,
            Event::SizeHint { keys, .. } => {
                if self.selection.may_have(self.database) {
                    let database = self.database(self.database);
                    // Each node of a cluster counts its own.
                    database.counted = Some(database.counted.unwrap_or(0) + keys);
                }
            }
            Event::Function(code) => self.function(code),
            Event::ModuleAux { module, .. } => {
                if !self.modules.contains(module) {
                    self.modules.push(*module);
                }
            }
            Event::Begin(head) => {
                self.key = None;
                if self.loses_a_key {
                    self.loses_a_key = false;
                } else if !self.is_served(head.key) {
                    self.foreign += 1;
                    self.database(head.database).left_out += 1;
                } else if self.selection.has(head.database, head.key) {
                    self.key = Some((head.database, head.kind));
                    self.database(head.database).bytes += head.key.len() as u64;
                    self.hasher.begin(head);
                    self.spool.begin(head)?;
                } else if self.selection.may_have(head.database) {
                    self.database(head.database).left_out += 1;
                }
            }
            Event::Element(element) => {
                if let Some((number, _)) = self.key {
                    self.database(number).bytes += bytes_of(element);
                    self.hasher.element(element);
                    self.spool.element(element)?;
                }
            }
            Event::End => {
                if let Some((number, kind)) = self.key.take() {
                    self.spool.end()?;
                    let database = self.found.entry(number).or_default();
                    self.hasher.end(database.kinds.entry(kind).or_default());
                    self.count_key()?;
                }
            }
        }
        Ok(())
    }

    /// Takes a library of functions once, though each node of a cluster has it. Of two with one name the first is kept.
    fn function(&mut self, code: &[u8]) {
        let name = library_name(code);
        let is_there = self
            .functions
            .iter()
            .any(|known| known == code || (name.is_some() && library_name(known) == name));
        if !is_there {
            self.functions.push(code.to_vec());
        }
    }

    fn database(&mut self, number: u32) -> &mut FoundDatabase {
        self.found.entry(number).or_default()
    }

    /// Says how many keys the server counted.
    pub(crate) fn counted(&mut self, number: u32, keys: Option<u64>) {
        self.database(number).counted = keys;
    }

    /// Says how many keys of a database were left out before they came here.
    pub(crate) fn left_out(&mut self, number: u32, keys: u64) {
        self.database(number).left_out += keys;
    }

    fn count_key(&mut self) -> Result<(), CollectError> {
        self.keys += 1;
        if self.keys.is_multiple_of(KEYS_A_PULSE) {
            self.context.progress.add(0, KEYS_A_PULSE);
            self.context
                .check_stop()
                .map_err(|_| CollectError::Stopped)?;
        }
        Ok(())
    }

    /// All keys are there.
    pub(crate) fn finish(self) -> Collected {
        self.context.progress.add(0, self.keys % KEYS_A_PULSE);
        Collected {
            found: self.found,
            functions: self.functions,
            modules: self.modules,
            foreign: self.foreign,
            streams: self.spool.finish(),
        }
    }
}

/// About how many bytes of a user's an element holds.
pub(crate) fn bytes_of(element: &Element<'_>) -> u64 {
    let bytes = match element {
        Element::StringPiece(bytes)
        | Element::Item(bytes)
        | Element::Member(bytes)
        | Element::ModulePiece(bytes) => bytes.len(),
        Element::Scored { member, .. } => member.len() + 8,
        Element::Field { field, value, .. } => field.len() + value.len(),
        Element::Entry { fields, .. } => 16 + fields.iter().map(Vec::len).sum::<usize>(),
        Element::Group { name, .. } | Element::Consumer { name, .. } => name.len(),
        Element::StreamFacts { .. }
        | Element::Pending { .. }
        | Element::Consumers(_)
        | Element::ConsumerPending(_) => 0,
    };
    bytes as u64
}
