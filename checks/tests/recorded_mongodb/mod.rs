//! A server of MongoDB's protocol that answers what was recorded: MongoDB's own cannot be had on a test machine, and those that can
//! have no users, roles and options. Its answers are of the form that MongoDB's manual gives for 7.0, shortened to what matters
//! here; who asks is the engine itself, over a connection and with a login.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use bson::{Binary, Bson, DateTime, Document, doc, spec::BinarySubtype};

/// The moment at which everything was recorded, in seconds.
const NOW: i64 = 1_795_400_000;
const DAY: i64 = 86_400;

/// What the server is.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub version: &'static str,
    pub modules: Vec<&'static str>,
    /// `parsed` of `getCmdLineOpts`.
    pub options: Document,
    pub parameters: Document,
    pub status: Document,
    pub databases: Vec<&'static str>,
    /// With privileges and credentials, of which an answer shows what was asked for.
    pub users: Vec<Document>,
    pub roles: Vec<Document>,
    /// Of `$currentOp`.
    pub sessions: Vec<Document>,
    /// `replSetGetConfig`; a server without a set refuses it.
    pub set: Option<Document>,
    pub warnings: Vec<&'static str>,
    pub profiler_level: i32,
    pub profiles: i32,
    pub indexes: Vec<Document>,
    /// Commands that the user may not send.
    pub refused: Vec<&'static str>,
    /// Commands that the server does not know.
    pub unknown: Vec<&'static str>,
}

/// A user with a role, as `usersInfo` tells it.
pub fn user(name: &str, database: &str, role: &str, privileges: Vec<Document>) -> Document {
    let roles = vec![doc! { "role": role, "db": database }];
    doc! {
        "_id": format!("{database}.{name}"), "user": name, "db": database,
        "roles": roles.clone(), "mechanisms": ["SCRAM-SHA-1", "SCRAM-SHA-256"],
        "authenticationRestrictions": [], "inheritedAuthenticationRestrictions": [],
        "inheritedRoles": roles, "inheritedPrivileges": privileges,
    }
}

/// What is kept of the password `pencil` for this number of rounds, where it is 4096; of no password for another.
pub fn credentials(rounds: i32) -> Document {
    doc! {
        "iterationCount": rounds, "salt": "W22ZaJ0SNY7soEsUEjb6gQ==",
        "storedKey": "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=",
        "serverKey": "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
    }
}

/// A privilege on a database.
pub fn on(database: &str, collection: &str, actions: &[&str]) -> Document {
    doc! { "resource": { "db": database, "collection": collection }, "actions": actions.to_vec() }
}

/// A role that somebody made in `admin`.
pub fn role(name: &str, privileges: Vec<Document>) -> Document {
    doc! { "_id": format!("admin.{name}"), "role": name, "db": "admin", "isBuiltin": false, "roles": [], "inheritedRoles": [], "privileges": privileges }
}

/// Counts of one way to log in.
pub fn logins(received: i64, successful: i64) -> Document {
    doc! {
        "speculativeAuthenticate": { "received": 0_i64, "successful": 0_i64 },
        "clusterAuthenticate": { "received": 0_i64, "successful": 0_i64 },
        "authenticate": { "received": received, "successful": successful },
    }
}

