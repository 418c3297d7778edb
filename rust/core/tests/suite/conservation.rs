//! Pools, handles and tables against models so simple that they are right.

use dsv4_core::admit::{Pools, Wait};
use dsv4_core::block::{Block, Cached, Open, Sealed, Shared};
use dsv4_core::budget::PoolSizes;
use dsv4_core::geometry::Geometry;
use dsv4_core::ids::{Group, RequestId, StepId};
use dsv4_core::limits::Limits;
use dsv4_core::pool::{Counts, Pool};
use dsv4_core::table::Tables;

use crate::driver::{limits, tiny_geometry};
use crate::rng::{Rng, Seed, at_operation};

/// Where the naive model thinks a block is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Free,
    Open,
    Sealed,
    /// By how many handles: of readers, of the cache.
    Shared(usize, usize),
    /// Since that step was the newest.
    Cached(usize, u64),
    Retired(u64),
}

/// One pool, the handles that a test holds, and where every block should be.
pub struct Handles {
    pub pool: Pool,
    open: Vec<Block<Open>>,
    sealed: Vec<Block<Sealed>>,
    shared: Vec<Block<Shared>>,
    cached: Vec<Block<Cached>>,
    places: Vec<Place>,
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
        let (open, sealed, shared, cached) = (vec![], vec![], vec![], vec![]);
        let (step, done, violations) = (0, 0, 0);
        Self { pool, open, sealed, shared, cached, places, lives, step, done, violations }
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

    fn begin(&mut self) {
        self.step += 1;
        self.pool.begin(StepId(self.step));
    }

    fn finish_one(&mut self) {
        if self.done < self.step {
            self.done += 1;
        }
        self.pool.reclaim(StepId(self.done));
        for place in &mut self.places {
            if matches!(*place, Place::Retired(step) if step <= self.done) {
                *place = Place::Free;
            }
        }
    }

    pub fn operate(&mut self, rng: &mut Rng) {
        match rng.below(19) {
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
            _ => self.finish_one(),
        }
    }

