//! A copy of the objects as a watch tells it, as an informer keeps one, that notes everything that a watch must not do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferretcd_e2e::complaints::{Complaints, mask};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::PartialObjectMeta;
use tokio::task::JoinHandle;

/// How long the events of what was acknowledged may take to come: far longer than an election and a replaced connection.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two attempts to watch again: short beside an election, and no storm.
const BACKOFF: Duration = Duration::from_millis(100);

/// A watch that runs until it is dropped.
pub struct Mirror {
    name: String,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// What the watch has told so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The objects that exist, with their resourceVersions.
    pub objects: BTreeMap<String, u64>,
    /// Events of each kind.
    pub added: u64,
    pub modified: u64,
    pub deleted: u64,
    /// The newest resourceVersion, of an event, a bookmark or a list.
    pub last: u64,
    /// How often it had to list again (410 Gone); each may have skipped events.
    pub relists: u64,
    /// How often it went on at `last` with a new watch.
    pub resumed: u64,
    /// What a watch must not do.
    pub faults: Vec<String>,
    /// The errors that ended a watch, by class.
    pub complaints: Complaints,
}

impl Mirror {
    /// Lists, and watches from there on.
    pub async fn start(name: &str, api: Api<ConfigMap>) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        relist(&api, &seen).await.with_context(|| format!("the first list of {name}"))?;
        let task = tokio::spawn(follow(api, seen.clone()));
        Ok(Self { name: name.to_owned(), seen, task })
    }

    /// What it has seen until now.
    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Waits until it holds exactly these objects, and checks how it came there: `added`, `modified` and `deleted` are the
    /// events since its start, exactly, if it never had to list again.
    pub async fn expect(&self, objects: &BTreeMap<String, u64>, counts: [u64; 3]) -> Result<()> {
        let began = Instant::now();
        let seen = loop {
            let seen = self.seen();
            if seen.objects == *objects || !seen.faults.is_empty() {
                break seen;
            }
            if began.elapsed() > PATIENCE {
                let differ = |(name, version): &(&String, &u64)| seen.objects.get(*name) != Some(*version);
                let first = objects.iter().find(differ);
                bail!(
                    "{}: after {} s it holds {} objects and not the {}; {first:?} is {:?} there; it is at {}",
                    self.name,
                    PATIENCE.as_secs(),
                    seen.objects.len(),
                    objects.len(),
                    first.and_then(|(name, _)| seen.objects.get(name)),
                    seen.last
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        ensure!(seen.faults.is_empty(), "{}: {}", self.name, seen.faults.join("; "));
        let came = [seen.added, seen.modified, seen.deleted];
        ensure!(
            came == counts || seen.relists > 0,
            "{}: {came:?} events (added, modified, deleted) came, {counts:?} happened",
            self.name
        );
        Ok(())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(api: Api<ConfigMap>, seen: Arc<Mutex<Seen>>) {
    // The server's longest by default is half an hour; a story is shorter than the client's 295 s between two lines, since
    // bookmarks come every minute.
    let params = WatchParams::default();
    loop {
        let from = lock(&seen).last;
        let ended = async {
            let mut events = std::pin::pin!(api.watch_metadata(&params, &from.to_string()).await?);
            while let Some(event) = events.try_next().await? {
                if let WatchEvent::Error(status) = event {
                    return Err(kube::Error::Api(status));
                }
                lock(&seen).take(event);
            }
            Ok(())
        };
        let ended = ended.await;
        if let Err(error) = &ended {
            *lock(&seen).complaints.entry(class(error)).or_default() += 1;
        }
        match ended {
            Err(kube::Error::Api(status)) if status.code == 410 => {
                if let Err(error) = relist(&api, &seen).await {
                    *lock(&seen).complaints.entry(class(&error)).or_default() += 1;
                }
            }
            _ => lock(&seen).resumed += 1,
        }
        tokio::time::sleep(BACKOFF).await;
    }
}

async fn relist(api: &Api<ConfigMap>, seen: &Mutex<Seen>) -> Result<(), kube::Error> {
    let list = api.list_metadata(&ListParams::default()).await?;
    let mut seen = lock(seen);
    seen.relists += u64::from(seen.last != 0);
    seen.last = version(list.metadata.resource_version.as_ref());
    seen.objects = list.items.iter().map(key).collect();
    Ok(())
}

impl Seen {
    fn take(&mut self, event: WatchEvent<PartialObjectMeta<ConfigMap>>) {
        let (what, object) = match event {
            WatchEvent::Bookmark(bookmark) => {
                let at = version(Some(&bookmark.metadata.resource_version));
                if at < self.last {
                    self.faults.push(format!("a bookmark at {at} came after {}", self.last));
                }
                self.last = self.last.max(at);
                return;
            }
            WatchEvent::Added(object) => ("added", object),
            WatchEvent::Modified(object) => ("modified", object),
            WatchEvent::Deleted(object) => ("deleted", object),
            WatchEvent::Error(_) => return,
        };
        let (name, at) = key(&object);
        if at <= self.last {
            self.faults.push(format!("{name} {what} at {at} came after {}", self.last));
        }
        self.last = at;
        let (count, known) = match what {
            "added" => (&mut self.added, self.objects.insert(name.clone(), at).is_none()),
            "modified" => (&mut self.modified, self.objects.insert(name.clone(), at).is_some()),
            _ => (&mut self.deleted, self.objects.remove(&name).is_some()),
        };
        *count += 1;
        if !known {
            self.faults.push(format!("{name} {what} at {at}, which does not follow from what came before"));
        }
    }
}

/// Name and resourceVersion of an object.
pub fn key(object: &PartialObjectMeta<ConfigMap>) -> (String, u64) {
    (object.metadata.name.clone().unwrap_or_default(), version(object.metadata.resource_version.as_ref()))
}

/// A resourceVersion as the number that it is, 0 if there is none.
pub fn version(text: Option<&String>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The class of an error that a client of kube-apiserver got. Not what it had asked for: that is chance.
pub fn class(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => {
            format!("client | {} {} | {}", status.code, status.reason, mask(&status.message))
        }
        other => format!("client | {}", mask(&other.to_string())),
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The objects with their resourceVersions, as a list tells it.
pub async fn listed(api: &Api<ConfigMap>, params: &ListParams) -> Result<(BTreeMap<String, u64>, u64), kube::Error> {
    let mut objects = BTreeMap::new();
    let mut params = params.clone();
    loop {
        let page = api.list_metadata(&params).await?;
        objects.extend(page.items.iter().map(key));
        let at = version(page.metadata.resource_version.as_ref());
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            // A page after the first is told by its token where it belongs.
            Some(token) => params = ListParams { limit: params.limit, ..ListParams::default() }.continue_token(&token),
            None => return Ok((objects, at)),
        }
    }
}
