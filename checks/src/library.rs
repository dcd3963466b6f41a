//! All checks: those that ship with Fettler, and those of a folder of the user's own.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, LazyLock},
};

use fettler_model::Engine;

use crate::{Check, Level, LoadError, load::read_check};

/// The files that ship, by name.
const SHIPPED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/checks.rs"));

/// The largest file that is read as a check, in bytes.
const LARGEST_FILE_BYTES: u64 = 256 * 1024;

/// The checks that ship, read once: reading them takes some 30 ms, and a look at a hundred databases needs them a hundred times.
static SHIPPED_CHECKS: LazyLock<BTreeMap<String, Arc<Check>>> = LazyLock::new(|| {
    let checks = SHIPPED.iter().map(|(file, text)| {
        let check = read_check(file, text).expect("the checks that ship are sound");
        (check.id.clone(), Arc::new(check))
    });
    checks.collect()
});

/// Checks by their ids.
#[derive(Clone, Debug, Default)]
pub struct Library {
    checks: BTreeMap<String, Arc<Check>>,
}

impl Library {
    /// The checks that ship with Fettler.
    ///
    /// # Panics
    ///
    /// Never: a test reads them all.
    #[must_use]
    pub fn shipped() -> Self {
        Self {
            checks: SHIPPED_CHECKS.clone(),
        }
    }

    /// Adds the `*.yaml` and `*.yml` files of a folder and its folders. A check with the id of one that ships takes its place.
    ///
    /// # Errors
    ///
    /// What is wrong with the first file that is no check, or with the folder.
    pub fn with_folder(mut self, folder: &Path) -> Result<Self, LoadError> {
        let mut own: BTreeMap<String, Arc<Check>> = BTreeMap::new();
        for file in files_below(folder)? {
            let name = file.display().to_string();
            let text = fs::read_to_string(&file).map_err(|error| unreadable(&file, &error))?;
            let check = read_check(&name, &text)?;
            if let Some(twin) = own.get(&check.id) {
                return Err(LoadError {
                    file: name,
                    field: "id".to_owned(),
                    what: format!("{} is also the id of {}", check.id, twin.file),
                    remedy: "give one of them another id".to_owned(),
                });
            }
            own.insert(check.id.clone(), Arc::new(check));
        }
        self.checks.append(&mut own);
        Ok(self)
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Check> {
        self.checks.values().map(AsRef::as_ref)
    }

    /// The check of this id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Check> {
        self.checks.get(id).map(AsRef::as_ref)
    }

    /// Those of an engine that a look of this level at its health makes.
    #[must_use]
    pub fn of(&self, engine: Engine, level: Level) -> Vec<&Check> {
        self.iter()
            .filter(|check| check.engine == engine && check.level <= level)
            .filter(|check| check.heading.dimension().is_some())
            .collect()
    }

    /// Those of an engine that an audit makes.
    #[must_use]
    pub fn of_audit(&self, engine: Engine) -> Vec<&Check> {
        self.iter()
            .filter(|check| check.engine == engine && check.heading.group().is_some())
            .collect()
    }

    /// The text of a file that ships.
    #[must_use]
    pub fn shipped_text(file: &str) -> Option<&'static str> {
        SHIPPED
            .iter()
            .find(|(name, _)| *name == file)
            .map(|(_, text)| *text)
    }
}

fn files_below(folder: &Path) -> Result<Vec<std::path::PathBuf>, LoadError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| unreadable(folder, &error))? {
        let entry = entry.map_err(|error| unreadable(folder, &error))?;
        let path = entry.path();
        // A link's end is looked at for what it is, but a folder is gone into only where it lies: no circles.
        let kind = entry
            .file_type()
            .map_err(|error| unreadable(&path, &error))?;
        if kind.is_dir() {
            files.append(&mut files_below(&path)?);
        } else if path
            .extension()
            .is_some_and(|end| end == "yaml" || end == "yml")
        {
            let metadata = fs::metadata(&path).map_err(|error| unreadable(&path, &error))?;
            if metadata.len() > LARGEST_FILE_BYTES {
                return Err(LoadError {
                    file: path.display().to_string(),
                    field: "file".to_owned(),
                    what: format!("it is larger than {LARGEST_FILE_BYTES} bytes"),
                    remedy: "a check is one small file; take what is none out of the folder"
                        .to_owned(),
                });
            }
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn unreadable(path: &Path, error: &std::io::Error) -> LoadError {
    LoadError {
        file: path.display().to_string(),
        field: "file".to_owned(),
        what: format!("it cannot be read: {error}"),
        remedy: "check the path, and that Fettler's user may read it".to_owned(),
    }
}
