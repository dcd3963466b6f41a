//! Judges by the server's own planner, with hypothetical indexes (HypoPG): they exist for this session alone, take no room,
//! and are seen by EXPLAIN only.

use async_trait::async_trait;
use fettler_engine::{EngineError, StatementError, Workbench};
use serde_json::Value;

use super::{
    choose::{ByEstimate, Judge, Weighed},
    facts::{Facts, quote},
    index::Candidate,
    workload::preparable,
};

/// See the module.
pub(crate) struct ByPlanner<'a> {
    bench: &'a mut dyn Workbench,
    hypopg: String,
    facts: &'a Facts,
    statements: &'a [Weighed],
    candidates: &'a [Candidate],
    /// For what the planner does not take.
    estimate: ByEstimate<'a>,
    /// How each statement is explained; nothing where it is estimated.
    ways: Vec<Option<String>>,
}

impl<'a> ByPlanner<'a> {
    /// Prepares: finds out which statements the planner takes.
    pub(crate) async fn new(
        bench: &'a mut dyn Workbench,
        hypopg: &str,
        facts: &'a Facts,
        statements: &'a [Weighed],
        candidates: &'a [Candidate],
    ) -> Result<Self, EngineError> {
        let mut schemas: Vec<&str> = facts
            .tables
            .iter()
            .map(|table| table.schema.as_str())
            .collect();
        schemas.sort_unstable_by_key(|schema| (*schema != "public", *schema));
        schemas.dedup();
        let path: Vec<String> = schemas.into_iter().map(quote).collect();
        let path = if path.is_empty() {
            "''".to_owned()
        } else {
            path.join(", ")
        };
        refusable(
            bench
                .run(&format!(
                    "SET search_path = {path}; SET plan_cache_mode = force_generic_plan; SET default_transaction_read_only = on"
                ))
                .await,
        )?;
        let mut judge = Self {
            bench,
            hypopg: quote(hypopg),
            facts,
            statements,
            candidates,
            estimate: ByEstimate::of(facts, statements, candidates),
            ways: Vec::new(),
        };
        for one in statements {
            let way = judge.way(one).await?;
            judge.ways.push(way);
        }
        Ok(judge)
    }

    /// How many statements are judged by the planner.
    pub(crate) fn planned(&self) -> usize {
        self.ways.iter().flatten().count()
    }

    /// Forgets what was made up.
    pub(crate) async fn close(self) -> Result<(), EngineError> {
        let reset = format!(
            "SELECT {}.hypopg_reset(); DEALLOCATE ALL; SELECT pg_catalog.set_config('search_path', '', false);
             RESET plan_cache_mode; RESET default_transaction_read_only",
            self.hypopg
        );
        refusable(self.bench.run(&reset).await).map(drop)
    }

    /// The statements that explain this one.
    async fn way(&mut self, one: &Weighed) -> Result<Option<String>, EngineError> {
        if one.shape.blocks.is_empty() {
            return Ok(None);
        }
        let text = preparable(&one.text);
        let text = text.trim().trim_end_matches(';');
        // Of a limit that it does not know the planner takes a tenth of the rows: how many come is known here.
        for text in [with_limit(text, one.rows), text.to_owned()] {
            let way = if self.facts.server.version_num >= 160_000 {
                format!("EXPLAIN (GENERIC_PLAN, FORMAT JSON) {text}")
            } else {
                let prepare = format!("DEALLOCATE ALL; PREPARE fettler AS {text}");
                if refusable(self.bench.run(&prepare).await)?.is_none() {
                    continue;
                }
                let count = refusable(
                    self.bench
                        .run("SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'fettler'")
                        .await,
                )?;
                let count: usize = count
                    .and_then(|lines| lines.first()?.first()?.as_deref()?.parse().ok())
                    .unwrap_or_default();
                let nulls = if count == 0 {
                    String::new()
                } else {
                    format!("({})", vec!["NULL"; count].join(", "))
                };
                // Prepared anew each time: a plan that is kept would not see new indexes.
                format!(
                    "DEALLOCATE ALL; PREPARE fettler AS {text}; EXPLAIN (FORMAT JSON) EXECUTE fettler{nulls}"
                )
            };
            if self.explained(&way).await?.is_some() {
                return Ok(Some(way));
            }
        }
        Ok(None)
    }

    async fn explained(&mut self, way: &str) -> Result<Option<f64>, EngineError> {
        let Some(lines) = refusable(self.bench.run(way).await)? else {
            return Ok(None);
        };
        let plan: Option<Value> = lines
            .last()
            .and_then(|line| serde_json::from_str(line.first()?.as_deref()?).ok());
        Ok(plan.and_then(|plan| plan[0]["Plan"]["Total Cost"].as_f64()))
    }
}

#[async_trait]
impl Judge for ByPlanner<'_> {
    async fn cost(&mut self, statement: usize, candidates: &[usize]) -> Result<f64, EngineError> {
        if self.statements[statement].shape.blocks.is_empty() {
            return Ok(1.0);
        }
        let Some(way) = self.ways[statement].clone() else {
            return Ok(self.estimate.estimate(statement, candidates));
        };
        let mut sql = format!("SELECT {}.hypopg_reset(); ", self.hypopg);
        for at in candidates {
            if let Some(index) = self.candidates[*at].sql(self.facts) {
                let text = format!("CREATE INDEX ON {index}").replace('\'', "''");
                sql.push_str(&format!(
                    "SELECT * FROM {}.hypopg_create_index('{text}'); ",
                    self.hypopg
                ));
            }
        }
        sql.push_str(&way);
        match self.explained(&sql).await? {
            Some(cost) => Ok(cost),
            // What the planner took before and does not take now brings nothing, as far as is known.
            None => Ok(f64::MAX),
        }
    }
}

/// A statement with as many rows for its limit as it gives.
fn with_limit(text: &str, rows: f64) -> String {
    let lower = text.to_ascii_lowercase();
    let Some(at) = lower.rfind("limit $") else {
        return text.to_owned();
    };
    let digits = text[at + 7..]
        .bytes()
        .take_while(u8::is_ascii_digit)
        .count();
    format!(
        "{}{:.0}{}",
        &text[..at + 6],
        rows.max(1.0).ceil(),
        &text[at + 7 + digits..]
    )
}

/// A result, or nothing where the server refused.
fn refusable(
    result: Result<Vec<fettler_engine::Line>, StatementError>,
) -> Result<Option<Vec<fettler_engine::Line>>, EngineError> {
    match result {
        Ok(lines) => Ok(Some(lines)),
        Err(StatementError::Refused { .. }) => Ok(None),
        Err(StatementError::Lost(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_what_the_statement_gives() {
        assert_eq!(
            with_limit("SELECT a FROM t LIMIT $2 FOR UPDATE", 9.5),
            "SELECT a FROM t LIMIT 10 FOR UPDATE"
        );
        assert_eq!(with_limit("SELECT 1", 9.5), "SELECT 1");
    }
}
