//! The sliding window: what its tables cover, what it gives up and when, and that it is counted
//! once per step.

use dsv4_core::geometry::Geometry;
use dsv4_core::limits::Limits;

use crate::driver::{Driver, int, limits, real_geometry, sizes};
use crate::rng::Rng;

#[test]
fn a_decode_step_covers_the_window_and_no_more() {
    let mut driver = Driver::roomy(limits());
    driver.submit(190, 200);
    driver.step();
    for position in 190..380usize {
        driver.step().expect("decodes");
        let first = (position - 127) / 64;
        assert_eq!(driver.array("swa_first_block")[0], int(first));
        let row = driver.row("block_table_swa", 0);
        let count = position / 64 - first + 1;
        assert!(count <= 3);
        assert!(row[..count].iter().all(|&id| id > 0));
        assert!(row[count..].iter().all(|&id| id == 0));
        let slot = row[position / 64 - first] * 64 + int(position % 64);
        assert_eq!(driver.array("swa_slots")[0], slot);
    }
}

#[test]
fn a_chunk_covers_its_own_tokens_and_the_window_before_them() {
    let mut driver = Driver::roomy(Limits { max_num_tokens: 256, ..limits() });
    driver.submit(512, 1);
    driver.step();
    assert_eq!(driver.array("swa_first_block")[0], 0);
    assert_eq!(driver.row("block_table_swa", 0).iter().filter(|&&id| id > 0).count(), 4);
    driver.step();
    // 256 - 127 = 129 is in block 2; 511 is in block 7.
    assert_eq!(driver.array("swa_first_block")[0], 2);
    assert_eq!(driver.row("block_table_swa", 0).iter().filter(|&&id| id > 0).count(), 6);
}

#[test]
fn a_long_prompt_holds_three_window_blocks_between_its_chunks() {
    let mut driver = Driver::roomy(limits());
    driver.submit(2000, 4);
    while let Some(_step) = driver.step() {
        assert!(driver.stat("swa_open") + driver.stat("swa_sealed") <= 3);
        assert_eq!(driver.stat("swa_retired"), 0, "the step is done");
    }
}

#[test]
fn blocks_that_slide_out_are_kept_until_the_step_that_reads_them_is_done() {
    let mut driver = Driver::roomy(limits());
    driver.submit(512, 4);
    let plan = driver.plan().expect("the prompt");
    // Block 6 and 7 hold the window of position 512; the six before are given up, and still read.
    assert_eq!((driver.stat("swa_open"), driver.stat("swa_retired")), (2, 6));
    driver.finish(&plan, 1);
    assert_eq!((driver.stat("swa_open"), driver.stat("swa_sealed")), (0, 2));
    assert_eq!(driver.stat("swa_free"), 126);
}

#[test]
fn the_transient_need_is_counted_once_per_step_and_not_per_request() {
    // 512 tokens a step: 9 window blocks once. 3 blocks per request on top, for 8 requests.
    let need = 8 * 3 + 9;
    let mut driver = Driver::new(real_geometry(), sizes(64, need, 8), limits());
    for _ in 0..8 {
        driver.submit(500, 40);
    }
    driver.run(100);
    assert_eq!(driver.stat("num_preemptions"), 0);
    let mut driver = Driver::new(real_geometry(), sizes(64, need, 8), limits());
    for _ in 0..8 {
        driver.submit(50, 40);
    }
    driver.step();
    assert_eq!(driver.stat("num_running"), 8, "all at once");
    let mut driver = Driver::new(real_geometry(), sizes(64, need - 1, 8), limits());
    for _ in 0..8 {
        driver.submit(50, 40);
    }
    driver.step();
    assert_eq!(driver.stat("num_running"), 7, "one block less is one request less");
}

#[test]
fn chunks_shrink_to_what_the_window_pool_holds() {
    let mut driver = Driver::new(real_geometry(), sizes(64, 3, 8), limits());
    driver.submit(1000, 4);
    let mut num_steps = 0;
    while let Some((plan, _)) = driver.step() {
        assert!(plan.num_tokens <= 192);
        num_steps += 1;
    }
    assert!(num_steps < 25, "{num_steps} steps are far too many");
    driver.assert_at_rest();
}

