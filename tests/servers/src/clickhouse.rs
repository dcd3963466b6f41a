//! ClickHouse: the real server of 2018 that Debian has, and the engine of today in a process of Python's behind an HTTP
//! front of ours (`clickhouse/serve.py`, which says what is not there).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::process::{Scratch, ServerProcess, User, log_tail};
use crate::{Result, ServerError, free_port, install, server_folder, wait_until};

/// How long a start may take on a machine that is busy with other tests.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How long an answer may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(120);

/// How often a start is tried with another port, when another process was quicker to take it.
const PORT_TRIES: u32 = 5;

/// The last numbers of the addresses of shards: a server takes 127.0.0.1 for its own, whoever listens there.
const SHARDS: std::ops::RangeFrom<u8> = 2..;

/// Which ClickHouse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClickhouseVersion {
    /// 18.16, the server: users and settings; no hashes of parts, no UUIDs, no lightweight updates.
    V18,
    /// 26.9, the engine: no users, no end of a statement from outside.
    V26,
}

impl ClickhouseVersion {
    /// The server's program, for a private server of a proof; nothing where there is none.
    ///
    /// # Errors
    ///
    /// [`ServerError::NotInstalled`].
    pub fn program(self) -> Result<Option<PathBuf>> {
        match self {
            Self::V18 => server_folder("clickhouse-18/usr/sbin/clickhouse-server").map(Some),
            Self::V26 => Ok(None),
        }
    }
}

/// A running ClickHouse. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct ClickhouseServer {
    // Dropped in this order: the process before its folder.
    process: Option<ServerProcess>,
    version: ClickhouseVersion,
    host: Ipv4Addr,
    port: u16,
    /// The port of its own protocol, and how many servers there are on the addresses from 127.0.0.2 on.
    cluster: Option<(u16, u8)>,
    /// The largest table that may be dropped, in bytes.
    droppable: Option<u64>,
    password: String,
    /// What stands in its configuration beside what a test's server needs, and its file of users. Of the engine of today only.
    configured: Option<(String, String)>,
    scratch: Scratch,
}

impl ClickhouseServer {
    /// Starts an empty server and waits until it answers.
    ///
    /// # Errors
    ///
    /// [`ServerError::NotInstalled`]; [`ServerError::Start`] with the end of the server's log.
    pub fn start(version: ClickhouseVersion) -> Result<Self> {
        Self::start_with_password(version, "")
    }

    /// The same, whose user `default` has a password of letters and digits. Only the server of 2018 asks for it.
    ///
    /// # Errors
    ///
    /// As [`ClickhouseServer::start`].
    pub fn start_with_password(version: ClickhouseVersion, password: &str) -> Result<Self> {
        Self::start_as(version, password, None, None)
    }

    /// The same, which drops no table that is larger than so many bytes.
    ///
    /// # Errors
    ///
    /// As [`ClickhouseServer::start`].
    pub fn start_with_limit_on_drops(version: ClickhouseVersion, bytes: u64) -> Result<Self> {
        Self::start_as(version, "", Some(bytes), None)
    }

    /// Starts the engine of today with users: what stands in `users`, the inner part of `<clickhouse>` of a `users.xml`. Who asks is
    /// the user `default`, and its password is not asked for. `configuration` is added to that of the server.
    ///
    /// # Errors
    ///
    /// As [`ClickhouseServer::start`].
    pub fn start_with_users(configuration: &str, users: &str) -> Result<Self> {
        let configured = (configuration.to_owned(), users.to_owned());
        Self::start_as(ClickhouseVersion::V26, "", None, Some(configured))
    }

    fn start_as(
        version: ClickhouseVersion,
        password: &str,
        droppable: Option<u64>,
        configured: Option<(String, String)>,
    ) -> Result<Self> {
        let mut server = Self {
            process: None,
            version,
            host: Ipv4Addr::LOCALHOST,
            port: 0,
            cluster: None,
            droppable,
            password: password.to_owned(),
            configured,
            scratch: Scratch::new("clickhouse", User::Current)?,
        };
        let mut tries = 0;
        loop {
            server.port = free_port();
            tries += 1;
            match server.start_again() {
                Err(ServerError::Start { log, .. })
                    if tries < PORT_TRIES && log.contains("in use") => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(server),
            }
        }
    }

