//! Whether an action stays: by what its statements took before and after, and by nothing else.
//!
//! The clock alone decides nothing: a machine that others use too is slow at times. What a call took is compared with what
//! statements elsewhere took in the same time, what it read and wrote is compared beside it, and where the two do not agree
//! there is no verdict rather than a wrong one.

use fettler_model::{ActionKind, Compared, Measurement, TuningRecord};

use crate::series::{Between, Series, elsewhere, find};

/// How often a statement must have run before it says anything.
const LEAST_CALLS: f64 = 5.0;
/// How often it must have run for the clock to say anything, where it is not seen in several windows.
const LEAST_CALLS_BY_CLOCK: f64 = 20.0;
/// What statements must save together, as a share of their time or work, to have been helped.
const LEAST_GAIN: f64 = 0.1;
/// How much slower a statement must be to have been harmed: less is noise.
const HARMED: f64 = 1.15;
/// How much more work a call must be for a loss of time to be believed.
const MORE_WORK: f64 = 1.02;
/// How much slower one must be after an index was removed to have been harmed.
const HARMED_BY_REMOVAL: f64 = 1.5;
/// How many more blocks a call must read to have been harmed: the pages of an index that is one level deeper are no harm.
const HARMED_BLOCKS: f64 = 8.0;
/// How much slower one must be for the clock to be believed in spite of equal work, or work in spite of the clock.
const BEYOND_DOUBT: f64 = 3.0;
/// The share of the time of all statements on a table that one must have lost after a removal: less is chance.
const LOST_BY_REMOVAL: f64 = 0.05;
/// How long an action is looked at, at most, that nobody has put to use.
const PATIENCE_SECONDS: f64 = 7.0 * 86_400.0;

/// What is to be done about an action.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It stays, because of this.
    Keep(String),
    /// It goes, because of this.
    TakeBack(String),
    /// Nothing can be said yet, because of this.
    Wait(String),
}

/// Judges an action by what was measured since it was made, `seconds` ago, the last moment last; and says how its statements
/// fared.
#[must_use]
pub fn judge(
    record: &TuningRecord,
    looks: &[Measurement],
    seconds: f64,
) -> (Verdict, Vec<Compared>) {
    let Some(now) = looks.last() else {
        return (Verdict::Wait("nothing was measured yet".to_owned()), vec![]);
    };
    let compared = compare(record, now);
    let verdict = match record.action.kind {
        ActionKind::CreateIndex => of_index(record, now, &compared, seconds),
        ActionKind::DropIndex => of_removal(record, looks, &compared),
        ActionKind::SetTable
        | ActionKind::SetColumn
        | ActionKind::SetSetting
        | ActionKind::RefreshStatistics => {
            Verdict::Keep("what it changes shows over days, and costs nothing meanwhile".to_owned())
        }
    };
    (verdict, compared)
}

/// How the statements fared that ran often enough both before and after.
fn compare(record: &TuningRecord, now: &Measurement) -> Vec<Compared> {
    // The time shortly before is like the time after; the time since a look of long ago less so.
    let begun = record.baseline.first().unwrap_or(&record.before);
    let machine = elsewhere((Some(begun), &record.made), (&record.made, now))
        .or_else(|| elsewhere((None, &record.made), (&record.made, now)));
    now.statements
        .iter()
        .filter_map(|one| {
            let made = find(&record.made, &one.id)?;
            let since = |from: &Measurement| {
                Some(Between::of(Some(find(from, &one.id)?), made))
                    .filter(|between| between.calls >= LEAST_CALLS)
            };
            let before = since(begun)
                .or_else(|| since(&record.before))
                .unwrap_or_else(|| Between::of(None, made));
            let after = Between::of(Some(made), one);
            (before.calls >= LEAST_CALLS && after.calls >= LEAST_CALLS).then(|| Compared {
                id: one.id.clone(),
                ms_before: before.ms_a_call(),
                ms_after: after.ms_a_call(),
                calls: after.calls,
                blocks_before: before.blocks_a_call(),
                blocks_after: after.blocks_a_call(),
                elsewhere: machine,
            })
        })
        .collect()
}

/// What a call would take now had nothing been changed: as the statements elsewhere fare.
fn expected_ms(one: &Compared) -> f64 {
    one.ms_before * one.elsewhere.unwrap_or(1.0)
}

