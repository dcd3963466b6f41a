//! Finds a zone by its name, and the nearest names when there is none.

use std::sync::LazyLock;

use jiff::tz::{TimeZone, TimeZoneDatabase};

use super::CalendarError;

/// The longest name that is compared with the known ones; the longest that exists has 32 bytes.
const MAX_NAME_BYTES: usize = 64;

/// How many near names an error lists.
const MAX_SUGGESTIONS: usize = 3;

static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// The zone, and its name as the database spells it.
pub(super) fn find(name: &str) -> Result<(TimeZone, String), CalendarError> {
    let name = name.trim();
    let zone = ZONES.get(name).ok().filter(|zone| !zone.is_unknown());
    match zone {
        Some(zone) => {
            let spelled = zone.iana_name().unwrap_or(name).to_owned();
            Ok((zone, spelled))
        }
        None => Err(CalendarError::UnknownTimeZone {
            time_zone: name.chars().take(MAX_NAME_BYTES).collect(),
            near: near(name),
        }),
    }
}

/// The known names that are almost `name`: by a few letters, or the same place elsewhere in the tree.
fn near(name: &str) -> Vec<String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Vec::new();
    }
    let wanted = name.to_lowercase().replace(' ', "_");
    let place = last_part(&wanted);
    let mut scored: Vec<(usize, String)> = ZONES
        .available()
        .filter_map(|known| {
            let lower = known.as_str().to_lowercase();
            let whole = distance(&wanted, &lower);
            // The same place under another continent is a worse hit than a slip of the pen.
            let of_place = distance(place, last_part(&lower)) + 1;
            let score = if whole <= allowed(&wanted) {
                whole.min(of_place)
            } else if of_place <= allowed(place) + 1 {
                of_place
            } else {
                return None;
            };
            Some((score, known.as_str().to_owned()))
        })
        .collect();
    scored.sort();
    let best = scored.first().map_or(0, |(score, _)| *score);
    scored
        .into_iter()
        .filter(|(score, _)| *score <= best + 1)
        .take(MAX_SUGGESTIONS)
        .map(|(_, known)| known)
        .collect()
}

fn last_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// One wrong letter in four is a slip; more is another word.
fn allowed(name: &str) -> usize {
    name.chars().count() / 4
}

/// How many letters must be put in, taken out or replaced to turn one word into the other.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, one) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(one != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}
