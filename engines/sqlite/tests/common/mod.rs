//! What the tests of the SQLite engine share: a place with a scratch folder, and the walk from a file
//! through a backup to a copy.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use fettler_engine::{
    BackupOptions, BackupReport, DatabaseEngine as _, EngineContext, EngineError, RestoreOptions,
    RestoreReport, StreamSource, Target,
    testing::{MemoryRecord, MemorySink, context},
};
use fettler_engine_sqlite::SqliteEngine;
use fettler_model::{DatabaseUrl, JobId, ObjectFacts, ObjectKind};
use rusqlite::Connection;
use tempfile::TempDir;

/// A folder for one test, with a job that works in it.
pub struct Place {
    folder: TempDir,
    pub record: Arc<MemoryRecord>,
    job: JobId,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("scratch")).unwrap();
        Self {
            folder,
            record: Arc::default(),
            job: JobId::new(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn attempt(&self, number: u32) -> EngineContext {
        context(self.job, number, &self.path("scratch"), &self.record)
    }

    pub fn open(&self, name: &str) -> Connection {
        let connection = Connection::open(self.path(name)).unwrap();
        connection
            .busy_timeout(std::time::Duration::from_secs(30))
            .unwrap();
        connection
    }

    pub async fn backup(&self, name: &str) -> Result<(BackupReport, MemorySink), EngineError> {
        self.backup_into(name, MemorySink::default()).await
    }

    pub async fn backup_into(
        &self,
        name: &str,
        sink: MemorySink,
    ) -> Result<(BackupReport, MemorySink), EngineError> {
        let report = SqliteEngine
            .backup(
                &self.attempt(1),
                &target(&self.path(name)),
                &BackupOptions::default(),
                &sink,
            )
            .await?;
        Ok((report, sink))
    }

    pub async fn restore(
        &self,
        source: &dyn StreamSource,
        report: &BackupReport,
        name: &str,
        options: &RestoreOptions,
    ) -> Result<RestoreReport, EngineError> {
        SqliteEngine
            .restore(
                &self.attempt(2),
                source,
                report,
                &target(&self.path(name)),
                options,
            )
            .await
    }

    pub async fn facts(&self, name: &str, report: &BackupReport) -> Vec<ObjectFacts> {
        SqliteEngine
            .facts(&self.attempt(3), &target(&self.path(name)), report)
            .await
            .unwrap()
    }

    /// Backs up, restores to `copy`, and holds that a proof would find no difference.
    pub async fn copies_and_proves(&self, name: &str, copy: &str) -> BackupReport {
        let (report, sink) = self.backup(name).await.unwrap();
        self.restore(&sink.source(), &report, copy, &RestoreOptions::default())
            .await
            .unwrap();
        assert_eq!(
            differences(&report, &self.facts(copy, &report).await),
            Vec::<String>::new()
        );
        assert!(self.record.artefacts().is_empty());
        report
    }

    /// What lies in the test's folder.
    pub fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = [self.folder.path().to_path_buf(), self.path("scratch")]
            .iter()
            .flat_map(|folder| std::fs::read_dir(folder).unwrap())
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

pub fn target(path: &Path) -> Target {
    Target {
        url: DatabaseUrl::try_from(format!("sqlite:{}", path.display())).unwrap(),
        password: None,
    }
}

/// What a proof compares (rules 27 and 28): counts by another path, fingerprints, values, both ways.
pub fn differences(report: &BackupReport, copy: &[ObjectFacts]) -> Vec<String> {
    let mut found = Vec::new();
    for object in &report.objects {
        if let Some(fingerprint) = object.fingerprint
            && object.independent_rows != Some(fingerprint.rows)
        {
            found.push(format!(
                "{}: {:?} counted, {} read",
                object.name, object.independent_rows, fingerprint.rows
            ));
        }
        let copied = copy
            .iter()
            .find(|other| other.kind == object.kind && other.name == object.name);
        match copied {
            None => found.push(format!("{} is missing", object.name)),
            Some(copied)
                if copied.fingerprint != object.fingerprint || copied.value != object.value =>
            {
                found.push(format!("{object:?} became {copied:?}"));
            }
            Some(_) => {}
        }
    }
    for extra in copy {
        if !report
            .objects
            .iter()
            .any(|object| object.kind == extra.kind && object.name == extra.name)
        {
            found.push(format!("{} is new", extra.name));
        }
    }
    found
}

/// The rows of a table as the report counts them.
pub fn rows_of(report: &BackupReport, table: &str) -> u64 {
    let found = report
        .objects
        .iter()
        .find(|object| object.kind == ObjectKind::Table && object.name == table)
        .unwrap_or_else(|| panic!("{table} is not in the report"));
    found.fingerprint.unwrap().rows
}
