//! Many runs on one set of servers, and the table of what they showed.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use fettler_fault_points::{Point, Rule};

use crate::{
    Result,
    plan::Plan,
    run::{self, Options, Report},
    servers::Servers,
    tally::Tally,
};

/// Within so many runs the absence of a rule must be found.
pub const CAUGHT_WITHIN: u64 = 20;

/// What many runs showed.
#[derive(Debug, Default)]
pub struct Series {
    /// The runs, in their order.
    pub reports: Vec<Report>,
}

impl Series {
    /// What all of them counted.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut all = Tally::default();
        for report in &self.reports {
            all.add(&report.tally);
        }
        all
    }

    /// Everything that did not hold, with the seed of its run.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let each = self.reports.iter().flat_map(|report| {
            let violations = report.violations.iter();
            violations.map(|violation| format!("seed {}: {violation}", report.seed))
        });
        each.collect()
    }

    /// The table: a line a run, and the sums.
    #[must_use]
    pub fn table(&self) -> String {
        let names = Tally::default().counts().map(|(name, _)| name);
        let mut text = String::from("| seed | seconds |");
        for name in names {
            let _ = write!(text, " {name} |");
        }
        text.push_str(" verdict |\n|---|---|");
        text.push_str(&"---|".repeat(names.len() + 1));
        text.push('\n');
        let row = |first: &str, took: Duration, tally: &Tally, verdict: &str| {
            let mut line = format!("| {first} | {:.1} |", took.as_secs_f64());
            for (_, count) in tally.counts() {
                let _ = write!(line, " {count} |");
            }
            let _ = writeln!(line, " {verdict} |");
            line
        };
        for report in &self.reports {
            let verdict = match report.violations.len() {
                0 => "held".to_owned(),
                count => format!("{count} violations"),
            };
            text.push_str(&row(
                &report.seed.to_string(),
                report.took,
                &report.tally,
                &verdict,
            ));
        }
        let took = self.reports.iter().map(|report| report.took).sum();
        let wrong = self
            .reports
            .iter()
            .filter(|report| !report.violations.is_empty())
            .count();
        let verdict = format!("{wrong} of {} runs went wrong", self.reports.len());
        text.push_str(&row("all", took, &self.tally(), &verdict));
        text
    }
}

/// Says what a run showed, as it ends.
fn tell(report: &Report, what: &str) {
    eprintln!(
        "{what} seed {}: {} in {:.1} s ({})",
        report.seed,
        if report.violations.is_empty() {
            "held"
        } else {
            "BROKEN"
        },
        report.took.as_secs_f64(),
        report.tally
    );
    for violation in &report.violations {
        eprintln!("    {violation}");
    }
    if let Some(folder) = &report.folder {
        eprintln!("    kept: {}", folder.display());
    }
}

/// The directed pass: every named point ends a process once, and the promises hold.
///
/// # Errors
///
/// When the harness itself does not work.
pub fn directed(
    servers: &mut Servers,
    seed: u64,
    options: &Options,
) -> Result<(Report, Vec<&'static str>)> {
    let report = run::run(servers, &Plan::directed(seed), options)?;
    tell(&report, "directed pass,");
    let missed = Point::ALL
        .iter()
        .filter(|point| point.is_in_harness())
        .map(|point| point.name())
        .filter(|name| !report.points.iter().any(|hit| hit == name))
        .collect();
    Ok((report, missed))
}

/// Random runs, from this seed on: so many, or as many as fit the time.
///
/// # Errors
///
/// When the harness itself does not work.
pub fn random(
    servers: &mut Servers,
    first: u64,
    runs: u64,
    within: Option<Duration>,
    options: &Options,
    series: &mut Series,
) -> Result<()> {
    let began = Instant::now();
    for seed in first..first + runs {
        let longest = series
            .reports
            .iter()
            .map(|report| report.took)
            .max()
            .unwrap_or_default();
        if within.is_some_and(|within| began.elapsed() + longest / 2 > within) {
            break;
        }
        let (plan, what) = match options.previous {
            Some(_) => (Plan::upgrade(seed), "upgrade under load,"),
            None => (Plan::random(seed), "random run,"),
        };
        let report = run::run(servers, &plan, options)?;
        tell(&report, what);
        series.reports.push(report);
    }
    Ok(())
}

/// Runs without a rule until the checker finds its absence. Gives back after how many it did.
///
/// # Errors
///
/// When the harness itself does not work.
pub fn without(
    servers: &mut Servers,
    rule: Rule,
    first: u64,
    options: &Options,
) -> Result<Option<u64>> {
    let options = Options {
        without: Some(rule),
        ..options.clone()
    };
    for nth in 0..CAUGHT_WITHIN {
        let report = run::run(servers, &Plan::against(rule, first + nth), &options)?;
        tell(&report, &format!("without the {},", rule.name()));
        if !report.violations.is_empty() {
            return Ok(Some(nth + 1));
        }
    }
    Ok(None)
}

/// The plans of [`without`] with the rule in place, for what they would find by mistake.
///
/// # Errors
///
/// When the harness itself does not work.
pub fn control(
    servers: &mut Servers,
    rule: Rule,
    first: u64,
    runs: u64,
    options: &Options,
    series: &mut Series,
) -> Result<()> {
    for seed in first..first + runs {
        let report = run::run(servers, &Plan::against(rule, seed), options)?;
        tell(&report, &format!("with the {} in place,", rule.name()));
        series.reports.push(report);
    }
    Ok(())
}
