//! Pools and handles against a model so simple that it is right: every state, every hold of others.

use std::collections::BTreeMap;

use dsv4_core::block::{Block, Cached, Incoming, Open, Sealed, Shared};
use dsv4_core::ids::{Group, RequestId, StepId};
use dsv4_core::pool::{Counts, Pool};
use dsv4_core::transfer::ids::{Epoch, Incarnation, PeerRank, Room, Ticket, WriterKey};

use crate::rng::{Rng, Seed, at_operation};

/// Where the naive model thinks a block is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Free,
    Open,
    Incoming,
    Sealed,
    /// By how many handles: of readers, of the cache.
    Shared(usize, usize),
    /// Since that step was the newest.
    Cached(usize, u64),
    Retired(u64),
    Quarantined,
}

/// One pool, the handles that a test holds, and where every block should be.
pub struct Handles {
    pub pool: Pool,
    open: Vec<Block<Open>>,
    incoming: Vec<Block<Incoming>>,
    sealed: Vec<Block<Sealed>>,
    shared: Vec<Block<Shared>>,
    cached: Vec<Block<Cached>>,
    places: Vec<Place>,
    /// Which blocks each writer may write that has not proved that it is done.
    writers: BTreeMap<WriterKey, Vec<u32>>,
    /// Which blocks each transfer in flight reads.
    tickets: BTreeMap<Ticket, Vec<u32>>,
    touched: Vec<(usize, usize)>,
    /// Keys and tickets are numbered, and none is used again.
    newest_key: usize,
    num_stale: usize,
    /// The life that each block was last handed out in.
    lives: Vec<Option<u32>>,
    step: u64,
    done: u64,
    /// Broken preconditions so far.
    pub violations: usize,
}

impl Handles {
    pub fn new(capacity: usize) -> Self {
        let handles = Self::lenient(capacity);
        handles.pool.panic_on_violation();
        handles
    }

    /// A violation does not panic, as in production.
    pub fn lenient(capacity: usize) -> Self {
        let pool = Pool::new(Group::Full, capacity);
        let places = vec![Place::Free; capacity];
        let lives = vec![None; capacity];
        Self {
            pool,
            open: vec![],
            incoming: vec![],
            sealed: vec![],
            shared: vec![],
            cached: vec![],
            places,
            writers: BTreeMap::new(),
            tickets: BTreeMap::new(),
            touched: vec![(0, 0); capacity],
            newest_key: 0,
            num_stale: 0,
            lives,
            step: 0,
            done: 0,
            violations: 0,
        }
    }

    fn place(&mut self, id: u32) -> &mut Place {
        &mut self.places[id as usize - 1]
    }

    fn take(&mut self) {
        let Some(block) = self.pool.take(RequestId(1)) else {
            assert!(!self.places.contains(&Place::Free), "a free block was withheld");
            return;
        };
        let life = self.lives[block.id().get() as usize - 1].replace(block.generation());
        assert!(life < Some(block.generation()), "block {} began the same life again", block.id());
        let place = self.place(block.id().get());
        assert!(*place == Place::Free, "block {} was handed out twice", block.id());
        *place = Place::Open;
        self.open.push(block);
    }

    fn seal(&mut self, index: usize) {
        let block = self.open.swap_remove(index).seal().expect("it is open");
        *self.place(block.id().get()) = Place::Sealed;
        self.sealed.push(block);
    }

    fn share(&mut self, index: usize) {
        let block = self.sealed.swap_remove(index).share().expect("it is sealed");
        *self.place(block.id().get()) = Place::Shared(1, 0);
        self.shared.push(block);
    }

    fn keep(&mut self, index: usize) {
        let block = self.shared[index].keep().expect("it is shared");
        let place = self.place(block.id().get());
        let Place::Shared(readers, keepers) = *place else { panic!("kept and not shared") };
        *place = Place::Shared(readers, keepers + 1);
        self.cached.push(block);
    }

    fn lend(&mut self, index: usize) {
        let block = self.cached[index].lend().expect("it is kept");
        let place = self.place(block.id().get());
        *place = match *place {
            Place::Shared(readers, keepers) => Place::Shared(readers + 1, keepers),
            Place::Cached(keepers, _) => Place::Shared(1, keepers),
            _ => panic!("lent and not kept"),
        };
        self.shared.push(block);
    }

    fn drop_reader(&mut self, index: usize) {
        let id = self.shared.swap_remove(index).id().get();
        let step = self.step;
        let place = self.place(id);
        *place = match *place {
            Place::Shared(1, 0) => Place::Retired(step),
            Place::Shared(1, keepers) => Place::Cached(keepers, step),
            Place::Shared(readers, keepers) => Place::Shared(readers - 1, keepers),
            _ => panic!("read and not shared"),
        };
    }

    /// Evicts: what nobody reads retires as of when it was read last.
    fn drop_keeper(&mut self, index: usize) {
        let id = self.cached.swap_remove(index).id().get();
        let place = self.place(id);
        *place = match *place {
            Place::Shared(readers, keepers) => Place::Shared(readers, keepers - 1),
            Place::Cached(1, since) => Place::Retired(since),
            Place::Cached(keepers, since) => Place::Cached(keepers - 1, since),
            _ => panic!("kept and not cached"),
        };
    }

