//! `fettler database grant-sql`: what a role needs, in the engine's own language. Nobody connects anywhere.

use fettler_engine::{Grant, GrantRequest, Grants, Purpose};
use fettler_model::DatabaseUrl;
use serde::Serialize;

use crate::{
    app::App,
    args::GrantSqlArgs,
    failure::{Exit, Failure, Outcome},
    select,
};

/// What is printed with `--json`.
#[derive(Serialize)]
struct Document<'a> {
    engine: String,
    role: &'a str,
    purposes: &'a [Purpose],
    language: &'a str,
    /// What is to be replaced in the statements by a password.
    placeholder: &'static str,
    statements: &'a [Grant],
    notes: &'a [String],
}

pub(crate) async fn run(app: &App, args: &GrantSqlArgs) -> Outcome {
    let url = url(app, &args.database).await?;
    let purposes = args.purposes();
    let grants = fettler_engines::engine(url.engine()).grants(&GrantRequest {
        url: &url,
        role: &args.role,
        purposes: &purposes,
    })?;
    let Grants {
        language,
        comment,
        statements,
        notes,
    } = &grants;
    let document = Document {
        engine: url.engine().to_string(),
        role: &args.role,
        purposes: &purposes,
        language,
        placeholder: fettler_engine::PASSWORD_PLACEHOLDER,
        statements,
        notes,
    };
    app.output.result(&document, || grants.to_text());
    // Where the language has no comments, they would be taken for statements.
    if comment.is_none() && !app.output.json {
        for note in notes {
            app.output.notice(&format!("Note: {note}."));
        }
    }
    Ok(Exit::Done)
}

/// The place: a URL, a path, or that of a known database.
async fn url(app: &App, text: &str) -> Result<DatabaseUrl, Failure> {
    let is_a_name = !text.contains([':', '/']) && !std::path::Path::new(text).exists();
    if is_a_name {
        return Ok(select::existing_database(app, text).await?.url);
    }
    Ok(select::place(text)?.0)
}
