//! What is known of releases: until when each line of versions is cared for, and which releases close which vulnerabilities.
//! Facts only (dates, versions, CVE numbers, scores), from the projects' own pages. The list ships with Fettler and ages
//! with it; a newer one is read from a file in its place.

use std::collections::BTreeMap;

use fettler_engine::Row;
use fettler_model::Engine;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use thiserror::Error;

/// The list that ships.
const SHIPPED: &str = include_str!("../data/releases.json");

/// After so many days a list says nothing of what is open: some releases have come since that it does not know.
const OLD_AFTER_DAYS: i64 = 365;

/// A list of releases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Releases {
    /// The day up to which it knows, as `2026-05-14`.
    pub as_of: String,
    /// Where its facts are from.
    pub sources: Vec<String>,
    /// The lines of versions of each engine.
    pub releases: BTreeMap<Engine, Vec<Release>>,
    /// Known vulnerabilities of each engine.
    pub vulnerabilities: BTreeMap<Engine, Vec<Vulnerability>>,
}

/// A line of versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The line: `17`, `9.6`, `7.2`.
    pub line: String,
    /// The last day on which it is cared for; none where the project names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_of_life: Option<String>,
    /// Its last release at the list's day.
    pub latest: String,
}

/// A vulnerability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vulnerability {
    /// Its number.
    pub cve: String,
    /// CVSS base score, of 10.
    pub score: f64,
    /// What it lets somebody do, in a few own words.
    pub what: String,
    /// The first release of each line that closes it. Lines that are not named are not concerned.
    pub fixed_in: Vec<String>,
    /// It concerns only servers on which this extension is installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extension: Option<String>,
}

/// A text is no list of releases.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {what}")]
pub struct ReleasesError {
    field: String,
    what: String,
}

impl Releases {
    /// The list that ships with Fettler.
    ///
    /// # Panics
    ///
    /// Never: a test reads it.
    #[must_use]
    pub fn shipped() -> Self {
        Self::read(SHIPPED).expect("the list that ships is sound")
    }

    /// Reads a list.
    ///
    /// # Errors
    ///
    /// The field that is wrong.
    pub fn read(text: &str) -> Result<Self, ReleasesError> {
        let deserializer = &mut serde_json::Deserializer::from_str(text);
        let list: Self = serde_path_to_error::deserialize(deserializer).map_err(
            |error: serde_path_to_error::Error<serde_json::Error>| ReleasesError {
                field: error.path().to_string(),
                what: error.inner().to_string(),
            },
        )?;
        list.check()?;
        Ok(list)
    }

    /// Looks whether dates are dates and versions are versions.
    ///
    /// # Errors
    ///
    /// The field that is wrong.
    pub fn check(&self) -> Result<(), ReleasesError> {
        let wrong = |field: &str, what: String| ReleasesError {
            field: field.to_owned(),
            what,
        };
        let date = |field: &str, text: &str| match days(text) {
            Some(_) => Ok(()),
            None => Err(wrong(
                field,
                format!("{text:?} is no day such as 2026-05-14"),
            )),
        };
        let version = |field: &str, text: &str| match numbers(text) {
            Some(_) => Ok(()),
            None => Err(wrong(
                field,
                format!("{text:?} is no version such as 17.10"),
            )),
        };
        date("as_of", &self.as_of)?;
        for release in self.releases.values().flatten() {
            version("releases.line", &release.line)?;
            version("releases.latest", &release.latest)?;
            if let Some(day) = &release.end_of_life {
                date("releases.end_of_life", day)?;
            }
        }
        for vulnerability in self.vulnerabilities.values().flatten() {
            for release in &vulnerability.fixed_in {
                version("vulnerabilities.fixed_in", release)?;
            }
        }
        Ok(())
    }

