//! Where the keys of a server go while they are read: into the fingerprints of what was found, and into the order of
//! the backup.

use fettler_engine::{EngineContext, EngineError, RowHasher};
use std::path::Path;

use crate::{
    found::{Found, FoundDatabase},
    rdb::{Event, RdbError},
    records::{Element, KeyHasher, Kind, OrderedStreams, Spool, SpoolError},
    select::Selection,
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
            database: 0,
            key: None,
            keys: 0,
            loses_a_key,
        }
    }

    /// Takes what comes next.
    pub(crate) fn take(&mut self, event: &Event<'_>) -> Result<(), CollectError> {
        match event {
            Event::Database(number) => self.database = *number,
            Event::SizeHint { keys, .. } => {
                if self.selection.may_have(self.database) {
                    self.database(self.database).counted = Some(*keys);
                }
            }
            Event::Function(code) => self.functions.push(code.to_vec()),
            Event::ModuleAux { module, .. } => self.modules.push(*module),
            Event::Begin(head) => {
                self.key = None;
                if self.loses_a_key {
                    self.loses_a_key = false;
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
