//! Opening a repository: the config object, the trial of the store, and the tenants' keys.

use std::{fmt, sync::Arc};

use fettler_model::{TenantId, Timestamp};
use object_store::ObjectStore;
use serde::{Deserialize, Serialize};

use crate::{
    CpuPool, PassphraseCost, RepositoryError, TenantRepository, Unlock,
    keys::{DataKey, TenantKeys},
    layout::{
        CONFIG, FORMAT, Kind, ObjectName, RepositoryId, TENANTS, TRIALS, TenantFolder, random_bytes,
    },
    seal::{Binding, Sealer, read_header},
    slots::{StoredSlot, UnlockKey},
    store::{Put, Store},
    tenant::{self, SlotCounts},
};

/// How often a request that failed in a way that may pass is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries(pub u32);

impl Default for Retries {
    fn default() -> Self {
        Self(5)
    }
}

/// How content is cut into chunks, fixed when a repository is made: with other sizes nothing that was
/// stored before would be found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkSizes {
    pub(crate) least: u32,
    pub(crate) average: u32,
    pub(crate) most: u32,
    /// For streams that are cut at pages.
    pub(crate) pages: u32,
}

impl Default for ChunkSizes {
    fn default() -> Self {
        Self {
            least: 128 << 10,
            average: 256 << 10,
            most: 1 << 20,
            pages: 64 << 10,
        }
    }
}

impl ChunkSizes {
    /// Whether the sizes are ones that the chunker can work with.
    fn are_sound(self) -> bool {
        (64..=1 << 20).contains(&self.least)
            && (256..=4 << 20).contains(&self.average)
            && (1024..=MOST_CHUNK_BYTES).contains(&self.most)
            && self.least < self.average
            && self.average < self.most
            && [self.least, self.average, self.most]
                .iter()
                .all(|size| size.is_multiple_of(2))
            && (512..=MOST_CHUNK_BYTES).contains(&self.pages)
    }
}

/// The config object, in the clear.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Config {
    format: u32,
    id: String,
    created: Timestamp,
    chunks: ChunkSizes,
    pack_bytes: u32,
    /// Against accidents: a digest of the other fields.
    check: String,
}

/// How a repository is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Make the repository when the place is empty.
    pub create: bool,
    /// The pool that hashes, compresses and seals.
    pub cpu: CpuPool,
    /// How much work a passphrase of a new key slot costs to try.
    pub passphrase_cost: PassphraseCost,
    /// How often requests are tried again.
    pub retries: Retries,
    /// For a new repository: divides the sizes of chunks and packs, so that tests see many of them.
    pub new_with_sizes_divided_by: u32,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            create: false,
            cpu: CpuPool::default(),
            passphrase_cost: PassphraseCost::default(),
            retries: Retries::default(),
            new_with_sizes_divided_by: 1,
        }
    }
}

/// Whether a tenant's data key is made when there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateKey {
    /// On the tenant's first backup.
    IfAbsent,
    /// Never: something is to be read.
    Never,
}

/// Bytes at which a pack is closed.
const PACK_BYTES: u32 = 32 << 20;

/// The longest chunk that is supported: half of what a stream's writer cuts at once.
const MOST_CHUNK_BYTES: u32 = 1 << 20;

/// The most slots of a tenant that are tried.
const MAX_KEY_SLOTS: usize = 64;

