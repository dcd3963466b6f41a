//! Layered settings and secret references.
