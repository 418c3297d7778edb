//! The largest legal step, and how much may wait. Everything is sized from these at start.

use crate::error::Error;
use crate::ids::MOST_DRAFT_TOKENS;

/// Limits of one core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens of one request, prompt and output together.
    pub max_model_len: usize,
    /// Most requests that run at once, and so most rows of a step.
    pub max_num_requests: usize,
    /// Token budget of one step.
    pub max_num_tokens: usize,
    /// Most requests that wait.
    pub max_queued_requests: usize,
    /// Most tokens that wait.
    pub max_queued_tokens: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Steps that may be planned and not yet done.
    pub max_steps_in_flight: usize,
    /// Steps of waiting that make up for one level of priority; also, for how many steps smaller
    /// requests may overtake one that does not fit.
    pub aging_steps: usize,
    /// Blocks outlive their requests, to be read by others with the same prefix.
    pub prefix_cache: bool,
    /// Tokens between window checkpoints inside a prompt; 0: only where it forks and ends.
    pub checkpoint_tokens: usize,
    /// Most draft tokens that a decoding request brings to be verified; 0: none are drafted.
    pub max_draft_tokens: usize,
}

/// Indices and counts must fit the int32 of the step arrays.
const MOST: usize = i32::MAX as usize;

impl Limits {
    /// Refuses limits under which the core could not work, with the numbers.
    pub fn check(&self) -> Result<(), Error> {
        for (name, value, least) in [
            ("max_model_len", self.max_model_len, 2),
            ("max_num_requests", self.max_num_requests, 1),
            ("max_num_tokens", self.max_num_tokens, 1),
            ("max_queued_requests", self.max_queued_requests, 1),
            ("vocab_size", self.vocab_size, 1),
            ("max_steps_in_flight", self.max_steps_in_flight, 1),
            ("aging_steps", self.aging_steps, 1),
            ("checkpoint_tokens", self.checkpoint_tokens, 0),
            ("max_draft_tokens", self.max_draft_tokens, 0),
        ] {
            let most = match name {
                "max_steps_in_flight" => 2,
                "max_draft_tokens" => MOST_DRAFT_TOKENS,
                _ => MOST,
            };
            if !(least..=most).contains(&value) {
                return Err(Error::Config(format!(
                    "{name} is {value}; it must be from {least} to {most}"
                )));
            }
        }
        if self.max_num_tokens < self.max_num_requests {
            return Err(Error::Config(format!(
                "max_num_tokens is {}, less than max_num_requests, {}: a step has no room for one \
                 token of every running request",
                self.max_num_tokens, self.max_num_requests
            )));
        }
        if self.max_queued_tokens < self.max_model_len {
            return Err(Error::Config(format!(
                "max_queued_tokens is {}, less than max_model_len, {}: the longest request could \
                 never wait",
                self.max_queued_tokens, self.max_model_len
            )));
        }
        Ok(())
    }

    /// Most tokens of one decoding request that are in flight: `1 + drafts` in each step.
    pub fn tokens_in_flight(&self) -> usize {
        (1 + self.max_draft_tokens) * self.max_steps_in_flight
    }

    /// May a request be planned while its sample is in flight? Not with drafts, whose number that
    /// are accepted is not known before.
    pub(crate) fn forwards(&self) -> bool {
        self.max_draft_tokens == 0
    }
}
