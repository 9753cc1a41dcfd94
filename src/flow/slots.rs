//! Numbered places that never move: growth takes one more chunk and copies nothing.

const CHUNK: usize = 1024;
const NONE: u32 = u32::MAX;

#[derive(Debug)]
enum Slot<T> {
    Taken(T),
    /// The next free one.
    Free(u32),
}

#[derive(Debug)]
pub(super) struct Slots<T> {
    chunks: Vec<Vec<Slot<T>>>,
    free: u32,
    /// Places that were ever taken.
    used: u32,
    taken: u32,
}

impl<T> Slots<T> {
    pub fn new() -> Self {
        Self { chunks: Vec::new(), free: NONE, used: 0, taken: 0 }
    }

    pub fn len(&self) -> u32 {
        self.taken
    }

    /// All numbers are below this one.
    pub fn end(&self) -> u32 {
        self.used
    }

    #[inline]
    pub fn get(&self, number: u32) -> Option<&T> {
        match self.chunks.get(number as usize / CHUNK)?.get(number as usize % CHUNK)? {
            Slot::Taken(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    #[inline]
    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        match self.slot_mut(number)? {
            Slot::Taken(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    pub fn insert(&mut self, value: T) -> u32 {
        self.taken += 1;
        let number = self.free;
        if let Some(slot) = self.slot_mut(number) {
            if let Slot::Free(next) = std::mem::replace(slot, Slot::Taken(value)) {
                self.free = next;
            }
            return number;
        }
        let number = self.used;
        if number as usize / CHUNK == self.chunks.len() {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        self.chunks[number as usize / CHUNK].push(Slot::Taken(value));
        self.used += 1;
        number
    }

    pub fn remove(&mut self, number: u32) -> Option<T> {
        self.get(number)?;
        let next = self.free;
        let slot = self.slot_mut(number)?;
        let Slot::Taken(value) = std::mem::replace(slot, Slot::Free(next)) else { return None };
        self.free = number;
        self.taken -= 1;
        Some(value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(self.chunks.iter().flatten()).filter_map(|(number, slot)| match slot {
            Slot::Taken(value) => Some((number, value)),
            Slot::Free(_) => None,
        })
    }

    fn slot_mut(&mut self, number: u32) -> Option<&mut Slot<T>> {
        self.chunks.get_mut(number as usize / CHUNK)?.get_mut(number as usize % CHUNK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_freed_is_taken_again_before_there_is_more() {
        let mut slots = Slots::new();
        assert!((0..3000).all(|n| slots.insert(n) == n));
        assert_eq!((slots.remove(7), slots.remove(2500), slots.remove(7)), (Some(7), Some(2500), None));
        assert_eq!((slots.get(7), slots.len(), slots.iter().count()), (None, 2998, 2998));
        assert_eq!((slots.insert(1), slots.insert(2), slots.insert(3)), (2500, 7, 3000));
        assert_eq!(
            (slots.get(2500), slots.get(7), slots.get(3000), slots.get(3001)),
            (Some(&1), Some(&2), Some(&3), None)
        );
        assert_eq!((slots.len(), slots.end(), slots.get(NONE)), (3001, 3001, None));
    }
}
