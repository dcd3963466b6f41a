//! Reads a restored copy and says what is inside.
//!
//! The copy's documents are read as a backup reads them, and counted by the server at the same moment; its list of indices
//! is the server's own, so that one too many is found as well.

use std::collections::BTreeSet;

use fettler_engine::{BackupReport, EngineContext, EngineError, RowHasher, Target};
use fettler_model::{ObjectFacts, ObjectKind};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Method;

use crate::{
    backup::{BackupData, take},
    catalogue::{Catalogue, Definition},
    client::{Body, Client, encoded},
    found::{self, Found},
    order::Collector,
    params::Params,
    read::{View, Way},
    restore::placed,
    server::Server,
};

/// Reads a copy.
pub(crate) async fn facts(
    context: &EngineContext,
    copy: &Target,
    expected: &BackupReport,
) -> Result<Vec<ObjectFacts>, EngineError> {
    context.check_stop()?;
    let data = BackupData::of(expected)?;
    let params = Params::of(copy)?;
    let client = Client::of_attempt(&params, context)?;
    let server = Server::of(&client).await?;
    let catalogue = if params.prefix.is_empty() {
        Catalogue::read(&client).await?
    } else {
        Catalogue::read_all(&client).await?
    };
    let without_documents: BTreeSet<&str> = expected
        .objects
        .iter()
        .filter(|object| object.kind == ObjectKind::Table && object.fingerprint.is_none())
        .map(|object| object.name.as_str())
        .collect();
    let mut objects = Vec::new();
    for unit in catalogue.units.values() {
        let Some(bare) = unit.name.strip_prefix(&params.prefix) else {
            continue;
        };
        // A name that was cut to fit is known by what it was made from.
        let name = data
            .units
            .iter()
            .find(|name| placed(&params.prefix, name) == unit.name)
            .map_or(bare, String::as_str);
        let Some(last) = unit.indices.last() else {
            continue;
        };
        if without_documents.contains(name) {
            objects.extend(found::objects(
                &context.fingerprint_key,
                name,
                &last.definition,
                None,
            ));
            continue;
        }
        let mut all = Found::default();
        for index in &unit.indices {
            context.progress.item(&index.name);
            all.merge(&read(context, &client, &server, &index.name, &index.definition).await?);
        }
        objects.extend(found::objects(
            &context.fingerprint_key,
            name,
            &last.definition,
            Some(&all),
        ));
    }
    Ok(objects)
}

/// Reads the documents of an index as they are now.
pub(crate) async fn read(
    context: &EngineContext,
    client: &Client,
    server: &Server,
    index: &str,
    definition: &Definition,
) -> Result<Found, EngineError> {
    let doing = format!("reading {index}");
    let refresh = format!("/{}/_refresh?expand_wildcards=all", encoded(index));
    client
        .ask(Method::POST, &refresh, Body::Nothing, "refreshing the copy")
        .await?;
    let opened = View::open(client, server, index, definition, Way::Best).await?;
    let Some(opened) = opened else {
        return Ok(Found::default());
    };
    let view = &opened.view;
    let shards = stream::iter(0..view.shards())
        .map(|shard| {
            let doing = &doing;
            async move {
                let mut reader = view.shard(shard);
                reader.count().await?;
                let mut collector = Collector::of_copy(RowHasher::new(&context.fingerprint_key));
                let mut bytes = 0;
                while let Some(page) = reader.next(context).await? {
                    let (length, before) = (page.len() as u64, collector.fingerprint().rows);
                    collector = take(collector, page, doing).await?;
                    bytes += length;
                    context
                        .progress
                        .add(length, collector.fingerprint().rows - before);
                }
                Ok::<_, EngineError>(Found {
                    fingerprint: collector.fingerprint(),
                    counted: reader.count().await?,
                    bytes,
                })
            }
        })
        .buffered(context.parallel.max(1))
        .try_collect::<Vec<Found>>()
        .await;
    view.close().await?;
    let mut all = Found::default();
    shards?.iter().for_each(|found| all.merge(found));
    Ok(all)
}
