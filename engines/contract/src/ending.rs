//! The end of a restore.
//!
//! The last step of a restore makes its target whole, and takes away what told it from a database of somebody else: the
//! file gets its name, the marker goes. A worker that dies behind that step, and before the ledger has heard of it, is
//! followed by one that would find its way barred by this job's own work. So a restore saves its [`Ending`] before the
//! step; an attempt that finds one, and a target that is whole, has nothing left to do.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{EngineContext, EngineError, RestoreReport};

/// All but the last step of a restore is done. Takes the place of the restore's checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// What the restore did.
    #[serde(rename = "ending")]
    pub report: RestoreReport,
    /// The file that the last step renames, where there is one.
    pub file: Option<EndingFile>,
}

/// A file that is whole and durable under another name than its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndingFile {
    /// Its name until the last step.
    pub part: PathBuf,
    /// The device that it lies on.
    device: u64,
    /// Its number there, which it keeps when it is renamed.
    inode: u64,
}

impl EndingFile {
    /// # Errors
    ///
    /// Those of the file system.
    pub fn of(part: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(part)?;
        Ok(Self {
            part: part.to_path_buf(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// Whether it stands under this name.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode))
    }
}

impl Ending {
    /// What an earlier attempt has saved.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoints::load`](crate::Checkpoints::load).
    pub async fn load(context: &EngineContext) -> Result<Option<Self>, EngineError> {
        let saved = context.checkpoints.load().await?;
        Ok(saved.and_then(|saved| Self::deserialize(saved).ok()))
    }

    /// Saves it. What it speaks of must be durable.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoints::save`](crate::Checkpoints::save): the attempt may have been superseded.
    pub async fn save(&self, context: &EngineContext) -> Result<(), EngineError> {
        let value = serde_json::to_value(self).expect("plain data can be JSON");
        context.checkpoints.save(value).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_itself_and_not_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let (part, target) = (folder.path().join("part"), folder.path().join("target"));
        fs::write(&part, "one").unwrap();
        fs::write(&target, "another").unwrap();
        let file = EndingFile::of(&part).unwrap();
        assert!(file.is_at(&part) && !file.is_at(&target));
        fs::rename(&part, &target).unwrap();
        assert!(file.is_at(&target) && !file.is_at(&part));
    }
}
