//! Reads a restored copy and says what is inside: by the same statements as the backup's fingerprints, over the copy's own
//! list of columns.

use fettler_engine::{BackupReport, EngineContext, EngineError, Target};
use fettler_model::{ObjectFacts, ObjectKind};

use crate::{
    backup::BackupData,
    catalogue::{Catalogue, TableDefinition},
    cluster,
    fingerprint::{RowForm, RowHash},
    found,
    http::{Session, numbers_of},
    mapping::Mapping,
    params::Params,
    sql::table as full_table,
};

/// Reads a copy.
pub(crate) async fn facts(
    context: &EngineContext,
    copy: &Target,
    expected: &BackupReport,
) -> Result<Vec<ObjectFacts>, EngineError> {
    let params = Params::of(copy)?;
    if params.cluster.is_none() {
        return facts_of(context, &params, expected).await;
    }
    let label = context.attempt.to_string();
    let mut all = Vec::new();
    for shard in cluster::reach(&params, &label, &context.stop).await? {
        if let Some(first) = shard.first() {
            let found = facts_of(context, first.session.params(), expected).await?;
            cluster::add_facts(&mut all, found);
        }
    }
    Ok(all)
}

/// Reads a copy in one server.
async fn facts_of(
    context: &EngineContext,
    params: &Params,
    expected: &BackupReport,
) -> Result<Vec<ObjectFacts>, EngineError> {
    context.check_stop()?;
    let data = BackupData::of(expected)?;
    let session = Session::of_attempt(params, context).await?;
    let mapping = Mapping::of(params, &data.databases)?;
    let mut catalogue = Catalogue::read(
        &session,
        params.database.as_deref(),
        params.sandbox_prefix.as_deref(),
    )
    .await?;
    catalogue.read_server(&session).await?;
    let form = RowForm::of_name(&expected.row_hash).ok_or_else(|| EngineError::Unusable {
        what: format!(
            "the backup's fingerprints are made by {:?}",
            expected.row_hash
        ),
        remedy: "prove it with the version of Fettler that made it".to_owned(),
    })?;
    let hash = RowHash::new(form, &context.fingerprint_key);
    let is_same_version = numbers_of(&expected.identity.version) == session.version_numbers();
    let name_at_source = |name: &str| {
        mapping
            .at_source(name)
            .filter(|name| data.databases.contains(name))
    };
    let mut objects = Vec::new();
    for table in &catalogue.tables {
        context.check_stop()?;
        let Some(database) = mapping.at_source(&table.database) else {
            continue;
        };
        let name = format!("{database}.{}", table.name);
        let mut definition = found::definition(&context.fingerprint_key, table, &name_at_source);
        let told = expected
            .objects
            .iter()
            .find(|object| object.kind == ObjectKind::Schema && object.name == definition.name);
        if told.is_some_and(|told| told.value.is_none()) {
            // A stand-in for something that speaks with the world outside.
            definition.value = None;
        } else if !is_same_version && has_expected_columns(&data, &name, table) {
            // Another version writes the same definition in another way.
            definition.value = told.and_then(|told| told.value.clone());
        }
        objects.push(definition);
        if table.has_rows() && is_expected_with_rows(expected, &name) {
            objects.push(rows_of(context, &session, &hash, table, &name).await?);
        }
    }
    for name in &data.functions {
        if let Some(create) = catalogue.functions.get(name) {
            objects.push(found::function(&context.fingerprint_key, name, create));
        }
    }
    Ok(objects)
}

fn has_expected_columns(data: &BackupData, name: &str, table: &TableDefinition) -> bool {
    data.columns.get(name) == Some(&table.columns_digest())
}

/// Whether a table's rows are of interest: not those of one whose rows the backup left out.
fn is_expected_with_rows(expected: &BackupReport, name: &str) -> bool {
    let has = |kind| {
        expected
            .objects
            .iter()
            .any(|object| object.kind == kind && object.name == name)
    };
    has(ObjectKind::Table) || !has(ObjectKind::Schema)
}

async fn rows_of(
    context: &EngineContext,
    session: &Session,
    hash: &RowHash,
    table: &TableDefinition,
    name: &str,
) -> Result<ObjectFacts, EngineError> {
    let doing = format!("reading the copy of {name}");
    // A view that keeps its rows is asked for the table that holds them.
    let holder = table.inner.as_deref().unwrap_or(&table.name);
    let place = full_table(&table.database, holder);
    let fingerprint = context
        .progress
        .while_waiting(hash.of(session, &place, &table.stored(), None, &doing))
        .await?;
    let counted = session
        .rows(&format!("SELECT toString(count()) FROM {place}"), &doing)
        .await?;
    Ok(ObjectFacts {
        fingerprint: Some(fingerprint),
        independent_rows: counted.first().and_then(|row| row[0].parse().ok()),
        ..found::table(name)
    })
}
