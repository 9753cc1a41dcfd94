//! Hashed keys in many small tables: when one is full only its own keys move, which no packet notices. Their hashes are
//! kept beside them, so that moving them touches no flow.

use hashbrown::HashTable;

/// With a million flows each has some 2,000 keys.
const PARTS_BITS: u32 = 10;

#[derive(Clone, Copy, Debug)]
struct Key {
    hash: u32,
    key: u32,
}

#[derive(Debug)]
pub(super) struct Keys(Box<[HashTable<Key>]>);

impl Keys {
    pub fn new() -> Self {
        Self((0..1 << PARTS_BITS).map(|_| HashTable::new()).collect())
    }

    #[inline]
    pub fn find(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let found = self.0[part(hash)].find(spread(hash), |known| known.hash == hash && is_it(known.key));
        found.map(|known| known.key)
    }

    pub fn insert(&mut self, hash: u32, key: u32) {
        self.0[part(hash)].insert_unique(spread(hash), Key { hash, key }, |known| spread(known.hash));
    }

    pub fn remove(&mut self, hash: u32, key: u32) {
        if let Ok(entry) = self.0[part(hash)].find_entry(spread(hash), |known| known.key == key) {
            entry.remove();
        }
    }
}

/// By the highest bits. A table takes its place from the lowest.
#[inline]
fn part(hash: u32) -> usize {
    (hash >> (u32::BITS - PARTS_BITS)) as usize
}

/// A table wants 64 bits, and the highest of them to differ too.
#[inline]
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_hash_are_told_apart_and_found_again_after_growth() {
        let mut keys = Keys::new();
        let hash = |key: u32| key.wrapping_mul(0x9e37_79b1) & !3;
        (0..100_000).for_each(|key| keys.insert(hash(key), key));
        assert!((0..100_000).all(|key| keys.find(hash(key), |known| known == key) == Some(key)));
        (0..100_000).step_by(2).for_each(|key| keys.remove(hash(key), key));
        assert!((0..100_000).all(|key| keys.find(hash(key), |known| known == key).is_some() == (key % 2 == 1)));
        assert!(keys.0.iter().all(|part| part.len() < 100));
    }
}
