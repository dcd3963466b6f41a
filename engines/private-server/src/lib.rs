//! A server process of our own for a proof: in a folder that only its user may enter, as a user without rights on this
//! machine, and gone when this process is, however that ends.
//!
//! The server is started by a shell that waits for the end of a pipe whose other end is held here, and then ends the server: a
//! `kill -9` of this process closes the pipe too. What is recorded of a server, its folder and its [`Process`], is enough for
//! another process to end it and to remove its folder.

mod folder;
mod process;
mod server;
mod user;

pub use folder::{Place, free_bytes_of, make_folder};
pub use process::Process;
pub use server::{PrivateServer, wait_until_ready};
pub use user::User;
