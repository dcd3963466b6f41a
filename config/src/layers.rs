//! From what is written in several places to one [`Settings`]. The layers, each over the one before:
//! defaults, the file, the overlay of the environment, the overlay of the tenant, environment variables,
//! flags.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use fettler_model::TenantId;
use serde_json::Value;

use crate::{
    ConfigError, Mistake, Origin, Settings, Shown, Source,
    document::{self, Content, Node},
    mistake::nearest,
    schema::{self, Field},
    show,
};

/// The names under which a folder's settings are looked for.
const FILE_NAMES: [&str; 3] = ["fettler.toml", "fettler.yaml", "fettler.yml"];
/// The endings of overlays.
const ENDINGS: [&str; 3] = ["toml", "yaml", "yml"];
/// Variables of their own short names, and the fields that they set.
const ALIASES: [(&str, &[&str]); 5] = [
    ("FETTLER_REPOSITORY", &["repository", "place"]),
    ("FETTLER_LEDGER", &["ledger", "url"]),
    ("FETTLER_KEY_FILE", &["keys", "file"]),
    ("FETTLER_LOG", &["log", "filter"]),
    ("FETTLER_PASSPHRASE", &["keys", "passphrase"]),
];
/// Variables that say something else than a setting: where settings are, what hooks are told, and which other
/// Fettler a command speaks to.
const NOT_SETTINGS: [&str; 6] = [
    "FETTLER_CONFIG",
    "FETTLER_ENV",
    "FETTLER_JOB",
    "FETTLER_JOB_KIND",
    "FETTLER_SERVER",
    "FETTLER_TOKEN",
];
/// The sections that a tenant's overlay may set: what is the tenant's own (P6).
const TENANT_SECTIONS: [&str; 5] = ["repository", "keys", "retention", "sandbox", "allow"];
/// A file of settings that is longer is not one.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Where settings come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The current folder.
    pub current_folder: PathBuf,
    /// The file, when it was named; otherwise it is looked for.
    pub file: Option<PathBuf>,
    /// The environment's variables.
    pub variables: BTreeMap<String, String>,
    /// What flags set.
    pub flags: Vec<Flag>,
}

/// A setting that was given by a flag.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The flag, such as `--repository`.
    pub name: &'static str,
    /// The field that it sets, such as `repository.place`.
    pub field: &'static str,
    /// The value.
    pub value: Value,
}

impl Sources {
    /// The sources of this process, without flags.
    ///
    /// # Errors
    ///
    /// When the current folder cannot be told.
    pub fn of_process() -> std::io::Result<Self> {
        Ok(Self {
            current_folder: std::env::current_dir()?,
            file: None,
            variables: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            flags: Vec::new(),
        })
    }

    /// Adds a setting that a flag gave; nothing when it was not given.
    #[must_use]
    pub fn flag(
        mut self,
        name: &'static str,
        field: &'static str,
        value: Option<impl Into<Value>>,
    ) -> Self {
        if let Some(value) = value {
            self.flags.push(Flag {
                name,
                field,
                value: value.into(),
            });
        }
        self
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

/// The settings and where they came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Every field with its value and its origin, secrets hidden.
    pub shown: Vec<Shown>,
    /// The files that were read, in the order of their layers.
    pub files: Vec<PathBuf>,
}

/// Reads all layers.
///
/// # Errors
///
/// With every mistake that was found in any of them.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut reading = Reading {
        sources,
        mistakes: Vec::new(),
        files: Vec::new(),
    };
    let variables = reading.variables();
    let flags = reading.flags();

    let mut early = variables.clone();
    early.overlay(flags.clone());
    let default_folder = default_folder(sources);
    let early_folder = text_at(&early, &["folder"])
        .map(PathBuf::from)
        .or_else(|| default_folder.clone());

    let file = reading.find_file(early_folder.as_deref());
    let mut merged = Node::empty(Origin::whole(Source::Default));
    if let Some(path) = &file {
        let layer = reading.file(path);
        put_over(&mut merged, layer);
    }
    let base = file
        .as_deref()
        .and_then(Path::parent)
        .map(Path::to_path_buf)
        .or(early_folder);
    if let Some(name) = sources.variable("FETTLER_ENV") {
        let layer = reading.environment_overlay(name, base.as_deref());
        put_over(&mut merged, layer);
    }
    let tenant = text_at(&early, &["tenant"])
        .or_else(|| text_at(&merged, &["tenant"]))
        .map_or_else(|| Ok(TenantId::default_tenant()), str::parse);
    if let (Ok(tenant), Some(base)) = (tenant, &base) {
        let layer = reading.tenant_overlay(&tenant, base);
        put_over(&mut merged, layer);
    }
    put_over(&mut merged, variables);
    put_over(&mut merged, flags);
    check_together(&merged, &mut reading.mistakes);

    let folder = text_at(&merged, &["folder"])
        .map(PathBuf::from)
        .or(default_folder);
    let Reading {
        mistakes, files, ..
    } = reading;
    if !mistakes.is_empty() {
        return Err(ConfigError::Mistakes(in_reading_order(mistakes)));
    }
    let folder = folder.ok_or(ConfigError::NoFolder)?;
    let defaults = Node::from_json(
        serde_json::to_value(Settings::defaults(&folder)).expect("settings are plain data"),
        &Origin::whole(Source::Default),
    );
    let mut whole = defaults;
    whole.overlay(merged);
    let settings = serde_json::from_value(whole.to_json()).map_err(|error| {
        // The schema let something through that the type refuses.
        ConfigError::Mistakes(vec![Mistake::new(
            whole.origin.clone(),
            "",
            error.to_string(),
        )])
    })?;
    Ok(Loaded {
        shown: show::shown(&whole, &settings),
        settings,
        files,
    })
}

