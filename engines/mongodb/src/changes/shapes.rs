//! What becomes of collections themselves while the oplog is played: which there are, what they are called, their options, and
//! the indexes that they have at the end (which are built once, after the last document).

use std::collections::BTreeSet;

use bson::{RawDocument, RawDocumentBuf, raw::RawBsonRef, rawdoc};

use crate::{
    catalog::{Collection, Kind},
    raw::{put, without},
    restore::Job,
};

/// Options that `collMod` changes, and that a collection is made with.
const CHANGEABLE: [&str; 5] = [
    "validator",
    "validationLevel",
    "validationAction",
    "changeStreamPreAndPostImages",
    "expireAfterSeconds",
];
/// Fields of a command that are about the oplog, and no options.
const NO_OPTIONS: [&str; 4] = ["create", "idIndex", "uuid", "ui"];
/// Fields of an entry about an index that are no part of its definition.
const NO_INDEX: [&str; 2] = ["createIndexes", "ns"];

/// What is to be done at the target.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Act {
    /// A collection is made by this command.
    Create {
        database: String,
        command: RawDocumentBuf,
    },
    Drop {
        database: String,
        name: String,
    },
    Rename {
        from: String,
        to: String,
    },
    /// A collection gets other options.
    Modify {
        database: String,
        command: RawDocumentBuf,
    },
}

/// Where databases go, and what of them is meant.
pub(super) trait Places {
    /// Whether a collection is to be restored.
    fn has(&self, database: &str, collection: &str) -> bool;

    /// What a database is called at the target, or why it has no place there.
    fn placed(&self, database: &str) -> Result<String, String>;
}

/// The collections and views as they are at some point of the oplog.
pub(super) struct Shapes<'a, P> {
    pub(super) jobs: Vec<Job>,
    places: &'a P,
    /// All that were ever made, as they are called at the target.
    pub(super) made: BTreeSet<(String, String)>,
}

impl<'a, P: Places> Shapes<'a, P> {
    pub(super) fn new(jobs: Vec<Job>, places: &'a P) -> Self {
        Self {
            jobs,
            places,
            made: BTreeSet::new(),
        }
    }

    fn at(&self, database: &str, name: &str) -> Option<usize> {
        self.jobs
            .iter()
            .position(|job| job.from.database == database && job.from.name == name)
    }

    pub(super) fn job(&self, database: &str, name: &str) -> Option<&Job> {
        self.at(database, name).map(|at| &self.jobs[at])
    }

    fn index(&mut self, database: &str, name: &str) -> Option<&mut Vec<RawDocumentBuf>> {
        let at = self.at(database, name)?;
        Some(&mut self.jobs[at].from.indexes)
    }

    fn make(
        &mut self,
        database: &str,
        name: &str,
        kind: Kind,
        options: RawDocumentBuf,
    ) -> Result<&Job, String> {
        let place = self.places.placed(database)?;
        if let Some(at) = self.at(database, name) {
            self.jobs.remove(at);
        }
        self.made.insert((place.clone(), name.to_owned()));
        self.jobs.push(Job {
            from: Collection {
                database: database.to_owned(),
                name: name.to_owned(),
                kind,
                options,
                indexes: Vec::new(),
                division: None,
            },
            database: place,
            streams: Vec::new(),
        });
        Ok(self.jobs.last().expect("it was just added"))
    }

    /// A document was written into a collection that no entry has made: a server of another kind makes it by that alone.
    pub(super) fn is_written(&mut self, database: &str, name: &str) -> Result<Option<Act>, String> {
        if self.at(database, name).is_some() {
            return Ok(None);
        }
        let job = self.make(database, name, Kind::Plain, RawDocumentBuf::new())?;
        Ok(Some(Act::Create {
            database: job.database.clone(),
            command: job.from.create(false),
        }))
    }

    /// A view's definition was written (`system.views`), or removed.
    pub(super) fn view(
        &mut self,
        database: &str,
        id: &str,
        definition: Option<&RawDocument>,
    ) -> Result<(), String> {
        let name = id
            .strip_prefix(database)
            .and_then(|rest| rest.strip_prefix('.'))
            .unwrap_or(id);
        if !self.places.has(database, name) {
            return Ok(());
        }
        match definition {
            Some(definition) if matches!(definition.get("timeseries"), Ok(Some(_))) => {
                Err(time_series(database, name))
            }
            Some(definition) => self
                .make(
                    database,
                    name,
                    Kind::View,
                    without(definition, &[crate::raw::ID]),
                )
                .map(drop),
            None => {
                if let Some(at) = self.at(database, name) {
                    self.jobs.remove(at);
                }
                Ok(())
            }
        }
    }