    /// The line that checks of the release judge. `today` is a day such as `2026-05-14`.
    ///
    /// # Errors
    ///
    /// Why nothing can be said, in words.
    pub fn row(&self, engine: Engine, version: &str, today: &str) -> Result<Row, String> {
        let running =
            numbers(version).ok_or_else(|| format!("the server calls its version {version:?}"))?;
        let known = self.releases.get(&engine).map_or(&[][..], Vec::as_slice);
        let release = known
            .iter()
            .find(|release| is_of_line(&running, &release.line))
            .ok_or_else(|| {
                format!(
                    "the list of releases of {} does not know {engine} {version}; give a newer one (`--releases`)",
                    self.as_of
                )
            })?;
        let latest = numbers(&release.latest).unwrap_or_default();
        let days_left = match (&release.end_of_life, days(today)) {
            (Some(day), Some(today)) => days(day).map(|day| day - today),
            _ => None,
        };
        // Releases of one line are counted by its last number.
        let behind = match (latest.last(), running.get(latest.len().saturating_sub(1))) {
            (Some(latest), Some(running)) => latest.saturating_sub(*running),
            _ => 0,
        };
        Ok(Row::from_iter([
            ("version".to_owned(), json!(plain(&running))),
            ("line".to_owned(), json!(release.line)),
            ("end_of_life".to_owned(), json!(release.end_of_life)),
            ("days_left".to_owned(), json!(days_left.unwrap_or(i64::MAX))),
            (
                "days_over".to_owned(),
                json!(days_left.map_or(0, |left| (-left).max(0))),
            ),
            ("latest".to_owned(), json!(release.latest)),
            ("releases_behind".to_owned(), json!(behind)),
            ("as_of".to_owned(), json!(self.as_of)),
        ]))
    }

    /// A line for each vulnerability that the server's release has. Where the list is old, a line says that it is.
    ///
    /// # Errors
    ///
    /// Why nothing can be said, in words.
    pub fn open(
        &self,
        engine: Engine,
        version: &str,
        extensions: &[String],
        today: &str,
    ) -> Result<Vec<Row>, String> {
        let running =
            numbers(version).ok_or_else(|| format!("the server calls its version {version:?}"))?;
        let known = self
            .vulnerabilities
            .get(&engine)
            .map_or(&[][..], Vec::as_slice);
        let mut rows: Vec<Row> = known
            .iter()
            .filter(|one| {
                one.extension
                    .as_ref()
                    .is_none_or(|extension| extensions.contains(extension))
            })
            .filter_map(|one| {
                let fixed_in = one.fixed_in.iter().find(|fixed| {
                    numbers(fixed).is_some_and(|fixed| {
                        let line = fixed.len().saturating_sub(1);
                        running.get(..line) == fixed.get(..line) && running < fixed
                    })
                })?;
                Some(Row::from_iter([
                    ("cve".to_owned(), json!(one.cve)),
                    ("score".to_owned(), json!(one.score)),
                    ("what".to_owned(), json!(one.what)),
                    ("version".to_owned(), json!(plain(&running))),
                    ("fixed_in".to_owned(), json!(fixed_in)),
                    ("as_of".to_owned(), json!(self.as_of)),
                ]))
            })
            .collect();
        // Of a line that no fact names, and of one that nobody looks at any more, nothing found is no news.
        let is_named = known.iter().flat_map(|one| &one.fixed_in).any(|fixed| {
            numbers(fixed).is_some_and(|fixed| {
                let line = fixed.len().saturating_sub(1);
                running.get(..line) == fixed.get(..line)
            })
        });
        let is_cared_for = self.releases.get(&engine).is_some_and(|lines| {
            lines.iter().any(|one| {
                is_of_line(&running, &one.line)
                    && one.end_of_life.as_deref().and_then(days) >= days(today)
            })
        });
        if !is_named && !is_cared_for {
            rows.push(Row::from_iter([(
                "not_evaluable".to_owned(),
                json!(format!(
                    "the list of releases of {} says nothing of vulnerabilities of {engine} {}, which its project may not look at any more",
                    self.as_of,
                    plain(&running)
                )),
            )]));
        }
        let age = match (days(today), days(&self.as_of)) {
            (Some(today), Some(then)) => today - then,
            _ => 0,
        };
        if age > OLD_AFTER_DAYS {
            rows.push(Row::from_iter([(
                "not_evaluable".to_owned(),
                json!(format!(
                    "the list of releases is of {}, {age} days ago; give a newer one (`--releases`)",
                    self.as_of
                )),
            )]));
        }
        Ok(rows)
    }
}

