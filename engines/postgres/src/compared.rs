//! How far a copy was read in a proof, and what was found so far: the next attempt reads on from there, in the same sandbox.

use std::collections::VecDeque;

use fettler_engine::{EngineContext, EngineError};
use serde::{Deserialize, Serialize};

use crate::{
    backup::{Findings, Found, Work},
    data::TableData,
};

/// So many pieces are read between two checkpoints: 4 GiB, with pieces of the usual size.
const PIECES_A_PART: usize = 64;

/// What was read of a copy.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pieces: usize,
    /// Of the statements of these pieces.
    statements: blake3::Hasher,
    findings: Findings,
}

/// What is saved of it. Tables go by name, since their places in the list mean nothing to another attempt.
#[derive(Debug, Serialize, Deserialize)]
struct Checkpoint {
    pieces: usize,
    /// Of the statements of these pieces: they must be the first ones again.
    digest: String,
    findings: Vec<(Option<String>, Found)>,
}

fn add(statements: &mut blake3::Hasher, pieces: &[Work]) {
    for piece in pieces {
        statements.update(piece.sql.as_bytes());
        statements.update(&[0]);
    }
}

fn digest(statements: &blake3::Hasher) -> String {
    statements.finalize().to_hex()[..32].to_owned()
}

impl Compared {
    /// What an earlier attempt has read of these pieces of work.
    pub(crate) async fn load(
        context: &EngineContext,
        work: &[Work],
        tables: &[TableData],
    ) -> Result<Self, EngineError> {
        let saved = context.checkpoints.load().await?;
        let saved = saved.and_then(|saved| Checkpoint::deserialize(saved).ok());
        Ok(saved
            .and_then(|saved| Self::of(saved, work, tables))
            .unwrap_or_default())
    }

    fn of(saved: Checkpoint, work: &[Work], tables: &[TableData]) -> Option<Self> {
        let mut statements = blake3::Hasher::new();
        add(&mut statements, work.get(..saved.pieces)?);
        if digest(&statements) != saved.digest {
            return None;
        }
        let findings = saved.findings.into_iter().map(|(name, found)| {
            let at = match name {
                None => None,
                Some(name) => Some(tables.iter().position(|table| table.display() == name)?),
            };
            Some((at, found))
        });
        Some(Self {
            pieces: saved.pieces,
            statements,
            findings: findings.collect::<Option<_>>()?,
        })
    }

    /// What is to be read before the next checkpoint; none when all was read.
    pub(crate) fn next_part(&self, work: &[Work]) -> Option<VecDeque<Work>> {
        let rest = work.get(self.pieces..)?;
        let part = &rest[..rest.len().min(PIECES_A_PART)];
        (!part.is_empty()).then(|| part.to_vec().into())
    }

    /// What was found so far.
    pub(crate) fn findings(&self) -> Findings {
        self.findings.clone()
    }

    /// Takes what was found with the next part, and saves it.
    pub(crate) async fn save(
        &mut self,
        context: &EngineContext,
        work: &[Work],
        tables: &[TableData],
        findings: Findings,
    ) -> Result<(), EngineError> {
        let before = self.pieces;
        self.pieces = work.len().min(before + PIECES_A_PART);
        add(&mut self.statements, &work[before..self.pieces]);
        self.findings = findings;
        let checkpoint = Checkpoint {
            pieces: self.pieces,
            digest: digest(&self.statements),
            findings: self
                .findings
                .iter()
                .map(|(at, found)| (at.map(|at| tables[at].display()), *found))
                .collect(),
        };
        let value = serde_json::to_value(checkpoint).expect("plain data can be JSON");
        context.checkpoints.save(value).await
    }
}
