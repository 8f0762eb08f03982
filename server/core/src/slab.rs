//! A slab in chunks: entries never move, and chunks that are empty go back to the allocator.

use std::collections::BTreeSet;

/// Entries in a chunk: messages of 80 bytes fill 20 KiB, which the allocator hands out without rounding up.
const CHUNK: usize = 256;

/// The place of an entry. It stays valid until the entry is removed, and may then be given to another.
pub(crate) type Key = u32;

/// Stores values under keys of its own choice. A new value goes to the lowest chunk with room, so that after a peak the high
/// chunks run empty. One empty chunk is kept, so that a store that hovers around a chunk's end allocates nothing.
pub(crate) struct Slab<T> {
    chunks: Vec<Option<Chunk<T>>>,
    /// Indices of the chunks with room, given back ones included.
    roomy: BTreeSet<usize>,
    spare: Option<Chunk<T>>,
    len: usize,
}

/// At most [`CHUNK`] entries; the vacant ones form a list that starts at `vacant`.
struct Chunk<T> {
    entries: Vec<Entry<T>>,
    vacant: Option<u32>,
    live: usize,
}

pub(crate) enum Entry<T> {
    Live(T),
    Vacant { next: Option<u32> },
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { chunks: Vec::new(), roomy: BTreeSet::new(), spare: None, len: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn insert(&mut self, value: T) -> Key {
        let index = self.roomy.first().copied().unwrap_or_else(|| {
            self.chunks.push(None);
            self.roomy.insert(self.chunks.len() - 1);
            self.chunks.len() - 1
        });
        let chunk = self.chunks[index].get_or_insert_with(|| self.spare.take().unwrap_or_else(Chunk::new));
        let offset = chunk.insert(value);
        if chunk.live == CHUNK {
            self.roomy.remove(&index);
        }
        self.len += 1;
        Key::try_from(index * CHUNK + offset).expect("a backlog is bounded below 2^32 messages")
    }

    pub(crate) fn remove(&mut self, key: Key) -> T {
        let (index, offset) = split(key);
        let place = &mut self.chunks[index];
        let chunk = place.as_mut().expect("a key names a live entry");
        let value = chunk.remove(offset);
        if chunk.live == CHUNK - 1 {
            self.roomy.insert(index);
        }
        if chunk.live == 0 {
            let mut emptied = place.take();
            if let Some(chunk) = &mut emptied {
                chunk.entries.clear();
                chunk.vacant = None;
            }
            self.spare = emptied;
        }
        self.len -= 1;
        value
    }

    pub(crate) fn get(&self, key: Key) -> &T {
        let (index, offset) = split(key);
        match self.chunks[index].as_ref().map(|chunk| &chunk.entries[offset]) {
            Some(Entry::Live(value)) => value,
            Some(Entry::Vacant { .. }) | None => unreachable!("a key names a live entry"),
        }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> &mut T {
        let (index, offset) = split(key);
        match self.chunks[index].as_mut().map(|chunk| &mut chunk.entries[offset]) {
            Some(Entry::Live(value)) => value,
            Some(Entry::Vacant { .. }) | None => unreachable!("a key names a live entry"),
        }
    }
}

impl<T> Chunk<T> {
    fn new() -> Self {
        Self { entries: Vec::with_capacity(CHUNK), vacant: None, live: 0 }
    }

    fn insert(&mut self, value: T) -> usize {
        self.live += 1;
        let Some(offset) = self.vacant else {
            self.entries.push(Entry::Live(value));
            return self.entries.len() - 1;
        };
        let entry = &mut self.entries[offset as usize];
        let Entry::Vacant { next } = *entry else { unreachable!("the vacant list holds vacant entries") };
        self.vacant = next;
        *entry = Entry::Live(value);
        offset as usize
    }

    fn remove(&mut self, offset: usize) -> T {
        let next = self.vacant.replace(u32::try_from(offset).expect("a chunk is small"));
        match std::mem::replace(&mut self.entries[offset], Entry::Vacant { next }) {
            Entry::Live(value) => {
                self.live -= 1;
                value
            }
            Entry::Vacant { .. } => unreachable!("a key names a live entry"),
        }
    }
}

const fn split(key: Key) -> (usize, usize) {
    (key as usize / CHUNK, key as usize % CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_back_when_the_entries_are_gone() {
        let mut slab = Slab::new();
        let keys: Vec<_> = (0..10 * CHUNK).map(|n| slab.insert(n)).collect();
        for key in keys {
            slab.remove(key);
        }
        assert_eq!(slab.len(), 0);
        assert_eq!(slab.chunks.iter().flatten().count(), 0);
    }

    #[test]
    fn a_new_entry_takes_the_lowest_chunk_with_room() {
        let mut slab = Slab::new();
        let keys: Vec<_> = (0..3 * CHUNK).map(|n| slab.insert(n)).collect();
        slab.remove(keys[2 * CHUNK + 5]);
        slab.remove(keys[7]);
        assert_eq!(slab.insert(0), keys[7]);
        assert_eq!(slab.insert(0), keys[2 * CHUNK + 5]);
    }

    #[test]
    fn entries_keep_their_values_through_churn() {
        let mut slab = Slab::new();
        let mut live: std::collections::VecDeque<(Key, usize)> = std::collections::VecDeque::new();
        for n in 0..20 * CHUNK {
            live.push_back((slab.insert(n), n));
            if n % 3 != 0 {
                let (key, value) = live.pop_front().unwrap();
                assert_eq!(*slab.get(key), value);
                assert_eq!(slab.remove(key), value);
            }
        }
        assert_eq!(slab.len(), live.len());
        assert!(live.iter().all(|&(key, value)| *slab.get(key) == value));
    }
}
