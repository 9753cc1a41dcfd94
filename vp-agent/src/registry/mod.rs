//! A hub's registry: the sites and invitations that were registered, kept in a store of this host, and shared with other hubs
//! where that is wanted. What is kept are records that tenants' authorities signed, so whoever has a store can withhold
//! some but make none.
//!
//! Records only ever come, and of two for one place the later one decides: stores are joined, never one put in the other's
//! place. What ended is thrown away by each hub for itself.

mod etcd;
mod file;
mod shared;

pub use etcd::EtcdSettings;

use crate::clock::unix_seconds;
use crate::identity::{Identities, Offered, Place, Record};
use crate::state::StateDir;
use etcd::Etcd;
use file::RecordFile;
use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use vp::addr::Name;
use vp::identity::Refusal;

const FILE: &str = "registry.records";
/// Lines that say nothing any more: beyond so many, and as many as do, the file is written anew.
const STALE_LINES_MAX: usize = 1000;
/// How often what ended long ago is looked for, and what could not be kept is tried again.
pub const REVIEW_PAUSE: Duration = Duration::from_secs(10);

/// Why something is not registered.
#[derive(Debug, thiserror::Error)]
pub enum Unregistered {
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// A store does not take or give anything now; one line.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the registry: {0}")]
pub struct StoreError(String);

#[cfg(test)]
impl StoreError {
    pub fn new(why: &str) -> Self {
        Self(why.to_owned())
    }
}

pub struct Registry {
    identities: Arc<Identities>,
    kept: Arc<RecordFile>,
    shared: Option<Etcd>,
    /// What stands in the file is in step with what is admitted.
    one_at_a_time: Mutex<()>,
    /// What sites presented of themselves and no store took yet; each has one.
    waiting: std::sync::Mutex<BTreeMap<(Name, Name), Vec<u8>>>,
    /// What is wrong with the store of this host, from when it was opened.
    damage: Vec<String>,
}

impl Registry {
    /// Reads what is kept. What is damaged is said, and not in the way of the rest.
    pub async fn open(
        state: &StateDir,
        shared: Option<&EtcdSettings>,
        identities: Arc<Identities>,
    ) -> Result<Self, StoreError> {
        let file = state.file(FILE);
        let (kept, read) = in_background(move || RecordFile::open(&file)).await?;
        let kept = Arc::new(kept);
        let damage = read.damage.into_iter().collect();
        for record in read.records {
            identities.admit(record);
        }
        let shared = shared.map(Etcd::new).transpose()?;
        let waiting = std::sync::Mutex::default();
        Ok(Self { identities, kept, shared, one_at_a_time: Mutex::default(), waiting, damage })
    }

    /// What a site of this tenant hands over. Where it stands, if it is new; it is kept and admitted then.
    pub async fn register(&self, by: (&Name, &Name), offered: &Offered) -> Result<Option<Place>, Unregistered> {
        let Some(record) = self.identities.judge_record(by, offered, unix_seconds())? else { return Ok(None) };
        let place = record.place();
        if let Some(shared) = &self.shared {
            shared.put(&place, &record.to_bytes()).await?;
        }
        self.keep(record).await?;
        Ok(Some(place))
    }

    /// The certificate that a site presented, of itself. One that cannot be kept now is tried again.
    pub async fn present(&self, by: (Name, Name), certificate: Vec<u8>) -> Result<Option<Place>, Refusal> {
        let offered = Offered::Site(certificate.clone());
        let registered = self.register((&by.0, &by.1), &offered).await;
        match registered {
            Ok(place) => {
                self.waiting().remove(&by);
                Ok(place)
            }
            Err(Unregistered::Refused(refusal)) => {
                self.waiting().remove(&by);
                Err(refusal)
            }
            Err(Unregistered::Store(error)) => {
                tracing::warn!("{}.{} is not registered yet: {error}", by.1, by.0);
                self.waiting().insert(by, certificate);
                Ok(None)
            }
        }
    }

    /// Throws away what ended long ago, and tries again what could not be kept.
    pub async fn review(&self) {
        let one_at_a_time = self.one_at_a_time.lock().await;
        let over = self.identities.clear_records(unix_seconds());
        let (kept, records) = (self.kept.clone(), self.identities.records());
        if !over.is_empty() || kept.lines() > 2 * records.len() + STALE_LINES_MAX {
            let written = in_background(move || kept.write(&records)).await;
            written.unwrap_or_else(|error| tracing::warn!("what has ended stays in the registry: {error}"));
        }
        drop(one_at_a_time);
        self.forget_shared(&over).await;
        let waiting = std::mem::take(&mut *self.waiting());
        for (by, certificate) in waiting {
            let who = format!("{}.{}", by.1, by.0);
            match self.present(by, certificate).await {
                Ok(Some(place)) => tracing::info!("registered {place}, which had to wait"),
                Ok(None) => {}
                Err(refusal) => tracing::warn!("{who} is not registered: {refusal}"),
            }
        }
    }

    #[must_use]
    pub fn damage(&self) -> &[String] {
        &self.damage
    }

    /// On this host, and admits it.
    async fn keep(&self, record: Record) -> Result<(), StoreError> {
        let _one_at_a_time = self.one_at_a_time.lock().await;
        let (kept, added) = (self.kept.clone(), record.clone());
        in_background(move || kept.add(&added)).await?;
        self.identities.admit(record);
        Ok(())
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<(Name, Name), Vec<u8>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The disk takes its time.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(StoreError(error.to_string())))
}