/// Mistakes file by file, from top to bottom.
fn in_reading_order(mut mistakes: Vec<Mistake>) -> Vec<Mistake> {
    let mut sources: Vec<std::sync::Arc<Source>> = Vec::new();
    for mistake in &mistakes {
        if !sources.contains(&mistake.origin.source) {
            sources.push(mistake.origin.source.clone());
        }
    }
    mistakes.sort_by_key(|mistake| {
        let origin = &mistake.origin;
        let source = sources.iter().position(|source| *source == origin.source);
        (source, origin.line, origin.column)
    });
    mistakes
}

/// The folder when none is named: `$XDG_DATA_HOME/fettler` or `~/.local/share/fettler`.
fn default_folder(sources: &Sources) -> Option<PathBuf> {
    sources
        .variable("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| {
            sources
                .variable("HOME")
                .map(|home| Path::new(home).join(".local/share"))
        })
        .map(|data| data.join("fettler"))
}

/// Puts a layer over the others. A key file and a passphrase exclude each other, so that the one of a
/// later layer takes the other's place.
fn put_over(merged: &mut Node, layer: Node) {
    if layer.get(&["keys", "file"]).is_some() || layer.get(&["keys", "passphrase"]).is_some() {
        let origin = layer.origin.clone();
        for name in ["file", "passphrase"] {
            if merged.get(&["keys", name]).is_some() {
                let nothing = Node {
                    content: Content::Null,
                    origin: origin.clone(),
                };
                merged.set(&["keys", name], nothing);
            }
        }
    }
    merged.overlay(layer);
}

fn text_at<'a>(node: &'a Node, path: &[&str]) -> Option<&'a str> {
    match &node.get(path)?.content {
        Content::Text(text) => Some(text),
        _ => None,
    }
}

/// Checks that look at several fields.
fn check_together(merged: &Node, mistakes: &mut Vec<Mistake>) {
    let integer = |path: &[&str]| match merged.get(path).map(|node| &node.content) {
        Some(Content::Integer(number)) => Some(*number),
        _ => None,
    };
    let given = |path: &[&str]| {
        merged
            .get(path)
            .filter(|node| node.content != Content::Null)
    };
    let defaults = Settings::defaults(Path::new("/")).worker;
    let lease =
        integer(&["worker", "lease_seconds"]).unwrap_or_else(|| defaults.lease_seconds.into());
    let heartbeat = integer(&["worker", "heartbeat_seconds"])
        .unwrap_or_else(|| defaults.heartbeat_seconds.into());
    if heartbeat * 2 > lease {
        let at = given(&["worker", "heartbeat_seconds"])
            .map(|node| (node, "worker.heartbeat_seconds"))
            .or_else(|| {
                given(&["worker", "lease_seconds"]).map(|node| (node, "worker.lease_seconds"))
            });
        if let Some((node, field)) = at {
            mistakes.push(Mistake::new(
                node.origin.clone(),
                field,
                format!(
                    "a heartbeat every {heartbeat} s is too slow for a lease of {lease} s: at most half of the lease is safe"
                ),
            ));
        }
    }
    let kind = text_at(merged, &["sandbox", "kind"]);
    if let (Some("server"), None) = (kind, given(&["sandbox", "url"]))
        && let Some(node) = given(&["sandbox", "kind"])
    {
        mistakes.push(Mistake::new(
            node.origin.clone(),
            "sandbox.url",
            "a sandbox of kind `server` needs the server's URL".to_owned(),
        ));
    }
    if let (Some("automatic" | "source_server") | None, Some(node)) =
        (kind, given(&["sandbox", "url"]))
    {
        mistakes.push(Mistake::new(
            node.origin.clone(),
            "sandbox.url",
            "a URL is used by a sandbox of kind `server` only".to_owned(),
        ));
    }
    if let (Some(_), Some(node)) = (given(&["keys", "file"]), given(&["keys", "passphrase"])) {
        mistakes.push(Mistake::new(
            node.origin.clone(),
            "keys.passphrase",
            "a key file is named too: only one of the two can open the data key".to_owned(),
        ));
    }
    for (field, other) in [
        ("tls_certificate", "tls_key"),
        ("tls_key", "tls_certificate"),
    ] {
        if let (Some(node), None) = (given(&["api", field]), given(&["api", other])) {
            mistakes.push(Mistake::new(
                node.origin.clone(),
                &format!("api.{field}"),
                format!("TLS needs `api.{other}` too"),
            ));
        }
    }
}

