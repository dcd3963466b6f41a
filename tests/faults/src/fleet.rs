//! The fleet under test: the real binary, eight processes of it, each on a machine's folder of its own, and between them and
//! their servers the proxies through which a plan makes trouble. Whoever dies is started again a moment later, as an init
//! system would do.

use std::{
    fs::File,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use fettler_fault_points::{Role, Rule};
use fettler_test_servers::{
    RedisServer, S3Proxy, SentinelRedis, TcpProxy, TestDatabase, free_port,
};
use fettler_tests::sqlite;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Result, Trouble, audit,
    plan::Plan,
    run::Options,
    scan,
    servers::{BUCKET, Servers, fake_clock},
};

/// How long a job belongs to a worker that is not heard of any more.
pub const LEASE: Duration = Duration::from_secs(3);
/// A dead process is started again after this time, unless the plan says otherwise.
const RESTART_AFTER: Duration = Duration::from_millis(500);
/// How long the fleet may take to be there, on a machine that is busy with other things.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a process may take to stop when it is asked to.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// A collection by the policies' upkeep, or one that the plan asks for, leaves alone what is younger: longer than a lease
/// and a takeover, so that a worker that dies does not lose its backup to it.
pub const GRACE_SECONDS: u64 = 10;
/// Bytes of the databases in SQLite.
const BANK_BYTES: u64 = 4 << 20;
/// Looks at a condition are this far apart.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A file of a worker whose disk is full grows no further than this.
const FULL_DISK_BYTES: u32 = 64 * 1024;
/// Lines of logs in an error.
const LOG_TAIL_LINES: usize = 12;

/// A place in the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// What runs there.
    pub role: Role,
    /// Which of its role, from 0.
    pub number: usize,
}

const fn slot(role: Role, number: usize) -> Slot {
    Slot { role, number }
}

/// The whole fleet.
pub const SLOTS: [Slot; 8] = [
    slot(Role::Api, 0),
    slot(Role::Api, 1),
    slot(Role::Scheduler, 0),
    slot(Role::Scheduler, 1),
    slot(Role::Worker, 0),
    slot(Role::Worker, 1),
    slot(Role::Worker, 2),
    slot(Role::Worker, 3),
];

impl Slot {
    /// Its name: also that of its role in the ledger's server, so that the ledger's rows tell who wrote them.
    #[must_use]
    pub fn name(self) -> String {
        let role = match self.role {
            Role::Worker => "worker",
            Role::Scheduler => "scheduler",
            Role::Api => "api",
        };
        format!("{role}_{}", self.number)
    }

    /// Its place in [`SLOTS`].
    #[must_use]
    pub fn index(self) -> usize {
        SLOTS
            .iter()
            .position(|other| *other == self)
            .expect("every slot stands in the list")
    }
}

/// The databases that are backed up.
pub const DATABASES: [&str; 3] = ["still", "busy", "shop"];
/// One more in a directed run: so large that its restore saves a checkpoint in the ledger.
pub const LARGE: &str = "large";
/// Its bytes.
const LARGE_BYTES: u64 = 36 << 20;

/// A process and what becomes of it.
#[derive(Debug)]
pub struct Seat {
    /// Its place.
    pub slot: Slot,
    child: Option<Child>,
    /// How often it was started.
    pub starts: u32,
    /// When it is started again.
    start_at: Option<Instant>,
    /// Where an interface listens.
    pub address: String,
    /// Whether it is stopped by SIGSTOP.
    pub frozen: bool,
    /// The points at which it ends, for its first start.
    armed: Option<String>,
    /// Whether it is of the previous build.
    is_previous: bool,
    /// When it was seen to die, of the plan or of a point.
    pub deaths: u32,
}