    pub fn check(&self) {
        let count = |wanted: fn(&Place) -> bool| self.places.iter().filter(|p| wanted(p)).count();
        let expected = Counts {
            capacity: self.places.len(),
            free: count(|p| *p == Place::Free),
            open: count(|p| *p == Place::Open),
            sealed: count(|p| *p == Place::Sealed),
            shared: count(|p| matches!(p, Place::Shared(..))),
            cached: count(|p| matches!(p, Place::Cached(..))),
            retired: count(|p| matches!(p, Place::Retired(_))),
            violations: self.violations,
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

    /// Drops every handle.
    pub fn let_go(self) -> Pool {
        let Self { pool, open, sealed, shared, cached, .. } = self;
        drop((open, sealed, cached, shared));
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

/// Runs `num_operations` operations over pools of many sizes; returns how many there were.
fn handles_agree(seeds: std::ops::Range<u64>, operations_per_seed: usize) -> usize {
    let mut num_operations = 0;
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
        handles.drain();
    }
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

/// Tables of several requests over the three pools, as a scheduler would drive them.
struct Running {
    tables: Tables,
    id: RequestId,
    position: usize,
    /// The newest step that this request was part of.
    last_step: u64,
    full_promise: usize,
}

pub struct Books {
    geometry: Geometry,
    sizes: PoolSizes,
    pools: Pools,
    running: Vec<Running>,
    next_id: u64,
    step: u64,
    done: u64,
}

impl Books {
    pub fn new(rng: &mut Rng) -> Self {
        let geometry = tiny_geometry();
        // Set aside for short chunks, used for long ones: the spare blocks run out.
        let limits = Limits { max_num_tokens: rng.between(1, 12), ..limits() };
        let sizes = PoolSizes {
            full_blocks: rng.between(1, 60),
            swa_blocks: rng.between(geometry.steady_swa_blocks(), 30),
            state_slots: rng.between(1, 6),
        };
        let pools = Pools::new(&geometry, &sizes, &limits).expect("legal sizes");
        pools.for_each(Pool::panic_on_violation);
        let running = vec![];
        Self { geometry, sizes, pools, running, next_id: 1, step: 0, done: 0 }
    }

    fn start(&mut self, rng: &mut Rng) {
        let (tokens, output) = (rng.between(1, 40), rng.between(1, 40));
        let id = RequestId(self.next_id);
        let needs = self.geometry.full_blocks(tokens + output.min(2 * self.geometry.block_tokens));
        match self.pools.probe(tokens, output) {
            Ok(reservation) if rng.once_in(4) => reservation.forfeit(),
            Ok(reservation) => {
                let tables = reservation.commit(id);
                self.next_id += 1;
                let (position, last_step) = (0, 0);
                self.running.push(Running { tables, id, position, last_step, full_promise: needs });
            }
            Err(Wait { group: Group::Full, needs: said, has }) => {
                assert_eq!(said, needs);
                assert!(has < needs);
            }
            Err(Wait { needs, has, .. }) => assert!(has < needs),
        }
    }

    /// A chunk of one request, as long as its tables allow, in a new step.
    fn step(&mut self, index: usize, rng: &mut Rng) {
        let wanted = rng.between(1, 40);
        let running = &mut self.running[index];
        let start = running.position;
        let settled = running.last_step <= self.done;
        let swa = &mut running.tables.swa;
        let reach = swa.end() + swa.takeable(settled) * swa.block_tokens();
        let end = (start + wanted).min(reach);
        if end == start {
            assert!(!settled, "a settled request can always take one more token");
            return;
        }
        assert!(swa.grow(swa.missing(end), settled), "takeable blocks were not to be had");
        let full = &mut running.tables.full;
        let within_promise = end.div_ceil(self.geometry.block_tokens) <= running.full_promise;
        if !full.grow(full.missing(end), true) {
            assert!(!within_promise, "request {} was refused what it was promised", running.id);
            self.running.swap_remove(index);
            return;
        }
        self.step += 1;
        self.pools.begin(StepId(self.step));
        running.position = end;
        running.last_step = self.step;
        running.tables.swa.slide(self.geometry.window_start(end), |_, block| drop(block));
        if rng.once_in(2) {
            running.tables.full.seal_written(end).expect("written");
            running.tables.swa.seal_written(end).expect("written");
        }
    }

    pub fn operate(&mut self, rng: &mut Rng) {
        let num_running = self.running.len();
        match rng.below(16) {
            0 | 1 => self.start(rng),
            2 if num_running > 0 => drop(self.running.swap_remove(rng.below(num_running))),
            3..=9 if num_running > 0 && self.step < self.done + 2 => {
                self.step(rng.below(num_running), rng);
            }
            _ => {
                self.done = self.step.min(self.done + 1);
                self.pools.reclaim(StepId(self.done));
            }
        }
    }

    pub fn check(&self) {
        self.pools.for_each(|pool| pool.audit().expect("balanced"));
        let held = |row: fn(&Tables) -> &[i32]| -> Vec<i32> {
            self.running.iter().flat_map(|r| row(&r.tables)).copied().collect()
        };
        for (pool, mut ids) in [
            (&self.pools.full, held(|tables| tables.full.row())),
            (&self.pools.swa, held(|tables| tables.swa.row())),
        ] {
            let counts = pool.counts();
            assert_eq!(ids.len(), counts.open + counts.sealed);
            ids.sort_unstable();
            assert!(ids.is_sorted_by(|a, b| a < b), "a block has two owners: {ids:?}");
        }
        assert_eq!(self.pools.state.counts().open, self.running.len());
    }

    pub fn drain(mut self) {
        self.running.clear();
        self.pools.reclaim(StepId(self.step));
        self.pools.for_each(|pool| {
            let counts = pool.counts();
            assert_eq!((counts.free, counts.reserved), (counts.capacity, 0));
        });
        assert_eq!(self.pools.full.counts().capacity, self.sizes.full_blocks);
    }
}

#[test]
fn promises_hold_and_blocks_are_conserved_over_two_million_operations_on_tables() {
    let mut num_operations = 0;
    for seed in 0..1000 {
        let _seed = Seed(seed);
        let mut rng = Rng::new(seed);
        let mut books = Books::new(&mut rng);
        for operation in 0..2000 {
            at_operation(operation);
            books.operate(&mut rng);
            num_operations += 1;
            if operation % 32 == 0 {
                books.check();
            }
        }
        books.check();
        books.drain();
    }
    assert_eq!(num_operations, 2_000_000);
}