struct Reading<'a> {
    sources: &'a Sources,
    mistakes: Vec<Mistake>,
    files: Vec<PathBuf>,
}

impl Reading<'_> {
    /// The file of settings: the named one, or the first that is there.
    fn find_file(&mut self, folder: Option<&Path>) -> Option<PathBuf> {
        let named = self
            .sources
            .file
            .clone()
            .or_else(|| self.sources.variable("FETTLER_CONFIG").map(PathBuf::from));
        if let Some(path) = named {
            return Some(self.sources.current_folder.join(path));
        }
        let places = [Some(self.sources.current_folder.as_path()), folder];
        for place in places.into_iter().flatten() {
            let there: Vec<PathBuf> = FILE_NAMES
                .iter()
                .map(|name| place.join(name))
                .filter(|path| path.exists())
                .collect();
            if let [_, second, ..] = there.as_slice() {
                self.mistakes.push(Mistake::new(
                    Origin::whole(Source::File(second.clone())),
                    "",
                    format!("{} is there too: keep one of them", there[0].display()),
                ));
            }
            if let Some(path) = there.into_iter().next() {
                return Some(path);
            }
        }
        None
    }

    /// Reads and checks a file; relative paths in it start at its folder.
    fn file(&mut self, path: &Path) -> Node {
        let origin = Origin::whole(Source::File(path.to_path_buf()));
        let text = match read_text(path) {
            Ok(text) => text,
            Err(what) => {
                self.mistakes.push(Mistake::new(origin.clone(), "", what));
                return Node::empty(origin);
            }
        };
        self.files.push(path.to_path_buf());
        let before = self.mistakes.len();
        let mut layer = document::parse(path, &text, &mut self.mistakes);
        if self.mistakes.len() > before {
            // What was read of a broken file would only give mistakes that nobody made.
            return Node::empty(origin);
        }
        schema::check(&mut layer, &mut self.mistakes);
        let folder = path.parent().unwrap_or(Path::new("."));
        self.make_absolute(&mut layer, Field::root(), folder);
        layer
    }

    fn environment_overlay(&mut self, name: &str, base: Option<&Path>) -> Node {
        let origin = Origin::whole(Source::Variable("FETTLER_ENV".to_owned()));
        let found = base.and_then(|base| find_overlay(base, "environments", name));
        match found {
            Some(path) => self.file(&path),
            None => {
                let place = base.map_or_else(
                    || PathBuf::from("config/environments"),
                    |base| base.join("config/environments"),
                );
                self.mistakes.push(Mistake::new(
                    origin.clone(),
                    "",
                    format!(
                        "there are no settings for the environment {name:?}: make {}, or unset the variable",
                        place.join(format!("{name}.toml")).display()
                    ),
                ));
                Node::empty(origin)
            }
        }
    }

    fn tenant_overlay(&mut self, tenant: &TenantId, base: &Path) -> Node {
        let Some(path) = find_overlay(base, "tenants", tenant.as_str()) else {
            return Node::empty(Origin::whole(Source::Default));
        };
        let mut layer = self.file(&path);
        if let Content::Table(entries) = &mut layer.content {
            entries.retain(|entry| {
                let own = TENANT_SECTIONS.contains(&entry.key.as_str());
                if !own {
                    self.mistakes.push(Mistake::new(
                        entry.origin.clone(),
                        &entry.key,
                        format!(
                            "a tenant's overlay sets what is the tenant's own: {}",
                            TENANT_SECTIONS.join(", ")
                        ),
                    ));
                }
                own
            });
        }
        layer
    }

    fn variables(&mut self) -> Node {
        let root = Field::root();
        let mut layer = Node::empty(Origin::whole(Source::Variable("FETTLER_*".to_owned())));
        for (name, value) in &self.sources.variables {
            let Some(suffix) = name.strip_prefix("FETTLER_") else {
                continue;
            };
            if value.is_empty() || NOT_SETTINGS.contains(&name.as_str()) {
                continue;
            }
            let origin = Origin::whole(Source::Variable(name.clone()));
            let text = |text: &str| Node {
                content: Content::Text(text.to_owned()),
                origin: origin.clone(),
            };
            if name == "FETTLER_PASSPHRASE" {
                // The variable is the passphrase itself: what is kept is where it lies.
                layer.set(&["keys", "passphrase"], text("env:FETTLER_PASSPHRASE"));
                continue;
            }
            if let Some((_, path)) = ALIASES.iter().find(|(alias, _)| alias == name) {
                layer.set(path, text(value));
                continue;
            }
            let lower = suffix.to_ascii_lowercase();
            let path: Vec<&str> = lower.split("__").collect();
            if path.len() > 1 || root.child(path[0]).is_some() {
                // Fields of which there are none are told by the check, with this variable as place.
                layer.set(&path, text(value));
                continue;
            }
            // Other programs may set variables that begin alike (as orchestrators do for a service of
            // the name), so that only what looks like a setting is a mistake.
            if let Some(meant) = meant_by(root, &lower) {
                self.mistakes.push(
                    Mistake::new(origin, "", "there is no such setting".to_owned())
                        .suggesting(Some(meant)),
                );
            }
        }
        schema::check(&mut layer, &mut self.mistakes);
        let current = self.sources.current_folder.clone();
        self.make_absolute(&mut layer, root, &current);
        layer
    }

    fn flags(&mut self) -> Node {
        let mut layer = Node::empty(Origin::whole(Source::Flag("flags".to_owned())));
        for flag in &self.sources.flags {
            let origin = Origin::whole(Source::Flag(flag.name.to_owned()));
            let path: Vec<&str> = flag.field.split('.').collect();
            layer.set(&path, Node::from_json(flag.value.clone(), &origin));
        }
        schema::check(&mut layer, &mut self.mistakes);
        let current = self.sources.current_folder.clone();
        self.make_absolute(&mut layer, Field::root(), &current);
        layer
    }

    /// Makes the paths of a layer mean the same from every folder.
    fn make_absolute(&self, node: &mut Node, field: Field<'static>, base: &Path) {
        match &mut node.content {
            Content::Table(entries) => {
                for entry in entries {
                    if let Some(field) = field.child(&entry.key) {
                        self.make_absolute(&mut entry.value, field, base);
                    }
                }
            }
            Content::Text(text) if field.is_path() && !text.contains("://") => {
                *text = self.absolute(text, base);
            }
            Content::Text(text) if text.starts_with("file:") && !text.contains("://") => {
                *text = format!("file:{}", self.absolute(&text["file:".len()..], base));
            }
            _ => {}
        }
    }

    fn absolute(&self, text: &str, base: &Path) -> String {
        let path = match (text.strip_prefix("~/"), self.sources.variable("HOME")) {
            (Some(rest), Some(home)) => Path::new(home).join(rest),
            _ => base.join(text),
        };
        // Only the form is changed; the path need not exist.
        std::path::absolute(&path)
            .unwrap_or(path)
            .to_string_lossy()
            .into_owned()
    }
}

