//! Waiting for conditions, and ports to listen on.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::{Result, ServerError};

/// Between two looks at a condition: short beside what is waited for, long beside what a look costs.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits until `condition` holds, looking at it every few milliseconds. This takes the place of sleeping for luck.
///
/// # Errors
///
/// [`ServerError::TimedOut`], which names `what`, when it does not hold within `timeout`. It is looked at once more at the
/// very end, so that a machine that stood still for a while does not fail a test.
pub fn wait_until(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> bool,
) -> Result<()> {
    let started = Instant::now();
    loop {
        let late = started.elapsed() >= timeout;
        if condition() {
            return Ok(());
        }
        if late {
            return Err(ServerError::TimedOut {
                what: what.to_owned(),
                after: timeout,
            });
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Ports to choose from: below those that Linux gives to outgoing connections (32768 and up), since one of these could
/// otherwise take the port of a server while a test has it stopped.
const PORTS: Range<u16> = 15_000..32_000;

/// Ports that this process has handed out: none twice, since a server may be stopped when the next one asks.
static HANDED_OUT: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A loopback port that nobody listens on, which this process has not handed out before.
///
/// Another process may still take it before it is used; the servers of this crate then try again with another one.
///
/// # Panics
///
/// When no port of some ten thousand is free.
#[must_use]
pub fn free_port() -> u16 {
    // Several test binaries run at once: each starts its search elsewhere.
    let nanoseconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    let seed = std::process::id()
        .wrapping_mul(7919)
        .wrapping_add(nanoseconds);
    let count = u32::from(PORTS.end - PORTS.start);
    let mut handed_out = HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    for step in 0..count {
        let offset = seed.wrapping_add(step) % count;
        let port =
            PORTS.start + u16::try_from(offset).expect("an offset within a range of ports fits");
        if !handed_out.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            handed_out.insert(port);
            return port;
        }
    }
    panic!("no free loopback port in {PORTS:?}");
}
