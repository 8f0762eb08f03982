//! A set of message ids, for telling whether every accepted message was delivered.

use std::collections::BTreeMap;

/// Ids in a page.
const PAGE: u64 = 4096;
/// Bits in a word.
const WORD: u64 = 64;

type Page = Box<[u64; (PAGE / WORD) as usize]>;

/// Ids as bits, in pages: 8 million ids in a row take 1 MB.
#[derive(Debug, Default)]
pub(super) struct Ids {
    pages: BTreeMap<u64, Page>,
    /// The page in use: ids come nearly in order.
    current: Option<(u64, Page)>,
}

impl Ids {
    /// Adds an id, and says whether it is new.
    pub(super) fn insert(&mut self, id: u64) -> bool {
        let (number, place) = (id / PAGE, id % PAGE);
        if self.current.as_ref().is_none_or(|(current, _)| *current != number) {
            self.put_back();
            let page = self.pages.remove(&number).unwrap_or_else(|| Box::new([0; (PAGE / WORD) as usize]));
            self.current = Some((number, page));
        }
        let (_, page) = self.current.as_mut().expect("it is the id's");
        let (word, bit) = (&mut page[(place / WORD) as usize], 1 << (place % WORD));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Adds all of another set.
    pub(super) fn merge(&mut self, mut other: Self) {
        self.put_back();
        other.put_back();
        for (number, theirs) in other.pages {
            let ours = self.pages.entry(number).or_insert_with(|| Box::new([0; (PAGE / WORD) as usize]));
            for (word, more) in ours.iter_mut().zip(theirs.iter()) {
                *word |= more;
            }
        }
    }

    /// How many of these ids are not in `other`.
    pub(super) fn missing_in(&mut self, other: &mut Self) -> u64 {
        self.put_back();
        other.put_back();
        let none = [0; (PAGE / WORD) as usize];
        let missing = |(number, page): (&u64, &Page)| {
            let others = other.pages.get(number).map_or(&none, |page| &**page);
            page.iter().zip(others).map(|(word, others)| u64::from((word & !others).count_ones())).sum::<u64>()
        };
        self.pages.iter().map(missing).sum()
    }

    fn put_back(&mut self) {
        self.pages.extend(self.current.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ids: impl IntoIterator<Item = u64>) -> Ids {
        let mut set = Ids::default();
        for id in ids {
            set.insert(id);
        }
        set
    }

    #[test]
    fn an_id_is_new_once() {
        let mut ids = Ids::default();
        let told: Vec<bool> = [1, 2, 1, PAGE, 2, u64::MAX, PAGE, u64::MAX].map(|id| ids.insert(id)).to_vec();
        assert_eq!(told, [true, true, false, true, false, true, false, false]);
    }

    #[test]
    fn what_is_missing_is_counted_across_pages() {
        let mut delivered = of((1..=3 * PAGE).filter(|id| id % 1_000 != 0));
        assert_eq!(of(1..=3 * PAGE).missing_in(&mut delivered), 12);
        assert_eq!(delivered.missing_in(&mut of(1..=3 * PAGE)), 0);
    }

    #[test]
    fn sets_of_several_consumers_make_one() {
        let mut all = of((1..10_000).step_by(2));
        all.merge(of((2..10_000).step_by(2)));
        assert_eq!(of(1..10_000).missing_in(&mut all), 0);
        assert_eq!(of(1..=10_000).missing_in(&mut all), 1);
    }
}
