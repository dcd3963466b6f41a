//! Who may do what. A request bears a token; the token has a role and a tenant (or sees all); each route
//! names the permission that it needs, and one table says which roles have it.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{FromRequestParts, Request, State},
    http::{header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use fettler_ledger::{LedgerError, TokenRecord};
use fettler_model::{Role, Secret, TenantId};

use super::{App, limit::Bearer, problem::Refusal};

/// What a token's text begins with, so that scanners for leaked secrets know it.
const TOKEN_PREFIX: &str = "fettler_";
/// The random part of a token.
const TOKEN_BYTES: usize = 32;
/// A longer header is no token of ours.
const MAX_TOKEN_BYTES: usize = 256;

/// Something that may be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Anybody, without a token.
    Public,
    /// Look at what belongs to the tenant.
    Look,
    /// Submit, cancel and repeat jobs that write to no database and delete no backup.
    Run,
    /// Submit, cancel and repeat restores.
    Restore,
    /// Change databases, policies and tokens; run what deletes backups.
    Configure,
    /// See who has access.
    SeeTokens,
    /// Look at what belongs to no tenant: workers, metrics.
    LookAtFleet,
    /// Add and remove tenants.
    ConfigureFleet,
}

/// One line of the table of roles.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    /// What is allowed.
    pub permission: Permission,
    /// Its name in the OpenAPI document (`x-permission`).
    pub name: &'static str,
    /// To whom.
    pub roles: &'static [Role],
    /// Whether only to tokens that see all tenants.
    pub fleet_only: bool,
}

/// Who may do what: the whole of it.
pub const GRANTS: &[Grant] = &[
    grant(Permission::Look, "look", &Role::ALL, false),
    grant(
        Permission::Run,
        "run",
        &[Role::Operator, Role::Restorer, Role::Admin],
        false,
    ),
    grant(
        Permission::Restore,
        "restore",
        &[Role::Restorer, Role::Admin],
        false,
    ),
    grant(Permission::Configure, "configure", &[Role::Admin], false),
    grant(
        Permission::SeeTokens,
        "see_tokens",
        &[Role::Auditor, Role::Admin],
        false,
    ),
    grant(Permission::LookAtFleet, "look_at_fleet", &Role::ALL, true),
    grant(
        Permission::ConfigureFleet,
        "configure_fleet",
        &[Role::Admin],
        true,
    ),
];

const fn grant(
    permission: Permission,
    name: &'static str,
    roles: &'static [Role],
    fleet_only: bool,
) -> Grant {
    Grant {
        permission,
        name,
        roles,
        fleet_only,
    }
}

impl Permission {
    /// Its line of the table; none for what needs no token.
    #[must_use]
    pub fn grant(self) -> Option<&'static Grant> {
        GRANTS.iter().find(|grant| grant.permission == self)
    }

    /// What a job of this kind needs: what writes to a database, or deletes backups, is not for everybody
    /// who may run a backup. A kind that is not named here is as harmless as a backup.
    #[must_use]
    pub fn of_kind(kind: &str) -> Self {
        match kind {
            "restore" | "copy-data" | "cleanup-undo" => Self::Restore,
            "cleanup" | "retention" | "collect" | "forget" | "hold" => Self::Configure,
            _ => Self::Run,
        }
    }
}

/// Makes a token: its text, which is shown once, and the hash that the ledger keeps.
///
/// # Panics
///
/// When the system has no randomness to give.
#[must_use]
pub fn mint_token() -> (Secret, [u8; 32]) {
    let mut random = [0; TOKEN_BYTES];
    getrandom::fill(&mut random).expect("the system gives random bytes");
    let text = format!("{TOKEN_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(random));
    let hash = hash_token(&text);
    (Secret::new(text), hash)
}

/// The hash of a token's text. The text holds 256 random bits: no salt and no slow hash would add to them.
#[must_use]
pub fn hash_token(text: &str) -> [u8; 32] {
    *blake3::hash(text.as_bytes()).as_bytes()
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) token: Arc<TokenRecord>,
}

impl Caller {
    /// Whether the caller's role and tenant give it this permission.
    pub(crate) fn may(&self, permission: Permission) -> bool {
        permission.grant().is_none_or(|grant| {
            grant.roles.contains(&self.token.role)
                && (!grant.fleet_only || self.token.tenant.is_none())
        })
    }

    pub(crate) fn needs(&self, permission: Permission) -> Result<(), Refusal> {
        if self.may(permission) {
            return Ok(());
        }
        let name = permission.grant().map_or("", |grant| grant.name);
        Err(Refusal::forbidden(
            format!(
                "the token's role {} does not give the permission `{name}`",
                self.token.role
            ),
            "use a token of another role; docs/api.md has the table",
        ))
    }

    /// Whether the caller belongs to one tenant, whose word the operator does not take for everything.
    pub(crate) fn is_stranger(&self) -> bool {
        self.token.tenant.is_some()
    }

