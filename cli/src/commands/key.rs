//! `fettler key`: the keys that open the backups. All of them open the same data key, so that adding,
//! replacing and removing one touches no backup.

use fettler_repository::{KeySlot, KeySlotKind, Unlock, create_key_file};
use serde_json::json;

use crate::{
    app::App,
    args::{KeyCommand, NewKeyArgs},
    failure::{Exit, Failure, Outcome},
    folder,
    output::table,
    services::Use,
    units,
};

pub(crate) async fn run(app: &App, command: &KeyCommand) -> Outcome {
    let repository = app.repository(Use::Read).await?;
    match command {
        KeyCommand::List => {
            let keys = repository.keys().await?;
            app.output.result(&json!({ "keys": keys }), || text(&keys));
        }
        KeyCommand::Add(new) => {
            let unlock = new_key(app, new).await?;
            let key = repository.key_add(&unlock).await?;
            app.output.result(&json!({ "added": key }), || {
                format!("Key {} opens the backups too.", key.id)
            });
        }
        KeyCommand::Rotate(new) => {
            let old = app.services().await?.unlock(app.tenant()).await?;
            let unlock = new_key(app, new).await?;
            let key = repository.key_rotate(&old, &unlock).await?;
            app.output.result(&json!({ "added": key }), || {
                format!(
                    "Key {} opens the backups now, and the one in use so far does not any more. {}",
                    key.id,
                    use_it(new)
                )
            });
        }
        KeyCommand::Remove { id } => {
            let id = whole_id(&repository.keys().await?, id)?;
            repository.key_remove(&id).await?;
            app.output.result(&json!({ "removed": id }), || {
                format!("Key {id} does not open the backups any more.")
            });
        }
    }
    Ok(Exit::Done)
}

/// A key's id by a unique beginning of it.
fn whole_id(keys: &[KeySlot], given: &str) -> Result<String, Failure> {
    let mut fitting = keys.iter().filter(|key| key.id.starts_with(given));
    match (fitting.next(), fitting.next()) {
        (Some(key), None) if !given.is_empty() => Ok(key.id.clone()),
        (Some(_), _) => Err(Failure::usage(
            format!("{given:?} fits more than one key"),
            "give more of the id",
        )),
        (None, _) => Err(Failure::usage(
            format!("there is no key {given:?}"),
            "`fettler key list` shows them",
        )),
    }
}

/// The new key; a key file is made when it is not there.
async fn new_key(app: &App, new: &NewKeyArgs) -> Result<Unlock, Failure> {
    if let Some(path) = &new.new_key_file {
        let path = std::path::absolute(path)
            .map_err(|error| Failure::local("the current folder cannot be told", &error))?;
        if !path.exists() {
            if let Some(parent) = path.parent() {
                folder::make(parent)?;
            }
            create_key_file(&path)?;
            app.output.loud(&[
                &format!("A new key was made: {}", path.display()),
                "Keep a copy of this file somewhere else, where the backups are not.",
            ]);
        }
        return Ok(Unlock::KeyFile(path));
    }
    let reference = new
        .new_passphrase
        .as_ref()
        .ok_or_else(|| {
            Failure::usage(
                "no new key is given",
                "give `--new-key-file PATH` or `--new-passphrase env:NAME`",
            )
        })?
        .get()?;
    let resolved = fettler_config::resolve(&reference)?;
    if let Some(warning) = resolved.warning {
        app.output.notice(&warning);
    }
    Ok(Unlock::Passphrase(resolved.secret))
}

/// What to do so that the new key is used.
fn use_it(new: &NewKeyArgs) -> String {
    let passphrase = new
        .new_passphrase
        .as_ref()
        .and_then(|reference| reference.get().ok());
    match (&new.new_key_file, passphrase) {
        (Some(path), _) => format!(
            "Set `keys.file = \"{}\"` in the settings, or give `--key-file`.",
            path.display()
        ),
        (None, Some(reference)) => format!(
            "Set `keys.passphrase = \"{reference}\"` in the settings, or FETTLER_PASSPHRASE."
        ),
        (None, None) => String::new(),
    }
}

fn text(keys: &[KeySlot]) -> String {
    table(
        &["key", "kind", "made"],
        keys.iter().map(|key| {
            vec![
                key.id.clone(),
                match key.kind {
                    KeySlotKind::KeyFile => "key file",
                    KeySlotKind::Passphrase => "passphrase",
                }
                .to_owned(),
                units::moment(key.created),
            ]
        }),
    )
}
