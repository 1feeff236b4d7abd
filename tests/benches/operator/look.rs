//! What can be seen of the Deployments, and when it was.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, ResourceExt,
    core::PartialObjectMeta,
    runtime::watcher::{self, Event, watcher},
};
use mcp_mqtt_tests::lock;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::CALM;

/// How long a change may take before the measurement gives up.
const LIMIT: Duration = Duration::from_mins(5);

/// A Deployment as it was seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) uid: String,
    pub(crate) generation: i64,
    /// When uid or generation last changed.
    pub(crate) at: Instant,
}

type All = Arc<Mutex<Known>>;

#[derive(Debug)]
struct Known {
    deployments: HashMap<String, Seen>,
    /// When any of them last changed, its status too.
    touched: Instant,
}

/// A watch of Deployments, by their names.
pub(crate) struct Look {
    all: All,
    news: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Look {
    pub(crate) async fn at(api: Api<PartialObjectMeta<Deployment>>) -> Result<Self> {
        let all = Arc::new(Mutex::new(Known { deployments: HashMap::new(), touched: Instant::now() }));
        let (tell, mut news) = watch::channel(0);
        let noted = all.clone();
        let task = tokio::spawn(async move {
            let mut events = watcher(api, watcher::Config::default()).boxed();
            while let Ok(Some(event)) = events.try_next().await {
                note(&noted, event);
                tell.send_modify(|count| *count += 1);
            }
        });
        timeout(LIMIT, news.changed()).await.context("no Deployments can be watched")??;
        Ok(Self { all, news, task })
    }

    pub(crate) fn get(&self, name: &str) -> Option<Seen> {
        lock(&self.all).deployments.get(name).cloned()
    }

    /// Waits until a Deployment is as wanted; when it came to be so.
    pub(crate) async fn until(&self, name: &str, wanted: impl Fn(&Seen) -> bool) -> Result<Instant> {
        let mut news = self.news.clone();
        let search = async {
            loop {
                news.mark_unchanged();
                if let Some(seen) = self.get(name).filter(&wanted) {
                    return anyhow::Ok(seen.at);
                }
                news.changed().await.context("the watch ended")?;
            }
        };
        timeout(LIMIT, search).await.with_context(|| format!("Deployment {name} does not come to be"))?
    }

    /// Waits until so many are as wanted, and tells how many are on the way; when the last one was.
    pub(crate) async fn until_all(
        &self,
        count: usize,
        what: &str,
        wanted: impl Fn(&str, &Seen) -> bool,
    ) -> Result<Instant> {
        let search = async {
            loop {
                let times: Vec<Instant> = lock(&self.all)
                    .deployments
                    .iter()
                    .filter(|(name, seen)| wanted(name, seen))
                    .map(|(_, seen)| seen.at)
                    .collect();
                eprintln!("{what}: {} of {count} Deployments", times.len());
                if times.len() >= count {
                    return times.into_iter().max().context("none was wanted");
                }
                sleep(Duration::from_millis(500)).await;
            }
        };
        timeout(LIMIT, search).await.with_context(|| format!("{what} takes too long"))?
    }

    /// Waits until Kubernetes' controllers have nothing more to do with any; when they last had.
    pub(crate) async fn until_calm(&self) -> Result<Instant> {
        let search = async {
            loop {
                anyhow::ensure!(!self.task.is_finished(), "the watch ended");
                let touched = lock(&self.all).touched;
                if touched.elapsed() > CALM {
                    return Ok(touched);
                }
                eprintln!("the controllers are at work");
                sleep(Duration::from_millis(500)).await;
            }
        };
        timeout(LIMIT, search).await.context("the controllers go on and on")?
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn note(all: &All, event: Event<PartialObjectMeta<Deployment>>) {
    let Known { deployments: all, touched } = &mut *lock(all);
    *touched = Instant::now();
    match event {
        Event::Apply(object) | Event::InitApply(object) => {
            let (uid, generation) =
                (object.uid().unwrap_or_default(), object.metadata.generation.unwrap_or_default());
            let name = object.name_any();
            if all.get(&name).is_none_or(|seen| seen.uid != uid || seen.generation != generation) {
                all.insert(name, Seen { uid, generation, at: Instant::now() });
            }
        }
        Event::Delete(object) => {
            all.remove(&object.name_any());
        }
        Event::Init | Event::InitDone => {}
    }
}
