//! One tenant's part of a repository: its keys, its small sealed objects, and how much it stores.

use std::{collections::BTreeMap, fmt, sync::Arc};

use fettler_model::{TenantId, Timestamp};
use object_store::path::Path;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    CpuPool, Damage, KeySlot, RepositoryError, Unlock,
    announce::DamageRecord,
    keys::DataKey,
    layout::{Kind, ObjectName, TenantFolder, random_bytes},
    open::Repository,
    seal::Sealer,
    slots::{StoredSlot, UnlockKey},
    store::{Listed, Put, Store},
};

/// A tenant's part of a repository, with its keys. Cheap to clone.
#[derive(Clone)]
pub struct TenantRepository {
    pub(crate) inner: Arc<TenantInner>,
}

pub(crate) struct TenantInner {
    pub(crate) repository: Repository,
    pub(crate) tenant: TenantId,
    pub(crate) folder: TenantFolder,
    pub(crate) sealer: Sealer,
    data_key: DataKey,
    data_key_id: String,
}

impl fmt::Debug for TenantRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantRepository")
            .field("place", &self.inner.repository.place())
            .field("tenant", &self.inner.tenant)
            .finish_non_exhaustive()
    }
}

/// What a tenant's part of the store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// Objects of all kinds.
    pub objects: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes in packs.
    pub pack_bytes: u64,
    /// Bytes in packs that some backup names.
    pub named_pack_bytes: u64,
    /// Backups.
    pub backups: u64,
}

impl TenantRepository {
    pub(crate) fn new(
        repository: Repository,
        tenant: TenantId,
        folder: TenantFolder,
        sealer: Sealer,
        data_key: DataKey,
        data_key_id: String,
    ) -> Self {
        Self {
            inner: Arc::new(TenantInner {
                repository,
                tenant,
                folder,
                sealer,
                data_key,
                data_key_id,
            }),
        }
    }

    /// Whose part it is.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.inner.tenant
    }

    /// Where the repository is, for people.
    #[must_use]
    pub fn place(&self) -> &str {
        self.inner.repository.place()
    }

    /// The key of row fingerprints (rule 28): the same for all backups of the tenant, so that they can
    /// be compared.
    #[must_use]
    pub fn fingerprint_key(&self) -> [u8; 32] {
        self.sealer().keys.fingerprint_key()
    }

    /// The slots from which the tenant's data key can be opened, oldest first.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn keys(&self) -> Result<Vec<KeySlot>, RepositoryError> {
        let mut slots: Vec<KeySlot> = self
            .stored_slots()
            .await?
            .into_iter()
            .map(|(id, slot)| KeySlot {
                id,
                kind: slot.kind,
                created: slot.created,
            })
            .collect();
        slots.sort_by_key(|slot| slot.created);
        Ok(slots)
    }

    /// Adds a key beside those there are.
    ///
    /// # Errors
    ///
    /// When the key cannot be read or the slot not be written.
    pub async fn key_add(&self, unlock: &Unlock) -> Result<KeySlot, RepositoryError> {
        self.inner.repository.writable()?;
        let unlock = unlock.clone();
        let unlock = Arc::new(self.cpu().run(move || UnlockKey::read(&unlock)).await?);
        let slot = self
            .inner
            .repository
            .wrap(
                self.sealer().binding,
                self.inner.data_key.copy(),
                &self.inner.data_key_id,
                &unlock,
            )
            .await?;
        let (id, _) = write_slot(self.store(), self.inner.folder, &slot).await?;
        Ok(KeySlot {
            id,
            kind: slot.kind,
            created: slot.created,
        })
    }

    /// Puts a new key in the place of the one that `old` is. Backups are not touched: the data key stays.
    ///
    /// # Errors
    ///
    /// When `old` opens nothing, or a key cannot be read, or the slot not be written.
    pub async fn key_rotate(&self, old: &Unlock, new: &Unlock) -> Result<KeySlot, RepositoryError> {
        let binding = self.sealer().binding;
        let slots = self.stored_slots().await?;
        let old = old.clone();
        let opened: Vec<String> = self
            .cpu()
            .run(move || {
                let old = UnlockKey::read(&old)?;
                Ok(slots
                    .into_iter()
                    .filter(|(_, slot)| old.unwrap(binding, slot).is_some())
                    .map(|(id, _)| id)
                    .collect())
            })
            .await?;
        if opened.is_empty() {
            return Err(RepositoryError::WrongKey {
                tenant: self.inner.tenant.clone(),
                place: self.place().to_owned(),
            });
        }
        let added = self.key_add(new).await?;
        for id in opened {
            self.key_remove(&id).await?;
        }
        Ok(added)
    }

    /// Removes a key. Whoever knew it and copied the slot before can still open that copy.
    ///
    /// # Errors
    ///
    /// When there is no such key, or it is the last one.
    pub async fn key_remove(&self, id: &str) -> Result<(), RepositoryError> {
        self.inner.repository.writable()?;
        let slots = self.stored_slots().await?;
        if !slots.contains_key(id) {
            return Err(RepositoryError::NoSuchKey(id.to_owned()));
        }
        if slots.len() == 1 {
            return Err(RepositoryError::LastKey);
        }
        self.store().delete(&slot_path(self.inner.folder, id)).await
    }

    /// What the tenant's part of the store holds.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn statistics(&self) -> Result<Statistics, RepositoryError> {
        let all = self.store().list(&self.inner.folder.path()).await?;
        let packs = self.inner.folder.folder(Kind::Pack);
        let mut named = std::collections::HashSet::new();
        let listing = self.backups().await?;
        for summary in &listing.backups {
            let manifest = self.manifest(summary.id).await?;
            named.extend(manifest.packs.iter().map(|pack| pack.name));
        }
        let mut statistics = Statistics {
            backups: listing.backups.len() as u64,
            ..Statistics::default()
        };
        for listed in &all {
            statistics.objects += 1;
            statistics.bytes += listed.size;
            if listed.path.prefix_matches(&packs) {
                statistics.packs += 1;
                statistics.pack_bytes += listed.size;
                if listed.name().is_some_and(|name| named.contains(&name)) {
                    statistics.named_pack_bytes += listed.size;
                }
            }
        }
        Ok(statistics)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.repository.inner.store
    }

    pub(crate) fn sealer(&self) -> &Sealer {
        &self.inner.sealer
    }

    pub(crate) fn cpu(&self) -> &CpuPool {
        &self.inner.repository.inner.cpu
    }

    pub(crate) fn path(&self, kind: Kind, name: ObjectName) -> Path {
        self.inner.folder.object(kind, name)
    }

    /// Everything of a kind.
    pub(crate) async fn list(&self, kind: Kind) -> Result<Vec<Listed>, RepositoryError> {
        self.store().list(&self.inner.folder.folder(kind)).await
    }

    /// The names and sizes of everything of a kind.
    pub(crate) async fn sizes(
        &self,
        kind: Kind,
    ) -> Result<BTreeMap<ObjectName, u64>, RepositoryError> {
        Ok(self
            .list(kind)
            .await?
            .into_iter()
            .filter_map(|listed| Some((listed.name()?, listed.size)))
            .collect())
    }

    /// Writes a small object unless its name is taken.
    pub(crate) async fn put_json_new(
        &self,
        kind: Kind,
        name: ObjectName,
        value: &impl Serialize,
    ) -> Result<Put, RepositoryError> {
        let bytes = self.sealer().seal_json(kind, name, value);
        self.store()
            .put_new(&self.path(kind, name), bytes.into())
            .await
    }

    /// A small object, if it is there, and when it was written by the store's clock.
    pub(crate) async fn get_json<T: DeserializeOwned>(
        &self,
        kind: Kind,
        name: ObjectName,
    ) -> Result<Option<(T, Timestamp)>, RepositoryError> {
        let path = self.path(kind, name);
        let Some((bytes, modified)) = self.store().get_dated(&path).await? else {
            return Ok(None);
        };
        let value = self.sealer().open_json(kind, name, path.as_ref(), &bytes)?;
        Ok(Some((value, modified)))
    }

    /// Records that an object was found damaged or missing, so that nothing is taken over from it any
    /// more (rule 24).
    pub(crate) async fn mark_damaged(
        &self,
        name: ObjectName,
        what: &str,
    ) -> Result<(), RepositoryError> {
        let record = DamageRecord {
            what: what.to_owned(),
            when: Timestamp::now(),
        };
        // One that is there already says as much.
        self.put_json_new(Kind::Damage, name, &record).await?;
        Ok(())
    }

    async fn stored_slots(&self) -> Result<BTreeMap<String, StoredSlot>, RepositoryError> {
        let (slots, _) =
            stored_slots(self.store(), self.inner.folder, &self.inner.data_key_id).await?;
        Ok(slots)
    }
}

