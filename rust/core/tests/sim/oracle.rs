//! What a request's tokens must be: a function of its prompt and its tag, from plain vectors.

use crate::model::{self, Rows, Shape, State};

/// All rows of one request, and the token that follows.
#[derive(Clone, Debug)]
pub struct Oracle {
    shape: Shape,
    tag: u64,
    state: State,
    gathered: u64,
    rows: Kept,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    window: Vec<u64>,
    c4: Vec<u64>,
    c128: Vec<u64>,
}

impl Rows for Kept {
    fn window(&mut self, position: usize) -> u64 {
        self.window[position]
    }

    fn c4(&mut self, group: usize) -> u64 {
        self.c4[group]
    }

    fn c128(&mut self, group: usize) -> u64 {
        self.c128[group]
    }
}

impl Oracle {
    pub fn new(shape: Shape, tag: u64, prompt: &[i32]) -> Self {
        let (state, rows) = (State::EMPTY, Kept::default());
        let mut oracle = Self { shape, tag, state, gathered: 0, rows };
        for &token in prompt {
            oracle.push(token);
        }
        oracle
    }

    /// The next token is this one.
    pub fn push(&mut self, token: i32) {
        let position = self.rows.window.len();
        let row = model::row(&self.shape, self.tag, token, position, &mut self.rows);
        self.rows.window.push(row);
        self.state.push(&self.shape, position, row);
        self.gathered = model::gather(self.gathered, position, row);
        if (position + 1) % 4 == 0 {
            self.rows.c4.push(self.state.c4(&self.shape, position));
        }
        if (position + 1) % 128 == 0 {
            self.rows.c128.push(self.gathered);
        }
    }

    /// The token that comes after `more` more tokens.
    pub fn token_after(&self, more: usize) -> i32 {
        let mut ahead = self.clone();
        for _ in 0..more {
            let token = ahead.expected();
            ahead.push(token);
        }
        ahead.expected()
    }

    /// Nothing more will be asked.
    pub fn forget(&mut self) {
        self.rows = Kept::default();
    }

    /// The token that must follow.
    pub fn expected(&mut self) -> i32 {
        let last = self.rows.window.len() - 1;
        model::sample(&self.shape, last, &mut self.rows).expect("the oracle computes no NaN")
    }
}
