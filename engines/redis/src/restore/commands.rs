//! From stored keys to commands.

use std::collections::BTreeMap;

use fettler_engine::EngineError;
use fettler_model::JobId;
use redis::{Cmd, cmd};

use super::put_off;
use crate::{
    cluster::{slot_of, tag_of},
    error::Refusal,
    rdb::{Payload, needed_version},
    records::{Element, KeyHead, Kind, RecordEvent, Size},
    select::Selection,
};

/// A value up to this size goes back in one piece.
const LARGEST_PIECE: u64 = 1024 * 1024;
/// What a server takes as one argument unless it is told otherwise (`proto-max-bulk-len`), less what surrounds a value.
const LARGEST_ARGUMENT: u64 = (512 << 20) - 4096;
/// Bytes of the arguments of one command for a part of a large value.
const COMMAND_BYTES: usize = 256 * 1024;
/// Members or fields of one such command.
const COMMAND_ELEMENTS: usize = 2000;
/// The first version of Redis whose hashes have fields that expire.
const FIELD_EXPIRY: (u32, u32) = (7, 4);
/// How many kinds of failure are told one by one.
const FAILURES_TOLD: usize = 50;

/// What a restore does with keys.
#[derive(Debug)]
pub(super) struct Plan {
    /// The server's time when the restore began, in milliseconds since 1970.
    pub(super) now: i64,
    /// The newest version of RDB that it reads.
    pub(super) rdb_version: u32,
    /// Its version.
    pub(super) version: (u32, u32),
    pub(super) selection: Selection,
    /// Databases of the backup, with their numbers at the target.
    pub(super) databases: BTreeMap<u32, u32>,
    pub(super) is_sandbox: bool,
    /// Whether each command has to go to the node that serves its key.
    pub(super) is_cluster: bool,
    pub(super) job: JobId,
}

/// What a restore came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) bytes: u64,
    pub(super) rows: u64,
    /// Keys that were not restored since they had expired.
    pub(super) expired: u64,
    /// What failed, and how often.
    failed: BTreeMap<String, u64>,
}

impl Outcome {
    pub(super) fn merge(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.rows += other.rows;
        self.expired += other.expired;
        for (what, times) in other.failed {
            *self.failed.entry(what).or_default() += times;
        }
    }

    fn failure(&mut self, what: String) {
        *self.failed.entry(what).or_default() += 1;
    }

    /// Takes a refusal: an error where every other command would be refused too.
    pub(super) fn refused(
        &mut self,
        server: &str,
        doing: &str,
        refusal: &Refusal,
    ) -> Result<(), EngineError> {
        let is_of_the_key = matches!(refusal.code.as_str(), "ERR" | "WRONGTYPE" | "BUSYKEY")
            && !refusal.message.contains("DB index");
        if !is_of_the_key {
            return Err(refusal.doing(server, doing));
        }
        self.failure(format!("{doing}: {refusal}"));
        Ok(())
    }

    /// What failed, in words.
    pub(super) fn failures(&self) -> Vec<String> {
        let mut told: Vec<String> = self
            .failed
            .iter()
            .take(FAILURES_TOLD)
            .map(|(what, times)| format!("{what} ({times} times)"))
            .collect();
        if let Some(more) = self
            .failed
            .len()
            .checked_sub(FAILURES_TOLD)
            .filter(|more| *more > 0)
        {
            told.push(format!("and {more} more kinds of failure"));
        }
        told
    }
}

/// A command, and where it belongs.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) command: Cmd,
    /// The slot of its keys.
    pub(super) slot: u16,
    /// The number of the database at the target.
    pub(super) database: u32,
    /// What it is a part of, in words without names of keys.
    pub(super) doing: String,
    /// About how many bytes it has.
    pub(super) bytes: usize,
    /// Whether the key is there once this is done.
    pub(super) completes: bool,
}

/// A key on its way back.
#[derive(Debug)]
enum Building {
    /// It is not restored.
    Skipped,
    /// In one piece.
    Whole { key: Key, payload: Payload },
    /// Piece by piece, under another name.
    Parts {
        key: Key,
        command: Cmd,
        elements: usize,
        bytes: usize,
        /// Fields that expire, each with its moment.
        expiring: Vec<(Vec<u8>, u64)>,
    },
}

