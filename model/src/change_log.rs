//! The log of a database's changes beside its backups, and which moments can be restored from both.
//!
//! A server orders its changes; a [`LogPosition`] is a place in that order. Changes say nothing of time, so that whoever
//! reads them asks the server again and again for its clock and its position: each answer is a [`LogMoment`], which is true
//! whatever the link was worth at the time. A prefix of the order that ends at a moment's position holds **every change
//! that was acknowledged before the server was asked, and none that began after it had answered**.
//!
//! [`Timeline`] puts backups and log together: from when to when one can restore, where changes are missing, and
//! which backup and which position make a given second.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackupId, Timestamp};

/// How old the position that stands for a moment may be: a moment holds every change that was acknowledged so
/// long before it.
pub const MOMENT_TOLERANCE: Duration = Duration::from_secs(1);

/// A place in a server's order of changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogPosition {
    /// Whose order: a replication id, a timeline. Places of different histories cannot be compared.
    pub history: String,
    /// What of the order lies before the place, as the engine counts ([`LogUnit`]).
    pub offset: u64,
}

/// What the offsets of an order count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogUnit {
    /// Bytes: changes can be cut at any offset.
    #[default]
    Bytes,
    /// Numbers that the changes bear themselves, and that only rise (an operation time). An object holds those *behind* its
    /// beginning, up to and with its end, and whoever plays them leaves out what is not meant.
    Numbers,
}

impl LogUnit {
    fn is_bytes(&self) -> bool {
        *self == Self::Bytes
    }
}

/// What the server said of its clock and its position. Written as `[from, micros from there to until, offset]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(i64, i64, u64)", into = "(i64, i64, u64)")]
pub struct LogMoment {
    /// No change before `offset` began after this.
    pub from: Timestamp,
    /// Every change that was acknowledged before this lies before `offset`. Where the server was asked once it is a
    /// little earlier than `from`.
    pub until: Timestamp,
    /// The offset of the position.
    pub offset: u64,
}

impl From<(i64, i64, u64)> for LogMoment {
    fn from((from, span, offset): (i64, i64, u64)) -> Self {
        Self {
            from: Timestamp::from_micros(from),
            until: Timestamp::from_micros(from.saturating_add(span)),
            offset,
        }
    }
}

impl From<LogMoment> for (i64, i64, u64) {
    fn from(moment: LogMoment) -> Self {
        let (from, until) = (moment.from.micros(), moment.until.micros());
        (from, until.saturating_sub(from), moment.offset)
    }
}

impl LogMoment {
    /// The last second for which the position stands.
    #[must_use]
    pub fn last(&self) -> Timestamp {
        self.until.plus(MOMENT_TOLERANCE)
    }

    /// Adds what a server answered: it was asked at `asked`, was at `offset`, and had answered at `answered`. Moments stay in
    /// order whatever its clock does: where that goes back, seconds stand for nothing until it has caught up.
    pub fn note(moments: &mut Vec<Self>, before: Option<Self>, told: (Timestamp, u64, Timestamp)) {
        let (asked, offset, answered) = told;
        let floor = moments.last().copied().or(before);
        if let Some(last) = moments.last_mut()
            && last.offset == offset
        {
            last.until = last.until.max(asked);
            return;
        }
        if floor.is_some_and(|last| offset < last.offset && !moments.is_empty()) {
            // An answer that was overtaken by another one.
            return;
        }
        moments.push(Self {
            from: floor.map_or(answered, |last| answered.max(last.from)),
            until: asked,
            offset,
        });
    }
}

/// A stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stretch {
    /// Its beginning.
    pub from: Timestamp,
    /// Its end.
    pub until: Timestamp,
}

/// What one object of a log holds, without the changes themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSpan {
    /// Whose order.
    pub history: String,
    /// The offset of the first change.
    pub begin: u64,
    /// The offset behind the last change.
    pub end: u64,
    /// Whether nothing lies between the object before and this one.
    pub continues: bool,
    /// The first and the last moment, where it holds some.
    pub edges: Option<(LogMoment, LogMoment)>,
    /// Stretches between its moments for which no position stands.
    pub blanks: Vec<Stretch>,
    /// What its offsets count.
    #[serde(default, skip_serializing_if = "LogUnit::is_bytes")]
    pub unit: LogUnit,
}

impl LogSpan {
    /// What an object with these moments says of itself.
    #[must_use]
    pub fn new(
        history: String,
        begin: u64,
        end: u64,
        continues: bool,
        moments: &[LogMoment],
    ) -> Self {
        Self {
            history,
            begin,
            end,
            continues,
            edges: moments.first().copied().zip(moments.last().copied()),
            blanks: moments
                .windows(2)
                .filter_map(|pair| blank(pair[0], pair[1]))
                .collect(),
            unit: LogUnit::Bytes,
        }
    }

