//! Where a test's ledger is: a file in a folder of its own, or a database on a server that all tests
//! of this binary share.

use fettler_ledger::{Ledger, LedgerOptions};
use fettler_model::Secret;
use fettler_test_servers::{PgMajor, PostgresServer, TestDatabase};

/// A place for one test's ledger.
pub enum Place {
    /// A folder.
    Sqlite(tempfile::TempDir),
    /// A database.
    Postgres(TestDatabase),
}

impl Place {
    /// A fresh folder.
    pub fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    /// A fresh database, named after the test.
    pub fn postgres(test: &str) -> Self {
        let server = PostgresServer::shared(PgMajor::V15);
        let name: String = test.chars().take(40).collect();
        Self::Postgres(server.create_database(&name).unwrap())
    }

    /// The ledger's URL; that of a server holds the password.
    pub fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => {
                format!(
                    "sqlite:{}",
                    folder.path().join("with space/ledger.db").display()
                )
            }
            Self::Postgres(database) => database.url().to_string(),
        }
    }

    /// Opens the ledger, as one more process would.
    pub async fn open(&self) -> Ledger {
        self.open_with(LedgerOptions::default()).await
    }

    /// The same with options; the password is given beside the URL.
    pub async fn open_with(&self, options: LedgerOptions) -> Ledger {
        let mut options = LedgerOptions {
            connections: 4,
            ..options
        };
        let mut url = self.url();
        if let Self::Postgres(_) = self {
            let mut without = url::Url::parse(&url).unwrap();
            let password = without.password().unwrap().to_owned();
            let password = percent_encoding::percent_decode_str(&password)
                .decode_utf8()
                .unwrap()
                .into_owned();
            without.set_password(None).unwrap();
            url = without.into();
            options.password = Some(Secret::new(password));
        }
        Ledger::open_with(&url, options).await.unwrap()
    }

    /// Changes the ledger behind its back.
    pub async fn execute(&self, sql: &'static str) {
        use sqlx::{Connection as _, Executor as _};
        match self {
            Self::Sqlite(folder) => {
                let path = folder.path().join("with space/ledger.db");
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
                let mut connection = sqlx::SqliteConnection::connect_with(&options)
                    .await
                    .unwrap();
                connection.execute(sql).await.unwrap();
                connection.close().await.unwrap();
            }
            Self::Postgres(_) => {
                let mut connection = sqlx::PgConnection::connect(&self.url()).await.unwrap();
                connection.execute(sql).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }
}
