//! What was counted at several moments, as a series of windows for each statement: what a call took by the clock, less what the
//! machine had to do with that; and what it read and wrote, which no clock has a part in.
//!
//! The machine's share is told by the statements that have nothing to do with the table (a difference in differences); what
//! changes by itself, as a table does that grows, by the line on which the windows before the change lie (an interrupted time
//! series).

use fettler_model::{Measurement, StatementTime};

/// How often a statement must have run within a window for its mean to say something.
const LEAST_CALLS: f64 = 5.0;
/// How often the statements elsewhere must have run together within a window to speak for the machine.
const LEAST_CALLS_ELSEWHERE: f64 = 20.0;
/// How many windows a side must have to speak of a line, and of most.
const LEAST_WINDOWS: usize = 3;
/// The share of windows that must agree.
const MOST: f64 = 2.0 / 3.0;

/// Calls, milliseconds and blocks between two counts, or since the counters were set to nothing in between.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Between {
    pub(crate) calls: f64,
    pub(crate) ms: f64,
    pub(crate) blocks: Option<f64>,
}

impl Between {
    pub(crate) fn of(from: Option<&StatementTime>, to: &StatementTime) -> Self {
        match from {
            Some(from) if from.calls <= to.calls && from.total_ms <= to.total_ms => Self {
                calls: to.calls - from.calls,
                ms: to.total_ms - from.total_ms,
                blocks: to
                    .blocks
                    .zip(from.blocks)
                    .map(|(to, from)| (to - from).max(0.0)),
            },
            _ => Self {
                calls: to.calls,
                ms: to.total_ms,
                blocks: to.blocks,
            },
        }
    }

    pub(crate) fn ms_a_call(&self) -> f64 {
        self.ms / self.calls.max(1.0)
    }

    pub(crate) fn blocks_a_call(&self) -> Option<f64> {
        self.blocks.map(|blocks| blocks / self.calls.max(1.0))
    }
}

/// A statement's counters in a measurement, wherever they stand.
pub(crate) fn find<'a>(measurement: &'a Measurement, id: &str) -> Option<&'a StatementTime> {
    measurement
        .statements
        .iter()
        .chain(&measurement.elsewhere)
        .find(|one| one.id == id)
}

/// How many times as long a call of the statements elsewhere took in the second time as in the first; none where they ran too
/// seldom to tell. A few statements that fared in a way of their own do not carry the answer: it is the median, by calls.
pub(crate) fn elsewhere(
    first: (Option<&Measurement>, &Measurement),
    second: (&Measurement, &Measurement),
) -> Option<f64> {
    let mut ratios: Vec<(f64, f64)> = second
        .1
        .elsewhere
        .iter()
        .filter_map(|now| {
            let then = find(second.0, &now.id)?;
            let begun = first.0.and_then(|first| find(first, &now.id));
            let before = Between::of(begun, find(first.1, &now.id)?);
            let after = Between::of(Some(then), now);
            (before.calls >= LEAST_CALLS && before.ms > 0.0 && after.calls >= 1.0)
                .then(|| (after.ms_a_call() / before.ms_a_call(), after.calls))
        })
        .collect();
    let calls: f64 = ratios.iter().map(|(_, calls)| calls).sum();
    if calls < LEAST_CALLS_ELSEWHERE {
        return None;
    }
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut seen = 0.0;
    ratios
        .into_iter()
        .find(|(_, calls_of_one)| {
            seen += calls_of_one;
            seen * 2.0 >= calls
        })
        .map(|(ratio, _)| ratio)
        .filter(|ratio| *ratio > 0.0)
}

/// One statement in one window.
#[derive(Clone, Copy, Debug)]
struct Window {
    /// Seconds from the first measurement to its middle.
    at: f64,
    /// Milliseconds a call, as they would be on the machine of the time before the change; none where nobody tells.
    ms: Option<f64>,
    blocks: Option<f64>,
}

/// What a series says of a statement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shift {
    /// How many times as much as was to be expected the windows after the change show, at the median.
    pub(crate) times: f64,
    /// By how much more, a call.
    pub(crate) more: f64,
    /// Whether most windows show `times` or more of what was asked for, beyond what windows differ by anyway.
    pub(crate) is_clear: bool,
}