#[derive(Debug)]
struct Key {
    database: u32,
    name: Vec<u8>,
    expiry: Option<i64>,
    kind: Kind,
}

impl Key {
    fn doing(&self) -> String {
        format!(
            "restoring a {} into database {}",
            self.kind.name(),
            self.database
        )
    }
}

/// Makes commands of the keys of one stream.
#[derive(Debug)]
pub(super) struct Commands {
    /// How the names begin under which large values are built.
    prefix: String,
    /// The name under which the present one is.
    temporary: String,
    /// How many there were.
    large: u64,
    building: Building,
    pub(super) planned: Vec<Planned>,
    pub(super) outcome: Outcome,
}

impl Commands {
    pub(super) fn new(plan: &Plan, stream: &str) -> Self {
        Self {
            prefix: format!("fettler/{}/{stream}", plan.job.uuid().simple()),
            temporary: String::new(),
            large: 0,
            building: Building::Skipped,
            planned: Vec::new(),
            outcome: Outcome::default(),
        }
    }

    /// Takes what comes next.
    pub(super) fn take(&mut self, plan: &Plan, event: &RecordEvent<'_>) {
        match event {
            RecordEvent::Begin(head, size) => self.begin(plan, head, size),
            RecordEvent::Element(element) => self.element(plan, *element),
            RecordEvent::End => self.end(),
        }
    }

    fn begin(&mut self, plan: &Plan, head: &KeyHead<'_>, size: &Size) {
        self.building = Building::Skipped;
        let Some(database) = plan.databases.get(&head.database) else {
            return;
        };
        if !plan.selection.has(head.database, head.key) {
            return;
        }
        if !plan.is_sandbox && head.expiry.is_some_and(|moment| moment <= plan.now) {
            self.outcome.expired += 1;
            return;
        }
        let key = Key {
            database: *database,
            name: head.key.to_vec(),
            expiry: head.expiry.map(|moment| {
                if plan.is_sandbox {
                    put_off(moment)
                } else {
                    moment
                }
            }),
            kind: head.kind,
        };
        if needed_version(head.kind, size) > plan.rdb_version {
            self.outcome.failure(format!(
                "{}: the server is too old for fields that expire",
                key.doing()
            ));
        }
        let in_one_piece = matches!(head.kind, Kind::Stream | Kind::Module(_));
        if in_one_piece && size.bytes > LARGEST_ARGUMENT {
            self.outcome.failure(format!(
                "{}: it is larger than what a server takes in one piece",
                key.doing()
            ));
            return;
        }
        if in_one_piece || size.bytes <= LARGEST_PIECE {
            let size = Size {
                first_field_expiry: field_moment(plan, size.first_field_expiry),
                ..*size
            };
            self.building = Building::Whole {
                payload: Payload::begin(head.kind, &size, plan.rdb_version),
                key,
            };
            return;
        }
        self.temporary = self.prefix.clone();
        if plan.is_cluster {
            // In the slot of the key, since it is renamed within it; and each of its own, since those that wait for a slot
            // to come to rest are overtaken by others.
            self.large += 1;
            let tag = tag_of(slot_of(head.key));
            self.temporary
                .push_str(&format!("/{}/{{{tag}}}", self.large));
        }
        let remove = cmd("UNLINK").arg(&self.temporary).to_owned();
        self.plan(&key, remove, 0);
        self.building = Building::Parts {
            command: part_command(key.kind, &self.temporary),
            key,
            elements: 0,
            bytes: 0,
            expiring: Vec::new(),
        };
    }

    fn element(&mut self, plan: &Plan, element: Element<'_>) {
        let element = match element {
            Element::Field {
                field,
                value,
                expiry,
            } => Element::Field {
                field,
                value,
                expiry: expiry.map(|moment| field_moment(plan, moment)),
            },
            other => other,
        };
        match &mut self.building {
            Building::Skipped => return,
            Building::Whole { payload, .. } => {
                payload.element(&element);
                return;
            }
            Building::Parts {
                command,
                elements,
                bytes,
                expiring,
                ..
            } => {
                *elements += 1;
                *bytes += add_part(command, &element);
                if let Element::Field {
                    field,
                    expiry: Some(moment),
                    ..
                } = element
                    && plan.version >= FIELD_EXPIRY
                {
                    expiring.push((field.to_vec(), moment));
                }
                // Each piece of a string is a command of its own.
                let is_full = matches!(element, Element::StringPiece(_))
                    || *bytes >= COMMAND_BYTES
                    || *elements >= COMMAND_ELEMENTS;
                if !is_full {
                    return;
                }
            }
        }
        self.plan_part();
    }

