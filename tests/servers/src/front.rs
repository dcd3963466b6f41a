//! What the two proxies have in common: a loopback port before a server, a thread a connection, and a list of the open ones,
//! so that a test can cut them.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::{Result, ServerError};

/// A listening port whose connections are each served by a thread, together with one to the server behind.
#[derive(Debug)]
pub(crate) struct Front {
    port: u16,
    connections: Arc<Connections>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
pub(crate) struct Connections {
    /// Both ends of each open connection, by its number.
    open: Mutex<HashMap<u64, [TcpStream; 2]>>,
    accepted: AtomicU64,
    refusing: AtomicBool,
    closing: AtomicBool,
}

impl Connections {
    /// Cuts all that are open. New ones are accepted.
    pub(crate) fn cut(&self) {
        for (_, ends) in self
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain()
        {
            cut(&ends);
        }
    }
}

/// Ends both directions at both ends. An end that is closed already is what was wanted.
fn cut(ends: &[TcpStream; 2]) {
    for end in ends {
        let _ = end.shutdown(Shutdown::Both);
    }
}

impl Front {
    /// Listens, and serves each connection with `serve(client, server)`, which returns when it is at its end.
    pub(crate) fn start(
        server_port: u16,
        connections: Arc<Connections>,
        serve: impl Fn(TcpStream, TcpStream) + Send + Sync + 'static,
    ) -> Result<Self> {
        // The kernel chooses: nobody restarts a proxy on the same port.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .map_err(ServerError::io("listen on loopback"))?;
        let port = listener
            .local_addr()
            .map_err(ServerError::io("learn the proxy's port"))?
            .port();
        let shared = Arc::clone(&connections);
        let serve = Arc::new(serve);
        let accepting = std::thread::spawn(move || {
            for client in listener.incoming() {
                if shared.closing.load(Ordering::SeqCst) {
                    break;
                }
                // A client that went away while it was accepted, or one that is refused: closed by being dropped.
                let Ok(client) = client else { continue };
                if shared.refusing.load(Ordering::SeqCst) {
                    continue;
                }
                // A server that is stopped looks to the client like one that closes the connection at once.
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)) else {
                    continue;
                };
                let (Ok(client_end), Ok(server_end)) = (client.try_clone(), server.try_clone())
                else {
                    continue;
                };
                // Small packets are passed on at once, as they would be without a proxy.
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
                let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
                open.insert(number, [client_end, server_end]);
                drop(open);
                let (shared, serve) = (Arc::clone(&shared), Arc::clone(&serve));
                std::thread::spawn(move || {
                    serve(client, server);
                    let ends = shared
                        .open
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .remove(&number);
                    if let Some(ends) = ends {
                        cut(&ends);
                    }
                });
            }
        });
        Ok(Self {
            port,
            connections,
            accepting: Some(accepting),
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.connections.accepted.load(Ordering::SeqCst)
    }

    pub(crate) fn cut(&self) {
        self.connections.cut();
    }

    pub(crate) fn refuse(&self, refuse: bool) {
        self.connections.refusing.store(refuse, Ordering::SeqCst);
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.connections.closing.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts. Where this fails, that thread has ended.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        self.cut();
    }
}
