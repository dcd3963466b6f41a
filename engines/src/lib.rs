//! The list of engines: a new one is its own folder and one line here.

use std::sync::Arc;

use fettler_engine::DatabaseEngine;
use fettler_engine_clickhouse::ClickhouseEngine;
use fettler_engine_elasticsearch::ElasticsearchEngine;
use fettler_engine_mongodb::MongodbEngine;
use fettler_engine_postgres::PostgresEngine;
use fettler_engine_redis::RedisEngine;
use fettler_engine_sqlite::SqliteEngine;
use fettler_model::Engine;

/// All engines.
#[must_use]
pub fn all() -> Vec<Arc<dyn DatabaseEngine>> {
    vec![
        Arc::new(PostgresEngine::default()),
        Arc::new(SqliteEngine),
        Arc::new(RedisEngine::default()),
        Arc::new(MongodbEngine::default()),
        Arc::new(ClickhouseEngine::default()),
        Arc::new(ElasticsearchEngine::default()),
    ]
}

/// The engine of this name.
///
/// # Panics
///
/// Never: a test holds that each name has its engine.
#[must_use]
pub fn engine(engine: Engine) -> Arc<dyn DatabaseEngine> {
    all()
        .into_iter()
        .find(|listed| listed.engine() == engine)
        .expect("each engine that has a name is in the list")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_that_has_a_name_is_in_the_list_once() {
        for name in [
            Engine::Postgres,
            Engine::Sqlite,
            Engine::Redis,
            Engine::Mongodb,
            Engine::Clickhouse,
            Engine::Elasticsearch,
        ] {
            assert_eq!(engine(name).engine(), name);
            let listed = all().iter().filter(|one| one.engine() == name).count();
            assert_eq!(listed, 1, "{name}");
        }
    }
}
