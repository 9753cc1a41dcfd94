//! What hubs share: this hub's records and those of the others, joined.

use super::Registry;
use super::etcd::News;
use crate::clock::unix_seconds;
use crate::identity::{Place, Record};
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use vp::identity::Refusal;

/// What waits for its turn; etcd keeps the rest.
const NEWS_MAX: usize = 64;

impl Registry {
    /// Takes what other hubs have registered, for as long as the agent runs. At once done where nothing is shared.
    pub async fn follow(&self) {
        let Some(shared) = &self.shared else { return };
        let (news, mut told) = mpsc::channel(NEWS_MAX);
        let take = async {
            while let Some(news) = told.recv().await {
                self.take(news).await;
            }
        };
        tokio::select! {
            never = shared.follow(news) => match never {},
            () = take => {}
        }
    }

    /// Whom this gateway trusts is perhaps not who it was.
    pub fn read_again(&self) {
        self.shared.iter().for_each(|shared| shared.again.notify_one());
    }

    /// Whether anything is shared, and why it is not followed at present.
    #[must_use]
    pub fn shared(&self) -> Option<Result<(), String>> {
        self.shared.as_ref().map(|shared| shared.away().map_or(Ok(()), Err))
    }

    /// How often what is shared was read whole.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.shared.as_ref().map_or(0, |shared| shared.reads())
    }

    /// What was over here is taken out there, as far as it can be; another hub does it otherwise.
    pub(super) async fn forget_shared(&self, over: &[Place]) {
        let Some(shared) = &self.shared else { return };
        for place in over {
            if let Err(error) = shared.remove(place).await {
                tracing::warn!("what has ended stays in the registry: {error}");
                return;
            }
        }
    }

    async fn take(&self, news: News) {
        match news {
            News::All(all) => {
                for (place, bytes) in &all {
                    self.take_one(place, bytes).await;
                    yield_now().await;
                }
                let all: BTreeMap<Place, Vec<u8>> = all.into_iter().collect();
                for record in self.identities.records() {
                    if all.get(&record.place()) != Some(&record.to_bytes()) && !self.give(&record).await {
                        return;
                    }
                }
            }
            News::Put(place, bytes) => {
                self.take_one(&place, &bytes).await;
                if let Some(later) = self.identities.record(&place).filter(|known| known.to_bytes() != bytes) {
                    self.give(&later).await;
                }
            }
            News::Removed(place) => {
                if let Some(known) = self.identities.record(&place) {
                    self.give(&known).await;
                }
            }
        }
    }

    async fn take_one(&self, place: &str, bytes: &[u8]) {
        let judged = Record::read(place, bytes).and_then(|record| self.identities.judge_shared(record, unix_seconds()));
        match judged {
            Ok(Some(record)) => match self.keep(record).await {
                Ok(()) => tracing::info!("another hub has registered {place}"),
                Err(error) => tracing::warn!("{place}, which another hub has registered: {error}"),
            },
            Ok(None) | Err(Refusal::Older) => {}
            Err(refusal) => tracing::warn!("{place:?}, which is shared, is left out: {refusal}"),
        }
    }

    /// What others do not know, or not as it is now. False if that cannot be done at present.
    async fn give(&self, record: &Record) -> bool {
        let Some(shared) = &self.shared else { return false };
        if self.identities.is_over(record, unix_seconds()) {
            return true;
        }
        let given = shared.put(&record.place(), &record.to_bytes()).await;
        given.inspect_err(|error| tracing::warn!("{}: {error}", record.place())).is_ok()
    }
}