    /// Takes a command of the oplog in, and tells what is to be done.
    pub(super) fn command(
        &mut self,
        database: &str,
        object: &RawDocument,
    ) -> Result<Vec<Act>, String> {
        let Some(Ok((command, value))) = object.iter().next() else {
            return Err("an empty command".to_owned());
        };
        let command = command.as_str();
        if command == "renameCollection" {
            let to = object.get_str("to").map_err(|error| error.to_string())?;
            let from = value.as_str().ok_or("a renaming without a name")?;
            return self.rename(from, to);
        }
        if command == "dropDatabase" {
            let names: Vec<String> = self
                .jobs
                .iter()
                .filter(|job| job.from.database == database)
                .map(|job| job.from.name.clone())
                .collect();
            return Ok(names
                .iter()
                .flat_map(|name| self.drop(database, name))
                .collect());
        }
        let Some(name) = value.as_str() else {
            return Ok(Vec::new());
        };
        if name.starts_with("system.buckets.") {
            let name = name.trim_start_matches("system.buckets.");
            return if self.places.has(database, name) {
                Err(time_series(database, name))
            } else {
                Ok(Vec::new())
            };
        }
        if !self.places.has(database, name) || is_own(name) {
            return Ok(Vec::new());
        }
        match command {
            "create" => {
                let options = without(object, &NO_OPTIONS);
                let kind = Kind::of("collection", &options);
                if kind == Kind::TimeSeries {
                    return Err(time_series(database, name));
                }
                let job = self.make(database, name, kind, options)?;
                Ok(vec![Act::Create {
                    database: job.database.clone(),
                    command: job.from.create(false),
                }])
            }
            "drop" => Ok(self.drop(database, name)),
            "createIndexes" => {
                let index = without(object, &NO_INDEX);
                self.add_index(database, name, &index);
                Ok(Vec::new())
            }
            "commitIndexBuild" => {
                let indexes = object
                    .get_array("indexes")
                    .map_err(|error| error.to_string())?;
                for index in indexes {
                    if let Ok(RawBsonRef::Document(index)) = index {
                        self.add_index(database, name, index);
                    }
                }
                Ok(Vec::new())
            }
            "dropIndexes" | "deleteIndexes" | "dropIndex" | "deleteIndex" => {
                let gone = object.get_str("index").unwrap_or_default();
                if let Some(indexes) = self.index(database, name) {
                    indexes.retain(|index| {
                        let name = index.get_str("name").unwrap_or_default();
                        name == ID_INDEX || (gone != "*" && name != gone)
                    });
                }
                Ok(Vec::new())
            }
            "collMod" => Ok(self.modify(database, name, object).into_iter().collect()),
            "convertToCapped" | "emptycapped" | "importCollection" => Err(format!(
                "`{command}` of {database}.{name}, which cannot be played"
            )),
            // What else there is changes no document that another entry does not tell.
            _ => Ok(Vec::new()),
        }
    }

