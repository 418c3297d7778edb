//! Tokens that are drafted and verified: what counts, what is undone, and who may bring how many.

use dsv4_core::error::Error;
use dsv4_core::ids::RequestId;
use dsv4_core::limits::Limits;
use dsv4_core::recipe::{Band, Recipe};
use dsv4_core::{Answer, Core, Event, NewRequest, Outcome, Plan};

use crate::driver::{Driver, drafting, ends_of, int, limits, real_geometry, request, sizes};

/// The device drafts 7, and so many of these drafts turn out right.
struct Drafting {
    driver: Driver,
    width: usize,
}

impl Drafting {
    fn new(limits: Limits) -> Self {
        let width = limits.max_draft_tokens;
        let driver = Driver::new(drafting(real_geometry()), sizes(64, 128, 8), limits);
        Self { driver, width }
    }

    fn plan(&mut self) -> Plan {
        self.driver.plan().expect("somebody runs")
    }

    /// Every sample is 7; of each row so many drafts are accepted.
    fn finish(&mut self, plan: &Plan, accepted: usize) -> Outcome {
        let tokens = vec![7; plan.num_samples];
        self.finish_with(plan, accepted, &tokens, &[])
    }

    fn finish_with(
        &mut self,
        plan: &Plan,
        accepted: usize,
        tokens: &[i32],
        non_finite: &[usize],
    ) -> Outcome {
        let accepted: Vec<usize> =
            plan.sample_counts.iter().map(|&count| accepted.min(count - 1)).collect();
        let drafts = vec![7; plan.sample_counts.len() * self.width];
        let answer = Answer { tokens, non_finite, accepted: &accepted, drafts: &drafts };
        self.tell(plan, answer).expect("a legal answer")
    }

    fn tell(&mut self, plan: &Plan, answer: Answer<'_>) -> Result<Outcome, Error> {
        self.driver.core.advance(&[Event::Verified { step: plan.step_id, answer }])
    }

    /// Steps with all drafts accepted, until there is nothing to do.
    fn run(&mut self) -> Vec<(RequestId, u8)> {
        let mut ends = vec![];
        while let Some(plan) = self.driver.plan() {
            ends.extend(ends_of(&self.finish(&plan, self.width)));
        }
        self.driver.assert_at_rest();
        ends
    }
}

fn three() -> Limits {
    Limits { max_draft_tokens: 3, ..limits() }
}

#[test]
fn a_request_brings_its_drafts_and_keeps_those_that_are_right() {
    let mut game = Drafting::new(three());
    let id = game.driver.submit(100, 50);
    let plan = game.plan();
    assert_eq!((plan.num_draft_tokens, plan.sample_counts.as_slice()), (0, &[1][..]));
    assert_eq!(game.finish(&plan, 3).tokens, [7], "a prompt brings none");

    let plan = game.plan();
    assert_eq!((plan.num_tokens, plan.num_samples, plan.num_draft_tokens), (4, 4, 3));
    assert_eq!((plan.sample_counts.as_slice(), plan.sample_request_ids.len()), (&[4][..], 4));
    assert_eq!(plan.sample_positions, [1, 2, 3, 4]);
    assert_eq!(game.driver.array("positions")[..4], [100, 101, 102, 103]);
    assert_eq!(game.driver.array("sample_tokens")[..4], [0, 1, 2, 3]);
    assert_eq!(game.driver.array("sample_starts")[..2], [0, 4]);
    assert_eq!(game.driver.array("draft_widths")[0], 3);
    assert_eq!(game.driver.array("bank_writes")[..4], [0, 1, 2, 3]);
    assert_eq!(game.driver.array("state_banks")[0], 0);
    let outcome = game.finish(&plan, 2);
    assert_eq!((outcome.tokens, outcome.finished), (vec![7; 3], vec![0; 3]));

    let plan = game.plan();
    assert_eq!(game.driver.array("positions")[..4], [103, 104, 105, 106], "103 is written again");
    assert_eq!(game.driver.array("state_banks")[0], 2, "what the second right draft left");
    assert_eq!(plan.sample_positions, [4, 5, 6, 7]);
    let outcome = game.finish(&plan, 0);
    assert_eq!(outcome.tokens, [7], "none is right: the token that was sampled first");
    assert_eq!(game.plan().max_seq_len, 108);
    assert_eq!(game.driver.array("state_banks")[0], 0);
    assert!(game.driver.core.abort(id));
}

#[test]
fn a_chunk_says_what_comes_behind_it_where_that_is_known() {
    let mut game = Drafting::new(Limits { max_num_tokens: 128, ..three() });
    game.driver.submit(200, 50);
    let plan = game.plan();
    assert_eq!(game.driver.array("next_tokens")[0], 129, "tokens count from 1");
    let writes = &game.driver.array("bank_writes")[..128];
    assert_eq!((&writes[..127], writes[127]), (&[-1; 127][..], 0));
    assert_eq!(game.driver.array("sample_starts")[..2], [0, 0]);
    game.finish(&plan, 0);
    game.plan();
    assert_eq!(game.driver.array("next_tokens")[0], -1, "the step samples it");
}