    /// The same with offsets that count something else than bytes.
    #[must_use]
    pub fn counted_in(mut self, unit: LogUnit) -> Self {
        self.unit = unit;
        self
    }

    /// Whether an object of this span may hold so many bytes of changes.
    #[must_use]
    pub fn fits(&self, bytes: u64) -> bool {
        match self.unit {
            LogUnit::Bytes => bytes == self.end - self.begin,
            LogUnit::Numbers => self.begin < self.end || bytes == 0,
        }
    }

    /// Where it ends.
    #[must_use]
    pub fn end_position(&self) -> LogPosition {
        LogPosition {
            history: self.history.clone(),
            offset: self.end,
        }
    }

    fn holds(&self, position: &LogPosition) -> bool {
        self.history == position.history && (self.begin..=self.end).contains(&position.offset)
    }
}

/// The stretch between two moments for which neither stands.
fn blank(before: LogMoment, after: LogMoment) -> Option<Stretch> {
    (before.last() < after.from).then(|| Stretch {
        from: before.last(),
        until: after.from,
    })
}

/// A backup from which a log can be played on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The backup.
    pub backup: BackupId,
    /// Of which position it is.
    pub position: LogPosition,
    /// The offset from which on changes are needed: its own, or an earlier one where what ends behind the backup (a
    /// transaction) may have begun before.
    pub since: u64,
}

impl Base {
    /// From where on changes are needed.
    #[must_use]
    pub fn needs(&self) -> LogPosition {
        LogPosition {
            history: self.position.history.clone(),
            offset: self.since,
        }
    }
}

/// Why seconds cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GapCause {
    /// Changes are missing: the log begins anew behind it, with another backup.
    ChangesLost,
    /// No change is missing, but nobody could ask the server for its clock: which change belongs to which second is not
    /// known.
    NotPlaced,
}

/// Seconds within what can be restored that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// The last second before.
    pub from: Timestamp,
    /// The first second behind.
    pub until: Timestamp,
    /// Why.
    pub cause: GapCause,
}

/// From when to when a database can be restored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Restorable {
    /// From the first to the last second that can be restored.
    pub whole: Option<Stretch>,
    /// What lies between and cannot be, in order.
    pub gaps: Vec<Gap>,
}

/// Why a second cannot be restored, and which ones near it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMoment {
    /// The last second before that can be.
    pub before: Option<Timestamp>,
    /// The first second behind that can be.
    pub after: Option<Timestamp>,
}

/// What makes a given second: a backup, and the changes up to an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The backup.
    pub backup: BackupId,
    /// The offset from which on changes are needed ([`Base::since`]).
    pub begin: u64,
    /// The offset behind the last change that is played.
    pub end: u64,
    /// The objects of the log that hold the changes between, by their place in the list.
    pub spans: std::ops::Range<usize>,
}

/// The backups of a database and its log, in the log's order.
#[derive(Clone, Debug)]
pub struct Timeline<'a> {
    spans: &'a [LogSpan],
    /// For each base its place in the list of spans; the order is the log's.
    bases: Vec<(usize, &'a Base)>,
}

impl<'a> Timeline<'a> {
    /// Puts backups and log together. Backups from which the log cannot be played on are left out.
    #[must_use]
    pub fn new(spans: &'a [LogSpan], bases: &'a [Base]) -> Self {
        let mut line = Self {
            spans,
            bases: Vec::new(),
        };
        line.bases = bases
            .iter()
            .filter_map(|base| {
                // At a border the later one, unless something is missing between.
                let at = spans.iter().rposition(|span| span.holds(&base.position))?;
                // What it needs must be there too.
                (spans[line.run_of(at)].begin <= base.since).then_some((at, base))
            })
            .collect();
        line.bases
            .sort_by_key(|(at, base)| (*at, base.position.offset));
        line
    }

    /// The spans whose moments must be known to plan for `at`, and to tell the nearest moments: the last that has one at
    /// or before it, and those in which backups lie.
    #[must_use]
    pub fn wanted(&self, at: Option<Timestamp>) -> Vec<usize> {
        let mut wanted: Vec<usize> = self.bases.iter().map(|(at, _)| *at).collect();
        if let Some(at) = at {
            wanted.extend(
                self.spans
                    .iter()
                    .rposition(|span| matches!(span.edges, Some((first, _)) if first.from <= at)),
            );
        }
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }

    /// The place where the run of uninterrupted spans begins to which this one belongs.
    fn run_of(&self, at: usize) -> usize {
        self.spans[..=at]
            .iter()
            .rposition(|span| !span.continues)
            .unwrap_or(0)
    }

    /// The first base of each run.
    fn first_bases(&self) -> Vec<(usize, &'a Base)> {
        let mut firsts: Vec<(usize, &Base)> = Vec::new();
        for (at, base) in &self.bases {
            if firsts
                .last()
                .is_none_or(|(last, _)| self.run_of(*last) != self.run_of(*at))
            {
                firsts.push((*at, base));
            }
        }
        firsts
    }

