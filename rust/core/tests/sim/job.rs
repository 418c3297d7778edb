//! What a client asked for, what it was told, and what it must be told.

use dsv4_core::NewRequest;
use dsv4_core::ids::RequestId;
use dsv4_core::transfer::ids::Room;

use crate::flow::Process;
use crate::oracle::Oracle;
use crate::rng::Rng;

/// Why a job is over; each job that was accepted has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Stop,
    Length,
    StopString,
    NonFinite,
    Violation,
    Cancelled,
    Overrun,
    StepFailed,
    RoomFailed,
}

impl End {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop token",
            Self::Length => "length",
            Self::StopString => "stop string",
            Self::NonFinite => "not finite",
            Self::Violation => "violation",
            Self::Cancelled => "cancelled",
            Self::Overrun => "overrun",
            Self::StepFailed => "step failed",
            Self::RoomFailed => "room failed",
        }
    }
}

/// How a client takes its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    Prompt,
    /// Takes everything there is, this often.
    Every(u64),
    Never,
}

/// One request of a client, over all its attempts.
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each of one client")]
#[derive(Debug)]
pub struct Job {
    pub prompt: Vec<i32>,
    pub max_tokens: usize,
    pub min_tokens: usize,
    pub stops: Vec<i32>,
    pub priority: i32,
    pub salt: &'static str,
    pub no_cache: bool,
    /// Stands for the salt in what its rows hold; a job that shares nothing has one of its own.
    pub tag: u64,
    pub reading: Reading,
    oracle: Oracle,
    /// What the client was sent.
    pub emitted: Vec<i32>,
    pub unread: usize,
    /// Where it runs, and under which id.
    pub place: Option<(usize, RequestId)>,
    pub end: Option<End>,
    /// A NaN was planted in it.
    pub met_nan: bool,
    pub wants_stop: bool,
    pub accepted: bool,
    pub num_tries: usize,
    /// The prefill instance of its last attempt.
    pub prefill: Option<usize>,
    /// Its last room, and the instance that it stood for.
    pub room: Option<(usize, Room)>,
    /// The requests at its ranks, as they arrive.
    pub halves: Vec<(Process, RequestId)>,
    /// Attempts with a prefill worker are numbered from here.
    pub epoch: u32,
    pub num_paired: u32,
    /// Tokens that it had when its attempt began.
    pub emitted_before: usize,
}

/// What a job is made of.
#[derive(Debug)]
pub struct Wish {
    pub prompt: Vec<i32>,
    pub max_tokens: usize,
    pub min_tokens: usize,
    pub stops: Vec<i32>,
    pub priority: i32,
    pub salt: &'static str,
    pub no_cache: bool,
    pub reading: Reading,
}

impl Job {
    pub fn new(wish: Wish, tag: u64, oracle: Oracle) -> Self {
        let Wish { prompt, max_tokens, min_tokens, stops, priority, salt, no_cache, reading } =
            wish;
        Self {
            prompt,
            max_tokens,
            min_tokens,
            stops,
            priority,
            salt,
            no_cache,
            tag,
            reading,
            oracle,
            emitted: vec![],
            unread: 0,
            place: None,
            end: None,
            met_nan: false,
            wants_stop: false,
            accepted: false,
            num_tries: 0,
            prefill: None,
            room: None,
            halves: vec![],
            epoch: 0,
            num_paired: 0,
            emitted_before: 0,
        }
    }

    /// Calls `submit` with what is still to be generated, behind what the client has.
    pub fn ask<T>(&self, submit: impl FnOnce(NewRequest<'_>) -> T) -> T {
        let stops: Vec<i128> = self.stops.iter().map(|&id| i128::from(id)).collect();
        let sent = self.emitted.len();
        submit(NewRequest {
            prompt: self.prompt.iter().chain(&self.emitted).copied().collect(),
            max_tokens: (self.max_tokens - sent) as i128,
            min_tokens: self.min_tokens.saturating_sub(sent) as i128,
            stop_token_ids: &stops,
            priority: i128::from(self.priority),
            cache_salt: self.salt,
            no_cache: self.no_cache,
            transfer: None,
        })
    }

    /// The client is sent `token`; panics if it is not the one, or one too many. True if the job
    /// must end with it.
    pub fn receive(&mut self, token: i32) -> Option<End> {
        assert!(self.end.is_none(), "a token after the end");
        let (place, expected) = (self.emitted.len(), self.oracle.expected());
        assert_eq!(
            token,
            expected,
            "token {place} behind {} of prompt is wrong",
            self.prompt.len()
        );
        self.emitted.push(token);
        self.unread += 1;
        if place >= self.min_tokens && self.stops.contains(&token) {
            return Some(End::Stop);
        }
        if self.emitted.len() == self.max_tokens {
            return Some(End::Length);
        }
        self.oracle.push(token);
        None
    }

    /// Drafts behind the tokens just `told`: mostly right, for a while.
    pub fn guess(&self, told: &[i32], count: usize, rng: &mut Rng) -> Vec<i32> {
        if !self.is_open() {
            return vec![];
        }
        let mut oracle = self.oracle.clone();
        for &token in told {
            oracle.push(token);
        }
        (0..count)
            .map(|_| {
                let right = oracle.expected();
                oracle.push(right);
                if rng.once_in(4) { (right + 1) % 1000 } else { right }
            })
            .collect()
    }

    /// It is over: what it took is given up.
    pub fn forget(&mut self) {
        self.prompt = vec![];
        self.emitted = vec![];
        self.oracle.forget();
    }

    pub fn is_open(&self) -> bool {
        self.accepted && self.end.is_none()
    }
}
