//! `faults`: the fault harness by hand. `cargo run -p fettler-faults -- --runs 100` prints a line a run and a table at the end;
//! docs/testing.md says how to read it.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use fettler_fault_points::Rule;
use fettler_faults::{
    Result, Trouble,
    plan::Plan,
    program,
    run::Options,
    series::{self, Series},
    servers::Servers,
};

/// Runs a real fleet under seeded plans of faults, and checks from outside that it keeps its promises
#[derive(Debug, Parser)]
#[command(name = "faults")]
struct Arguments {
    /// So many random runs
    #[arg(long, value_name = "N", default_value_t = 10)]
    runs: u64,
    /// The first seed; each run takes the next one
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Begin no run after so many minutes
    #[arg(long, value_name = "MINUTES")]
    minutes: Option<f64>,
    /// Begin with the directed pass, in which every named point ends a process once
    #[arg(long)]
    directed: bool,
    /// Show that the absence of a rule is found, instead
    #[arg(long, value_name = "RULE")]
    without: Option<Without>,
    /// Run the same plans with that rule in place: nothing must be found then
    #[arg(long, requires = "without")]
    control: bool,
    /// Begin each random run with this binary, of the build before (see tests/faults/previous-build), and upgrade under load
    #[arg(long, value_name = "BINARY", conflicts_with_all = ["directed", "without"])]
    previous: Option<PathBuf>,
    /// Only print the plan of the seed
    #[arg(long)]
    plan: bool,
    /// Write what the ledgers saw to this folder, a file a run, a JSON document a write
    #[arg(long, value_name = "FOLDER")]
    record: Option<PathBuf>,
    /// Keep the folder of a run that goes wrong
    #[arg(long)]
    keep: bool,
    /// Say what is done, and when
    #[arg(long, short)]
    verbose: bool,
}

/// A rule that can be left out.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Without {
    /// Writes of superseded attempts are taken
    Fence,
    /// Lost jobs are not taken back
    Rescue,
    /// Running backups do not announce themselves
    Announcement,
}

impl From<Without> for Rule {
    fn from(without: Without) -> Self {
        match without {
            Without::Fence => Self::Fence,
            Without::Rescue => Self::Rescue,
            Without::Announcement => Self::Announcement,
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            eprintln!("the harness cannot go on: {trouble}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.plan {
        let plan = Plan::random(arguments.seed);
        for timed in &plan.faults {
            println!(
                "{:>6.2} s  {} ({:?})",
                timed.at.as_secs_f64(),
                timed.fault,
                timed.lasts
            );
        }
        for (slot, point) in &plan.ends {
            println!("{} ends at {point}", slot.name());
        }
        return Ok(true);
    }
    if let Some(folder) = &arguments.record {
        std::fs::create_dir_all(folder).map_err(|source| Trouble::Io {
            what: format!("make {}", folder.display()),
            source,
        })?;
    }
    let options = Options {
        binary: program::armed_binary()?,
        previous: arguments.previous.clone(),
        without: None,
        record: arguments.record.clone(),
        keep: arguments.keep,
        verbose: arguments.verbose,
    };
    eprintln!("seed {}", arguments.seed);
    let mut servers = Servers::start()?;
    if let Some(without) = arguments.without {
        let rule = without.into();
        if arguments.control {
            let mut series = Series::default();
            series::control(
                &mut servers,
                rule,
                arguments.seed,
                arguments.runs,
                &options,
                &mut series,
            )?;
            println!("{}", series.table());
            return Ok(series.violations().is_empty());
        }
        let caught = series::without(&mut servers, rule, arguments.seed, &options)?;
        match caught {
            Some(runs) => println!("the absence of the {} is found in run {runs}", rule.name()),
            None => println!(
                "the absence of the {} is NOT found within {} runs",
                rule.name(),
                series::CAUGHT_WITHIN
            ),
        }
        return Ok(caught.is_some());
    }
    let mut series = Series::default();
    let mut missed = Vec::new();
    if arguments.directed {
        let (report, not_hit) = series::directed(&mut servers, arguments.seed, &options)?;
        series.reports.push(report);
        missed = not_hit;
    }
    let within = arguments
        .minutes
        .map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    series::random(
        &mut servers,
        arguments.seed,
        arguments.runs,
        within,
        &options,
        &mut series,
    )?;
    println!("{}", series.table());
    for violation in series.violations() {
        println!("{violation}");
    }
    if !missed.is_empty() {
        println!("points that nothing reached: {}", missed.join(", "));
    }
    let mut nothing = series.tally().missing();
    if arguments.previous.is_some() {
        // A few runs about something else.
        nothing.clear();
    }
    if !nothing.is_empty() {
        println!("these faults bit nothing: {}", nothing.join(", "));
    }
    Ok(series.violations().is_empty() && missed.is_empty() && nothing.is_empty())
}
