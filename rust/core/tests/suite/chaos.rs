//! Every precondition broken, by handles that no caller can come by: each is counted, costs at most
//! the one block that it names, and heals.

use dsv4_core::block::forged;
use dsv4_core::ids::{RequestId, StepId};
use dsv4_core::pool::{Counts, Pool};

use crate::handles::Handles;
use crate::rng::{Rng, Seed, at_operation};

/// Random operations on handles, and now and then one with a handle of another life.
pub struct Stale {
    handles: Handles,
    rng: Rng,
    pub num_probes: usize,
}

impl Stale {
    pub fn new(mut rng: Rng) -> Self {
        let handles = Handles::lenient(rng.between(1, 8));
        Self { handles, rng, num_probes: 0 }
    }

    pub fn operate(&mut self) {
        if self.rng.once_in(4) {
            self.probe();
        } else {
            self.handles.operate(&mut self.rng);
        }
    }

    /// A handle of an earlier life, or of one that never was, has no say over the block.
    fn probe(&mut self) {
        let place = self.rng.below(self.handles.num_places());
        let life = self.handles.life(place).wrapping_add(self.rng.pick(&[1, 2, u32::MAX, 1 << 31]));
        let before = self.handles.pool.counts();
        let num_refusals = provoke(&self.handles.pool, place, life, self.rng.below(8));
        self.handles.violations += num_refusals;
        self.num_probes += 1;
        let violations = before.violations + num_refusals;
        assert_eq!(self.handles.pool.counts(), Counts { violations, ..before });
    }

    pub fn check(&self) {
        self.handles.check();
        self.handles.pool.audit().expect("balanced");
    }

    pub fn drain(self) {
        self.handles.drain();
    }
}

/// Forges a handle, does with it what its type allows and drops it; how many violations that is
/// worth if the handle is of another life.
fn provoke(pool: &Pool, place: usize, life: u32, how: usize) -> usize {
    match how {
        0 => drop(forged::open(pool, place, life)),
        1 => drop(forged::sealed(pool, place, life)),
        2 => drop(forged::shared(pool, place, life)),
        3 => drop(forged::cached(pool, place, life)),
        4 => assert!(forged::open(pool, place, life).seal().is_err(), "sealed"),
        5 => assert!(forged::sealed(pool, place, life).share().is_err(), "shared"),
        6 => assert!(forged::shared(pool, place, life).keep().is_err(), "kept"),
        _ => assert!(forged::cached(pool, place, life).lend().is_err(), "lent"),
    }
    if how < 4 { 1 } else { 2 }
}

/// A handle of the right life on a block that is not in its state, or one handle too many: from
/// some state of a pool that `num_operations` random ones led to.
pub fn break_once(mut rng: Rng, num_operations: usize) {
    let mut handles = Handles::lenient(rng.between(1, 8));
    for number in 0..num_operations {
        at_operation(number);
        handles.operate(&mut rng);
    }
    at_operation(num_operations);
    let place = rng.below(handles.num_places());
    let life = handles.life(place);
    match rng.below(4) {
        0 => drop(forged::open(&handles.pool, place, life)),
        1 => drop(forged::sealed(&handles.pool, place, life)),
        2 => drop(forged::shared(&handles.pool, place, life)),
        _ => drop(forged::cached(&handles.pool, place, life)),
    }
    handles.pool.audit().expect("balanced after one handle too many");
    let before = handles.pool.counts();
    handles.pool.repair();
    if before.held() + before.cached > 0 {
        assert_eq!(handles.pool.counts(), before, "healed while handles are left");
    }
    // Whoever was right about the block may now be the one who finds it gone.
    let pool = handles.let_go();
    pool.audit().expect("balanced after all are gone");
    let counts = pool.counts();
    assert!(counts.violations >= 1, "nobody noticed: {counts:?}");
    assert!(counts.quarantined <= 1, "one block costs others: {counts:?}");
    pool.repair();
    pool.reclaim(StepId(u64::MAX));
    let counts = pool.counts();
    assert_eq!(counts.free, counts.capacity, "it does not heal: {counts:?}");
    let again: Vec<_> = (0..counts.capacity).map(|_| pool.take(RequestId(1))).collect();
    assert!(again.iter().all(Option::is_some), "a block is lost");
    pool.audit().expect("balanced when all are taken again");
}

#[test]
fn a_handle_of_another_life_is_a_counted_no_op() {
    let mut num_probes = 0;
    for seed in 0..500 {
        let _seed = Seed(seed);
        let mut game = Stale::new(Rng::new(seed));
        for number in 0..2000 {
            at_operation(number);
            game.operate();
            if number % 16 == 0 {
                game.check();
            }
        }
        num_probes += game.num_probes;
        game.drain();
    }
    assert!(num_probes > 200_000, "{num_probes} probes are too few");
}

#[test]
fn ten_thousand_broken_preconditions_cost_a_block_each_and_heal() {
    for seed in 0..10_000 {
        let _seed = Seed(seed);
        break_once(Rng::new(seed), usize::try_from(seed % 200).expect("small"));
    }
}
