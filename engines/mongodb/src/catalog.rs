//! What a server has beside documents: databases, collections with their options, indexes, views.
//!
//! | kind | how it is read and written |
//! |---|---|
//! | plain, clustered | by `_id`, in any order |
//! | capped | in the order of insertion, which is a part of its content |
//! | time series | through the view of its measurements; the order of a measurement's fields is the server's own |
//! | view | its definition only |

use bson::{RawArrayBuf, RawDocument, RawDocumentBuf, rawdoc};
use fettler_engine::EngineError;

use crate::{
    error::code,
    raw::{put, sorted_form, without},
    sandbox,
    select::Selection,
    session::Session,
};

/// Databases that belong to the server itself.
const OWN_DATABASES: [&str; 2] = ["config", "local"];
/// What the names of a server's own collections begin with.
const OWN_COLLECTIONS: &str = "system.";
/// The one of them that is a user's: functions.
const FUNCTIONS: &str = "system.js";
/// When documents expire, in indexes and in options of collections.
pub(crate) const EXPIRY: &str = "expireAfterSeconds";
/// Fields of options that say nothing that could be asked for.
pub(crate) const NO_OPTIONS: [&str; 4] = ["uuid", "autoIndexId", "flags", "temp"];
/// Fields of indexes that depend on the server alone.
pub(crate) const NO_INDEX_OPTIONS: [&str; 3] = ["v", "ns", "background"];
/// The index that every collection has.
const ID_INDEX: &str = "_id_";
/// What the catalogue's reading is called in messages.
const LISTING: &str = "listing what is there";

/// What a collection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Clustered,
    Capped,
    TimeSeries,
    View,
}

impl Kind {
    /// Its name, in a backup's catalogue too.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Clustered => "clustered",
            Self::Capped => "capped",
            Self::TimeSeries => "time series",
            Self::View => "view",
        }
    }

    pub(crate) fn of(kind: &str, options: &RawDocument) -> Self {
        let has = |name: &str| matches!(options.get(name), Ok(Some(_)));
        if kind == "view" || has("viewOn") {
            Self::View
        } else if kind == "timeseries" || has("timeseries") {
            Self::TimeSeries
        } else if options.get_bool("capped").unwrap_or(false) {
            Self::Capped
        } else if has("clusteredIndex") {
            Self::Clustered
        } else {
            Self::Plain
        }
    }

    /// Whether its documents can be told by what the oplog says of their `_id`.
    pub(crate) const fn is_by_id(self) -> bool {
        matches!(self, Self::Plain | Self::Clustered)
    }
}

/// A collection or a view.
#[derive(Clone, Debug)]
pub(crate) struct Collection {
    pub(crate) database: String,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) options: RawDocumentBuf,
    pub(crate) indexes: Vec<RawDocumentBuf>,
    /// By what its documents are divided between shards: `key` and `unique`. It is no part of its definition: a copy of it may lie
    /// in one place.
    pub(crate) division: Option<RawDocumentBuf>,
}

impl Collection {
    /// `shop.orders`.
    pub(crate) fn namespace(&self) -> String {
        format!("{}.{}", self.database, self.name)
    }