    fn drop(&mut self, database: &str, name: &str) -> Vec<Act> {
        let Some(at) = self.at(database, name) else {
            return Vec::new();
        };
        let job = self.jobs.remove(at);
        if job.from.kind == Kind::View {
            return Vec::new();
        }
        vec![Act::Drop {
            database: job.database,
            name: job.from.name,
        }]
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<Vec<Act>, String> {
        let split = |namespace: &str| {
            namespace
                .split_once('.')
                .map(|(database, name)| (database.to_owned(), name.to_owned()))
                .ok_or_else(|| format!("a renaming of {namespace:?}"))
        };
        let ((old_database, old), (database, name)) = (split(from)?, split(to)?);
        let (is_from, is_to) = (
            self.places.has(&old_database, &old),
            self.places.has(&database, &name),
        );
        match (is_from, is_to) {
            (false, false) => return Ok(Vec::new()),
            (true, false) => return Ok(self.drop(&old_database, &old)),
            (false, true) => {
                return Err(format!(
                    "{from} was renamed to {to} before the moment, and only {to} is to be restored: choose both"
                ));
            }
            (true, true) => {}
        }
        if let Some(at) = self.at(&database, &name) {
            // It was replaced by the renamed one.
            self.jobs.remove(at);
        }
        let place = self.places.placed(&database)?;
        let Some(at) = self.at(&old_database, &old) else {
            return Err(format!("{from} was renamed, and is not known"));
        };
        let job = &mut self.jobs[at];
        let act = Act::Rename {
            from: job.place(),
            to: format!("{place}.{name}"),
        };
        self.made.insert((place.clone(), name.clone()));
        job.database = place;
        job.from.database = database;
        job.from.name = name;
        Ok(vec![act])
    }

    fn add_index(&mut self, database: &str, name: &str, index: &RawDocument) {
        let called = index.get_str("name").unwrap_or_default().to_owned();
        if let Some(indexes) = self.index(database, name) {
            indexes.retain(|other| other.get_str("name").ok() != Some(&called));
            indexes.push(index.to_owned());
        }
    }

    /// What `collMod` changes of the collection is changed at the target, and what it changes of an index is built so.
    fn modify(&mut self, database: &str, name: &str, object: &RawDocument) -> Option<Act> {
        let at = self.at(database, name)?;
        let job = &mut self.jobs[at];
        if let Ok(changed) = object.get_document("index") {
            let is_meant = |index: &RawDocument| match changed.get_str("name") {
                Ok(name) => index.get_str("name").ok() == Some(name),
                Err(_) => index.get_document("key").ok() == changed.get_document("keyPattern").ok(),
            };
            for index in &mut job.from.indexes {
                if is_meant(index) {
                    let changes = without(changed, &["name", "keyPattern"]);
                    *index = with(index, &changes);
                }
            }
        }
        let mut changes = RawDocumentBuf::new();
        for (field, value) in object.iter().flatten() {
            if CHANGEABLE.contains(&field.as_str()) {
                put(&mut changes, field.as_str(), value);
            }
        }
        if changes == RawDocumentBuf::new() {
            return None;
        }
        job.from.options = with(&job.from.options, &changes);
        let mut command = rawdoc! { "collMod": name };
        for (field, value) in changes.iter().flatten() {
            put(&mut command, field.as_str(), value);
        }
        Some(Act::Modify {
            database: job.database.clone(),
            command,
        })
    }
}

/// The index that every collection has.
const ID_INDEX: &str = "_id_";

/// Whether a collection is the server's own.
pub(super) fn is_own(name: &str) -> bool {
    name.starts_with("system.") && name != "system.js"
}

/// A copy with other values.
fn with(document: &RawDocument, changes: &RawDocument) -> RawDocumentBuf {
    let names: Vec<&str> = changes
        .iter()
        .flatten()
        .map(|(name, _)| name.as_str())
        .collect();
    let mut copy = without(document, &names);
    for (name, value) in changes.iter().flatten() {
        put(&mut copy, name.as_str(), value);
    }
    copy
}

/// Why a time series stops a restore to a moment.
pub(super) fn time_series(database: &str, name: &str) -> String {
    format!(
        "changes of the time series {database}.{name}, which cannot be played: restore the other collections to the moment (`--only`), and the time series from a backup"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Shop;

    impl Places for Shop {
        fn has(&self, database: &str, collection: &str) -> bool {
            database == "shop" && collection != "other"
        }

        fn placed(&self, database: &str) -> Result<String, String> {
            Ok(format!("copy_{database}"))
        }
    }

    fn shapes() -> Shapes<'static, Shop> {
        let mut shapes = Shapes::new(Vec::new(), &Shop);
        play(
            &mut shapes,
            rawdoc! { "create": "orders", "idIndex": { "v": 2 }, "validator": { "a": 1 } },
        );
        shapes
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "commands are written where they are played"
    )]
    fn play(shapes: &mut Shapes<'static, Shop>, object: RawDocumentBuf) -> Vec<Act> {
        shapes.command("shop", &object).unwrap()
    }

    fn names(shapes: &Shapes<'static, Shop>) -> Vec<String> {
        shapes.jobs.iter().map(Job::place).collect()
    }

    fn indexes<'a>(shapes: &'a Shapes<'static, Shop>) -> Vec<&'a RawDocument> {
        shapes.jobs[0]
            .from
            .indexes
            .iter()
            .map(|one| &**one)
            .collect()
    }

