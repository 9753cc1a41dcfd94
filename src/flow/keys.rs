//! Hashed keys in many small tables: when one is full, only its own keys are hashed again, which no packet notices.

use hashbrown::HashTable;

/// With a million flows each has some 2,000 keys.
const PARTS: usize = 1024;
/// Each part takes the bits of the hash that its table does not: that takes the lowest and the seven highest.
const SHIFT: u32 = 40;

#[derive(Debug)]
pub(super) struct Keys(Box<[HashTable<u32>]>);

impl Keys {
    pub fn new() -> Self {
        Self((0..PARTS).map(|_| HashTable::new()).collect())
    }

    #[inline]
    pub fn find(&self, hash: u64, is_it: impl FnMut(&u32) -> bool) -> Option<u32> {
        self.0[part(hash)].find(hash, is_it).copied()
    }

    pub fn insert(&mut self, hash: u64, key: u32, hash_of: impl Fn(&u32) -> u64) {
        self.0[part(hash)].insert_unique(hash, key, hash_of);
    }

    pub fn remove(&mut self, hash: u64, key: u32) {
        if let Ok(entry) = self.0[part(hash)].find_entry(hash, |other| *other == key) {
            entry.remove();
        }
    }
}

#[inline]
fn part(hash: u64) -> usize {
    (hash >> SHIFT) as usize % PARTS
}
