//! Stores that count, fail or lie on purpose, around a real one.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    path::Path,
};

/// A write that took effect.
#[derive(Clone, Debug)]
pub struct Written {
    pub path: String,
    pub bytes: u64,
}

/// A store that does what it is told by the test, over a real one.
#[derive(Debug)]
pub struct TestStore {
    inner: Arc<dyn ObjectStore>,
    /// Requests that still succeed; negative when the store is dead.
    alive: AtomicI64,
    /// Whether the request at which the store dies takes effect though its answer is lost.
    last_takes_effect: AtomicBool,
    /// Whether create-only-if-absent is ignored.
    ignores_create_only: AtomicBool,
    /// Fails writes with this error kind of a disk.
    write_error: Mutex<Option<std::io::ErrorKind>>,
    /// All writes that took effect.
    log: Mutex<Vec<Written>>,
}

impl TestStore {
    pub fn over(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            alive: AtomicI64::new(i64::MAX),
            last_takes_effect: AtomicBool::new(false),
            ignores_create_only: AtomicBool::new(false),
            write_error: Mutex::new(None),
            log: Mutex::default(),
        })
    }

    pub fn in_memory() -> Arc<Self> {
        Self::over(Arc::new(object_store::memory::InMemory::new()))
    }

    /// Dies after this many more requests; the one at which it dies takes effect or does not.
    pub fn die_after(&self, requests: i64, last_takes_effect: bool) {
        self.last_takes_effect
            .store(last_takes_effect, Ordering::SeqCst);
        self.alive.store(requests, Ordering::SeqCst);
    }

    pub fn live(&self) {
        self.alive.store(i64::MAX, Ordering::SeqCst);
    }

    pub fn is_dead(&self) -> bool {
        self.alive.load(Ordering::SeqCst) <= 0
    }

    pub fn ignore_create_only(&self) {
        self.ignores_create_only.store(true, Ordering::SeqCst);
    }

    pub fn fail_writes(&self, kind: Option<std::io::ErrorKind>) {
        *self.write_error.lock().unwrap() = kind;
    }

    /// Takes the log of writes.
    pub fn take_log(&self) -> Vec<Written> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// Counts a request; says whether it takes effect and whether it is answered.
    fn spend(&self) -> (bool, bool) {
        let left = self.alive.fetch_sub(1, Ordering::SeqCst);
        let answered = left > 0;
        let takes_effect = answered || (left == 0 && self.last_takes_effect.load(Ordering::SeqCst));
        (takes_effect, answered)
    }

    fn dead() -> Error {
        Error::Generic {
            store: "test",
            source: "the store is dead".into(),
        }
    }

    fn read(&self) -> Result<()> {
        if self.spend().1 {
            Ok(())
        } else {
            Err(Self::dead())
        }
    }
}

impl fmt::Display for TestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TestStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for TestStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        let (takes_effect, answered) = self.spend();
        if let Some(kind) = *self.write_error.lock().unwrap() {
            return Err(Error::Generic {
                store: "test",
                source: Box::new(std::io::Error::from(kind)),
            });
        }
        if !takes_effect {
            return Err(Self::dead());
        }
        if self.ignores_create_only.load(Ordering::SeqCst) {
            options.mode = PutMode::Overwrite;
        }
        let bytes = payload.content_length() as u64;
        let result = self.inner.put_opts(location, payload, options).await?;
        self.log.lock().unwrap().push(Written {
            path: location.to_string(),
            bytes,
        });
        if answered {
            Ok(result)
        } else {
            Err(Self::dead())
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.read()?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (takes_effect, answered) = self.spend();
        if !takes_effect {
            return futures::stream::once(async { Err(Self::dead()) }).boxed();
        }
        let deleted = self.inner.delete_stream(locations);
        if answered {
            deleted
        } else {
            deleted.map(|_| Err(Self::dead())).boxed()
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if let Err(error) = self.read() {
            return futures::stream::once(async { Err(error) }).boxed();
        }
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.read()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