    /// Starts several servers of 2018, each on a loopback address of its own and all on the same ports, which know each other as the
    /// shards of the cluster `shards`.
    ///
    /// # Errors
    ///
    /// As [`ClickhouseServer::start`].
    pub fn start_shards(count: u8) -> Result<Vec<Self>> {
        let (port, native) = (free_port(), free_port());
        SHARDS
            .take(usize::from(count))
            .map(|number| {
                let mut server = Self {
                    process: None,
                    version: ClickhouseVersion::V18,
                    host: Ipv4Addr::new(127, 0, 0, number),
                    port,
                    cluster: Some((native, count)),
                    droppable: None,
                    password: String::new(),
                    configured: None,
                    scratch: Scratch::new("clickhouse", User::Current)?,
                };
                server.start_again()?;
                Ok(server)
            })
            .collect()
    }

    /// Starts the server again after [`ClickhouseServer::kill_9`], on the same port and folder, and waits until it answers.
    /// Nothing happens where it runs.
    ///
    /// # Errors
    ///
    /// [`ServerError::Start`] with the end of the server's log.
    pub fn start_again(&mut self) -> Result<()> {
        if let Some(process) = &mut self.process
            && process.ended()?.is_none()
        {
            return Ok(());
        }
        let command = match self.version {
            ClickhouseVersion::V18 => self.old_server()?,
            ClickhouseVersion::V26 => self.front()?,
        };
        let log = self.scratch.path().join("out");
        let mut process = ServerProcess::start(command, &log, Signal::KILL)?;
        let mut ended = None;
        let ready = wait_until("ClickHouse to answer", READY_WITHIN, || {
            ended = process.ended().transpose();
            ended.is_some() || self.query("SELECT 1").is_ok_and(|answer| answer == "1\n")
        });
        let why = match ended {
            Some(Ok(status)) => Some(status.to_string()),
            Some(Err(error)) => return Err(error),
            None => ready.err().map(|error| error.to_string()),
        };
        if let Some(why) = why {
            let errors = log_tail(&self.scratch.path().join("errors"));
            return Err(ServerError::Start {
                server: "ClickHouse".to_owned(),
                why,
                log: format!("{}\n{errors}", log_tail(&log)),
            });
        }
        self.process = Some(process);
        Ok(())
    }

