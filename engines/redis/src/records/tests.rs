//! Tests of the stored form, the order and the rows.
