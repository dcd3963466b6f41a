//! The store below a repository: `object_store`, with what a repository needs beside it. Errors that name
//! the place, create-only-if-absent that survives retries, listings as plain data, durable local folders.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use fettler_model::Timestamp;
use fettler_telemetry::metric;
use futures::{StreamExt, TryStreamExt};
use object_store::{
    ClientOptions, Error as StoreError, GetOptions, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload, RetryConfig,
    aws::{AmazonS3Builder, Checksum},
    local::LocalFileSystem,
    path::Path,
    prefix::PrefixStore,
};
use tracing::Instrument;

use crate::{RepositoryError, layout::ObjectName, open::Retries};

/// The longest that one request may take: a pack over a slow line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The longest that a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests in flight when many small objects are read or deleted.
pub(crate) const SMALL_REQUESTS: usize = 16;

/// What a request asks of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Put,
    Get,
    Head,
    List,
    Delete,
}

impl Verb {
    /// For traces and metrics, which call it as HTTP does.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Put => "PUT",
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::List => "LIST",
            Self::Delete => "DELETE",
        }
    }

    /// For people: the request on `path`.
    fn on(self, path: &Path) -> String {
        let words = match self {
            Self::Put => "write",
            Self::Get => "read",
            Self::Head => "look at",
            Self::List => "list",
            Self::Delete => "delete",
        };
        format!("{words} {path}")
    }
}

/// Counts bytes on their way to the store (`sent`) or from it (`received`).
fn count_bytes(direction: &'static str, bytes: usize) {
    metrics::counter!(metric::STORE_BYTES, "direction" => direction).increment(bytes as u64);
}

/// What became of a write that was to create only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// The object is there and holds these bytes.
    Created,
    /// Another object has the name.
    Exists,
}

/// An object as a listing shows it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) path: Path,
    pub(crate) size: u64,
    /// By the store's own clock.
    pub(crate) modified: Timestamp,
}

impl Listed {
    /// The last part of its path, where that is the name of a sealed object.
    pub(crate) fn name(&self) -> Option<ObjectName> {
        self.path.filename()?.parse().ok()
    }
}

/// A store and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    objects: Arc<dyn ObjectStore>,
    place: Arc<str>,
    local: Option<PathBuf>,
    retries: Retries,
}