/// The numbers that a version begins with: `15.18 (Debian 15.18-0+deb12u1)` is 15 and 18.
fn numbers(version: &str) -> Option<Vec<u64>> {
    let end = version
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(version.len());
    let numbers: Option<Vec<u64>> = version[..end]
        .trim_end_matches('.')
        .split('.')
        .map(|part| part.parse().ok())
        .collect();
    numbers.filter(|numbers| !numbers.is_empty())
}

fn plain(numbers: &[u64]) -> String {
    numbers
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(".")
}

fn is_of_line(running: &[u64], line: &str) -> bool {
    numbers(line).is_some_and(|line| running.starts_with(&line))
}

/// The number of a day, counted from any fixed one (the proleptic Gregorian calendar).
fn days(day: &str) -> Option<i64> {
    let mut parts = day.split('-');
    let year: i64 = parts.next()?.parse().ok()?;
    let month: i64 = parts.next()?.parse().ok()?;
    let of_month: i64 = parts.next()?.parse().ok()?;
    if parts.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&of_month) {
        return None;
    }
    // Years begin in March, so that the day that comes and goes is the last one.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    Some(
        365 * year + year.div_euclid(4) - year.div_euclid(100)
            + year.div_euclid(400)
            + (153 * month + 2) / 5
            + of_month,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(version: &str, extensions: &[&str]) -> Vec<String> {
        let extensions: Vec<String> = extensions.iter().map(ToString::to_string).collect();
        Releases::shipped()
            .open(Engine::Postgres, version, &extensions, "2026-06-01")
            .unwrap()
            .iter()
            .map(|row| row["cve"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_release_has_what_its_line_closes_later_and_nothing_else() {
        let old = open("15.17 (Debian 15.17-0+deb12u1)", &[]);
        assert!(old.contains(&"CVE-2026-6473".to_owned()), "{old:?}");
        assert!(!old.contains(&"CVE-2026-2005".to_owned()), "{old:?}");
        // Only 17 and later have the program, only 16 and later the other flaw.
        assert!(!old.contains(&"CVE-2026-6476".to_owned()), "{old:?}");
        assert_eq!(open("15.18", &[]), [""; 0]);
        assert_eq!(open("18.6", &[]), [""; 0]);
        assert!(!open("15.15", &[]).contains(&"CVE-2026-2005".to_owned()));
        assert!(open("15.15", &["pgcrypto"]).contains(&"CVE-2026-2005".to_owned()));
    }

    #[test]
    fn a_line_ends_on_its_day_and_one_that_is_not_known_is_not_judged() {
        let list = Releases::shipped();
        let row = |version: &str, today: &str| list.row(Engine::Postgres, version, today);
        assert_eq!(row("15.18", "2027-11-11").unwrap()["days_left"], 0);
        assert_eq!(row("15.18", "2027-11-12").unwrap()["days_over"], 1);
        assert_eq!(row("15.16", "2026-06-01").unwrap()["releases_behind"], 2);
        assert_eq!(row("9.6.24", "2026-06-01").unwrap()["line"], "9.6");
        assert!(
            row("99.1", "2026-06-01")
                .unwrap_err()
                .contains("--releases")
        );
        let late = list
            .open(Engine::Postgres, "18.4", &[], "2029-01-01")
            .unwrap();
        assert!(late[0].contains_key("not_evaluable"), "{late:?}");
    }

    #[test]
    fn days_are_counted_over_leap_years_and_centuries() {
        let between = |a: &str, b: &str| days(b).unwrap() - days(a).unwrap();
        assert_eq!(between("2024-02-28", "2024-03-01"), 2);
        assert_eq!(between("2100-02-28", "2100-03-01"), 1);
        assert_eq!(between("2000-01-01", "2026-01-01"), 9497);
        for wrong in ["2026", "2026-13-01", "today", "2026-01-01-01"] {
            assert_eq!(days(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_list_with_a_mistake_is_told_with_its_field() {
        let text = SHIPPED.replace("\"as_of\": \"2026-05-14\"", "\"as_of\": \"soon\"");
        assert!(
            Releases::read(&text)
                .unwrap_err()
                .to_string()
                .contains("as_of")
        );
        assert!(Releases::read("{}").is_err());
    }
}