    fn old_server(&self) -> Result<Command> {
        let program = server_folder("clickhouse-18/usr/sbin/clickhouse-server")?;
        let folder = self.scratch.path();
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(ServerError::io("configure ClickHouse"))
        };
        let (place, port, password) = (folder.display(), self.port, &self.password);
        let (host, limit) = (self.host, self.limit());
        let cluster = self.cluster.map_or_else(String::new, |(native, count)| {
            let shards: String = SHARDS
                .take(usize::from(count))
                .map(|number| {
                    format!("<shard><replica><host>127.0.0.{number}</host><port>{native}</port></replica></shard>")
                })
                .collect();
            format!("<tcp_port>{native}</tcp_port><remote_servers><shards>{shards}</shards></remote_servers>")
        });
        write(
            "config.xml",
            format!(
                "<yandex><logger><level>warning</level><log>{place}/log</log><errorlog>{place}/errors</errorlog></logger><http_port>{port}</http_port><listen_host>{host}</listen_host>{cluster}{limit}<path>{place}/data/</path><tmp_path>{place}/tmp/</tmp_path><users_config>{place}/users.xml</users_config><default_profile>default</default_profile><default_database>default</default_database><mark_cache_size>134217728</mark_cache_size><max_concurrent_queries>100</max_concurrent_queries></yandex>"
            ),
        )?;
        let networks = "<networks><ip>127.0.0.0/8</ip></networks><quota>default</quota>";
        write(
            "users.xml",
            format!(
                "<yandex><profiles><default/><reader><readonly>1</readonly></reader></profiles><quotas><default/></quotas><users><default><password>{password}</password>{networks}<profile>default</profile></default><reader><password>{password}</password>{networks}<profile>reader</profile></reader></users></yandex>"
            ),
        )?;
        let mut command = User::Current.command(&program, "KILL");
        command.arg(format!("--config-file={place}/config.xml"));
        Ok(command)
    }

    /// The limit on drops, as both versions configure it.
    fn limit(&self) -> String {
        self.droppable.map_or_else(String::new, |bytes| {
            format!("<max_table_size_to_drop>{bytes}</max_table_size_to_drop><max_partition_size_to_drop>{bytes}</max_partition_size_to_drop>")
        })
    }

    fn front(&self) -> Result<Command> {
        let python = install::program(server_folder("chdb/bin/python")?)?;
        let mut command = User::Current.command(&python, "KILL");
        let folder = self.scratch.path();
        let (configuration, place) = (folder.join("config.xml"), folder.display());
        let limit = self.limit();
        let more = match &self.configured {
            None => String::new(),
            Some((more, users)) => {
                let file = folder.join("users.xml");
                std::fs::write(&file, format!("<clickhouse>{users}</clickhouse>"))
                    .map_err(ServerError::io("configure ClickHouse"))?;
                format!("<users_config>{}</users_config>{more}", file.display())
            }
        };
        let text = format!(
            "<clickhouse>{limit}{more}<backups><allowed_path>{place}/backups</allowed_path><allowed_disk>backups</allowed_disk></backups><storage_configuration><disks><backups><type>local</type><path>{place}/disk/</path></backups></disks></storage_configuration></clickhouse>"
        );
        std::fs::write(&configuration, text).map_err(ServerError::io("configure ClickHouse"))?;
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("clickhouse/serve.py"))
            .arg(folder.join("data"))
            .arg(self.port.to_string())
            .arg(configuration);
        Ok(command)
    }

    /// The folder of its data.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// The folder below which the engine of today may put backups (`File`).
    #[must_use]
    pub fn backups(&self) -> PathBuf {
        self.scratch.path().join("backups")
    }

    /// The folder of its disk `backups`, where it may put them too (`Disk`).
    #[must_use]
    pub fn disk_of_backups(&self) -> PathBuf {
        self.scratch.path().join("disk")
    }

    /// Runs a statement as an operator does, and gives back the answer.
    ///
    /// # Errors
    ///
    /// [`ServerError::Unsupported`] with the server's error; [`ServerError::Io`] where it does not answer.
    pub fn query(&self, statement: &str) -> Result<String> {
        self.query_at(self.port, statement, "")
    }

    /// The same with settings, such as `&max_threads=1`.
    ///
    /// # Errors
    ///
    /// As [`ClickhouseServer::query`].
    pub fn query_with(&self, statement: &str, settings: &str) -> Result<String> {
        self.query_at(self.port, statement, settings)
    }

    fn query_at(&self, port: u16, statement: &str, settings: &str) -> Result<String> {
        let answered = post((self.host, port), &self.password, statement, settings);
        let (status, body) = answered.map_err(ServerError::io("ask ClickHouse"))?;
        if status == 200 {
            Ok(body)
        } else {
            Err(ServerError::Unsupported(format!("{statement}: {body}")))
        }
    }

    /// Kills the server at once and waits until it is gone.
    ///
    /// # Errors
    ///
    /// [`ServerError::TimedOut`] where it does not go.
    pub fn kill_9(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill_9(),
            None => Ok(()),
        }
    }

    /// Which one it is.
    #[must_use]
    pub fn version(&self) -> ClickhouseVersion {
        self.version
    }

    /// The loopback port; it stays the same over stops and starts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL, such as `clickhouse://127.0.0.1:20312/`, with user and password where there is one.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_via(self.port)
    }

    /// The same with another port: that of a proxy before this server.
    #[must_use]
    pub fn url_via(&self, port: u16) -> String {
        if self.password.is_empty() {
            format!("clickhouse://{}:{port}/", self.host)
        } else {
            format!(
                "clickhouse://default:{}@{}:{port}/",
                self.password, self.host
            )
        }
    }
}

/// Sends a statement; gives back the status and the body.
fn post(
    place: (Ipv4Addr, u16),
    password: &str,
    statement: &str,
    settings: &str,
) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(place)?;
    stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
    write!(
        stream,
        "POST /?database=default{settings} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {}\r\nX-ClickHouse-User: default\r\nX-ClickHouse-Key: {password}\r\n\r\n{statement}",
        statement.len()
    )?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| std::io::Error::other("no answer"))?;
    let (mut is_chunked, mut length) = (false, None);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let header = line.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        is_chunked |= header == "transfer-encoding: chunked";
        if let Some(text) = header.strip_prefix("content-length: ") {
            length = text.parse::<u64>().ok();
        }
    }
    let mut body = Vec::new();
    if is_chunked {
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let size = u64::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
            reader.by_ref().take(size).read_to_end(&mut body)?;
            line.clear();
            reader.read_line(&mut line)?;
            if size == 0 {
                break;
            }
        }
    } else {
        reader
            .take(length.unwrap_or(u64::MAX))
            .read_to_end(&mut body)?;
    }
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