fn slot_path(folder: TenantFolder, id: &str) -> Path {
    Path::from(format!("{}/{id}.json", folder.keys()))
}

/// The slots that are not to be tried.
#[derive(Debug, Default)]
pub(crate) struct SlotCounts {
    /// Slots of the data key that was asked for.
    pub(crate) sound: usize,
    /// Slots of another data key.
    pub(crate) foreign: usize,
    /// Slots that are not what was written.
    pub(crate) damaged: Vec<Damage>,
}

/// The slots of a data key, by id, and what else lies beside them.
pub(crate) async fn stored_slots(
    store: &Store,
    folder: TenantFolder,
    data_key_id: &str,
) -> Result<(BTreeMap<String, StoredSlot>, SlotCounts), RepositoryError> {
    let mut slots = BTreeMap::new();
    let mut counts = SlotCounts::default();
    for listed in store.list(&folder.keys()).await? {
        let Some(id) = listed
            .path
            .filename()
            .and_then(|name| name.strip_suffix(".json"))
        else {
            continue;
        };
        let Some(bytes) = store.get(&listed.path).await? else {
            continue;
        };
        match StoredSlot::read(listed.path.as_ref(), &bytes) {
            Ok(slot) if slot.data_key_id == data_key_id => {
                slots.insert(id.to_owned(), slot);
            }
            Ok(_) => counts.foreign += 1,
            // Another slot may still open; when none does, the reader is told of this one.
            Err(RepositoryError::Damaged(damage)) => {
                tracing::warn!(%damage, "a key slot is damaged");
                counts.damaged.push(damage);
            }
            Err(error) => return Err(error),
        }
    }
    counts.sound = slots.len();
    Ok((slots, counts))
}

/// Writes a new slot and gives back its id and place.
pub(crate) async fn write_slot(
    store: &Store,
    folder: TenantFolder,
    slot: &StoredSlot,
) -> Result<(String, Path), RepositoryError> {
    let id = hex::encode(random_bytes::<8>());
    let path = slot_path(folder, &id);
    let text = serde_json::to_vec_pretty(slot).expect("a slot is plain JSON");
    if store.put_new(&path, text.into()).await? == Put::Exists {
        return Err(RepositoryError::damaged(
            path,
            "another key slot has the random name that was drawn for this one",
        ));
    }
    Ok((id, path))
}
