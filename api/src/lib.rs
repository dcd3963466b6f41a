//! The socket of the embedded size and the HTTP interface.