#[test]
fn a_stop_token_or_the_length_cuts_what_was_accepted() {
    let stop = NewRequest { stop_token_ids: &[7], min_tokens: 3, ..request(100, 50) };
    let mut game = Drafting::new(three());
    let stopped = game.driver.try_submit(stop).expect("accepted");
    let plan = game.plan();
    game.finish(&plan, 0);
    let plan = game.plan();
    let outcome = game.finish(&plan, 3);
    assert_eq!(outcome.tokens, [7; 3], "the fourth of the request is the first that may stop");
    assert_eq!(outcome.finished, [0, 0, 1]);
    assert_eq!(outcome.request_ids, [stopped; 3]);
    game.driver.assert_at_rest();

    for (max_tokens, tokens) in [(2, 1), (3, 2), (4, 3), (5, 4), (6, 4)] {
        let id = game.driver.submit(100, max_tokens);
        let plan = game.plan();
        game.finish(&plan, 0);
        let plan = game.plan();
        assert_eq!(plan.num_tokens, tokens, "of {max_tokens}, one is there");
        let outcome = game.finish(&plan, 3);
        let ends = ends_of(&outcome);
        assert_eq!((outcome.tokens.len(), ends.is_empty()), (tokens, max_tokens == 6));
        assert!(ends.iter().all(|&end| end == (id, 2)));
        game.run();
    }
}

#[test]
fn logits_that_are_not_finite_end_the_request_behind_the_tokens_before_them() {
    for (broken, tokens, finished) in [
        (0, vec![-1], vec![4]),
        (1, vec![7, -1], vec![0, 4]),
        (2, vec![7, 7, -1], vec![0, 0, 4]),
        (3, vec![7, 7, 7], vec![0; 3]),
    ] {
        let mut game = Drafting::new(three());
        game.driver.submit(100, 50);
        let plan = game.plan();
        game.finish(&plan, 0);
        let plan = game.plan();
        let outcome = game.finish_with(&plan, 2, &[7; 4], &[broken]);
        assert_eq!((outcome.tokens, outcome.finished), (tokens, finished), "sample {broken}");
        game.run();
    }
}

#[test]
fn a_block_is_full_when_its_last_position_counts() {
    for accepted in 0..=3 {
        let mut game = Drafting::new(Limits { prefix_cache: true, ..three() });
        game.driver.submit(253, 50);
        let plan = game.plan();
        game.finish(&plan, 0);
        let plan = game.plan(); // positions 253 to 256
        assert_eq!((plan.num_c4, plan.num_c128, plan.num_saves), (1, 1, 1));
        game.finish(&plan, accepted);
        let is_full = accepted >= 2;
        assert_eq!(game.driver.stat("full_shared"), u64::from(is_full), "{accepted} accepted");
        assert_eq!(game.driver.stat("num_window_checkpoints"), u64::from(is_full));
        assert_eq!(game.driver.stat("state_open"), 1, "the slot of a save came back");
        let plan = game.plan();
        assert_eq!(plan.num_c128, usize::from(!is_full), "closed again where it was wrong");
        game.finish(&plan, 3);
        game.run();
        assert!(game.driver.stat("full_cached") >= 1);
    }
}

#[test]
fn the_window_slides_past_what_counts_and_no_further() {
    let mut game = Drafting::new(Limits { max_draft_tokens: 15, ..limits() });
    game.driver.submit(100, 600);
    let plan = game.plan();
    game.finish(&plan, 0);
    let mut position = 100;
    for step in 0..60 {
        let plan = game.plan();
        assert_eq!(game.driver.array("positions")[0], int(position));
        let first = position.saturating_sub(127) / 64;
        assert_eq!(game.driver.array("swa_first_block")[0], int(first));
        let held = game.driver.stat("swa_open") + game.driver.stat("swa_sealed");
        assert!(held <= 4, "{held} blocks at position {position}");
        let accepted = [0, 15, 3, 0, 9][step % 5];
        game.finish(&plan, accepted);
        position += 1 + accepted;
    }
    game.run();
}

#[test]
fn drafts_take_what_the_budget_has_left_when_everybody_had_a_token() {
    for (budget, widths) in [(8, [4, 4]), (7, [4, 3]), (5, [4, 1]), (4, [3, 1]), (2, [1, 1])] {
        let mut game =
            Drafting::new(Limits { max_num_requests: 2, max_num_tokens: budget, ..three() });
        for _ in 0..2 {
            game.driver.submit(1, 20);
        }
        let plan = game.plan();
        game.finish(&plan, 0);
        let plan = game.plan();
        assert_eq!(plan.sample_counts, widths, "{budget} tokens");
        assert_eq!(plan.num_tokens, budget);
        game.finish(&plan, 3);
        game.run();
    }
}

