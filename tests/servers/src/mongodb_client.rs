//! A client of MongoDB's protocol for tests, which shares nothing with the engine's: it blocks, and takes documents apart. What a
//! server refuses, and what is no answer, is a panic: in a test, that is the report.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::missing_panics_doc, reason = "said once, at the head")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use bson::{Bson, Document, doc};

/// A connection.
#[derive(Debug)]
pub struct MongodbClient(TcpStream);

impl MongodbClient {
    /// Connects to a port of this machine.
    ///
    /// # Panics
    ///
    /// As all of these: where the server does not do what is asked.
    #[must_use]
    pub fn new(port: u16) -> Self {
        Self(TcpStream::connect(("127.0.0.1", port)).expect("the server is there"))
    }

    /// Sends a command; gives the answer, also that which refuses it.
    ///
    /// # Errors
    ///
    /// The answer, where it says that not all was done.
    pub fn try_run(&mut self, database: &str, mut command: Document) -> Result<Document, Document> {
        command.insert("$db", database);
        let mut body = Vec::new();
        command.to_writer(&mut body).unwrap();
        let length = 16 + 5 + body.len();
        let mut message = Vec::new();
        for number in [length as i32, 1, 0, 2013, 0] {
            message.extend(number.to_le_bytes());
        }
        message.push(0);
        message.extend(body);
        self.0.write_all(&message).unwrap();
        let mut header = [0; 16];
        self.0.read_exact(&mut header).unwrap();
        let length = i32::from_le_bytes(header[..4].try_into().unwrap()) as usize;
        let mut answer = vec![0; length - 16];
        self.0.read_exact(&mut answer).unwrap();
        let answer = Document::from_reader(&answer[5..]).unwrap();
        match answer.get("ok") {
            Some(Bson::Double(1.0) | Bson::Int32(1)) if !answer.contains_key("writeErrors") => {
                Ok(answer)
            }
            _ => Err(answer),
        }
    }

    /// Sends a command.
    pub fn run(&mut self, database: &str, command: Document) -> Document {
        self.try_run(database, command)
            .unwrap_or_else(|answer| panic!("{answer}"))
    }

    /// Puts documents into a collection.
    pub fn insert(
        &mut self,
        database: &str,
        collection: &str,
        documents: impl IntoIterator<Item = Document>,
    ) {
        let documents: Vec<Document> = documents.into_iter().collect();
        for some in documents.chunks(1000) {
            self.run(
                database,
                doc! { "insert": collection, "documents": some.to_vec() },
            );
        }
    }

    /// Changes one document.
    pub fn update(&mut self, database: &str, collection: &str, query: Document, update: Document) {
        self.run(
            database,
            doc! { "update": collection, "updates": [{ "q": query, "u": update, "upsert": false }] },
        );
    }

    /// Removes one document.
    pub fn delete(&mut self, database: &str, collection: &str, query: Document) {
        self.run(
            database,
            doc! { "delete": collection, "deletes": [{ "q": query, "limit": 1 }] },
        );
    }

    /// All documents of a command that opens a cursor.
    pub fn list(&mut self, database: &str, command: Document) -> Vec<Document> {
        let mut found = Vec::new();
        let mut answer = self.run(database, command);
        loop {
            let cursor = answer.get_document("cursor").unwrap().clone();
            let batch = cursor
                .get_array("firstBatch")
                .or_else(|_| cursor.get_array("nextBatch"))
                .unwrap();
            found.extend(batch.iter().map(|one| one.as_document().unwrap().clone()));
            let id = cursor.get_i64("id").unwrap();
            if id == 0 {
                return found;
            }
            let collection = cursor.get_str("ns").unwrap().split_once('.').unwrap().1;
            answer = self.run(database, doc! { "getMore": id, "collection": collection });
        }
    }

    /// All documents of a collection, in the order of their `_id`'s text.
    pub fn all(&mut self, database: &str, collection: &str) -> Vec<Document> {
        let mut found = self.list(database, doc! { "find": collection });
        found.sort_by_key(|one| format!("{:?}", one.get("_id")));
        found
    }

    /// How many documents a collection has.
    pub fn count(&mut self, database: &str, collection: &str) -> usize {
        self.list(database, doc! { "find": collection }).len()
    }

    /// The names of all databases.
    pub fn databases(&mut self) -> Vec<String> {
        let answer = self.run("admin", doc! { "listDatabases": 1, "nameOnly": true });
        answer
            .get_array("databases")
            .unwrap()
            .iter()
            .map(|one| {
                one.as_document()
                    .unwrap()
                    .get_str("name")
                    .unwrap()
                    .to_owned()
            })
            .collect()
    }

    /// The names of a database's collections, sorted.
    pub fn collections(&mut self, database: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .list(database, doc! { "listCollections": 1, "cursor": {} })
            .iter()
            .map(|one| one.get_str("name").unwrap().to_owned())
            .collect();
        names.sort();
        names
    }
}
