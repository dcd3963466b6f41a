//! The stream of writes behind the RDB: archived as it comes ([`archive`]), and played on a restored backup
//! ([`restore`]), which [`serve`] does as a primary does it for its replica. [`scanner`] finds the commands in it.

pub(crate) mod archive;
mod join;
pub(crate) mod restore;
mod scanner;
mod serve;