impl Store {
    /// Opens the store that `place` names. A local folder is made when `create` is set.
    pub(crate) async fn open(
        place: &str,
        create: bool,
        retries: Retries,
    ) -> Result<Self, RepositoryError> {
        let unknown = |why: &str| RepositoryError::UnknownPlace {
            // A URL may carry a password where none belongs.
            place: place
                .split_once('@')
                .map_or_else(|| place.to_owned(), |(_, rest)| format!("…@{rest}")),
            why: why.to_owned(),
        };
        if place.is_empty() {
            return Err(unknown("it is empty"));
        }
        match place.split_once("://") {
            None => Self::open_folder(PathBuf::from(place), create, retries).await,
            Some(("file", path)) => {
                let url = url::Url::parse(place).map_err(|error| unknown(&error.to_string()))?;
                let folder = url
                    .to_file_path()
                    .map_err(|()| unknown("write three slashes: file:///folder"))?;
                if path.is_empty() {
                    return Err(unknown("no folder is named"));
                }
                Self::open_folder(folder, create, retries).await
            }
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() || bucket.contains(['@', '?', '#', ':']) {
                    return Err(unknown(
                        "write s3://bucket or s3://bucket/prefix; keys and endpoint come from AWS_* variables",
                    ));
                }
                let prefix = Path::parse(prefix.trim_end_matches('/'))
                    .map_err(|error| unknown(&error.to_string()))?;
                let store = AmazonS3Builder::from_env()
                    .with_bucket_name(bucket)
                    .with_checksum_algorithm(Checksum::SHA256)
                    .with_retry(RetryConfig {
                        max_retries: retries.0 as usize,
                        ..RetryConfig::default()
                    })
                    .with_client_options(
                        s3_client_options()
                            .with_timeout(REQUEST_TIMEOUT)
                            .with_connect_timeout(CONNECT_TIMEOUT),
                    )
                    .build()
                    .map_err(|error| unknown(&error.to_string()))?;
                Ok(Self::with_objects(
                    Arc::new(PrefixStore::new(store, prefix)),
                    place,
                    retries,
                ))
            }
            Some((scheme, _)) => Err(unknown(&format!(
                "the scheme `{scheme}` is not known; there are folders and s3://"
            ))),
        }
    }

    async fn open_folder(
        folder: PathBuf,
        create: bool,
        retries: Retries,
    ) -> Result<Self, RepositoryError> {
        let place = folder.display().to_string();
        let opened = tokio::task::spawn_blocking(move || {
            if create {
                use std::os::unix::fs::DirBuilderExt;
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&folder)?;
            }
            let folder = folder.canonicalize()?;
            if !folder.is_dir() {
                return Err(std::io::ErrorKind::NotADirectory.into());
            }
            Ok(folder)
        })
        .await
        .expect("making a folder does not panic");
        let folder = opened.map_err(|error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => RepositoryError::Missing {
                place: place.clone(),
            },
            // A file in the way is told as one that exists already.
            std::io::ErrorKind::NotADirectory | std::io::ErrorKind::AlreadyExists => {
                RepositoryError::NotARepository {
                    place: place.clone(),
                    what: "it is not a folder".into(),
                }
            }
            _ => io_error(&place, "open the folder", &error)
                .unwrap_or_else(|| unavailable(&place, "open the folder", &error)),
        })?;
        let local = LocalFileSystem::new_with_prefix(&folder)
            .map_err(|error| unavailable(&place, "open the folder", &error))?
            .with_fsync(true);
        Ok(Self {
            local: Some(folder),
            ..Self::with_objects(Arc::new(local), &place, retries)
        })
    }

    pub(crate) fn with_objects(
        objects: Arc<dyn ObjectStore>,
        place: &str,
        retries: Retries,
    ) -> Self {
        Self {
            objects,
            place: place.into(),
            local: None,
            retries,
        }
    }

    /// Where the store is, for people.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// The folder, where the store is one.
    pub(crate) fn local_folder(&self) -> Option<&std::path::Path> {
        self.local.as_deref()
    }

    /// Writes an object unless the name is taken. That the name is taken by these very bytes, as after a
    /// request whose answer was lost, counts as written.
    pub(crate) async fn put_new(
        &self,
        path: &Path,
        payload: PutPayload,
    ) -> Result<Put, RepositoryError> {
        let outcome = self
            .with_retries(Verb::Put, path, || {
                self.objects
                    .put_opts(path, payload.clone(), PutOptions::from(PutMode::Create))
            })
            .await;
        match outcome {
            Ok(_) => {
                count_bytes("sent", payload.content_length());
                Ok(Put::Created)
            }
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                // What is there is compared by pieces, so that a pack is not copied for it.
                let there = self.get(path).await?;
                let same = there.is_some_and(|there| {
                    let mut rest = &there[..];
                    payload.iter().all(|piece| {
                        let matches = rest.starts_with(piece);
                        rest = &rest[piece.len().min(rest.len())..];
                        matches
                    }) && rest.is_empty()
                });
                Ok(if same { Put::Created } else { Put::Exists })
            }
            Err(error) => Err(self.error(&Verb::Put.on(path), &error)),
        }
    }

    /// One create-only write whose answer is passed on as it is, for the trial of the store.
    pub(crate) async fn put_once(&self, path: &Path, bytes: Bytes) -> Result<Put, RepositoryError> {
        let outcome = self
            .with_retries(Verb::Put, path, || {
                self.objects.put_opts(
                    path,
                    bytes.clone().into(),
                    PutOptions::from(PutMode::Create),
                )
            })
            .await;
        match outcome {
            Ok(_) => Ok(Put::Created),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                Ok(Put::Exists)
            }
            Err(error) => Err(self.error(&Verb::Put.on(path), &error)),
        }
    }

    /// Writes an object over whatever has the name.
    pub(crate) async fn put_over(&self, path: &Path, bytes: Bytes) -> Result<(), RepositoryError> {
        self.with_retries(Verb::Put, path, || {
            self.objects
                .put_opts(path, bytes.clone().into(), PutOptions::default())
        })
        .await
        .map_err(|error| self.error(&Verb::Put.on(path), &error))?;
        count_bytes("sent", bytes.len());
        Ok(())
    }

    /// The bytes of an object, if it is there.
    pub(crate) async fn get(&self, path: &Path) -> Result<Option<Bytes>, RepositoryError> {
        Ok(self.get_dated(path).await?.map(|(bytes, _)| bytes))
    }

    /// The bytes of an object and when it was written, if it is there.
    pub(crate) async fn get_dated(
        &self,
        path: &Path,
    ) -> Result<Option<(Bytes, Timestamp)>, RepositoryError> {
        let outcome = self
            .with_retries(Verb::Get, path, || async {
                let result = self.objects.get_opts(path, GetOptions::default()).await?;
                let modified = Timestamp::from_micros(result.meta.last_modified.timestamp_micros());
                Ok((result.bytes().await?, modified))
            })
            .await;
        match outcome {
            Ok(got) => {
                count_bytes("received", got.0.len());
                Ok(Some(got))
            }
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error(&Verb::Get.on(path), &error)),
        }
    }

    /// A part of an object, if the object is there; shorter when the object ends before.
    pub(crate) async fn get_range(
        &self,
        path: &Path,
        range: std::ops::Range<u64>,
    ) -> Result<Option<Bytes>, RepositoryError> {
        let outcome = self
            .with_retries(Verb::Get, path, || {
                self.objects.get_range(path, range.clone())
            })
            .await;
        match outcome {
            Ok(bytes) => {
                count_bytes("received", bytes.len());
                Ok(Some(bytes))
            }
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => {
                // A range beyond the end is told in other words by each store; what the object's size
                // is says it plainly.
                match self.size(path).await? {
                    None => Ok(None),
                    Some(size) if size <= range.start => Ok(Some(Bytes::new())),
                    Some(_) => Err(self.error(&Verb::Get.on(path), &error)),
                }
            }
        }
    }

    /// The size of an object, if it is there.
    pub(crate) async fn size(&self, path: &Path) -> Result<Option<u64>, RepositoryError> {
        Ok(self.head(path).await?.map(|listed| listed.size))
    }

    /// What a listing would say of an object, if it is there.
    pub(crate) async fn head(&self, path: &Path) -> Result<Option<Listed>, RepositoryError> {
        let outcome = self
            .with_retries(Verb::Head, path, || self.objects.head(path))
            .await;
        match outcome {
            Ok(meta) => Ok(Some(listed(meta))),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error(&Verb::Head.on(path), &error)),
        }
    }

    /// All objects below a folder.
    pub(crate) async fn list(&self, folder: &Path) -> Result<Vec<Listed>, RepositoryError> {
        self.with_retries(Verb::List, folder, || {
            self.objects
                .list(Some(folder))
                .map_ok(listed)
                .try_collect::<Vec<_>>()
        })
        .await
        .map_err(|error| self.error(&Verb::List.on(folder), &error))
    }

    /// The names of the folders directly below a folder.
    pub(crate) async fn folders(&self, folder: &Path) -> Result<Vec<String>, RepositoryError> {
        let result = self
            .with_retries(Verb::List, folder, || {
                self.objects.list_with_delimiter(Some(folder))
            })
            .await
            .map_err(|error| self.error(&Verb::List.on(folder), &error))?;
        Ok(result
            .common_prefixes
            .iter()
            .filter_map(|path| path.filename().map(str::to_owned))
            .collect())
    }

    /// Whether anything at all is in the store.
    pub(crate) async fn is_empty(&self) -> Result<bool, RepositoryError> {
        let mut listing = self.objects.list(None);
        match listing.next().await {
            None => Ok(true),
            Some(Ok(_)) => Ok(false),
            Some(Err(error)) => Err(self.error("list what is there", &error)),
        }
    }

    /// Deletes an object; one that is not there is no error.
    pub(crate) async fn delete(&self, path: &Path) -> Result<(), RepositoryError> {
        match self
            .with_retries(Verb::Delete, path, || self.objects.delete(path))
            .await
        {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error(&Verb::Delete.on(path), &error)),
        }
    }

    /// Deletes objects, several at a time.
    pub(crate) async fn delete_all(
        &self,
        paths: impl IntoIterator<Item = Path>,
    ) -> Result<(), RepositoryError> {
        futures::stream::iter(paths.into_iter().map(|path| async move {
            self.delete(&path).await?;
            fettler_fault_points::reached(fettler_fault_points::Point::CollectDeleting);
            Ok(())
        }))
        .buffer_unordered(SMALL_REQUESTS)
        .try_collect()
        .await
    }

    /// Tries again what may pass by itself, with exponential waits and jitter.
    async fn with_retries<T, F>(
        &self,
        verb: Verb,
        path: &Path,
        mut request: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let operation = verb.on(path);
        let mut waits = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(10))
            .with_max_times(self.retries.0 as usize)
            .with_jitter()
            .build();
        loop {
            let error = match self.observed(verb, path, request()).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if self.error(&operation, &error).class() != fettler_model::ErrorClass::Transient
                || is_no_space(&error)
                || matches!(
                    error,
                    StoreError::NotFound { .. }
                        | StoreError::AlreadyExists { .. }
                        | StoreError::Precondition { .. }
                )
            {
                return Err(error);
            }
            let Some(wait) = waits.next() else {
                return Err(error);
            };
            tracing::warn!(place = %self.place, operation, error = %error, "a request to the store failed and is tried again");
            tokio::time::sleep(wait).await;
        }
    }

    /// One try of a request, seen in traces and metrics.
    async fn observed<T>(
        &self,
        verb: Verb,
        path: &Path,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let span = tracing::info_span!(
            target: fettler_telemetry::TRACE,
            "store request",
            otel.name = verb.as_str(),
            otel.kind = "client",
            otel.status_code = tracing::field::Empty,
            fettler.repository.place = &*self.place,
            fettler.repository.object = %path,
            exception.message = tracing::field::Empty,
        );
        let began = Instant::now();
        let outcome = request.instrument(span.clone()).await;
        // That a name is taken or free is an answer like any other.
        let outcome_name = match &outcome {
            Ok(_)
            | Err(
                StoreError::NotFound { .. }
                | StoreError::AlreadyExists { .. }
                | StoreError::Precondition { .. },
            ) => "answered",
            Err(error) => {
                span.record("otel.status_code", "ERROR");
                span.record("exception.message", tracing::field::display(chain(error)));
                "failed"
            }
        };
        metrics::counter!(metric::STORE_REQUESTS, "operation" => verb.as_str(), "outcome" => outcome_name)
            .increment(1);
        metrics::histogram!(metric::STORE_SECONDS, "operation" => verb.as_str())
            .record(began.elapsed());
        outcome
    }

    /// The store's error, told by its place.
    pub(crate) fn error(&self, operation: &str, error: &StoreError) -> RepositoryError {
        let refused = |error: &StoreError| RepositoryError::StoreRefused {
            place: self.place.to_string(),
            operation: operation.to_owned(),
            what: chain(error),
        };
        if let Some(io) = find_io(error)
            && let Some(told) = io_error(&self.place, operation, io)
        {
            return told;
        }
        match error {
            StoreError::PermissionDenied { .. }
            | StoreError::Unauthenticated { .. }
            | StoreError::NotImplemented { .. }
            | StoreError::NotSupported { .. }
            | StoreError::InvalidPath { .. }
            | StoreError::UnknownConfigurationKey { .. } => refused(error),
            // A missing bucket comes as an object that is not found, or without a kind of its own.
            StoreError::NotFound { .. } => refused(error),
            other if is_refusal(&chain(other)) => refused(error),
            other => unavailable(&self.place, operation, other),
        }
    }
}