/// The series of one statement around a change.
#[derive(Debug)]
pub(crate) struct Series {
    before: Vec<Window>,
    after: Vec<Window>,
}

impl Series {
    /// Of measurements before (the last of them when it was made) and after.
    pub(crate) fn of(id: &str, before: &[Measurement], after: &[Measurement]) -> Self {
        let (Some(first), Some(made)) = (before.first(), before.last()) else {
            return Self {
                before: Vec::new(),
                after: Vec::new(),
            };
        };
        let windows = |of: &[Measurement]| {
            let mut windows = Vec::new();
            let mut from = 0;
            for to in 1..of.len() {
                let (Some(a), Some(b)) = (find(&of[from], id), find(&of[to], id)) else {
                    continue;
                };
                let between = Between::of(Some(a), b);
                if between.calls < LEAST_CALLS {
                    continue;
                }
                let machine = elsewhere((Some(first), made), (&of[from], &of[to]));
                let seconds = |of: &Measurement| {
                    of.at
                        .zip(first.at)
                        .map_or(0.0, |(at, first)| at.since(first).as_secs_f64())
                };
                windows.push(Window {
                    at: f64::midpoint(seconds(&of[from]), seconds(&of[to])),
                    ms: machine.map(|machine| between.ms_a_call() / machine),
                    blocks: between.blocks_a_call(),
                });
                from = to;
            }
            windows
        };
        let mut later = vec![made.clone()];
        later.extend_from_slice(after);
        Self {
            before: windows(before),
            after: windows(&later),
        }
    }

    /// How the clock shifted, where most windows are `times` as slow as was to be expected.
    pub(crate) fn clock(&self, times: f64) -> Option<Shift> {
        self.shift(times, |window| window.ms)
    }

    /// How the work shifted.
    pub(crate) fn work(&self, times: f64) -> Option<Shift> {
        self.shift(times, |window| window.blocks)
    }

    fn shift(&self, times: f64, of: impl Fn(&Window) -> Option<f64>) -> Option<Shift> {
        let points = |windows: &[Window]| -> Vec<(f64, f64)> {
            windows
                .iter()
                .filter_map(|window| Some((window.at, of(window)?)))
                .collect()
        };
        let (before, after) = (points(&self.before), points(&self.after));
        if before.len() < LEAST_WINDOWS || after.len() < LEAST_WINDOWS {
            return None;
        }
        let line = Line::through(&before);
        let mut ratios = Vec::new();
        let mut mores = Vec::new();
        let mut clear = 0.0;
        for (at, value) in &after {
            let expected = line.at(*at);
            ratios.push(value / expected.max(1e-9));
            mores.push(value - expected);
            if *value > expected * times && *value > expected + 3.0 * line.scatter {
                clear += 1.0;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "windows are few")]
        let all = after.len() as f64;
        Some(Shift {
            times: median(&mut ratios),
            more: median(&mut mores),
            is_clear: clear >= all * MOST,
        })
    }
}

/// A line through points, never sloping downwards: what gets better by itself is no excuse that is needed.
struct Line {
    mean: f64,
    middle: f64,
    slope: f64,
    scatter: f64,
}

impl Line {
    fn through(points: &[(f64, f64)]) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "windows are few")]
        let count = points.len() as f64;
        let middle = points.iter().map(|(at, _)| at).sum::<f64>() / count;
        let mean = points.iter().map(|(_, value)| value).sum::<f64>() / count;
        let spread: f64 = points.iter().map(|(at, _)| (at - middle).powi(2)).sum();
        let together: f64 = points
            .iter()
            .map(|(at, value)| (at - middle) * (value - mean))
            .sum();
        let slope = if spread > 0.0 {
            (together / spread).max(0.0)
        } else {
            0.0
        };
        let mut line = Self {
            mean,
            middle,
            slope,
            scatter: 0.0,
        };
        let squares: f64 = points
            .iter()
            .map(|(at, value)| (value - line.at(*at)).powi(2))
            .sum();
        line.scatter = (squares / count).sqrt();
        line
    }

    fn at(&self, at: f64) -> f64 {
        (self.mean + self.slope * (at - self.middle)).max(self.mean)
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