/// An opened repository. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) id: RepositoryId,
    pub(crate) chunks: ChunkSizes,
    pub(crate) pack_bytes: usize,
    pub(crate) cpu: CpuPool,
    pub(crate) passphrase_cost: PassphraseCost,
    /// Why nothing may be written, when the trial at opening was refused.
    read_only: Option<RepositoryError>,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("place", &self.inner.store.place())
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// Opens the repository at `place`: a folder (`/path`, `./path`, `file:///path`) or a bucket
    /// (`s3://bucket/prefix`, with keys, region and endpoint from `AWS_*` variables).
    ///
    /// # Errors
    ///
    /// When the place is not understood, holds no repository and none is to be made, or when the store
    /// refuses, does not answer, or ignores create-only-if-absent (rule 23).
    pub async fn open(place: &str, options: OpenOptions) -> Result<Self, RepositoryError> {
        let store = Store::open(place, options.create, options.retries).await?;
        Self::open_store(store, options).await
    }

    /// Opens the repository in a store of the caller's making; `place` is its name for people.
    ///
    /// # Errors
    ///
    /// As [`Repository::open`].
    pub async fn with_store(
        objects: Arc<dyn ObjectStore>,
        place: &str,
        options: OpenOptions,
    ) -> Result<Self, RepositoryError> {
        let store = Store::with_objects(objects, place, options.retries);
        Self::open_store(store, options).await
    }

    async fn open_store(store: Store, options: OpenOptions) -> Result<Self, RepositoryError> {
        let path = CONFIG.into();
        let mut bytes = store.get(&path).await?;
        if bytes.is_none() && !options.create {
            return Err(RepositoryError::Missing {
                place: store.place().to_owned(),
            });
        }
        if bytes.is_none() && !store.is_empty().await? {
            // Another process may be making the repository at this very moment.
            bytes = wait_for_config(&store).await?;
            if bytes.is_none() {
                return Err(RepositoryError::NotARepository {
                    place: store.place().to_owned(),
                    what: format!("other files lie there, and no {CONFIG}"),
                });
            }
        }
        let read_only = match try_create_only(&store).await {
            Ok(()) => None,
            // Reading a repository needs no right to write to it.
            Err(error @ RepositoryError::StoreRefused { .. }) if bytes.is_some() => Some(error),
            Err(error) => return Err(error),
        };
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => {
                let config = Config::new(options.new_with_sizes_divided_by.max(1));
                let text = serde_json::to_vec_pretty(&config).expect("a config is plain JSON");
                store.put_new(&path, text.into()).await?;
                // Whichever process came first decided.
                store
                    .get(&path)
                    .await?
                    .ok_or_else(|| RepositoryError::Missing {
                        place: store.place().to_owned(),
                    })?
            }
        };
        let (config, id) = Config::read(&store, &bytes)?;
        Ok(Self {
            inner: Arc::new(Inner {
                id,
                chunks: config.chunks,
                pack_bytes: config.pack_bytes as usize,
                cpu: options.cpu,
                passphrase_cost: options.passphrase_cost,
                read_only,
                store,
            }),
        })
    }

    /// Where the repository is, for people.
    #[must_use]
    pub fn place(&self) -> &str {
        self.inner.store.place()
    }

    /// The tenant's part of the repository. Its data key is unwrapped, or made on first use (P5).
    ///
    /// # Errors
    ///
    /// When the key does not open the tenant's data key, or there is none and none is to be made.
    pub async fn tenant(
        &self,
        tenant: &TenantId,
        unlock: &Unlock,
        create: CreateKey,
    ) -> Result<TenantRepository, RepositoryError> {
        let inner = &self.inner;
        let store = &inner.store;
        let folder = TenantFolder::of(inner.id, tenant);
        let binding = Binding {
            repository: inner.id,
            folder,
        };
        let unlock = unlock.clone();
        let unlock = Arc::new(inner.cpu.run(move || UnlockKey::read(&unlock)).await?);
        loop {
            if let Some(origin) = store.get(&folder.tenant_object()).await? {
                let key = self
                    .unwrap_data_key(tenant, binding, &origin, unlock)
                    .await?;
                let sealer = Sealer {
                    keys: Arc::new(TenantKeys::derive(&key)),
                    binding,
                };
                let name: String = sealer.open_json(
                    Kind::Tenant,
                    ObjectName([0; 32]),
                    folder.tenant_object().as_ref(),
                    &origin,
                )?;
                if name != tenant.as_str() {
                    return Err(RepositoryError::damaged(
                        folder.tenant_object(),
                        "it speaks of another tenant",
                    ));
                }
                let data_key_id = hex::encode(read_header(
                    folder.tenant_object().as_ref(),
                    Kind::Tenant,
                    &origin,
                )?);
                return Ok(TenantRepository::new(
                    self.clone(),
                    tenant.clone(),
                    folder,
                    sealer,
                    key,
                    data_key_id,
                ));
            }
            if create == CreateKey::Never {
                return Err(RepositoryError::NoSuchTenant {
                    tenant: tenant.clone(),
                    place: store.place().to_owned(),
                });
            }
            self.writable()?;
            self.create_tenant(tenant, binding, &unlock).await?;
        }
    }

    /// The tenants whose data key `unlock` opens, by name, and how many others there are.
    ///
    /// # Errors
    ///
    /// When the key cannot be read or the store does not answer.
    pub async fn tenants(
        &self,
        unlock: &Unlock,
    ) -> Result<(Vec<TenantId>, usize), RepositoryError> {
        let store = &self.inner.store;
        let read = unlock.clone();
        let unlock = Arc::new(self.inner.cpu.run(move || UnlockKey::read(&read)).await?);
        let (mut opened, mut closed) = (Vec::new(), 0);
        for name in store.folders(&TENANTS.into()).await? {
            let mut bytes = [0; 16];
            if hex::decode_to_slice(&name, &mut bytes).is_err() {
                continue;
            }
            let folder = TenantFolder(bytes);
            let binding = Binding {
                repository: self.inner.id,
                folder,
            };
            let Some(origin) = store.get(&folder.tenant_object()).await? else {
                continue;
            };
            let Some(key) = self
                .try_slots(binding, &origin, Arc::clone(&unlock))
                .await?
                .0
            else {
                closed += 1;
                continue;
            };
            let sealer = Sealer {
                keys: Arc::new(TenantKeys::derive(&key)),
                binding,
            };
            let name: TenantId = sealer.open_json(
                Kind::Tenant,
                ObjectName([0; 32]),
                folder.tenant_object().as_ref(),
                &origin,
            )?;
            opened.push(name);
        }
        opened.sort();
        Ok((opened, closed))
    }

    /// An error when the trial at opening showed that nothing can be written.
    pub(crate) fn writable(&self) -> Result<(), RepositoryError> {
        self.inner.read_only.clone().map_or(Ok(()), Err)
    }

    async fn unwrap_data_key(
        &self,
        tenant: &TenantId,
        binding: Binding,
        origin: &[u8],
        unlock: Arc<UnlockKey>,
    ) -> Result<DataKey, RepositoryError> {
        let place = || self.inner.store.place().to_owned();
        let (key, slots) = self.try_slots(binding, origin, unlock).await?;
        match (key, slots.sound) {
            (Some(key), _) => Ok(key),
            (None, _) if !slots.damaged.is_empty() => Err(RepositoryError::Damaged(
                slots.damaged.into_iter().next().expect("there is one"),
            )),
            (None, 0) if slots.foreign > 0 => Err(RepositoryError::damaged(
                binding.folder.tenant_object(),
                "no key slot belongs to the data key that it names",
            )),
            (None, 0) => Err(RepositoryError::KeysDestroyed {
                tenant: tenant.clone(),
                place: place(),
            }),
            (None, _) => Err(RepositoryError::WrongKey {
                tenant: tenant.clone(),
                place: place(),
            }),
        }
    }

    /// The data key if one of the slots opens, and what slots there are.
    async fn try_slots(
        &self,
        binding: Binding,
        origin: &[u8],
        unlock: Arc<UnlockKey>,
    ) -> Result<(Option<DataKey>, SlotCounts), RepositoryError> {
        let object = binding.folder.tenant_object();
        let data_key_id = hex::encode(read_header(object.as_ref(), Kind::Tenant, origin)?);
        let (slots, counts) =
            tenant::stored_slots(&self.inner.store, binding.folder, &data_key_id).await?;
        let key = self
            .inner
            .cpu
            .run(move || {
                slots
                    .iter()
                    .take(MAX_KEY_SLOTS)
                    .find_map(|(_, slot)| unlock.unwrap(binding, slot))
            })
            .await;
        Ok((key, counts))
    }

    /// Makes a data key and the first slot for it. The tenant's object decides between processes that
    /// do so at once: slots of the data key that lost are never looked at.
    async fn create_tenant(
        &self,
        tenant: &TenantId,
        binding: Binding,
        unlock: &Arc<UnlockKey>,
    ) -> Result<(), RepositoryError> {
        let store = &self.inner.store;
        let (key, salt) = (DataKey::random(), random_bytes::<32>());
        let sealer = Sealer {
            keys: Arc::new(TenantKeys::derive(&key)),
            binding,
        };
        let slot = self.wrap(binding, key, &hex::encode(salt), unlock).await?;
        let slot_path = tenant::write_slot(store, binding.folder, &slot).await?.1;
        let origin = sealer.seal_with_salt(
            Kind::Tenant,
            ObjectName([0; 32]),
            &salt,
            &[&crate::seal::to_json(tenant)],
        );
        if store
            .put_new(&binding.folder.tenant_object(), origin.into())
            .await?
            == Put::Exists
        {
            store.delete(&slot_path).await?;
        }
        Ok(())
    }

    /// A slot for the data key.
    pub(crate) async fn wrap(
        &self,
        binding: Binding,
        key: DataKey,
        data_key_id: &str,
        unlock: &Arc<UnlockKey>,
    ) -> Result<StoredSlot, RepositoryError> {
        let cost = self.inner.passphrase_cost;
        let (unlock, data_key_id) = (Arc::clone(unlock), data_key_id.to_owned());
        self.inner
            .cpu
            .run(move || unlock.wrap(binding, &key, &data_key_id, cost))
            .await
    }
}

