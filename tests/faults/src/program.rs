//! The binary that is tried: it must end at named points (see `fault-points`), which only a build for tests does.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{Result, Trouble};

/// The binary of this very source with its fault points: the one that `FETTLER_TEST_BINARY` names (`tests/run` sets it to
/// what a build of the whole workspace has made, which has them), otherwise built now.
///
/// # Errors
///
/// When it cannot be built.
pub fn armed_binary() -> Result<PathBuf> {
    if let Some(built) = std::env::var_os("FETTLER_TEST_BINARY") {
        return Ok(PathBuf::from(built));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "build",
            "--quiet",
            "--package",
            "fettler",
            "--bin",
            "fettler",
        ])
        .args(["--features", "fault-points"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .map_err(Trouble::io("start cargo"))?;
    if !output.status.success() {
        return Err(Trouble::unreadable(
            "the build",
            "the binary cannot be built",
        ));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| Trouble::unreadable("the build", "cargo names no binary"))
}
