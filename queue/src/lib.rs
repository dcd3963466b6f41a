//! Delivery of job ids.
