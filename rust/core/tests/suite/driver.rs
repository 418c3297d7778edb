//! A core with memory to lend, for tests that read as a story.

use dsv4_core::budget::PoolSizes;
use dsv4_core::error::Error;
use dsv4_core::geometry::{DraftRoom, Geometry};
use dsv4_core::ids::{RequestId, StepId};
use dsv4_core::limits::Limits;
use dsv4_core::trace::Recorded;
use dsv4_core::{Event, NewRequest, Outcome, Plan};

/// The shapes of the real model, over a few layers: blocks of 256 and 64, window 128.
pub fn real_geometry() -> Geometry {
    Geometry {
        ratios: vec![0, 4, 128],
        window: 128,
        kv_data_bytes: 576,
        kv_scale_bytes: 8,
        kv_page_multiple: 576,
        index_data_bytes: 64,
        index_scale_bytes: 4,
        c4_state_bytes: 64,
        index_state_bytes: 64,
        c128_state_bytes: 64,
        block_tokens: 256,
        swa_block_tokens: 64,
        drafts: DraftRoom::default(),
    }
}

/// Blocks of 8 and 4 tokens, window 8: every border comes soon.
pub fn tiny_geometry() -> Geometry {
    Geometry {
        ratios: vec![0, 4],
        window: 8,
        block_tokens: 8,
        swa_block_tokens: 4,
        ..real_geometry()
    }
}

/// The same with room for as many draft tokens as there can be.
pub fn drafting(geometry: Geometry) -> Geometry {
    Geometry { drafts: DraftRoom { tokens: 15, hc_mult: 4, hidden: 64 }, ..geometry }
}

pub fn limits() -> Limits {
    Limits {
        max_model_len: 2048,
        max_num_requests: 8,
        max_num_tokens: 512,
        max_queued_requests: 64,
        max_queued_tokens: 1 << 20,
        vocab_size: 1000,
        max_steps_in_flight: 1,
        aging_steps: 256,
        prefix_cache: false,
        checkpoint_tokens: 0,
        max_draft_tokens: 0,
    }
}

pub fn sizes(full_blocks: usize, swa_blocks: usize, state_slots: usize) -> PoolSizes {
    PoolSizes { full_blocks, swa_blocks, state_slots }
}

/// A core and memory for its steps.
pub struct Driver {
    pub core: Recorded,
    pub memory: Vec<i32>,
}

impl Driver {
    pub fn new(geometry: Geometry, sizes: PoolSizes, limits: Limits) -> Self {
        let core = Recorded::new(geometry, &sizes, limits).expect("legal");
        core.panic_on_violation();
        let memory = vec![-1; core.layout().num_words()];
        Self { core, memory }
    }

    /// The real geometry in roomy pools.
    pub fn roomy(limits: Limits) -> Self {
        Self::new(real_geometry(), sizes(64, 128, 8), limits)
    }

    pub fn submit(&mut self, prompt: usize, max_tokens: usize) -> RequestId {
        self.submit_at(0, prompt, max_tokens)
    }

    pub fn submit_at(&mut self, priority: i128, prompt: usize, max_tokens: usize) -> RequestId {
        self.try_submit(NewRequest { priority, ..request(prompt, max_tokens) }).expect("accepted")
    }

    pub fn try_submit(&mut self, new: NewRequest<'_>) -> Result<RequestId, Error> {
        self.core.submit(new)
    }

    pub fn plan(&mut self) -> Option<Plan> {
        self.core.plan(&mut self.memory).expect("a step may be planned")
    }

    /// The step is done, and every sample came out as `token`.
    pub fn finish(&mut self, plan: &Plan, token: i32) -> Outcome {
        self.done(plan.step_id, &vec![token; plan.num_samples])
    }

    pub fn done(&mut self, step: StepId, tokens: &[i32]) -> Outcome {
        let event = Event::StepDone { step, tokens, non_finite: &[] };
        self.core.advance(&[event]).expect("the step is in flight")
    }

    /// One step with token 7; None if there was nothing to do.
    pub fn step(&mut self) -> Option<(Plan, Outcome)> {
        let plan = self.plan()?;
        let outcome = self.finish(&plan, 7);
        Some((plan, outcome))
    }

    /// Steps until there is nothing to do; every end by request, in order.
    pub fn run(&mut self, most_steps: usize) -> Vec<(RequestId, u8)> {
        let mut ends = vec![];
        for _ in 0..most_steps {
            let Some((_, outcome)) = self.step() else { return ends };
            ends.extend(ends_of(&outcome));
        }
        panic!("still busy after {most_steps} steps: {:?}", self.core.stats());
    }

    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.core.stats();
        stats.iter().find(|(each, _)| each == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    /// The array of one field, at its capacity.
    pub fn array(&self, name: &str) -> &[i32] {
        let fields = self.core.layout().fields();
        let field = fields.iter().find(|field| field.name == name).expect("a field of the layout");
        let start = field.offset_bytes / 4;
        &self.memory[start..start + field.shape.iter().product::<usize>()]
    }

    /// Row `index` of a table.
    pub fn row(&self, name: &str, index: usize) -> Vec<i32> {
        let fields = self.core.layout().fields();
        let field = fields.iter().find(|field| field.name == name).expect("a field of the layout");
        self.array(name)[index * field.shape[1]..(index + 1) * field.shape[1]].to_vec()
    }

    /// Nothing runs, nothing waits, every block is free, and the books balance.
    pub fn assert_at_rest(&self) {
        self.core.audit().expect("balanced");
        for name in ["num_running", "num_waiting", "num_queued_tokens", "num_steps_in_flight"] {
            assert_eq!(self.stat(name), 0, "{name}");
        }
        for group in ["full", "swa", "state"] {
            let stat = |state: &str| self.stat(&format!("{group}_{state}"));
            let back = stat("free") + stat("cached");
            assert_eq!(back, stat("capacity"), "{group} blocks did not come back");
            assert_eq!(self.stat(&format!("{group}_reserved")), 0);
        }
        assert_eq!(self.stat("num_violations"), 0);
    }
}

/// A request with tokens 1, 2, 3...
pub fn request(prompt: usize, max_tokens: usize) -> NewRequest<'static> {
    NewRequest {
        prompt: (1..).map(|token| token % 1000).take(prompt).collect(),
        max_tokens: max_tokens as i128,
        min_tokens: 0,
        stop_token_ids: &[],
        priority: 0,
        cache_salt: "",
        no_cache: false,
        transfer: None,
    }
}

pub fn ends_of(outcome: &Outcome) -> Vec<(RequestId, u8)> {
    let ids = outcome.request_ids.iter().copied();
    ids.zip(outcome.finished.iter().copied()).filter(|&(_, code)| code != 0).collect()
}

/// A token that says how many were generated before it, so that one lost or repeated shows.
pub fn counted(plan: &Plan) -> Vec<i32> {
    plan.sample_positions.iter().map(|&position| 100 + int(position)).collect()
}

/// A number as the arrays hold it.
pub fn int(value: usize) -> i32 {
    i32::try_from(value).expect("small")
}
