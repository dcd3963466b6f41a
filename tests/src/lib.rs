//! What the end-to-end tests share: the built binary, an installation in a folder of its own, and
//! databases with content whose truth can be asked by other means than Fettler's.

mod fleet;
pub mod http;
mod installation;
mod otlp;
pub mod sqlite;

pub use fettler_test_servers as servers;
pub use fleet::{Shared, url_of};
pub use installation::{Answer, Installation, Running, Size};
pub use otlp::{OtlpReceiver, SeenSpan};