/// A fleet.
#[derive(Debug)]
pub struct Fleet<'s> {
    // Dropped first: processes before what they use.
    /// Its processes.
    pub seats: Vec<Seat>,
    /// The servers.
    pub servers: &'s mut Servers,
    /// The lines to the ledger, one a process.
    pub lines: Vec<TcpProxy>,
    /// The line to Redis, where no sentinels say where it is.
    pub wire: TcpProxy,
    /// The run's own Redis, with a replica and a sentinel, where the plan has one.
    sentinels: Option<SentinelRedis>,
    /// The port of the master of these, as it was last seen.
    master: Option<u16>,
    /// How often a replica was seen to have taken the master's place.
    pub failovers: u64,
    /// The line to the store.
    pub store: S3Proxy,
    /// The ledger.
    pub ledger: Arc<TestDatabase>,
    /// The fleet's own name: in Redis, in the store, and in the environment of everything that it starts.
    pub id: String,
    /// The interface's token.
    pub token: String,
    binary: PathBuf,
    previous: Option<PathBuf>,
    /// A rule that is left out.
    pub without: Option<Rule>,
    /// Points at which every process of a role ends once, as long as nobody has ended there.
    directed: bool,
    faked: Vec<Slot>,
    folder: TempDir,
}

impl<'s> Fleet<'s> {
    /// Sets a fleet up and starts it. `directed` makes each named point end whoever is the first to reach it.
    ///
    /// # Errors
    ///
    /// When anything does not start.
    pub fn start(
        servers: &'s mut Servers,
        id: &str,
        plan: &Plan,
        options: &Options,
    ) -> Result<Self> {
        servers.all_up()?;
        servers.give_ledger_a_clock(plan.sets_ledger_clock())?;
        servers.redis.flush_all()?;
        let folder =
            TempDir::with_prefix("fettler-faults-").map_err(Trouble::io("make a folder"))?;
        for name in [
            "scratch", "logs", "latches", "clocks", "machines", "restored",
        ] {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).map_err(Trouble::io(format!("make {}", path.display())))?;
        }
        let ledger = Arc::new(servers.ledger.create_database("ledger")?);
        servers.ledger.psql(
            ledger.name(),
            &format!(
                "ALTER DATABASE {} OWNER TO fleet; ALTER SCHEMA public OWNER TO fleet;",
                ledger.name()
            ),
        )?;
        let lines = SLOTS
            .iter()
            .map(|_| TcpProxy::start(servers.ledger.port()))
            .collect::<Result<_, _>>()?;
        let wire = TcpProxy::start(servers.redis.port())?;
        let store = S3Proxy::start(servers.minio.port())?;
        let sentinels = match plan.sentinels {
            true => Some(SentinelRedis::start(&servers.secrets.redis_password)?),
            false => None,
        };
        let seats = SLOTS
            .iter()
            .map(|slot| Seat {
                slot: *slot,
                child: None,
                starts: 0,
                start_at: None,
                address: format!("127.0.0.1:{}", free_port()),
                frozen: false,
                armed: plan.armed(*slot),
                is_previous: options.previous.is_some(),
                deaths: 0,
            })
            .collect();
        let mut fleet = Self {
            seats,
            servers,
            lines,
            wire,
            master: sentinels.as_ref().and_then(SentinelRedis::master_port),
            failovers: 0,
            sentinels,
            store,
            ledger,
            id: id.to_owned(),
            token: String::new(),
            binary: options.binary.clone(),
            previous: options.previous.clone(),
            without: options.without,
            directed: plan.directed,
            faked: plan.faked.clone(),
            folder,
        };
        fleet.settle_in(plan.rates[0])?;
        for index in 0..SLOTS.len() {
            fleet.spawn(index)?;
        }
        fleet.wait_until_ready()?;
        Ok(fleet)
    }

    /// A path in the run's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn queue_url(&self) -> String {
        match &self.sentinels {
            Some(sentinels) => sentinels.url(),
            None => self.servers.redis.url_via(self.wire.port()),
        }
    }

    fn redis(&mut self) -> Option<&mut RedisServer> {
        match &mut self.sentinels {
            Some(sentinels) => sentinels.master(),
            None => Some(&mut self.servers.redis),
        }
    }

    /// `kill -9` of Redis: of the master, where there are two.
    ///
    /// # Errors
    ///
    /// When it does not go.
    pub fn kill_redis(&mut self) -> Result<()> {
        Ok(self.redis().map_or(Ok(()), RedisServer::kill_9)?)
    }

    /// `FLUSHALL`. It may be dead at this moment, and forgets all the same.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn flush_redis(&mut self) -> Result<()> {
        match self.redis() {
            Some(redis) if redis.pid().is_some() => Ok(redis.flush_all()?),
            _ => Ok(()),
        }
    }

    /// Starts Redis again; where there are sentinels, once they have put the replica in the place of the one that is dead.
    ///
    /// # Errors
    ///
    /// When it does not start, or is not replaced.
    pub fn start_redis(&mut self) -> Result<()> {
        let Some(sentinels) = &mut self.sentinels else {
            return Ok(self.servers.redis.start_again()?);
        };
        sentinels.wait_for_master()?;
        let master = sentinels.master_port();
        if master.is_some() && master != self.master {
            self.failovers += 1;
            self.master = master;
        }
        Ok(sentinels.start_again()?)
    }

    /// Makes the databases, the records, the policies and the token.
    fn settle_in(&mut self, rate: u64) -> Result<()> {
        let rate = format!("max_bytes_per_second={rate}");
        self.servers.make_repository(&self.id)?;
        for name in ["still", "busy"] {
            sqlite::make_bank(&self.path(&format!("{name}.sqlite")), BANK_BYTES);
        }
        // The first command makes the ledger's tables; the others may run beside each other.
        let still = self.path("still.sqlite").display().to_string();
        self.cli(&["database", "add", "still", &still])?;
        self.ledger.psql(audit::INSTALL)?;
        let busy = self.path("busy.sqlite").display().to_string();
        let shop = self.servers.source_url("shop");
        let large = self.path("large.sqlite").display().to_string();
        let mut commands: Vec<Vec<&str>> = vec![
            vec!["database", "add", "busy", &busy],
            vec!["database", "add", "shop", &shop],
            vec!["limit", "set", "3", "--kind", "backup"],
            vec![
                "policy",
                "add",
                "pings",
                "--database",
                "still",
                "--kind",
                "ping",
                "--cron",
                "*/2 * * * * *",
                "--catch-up",
                "skip",
            ],
            vec![
                "policy",
                "add",
                "stills",
                "--database",
                "still",
                "--kind",
                "backup",
                "--cron",
                "*/3 * * * * *",
                "--catch-up",
                "all",
                "--overlap",
                "skip",
                "--keep-last",
                "3",
                "--prove",
                "daily",
                "--argument",
                &rate,
            ],
        ];
        if self.directed {
            sqlite::make_bank(Path::new(&large), LARGE_BYTES);
            commands.push(vec!["database", "add", LARGE, &large]);
        }
        std::thread::scope(|scope| {
            let running: Vec<_> = commands
                .iter()
                .map(|command| scope.spawn(|| self.cli(command)))
                .collect();
            running.into_iter().try_for_each(|one| {
                one.join()
                    .expect("a command's thread does not panic")
                    .map(drop)
            })
        })?;
        self.cli(&[
            "policy",
            "add",
            "busies",
            "--database",
            "busy",
            "--kind",
            "backup",
            "--cron",
            "*/4 * * * * *",
            "--catch-up",
            "once",
            "--overlap",
            "queue",
            "--argument",
            &rate,
            "--keep-last",
            "2",
        ])?;
        let token = self.cli(&[
            "token",
            "add",
            "clients",
            "--role",
            "admin",
            "--all-tenants",
        ])?;
        let text = token["text"].as_str();
        self.token = text
            .ok_or_else(|| Trouble::unreadable("the token", &token))?
            .to_owned();
        Ok(())
    }

    /// Runs a command of Fettler's that no fault touches, and gives its JSON document.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn cli(&self, arguments: &[&str]) -> Result<Value> {
        let ledger = self
            .ledger
            .url_as("fleet", &self.servers.secrets.ledger_password);
        // Nobody upgrades the command line before the first process.
        let is_previous = self.seats.iter().all(|seat| seat.is_previous);
        let mut command = self.command(Command::new(self.binary(is_previous)), "cli", &ledger);
        command.args(arguments).arg("--json").stdin(Stdio::null());
        let output = command.output().map_err(Trouble::io("start fettler"))?;
        let code = output.status.code().unwrap_or(-1);
        if code != 0 {
            return Err(Trouble::Command {
                // A database's URL holds its password.
                command: arguments[..arguments.len().min(3)].join(" "),
                code,
                said: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| Trouble::unreadable("what a command answered", error))
    }

    /// A command with the settings of the fleet, and nothing of this process' own.
    fn command(&self, mut command: Command, machine: &str, ledger: &str) -> Command {
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            let is_ours = name == scan::MARK;
            if (name.starts_with("FETTLER_") && !name.starts_with("FETTLER_TEST_") && !is_ours)
                || name.starts_with("AWS_")
                || name.starts_with("OTEL_")
            {
                command.env_remove(&*name);
            }
        }
        let seconds = |duration: Duration| duration.as_secs().to_string();
        command
            .current_dir(self.folder.path())
            .env(scan::MARK, &self.id)
            .env("NO_COLOR", "1")
            .env("FETTLER_FOLDER", self.path("machines").join(machine))
            .env("FETTLER_LEDGER__URL", ledger)
            .env("FETTLER_QUEUE__URL", self.queue_url())
            .env("FETTLER_QUEUE__FLEET", &self.id)
            .env("FETTLER_REPOSITORY", format!("s3://{BUCKET}/{}", self.id))
            .env("FETTLER_KEYS__FILE", self.path("data.key"))
            .env("FETTLER_KEYS__SECRETS_FILE", self.path("secrets.key"))
            .env("FETTLER_WORKER__NAME", machine)
            .env("FETTLER_WORKER__LEASE_SECONDS", seconds(LEASE))
            .env("FETTLER_WORKER__HEARTBEAT_SECONDS", "1")
            .env("FETTLER_WORKER__SCRATCH", self.path("scratch"))
            .env("FETTLER_WORKER__LONG_SLOTS", "3")
            .env("FETTLER_WORKER__DRAIN_SECONDS", "5")
            .env("FETTLER_SCHEDULER__LEASE_SECONDS", "3")
            .env(
                "FETTLER_RETENTION__COLLECTION_GRACE_SECONDS",
                GRACE_SECONDS.to_string(),
            )
            .env("FETTLER_API__REQUESTS_PER_SECOND", "1000");
        command.envs(self.servers.minio.env_via(&self.store.url()));
        if let Some(rule) = self.without {
            command.env("FETTLER_FAULT_WITHOUT", rule.name());
        }
        command
    }

    fn spawn(&mut self, index: usize) -> Result<()> {
        let slot = self.seats[index].slot;
        let name = slot.name();
        let url = self
            .ledger
            .url_as(&name, &self.servers.secrets.ledger_password);
        let ledger = url.replace(
            &format!(":{}/", self.servers.ledger.port()),
            &format!(":{}/", self.lines[index].port()),
        );
        // It dies with the harness, and a disk that is full gives an error instead of a signal.
        let mut program = Command::new("setpriv");
        program.args(["--pdeathsig", "KILL", "--", "env", "--ignore-signal=XFSZ"]);
        program.arg(self.binary(self.seats[index].is_previous));
        let mut command = self.command(program, &name, &ledger);
        let seat = &mut self.seats[index];
        match slot.role {
            Role::Worker => command.arg("worker"),
            Role::Scheduler => command.arg("scheduler"),
            Role::Api => command.args(["api", "--listen", &seat.address]),
        };
        if self.directed {
            command.env("FETTLER_FAULT_POINT", crate::plan::all_points(slot.role));
            command.env("FETTLER_FAULT_LATCHES", self.folder.path().join("latches"));
        } else if let Some(armed) = seat.armed.take() {
            command.env("FETTLER_FAULT_POINT", armed);
            command.env("FETTLER_FAULT_LATCHES", self.folder.path().join("latches"));
        }
        if self.faked.contains(&slot) {
            let clock = self.folder.path().join("clocks").join(&name);
            if !clock.exists() {
                std::fs::write(&clock, "+0").map_err(Trouble::io("write a clock"))?;
            }
            command.envs(fake_clock(&clock)?);
        }
        seat.starts += 1;
        seat.start_at = None;
        seat.frozen = false;
        let log = self
            .folder
            .path()
            .join("logs")
            .join(format!("{name}.{}.log", seat.starts));
        let out = File::create(&log).map_err(Trouble::io(format!("write {}", log.display())))?;
        let err = out.try_clone().map_err(Trouble::io("share a log"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(Trouble::io("start a process of the fleet"))?;
        seat.child = Some(child);
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            let ready = self
                .seats
                .iter()
                .filter(|seat| seat.slot.role == Role::Api)
                .all(|seat| TcpStream::connect(&seat.address).is_ok());
            if ready {
                return Ok(());
            }
            if began.elapsed() > READY_WITHIN {
                return Err(self.not_ready("the interfaces do not answer", READY_WITHIN));
            }
            self.supervise()?;
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// An error with the end of the logs.
    #[must_use]
    pub fn not_ready(&self, what: &str, within: Duration) -> Trouble {
        let mut log = String::new();
        for (name, text) in self.logs() {
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
            log.push_str(&format!("--- {name}\n{}\n", tail.join("\n")));
        }
        Trouble::NotReady {
            what: what.to_owned(),
            seconds: within.as_secs(),
            log,
        }
    }

    /// Notices who has died, and starts whose time has come.
    ///
    /// # Errors
    ///
    /// When a process cannot be started.
    pub fn supervise(&mut self) -> Result<()> {
        let is_upgraded = self.seats.iter().any(|seat| !seat.is_previous);
        for index in 0..self.seats.len() {
            let seat = &mut self.seats[index];
            if let Some(child) = &mut seat.child {
                let ended = child
                    .try_wait()
                    .map_err(Trouble::io("look at a process of the fleet"))?;
                if ended.is_some() {
                    seat.child = None;
                    seat.deaths += 1;
                    // Whoever starts it again has the new build by then.
                    seat.is_previous &= !is_upgraded;
                    seat.start_at
                        .get_or_insert_with(|| Instant::now() + RESTART_AFTER);
                }
            }
            let is_due = seat.start_at.is_some_and(|at| at <= Instant::now());
            if seat.child.is_none() && is_due {
                self.spawn(index)?;
            }
        }
        Ok(())
    }

    /// Starts at once whoever is down, and waits until the interfaces answer.
    ///
    /// # Errors
    ///
    /// When a process cannot be started, or the fleet does not come back.
    pub fn start_all(&mut self) -> Result<()> {
        for seat in &mut self.seats {
            seat.start_at = Some(Instant::now());
        }
        self.wait_until_ready()
    }

    fn binary(&self, is_previous: bool) -> &Path {
        match &self.previous {
            Some(previous) if is_previous => previous,
            _ => &self.binary,
        }
    }

    /// Asks a process of the previous build to stop; one of the new build takes its place.
    ///
    /// # Errors
    ///
    /// When it cannot be signalled.
    pub fn upgrade(&mut self, slot: Slot) -> Result<()> {
        let seat = &mut self.seats[slot.index()];
        seat.is_previous = false;
        seat.start_at.get_or_insert_with(Instant::now);
        self.signal(slot, Signal::TERM)
    }

    /// Kills a process as a power cut would; it is started again after `down`.
    ///
    /// # Errors
    ///
    /// When it cannot be signalled.
    pub fn kill(&mut self, slot: Slot, down: Duration) -> Result<()> {
        self.seats[slot.index()].start_at = Some(Instant::now() + down);
        self.signal(slot, Signal::KILL)
    }

    /// Stops a process where it stands, or lets it go on.
    ///
    /// # Errors
    ///
    /// When it cannot be signalled.
    pub fn freeze(&mut self, slot: Slot, freeze: bool) -> Result<()> {
        let seat = &mut self.seats[slot.index()];
        if seat.child.is_none() {
            seat.frozen = false;
            return Ok(());
        }
        seat.frozen = freeze;
        self.signal(slot, if freeze { Signal::STOP } else { Signal::CONT })
    }

    fn signal(&self, slot: Slot, signal: Signal) -> Result<()> {
        let Some(child) = &self.seats[slot.index()].child else {
            return Ok(());
        };
        match rustix::process::kill_process(Pid::from_child(child), signal) {
            // It has ended by itself, and is waited for at the next look.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Trouble::io(format!("send {signal:?}"))(error.into())),
        }
    }

    /// Lets no file of a process grow, or lets them again.
    ///
    /// # Errors
    ///
    /// When the limit cannot be set.
    pub fn fill_disk(&self, slot: Slot, full: bool) -> Result<()> {
        let Some(child) = &self.seats[slot.index()].child else {
            return Ok(());
        };
        let limit = if full {
            FULL_DISK_BYTES.to_string()
        } else {
            "unlimited".to_owned()
        };
        let output = Command::new("prlimit")
            .args(["--pid", &child.id().to_string()])
            .arg(format!("--fsize={limit}:"))
            .output()
            .map_err(Trouble::io("start prlimit"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        // A process that has just died has no limits.
        if output.status.success() || said.contains("No such process") {
            Ok(())
        } else {
            Err(Trouble::unreadable("prlimit", said))
        }
    }

    /// Sets the clock of a process that has one of its own.
    ///
    /// # Errors
    ///
    /// When its file cannot be written.
    pub fn set_clock(&self, slot: Slot, ahead_seconds: i64) -> Result<()> {
        let clock = self.path("clocks").join(slot.name());
        std::fs::write(&clock, format!("{ahead_seconds:+}")).map_err(Trouble::io("set a clock"))
    }

    /// A command of another fleet, with a ledger of its own, on the same repository.
    #[must_use]
    pub fn elsewhere(&self, arguments: &[&str]) -> Command {
        let folder = self.path("elsewhere");
        let ledger = format!("sqlite:{}", folder.join("ledger.db").display());
        let mut command = self.command(Command::new(&self.binary), "elsewhere", &ledger);
        command
            .env("FETTLER_FOLDER", &folder)
            .env("FETTLER_WORKER__SCRATCH", folder.join("scratch"))
            .env_remove("FETTLER_QUEUE__URL")
            .env_remove("FETTLER_QUEUE__FLEET")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Asks every process to stop, as an init system does. Gives back those that did not end well.
    ///
    /// # Errors
    ///
    /// When they cannot be signalled.
    pub fn stop(&mut self) -> Result<Vec<String>> {
        for slot in SLOTS {
            self.seats[slot.index()].start_at = None;
            self.signal(slot, Signal::TERM)?;
        }
        let began = Instant::now();
        let mut wrong = Vec::new();
        for seat in &mut self.seats {
            let Some(mut child) = seat.child.take() else {
                continue;
            };
            let code = loop {
                let ended = child
                    .try_wait()
                    .map_err(Trouble::io("wait for a process"))?;
                if let Some(status) = ended {
                    break status.code();
                }
                if began.elapsed() > STOP_WITHIN {
                    let _ = child.kill();
                    child.wait().map_err(Trouble::io("wait for a process"))?;
                    break None;
                }
                std::thread::sleep(LOOK_EVERY);
            };
            if code != Some(0) {
                wrong.push(format!("{} ended with {code:?}", seat.slot.name()));
            }
        }
        Ok(wrong)
    }

    /// All that the processes have told so far.
    #[must_use]
    pub fn logs(&self) -> Vec<(String, String)> {
        let mut logs: Vec<(String, String)> = std::fs::read_dir(self.path("logs"))
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let text = std::fs::read(entry.path()).ok()?;
                let name = entry.file_name().to_string_lossy().into_owned();
                Some((name, String::from_utf8_lossy(&text).into_owned()))
            })
            .collect();
        logs.sort();
        logs
    }

    /// The points at which a process has ended.
    #[must_use]
    pub fn points_hit(&self) -> Vec<String> {
        let mut hit: Vec<String> = std::fs::read_dir(self.path("latches"))
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        hit.sort();
        hit
    }

    /// Keeps the run's folder, for whoever looks into what went wrong.
    #[must_use]
    pub fn keep_folder(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }
}

impl Drop for Fleet<'_> {
    fn drop(&mut self) {
        for seat in &mut self.seats {
            if let Some(mut child) = seat.child.take() {
                // It may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        let _ = self.servers.forget_objects(&self.id);
    }
}
