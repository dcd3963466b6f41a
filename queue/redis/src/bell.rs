//! Wake-ups without polling: a subscription on a connection of its own. It is tried by a ping now and then, since a connection
//! that died without a word looks like one on which nothing happens. After each new subscription something is said to have
//! arrived: what was rung meanwhile was not heard.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use fettler_ledger::Wakeups;
use fettler_queue::Arrivals;
use futures::StreamExt as _;
use redis::{ErrorKind, RedisError, aio::PubSub};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::link::Link;

/// The first pause before another subscription; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often the connection is tried.
const PING_EVERY: Duration = Duration::from_secs(3);

/// Listens until it is stopped. Whether Redis is there is for the keeper to say.
pub(crate) async fn listen(link: Arc<Link>, stop: CancellationToken) {
    let mut pause = FIRST_PAUSE;
    loop {
        let heard = async {
            let subscription = subscribe(&link).await?;
            pause = FIRST_PAUSE;
            link.ring();
            hear(&link, subscription).await
        };
        let error = tokio::select! {
            heard = heard => heard.err(),
            () = stop.cancelled() => return,
        };
        if let Some(error) = error {
            tracing::debug!(%error, "the subscription to the queue's Redis broke");
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn subscribe(link: &Link) -> Result<PubSub, RedisError> {
    let client = link.client().await?;
    let connect = async {
        let mut subscription = client.get_async_pubsub().await?;
        subscription.subscribe(format!("{}bell", link.base)).await?;
        Ok(subscription)
    };
    tokio::time::timeout(link.options.connect_within, connect)
        .await
        .unwrap_or_else(|_| Err(silent()))
}

/// Passes rings on until the connection ends.
async fn hear(link: &Link, subscription: PubSub) -> Result<(), RedisError> {
    let (mut sink, mut stream) = subscription.split();
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = stream.next() => match message {
                Some(_) => link.ring(),
                None => return Ok(()),
            },
            _ = ping.tick() => {
                tokio::time::timeout(link.options.answer_within, sink.ping::<redis::Value>())
                    .await
                    .unwrap_or_else(|_| Err(silent()))?;
            }
        }
    }
}

fn silent() -> RedisError {
    RedisError::from((ErrorKind::Io, "no answer in time"))
}

/// Rings, and what this process itself has written to the ledger: delayed jobs are known only there.
#[derive(Debug)]
pub(crate) struct RedisArrivals {
    pub(crate) bell: watch::Receiver<u64>,
    pub(crate) ledger: Wakeups,
}

#[async_trait]
impl Arrivals for RedisArrivals {
    async fn next(&mut self) {
        tokio::select! {
            rung = self.bell.changed() => if rung.is_err() {
                // The queue is gone: nothing will arrive any more.
                std::future::pending::<()>().await;
            },
            () = self.ledger.changed() => {}
        }
    }
}