    /// Whether a backup lies in the last run, so that what is added to the log can be restored.
    #[must_use]
    pub fn end_has_a_base(&self) -> bool {
        let Some(last) = self.spans.len().checked_sub(1) else {
            return false;
        };
        self.bases
            .last()
            .is_some_and(|(at, _)| self.run_of(*at) == self.run_of(last))
    }

    /// What can be restored, run by run. `moments` gives those of a span that [`Self::wanted`] names.
    fn windows(&self, moments: &dyn Fn(usize) -> &'a [LogMoment]) -> Vec<(Stretch, Vec<Stretch>)> {
        let mut windows = Vec::new();
        for (at, base) in self.first_bases() {
            let run_end = self.spans[at + 1..]
                .iter()
                .position(|span| !span.continues)
                .map_or(self.spans.len(), |more| at + 1 + more);
            let first = moments(at)
                .iter()
                .find(|moment| moment.offset >= base.position.offset)
                .copied()
                .or_else(|| {
                    let edges = self.spans[at + 1..run_end]
                        .iter()
                        .find_map(|span| span.edges);
                    edges.map(|(first, _)| first)
                });
            let last = self.spans[at..run_end]
                .iter()
                .rev()
                .find_map(|span| span.edges)
                .map(|(_, last)| last);
            let (Some(first), Some(last)) = (first, last) else {
                continue;
            };
            let window = Stretch {
                from: first.from,
                until: last.last(),
            };
            let mut blanks: Vec<Stretch> = Vec::new();
            let mut before: Option<LogMoment> = None;
            for span in &self.spans[at..run_end] {
                let Some((opening, closing)) = span.edges else {
                    continue;
                };
                blanks.extend(before.and_then(|before| blank(before, opening)));
                blanks.extend(&span.blanks);
                before = Some(closing);
            }
            blanks.retain(|blank| blank.until > window.from);
            windows.push((window, blanks));
        }
        windows
    }

    /// From when to when one can restore. `moments` gives those of a span that [`Self::wanted`] names.
    #[must_use]
    pub fn restorable(&self, moments: &dyn Fn(usize) -> &'a [LogMoment]) -> Restorable {
        let mut restorable = Restorable::default();
        for (window, blanks) in self.windows(moments) {
            match &mut restorable.whole {
                Some(whole) => {
                    if whole.until < window.from {
                        restorable.gaps.push(Gap {
                            from: whole.until,
                            until: window.from,
                            cause: GapCause::ChangesLost,
                        });
                    }
                    whole.until = whole.until.max(window.until);
                }
                None => restorable.whole = Some(window),
            }
            restorable.gaps.extend(blanks.iter().map(|blank| Gap {
                from: blank.from,
                until: blank.until,
                cause: GapCause::NotPlaced,
            }));
        }
        restorable
    }

    /// What makes a second. `moments` gives those of a span that [`Self::wanted`] names.
    ///
    /// # Errors
    ///
    /// The nearest seconds that can be restored, where this one cannot.
    pub fn plan(
        &self,
        at: Timestamp,
        moments: &dyn Fn(usize) -> &'a [LogMoment],
    ) -> Result<Plan, NoMoment> {
        let found = self.wanted_span(at).and_then(|span| {
            let moment = moments(span)
                .iter()
                .rev()
                .find(|moment| moment.from <= at)?;
            if at > moment.last() {
                return None;
            }
            let run = self.run_of(span);
            let (place, base) = self.bases.iter().rev().find(|(place, base)| {
                // In one run offsets only rise, whatever the history is called.
                *place <= span
                    && self.run_of(*place) == run
                    && base.position.offset <= moment.offset
            })?;
            let begin = self.spans[run..=*place]
                .iter()
                .rposition(|span| span.begin <= base.since)?;
            Some(Plan {
                backup: base.backup,
                begin: base.since,
                end: moment.offset,
                spans: run + begin..span + 1,
            })
        });
        found.ok_or_else(|| {
            let (mut before, mut after) = (None::<Timestamp>, None::<Timestamp>);
            for (window, blanks) in self.windows(moments) {
                let mut from = window.from;
                let ends = blanks.iter().map(|blank| (blank.from, blank.until));
                for (until, next) in ends.chain([(window.until, window.until)]) {
                    if from <= until {
                        if from > at {
                            after = Some(after.map_or(from, |after| after.min(from)));
                        }
                        if until < at {
                            before = Some(before.map_or(until, |before| before.max(until)));
                        }
                    }
                    from = next;
                }
            }
            NoMoment { before, after }
        })
    }

    fn wanted_span(&self, at: Timestamp) -> Option<usize> {
        self.spans
            .iter()
            .rposition(|span| matches!(span.edges, Some((first, _)) if first.from <= at))
    }
}

#[cfg(test)]
mod tests;
