//! Tables and promises against a model so simple that it is right.

use dsv4_core::admit::{Pools, Wait};
use dsv4_core::budget::PoolSizes;
use dsv4_core::geometry::Geometry;
use dsv4_core::ids::{Group, RequestId, StepId};
use dsv4_core::limits::Limits;
use dsv4_core::pool::Pool;
use dsv4_core::table::Tables;

use crate::driver::{limits, tiny_geometry};
use crate::rng::{Rng, Seed, at_operation};

/// Tables of several requests over the three pools, as a scheduler would drive them.
struct Running {
    tables: Tables,
    id: RequestId,
    position: usize,
    /// Steps, and window blocks that it slid past when they were planned.
    slid: Vec<(u64, usize)>,
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
            swa_blocks: rng.between(geometry.steady_swa_blocks(1), 30),
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
                let (position, slid) = (0, vec![]);
                self.running.push(Running { tables, id, position, slid, full_promise: needs });
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
        running.slid.retain(|(step, _)| *step > self.done);
        let retired = running.slid.iter().map(|(_, count)| count).sum();
        let swa = &mut running.tables.swa;
        let reach = swa.end() + swa.takeable(retired) * swa.block_tokens();
        let end = (start + wanted).min(reach);
        if end == start {
            assert!(retired > 0, "with nothing on its way back there is room for one more token");
            return;
        }
        assert!(swa.grow(swa.missing(end), retired), "takeable blocks were not to be had");
        let full = &mut running.tables.full;
        let within_promise = end.div_ceil(self.geometry.block_tokens) <= running.full_promise;
        if !full.grow(full.missing(end), 0) {
            assert!(!within_promise, "request {} was refused what it was promised", running.id);
            self.running.swap_remove(index);
            return;
        }
        self.step += 1;
        self.pools.begin(StepId(self.step));
        running.position = end;
        let before = running.tables.swa.first();
        running.tables.swa.slide(self.geometry.window_start(end), |_, block| drop(block));
        running.slid.push((self.step, running.tables.swa.first() - before));
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
