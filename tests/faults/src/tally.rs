//! What bit: a harness whose faults hit nothing shows nothing, so that a list of runs in which a count stays 0 fails.

use std::fmt;

/// What the faults of a run, or of a list of runs, did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Jobs that were accepted.
    pub jobs: u64,
    /// Processes that died in a way that the plan made: killed, or ended at a point.
    pub deaths: u64,
    /// Attempts whose worker died or was stopped in the middle of them.
    pub kills_in_attempts: u64,
    /// Jobs that another attempt took up after that.
    pub takeovers: u64,
    /// Writes of a superseded attempt that the ledger refused.
    pub zombies_refused: u64,
    /// Refills of Redis from the ledger.
    pub refills: u64,
    /// How often a sentinel put Redis' replica in its master's place.
    pub failovers: u64,
    /// Manifests that somebody else had written already, or tombstones in their place.
    pub manifest_races: u64,
    /// Objects that collections deleted.
    pub collected: u64,
    /// Submissions that were sent to both interfaces with one key.
    pub doubled_submissions: u64,
}

impl Tally {
    /// Takes another run's along.
    pub fn add(&mut self, other: &Self) {
        self.jobs += other.jobs;
        self.deaths += other.deaths;
        self.kills_in_attempts += other.kills_in_attempts;
        self.takeovers += other.takeovers;
        self.zombies_refused += other.zombies_refused;
        self.refills += other.refills;
        self.failovers += other.failovers;
        self.manifest_races += other.manifest_races;
        self.collected += other.collected;
        self.doubled_submissions += other.doubled_submissions;
    }

    /// Name and number, in the order of the table.
    #[must_use]
    pub const fn counts(&self) -> [(&'static str, u64); 10] {
        [
            ("jobs", self.jobs),
            ("deaths", self.deaths),
            ("kills in attempts", self.kills_in_attempts),
            ("takeovers", self.takeovers),
            ("zombies refused", self.zombies_refused),
            ("refills", self.refills),
            ("failovers", self.failovers),
            ("manifest races", self.manifest_races),
            ("objects collected", self.collected),
            ("doubled submissions", self.doubled_submissions),
        ]
    }

    /// What never happened.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let counts = self.counts();
        let nothing = counts.iter().filter(|(_, count)| *count == 0);
        nothing.map(|(name, _)| *name).collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self
            .counts()
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        f.write_str(&words.join(", "))
    }
}