/// The client's settings from the same variables that the rest of the store's settings come from.
fn s3_client_options() -> ClientOptions {
    let allow_http = std::env::var("AWS_ALLOW_HTTP")
        .is_ok_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes"));
    ClientOptions::new().with_allow_http(allow_http)
}

fn listed(meta: object_store::ObjectMeta) -> Listed {
    Listed {
        path: meta.location,
        size: meta.size,
        modified: Timestamp::from_micros(meta.last_modified.timestamp_micros()),
    }
}

fn unavailable(
    place: &str,
    operation: &str,
    error: &(dyn std::error::Error + 'static),
) -> RepositoryError {
    RepositoryError::StoreUnavailable {
        place: place.to_owned(),
        operation: operation.to_owned(),
        what: chain(error),
    }
}

/// Errors of a disk that mean something of their own.
fn io_error(place: &str, operation: &str, error: &std::io::Error) -> Option<RepositoryError> {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Some(RepositoryError::NoSpace {
                place: place.to_owned(),
                operation: operation.to_owned(),
            })
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotADirectory => {
            Some(RepositoryError::StoreRefused {
                place: place.to_owned(),
                operation: operation.to_owned(),
                what: error.to_string(),
            })
        }
        _ => None,
    }
}

fn find_io<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        at = error.source();
    }
    None
}

fn is_no_space(error: &StoreError) -> bool {
    find_io(error).is_some_and(|io| {
        matches!(
            io.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        )
    })
}

/// Whether a store's answer that has no kind of its own is one that waiting does not change: a request
/// that is wrong (4xx), but for those that are too early, too many or too slow, or one that is not
/// implemented.
fn is_refusal(text: &str) -> bool {
    let status = text
        .split_once("status code: ")
        .and_then(|(_, rest)| rest.get(..3)?.parse::<u16>().ok());
    status.is_some_and(|status| {
        status == 501 || ((400..500).contains(&status) && !matches!(status, 408 | 409 | 425 | 429))
    })
}

/// An error with its causes in one line; causes that only repeat what was said are left out.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        at = cause.source();
    }
    text
}