    /// Plans what was gathered of a large value.
    fn plan_part(&mut self) {
        let Building::Parts {
            key,
            command,
            elements,
            bytes,
            expiring,
        } = &mut self.building
        else {
            return;
        };
        if *elements == 0 {
            return;
        }
        let gathered = std::mem::replace(command, part_command(key.kind, &self.temporary));
        let mut commands = vec![(gathered, *bytes)];
        for (field, moment) in expiring.drain(..) {
            let expire = cmd("HPEXPIREAT")
                .arg(&self.temporary)
                .arg(moment)
                .arg("FIELDS")
                .arg(1)
                .arg(field)
                .to_owned();
            commands.push((expire, 0));
        }
        (*elements, *bytes) = (0, 0);
        let (database, doing, slot) = (key.database, key.doing(), slot_of(&key.name));
        self.planned
            .extend(commands.into_iter().map(|(command, bytes)| Planned {
                command,
                slot,
                database,
                doing: doing.clone(),
                bytes,
                completes: false,
            }));
    }

    fn end(&mut self) {
        self.plan_part();
        match std::mem::replace(&mut self.building, Building::Skipped) {
            Building::Skipped => return,
            Building::Whole { key, payload } => {
                let payload = payload.end();
                let mut restore = Cmd::with_capacity(6, payload.len() + key.name.len() + 64);
                restore
                    .arg("RESTORE")
                    .arg(&key.name)
                    .arg(key.expiry.unwrap_or(0))
                    .arg(&payload)
                    .arg("REPLACE")
                    .arg("ABSTTL");
                self.plan(&key, restore, payload.len());
            }
            Building::Parts { key, .. } => {
                if let Some(moment) = key.expiry {
                    let expire = cmd("PEXPIREAT").arg(&self.temporary).arg(moment).to_owned();
                    self.plan(&key, expire, 0);
                }
                // Renaming over a large value would remove it at once and hold the server up.
                let unlink = cmd("UNLINK").arg(&key.name).to_owned();
                self.plan(&key, unlink, 0);
                let rename = cmd("RENAME").arg(&self.temporary).arg(&key.name).to_owned();
                self.plan(&key, rename, 0);
            }
        }
        if let Some(last) = self.planned.last_mut() {
            last.completes = true;
        }
    }

    fn plan(&mut self, key: &Key, command: Cmd, bytes: usize) {
        self.planned.push(Planned {
            command,
            slot: slot_of(&key.name),
            database: key.database,
            doing: key.doing(),
            bytes,
            completes: false,
        });
    }
}

/// The moment at which a field expires at the target; 0 for never.
fn field_moment(plan: &Plan, moment: u64) -> u64 {
    if moment == 0 || !plan.is_sandbox {
        return moment;
    }
    i64::try_from(moment).map_or(moment, |moment| put_off(moment).unsigned_abs())
}

/// The beginning of a command that adds to a large value.
fn part_command(kind: Kind, name: &str) -> Cmd {
    let verb = match kind {
        Kind::String => "APPEND",
        Kind::List => "RPUSH",
        Kind::Set => "SADD",
        Kind::SortedSet => "ZADD",
        Kind::Hash => "HSET",
        Kind::Stream | Kind::Module(_) => unreachable!("these go back in one piece"),
    };
    cmd(verb).arg(name).to_owned()
}

/// Adds a piece of a value to such a command; about how many bytes it has.
fn add_part(command: &mut Cmd, element: &Element<'_>) -> usize {
    match element {
        Element::StringPiece(bytes) | Element::Item(bytes) | Element::Member(bytes) => {
            command.arg(bytes);
            bytes.len()
        }
        Element::Scored { member, score } => {
            // The shortest digits that mean this very number; also `inf` and `-0e0`.
            command.arg(format!("{score:e}")).arg(member);
            member.len() + 24
        }
        Element::Field { field, value, .. } => {
            command.arg(field).arg(value);
            field.len() + value.len()
        }
        _ => unreachable!("values of other kinds go back in one piece"),
    }
}
