//! The backups of a tenant: listing, reading, holding and forgetting them.

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use fettler_model::{BackupId, Timestamp};
use futures::{StreamExt, TryStreamExt};

use crate::{
    BackupListing, Fence, Manifest, ManifestSummary, RepositoryError, TenantRepository,
    UnreadableBackup,
    announce::{Announcement, ForgottenRecord},
    layout::{Kind, ObjectName},
    manifest::{Body, Head},
    seal::{from_json, to_json},
    store::{Listed, Put, SMALL_REQUESTS},
};

/// Bytes that are read of a manifest to see its head.
const HEAD_BYTES: u64 = 16 * 1024;

/// What lies at a manifest's name.
pub(crate) enum Found {
    Backup(Box<Manifest>),
    Tombstone { why: String },
}

impl TenantRepository {
    /// All backups, oldest first. What cannot be read is reported beside them.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn backups(&self) -> Result<BackupListing, RepositoryError> {
        let manifests = self.list(Kind::Manifest).await?;
        let held = self.names(Kind::Hold).await?;
        let forgotten = self.names(Kind::Forgotten).await?;
        let damaged = self.names(Kind::Damage).await?;
        let mut listing = BackupListing::default();
        let read = futures::stream::iter(manifests.into_iter().map(|listed| async move {
            let outcome = self.read_head(&listed).await;
            (listed, outcome)
        }))
        .buffer_unordered(SMALL_REQUESTS)
        .collect::<Vec<_>>()
        .await;
        for (listed, outcome) in read {
            match outcome {
                Ok(Some(Head::Backup { summary, .. })) => {
                    let name = self.sealer().keys.backup_name(summary.id);
                    // A hold that met a forgetting has won.
                    if forgotten.contains(&name) && !held.contains(&name) {
                        continue;
                    }
                    listing.backups.push(ManifestSummary {
                        held: held.contains(&name),
                        ..*summary
                    });
                }
                Ok(Some(Head::Tombstone { .. }) | None) => {}
                Err(error) if matches!(error.class(), fettler_model::ErrorClass::Permanent) => {
                    listing.unreadable.push(UnreadableBackup {
                        object: listed.path.to_string(),
                        error,
                    });
                }
                Err(error) => return Err(error),
            }
        }
        listing
            .backups
            .sort_by_key(|summary| (summary.started, summary.id));
        // Damage is rare, so that the bodies are read only where there is some.
        if !damaged.is_empty() {
            for summary in &mut listing.backups {
                let name = self.sealer().keys.backup_name(summary.id);
                if damaged.contains(&name) {
                    summary.damaged = true;
                    continue;
                }
                match self.read_manifest(summary.id).await {
                    Ok(Some(Found::Backup(manifest))) => {
                        summary.damaged = needs_any(&manifest, &damaged);
                    }
                    Ok(_) => {}
                    Err(RepositoryError::Damaged(_)) => summary.damaged = true,
                    Err(error) => return Err(error),
                }
            }
        }
        listing
            .unreadable
            .sort_by(|one, other| one.object.cmp(&other.object));
        Ok(listing)
    }

    /// A backup's whole manifest.
    ///
    /// # Errors
    ///
    /// When there is no such backup, or its manifest cannot be read.
    pub async fn manifest(&self, id: BackupId) -> Result<Manifest, RepositoryError> {
        let name = self.sealer().keys.backup_name(id);
        let Some(Found::Backup(mut manifest)) = self.read_manifest(id).await? else {
            return Err(RepositoryError::NoSuchBackup(id));
        };
        manifest.summary.held = self.has(Kind::Hold, name).await?;
        if !manifest.summary.held && self.has(Kind::Forgotten, name).await? {
            return Err(RepositoryError::NoSuchBackup(id));
        }
        manifest.summary.damaged = needs_any(&manifest, &self.names(Kind::Damage).await?);
        Ok(*manifest)
    }

    /// Holds a backup, which then is neither forgotten nor collected, or releases it.
    ///
    /// # Errors
    ///
    /// When there is no such backup, or the store refuses.
    pub async fn hold(&self, id: BackupId, on: bool) -> Result<(), RepositoryError> {
        self.inner.repository.writable()?;
        let name = self.sealer().keys.backup_name(id);
        if !on {
            return self.store().delete(&self.path(Kind::Hold, name)).await;
        }
        self.manifest(id).await?;
        self.put_json_new(Kind::Hold, name, &id).await?;
        // A forgetting that came between the look and the hold sees the hold, or is seen here.
        if self.has(Kind::Forgotten, name).await? {
            self.store().delete(&self.path(Kind::Hold, name)).await?;
            return Err(RepositoryError::NoSuchBackup(id));
        }
        Ok(())
    }

    /// Whether a backup is held.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn is_held(&self, id: BackupId) -> Result<bool, RepositoryError> {
        self.has(Kind::Hold, self.sealer().keys.backup_name(id))
            .await
    }

    /// Whether a backup was forgotten on purpose.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn was_forgotten(&self, id: BackupId) -> Result<bool, RepositoryError> {
        self.has(Kind::Forgotten, self.sealer().keys.backup_name(id))
            .await
    }

    /// Forgets a backup: a record of it comes first, so that nobody takes it for lost. From then on it
    /// is no backup any more; its bytes stay until a collection finds that nobody needs them, and as
    /// long as a running backup takes over from it (rule 21). Forgetting it again changes nothing.
    ///
    /// # Errors
    ///
    /// When it is held, when there is no such backup, or when the store refuses.
    pub async fn forget(
        &self,
        id: BackupId,
        reason: &str,
        fence: &dyn Fence,
    ) -> Result<(), RepositoryError> {
        self.inner.repository.writable()?;
        let name = self.sealer().keys.backup_name(id);
        if self.has(Kind::Hold, name).await? {
            return Err(RepositoryError::Held(id));
        }
        let there = self.has(Kind::Manifest, name).await?;
        // One that vanished is forgotten so that collection goes on.
        if !there
            && !self.has(Kind::Forgotten, name).await?
            && !self.was_seen_by_a_collection(name).await?
        {
            return Err(RepositoryError::NoSuchBackup(id));
        }
        fence.check().await.map_err(RepositoryError::Fenced)?;
        let record = ForgottenRecord {
            backup: id,
            reason: reason.to_owned(),
            when: Timestamp::now(),
        };
        self.put_json_new(Kind::Forgotten, name, &record).await?;
        if self.has(Kind::Hold, name).await? {
            self.store()
                .delete(&self.path(Kind::Forgotten, name))
                .await?;
            return Err(RepositoryError::Held(id));
        }
        let needed = self
            .announcements()
            .await?
            .iter()
            .any(|(_, announcement)| announcement.parent == Some(id));
        if !needed {
            self.store()
                .delete(&self.path(Kind::Manifest, name))
                .await?;
        }
        Ok(())
    }

    /// Gives up a backup that was begun and will not be continued: nobody can commit it any more, and
    /// what it stored is collected. A backup that was committed stays.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn abandon(&self, id: BackupId, why: &str) -> Result<(), RepositoryError> {
        self.inner.repository.writable()?;
        self.bury(id, why).await?;
        self.end_announcement(id).await
    }

    /// Puts a tombstone at the manifest's name unless something is there; whichever came first stays
    /// (rule 22).
    pub(crate) async fn bury(&self, id: BackupId, why: &str) -> Result<Put, RepositoryError> {
        let name = self.sealer().keys.backup_name(id);
        let head = Head::Tombstone {
            backup: id,
            why: why.to_owned(),
        };
        let object = self
            .sealer()
            .seal(Kind::Manifest, name, &[&to_json(&head), b"{}"]);
        self.store()
            .put_new(&self.path(Kind::Manifest, name), object.into())
            .await
    }

    /// Takes the announcement of a backup away, with what it recorded of its packs.
    pub(crate) async fn end_announcement(&self, id: BackupId) -> Result<(), RepositoryError> {
        let name = self.sealer().keys.backup_name(id);
        // Segments go last, so that those without an announcement are known to be left over.
        self.store()
            .delete(&self.path(Kind::Announcement, name))
            .await?;
        let segments = self.store().list(&self.inner.folder.segments(name)).await?;
        self.store()
            .delete_all(segments.into_iter().map(|listed| listed.path))
            .await
    }

    /// The running backups.
    pub(crate) async fn announcements(
        &self,
    ) -> Result<Vec<(Listed, Announcement)>, RepositoryError> {
        let listed = self.list(Kind::Announcement).await?;
        futures::stream::iter(listed.into_iter().map(|listed| async move {
            let Some(name) = listed.name() else {
                return Ok(None);
            };
            let found = self.get_json(Kind::Announcement, name).await?;
            Ok(found.map(|(announcement, _)| (listed, announcement)))
        }))
        .buffer_unordered(SMALL_REQUESTS)
        .try_filter_map(|found| async move { Ok(found) })
        .try_collect()
        .await
    }

    /// What lies at a backup's name.
    pub(crate) async fn read_manifest(
        &self,
        id: BackupId,
    ) -> Result<Option<Found>, RepositoryError> {
        let name = self.sealer().keys.backup_name(id);
        self.read_manifest_named(name).await
    }

    pub(crate) async fn read_manifest_named(
        &self,
        name: ObjectName,
    ) -> Result<Option<Found>, RepositoryError> {
        let path = self.path(Kind::Manifest, name);
        let Some(bytes) = self.store().get(&path).await? else {
            return Ok(None);
        };
        self.open_manifest(name, path.as_ref(), &bytes).map(Some)
    }

    pub(crate) fn open_manifest(
        &self,
        name: ObjectName,
        object: &str,
        bytes: &[u8],
    ) -> Result<Found, RepositoryError> {
        let [head, body] = self
            .sealer()
            .open::<2>(Kind::Manifest, name, object, bytes)?;
        let head = from_json::<Head>(object, &head)?;
        match head {
            Head::Tombstone { why, .. } => Ok(Found::Tombstone { why }),
            Head::Backup { summary, .. } => {
                let body: Body = from_json(object, &body)?;
                Ok(Found::Backup(Box::new(Manifest {
                    summary: *summary,
                    report: body.report,
                    streams: body.streams,
                    packs: body.packs,
                })))
            }
        }
    }

    /// A manifest as an object.
    pub(crate) fn seal_manifest(&self, name: ObjectName, manifest: &Manifest) -> Bytes {
        let body = to_json(&Body {
            report: manifest.report.clone(),
            streams: manifest.streams.clone(),
            packs: manifest.packs.clone(),
        });
        // The head says how long the sealed body is, which is known only once it is sealed: framing is
        // a function of the body alone.
        let mut framed = Vec::new();
        crate::seal::append_frame(&body, &mut framed);
        let head = Head::Backup {
            body_bytes: framed.len() as u64,
            summary: Box::new(manifest.summary.clone()),
        };
        self.sealer()
            .seal(Kind::Manifest, name, &[&to_json(&head), &body])
    }

    /// The head of a listed manifest, if it is still there.
    async fn read_head(&self, listed: &Listed) -> Result<Option<Head>, RepositoryError> {
        let object = listed.path.as_ref();
        let Some(name) = listed.name() else {
            return Err(RepositoryError::damaged(
                object,
                "it has no manifest's name",
            ));
        };
        let range = 0..listed.size.min(HEAD_BYTES);
        let Some(bytes) = self.store().get_range(&listed.path, range).await? else {
            return Ok(None);
        };
        let (mut opened, mut bytes) = (
            self.sealer()
                .open_first(Kind::Manifest, name, object, &bytes)?,
            bytes,
        );
        if opened.is_none() && listed.size > HEAD_BYTES {
            let Some(whole) = self.store().get(&listed.path).await? else {
                return Ok(None);
            };
            opened = self
                .sealer()
                .open_first(Kind::Manifest, name, object, &whole)?;
            bytes = whole;
        }
        let frame = opened
            .ok_or_else(|| RepositoryError::damaged(object, "it ends within its first frame"))?;
        let head: Head = from_json(object, &frame)?;
        if let Head::Backup { body_bytes, .. } = &head {
            let first = u32::from_le_bytes(
                bytes[crate::seal::HEADER_BYTES..][..4]
                    .try_into()
                    .expect("four bytes"),
            );
            let whole = crate::seal::HEADER_BYTES as u64 + 4 + u64::from(first) + body_bytes;
            if whole != listed.size {
                return Err(RepositoryError::damaged(
                    object,
                    format!("it has {} bytes instead of {whole}", listed.size),
                ));
            }
        }
        Ok(Some(head))
    }

    /// The names of everything of a kind.
    pub(crate) async fn names(&self, kind: Kind) -> Result<HashSet<ObjectName>, RepositoryError> {
        Ok(self
            .list(kind)
            .await?
            .iter()
            .filter_map(Listed::name)
            .collect())
    }

    pub(crate) async fn has(&self, kind: Kind, name: ObjectName) -> Result<bool, RepositoryError> {
        Ok(self.store().size(&self.path(kind, name)).await?.is_some())
    }
}

/// Whether a backup needs an object that is marked as damaged.
pub(crate) fn needs_any(manifest: &Manifest, damaged: &HashSet<ObjectName>) -> bool {
    let packs: BTreeSet<_> = manifest.packs.iter().map(|pack| pack.name).collect();
    !damaged.is_empty()
        && (packs.iter().any(|name| damaged.contains(name))
            || manifest
                .indexes()
                .any(|index| damaged.contains(&index.name)))
}
