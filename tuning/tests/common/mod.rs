//! Opening a session and looking, for any engine.

use fettler_engine::{AttemptName, DatabaseEngine, Target, Workbench};
use fettler_model::{AttemptToken, DatabaseUrl, Engine, JobId, Timestamp, TuningAction};
use fettler_tuning::{Look, Wishes, postgres::Earlier};

/// A server or file under tuning.
pub struct Tuned<'a> {
    pub engine: &'a dyn DatabaseEngine,
    pub url: String,
}

impl Tuned<'_> {
    pub async fn open(&self) -> Box<dyn Workbench> {
        let (url, password) = DatabaseUrl::parse_with_password(&self.url).unwrap();
        let name = AttemptName {
            job: JobId::new(),
            token: AttemptToken::from_value(1),
        };
        self.engine
            .workbench(&Target { url, password }, &name)
            .await
            .unwrap()
    }

    pub async fn look(&self, statements: &[&str]) -> Look {
        let mut bench = self.open().await;
        let wishes = Wishes {
            statements: statements.iter().map(|text| (*text).to_owned()).collect(),
            ..Wishes::default()
        };
        let look = fettler_tuning::look(
            self.engine.engine(),
            bench.as_mut(),
            &wishes,
            &Earlier::default(),
            Timestamp::now(),
        )
        .await
        .unwrap();
        bench.close().await;
        look
    }

    /// Does actions, or takes them back, twice each: what is done again changes nothing.
    #[allow(dead_code, reason = "not every test file does something")]
    pub async fn twice(&self, actions: &[&TuningAction], back: bool) {
        let mut bench = self.open().await;
        let engine: Engine = self.engine.engine();
        for _ in 0..2 {
            for action in actions {
                if back {
                    fettler_tuning::take_back(engine, bench.as_mut(), action).await
                } else {
                    fettler_tuning::apply(engine, bench.as_mut(), action).await
                }
                .unwrap();
            }
        }
        bench.close().await;
    }
}

/// The objects of a check's findings.
pub fn found<'a>(look: &'a Look, check: &str) -> Vec<&'a str> {
    look.findings
        .iter()
        .filter(|one| one.check.ends_with(&format!(".tune_{check}")))
        .map(|one| one.object.as_str())
        .collect()
}

/// The checks that have found something.
#[allow(dead_code, reason = "not every test file asks for all")]
pub fn checks(look: &Look) -> Vec<&str> {
    look.findings
        .iter()
        .map(|one| one.check.split_once(".tune_").unwrap().1)
        .collect()
}
