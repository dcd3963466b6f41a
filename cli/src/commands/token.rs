//! `fettler token`: who may use the HTTP interface.

use std::time::Duration;

use fettler_api::http::{NewTokenAnswer, access::mint_token};
use fettler_ledger::{NewToken, TokenRecord};
use fettler_model::Timestamp;
use serde_json::json;

use crate::{
    app::App,
    args::{TokenAddArgs, TokenCommand},
    desk::Desk,
    failure::{Exit, Failure, Outcome},
    output::table,
    units,
};

pub(crate) async fn run(app: &App, command: &TokenCommand) -> Outcome {
    let desk = app.desk().await?;
    match command {
        TokenCommand::Add(args) => add(app, &desk, args).await,
        TokenCommand::List => {
            let tokens = listed(app, &desk).await?;
            app.output.result(&json!({ "tokens": tokens }), || {
                if tokens.is_empty() {
                    return "No tokens. `fettler token add NAME --role viewer` makes one."
                        .to_owned();
                }
                table(
                    &[
                        "token",
                        "tenant",
                        "role",
                        "since",
                        "expires",
                        "last used",
                        "id",
                    ],
                    tokens.iter().map(|token| {
                        let moment = |time: Option<Timestamp>| {
                            time.map_or("never".to_owned(), units::moment)
                        };
                        vec![
                            token.name.to_string(),
                            token
                                .tenant
                                .as_ref()
                                .map_or("(all)".to_owned(), ToString::to_string),
                            token.role.to_string(),
                            units::moment(token.created),
                            moment(token.expires),
                            moment(token.last_used),
                            token.id.short(),
                        ]
                    }),
                )
            });
            Ok(Exit::Done)
        }
        TokenCommand::Remove { token } => {
            let found = find(app, &desk, token).await?;
            desk.remove_token(found.id).await?;
            app.output.result(&json!({ "removed": found.id }), || {
                format!("Token {} opens nothing any more.", found.name)
            });
            Ok(Exit::Done)
        }
    }
}

/// The tokens of the tenant that was named, or all of them.
async fn listed(app: &App, desk: &Desk<'_>) -> Result<Vec<TokenRecord>, Failure> {
    desk.tokens(app.named_tenant()).await
}

async fn find(app: &App, desk: &Desk<'_>, text: &str) -> Result<TokenRecord, Failure> {
    let fits = |token: &TokenRecord| {
        token.name.as_str() == text || token.id.to_string() == text || token.id.short() == text
    };
    let mut found: Vec<TokenRecord> = listed(app, desk).await?.into_iter().filter(fits).collect();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Failure::usage(
            format!("no token is called {text:?}"),
            "`fettler token list` shows them",
        )),
        _ => Err(Failure::usage(
            format!("several tokens are called {text:?}"),
            "give its id, or its tenant with `--tenant`",
        )),
    }
}

async fn add(app: &App, desk: &Desk<'_>, args: &TokenAddArgs) -> Outcome {
    let tenant = (!args.all_tenants).then(|| app.tenant().clone());
    let expires = match args.expires {
        Some(seconds) => Some(desk.now().await?.plus(Duration::from_secs(seconds))),
        None => None,
    };
    let answer = match desk {
        Desk::Here(ledger) => {
            let (text, hash) = mint_token();
            let token = ledger
                .add_token(&NewToken {
                    name: args.name.clone(),
                    tenant,
                    role: args.role,
                    expires,
                    hash,
                })
                .await?;
            NewTokenAnswer {
                token,
                text: text.expose().to_owned(),
            }
        }
        Desk::There(remote) => {
            let input =
                json!({"name": args.name, "role": args.role, "tenant": tenant, "expires": expires});
            remote.post("/api/v1/tokens", &input).await?
        }
    };
    app.output
        .notice("This is the token. It is kept nowhere and not shown again:");
    app.output.result(&answer, || answer.text.clone());
    Ok(Exit::Done)
}
