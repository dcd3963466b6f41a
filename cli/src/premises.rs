//! What this process knows of tenants for the HTTP interface: what the operator listed for each, which
//! addresses none may name, and how a password is sealed.

use async_trait::async_trait;
use fettler_api::http::{
    Surroundings,
    bounds::{Bounds, Deny},
};
use fettler_config::Settings;
use fettler_ledger::SealedId;
use fettler_model::{Problem, Secret, TenantId};
use url::Url;

use crate::services::LocalServices;

const POSTGRES_PORT: u16 = 5432;
const REDIS_PORT: u16 = 6379;

/// What the settings list for a tenant.
pub(crate) fn bounds(settings: &Settings) -> Bounds {
    let allow = &settings.allow;
    Bounds {
        references: allow.references.clone(),
        paths: allow.paths.iter().map(Into::into).collect(),
        repositories: allow.repositories.clone(),
        commands: allow.commands,
        process_sandboxes: allow.process_sandboxes,
        addresses: allow.networks.iter().map(|network| network.0).collect(),
    }
}

/// Which addresses no tenant may name: those of the settings, and the fleet's own servers.
pub(crate) fn deny(settings: &Settings) -> Deny {
    let own = [
        (Some(settings.ledger_url()), POSTGRES_PORT),
        (settings.queue.url.clone(), REDIS_PORT),
    ];
    Deny {
        networks: settings
            .deny
            .networks
            .iter()
            .map(|network| network.0)
            .collect(),
        servers: own
            .into_iter()
            .filter_map(|(url, port)| server(&url?, port))
            .collect(),
        loopback: settings.denies_loopback(),
    }
}

fn server(url: &str, usual_port: u16) -> Option<(String, u16)> {
    let url = Url::parse(url).ok()?;
    let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
    (!host.is_empty()).then(|| (host, url.port().unwrap_or(usual_port)))
}

#[async_trait]
impl Surroundings for LocalServices {
    fn bounds(&self, tenant: &TenantId) -> Result<Bounds, Problem> {
        Ok(bounds(&*self.settings_of(tenant)?))
    }

    fn deny(&self) -> &Deny {
        self.denied()
    }

    fn repository_place(&self, tenant: &TenantId) -> Result<String, Problem> {
        Ok(self.settings_of(tenant)?.repository_place())
    }

    async fn seal(&self, tenant: &TenantId, secret: &Secret) -> Result<SealedId, Problem> {
        self.seal_secret(tenant, secret).await
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_fleets_own_servers_are_denied_and_loopback_only_in_a_fleet() {
        let mut settings = Settings::defaults(Path::new("/f"));
        let alone = deny(&settings);
        assert!(alone.servers.is_empty() && !alone.loopback);
        settings.ledger.url = Some("postgres://fettler@db.internal/ledger".to_owned());
        settings.queue.url = Some("redis://[::1]:7000/0".to_owned());
        let fleet = deny(&settings);
        assert_eq!(
            fleet.servers,
            [("db.internal".to_owned(), 5432), ("::1".to_owned(), 7000)]
        );
        assert!(fleet.loopback);
    }
}
