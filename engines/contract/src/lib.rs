//! What every database engine implements.
