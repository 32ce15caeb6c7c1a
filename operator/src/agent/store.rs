//! One backup's two objects in an S3 bucket. This is the only module that knows the object store, and the only one that
//! words its errors.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use ferretcd_operator_api::{BackupManifest, agent::MANIFEST_FORMAT, names};
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig, WriteMultipart, aws::AmazonS3Builder,
    path::Path,
};

use crate::{agent::PART, cause::chain, cli::ObjectArgs};

/// How long one request may take. A part of 8 MiB needs 70 kB/s to make it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often, and for how long, a request is sent again that met a fault of the network or an error 5xx. The Job itself is
/// retried as well, so this only has to bridge a short gap.
const RETRIES: usize = 5;
const RETRY_FOR: Duration = Duration::from_secs(60);
/// Parts of an upload that are under way at the same time.
const PARTS_IN_FLIGHT: usize = 2;
/// The largest manifest that is read: ours have below 1 KiB, whatever is larger is none of ours.
const MAX_MANIFEST: u64 = 64 << 10;

/// The codes by which a store says that it does not know the credentials; the last is versitygw's.
const BAD_CREDENTIALS: [&str; 5] =
    ["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "XAdminUserNotFound"];

/// A data object and its manifest.
#[derive(Clone, Debug)]
pub struct BackupObject {
    store: Arc<dyn ObjectStore>,
    bucket: String,
    endpoint: String,
    key: String,
    data: Path,
    manifest: Path,
}

/// What the store refused or failed to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The settings make no store.
    #[error("cannot use bucket {bucket} at {endpoint}: {problem}")]
    Settings {
        /// The bucket.
        bucket: String,
        /// The store's URL.
        endpoint: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A request failed.
    #[error("cannot {attempt} {key} in bucket {bucket} at {endpoint}: {problem}")]
    Request {
        /// A verb, for example `read`.
        attempt: &'static str,
        /// The object.
        key: String,
        /// The bucket.
        bucket: String,
        /// The store's URL.
        endpoint: String,
        /// What went wrong, and what to do.
        problem: String,
        /// Another attempt would meet the same.
        permanent: bool,
    },
}

impl StoreError {
    /// Whether another attempt would meet the same error.
    pub fn is_permanent(&self) -> bool {
        match self {
            StoreError::Settings { .. } => true,
            StoreError::Request { permanent, .. } => *permanent,
        }
    }
}

impl BackupObject {
    /// The backup that the flags name, with credentials from the environment. Nothing is sent yet.
    ///
    /// # Errors
    /// A key that no object can have, or settings that the client refuses.
    pub fn open(args: &ObjectArgs) -> Result<BackupObject, StoreError> {
        let plain = args.s3_endpoint.as_deref().is_some_and(|url| url.starts_with("http://"));
        let mut client = ClientOptions::new()
            .with_timeout(REQUEST_TIMEOUT)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_allow_http(plain);
        if plain {
            // Without TLS no authority is asked, and an image without any need not fail for it.
            client = client.with_no_system_certificates(true);
        }
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&args.bucket)
            .with_region(&args.region)
            .with_virtual_hosted_style_request(!args.force_path_style)
            // One backup has two objects, and not every store knows the bulk request.
            .with_disable_bulk_delete(true)
            .with_client_options(client)
            .with_retry(RetryConfig {
                backoff: BackoffConfig::default(),
                max_retries: RETRIES,
                retry_timeout: RETRY_FOR,
            });
        if let Some(url) = &args.s3_endpoint {
            builder = builder.with_endpoint(endpoint_of(url, &args.bucket, args.force_path_style));
        }
        let endpoint = args.s3_endpoint.clone().unwrap_or_else(|| format!("AWS S3 ({})", args.region));
        let store = builder.build().map_err(|error| StoreError::Settings {
            bucket: args.bucket.clone(),
            endpoint: endpoint.clone(),
            problem: chain(&error),
        })?;
        BackupObject::new(Arc::new(store), &args.bucket, &endpoint, &args.key)
    }

    /// A backup in a store that is open already.
    ///
    /// # Errors
    /// A key that no object can have.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        bucket: &str,
        endpoint: &str,
        key: &str,
    ) -> Result<BackupObject, StoreError> {
        let path = |key: &str| {
            Path::parse(key).map_err(|error| StoreError::Settings {
                bucket: bucket.to_owned(),
                endpoint: endpoint.to_owned(),
                problem: format!("{key:?} is no key: {error}"),
            })
        };
        Ok(BackupObject {
            data: path(key)?,
            manifest: path(&names::manifest_key(key))?,
            store,
            bucket: bucket.to_owned(),
            endpoint: endpoint.to_owned(),
            key: key.to_owned(),
        })
    }

    /// Key of the data object.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Where the data is, for people.
    pub fn location(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key)
    }

    /// The manifest; `None` if there is none, which means that there is no backup.
    ///
    /// # Errors
    /// The store's, and a manifest that is not one of ours or newer than this program.
    pub async fn manifest(&self) -> Result<Option<BackupManifest>, StoreError> {
        let attempt = "read the manifest";
        let found = match self.store.get(&self.manifest).await {
            Err(error) if is_absent(&error) => return Ok(None),
            other => other.map_err(|error| self.failed(attempt, &self.manifest, &error))?,
        };
        if found.meta.size > MAX_MANIFEST {
            return Err(self.problem(
                attempt,
                &self.manifest,
                format!("it has {} bytes and is not one of ours", found.meta.size),
            ));
        }
        let bytes = found.bytes().await.map_err(|error| self.failed(attempt, &self.manifest, &error))?;
        read_manifest(&bytes).map(Some).map_err(|problem| self.problem(attempt, &self.manifest, problem))
    }

    /// Writes the manifest: from then on the backup exists.
    ///
    /// # Errors
    /// The store's.
    pub async fn put_manifest(&self, manifest: &BackupManifest) -> Result<(), StoreError> {
        let attempt = "write the manifest";
        let text = serde_json::to_vec_pretty(manifest)
            .map_err(|error| self.problem(attempt, &self.manifest, error.to_string()))?;
        let put = self.store.put(&self.manifest, text.into()).await;
        put.map(drop).map_err(|error| self.failed(attempt, &self.manifest, &error))
    }

    /// Size and entity tag of the data object; `None` if there is none.
    ///
    /// # Errors
    /// The store's.
    pub async fn data(&self) -> Result<Option<(u64, Option<String>)>, StoreError> {
        match self.store.head(&self.data).await {
            Ok(meta) => Ok(Some((meta.size, meta.e_tag))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.failed("look at", &self.data, &error)),
        }
    }

    /// The bytes `range` of the data object.
    ///
    /// # Errors
    /// The store's.
    pub async fn read(&self, range: std::ops::Range<u64>) -> Result<Bytes, StoreError> {
        self.store.get_range(&self.data, range).await.map_err(|error| self.failed("read", &self.data, &error))
    }

    /// Begins to write the data object. It becomes visible when the upload is finished, in one piece.
    ///
    /// # Errors
    /// The store's.
    pub async fn upload(&self) -> Result<Upload, StoreError> {
        let upload =
            self.store.put_multipart(&self.data).await.map_err(|error| self.failed("write", &self.data, &error))?;
        Ok(Upload { object: self.clone(), write: WriteMultipart::new_with_chunk_size(upload, PART) })
    }

    /// Removes the manifest, which ends the backup; one that is absent is removed already.
    ///
    /// # Errors
    /// The store's.
    pub async fn delete_manifest(&self) -> Result<(), StoreError> {
        self.delete(&self.manifest).await
    }

    /// Removes the data; absent data is removed already.
    ///
    /// # Errors
    /// The store's.
    pub async fn delete_data(&self) -> Result<(), StoreError> {
        self.delete(&self.data).await
    }

    async fn delete(&self, path: &Path) -> Result<(), StoreError> {
        match self.store.delete(path).await {
            Ok(()) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(self.failed("delete", path, &error)),
        }
    }

    fn failed(&self, attempt: &'static str, path: &Path, error: &object_store::Error) -> StoreError {
        let (problem, permanent) = self.explain(error);
        self.request(attempt, path, problem, permanent)
    }

    /// An object that will not get better by itself.
    fn problem(&self, attempt: &'static str, path: &Path, problem: String) -> StoreError {
        self.request(attempt, path, problem, true)
    }

    fn request(&self, attempt: &'static str, path: &Path, problem: String, permanent: bool) -> StoreError {
        StoreError::Request {
            attempt,
            key: path.to_string(),
            bucket: self.bucket.clone(),
            endpoint: self.endpoint.clone(),
            problem,
            permanent,
        }
    }

    /// What to do about an error, and whether it would come again. S3 says in the body of its answer which of several things
    /// a status means.
    fn explain(&self, error: &object_store::Error) -> (String, bool) {
        let text = chain(error);
        let (code, said) = match s3_error(&text) {
            Some((code, message)) => (code, format!("{code}: {message}")),
            None => ("", text.clone()),
        };
        match (code, error) {
            ("NoSuchBucket", _) => {
                (format!("the bucket {} does not exist; create it, or correct the destination", self.bucket), true)
            }
            (code, _) if BAD_CREDENTIALS.contains(&code) => (
                format!(
                    "the store does not accept the credentials ({code}); correct the Secret that credentialsSecretRef names"
                ),
                true,
            ),
            (_, object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. }) => (
                format!("the credentials do not allow it ({said}); grant them access to the bucket {}", self.bucket),
                true,
            ),
            (_, object_store::Error::NotFound { .. }) => (format!("the store does not find it ({said})"), true),
            _ => (said, false),
        }
    }
}

