//! Which managed service a server belongs to, by its own roles and settings: what it hides is then no missing permission, and
//! has another place to be looked at.

use std::{fmt, time::Duration};

use fettler_engine::{Answer, Question, Versions};
use fettler_model::Engine;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A service that runs database servers for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// Amazon RDS, and Aurora.
    Rds,
    /// Google Cloud SQL, and AlloyDB.
    CloudSql,
    /// Azure Database.
    Azure,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Rds => "Amazon RDS",
            Self::CloudSql => "Google Cloud SQL",
            Self::Azure => "Azure Database for PostgreSQL",
        })
    }
}

impl Service {
    /// What it keeps to itself, and where that can be looked at instead.
    #[must_use]
    pub const fn hides(self) -> &'static [&'static str] {
        match self {
            Self::Rds => &[
                "pg_hba.conf: who may reach the server is said by security groups, and TLS by the parameter rds.force_ssl",
                "superusers: rdsadmin belongs to the service; rds_superuser is the strongest role of yours",
                "the hashes of passwords, files, and the data folder: encryption at rest is a property of the instance",
            ],
            Self::CloudSql => &[
                "pg_hba.conf: who may reach the server is said by authorised networks, and TLS by the instance's SSL mode",
                "superusers: cloudsqladmin belongs to the service; cloudsqlsuperuser is the strongest role of yours",
                "the hashes of passwords, files, and the data folder, which the service encrypts",
            ],
            Self::Azure => &[
                "pg_hba.conf: who may reach the server is said by firewall rules, and TLS by the parameter require_secure_transport",
                "superusers: azuresu belongs to the service; azure_pg_admin is the strongest role of yours",
                "the hashes of passwords, files, and the data folder, which the service encrypts",
            ],
        }
    }
}

/// The name of the question among those of an audit.
const ID: &str = "audit.service";

/// What tells a service, where the engine's servers tell it at all.
#[must_use]
pub fn service_question(engine: Engine) -> Option<Question> {
    (engine == Engine::Postgres).then(|| Question {
        id: ID.to_owned(),
        versions: Versions::default(),
        needs: None,
        text: "SELECT CASE WHEN count(*) FILTER (WHERE name IN ('rds_superuser', 'rdsadmin')) = 2 THEN 'rds'
                           WHEN count(*) FILTER (WHERE name IN ('cloudsqlsuperuser', 'cloudsqladmin')) = 2
                             OR count(*) FILTER (WHERE name IN ('alloydbsuperuser', 'alloydbadmin')) = 2 THEN 'cloud_sql'
                           WHEN count(*) FILTER (WHERE name IN ('azure_pg_admin', 'azuresu')) = 2 THEN 'azure' END AS service
               FROM (SELECT rolname::text AS name FROM pg_catalog.pg_roles) AS roles"
            .to_owned(),
        timeout: Duration::from_secs(4),
    })
}

/// The service that the answers tell of.
#[must_use]
pub fn service_of(answers: &[Answer]) -> Option<Service> {
    let answer = answers.iter().find(|answer| answer.id == ID)?;
    let row = answer.rows.as_ref().ok()?.first()?;
    serde_json::from_value(row.get("service")?.clone()).ok()
}