    fn give_up(&mut self, id: u32) {
        *self.place(id) = Place::Retired(self.step);
    }

    /// How many writers may write a block, and how many transfers read it.
    fn touched(&mut self, id: u32) -> &mut (usize, usize) {
        &mut self.touched[id as usize - 1]
    }

    /// An open block is disclosed to a few writers, some of them known from other blocks.
    fn disclose(&mut self, index: usize, rng: &mut Rng) {
        let mut keys = vec![];
        for _ in 0..rng.between(1, 3) {
            let known = self.writers.len();
            if known > 0 && rng.once_in(2) {
                keys.extend(self.writers.keys().nth(rng.below(known)).copied());
            } else {
                self.newest_key += 1;
                keys.push(key(self.newest_key));
            }
        }
        let block = self.open.swap_remove(index).disclose(&keys).expect("it is open");
        let id = block.id().get();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            self.writers.entry(key).or_default().push(id);
            self.touched(id).0 += 1;
        }
        *self.place(id) = Place::Incoming;
        self.incoming.push(block);
    }

    /// Proof of one writer: blocks that wait for it alone retire.
    fn discharge(&mut self, rng: &mut Rng) {
        let Some(&key) = self.writers.keys().nth(rng.below(self.writers.len())) else { return };
        let ids = self.writers.remove(&key).expect("just seen");
        assert_eq!(self.pool.discharge(&key), ids.len());
        for id in ids {
            self.touched(id).0 -= 1;
            let is_last = self.touched(id).0 == 0;
            let step = self.step;
            let place = self.place(id);
            if is_last && *place == Place::Quarantined {
                *place = Place::Retired(step);
            }
        }
    }

    /// A proof that comes late, or twice, or of a writer nobody knows.
    fn discharge_stale(&mut self, rng: &mut Rng) {
        let before = self.pool.counts();
        let key = key(1 + rng.below(self.newest_key + 2));
        if !self.writers.contains_key(&key) {
            assert_eq!(self.pool.discharge(&key), 0);
            assert_eq!(self.pool.counts(), before, "a stale proof changed something");
            self.num_stale += 1;
        }
    }

    /// A block that was coming in becomes its request's own, if nobody may write it any more.
    fn settle(&mut self, index: usize) {
        if self.touched(self.incoming[index].id().get()).0 > 0 {
            return;
        }
        let block = self.incoming.swap_remove(index).settle().expect("nobody writes it");
        *self.place(block.id().get()) = Place::Open;
        self.open.push(block);
    }

    /// Dropped while somebody may still write it: nobody gets it.
    fn drop_incoming(&mut self, index: usize) {
        let id = self.incoming.swap_remove(index).id().get();
        let place =
            if self.touched(id).0 > 0 { Place::Quarantined } else { Place::Retired(self.step) };
        *self.place(id) = place;
    }

    /// A transfer reads some of what is held.
    fn read(&mut self, rng: &mut Rng) {
        self.newest_key += 1;
        let ticket = Ticket(self.newest_key as u64);
        let mut ids = vec![];
        for block in &self.open {
            if rng.once_in(4) {
                block.read_by(ticket).expect("it is held");
                ids.push(block.id().get());
            }
        }
        for block in &self.sealed {
            if rng.once_in(4) {
                block.read_by(ticket).expect("it is held");
                ids.push(block.id().get());
            }
        }
        if let Some(block) = self.shared.first() {
            block.read_by(ticket).expect("it is held");
            ids.push(block.id().get());
        }
        for &id in &ids {
            self.touched(id).1 += 1;
        }
        if !ids.is_empty() {
            self.tickets.insert(ticket, ids);
        }
    }

    fn end_read(&mut self, rng: &mut Rng) {
        let num_tickets = self.tickets.len();
        if num_tickets == 0 || rng.once_in(8) {
            let before = self.pool.counts();
            assert_eq!(self.pool.end_read(Ticket(u64::MAX)), 0);
            assert_eq!(self.pool.counts(), before, "a stale ticket changed something");
            return;
        }
        let ticket = *self.tickets.keys().nth(rng.below(num_tickets)).expect("some");
        let ids = self.tickets.remove(&ticket).expect("just seen");
        assert_eq!(self.pool.end_read(ticket), ids.len());
        for id in ids {
            self.touched(id).1 -= 1;
        }
    }

    fn begin(&mut self) {
        self.step += 1;
        self.pool.begin(StepId(self.step));
    }

    fn finish_one(&mut self) {
        if self.done < self.step {
            self.done += 1;
        }
        self.pool.reclaim(StepId(self.done));
        for (place, (_, num_reads)) in self.places.iter_mut().zip(&self.touched) {
            let is_over = matches!(*place, Place::Retired(step) if step <= self.done);
            if is_over && *num_reads == 0 {
                *place = Place::Free;
            }
        }
    }

    pub fn operate(&mut self, rng: &mut Rng) {
        match rng.below(30) {
            0..=3 => self.take(),
            4 | 5 if !self.open.is_empty() => self.seal(rng.below(self.open.len())),
            6 if !self.open.is_empty() => {
                let block = self.open.swap_remove(rng.below(self.open.len()));
                self.give_up(block.id().get());
            }
            7 | 8 if !self.sealed.is_empty() => {
                let block = self.sealed.swap_remove(rng.below(self.sealed.len()));
                self.give_up(block.id().get());
            }
            9 => self.begin(),
            10 | 11 if !self.sealed.is_empty() => self.share(rng.below(self.sealed.len())),
            12 if !self.shared.is_empty() => self.keep(rng.below(self.shared.len())),
            13 if !self.cached.is_empty() => self.lend(rng.below(self.cached.len())),
            14 | 15 if !self.shared.is_empty() => self.drop_reader(rng.below(self.shared.len())),
            16 if !self.cached.is_empty() => self.drop_keeper(rng.below(self.cached.len())),
            17 | 18 if !self.open.is_empty() => self.disclose(rng.below(self.open.len()), rng),
            19..=21 if !self.writers.is_empty() => self.discharge(rng),
            22 | 23 if !self.incoming.is_empty() => self.settle(rng.below(self.incoming.len())),
            24 if !self.incoming.is_empty() => self.drop_incoming(rng.below(self.incoming.len())),
            25 => self.read(rng),
            26 | 27 => self.end_read(rng),
            28 => self.discharge_stale(rng),
            _ => self.finish_one(),
        }
    }

    pub fn check(&self) {
        let count = |wanted: fn(&Place) -> bool| self.places.iter().filter(|p| wanted(p)).count();
        let expected = Counts {
            capacity: self.places.len(),
            free: count(|p| *p == Place::Free),
            open: count(|p| matches!(p, Place::Open | Place::Incoming)),
            sealed: count(|p| *p == Place::Sealed),
            shared: count(|p| matches!(p, Place::Shared(..))),
            cached: count(|p| matches!(p, Place::Cached(..))),
            retired: count(|p| matches!(p, Place::Retired(_))),
            quarantined: count(|p| *p == Place::Quarantined),
            incoming: count(|p| *p == Place::Incoming),
            violations: self.violations,
            read: self.touched.iter().filter(|(_, num_reads)| *num_reads > 0).count(),
            ..Counts::default()
        };
        assert_eq!(self.pool.counts(), expected);
    }

    pub fn drain(self) {
        let (step, capacity) = (self.step, self.places.len());
        let pool = self.let_go();
        pool.reclaim(StepId(step));
        pool.audit().expect("balanced");
        assert_eq!(pool.counts().free, capacity, "a block did not come back");
    }

    /// Drops every handle; every writer proves that it is done, every transfer ends.
    pub fn let_go(self) -> Pool {
        let Self { pool, open, incoming, sealed, shared, cached, writers, tickets, .. } = self;
        drop((open, incoming, sealed, cached, shared));
        for key in writers.keys() {
            pool.discharge(key);
        }
        for &ticket in tickets.keys() {
            pool.end_read(ticket);
        }
        pool
    }

    #[cfg(feature = "forged")]
    pub fn num_places(&self) -> usize {
        self.places.len()
    }

    /// The present life of a block, of which there are handles unless it is free.
    #[cfg(feature = "forged")]
    pub fn life(&self, place: usize) -> u32 {
        let is_over = u32::from(self.places[place] == Place::Free);
        self.lives[place].map_or(0, |life| life + is_over)
    }
}