impl Config {
    fn new(divided_by: u32) -> Self {
        let sizes = ChunkSizes::default();
        let mut config = Self {
            format: FORMAT,
            id: hex::encode(random_bytes::<16>()),
            created: Timestamp::now(),
            chunks: ChunkSizes {
                least: sizes.least / divided_by,
                average: sizes.average / divided_by,
                most: sizes.most / divided_by,
                pages: sizes.pages / divided_by,
            },
            pack_bytes: PACK_BYTES / divided_by,
            check: String::new(),
        };
        config.check = config.digest();
        config
    }

    /// A digest of everything but itself: a flipped bit in the id would otherwise make every tenant
    /// unknown.
    fn digest(&self) -> String {
        digest(&format!(
            "{} {} {} {} {} {} {} {}",
            self.format,
            self.id,
            self.created,
            self.chunks.least,
            self.chunks.average,
            self.chunks.most,
            self.chunks.pages,
            self.pack_bytes
        ))
    }

    fn read(store: &Store, bytes: &[u8]) -> Result<(Self, RepositoryId), RepositoryError> {
        let not_one = |what: String| RepositoryError::NotARepository {
            place: store.place().to_owned(),
            what: format!("{CONFIG} {what}"),
        };
        let damaged = |error: serde_json::Error| {
            RepositoryError::damaged(CONFIG, format!("it does not read: {error}"))
        };
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(bytes).map_err(damaged)?;
        if format > FORMAT {
            return Err(RepositoryError::NewerFormat {
                object: CONFIG.to_owned(),
                version: format,
                known: FORMAT,
            });
        }
        let config: Self = serde_json::from_slice(bytes).map_err(damaged)?;
        if config.check != config.digest() {
            return Err(RepositoryError::damaged(
                CONFIG,
                "it is not what was written: its check does not match",
            ));
        }
        let mut id = [0; 16];
        hex::decode_to_slice(&config.id, &mut id)
            .map_err(|_| not_one("has no id of 32 hexadecimal digits".into()))?;
        if !config.chunks.are_sound() || !(4096..=64 << 20).contains(&config.pack_bytes) {
            return Err(not_one("names sizes that are out of bounds".into()));
        }
        Ok((config, RepositoryId(id)))
    }
}