/// A data object that is being written.
#[derive(Debug)]
pub struct Upload {
    object: BackupObject,
    write: WriteMultipart,
}

impl Upload {
    /// Adds bytes; waits while too many parts are under way.
    ///
    /// # Errors
    /// The store's.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let ready = self.write.wait_for_capacity(PARTS_IN_FLIGHT).await;
        ready.map_err(|error| self.object.failed("write", &self.object.data, &error))?;
        self.write.put(bytes);
        Ok(())
    }

    /// Completes the object and returns its entity tag, if the store gives one.
    ///
    /// # Errors
    /// The store's; the parts are removed from it then.
    pub async fn finish(self) -> Result<Option<String>, StoreError> {
        let object = self.object;
        match self.write.finish().await {
            Ok(put) => Ok(put.e_tag),
            Err(error) => Err(object.failed("write", &object.data, &error)),
        }
    }

    /// Gives up and removes the parts from the store. A failure of this is only logged: a cause is being reported already.
    pub async fn abort(self) {
        if let Err(error) = self.write.abort().await {
            let (problem, _) = self.object.explain(&error);
            tracing::warn!(
                key = self.object.key,
                problem,
                "parts of the upload stay in the store until its own rules remove them"
            );
        }
    }
}

/// Whether an object does not exist. S3 answers 404 for other things too, such as a missing bucket, and says so in the body; a
/// HEAD has no body to tell them apart, so every verb asks for the manifest first.
fn is_absent(error: &object_store::Error) -> bool {
    let absent = matches!(error, object_store::Error::NotFound { .. });
    absent && s3_error(&chain(error)).is_none_or(|(code, _)| code == "NoSuchKey")
}

