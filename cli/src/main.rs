//! The `fettler` binary.

fn main() {}