fn of_index(
    record: &TuningRecord,
    now: &Measurement,
    compared: &[Compared],
    seconds: f64,
) -> Verdict {
    let reads = now.index_reads;
    let (helped, others): (Vec<&Compared>, Vec<&Compared>) = compared
        .iter()
        .partition(|one| record.action.helps.contains(&one.id));
    let has_more_work = |one: &Compared| {
        one.blocks_before
            .zip(one.blocks_after)
            .is_none_or(|(before, after)| after > before * MORE_WORK)
    };
    let lost: f64 = others
        .iter()
        .filter(|one| one.ms_after > expected_ms(one) * HARMED && has_more_work(one))
        .map(|one| (one.ms_after - expected_ms(one)) * one.calls)
        .sum();
    // Where a server records no statements, who is helped is not known, and reads must do.
    if record.action.helps.is_empty() && reads > 0.0 {
        return Verdict::Keep(format!("it was read {reads:.0} times since"));
    }
    if helped.is_empty() {
        return if seconds > PATIENCE_SECONDS && reads <= 0.0 {
            Verdict::TakeBack("nobody has read it in a week".to_owned())
        } else {
            Verdict::Wait(format!(
                "the statements that it is meant for have not run {LEAST_CALLS} times since"
            ))
        };
    }
    if reads <= 0.0 {
        return Verdict::TakeBack(
            "the statements that it was meant for have run, and did not read it".to_owned(),
        );
    }
    let before: f64 = helped.iter().map(|one| expected_ms(one) * one.calls).sum();
    let after: f64 = helped.iter().map(|one| one.ms_after * one.calls).sum();
    let gain = before - after;
    let blocks = |of: fn(&Compared) -> Option<f64>| -> Option<f64> {
        helped.iter().map(|one| Some(of(one)? * one.calls)).sum()
    };
    let less_work = blocks(|one| one.blocks_before)
        .zip(blocks(|one| one.blocks_after))
        .map(|(before, after)| after < before * (1.0 - LEAST_GAIN));
    let took = format!(
        "the statements that it was meant for would have taken {before:.1} ms and take {after:.1} ms now"
    );
    match (gain >= before * LEAST_GAIN, less_work) {
        (true, _) => {}
        (false, Some(true)) => {
            return Verdict::Wait(format!("{took}, though they read less"));
        }
        (false, _) => return Verdict::TakeBack(took),
    }
    if lost > gain {
        return Verdict::TakeBack(format!(
            "others have lost more ({lost:.1} ms) than it has saved ({gain:.1} ms)"
        ));
    }
    let others = if lost > 0.0 {
        format!(", and others {lost:.1} ms more")
    } else {
        String::new()
    };
    Verdict::Keep(format!("{took}{others}"))
}

/// What was seen of one statement after a removal.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fared {
    Well,
    Harmed,
    Unclear,
}

fn of_removal(record: &TuningRecord, looks: &[Measurement], compared: &[Compared]) -> Verdict {
    let all: f64 = compared.iter().map(|one| one.ms_after * one.calls).sum();
    let mut judged = 0;
    let mut unclear = None;
    for one in compared {
        let lost = (one.ms_after - expected_ms(one)) * one.calls;
        let fared = fared(record, looks, one);
        match fared {
            Some(Fared::Harmed) if lost > all * LOST_BY_REMOVAL => {
                let blocks = match one.blocks_before.zip(one.blocks_after) {
                    Some((before, after)) => {
                        format!(", and reads {after:.0} blocks for {before:.0}")
                    }
                    None => String::new(),
                };
                return Verdict::TakeBack(format!(
                    "statement {} would have taken {:.2} ms and takes {:.2} ms without it{blocks}",
                    one.id,
                    expected_ms(one),
                    one.ms_after
                ));
            }
            Some(Fared::Unclear) if lost > all * LOST_BY_REMOVAL => unclear = Some(one),
            Some(_) => judged += 1,
            None => {}
        }
    }
    if let Some(one) = unclear {
        return Verdict::Wait(format!(
            "no verdict: statement {} takes {:.2} ms where {:.2} ms were to be expected, and what it reads does not tell why",
            one.id,
            one.ms_after,
            expected_ms(one)
        ));
    }
    if judged == 0 {
        return Verdict::Wait("no statement on its table has run often enough since".to_owned());
    }
    Verdict::Keep(format!(
        "{judged} statements on its table have run since, and none is slower for want of it"
    ))
}