fn read_manifest(bytes: &[u8]) -> Result<BackupManifest, String> {
    let manifest: BackupManifest =
        serde_json::from_slice(bytes).map_err(|error| format!("{error}; the object is damaged, use another backup"))?;
    match manifest.format > MANIFEST_FORMAT {
        true => Err(format!(
            "it has format {}, this operator knows up to {MANIFEST_FORMAT}; use a newer operator",
            manifest.format
        )),
        false => Ok(manifest),
    }
}

/// Code and message of the error document of S3, if a text holds one.
fn s3_error(text: &str) -> Option<(&str, &str)> {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(value, _)| value)
    };
    Some((element("Code")?, element("Message").unwrap_or_default()))
}

/// The client wants the bucket in the URL, unless it is addressed as a path.
fn endpoint_of(url: &str, bucket: &str, path_style: bool) -> String {
    let url = url.trim_end_matches('/');
    match url.split_once("://") {
        Some((scheme, host)) if !path_style => format!("{scheme}://{bucket}.{host}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use object_store::memory::InMemory;

    use super::*;

    pub(crate) fn in_memory(key: &str) -> (Arc<InMemory>, BackupObject) {
        let store = Arc::new(InMemory::new());
        (store.clone(), BackupObject::new(store, "backups", "memory", key).unwrap())
    }

    #[test]
    fn the_bucket_is_a_subdomain_unless_path_style_is_asked_for() {
        assert_eq!(endpoint_of("http://s3:9000/", "b", true), "http://s3:9000");
        assert_eq!(endpoint_of("https://s3.example.org", "b", false), "https://b.s3.example.org");
    }

    #[test]
    fn the_body_tells_what_is_missing() {
        let missing =
            |body: &str| object_store::Error::NotFound { path: "k".to_owned(), source: body.to_owned().into() };
        assert!(is_absent(&missing("")));
        assert!(is_absent(&missing("<Error><Code>NoSuchKey</Code><Message>The key</Message></Error>")));
        assert!(!is_absent(&missing("<Error><Code>NoSuchBucket</Code></Error>")));
        assert_eq!(s3_error("404: <Error><Code>A</Code><Message>b c</Message>"), Some(("A", "b c")));
    }

    #[test]
    fn a_key_that_no_object_can_have_is_refused() {
        let store = Arc::new(InMemory::new());
        let refused = BackupObject::new(store, "backups", "memory", "a//b").unwrap_err().to_string();
        assert!(refused.contains("\"a//b\" is no key"), "{refused}");
    }

    /// What lies in the bucket beside a backup.
    #[test]
    fn fuzz_manifest() {
        let manifest = crate::agent::backup::tests::manifest("a/b.db", "mine");
        let good = serde_json::to_vec_pretty(&manifest).unwrap();
        assert_eq!(read_manifest(&good), Ok(manifest));
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "manifest").seeds([good]);
        fuzz.words(&["\"format\":", "\"createdAt\":", "-1", "1e99", "9999-12-31T23:59:60Z", "null"]).run(|bytes| {
            let read = read_manifest(bytes);
            if let Ok(manifest) = &read {
                assert_eq!(read_manifest(&serde_json::to_vec(manifest).unwrap()).as_ref(), Ok(manifest));
            }
            format!("{read:?}")
        });
    }

    /// What a store says when it refuses: a status, and a body that only should be S3's.
    #[test]
    fn fuzz_store_error() {
        let (_, object) = in_memory("a/b.db");
        let document = |code: &str| format!("<Error><Code>{code}</Code><Message>why</Message></Error>");
        let seeds = ["NoSuchKey", "NoSuchBucket", "InvalidAccessKeyId"].map(|code| format!("\0{}", document(code)));
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "store_error").seeds(seeds);
        fuzz.words(&["<Code>", "</Code>", "<Message>", "</Message>", "NoSuchKey", "\u{1}", "\u{2}"]).run(|bytes| {
            let (kind, body) = bytes.split_first().unwrap_or((&0, &[]));
            let (path, source) = ("k".to_owned(), String::from_utf8_lossy(body).into_owned().into());
            let error = match kind % 4 {
                0 => object_store::Error::NotFound { path, source },
                1 => object_store::Error::PermissionDenied { path, source },
                2 => object_store::Error::Unauthenticated { path, source },
                _ => object_store::Error::Generic { store: "S3", source },
            };
            format!("{} {:?}", is_absent(&error), object.explain(&error))
        });
    }

    #[tokio::test]
    async fn a_damaged_or_newer_manifest_is_refused() {
        let (store, object) = in_memory("a/b.db");
        assert_eq!(object.manifest().await.unwrap(), None);

        store.put(&Path::from("a/b.db.manifest.json"), "{\"format\":1,".into()).await.unwrap();
        let refused = object.manifest().await.unwrap_err().to_string();
        assert!(refused.contains("a/b.db.manifest.json in bucket backups") && refused.contains("damaged"), "{refused}");

        let newer = r#"{"format":2,"key":"k","sha256":"","size":0,"revision":1,"raftIndex":0,"cluster":"c","clusterUid":"u",
            "clusterId":"1","backupUid":"b","serverVersion":"9.9.9","createdAt":"2030-01-01T00:00:00Z"}"#;
        store.put(&Path::from("a/b.db.manifest.json"), newer.into()).await.unwrap();
        let refused = object.manifest().await.unwrap_err().to_string();
        assert!(refused.contains("format 2") && refused.contains("newer operator"), "{refused}");
    }
}
