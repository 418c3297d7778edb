//! Who asks for what: boundary lengths, conversations that go on, tenants, hurry and patience.

use crate::job::{Reading, Wish};
use crate::rng::Rng;
use crate::setup::Setup;

/// Conversations that later requests may continue.
const KEPT: usize = 24;

/// Clients that draw their requests from a stream of their own.
pub struct Clients {
    rng: Rng,
    lengths: Vec<usize>,
    most_tokens: usize,
    vocab_size: usize,
    is_steady: bool,
    /// Tokens and salt of requests that ended, prompt and answer.
    history: Vec<(Vec<i32>, &'static str)>,
}

impl Clients {
    pub fn new(setup: &Setup, rng: Rng) -> Self {
        let (block, window) = (setup.geometry.block_tokens, setup.geometry.window);
        let swa = setup.geometry.swa_block_tokens;
        let mut lengths = vec![1, 2, 3, 4, 5, 127, 128, 129, 255, 256, 257];
        for border in [swa, block, window, 2 * block, 4 * block] {
            lengths.extend([border - 1, border, border + 1]);
        }
        lengths.retain(|length| *length > 0);
        let most_tokens = setup.sizes.max_request_tokens(&setup.geometry);
        let most_tokens = most_tokens.min(setup.limits.max_model_len);
        Self {
            rng,
            lengths,
            most_tokens,
            vocab_size: setup.limits.vocab_size,
            is_steady: setup.is_steady,
            history: vec![],
        }
    }

    /// The next request. Most fit; some do not, and must be refused.
    pub fn wish(&mut self, setup: &Setup) -> Wish {
        let most = self.most_tokens;
        let turn = (!self.history.is_empty() && !self.rng.once_in(3))
            .then(|| self.rng.below(self.history.len()));
        let length = self.length(most - 1);
        let (prompt, salt) = match turn {
            Some(turn) => {
                let (tokens, salt) = &self.history[turn];
                let shared = if self.rng.once_in(2) {
                    tokens.len()
                } else {
                    self.rng.below(tokens.len() + 1)
                };
                let mut prompt = tokens[..shared].to_vec();
                let salt = if self.rng.once_in(4) { self.rng.pick(&SALTS) } else { salt };
                let more = self.rng.between(0, most.saturating_sub(shared).max(1) - 1);
                prompt.extend(self.tokens(more.min(length)));
                prompt.truncate(most - 1);
                (prompt, salt)
            }
            None => (self.tokens(length), self.rng.pick(&SALTS)),
        };
        let room = most - prompt.len();
        let max_tokens = match self.rng.below(4) {
            _ if setup.outgrows => self.rng.between(room.div_ceil(3), room),
            0 => self.rng.between(1, room),
            1 => self.length(room),
            _ => self.rng.between(1, room.min(16)),
        };
        let min_tokens = if self.rng.once_in(6) { self.rng.between(0, max_tokens) } else { 0 };
        let reading = match self.rng.below(8) {
            _ if setup.is_steady => Reading::Prompt,
            0 => Reading::Every(setup.step_us * self.rng.pick(&[2, 10, 40])),
            1 if setup.chance(crate::faults::Fault::SlowClient) > 0 => Reading::Never,
            _ => Reading::Prompt,
        };
        Wish {
            prompt: if self.rng.once_in(200) { vec![] } else { prompt },
            max_tokens: if self.rng.once_in(100) { most + 1 } else { max_tokens },
            min_tokens,
            stops: vec![],
            priority: self.rng.pick(&[0, 0, 0, 1, -1, 5, i32::MIN, i32::MAX]),
            salt,
            no_cache: self.rng.once_in(10),
            reading,
        }
    }

    /// May be refused for its lengths?
    pub fn fits(&self, wish: &Wish) -> bool {
        !wish.prompt.is_empty() && wish.prompt.len() + wish.max_tokens <= self.most_tokens
    }

    /// A conversation that others may continue.
    pub fn remember(&mut self, tokens: Vec<i32>, salt: &'static str) {
        if self.history.len() < KEPT {
            self.history.push((tokens, salt));
        } else if !self.is_steady {
            let place = self.rng.below(KEPT);
            self.history[place] = (tokens, salt);
        }
    }

    fn length(&mut self, most: usize) -> usize {
        let border = self.rng.pick(&self.lengths);
        if border > most || self.rng.once_in(3) { self.rng.between(1, most) } else { border }
    }

    fn tokens(&mut self, count: usize) -> Vec<i32> {
        let token = |rng: &mut Rng| i32::try_from(rng.below(self.vocab_size)).expect("an int32");
        (0..count).map(|_| token(&mut self.rng)).collect()
    }
}

/// Tenants; most requests have none.
const SALTS: [&str; 6] = ["", "", "", "", "red", "blue"];