impl Recorded {
    /// What the packages install, nothing changed: it listens at this machine, and asks nobody for a login.
    pub fn fresh() -> Self {
        Self {
            version: "7.0.28",
            modules: Vec::new(),
            options: doc! { "config": "/etc/mongod.conf", "net": { "bindIp": "127.0.0.1", "port": 27017 }, "storage": { "dbPath": "/var/lib/mongodb" }, "systemLog": { "destination": "file", "logAppend": true, "path": "/var/log/mongodb/mongod.log" } },
            parameters: doc! {
                "authenticationMechanisms": ["MONGODB-X509", "SCRAM-SHA-1", "SCRAM-SHA-256"], "clusterAuthMode": "undefined",
                "enableLocalhostAuthBypass": true, "enableTestCommands": false, "logLevel": 0, "quiet": false, "tlsMode": "disabled",
                "opensslCipherConfig": "", "ok": 1.0,
            },
            status: doc! {
                "host": "db1", "version": "7.0.28", "process": "mongod", "uptime": (3 * DAY) as f64, "localTime": DateTime::from_millis(NOW * 1000),
                "metrics": {
                    "commands": { "mapReduce": { "failed": 0_i64, "total": 0_i64 } },
                    "operatorCounters": { "match": { "$where": 0_i64 }, "expressions": { "$function": 0_i64 }, "groupAccumulators": { "$accumulator": 0_i64 } },
                },
                "security": { "authentication": { "saslSupportedMechsReceived": 0_i64, "mechanisms": {
                    "MONGODB-X509": logins(0, 0), "SCRAM-SHA-1": logins(0, 0), "SCRAM-SHA-256": logins(0, 0),
                } } },
                "transportSecurity": { "1.0": 0_i64, "1.1": 0_i64, "1.2": 0_i64, "1.3": 0_i64, "unknown": 0_i64 },
                "ok": 1.0,
            },
            databases: vec!["admin", "config", "local"],
            users: Vec::new(),
            roles: Vec::new(),
            sessions: vec![doc! { "type": "op", "desc": "JournalFlusher" }],
            set: None,
            warnings: vec![
                "{\"t\":{\"$date\":\"2026-06-01T00:00:00.000+00:00\"},\"s\":\"W\",\"c\":\"CONTROL\",\"id\":22120,\"ctx\":\"initandlisten\",\"msg\":\"Access control is not enabled for the database. Read and write access to data and configuration is unrestricted\",\"tags\":[\"startupWarnings\"]}\n",
            ],
            profiler_level: 0,
            profiles: 0,
            indexes: vec![doc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" }],
            refused: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// A server that somebody who knows has set up: logins, an administrator, and applications with a database each.
    pub fn well() -> Self {
        let mut well = Self::fresh();
        well.options
            .insert("security", doc! { "authorization": "enabled" });
        well.databases.extend(["shop", "stock"]);
        well.users = vec![
            user(
                "root",
                "admin",
                "root",
                vec![
                    doc! { "resource": { "anyResource": true }, "actions": ["listCollections", "validate"] },
                ],
            ),
            user(
                "app",
                "shop",
                "readWrite",
                vec![on("shop", "", &["find", "insert", "remove", "update"])],
            ),
            user("fettler", "admin", "fettler_audit", Vec::new()),
        ];
        well.users[1].insert("credentials", doc! { "SCRAM-SHA-256": credentials(15_000) });
        well.roles = vec![role(
            "fettler_audit",
            vec![on("", "", &["viewUser", "viewRole"])],
        )];
        well.sessions.push(doc! { "type": "op", "client": "10.0.0.9:51234", "effectiveUsers": [{ "user": "app", "db": "shop" }] });
        well.warnings.clear();
        well
    }

    /// Whether somebody without a login is let do what a command does.
    fn asks_for_logins(&self) -> bool {
        self.options
            .get_document("security")
            .is_ok_and(|security| security.contains_key("authorization"))
    }

    /// Answers for as long as the test runs; gives the URL.
    pub fn serve(self) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let server = self.clone();
                let stream = stream.unwrap();
                // A client that has gone ends its own connection alone.
                thread::spawn(move || server.talk(stream));
            }
        });
        format!("mongodb://fettler:aTOy7Xq@127.0.0.1:{port}/?authMechanism=PLAIN&authSource=admin")
    }

    fn talk(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut is_in = false;
        loop {
            let mut header = [0; 16];
            stream.read_exact(&mut header)?;
            let number =
                |at: usize| i32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
            let mut body = vec![0; usize::try_from(number(0)).unwrap_or(16) - 16];
            stream.read_exact(&mut body)?;
            let command = Document::from_reader(&body[5..]).unwrap();
            let name = command.keys().next().cloned().unwrap_or_default();
            is_in |= name == "saslStart";
            let answer = if self.unknown.contains(&name.as_str()) {
                doc! { "ok": 0.0, "code": 59, "codeName": "CommandNotFound", "errmsg": format!("no such command: '{name}'") }
            } else if self.asks_for_logins() && !is_in && name != "hello" {
                doc! { "ok": 0.0, "code": 13, "codeName": "Unauthorized", "errmsg": format!("Command {name} requires authentication") }
            } else if self.refused.contains(&name.as_str()) {
                doc! { "ok": 0.0, "code": 13, "codeName": "Unauthorized", "errmsg": format!("not authorized on admin to execute command {{ {name}: 1 }}") }
            } else {
                self.answer(&name, &command)
            };
            let mut bytes = Vec::new();
            answer.to_writer(&mut bytes).unwrap();
            let mut message = Vec::new();
            for part in [21 + bytes.len() as i32, 1, number(4), 2013, 0] {
                message.extend(part.to_le_bytes());
            }
            message.push(0);
            message.extend(bytes);
            stream.write_all(&message)?;
        }
    }

    fn answer(&self, name: &str, command: &Document) -> Document {
        let database = command.get_str("$db").unwrap_or_default();
        let list = |of: &str, batch: Vec<Document>| doc! { "cursor": { "id": 0_i64, "ns": of, "firstBatch": batch }, "ok": 1.0 };
        match name {
            "hello" => doc! { "isWritablePrimary": true, "maxWireVersion": 21, "ok": 1.0 },
            "saslStart" => {
                doc! { "conversationId": 1, "done": true, "payload": Binary { subtype: BinarySubtype::Generic, bytes: Vec::new() }, "ok": 1.0 }
            }
            "ping" => doc! { "ok": 1.0 },
            "buildInfo" => {
                doc! { "version": self.version, "modules": self.modules.clone(), "ok": 1.0 }
            }
            "connectionStatus" => {
                doc! { "authInfo": { "authenticatedUsers": [{ "user": "fettler", "db": "admin" }], "authenticatedUserRoles": [] }, "ok": 1.0 }
            }
            "getCmdLineOpts" => {
                doc! { "argv": ["mongod"], "parsed": self.options.clone(), "ok": 1.0 }
            }
            "getParameter" => self.parameters.clone(),
            "serverStatus" => self.status.clone(),
            "getLog" => {
                doc! { "totalLinesWritten": self.warnings.len() as i32, "log": self.warnings.clone(), "ok": 1.0 }
            }
            "listDatabases" => {
                let databases = self.databases.iter().map(|name| doc! { "name": *name });
                doc! { "databases": databases.collect::<Vec<_>>(), "ok": 1.0 }
            }
            "usersInfo" => self.users_info(command),
            "rolesInfo" => {
                let here = |role: &&Document| role.get_str("db").unwrap() == database;
                let roles: Vec<Document> = self.roles.iter().filter(here).cloned().collect();
                doc! { "roles": roles, "ok": 1.0 }
            }
            "replSetGetConfig" => match &self.set {
                Some(config) => doc! { "config": config.clone(), "ok": 1.0 },
                None => {
                    doc! { "ok": 0.0, "code": 76, "codeName": "NoReplicationEnabled", "errmsg": "not running with --replSet" }
                }
            },
            "aggregate" => list("admin.$cmd.aggregate", self.sessions.clone()),
            "listCollections" => list(
                "shop.$cmd.listCollections",
                vec![
                    doc! { "name": "orders", "type": "collection", "options": {}, "info": { "readOnly": false } },
                ],
            ),
            "listIndexes" => list("shop.orders", self.indexes.clone()),
            "profile" => {
                doc! { "was": self.profiler_level, "slowms": 100, "sampleRate": 1.0, "ok": 1.0 }
            }
            "count" => doc! { "n": self.profiles, "ok": 1.0 },
            other => panic!("nothing is recorded for {other}: {command}"),
        }
    }

    /// Privileges and restrictions are told of users that are named, and credentials where they are asked for.
    fn users_info(&self, command: &Document) -> Document {
        let named = command.get_array("usersInfo").ok();
        let shows_credentials = command.get_bool("showCredentials").unwrap_or(false);
        let shows_privileges = command.get_bool("showPrivileges").unwrap_or(false);
        assert!(named.is_some() || !shows_privileges, "{command}");
        let is_meant = |user: &&Document| {
            named.is_none_or(|names| {
                names.contains(&Bson::Document(doc! { "user": user.get_str("user").unwrap(), "db": user.get_str("db").unwrap() }))
            })
        };
        let shown = |user: &Document| {
            let mut user = user.clone();
            if !shows_credentials {
                user.remove("credentials");
            }
            if !shows_privileges {
                for name in [
                    "inheritedRoles",
                    "inheritedPrivileges",
                    "inheritedAuthenticationRestrictions",
                    "authenticationRestrictions",
                ] {
                    user.remove(name);
                }
            }
            user
        };
        let users: Vec<Document> = self.users.iter().filter(is_meant).map(shown).collect();
        doc! { "users": users, "ok": 1.0 }
    }

    /// `serverStatus` after so many days.
    pub fn up_for(&mut self, days: i64) {
        self.status.insert("uptime", (days * DAY) as f64);
    }

    /// The server's certificate ends in so many days.
    pub fn certificate_ends_in(&mut self, days: i64, has_authority: bool) {
        let security = self.status.get_document_mut("security").unwrap();
        security.insert("SSLServerSubjectName", "CN=db1,O=shop");
        security.insert("SSLServerHasCertificateAuthority", has_authority);
        security.insert(
            "SSLServerCertificateExpirationDate",
            DateTime::from_millis((NOW + days * DAY) * 1000),
        );
    }

    /// Counts of a way to log in.
    pub fn count_logins(&mut self, mechanism: &str, counts: Document) {
        let security = self.status.get_document_mut("security").unwrap();
        let authentication = security.get_document_mut("authentication").unwrap();
        authentication
            .get_document_mut("mechanisms")
            .unwrap()
            .insert(mechanism, counts);
    }

    /// An option below one of the first ones, such as `security`.
    pub fn option(&mut self, part: &str, name: &str, value: impl Into<Bson>) {
        if !self.options.contains_key(part) {
            self.options.insert(part, Document::new());
        }
        self.options
            .get_document_mut(part)
            .unwrap()
            .insert(name, value);
    }

    /// The set's members.
    pub fn members(&mut self, hosts: &[&str]) {
        let members: Vec<Document> = hosts
            .iter()
            .enumerate()
            .map(|(id, host)| doc! { "_id": id as i32, "host": *host })
            .collect();
        self.set = Some(doc! { "_id": "rs0", "version": 1, "members": members });
    }
}