#[test]
fn a_model_without_compressed_layers_closes_no_groups() {
    let uncompressed = Geometry { ratios: vec![0, 0], ..real_geometry() };
    let mut driver = Driver::new(uncompressed, sizes(8, 40, 2), limits());
    driver.submit(512, 2);
    let (plan, _) = driver.step().expect("the prompt");
    assert_eq!((plan.num_c4, plan.num_c128), (0, 0));
    assert!(driver.array("c4_tokens").is_empty());
}

#[test]
fn the_largest_legal_step_fits_the_layout() {
    for (num_requests, num_tokens) in [(1, 1), (8, 8), (8, 9), (8, 512), (3, 2000)] {
        let largest =
            Limits { max_num_requests: num_requests, max_num_tokens: num_tokens, ..limits() };
        // Every request one token short of closing a group of 128, then all close at once.
        let mut driver = Driver::new(real_geometry(), sizes(64, 128, 8), largest);
        for _ in 0..num_requests {
            driver.submit(127, 30);
        }
        let mut most = 0;
        while let Some((plan, _)) = driver.step() {
            most = most.max(plan.num_c128);
        }
        assert!(most >= 1);
        // And one request as long as the context allows, in chunks as long as the budget.
        driver.submit(2000, 48);
        driver.run(3000);
        driver.assert_at_rest();
    }
}

#[test]
fn no_stale_id_is_left_in_a_row_whatever_the_memory_held_before() {
    let mut driver = Driver::roomy(limits());
    driver.submit(2000, 30);
    driver.submit(100, 60);
    let mut num_steps = 0;
    while let Some((plan, _)) = driver.step() {
        for row in 0..plan.num_requests {
            let seq_len = usize::try_from(driver.array("seq_lens")[row]).expect("positive");
            let full = driver.row("block_table_full", row);
            let is_right = |(i, &id): (usize, &i32)| (id > 0) == (i < seq_len.div_ceil(256));
            assert!(full.iter().enumerate().all(is_right), "{seq_len} tokens: {full:?}");
            let swa = driver.row("block_table_swa", row);
            assert!(swa.iter().skip_while(|&&id| id > 0).all(|&id| id == 0), "{swa:?}");
        }
        num_steps += 1;
        if num_steps % 3 == 0 {
            driver.memory.fill([-1, 0, 1, 2, i32::MAX][num_steps / 3 % 5]);
        }
    }
    assert!(num_steps > 60);
}

#[test]
fn rows_are_the_same_whichever_memory_is_lent() {
    const NUM_MEMORIES: usize = 7;
    let mut rng = Rng::new(1);
    let [mut fresh, mut lent] = [(); 2].map(|()| {
        let mut driver = Driver::roomy(limits());
        for (prompt, output) in [(2000, 40), (100, 300), (500, 200), (60, 400), (1, 300), (700, 9)]
        {
            driver.submit(prompt, output);
        }
        driver
    });
    let mut memories = vec![lent.memory.clone(); NUM_MEMORIES];
    let mut num_steps = 0;
    loop {
        let place = rng.below(NUM_MEMORIES);
        match rng.below(20) {
            0 => memories[place] = memories[rng.below(NUM_MEMORIES)].clone(),
            1 => memories[place].copy_from_slice(&fresh.memory), // of another core
            2 => memories[place].fill(rng.pick(&[-1, 0, 1, i32::MAX])),
            _ => {}
        }
        fresh.memory.fill(-1);
        std::mem::swap(&mut lent.memory, &mut memories[place]);
        let (expected, got) = (fresh.step(), lent.step());
        assert_eq!(expected, got);
        let Some((plan, _)) = expected else { break };
        for row in 0..plan.num_requests {
            for table in ["block_table_full", "block_table_swa"] {
                assert_eq!(fresh.row(table, row), lent.row(table, row), "{table} {row}");
            }
        }
        std::mem::swap(&mut lent.memory, &mut memories[place]);
        num_steps += 1;
    }
    assert!(num_steps > 400);
}
