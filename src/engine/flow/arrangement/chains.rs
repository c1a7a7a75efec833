//! An index from hashes to slots: the slots of one hash are a chain, the newest first.

use std::fmt;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// No slot.
pub const NIL: u32 = u32::MAX;

/// Many small tables, so that no insertion pays for the growth of a large one.
const SHARDS: usize = 128;

/// A multimap from hashes to slots.
pub struct Chains {
    /// Of each hash its newest slot.
    heads: Vec<HashTable<u32>>,
    /// By slot.
    links: Vec<Link>,
    /// By slot the next newer one of its hash: a slot of a long chain is removed without a walk.
    newer: Option<Vec<u32>>,
}

#[derive(Clone, Copy)]
struct Link {
    /// The next older slot of that hash.
    older: u32,
    hash: u32,
}

impl Chains {
    /// An empty index; `removable` if slots of long chains will be removed.
    pub fn new(removable: bool) -> Chains {
        let heads = (0..SHARDS).map(|_| HashTable::new()).collect();
        Chains { heads, links: Vec::new(), newer: removable.then(Vec::new) }
    }

    /// The slots of that hash, the newest first.
    pub fn of(&self, hash: u32) -> impl Iterator<Item = u32> {
        let there = |slot: u32| Some(slot).filter(|slot| *slot != NIL);
        std::iter::successors(there(self.newest(hash)), move |slot| there(self.older(*slot)))
    }

    /// The newest slot of that hash, or `NIL`.
    pub fn newest(&self, hash: u32) -> u32 {
        let links = &self.links;
        let head = self.heads[shard(hash)].find(spread(hash), |slot| links[*slot as usize].hash == hash);
        head.copied().unwrap_or(NIL)
    }

    /// The next older slot of a slot's hash, or `NIL`.
    pub fn older(&self, slot: u32) -> u32 {
        self.links[slot as usize].older
    }

    /// Adds a slot that is not there, as the newest of its hash.
    pub fn push(&mut self, slot: u32, hash: u32) {
        let Chains { heads, links, newer } = self;
        if slot as usize >= links.len() {
            links.resize(slot as usize + 1, Link { older: NIL, hash: 0 });
        }
        let is_head = |head: &u32| links[*head as usize].hash == hash;
        let hash_of = |head: &u32| spread(links[*head as usize].hash);
        let older = match heads[shard(hash)].entry(spread(hash), is_head, hash_of) {
            Entry::Occupied(mut head) => std::mem::replace(head.get_mut(), slot),
            Entry::Vacant(place) => {
                place.insert(slot);
                NIL
            }
        };
        links[slot as usize] = Link { older, hash };
        if let Some(newer) = newer {
            newer.resize(links.len(), NIL);
            newer[slot as usize] = NIL;
            if older != NIL {
                newer[older as usize] = slot;
            }
        }
    }

    /// Removes a slot that is there.
    pub fn remove(&mut self, slot: u32) {
        let Link { older, hash } = self.links[slot as usize];
        let newer = match &self.newer {
            Some(newer) => newer[slot as usize],
            None => self.of(hash).take_while(|other| *other != slot).last().unwrap_or(NIL),
        };
        if let Some(all) = &mut self.newer
            && older != NIL
        {
            all[older as usize] = newer;
        }
        if newer != NIL {
            self.links[newer as usize].older = older;
            return;
        }
        let found = self.heads[shard(hash)].find_entry(spread(hash), |head| *head == slot);
        if let Ok(mut head) = found {
            if older == NIL {
                head.remove();
            } else {
                *head.get_mut() = older;
            }
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let heads: usize = self.heads.iter().map(|heads| heads.allocation_size()).sum();
        let newer = self.newer.as_ref().map_or(0, Vec::capacity) * size_of::<u32>();
        heads + self.links.capacity() * size_of::<Link>() + newer
    }
}

impl fmt::Debug for Chains {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Chains of {} slots", self.links.len())
    }
}

/// The tables need 64 bits that differ at both ends.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn shard(hash: u32) -> usize {
    (spread(hash) >> 40) as usize % SHARDS
}
