//! How far a job is, as a person sees it: a bar on a terminal, a line now and then otherwise.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use fettler_ledger::JobRecord;
use fettler_model::{JobState, Progress, WaitReason};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{output::Output, units};

/// Without a terminal, a line at most this often.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// The rate is measured over so much of the past.
const RATE_OVER: Duration = Duration::from_secs(10);
/// A job that is ready waits for so long without anybody wondering.
const READY_IS_USUAL: Duration = Duration::from_secs(2);
/// The steps of a bar.
const BAR_STEPS: u64 = 1000;

/// Shows one job's progress.
pub(crate) struct Follower {
    output: Output,
    title: String,
    bar: Option<ProgressBar>,
    phase: String,
    seen: VecDeque<(Instant, u64, u64)>,
    last_line: Option<Instant>,
    said: String,
    last_text: String,
    began: Instant,
}

impl Follower {
    pub(crate) fn new(output: Output, title: &str) -> Self {
        let bar = output.draws.then(|| {
            let bar = ProgressBar::with_draw_target(Some(BAR_STEPS), ProgressDrawTarget::stderr());
            bar.set_style(
                ProgressStyle::with_template("{spinner} {prefix} {bar:24} {msg}")
                    .expect("the template is a constant")
                    .progress_chars("━╸─"),
            );
            bar.set_prefix(title.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            output,
            title: title.to_owned(),
            bar,
            phase: String::new(),
            seen: VecDeque::new(),
            last_line: None,
            said: String::new(),
            last_text: String::new(),
            began: Instant::now(),
        }
    }

    /// Shows where the job is now.
    pub(crate) fn update(&mut self, job: &JobRecord, live: Option<Progress>) {
        let (text, share) = match (job.state, live.or_else(|| job.progress.clone())) {
            (JobState::Queued, _) => {
                let why = job
                    .wait
                    .as_ref()
                    .map_or_else(|| "waits".to_owned(), ToString::to_string);
                (why, None)
            }
            (JobState::Running, Some(progress)) => self.described(&progress),
            (JobState::Running, None) => ("starts".to_owned(), None),
            (state, _) => (state.to_string(), None),
        };
        // What a worker is about to take needs no word: it is the usual beginning.
        let is_usual = matches!(
            job.wait,
            Some(
                WaitReason::Ready
                    | WaitReason::QueuedBehind { .. }
                    | WaitReason::NoWorkerForKind { .. }
            )
        );
        let is_new = is_usual && self.began.elapsed() < READY_IS_USUAL;
        if job.state.is_final() || is_new {
            return;
        }
        if job.state == JobState::Queued {
            self.phase.clone_from(&text);
        }
        self.draw(text, share);
    }

    fn draw(&mut self, text: String, share: Option<u64>) {
        if let Some(bar) = &self.bar {
            if let Some(share) = share {
                bar.set_position(share);
            }
            bar.set_message(text);
            return;
        }
        let phase = self.phase.clone();
        let now = Instant::now();
        let is_new = phase != self.said;
        let is_time = self
            .last_line
            .is_none_or(|last| now.duration_since(last) >= LINE_EVERY);
        // Phases may pass quickly: a line for each would flood a log.
        let is_early = self
            .last_line
            .is_some_and(|last| now.duration_since(last) < Duration::from_secs(1));
        // The same line again tells nothing.
        if text == self.last_text || (!is_new && !is_time) || (is_new && is_early) {
            return;
        }
        self.last_line = Some(now);
        self.said = phase;
        self.last_text.clone_from(&text);
        self.output.notice(&format!("{}: {text}", self.title));
    }

    /// Shows how far work is that is no job.
    pub(crate) fn show(&mut self, progress: &Progress) {
        let (text, share) = self.described(progress);
        self.draw(text, share);
    }

    /// Says something between the lines.
    pub(crate) fn notice(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.notice(text)),
            None => self.output.notice(text),
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }

    /// Words for a progress, and how much of a bar it fills.
    fn described(&mut self, progress: &Progress) -> (String, Option<u64>) {
        let now = Instant::now();
        if progress.phase != self.phase {
            self.phase.clone_from(&progress.phase);
            self.seen.clear();
        }
        self.seen.push_back((now, progress.bytes, progress.rows));
        while self
            .seen
            .front()
            .is_some_and(|(at, _, _)| now.duration_since(*at) > RATE_OVER)
            && self.seen.len() > 2
        {
            self.seen.pop_front();
        }
        let rate = self.rate();
        let mut words = vec![progress.phase.clone()];
        if progress.bytes_total > 0 {
            words.push(format!(
                "{} of {}",
                units::size(progress.bytes),
                units::size(progress.bytes_total.max(progress.bytes))
            ));
        } else if progress.bytes > 0 {
            words.push(units::size(progress.bytes));
        }
        match (progress.rows, progress.rows_total) {
            (0, 0) => {}
            (rows, 0) => words.push(format!("{} rows", units::count(rows))),
            (rows, total) => words.push(format!(
                "{} of {} rows",
                units::count(rows),
                units::count(total.max(rows))
            )),
        }
        if rate > 0 {
            words.push(format!("{}/s", units::size(rate)));
            let left = progress.bytes_total.saturating_sub(progress.bytes);
            if left > 0 {
                words.push(format!(
                    "{} left",
                    units::span(Duration::from_secs(left.div_ceil(rate)))
                ));
            }
        }
        if !progress.item.is_empty() {
            words.push(progress.item.clone());
        }
        let share = (progress.bytes_total > 0).then(|| {
            let share = u128::from(progress.bytes) * u128::from(BAR_STEPS)
                / u128::from(progress.bytes_total);
            u64::try_from(share).map_or(BAR_STEPS, |share| share.min(BAR_STEPS))
        });
        (words.join(" · "), share)
    }

    /// Bytes a second over the last seconds.
    fn rate(&self) -> u64 {
        let (Some(first), Some(last)) = (self.seen.front(), self.seen.back()) else {
            return 0;
        };
        let seconds = last.0.duration_since(first.0).as_secs_f64();
        if seconds < 0.5 {
            return 0;
        }
        // Rounding a rate harms nobody.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rate = (last.1.saturating_sub(first.1) as f64 / seconds) as u64;
        rate
    }
}