    /// Whether things of this tenant are the caller's to see (P6).
    pub(crate) fn sees(&self, tenant: &TenantId) -> bool {
        self.token.tenant.as_ref().is_none_or(|own| own == tenant)
    }

    /// Whose things are listed or looked for: one tenant's, or all.
    pub(crate) async fn listed(
        &self,
        app: &App,
        asked: Option<TenantId>,
    ) -> Result<Option<TenantId>, Refusal> {
        match (&self.token.tenant, asked) {
            (Some(own), None) => Ok(Some(own.clone())),
            (None, None) => Ok(None),
            (_, Some(asked)) => self.known(app, asked).await.map(Some),
        }
    }

    /// Whose something new is, or whose name is meant: the token's own tenant, the one that was asked for,
    /// or the tenant of an installation that has one only.
    pub(crate) async fn acts_for(
        &self,
        app: &App,
        asked: Option<TenantId>,
    ) -> Result<TenantId, Refusal> {
        match (&self.token.tenant, asked) {
            (Some(own), None) => Ok(own.clone()),
            (None, None) => Ok(TenantId::default_tenant()),
            (_, Some(asked)) => self.known(app, asked).await,
        }
    }

    /// A tenant that is there and the caller's to see.
    async fn known(&self, app: &App, tenant: TenantId) -> Result<TenantId, Refusal> {
        if !self.sees(&tenant) {
            return Err(Refusal::no_such("tenant", tenant.to_string()));
        }
        app.ledger.tenant(&tenant).await?;
        Ok(tenant)
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(Refusal::unknown_caller)
    }
}

/// The address of the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Lets a request through to its route: known, allowed, and not too often.
pub(crate) async fn admit(
    State((app, permission)): State<(App, Permission)>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request
        .extensions()
        .get::<Peer>()
        .map_or(Bearer::Nobody, |peer| Bearer::Peer(peer.0));
    let hash = bearer_token(&request).map(hash_token);
    match admitted(&app, permission, peer, hash).await {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn admitted(
    app: &App,
    permission: Permission,
    peer: Bearer,
    hash: Option<[u8; 32]>,
) -> Result<Option<Caller>, Refusal> {
    if permission == Permission::Public {
        return Ok(None);
    }
    let Some(hash) = hash else {
        app.rates.take(peer)?;
        return Err(Refusal::unknown_caller());
    };
    // Whoever guesses is slowed down before the ledger is asked.
    app.rates.guesses(peer, &hash)?;
    let known = match app.ledger.token_by_hash(&hash).await {
        Ok(known) if !known.is_expired => known,
        Ok(_) | Err(LedgerError::NotFound { .. }) => {
            app.rates.take(peer)?;
            return Err(Refusal::unknown_caller());
        }
        Err(error) => return Err(error.into()),
    };
    app.rates.was_good(hash);
    app.rates.take(Bearer::Token(known.record.id))?;
    if known.is_touch_due {
        let (ledger, id) = (app.ledger.clone(), known.record.id);
        // The answer does not wait for it.
        tokio::spawn(async move {
            if let Err(error) = ledger.touch_token(id).await {
                tracing::warn!(%error, "the use of a token was not recorded");
            }
        });
    }
    let caller = Caller {
        token: Arc::new(known.record),
    };
    caller.needs(permission)?;
    Ok(Some(caller))
}

fn bearer_token(request: &Request) -> Option<&str> {
    let value = request
        .headers()
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer")
        && token.starts_with(TOKEN_PREFIX)
        && token.len() <= MAX_TOKEN_BYTES)
        .then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p9_a_token_is_random_long_and_cannot_be_printed() {
        let (one, other) = (mint_token(), mint_token());
        assert_ne!(one.0.expose(), other.0.expose());
        assert_eq!(one.1, hash_token(one.0.expose()));
        assert!(one.0.expose().len() >= TOKEN_PREFIX.len() + 43);
        assert_eq!(format!("{:?}", one.0), "***");
    }

    #[test]
    fn every_permission_but_the_public_one_is_in_the_table_once() {
        for permission in [
            Permission::Look,
            Permission::Run,
            Permission::Restore,
            Permission::Configure,
            Permission::SeeTokens,
            Permission::LookAtFleet,
            Permission::ConfigureFleet,
        ] {
            let lines = GRANTS.iter().filter(|grant| grant.permission == permission);
            assert_eq!(lines.count(), 1, "{permission:?}");
        }
        assert!(Permission::Public.grant().is_none());
    }

    #[test]
    fn what_writes_to_a_database_or_deletes_backups_needs_more_than_a_backup() {
        assert_eq!(Permission::of_kind("backup"), Permission::Run);
        assert_eq!(Permission::of_kind("restore"), Permission::Restore);
        for kind in ["retention", "collect", "forget", "hold"] {
            assert_eq!(Permission::of_kind(kind), Permission::Configure);
        }
    }
}
