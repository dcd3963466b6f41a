//! A bad network on purpose: a TCP proxy before a server, whose connections a test can cut, stall, delay and throttle, and
//! which counts the bytes that pass.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::front::{Connections, Front};
use crate::{Result, wait_until};

/// The largest piece that is passed on at once. Small, so that a cut or a limit takes effect within few bytes.
const PIECE_BYTES: usize = 16 * 1024;

/// A proxy on a loopback port of its own. Dropping it cuts its connections.
#[derive(Debug)]
pub struct TcpProxy {
    front: Front,
    line: Arc<Line>,
}

/// The state of the line, which all connections share.
#[derive(Debug, Default)]
struct Line {
    faults: Mutex<Faults>,
    changed: Condvar,
    connections: Arc<Connections>,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    stalled: bool,
    delay: Duration,
    bytes_per_second: Option<u64>,
    /// Bytes to the server that still pass before everything is cut.
    to_server_left: Option<u64>,
    to_client_left: Option<u64>,
    closing: bool,
}

#[derive(Clone, Copy)]
enum Direction {
    ToServer,
    ToClient,
}

impl TcpProxy {
    /// Starts a proxy before the server on a loopback port.
    ///
    /// # Errors
    ///
    /// [`crate::ServerError::Io`] where no port can be had.
    pub fn start(server_port: u16) -> Result<Self> {
        let line = Arc::new(Line::default());
        let shared = Arc::clone(&line);
        let front = Front::start(
            server_port,
            Arc::clone(&line.connections),
            move |client, server| {
                let (Ok(client_reader), Ok(server_reader)) =
                    (client.try_clone(), server.try_clone())
                else {
                    return;
                };
                std::thread::scope(|scope| {
                    scope.spawn(|| shared.pass(client_reader, &server, Direction::ToServer));
                    scope.spawn(|| shared.pass(server_reader, &client, Direction::ToClient));
                });
            },
        )?;
        Ok(Self { front, line })
    }

    /// The port that clients connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.front.port()
    }

    /// How many connections were accepted so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.front.accepted()
    }

    /// How many bytes went from clients to the server.
    #[must_use]
    pub fn bytes_to_server(&self) -> u64 {
        self.line.to_server.load(Ordering::SeqCst)
    }

    /// How many bytes went from the server to clients.
    #[must_use]
    pub fn bytes_to_client(&self) -> u64 {
        self.line.to_client.load(Ordering::SeqCst)
    }

    /// Cuts every open connection. New ones are accepted.
    pub fn cut(&self) {
        self.front.cut();
    }

    /// Closes new connections at once, or takes them again.
    pub fn refuse(&self, refuse: bool) {
        self.front.refuse(refuse);
    }

    /// Lets nothing pass while connections stay open, as a network does that loses every packet; or lets it pass again.
    pub fn stall(&self, stall: bool) {
        self.line.change(|faults| faults.stalled = stall);
    }

    /// Holds each piece of up to 16 KiB back for this long, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.line.change(|faults| faults.delay = delay);
    }

    /// Limits each direction of each connection, or, with `None`, does not.
    pub fn throttle(&self, bytes_per_second: Option<u64>) {
        self.line
            .change(|faults| faults.bytes_per_second = bytes_per_second);
    }

    /// Cuts every connection once this many more bytes have gone to the server; exactly these arrive.
    pub fn cut_after_bytes_to_server(&self, bytes: u64) {
        self.line
            .change(|faults| faults.to_server_left = Some(bytes));
    }

    /// Cuts every connection once this many more bytes have gone to clients; exactly these are sent on.
    pub fn cut_after_bytes_to_client(&self, bytes: u64) {
        self.line
            .change(|faults| faults.to_client_left = Some(bytes));
    }

    /// Waits until this many bytes, counted from the start, have gone to clients.
    ///
    /// # Errors
    ///
    /// [`crate::ServerError::TimedOut`].
    pub fn wait_for_bytes_to_client(&self, bytes: u64, timeout: Duration) -> Result<()> {
        wait_until("bytes to pass the proxy", timeout, || {
            self.bytes_to_client() >= bytes
        })
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        // Wakes connections that are stalled, so that their threads end.
        self.line.change(|faults| faults.closing = true);
    }
}

impl Line {
    fn change(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Passes bytes on until either side closes; then the other side is told that no more will come.
    fn pass(&self, mut from: TcpStream, mut to: &TcpStream, direction: Direction) {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let length = match from.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                // Cut, here or there.
                Err(_) => break,
            };
            let (allowed, cut) = self.admit(length, direction);
            if to.write_all(&piece[..allowed]).is_err() {
                break;
            }
            let counter = match direction {
                Direction::ToServer => &self.to_server,
                Direction::ToClient => &self.to_client,
            };
            counter.fetch_add(
                u64::try_from(allowed).expect("a piece is small"),
                Ordering::SeqCst,
            );
            if cut {
                self.connections.cut();
                return;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
    }

    /// Waits as long as the faults say. Gives back how much of the piece passes, and whether all is cut after it.
    fn admit(&self, length: usize, direction: Direction) -> (usize, bool) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        while faults.stalled && !faults.closing {
            faults = self
                .changed
                .wait(faults)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let left = match direction {
            Direction::ToServer => &mut faults.to_server_left,
            Direction::ToClient => &mut faults.to_client_left,
        };
        let (mut allowed, mut cut) = (length, false);
        if let Some(bytes) = left {
            allowed = usize::try_from(*bytes).map_or(length, |bytes| bytes.min(length));
            *bytes -= u64::try_from(allowed).expect("a piece is small");
            if *bytes == 0 {
                // Once: connections made after the cut pass.
                (*left, cut) = (None, true);
            }
        }
        let Faults {
            delay,
            bytes_per_second,
            ..
        } = *faults;
        drop(faults);
        let mut pause = delay;
        if let Some(rate) = bytes_per_second {
            pause += Duration::from_secs(1).mul_f64(allowed as f64 / rate.max(1) as f64);
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        (allowed, cut)
    }
}