/// A short digest of text that is in the clear, against accidents only.
pub(crate) fn digest(text: &str) -> String {
    hex::encode(&blake3::hash(text.as_bytes()).as_bytes()[..16])
}

/// Two processes that make a repository at once: the second sees the first one's trial before its
/// config object. Waits a moment for the latter.
async fn wait_for_config(store: &Store) -> Result<Option<bytes::Bytes>, RepositoryError> {
    const LOOKS: u32 = 50;
    const BETWEEN: std::time::Duration = std::time::Duration::from_millis(100);
    for look in 0..LOOKS {
        if let Some(bytes) = store.get(&CONFIG.into()).await? {
            return Ok(Some(bytes));
        }
        // What is there besides a trial is no repository in the making.
        let only_trials = store
            .list(&object_store::path::Path::from(""))
            .await?
            .iter()
            .all(|listed| listed.path.prefix_matches(&TRIALS.into()));
        if !only_trials {
            return store.get(&CONFIG.into()).await;
        }
        if look + 1 == LOOKS {
            break;
        }
        tokio::time::sleep(BETWEEN).await;
    }
    Ok(None)
}

/// Tries whether the store honours create-only-if-absent (rule 23): everything rests on that.
async fn try_create_only(store: &Store) -> Result<(), RepositoryError> {
    let path = object_store::path::Path::from(format!("{TRIALS}/{}", ObjectName::random()));
    store.put_once(&path, "first".into()).await?;
    let second = store.put_once(&path, "second".into()).await;
    store.delete(&path).await?;
    match second? {
        Put::Exists => Ok(()),
        Put::Created => Err(RepositoryError::IgnoresCreateOnly {
            place: store.place().to_owned(),
        }),
    }
}
