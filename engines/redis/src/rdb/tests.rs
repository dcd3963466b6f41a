//! Tests of the format against hand-made bytes and the real server.
