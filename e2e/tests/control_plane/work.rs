//! The load: one operation for each of many objects, many at a time, each tried until it is acknowledged.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use ferretcd_e2e::complaints::Complaints;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::task::JoinHandle;

use super::mirror::class;

/// How many operations are under way at once: as many as a few busy controllers have.
const AT_ONCE: usize = 32;

/// How long one operation is tried: far beyond an election and a replaced member.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two attempts at one operation.
const BACKOFF: Duration = Duration::from_millis(100);

/// What is done to each object. Each is written so that a second attempt changes nothing if the first one had succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// Work that goes on while the story does.
pub struct Work {
    done: Arc<AtomicU32>,
    task: JoinHandle<Result<Log>>,
}

/// What clients saw of it.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// Attempts that failed, by class.
    pub complaints: Complaints,
    /// The longest that one operation took, all its attempts together.
    pub longest: Duration,
}

impl Work {
    /// Begins `operation` on the objects with these numbers, in turn through each of `apis`.
    pub fn start(operation: Operation, numbers: Range<u32>, apis: Vec<Api<ConfigMap>>) -> Self {
        let done = Arc::new(AtomicU32::new(0));
        let counter = done.clone();
        let all = async move {
            let one = |number: u32| attempt(operation, number, &apis, &counter);
            let logs = futures::stream::iter(numbers).map(one).buffer_unordered(AT_ONCE);
            logs.try_fold(Log::default(), |sum, one| async { Ok(sum.with(one)) }).await
        };
        Self { done, task: tokio::spawn(all) }
    }

    /// How many operations have been acknowledged.
    pub fn done(&self) -> u32 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until `count` operations have been acknowledged.
    pub async fn reach(&self, count: u32) -> Result<()> {
        while self.done() < count {
            if self.task.is_finished() && self.done() < count {
                bail!("the work ended after {} operations, {count} were waited for", self.done());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Waits until all is done.
    pub async fn finish(self) -> Result<Log> {
        self.task.await.context("the work panicked")?
    }
}

impl Log {
    /// Both together.
    pub fn with(mut self, other: Self) -> Self {
        for (class, count) in other.complaints {
            *self.complaints.entry(class).or_default() += count;
        }
        self.longest = self.longest.max(other.longest);
        self
    }
}

async fn attempt(operation: Operation, number: u32, apis: &[Api<ConfigMap>], done: &AtomicU32) -> Result<Log> {
    let mut log = Log::default();
    let began = Instant::now();
    for attempt in 0usize.. {
        let api = &apis[(number as usize + attempt) % apis.len()];
        match act(operation, number, api).await {
            Ok(()) => break,
            // An earlier attempt had succeeded, and only its answer was lost.
            Err(kube::Error::Api(status)) if attempt > 0 && operation.is_done_by(status.code) => break,
            Err(error) if began.elapsed() > PATIENCE => {
                return Err(anyhow!("{operation:?} of {} failed for {} s: {error}", name(number), PATIENCE.as_secs()));
            }
            Err(error) => *log.complaints.entry(class(&error)).or_default() += 1,
        }
        tokio::time::sleep(BACKOFF).await;
    }
    done.fetch_add(1, Ordering::Relaxed);
    log.longest = began.elapsed();
    Ok(log)
}

impl Operation {
    /// Whether a refusal with this code says that it had been done before.
    fn is_done_by(self, code: u16) -> bool {
        matches!((self, code), (Self::Create, 409) | (Self::Delete, 404))
    }
}

async fn act(operation: Operation, number: u32, api: &Api<ConfigMap>) -> Result<(), kube::Error> {
    match operation {
        Operation::Create => api.create(&PostParams::default(), &object(number)).await.map(drop),
        Operation::Update => {
            let patch = json!({"data": {"generation": "1"}});
            api.patch_metadata(&name(number), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        }
        Operation::Delete => api.delete(&name(number), &DeleteParams::default()).await.map(drop),
    }
}

/// The name of an object.
pub fn name(number: u32) -> String {
    format!("object-{number:05}")
}

/// An object as it is created: a kilobyte, as many a ConfigMap has.
fn object(number: u32) -> ConfigMap {
    let data = json!({"generation": "0", "text": format!("{number:05}").repeat(200)});
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name(number)},
        "data": data,
    }))
    .unwrap_or_default()
}
