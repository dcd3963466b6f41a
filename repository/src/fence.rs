//! The question that is asked before each durable effect: is this attempt still the newest (P2)?

use async_trait::async_trait;
use fettler_model::Problem;

/// Says whether the attempt on whose behalf the repository writes may go on.
#[async_trait]
pub trait Fence: Send + Sync {
    /// Waits while that is in doubt; the problem when it may not. Cheap while the lease is fresh.
    async fn check(&self) -> Result<(), Problem>;
}

/// A fence for work that nobody else can take up.
#[derive(Debug, Clone, Copy)]
pub struct Unfenced;

#[async_trait]
impl Fence for Unfenced {
    async fn check(&self) -> Result<(), Problem> {
        Ok(())
    }
}