/// How a statement fares without the index; none where that cannot be told yet.
fn fared(record: &TuningRecord, looks: &[Measurement], one: &Compared) -> Option<Fared> {
    let mut before = record.baseline.clone();
    before.push(record.made.clone());
    let series = Series::of(&one.id, &before, looks);
    let work = series
        .work(HARMED_BY_REMOVAL)
        .map(|shift| (shift.is_clear && shift.more >= HARMED_BLOCKS, shift.times));
    let clock = series
        .clock(HARMED_BY_REMOVAL)
        .map(|shift| (shift.is_clear, shift.times));
    // Without a series there are two sums: they can clear a removal, and accuse it only together.
    let is_series = work.is_some() || clock.is_some();
    let work = work.or_else(|| {
        let (before, after) = one.blocks_before.zip(one.blocks_after)?;
        let times = after / before.max(1.0);
        Some((
            times > HARMED_BY_REMOVAL && after - before >= HARMED_BLOCKS,
            times,
        ))
    });
    let clock = clock.or_else(|| {
        one.elsewhere?;
        let times = one.ms_after / expected_ms(one).max(1e-9);
        (one.calls >= LEAST_CALLS_BY_CLOCK).then_some((times > HARMED_BY_REMOVAL, times))
    });
    Some(match (work, clock) {
        (Some((false, _)), Some((true, times))) if times > BEYOND_DOUBT => Fared::Unclear,
        (Some((false, _)), _) | (None, Some((false, _))) => Fared::Well,
        (Some((true, _)), Some((true, _))) => Fared::Harmed,
        (None, Some((true, _))) if is_series => Fared::Harmed,
        (Some((true, times)), None) if is_series && times > BEYOND_DOUBT => Fared::Harmed,
        (Some((true, times)), Some((false, _))) if times <= BEYOND_DOUBT => Fared::Well,
        (Some((true, _)) | None, _) if work.is_some() || clock.is_some() => Fared::Unclear,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use fettler_model::{JobId, StatementTime, Timestamp, TuningAction, TuningState};

    use super::*;

    fn counted(of: &[(&str, f64, f64)], index_reads: f64) -> Measurement {
        Measurement {
            statements: of
                .iter()
                .map(|(id, calls, ms)| StatementTime {
                    id: (*id).to_owned(),
                    calls: *calls,
                    total_ms: calls * ms,
                    blocks: None,
                })
                .collect(),
            index_reads,
            // Statements elsewhere that take what they always took.
            elsewhere: vec![StatementTime {
                id: "elsewhere".into(),
                calls: 100.0 * if of.is_empty() { 0.0 } else { of[0].1 },
                total_ms: 100.0 * if of.is_empty() { 0.0 } else { of[0].1 },
                blocks: None,
            }],
            at: None,
        }
    }

    fn record(kind: ActionKind) -> TuningRecord {
        TuningRecord {
            action: TuningAction {
                id: "a".into(),
                kind,
                object: "i".into(),
                table: "t".into(),
                finding: String::new(),
                reason: String::new(),
                safe: true,
                unsafe_because: String::new(),
                apply: vec![],
                undo: vec![],
                helps: vec!["read".into()],
                expected: None,
            },
            job: JobId::new(),
            state: TuningState::Observing,
            begun: Timestamp::now(),
            applied: None,
            before: Measurement::default(),
            made: counted(&[("read", 100.0, 50.0), ("write", 1000.0, 0.1)], 0.0),
            baseline: Vec::new(),
            compared: Vec::new(),
            why: String::new(),
        }
    }

    /// What is counted later: what was there, and more.
    fn later(read: (f64, f64), write: (f64, f64), reads: f64) -> Measurement {
        let mut now = counted(&[("read", 100.0, 50.0), ("write", 1000.0, 0.1)], reads);
        for (at, (calls, ms)) in [read, write].into_iter().enumerate() {
            now.statements[at].calls += calls;
            now.statements[at].total_ms += calls * ms;
        }
        now.elsewhere[0].calls += 1000.0;
        now.elsewhere[0].total_ms += 1000.0;
        now
    }

    #[test]
    fn an_index_stays_only_if_it_was_read_and_saved_more_than_it_cost() {
        let record = record(ActionKind::CreateIndex);
        let of = |now: &Measurement| judge(&record, std::slice::from_ref(now), 60.0).0;
        assert!(matches!(
            of(&later((20.0, 1.0), (100.0, 0.1), 20.0)),
            Verdict::Keep(_)
        ));
        // Not read; read and no faster; faster, and writers lose more.
        for now in [
            later((20.0, 1.0), (100.0, 0.1), 0.0),
            later((20.0, 49.0), (100.0, 0.1), 20.0),
            later((20.0, 30.0), (10_000.0, 0.2), 20.0),
        ] {
            assert!(matches!(of(&now), Verdict::TakeBack(_)), "{now:?}");
        }
        let idle = later((2.0, 1.0), (100.0, 0.1), 2.0);
        assert!(matches!(of(&idle), Verdict::Wait(_)));
        let idle = later((0.0, 0.0), (100.0, 0.1), 0.0);
        assert!(matches!(
            judge(&record, &[idle], 8.0 * 86_400.0).0,
            Verdict::TakeBack(_)
        ));
    }

    /// With what it reads, before and after, in blocks a call.
    fn reading(mut of: Measurement, made: &mut TuningRecord, blocks: (f64, f64)) -> Measurement {
        for (now, then) in of.statements.iter_mut().zip(&mut made.made.statements) {
            then.blocks = Some(then.calls * blocks.0);
            now.blocks = Some(then.calls * blocks.0 + (now.calls - then.calls) * blocks.1);
        }
        of
    }

    #[test]
    fn two_sums_accuse_a_removal_only_where_clock_and_work_agree() {
        let judged = |read, write, blocks: Option<(f64, f64)>| {
            let mut record = record(ActionKind::DropIndex);
            let mut now = later(read, write, 0.0);
            if let Some(blocks) = blocks {
                now = reading(now, &mut record, blocks);
            }
            judge(&record, &[now], 60.0).0
        };
        let quick = (100.0, 0.09);
        for well in [
            judged((20.0, 51.0), quick, None),
            judged((20.0, 90.0), quick, Some((100.0, 101.0))),
            judged((20.0, 51.0), quick, Some((100.0, 200.0))),
        ] {
            assert!(matches!(well, Verdict::Keep(_)), "{well:?}");
        }
        let harmed = judged((20.0, 90.0), quick, Some((100.0, 400.0)));
        assert!(matches!(harmed, Verdict::TakeBack(_)), "{harmed:?}");
        for unclear in [
            // The clock alone; the clock beyond doubt against the work; nobody asked.
            judged((20.0, 90.0), quick, None),
            judged((20.0, 190.0), quick, Some((100.0, 101.0))),
            judged((1.0, 90.0), (0.0, 0.0), None),
        ] {
            assert!(matches!(unclear, Verdict::Wait(_)), "{unclear:?}");
        }
    }

    #[test]
    fn a_machine_that_is_slow_for_all_has_harmed_nobody() {
        let record = record(ActionKind::CreateIndex);
        // All is three times as slow, and the helped statement a little less so.
        let mut now = later((20.0, 60.0), (1000.0, 0.3), 20.0);
        now.elsewhere[0].total_ms += 2000.0;
        let (verdict, compared) = judge(&record, &[now], 60.0);
        assert!(
            matches!(verdict, Verdict::Keep(_)),
            "{verdict:?} {compared:?}"
        );
    }

    /// Counts that were recorded on a server: see the head of the file.
    fn recorded(phase: &str) -> Vec<Measurement> {
        let mut looks: Vec<Measurement> = Vec::new();
        for line in include_str!("recorded/removal.csv").lines() {
            let parts: Vec<&str> = line.split(',').collect();
            if line.starts_with('#') || parts[0] != phase {
                continue;
            }
            let number = |at: usize| parts[at].parse::<f64>().unwrap();
            let at = Timestamp::from_micros(parts[1].parse::<i64>().unwrap() * 1000);
            if looks.last().is_none_or(|look| look.at != Some(at)) {
                looks.push(Measurement {
                    at: Some(at),
                    ..Measurement::default()
                });
            }
            let one = StatementTime {
                id: parts[2].to_owned(),
                calls: number(4),
                total_ms: number(5),
                blocks: Some(number(6)),
            };
            let look = looks.last_mut().unwrap();
            if parts[3] == "on" {
                look.statements.push(one);
            } else {
                look.elsewhere.push(one);
            }
        }
        looks
    }

    fn removal(before: &str) -> TuningRecord {
        let mut record = record(ActionKind::DropIndex);
        record.baseline = recorded(before);
        record.made = record.baseline.pop().unwrap();
        record
    }

    #[test]
    fn a_duplicate_is_not_put_back_because_the_machine_is_slow_or_the_table_changes() {
        let (record, looks) = (removal("dup"), recorded("nodup"));
        let (last, compared) = judge(&record, &looks, 20.0);
        assert!(matches!(last, Verdict::Keep(_)), "{last:?}");
        // What it would take for the two sums to mislead: one statement is more than half as slow again, and reads more.
        assert!(
            compared.iter().any(|one| one.ms_after > one.ms_before * 1.5
                && one.blocks_after.unwrap() > one.blocks_before.unwrap() * 1.5),
            "{compared:?}"
        );
        for most in 1..looks.len() {
            let (early, _) = judge(&record, &looks[..most], 2.0);
            assert!(!matches!(early, Verdict::TakeBack(_)), "{most}: {early:?}");
        }
    }

    #[test]
    fn an_index_that_is_missed_is_put_back_in_all_that_noise() {
        let (record, looks) = (removal("nodup"), recorded("none"));
        let (verdict, _) = judge(&record, &looks, 20.0);
        assert!(matches!(verdict, Verdict::TakeBack(_)), "{verdict:?}");
    }

    #[test]
    fn counters_that_were_set_to_nothing_are_no_negative_times() {
        let record = record(ActionKind::CreateIndex);
        let now = counted(&[("read", 10.0, 1.0)], 10.0);
        let (verdict, compared) = judge(&record, &[now], 60.0);
        assert!(matches!(verdict, Verdict::Keep(_)), "{verdict:?}");
        assert!((compared[0].ms_after - 1.0).abs() < 1e-9, "{compared:?}");
    }
}
