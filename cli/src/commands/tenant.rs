//! `fettler tenant`: who there is. What a tenant has of its own (repository, keys, retention, sandbox)
//! stands in its overlay of the settings.

use fettler_ledger::TenantChange;
use fettler_model::TenantId;
use serde_json::json;

use crate::{
    app::App,
    args::TenantCommand,
    failure::{Exit, Outcome},
    output::{pairs, table},
    units,
};

pub(crate) async fn run(app: &App, command: &TenantCommand) -> Outcome {
    let desk = app.desk().await?;
    match command {
        TenantCommand::Add { name } => {
            let added = desk.add_tenant(name).await?;
            app.output
                .result(&added, || format!("Tenant {name} is there now."));
        }
        TenantCommand::List => {
            let tenants = desk.tenants().await?;
            app.output.result(&json!({ "tenants": tenants }), || {
                table(
                    &["tenant", "weight", "priority up to", "since"],
                    tenants.iter().map(|tenant| {
                        vec![
                            tenant.id.to_string(),
                            tenant.weight.to_string(),
                            tenant.priority_ceiling.as_str().to_owned(),
                            units::moment(tenant.created),
                        ]
                    }),
                )
            });
        }
        TenantCommand::Show { name } => {
            show(app, name).await?;
        }
        TenantCommand::Edit {
            name,
            weight,
            priority_ceiling,
        } => {
            let change = TenantChange {
                weight: *weight,
                priority_ceiling: priority_ceiling.map(Into::into),
            };
            if change != TenantChange::default() {
                app.ledger().await?.edit_tenant(name, change).await?;
            }
            show(app, name).await?;
        }
        TenantCommand::Remove { name } => {
            desk.remove_tenant(name).await?;
            app.output.result(&json!({ "removed": name }), || {
                format!("Tenant {name} is gone.")
            });
        }
    }
    Ok(Exit::Done)
}

async fn show(app: &App, name: &TenantId) -> Outcome {
    let desk = app.desk().await?;
    let tenant = desk.tenant(name).await?;
    let databases = desk.databases(name).await?;
    let policies = desk.policies(name).await?;
    if app.remote().is_some() {
        // Its settings are the other side's own.
        let document = json!({
            "id": tenant.id,
            "created": tenant.created,
            "databases": databases.len(),
            "policies": policies.len(),
        });
        app.output.result(&document, || {
            pairs(&[
                ("tenant", tenant.id.to_string()),
                ("since", units::moment(tenant.created)),
                ("databases", databases.len().to_string()),
                ("policies", policies.len().to_string()),
            ])
        });
        return Ok(Exit::Done);
    }
    let settings = app.services().await?.settings_of(name)?;
    let overlay = app
        .loaded
        .files
        .first()
        .and_then(|file| file.parent())
        .unwrap_or(&settings.folder)
        .join(format!("config/tenants/{name}.toml"));
    let key = match settings.key() {
        fettler_config::KeyChoice::File(path) => path.display().to_string(),
        fettler_config::KeyChoice::Passphrase(reference) => format!("passphrase {reference}"),
    };
    let document = json!({
        "id": tenant.id,
        "created": tenant.created,
        "weight": tenant.weight,
        "priority_ceiling": tenant.priority_ceiling,
        "repository": settings.repository_place(),
        "key": key,
        "keep": settings.retention.keep,
        "databases": databases.len(),
        "policies": policies.len(),
        "overlay": overlay,
    });
    app.output.result(&document, || {
        pairs(&[
            ("tenant", tenant.id.to_string()),
            ("since", units::moment(tenant.created)),
            ("weight", tenant.weight.to_string()),
            (
                "priority up to",
                tenant.priority_ceiling.as_str().to_owned(),
            ),
            ("databases", databases.len().to_string()),
            ("policies", policies.len().to_string()),
            ("repository", settings.repository_place()),
            ("key", key.clone()),
            ("its settings", overlay.display().to_string()),
        ])
    });
    Ok(Exit::Done)
}