    /// A keyed digest of all that was asked for when it was made, in a form that a copy has too. When documents expire is no
    /// part of it, but that they do: a copy that is compared must not lose some meanwhile.
    pub(crate) fn definition(&self, key: &[u8; 32]) -> Result<String, String> {
        let mut hasher = blake3::Hasher::new_keyed(key);
        let mut take = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        take(self.kind.as_str().as_bytes());
        take(&sorted_form(&without_moment(&without(
            &self.options,
            &NO_OPTIONS,
        )))?);
        let mut indexes = self
            .indexes
            .iter()
            .map(|index| sorted_form(&without_moment(&without(index, &NO_INDEX_OPTIONS))))
            .collect::<Result<Vec<_>, _>>()?;
        indexes.sort_unstable();
        for index in indexes {
            take(&index);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// The command that makes it.
    pub(crate) fn create(&self, puts_expiry_off: bool) -> RawDocumentBuf {
        let mut command = rawdoc! { "create": self.name.as_str() };
        for (name, value) in without(&self.options, &NO_OPTIONS).iter().flatten() {
            if puts_expiry_off && name.as_str() == EXPIRY {
                put(&mut command, EXPIRY, LATEST_EXPIRY);
            } else {
                put(&mut command, name.as_str(), value);
            }
        }
        command
    }

    /// The indexes that are to be made, as `createIndexes` takes them.
    pub(crate) fn indexes_to_make(&self, puts_expiry_off: bool) -> Vec<RawDocumentBuf> {
        self.indexes
            .iter()
            .filter(|index| index.get_str("name").ok() != Some(ID_INDEX))
            .filter(|index| !index.get_bool("clustered").unwrap_or(false))
            .map(|index| {
                let mut made = RawDocumentBuf::new();
                for (name, value) in without(index, &NO_INDEX_OPTIONS).iter().flatten() {
                    if puts_expiry_off && name.as_str() == EXPIRY {
                        put(&mut made, EXPIRY, LATEST_EXPIRY);
                    } else {
                        put(&mut made, name.as_str(), value);
                    }
                }
                made
            })
            .collect()
    }

    /// How it lies in a backup.
    pub(crate) fn store(&self) -> RawDocumentBuf {
        let mut indexes = RawArrayBuf::new();
        for index in &self.indexes {
            indexes.push(index.clone());
        }
        let mut stored = RawDocumentBuf::new();
        put(&mut stored, "database", self.database.as_str());
        put(&mut stored, "name", self.name.as_str());
        put(&mut stored, "kind", self.kind.as_str());
        put(&mut stored, "options", self.options.clone());
        put(&mut stored, "indexes", indexes);
        if let Some(division) = &self.division {
            put(&mut stored, "division", division.clone());
        }
        stored
    }

    /// Reads what [`Self::store`] wrote.
    pub(crate) fn of_stored(stored: &RawDocument) -> Option<Self> {
        let options = stored.get_document("options").ok()?.to_owned();
        let kind = match stored.get_str("kind").ok()? {
            "view" => Kind::View,
            "time series" => Kind::TimeSeries,
            _ => Kind::of("collection", &options),
        };
        Some(Self {
            database: stored.get_str("database").ok()?.to_owned(),
            name: stored.get_str("name").ok()?.to_owned(),
            kind,
            options,
            indexes: stored
                .get_array("indexes")
                .ok()?
                .into_iter()
                .map(|index| Some(index.ok()?.as_document()?.to_owned()))
                .collect::<Option<_>>()?,
            division: stored.get_document("division").ok().map(ToOwned::to_owned),
        })
    }
}

/// The latest moment at which a document may expire, in seconds after the moment that it names (the largest that a server
/// takes).
const LATEST_EXPIRY: i32 = i32::MAX;

/// A copy that says that documents expire, and not when.
fn without_moment(document: &RawDocument) -> RawDocumentBuf {
    let mut copy = without(document, &[EXPIRY]);
    if matches!(document.get(EXPIRY), Ok(Some(_))) {
        put(&mut copy, EXPIRY, true);
    }
    copy
}

/// The databases of a server that are a user's, by name.
pub(crate) async fn databases(
    session: &mut Session,
    selection: &Selection,
    only: Option<&str>,
) -> Result<Vec<String>, EngineError> {
    if let Some(only) = only {
        return Ok(vec![only.to_owned()]);
    }
    let mut found: Vec<String> = all_databases(session)
        .await?
        .into_iter()
        .filter(|name| !OWN_DATABASES.contains(&name.as_str()) && selection.has_database(name))
        .filter(|name| !sandbox::is_some_scratch(name))
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// The names of all databases.
pub(crate) async fn all_databases(session: &mut Session) -> Result<Vec<String>, EngineError> {
    let command = rawdoc! { "listDatabases": 1, "nameOnly": true };
    let answer = session
        .run("admin", command, "listing the databases")
        .await?;
    let list = answer
        .get_array("databases")
        .map_err(|error| session.unexpected(LISTING, &error))?;
    Ok(list
        .into_iter()
        .filter_map(|one| Some(one.ok()?.as_document()?.get_str("name").ok()?.to_owned()))
        .collect())
}

/// The collections and views of a database that are a user's, by name, with their indexes.
pub(crate) async fn collections(
    session: &mut Session,
    database: &str,
) -> Result<Vec<Collection>, EngineError> {
    let listed = session
        .list(database, rawdoc! { "listCollections": 1 }, LISTING)
        .await?
        .map_err(|refusal| {
            refusal.doing(
                session.server(),
                format!("listing the collections of {database}"),
            )
        })?;
    let mut found = Vec::new();
    for one in listed {
        let name = one
            .get_str("name")
            .map_err(|error| session.unexpected(LISTING, &error))?
            .to_owned();
        if name.starts_with(OWN_COLLECTIONS) && name != FUNCTIONS {
            continue;
        }
        let options = one
            .get_document("options")
            .map_or_else(|_| RawDocumentBuf::new(), ToOwned::to_owned);
        let kind = Kind::of(one.get_str("type").unwrap_or("collection"), &options);
        found.push(Collection {
            database: database.to_owned(),
            indexes: indexes(session, database, &name, kind).await?,
            name,
            kind,
            options,
            division: None,
        });
    }
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The indexes of a collection.
pub(crate) async fn indexes(
    session: &mut Session,
    database: &str,
    collection: &str,
    kind: Kind,
) -> Result<Vec<RawDocumentBuf>, EngineError> {
    if kind == Kind::View {
        return Ok(Vec::new());
    }
    let listed = session
        .list(database, rawdoc! { "listIndexes": collection }, LISTING)
        .await?;
    match listed {
        Ok(found) => Ok(found),
        // Dropped since it was listed; reading it will tell.
        Err(refusal) if refusal.code == code::NAMESPACE_NOT_FOUND => Ok(Vec::new()),
        Err(refusal) => Err(refusal.doing(
            session.server(),
            format!("listing the indexes of {database}.{collection}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collection(options: RawDocumentBuf, indexes: Vec<RawDocumentBuf>) -> Collection {
        Collection {
            database: "shop".to_owned(),
            name: "orders".to_owned(),
            kind: Kind::of("collection", &options),
            options,
            indexes,
            division: None,
        }
    }

    #[test]
    fn the_kind_is_told_by_the_options() {
        let kind = |options: RawDocumentBuf| collection(options, Vec::new()).kind;
        assert_eq!(kind(rawdoc! {}), Kind::Plain);
        assert_eq!(kind(rawdoc! { "capped": true, "size": 4096 }), Kind::Capped);
        assert_eq!(kind(rawdoc! { "capped": false }), Kind::Plain);
        assert_eq!(
            kind(rawdoc! { "timeseries": { "timeField": "t" } }),
            Kind::TimeSeries
        );
        assert_eq!(
            kind(rawdoc! { "clusteredIndex": { "v": 2 } }),
            Kind::Clustered
        );
        assert_eq!(kind(rawdoc! { "viewOn": "x", "pipeline": [] }), Kind::View);
    }

    #[test]
    fn a_definition_is_the_same_for_a_copy_and_another_for_a_change() {
        let key = [1; 32];
        let of = |options: RawDocumentBuf, indexes: Vec<RawDocumentBuf>| {
            collection(options, indexes).definition(&key).unwrap()
        };
        let index = |unique: bool| rawdoc! { "v": 2, "key": { "a": 1, "b": -1 }, "name": "ab", "unique": unique };
        let one = of(rawdoc! { "validator": { "a": 1 } }, vec![index(true)]);
        let copied = rawdoc! { "name": "ab", "unique": true, "key": { "a": 1, "b": -1 }, "v": 1, "ns": "shop.orders" };
        assert_eq!(one, of(rawdoc! { "validator": { "a": 1 } }, vec![copied]));
        assert_ne!(
            one,
            of(rawdoc! { "validator": { "a": 2 } }, vec![index(true)])
        );
        assert_ne!(
            one,
            of(rawdoc! { "validator": { "a": 1 } }, vec![index(false)])
        );
        let swapped = rawdoc! { "v": 2, "key": { "b": -1, "a": 1 }, "name": "ab", "unique": true };
        assert_ne!(one, of(rawdoc! { "validator": { "a": 1 } }, vec![swapped]));
    }

    #[test]
    fn expiry_is_put_off_in_a_copy_and_that_there_is_one_counts() {
        let ttl = rawdoc! { "v": 2, "key": { "t": 1 }, "name": "t", "expireAfterSeconds": 60 };
        let plain = rawdoc! { "v": 2, "key": { "t": 1 }, "name": "t" };
        let source = collection(rawdoc! {}, vec![ttl]);
        let made = source.indexes_to_make(true);
        assert_eq!(made[0].get_i32(EXPIRY).unwrap(), i32::MAX);
        assert_eq!(
            source.indexes_to_make(false)[0].get_i32(EXPIRY).unwrap(),
            60
        );
        let key = [1; 32];
        let of = |indexes| collection(rawdoc! {}, indexes).definition(&key).unwrap();
        assert_eq!(source.definition(&key).unwrap(), of(made));
        assert_ne!(source.definition(&key).unwrap(), of(vec![plain]));
    }

    #[test]
    fn what_is_stored_comes_back() {
        let mut source = collection(
            rawdoc! { "capped": true, "size": 4096 },
            vec![rawdoc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" }],
        );
        source.division = Some(rawdoc! { "key": { "_id": "hashed" }, "unique": false });
        let back = Collection::of_stored(&source.store()).unwrap();
        assert_eq!(back.namespace(), "shop.orders");
        assert_eq!(
            (back.kind, back.options, back.indexes, back.division),
            (source.kind, source.options, source.indexes, source.division)
        );
        assert!(back.kind == Kind::Capped && !back.kind.is_by_id());
    }
}