/// The overlay of this name beside the file of settings.
fn find_overlay(base: &Path, sort: &str, name: &str) -> Option<PathBuf> {
    if name.contains(['/', '\\']) || name.starts_with('.') {
        return None;
    }
    ["config", ""]
        .iter()
        .flat_map(|folder| {
            ENDINGS.iter().map(move |ending| {
                base.join(folder)
                    .join(sort)
                    .join(format!("{name}.{ending}"))
            })
        })
        .find(|path| path.exists())
}

/// The variable that was probably meant by one that sets nothing.
fn meant_by(root: Field<'static>, suffix: &str) -> Option<String> {
    // One underscore instead of two is the usual slip.
    for (section, field) in root.children() {
        if let Some(rest) = suffix
            .strip_prefix(section)
            .and_then(|rest| rest.strip_prefix('_'))
            && field.child(rest).is_some()
        {
            return Some(format!(
                "FETTLER_{}__{}",
                section.to_ascii_uppercase(),
                rest.to_ascii_uppercase()
            ));
        }
    }
    let known: Vec<String> = ALIASES
        .iter()
        .map(|(name, _)| *name)
        .chain(NOT_SETTINGS)
        .map(|name| name["FETTLER_".len()..].to_ascii_lowercase())
        .chain(
            root.children()
                .filter(|(_, field)| !field.is_section())
                .map(|(name, _)| name.to_owned()),
        )
        .collect();
    nearest(suffix, known.iter().map(String::as_str))
        .map(|name| format!("FETTLER_{}", name.to_ascii_uppercase()))
}

fn read_text(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("the file cannot be read: {error}");
    let length = std::fs::metadata(path).map_err(cannot)?.len();
    if length > MAX_FILE_BYTES {
        return Err(format!(
            "the file has {length} bytes, and settings have at most {MAX_FILE_BYTES}"
        ));
    }
    std::fs::read_to_string(path).map_err(cannot)
}