    #[test]
    fn collections_are_made_renamed_and_dropped() {
        let mut shapes = shapes();
        assert_eq!(
            play(
                &mut shapes,
                rawdoc! { "create": "log", "capped": true, "size": 4096 }
            ),
            [Act::Create {
                database: "copy_shop".to_owned(),
                command: rawdoc! { "create": "log", "capped": true, "size": 4096 },
            }]
        );
        assert_eq!(shapes.jobs[1].from.kind, Kind::Capped);
        let renamed =
            rawdoc! { "renameCollection": "shop.log", "to": "shop.orders", "dropTarget": true };
        assert_eq!(
            play(&mut shapes, renamed),
            [Act::Rename {
                from: "copy_shop.log".to_owned(),
                to: "copy_shop.orders".to_owned(),
            }]
        );
        assert_eq!(names(&shapes), ["copy_shop.orders"]);
        let dropped = [Act::Drop {
            database: "copy_shop".to_owned(),
            name: "orders".to_owned(),
        }];
        assert_eq!(play(&mut shapes, rawdoc! { "drop": "orders" }), dropped);
        assert_eq!(play(&mut shapes, rawdoc! { "drop": "orders" }), []);
        assert!(shapes.is_written("shop", "orders").unwrap().is_some());
        assert!(shapes.is_written("shop", "orders").unwrap().is_none());
        assert_eq!(play(&mut shapes, rawdoc! { "dropDatabase": 1 }), dropped);
        assert_eq!(names(&shapes), [""; 0]);
    }

    #[test]
    fn a_renaming_into_what_is_chosen_is_refused_and_out_of_it_is_a_removal() {
        let mut shapes = shapes();
        let rename = |from: &str, to: &str| rawdoc! { "renameCollection": from, "to": to };
        let refused = shapes.command("shop", &rename("shop.other", "shop.orders"));
        assert!(refused.unwrap_err().contains("choose both"));
        assert_eq!(play(&mut shapes, rename("web.a", "web.b")), []);
        assert!(matches!(
            play(&mut shapes, rename("shop.orders", "shop.other"))[..],
            [Act::Drop { .. }]
        ));
    }

    #[test]
    fn indexes_are_those_of_the_end() {
        let mut shapes = shapes();
        let ab = rawdoc! { "createIndexes": "orders", "v": 2, "key": { "a": 1 }, "name": "a" };
        assert_eq!(play(&mut shapes, ab), []);
        let built = rawdoc! { "commitIndexBuild": "orders", "indexes": [
            { "v": 2, "key": { "t": 1 }, "name": "t", "expireAfterSeconds": 60 }, { "v": 2, "key": { "b": 1 }, "name": "b" },
        ] };
        play(&mut shapes, built);
        play(
            &mut shapes,
            rawdoc! { "dropIndexes": "orders", "index": "a" },
        );
        let longer =
            rawdoc! { "collMod": "orders", "index": { "name": "t", "expireAfterSeconds": 90 } };
        assert_eq!(play(&mut shapes, longer), []);
        let expected = [
            rawdoc! { "v": 2, "key": { "t": 1 }, "name": "t", "expireAfterSeconds": 90 },
            rawdoc! { "v": 2, "key": { "b": 1 }, "name": "b" },
        ];
        assert_eq!(
            indexes(&shapes),
            expected.iter().map(|one| &**one).collect::<Vec<_>>()
        );
        let validated = rawdoc! { "collMod": "orders", "validator": { "b": 1 } };
        assert_eq!(
            play(&mut shapes, validated.clone()),
            [Act::Modify {
                database: "copy_shop".to_owned(),
                command: validated,
            }]
        );
        assert_eq!(
            shapes.jobs[0].from.options,
            rawdoc! { "validator": { "b": 1 } }
        );
    }

    #[test]
    fn views_come_and_go_and_time_series_are_refused() {
        let mut shapes = shapes();
        let cheap = rawdoc! { "_id": "shop.cheap", "viewOn": "orders", "pipeline": [] };
        shapes.view("shop", "shop.cheap", Some(&cheap)).unwrap();
        assert_eq!(shapes.jobs[1].from.kind, Kind::View);
        shapes.view("shop", "shop.cheap", None).unwrap();
        assert_eq!(names(&shapes), ["copy_shop.orders"]);
        let series = rawdoc! { "_id": "shop.t", "viewOn": "system.buckets.t", "timeseries": { "timeField": "t" } };
        assert!(shapes.view("shop", "shop.t", Some(&series)).is_err());
        for refused in [
            rawdoc! { "create": "system.buckets.t", "timeseries": { "timeField": "t" } },
            rawdoc! { "convertToCapped": "orders", "size": 4096 },
        ] {
            assert!(shapes.command("shop", &refused).is_err(), "{refused:?}");
        }
        assert_eq!(
            play(&mut shapes, rawdoc! { "startIndexBuild": "orders" }),
            []
        );
    }
}