#[test]
fn drafts_take_blocks_from_nobody() {
    // One block of 256 tokens each, and no other: drafts end where it ends.
    let pools = sizes(2, 20, 2);
    let driver = Driver::new(drafting(real_geometry()), pools, three());
    let mut game = Drafting { driver, width: 3 };
    let (first, second) = (game.driver.submit(250, 6), game.driver.submit(249, 6));
    let plan = game.plan();
    game.finish(&plan, 0);
    let plan = game.plan();
    assert_eq!(plan.request_ids, [first, second]);
    assert_eq!(plan.max_seq_len, 254);
    game.finish(&plan, 3);
    let ends = game.run();
    assert_eq!(ends, [(first, 2), (second, 2)]);
    assert_eq!(game.driver.stat("num_preemptions"), 0);
}

#[test]
fn a_request_is_in_one_step_at_a_time_while_others_fill_the_second() {
    let mut game = Drafting::new(Limits { max_steps_in_flight: 2, ..three() });
    let a = game.driver.submit(5, 9);
    let first = game.plan();
    assert_eq!(game.driver.plan(), None, "how many of its tokens count is not known");
    let b = game.driver.submit(5, 9);
    let second = game.plan();
    assert_eq!((&first.request_ids, &second.request_ids), (&vec![a], &vec![b]));
    game.finish(&first, 0);
    let third = game.plan();
    assert_eq!((third.request_ids.as_slice(), third.num_forwarded), (&[a][..], 0));
    game.finish(&second, 0);
    game.finish(&third, 3);
    game.run();
}

#[test]
fn answers_that_do_not_fit_are_refused_and_change_nothing() {
    let mut game = Drafting::new(three());
    game.driver.submit(5, 20);
    let plan = game.plan();
    game.finish(&plan, 0);
    let plan = game.plan();
    let right =
        Answer { tokens: &[7, 7, 7, 1], accepted: &[3], drafts: &[1, -1, -1], non_finite: &[] };
    let before = game.driver.core.stats();
    for (answer, says) in [
        (Answer { accepted: &[4], ..right }, "has 4 drafts accepted in step 2; it brought 3"),
        (Answer { accepted: &[1, 0], ..right }, "takes 1 accepted counts or none, not 2"),
        (Answer { drafts: &[1, 2], ..right }, "takes 3 drafts or none, not 2"),
        (Answer { drafts: &[1, 2, 1000], ..right }, "draft 1000 after step 2 is outside"),
        (Answer { drafts: &[1, 2, -2], ..right }, "draft -2 after step 2 is outside"),
        (Answer { tokens: &[7, 6, 7, 1], ..right }, "accepts draft 7 in step 2 with token 6"),
    ] {
        let refused = game.tell(&plan, answer).expect_err(says).to_string();
        assert!(refused.contains(says), "{refused}");
        assert_eq!(game.driver.core.stats(), before);
    }
    game.tell(&plan, right).expect("legal");
    assert_eq!(game.plan().sample_counts, [2], "one draft, then -1");
}

#[test]
fn without_a_word_about_drafts_none_is_right_and_there_are_none() {
    let mut game = Drafting::new(three());
    game.driver.submit(5, 9);
    let plan = game.plan();
    game.finish(&plan, 0);
    let plan = game.plan();
    assert_eq!(plan.num_samples, 4);
    assert_eq!(game.driver.done(plan.step_id, &[1, 2, 3, 4]).tokens, [1]);
    assert_eq!(game.plan().num_samples, 1);
}

#[test]
fn a_slot_must_have_room_for_the_drafts_of_the_limits() {
    let refused = Core::new(real_geometry(), &sizes(4, 9, 2), three()).expect_err("no banks");
    assert!(refused.to_string().contains("max_draft_tokens is 3"), "{refused}");
    let most = Limits { max_draft_tokens: 16, ..limits() };
    let refused = Core::new(drafting(real_geometry()), &sizes(4, 9, 2), most).expect_err("16");
    assert!(refused.to_string().contains("must be from 0 to 15"), "{refused}");
    // 4 window blocks are promised to each: 3 are too few for one.
    let refused = Core::new(drafting(real_geometry()), &sizes(4, 3, 2), three()).expect_err("3");
    assert!(refused.to_string().contains("one request needs 4"), "{refused}");
}

#[test]
fn under_more_load_the_band_of_the_recipe_lets_fewer_drafts_through() {
    let mut game = Drafting::new(three());
    let mut recipe = Recipe::fixed(&three());
    recipe.bands.push(Band { min_requests: 2, max_draft_tokens: 1, ..recipe.bands[0].clone() });
    game.driver.core.follow(recipe).expect("inside the limits");
    game.driver.submit(100, 50);
    let plan = game.plan();
    game.finish(&plan, 3);
    let plan = game.plan();
    assert_eq!(plan.num_draft_tokens, 3, "one request is here");
    game.finish(&plan, 3);
    game.driver.submit(100, 50);
    let plan = game.plan();
    assert_eq!(plan.num_draft_tokens, 1, "two are");
    game.finish(&plan, 3);
    game.run();
}