/// Two attempts of each room.
fn key(number: usize) -> WriterKey {
    let peer = PeerRank { incarnation: Incarnation(1), rank: 0 };
    let epoch = Epoch(u32::from(number % 2 == 1));
    WriterKey { room: Room(number as u64 / 2), epoch, peer }
}

/// Runs `num_operations` operations over pools of many sizes; returns how many there were.
fn handles_agree(seeds: std::ops::Range<u64>, operations_per_seed: usize) -> usize {
    let (mut num_operations, mut num_stale) = (0, 0);
    for seed in seeds {
        let _seed = Seed(seed);
        let mut rng = Rng::new(seed);
        let mut handles = Handles::new(rng.pick(&[1, 2, 3, 5, 8, 13, 64]));
        for operation in 0..operations_per_seed {
            at_operation(operation);
            handles.operate(&mut rng);
            num_operations += 1;
            if operation % 16 == 0 {
                handles.check();
            }
            if operation % 128 == 0 {
                handles.pool.audit().expect("balanced");
            }
        }
        handles.check();
        num_stale += handles.num_stale;
        handles.drain();
    }
    assert!(num_stale > num_operations / 100, "{num_stale} stale proofs");
    num_operations
}

#[test]
fn blocks_are_conserved_over_five_million_operations_on_handles() {
    assert_eq!(handles_agree(0..1250, 4000), 5_000_000);
}

#[test]
fn blocks_are_conserved_over_five_million_operations_of_other_seeds() {
    assert_eq!(handles_agree(1_000_000..1_001_250, 4000), 5_000_000);
}
