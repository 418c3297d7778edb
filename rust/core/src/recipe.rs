//! Recipes: which limits apply at which concurrency, chosen while serving.
//!
//! ```text
//!   requests here     1 ........ 8 ............ 64 ......................
//!   band              "latency"  "balanced"     "throughput"
//!                        up at once, at the edge ─▶
//!                     ◀─ down after `dwell_steps` steps in a row that are `margin` below the edge
//! ```
//! A band sets only what needs no memory of its own: the largest step is sized from [`Limits`], and
//! every band stays inside. More load is answered at once, for it waits; less load has to last, or
//! a server at an edge would switch back and forth.

use std::fmt;

use crate::error::Error;
use crate::ids::StepId;
use crate::limits::Limits;

/// What holds from some number of requests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Band {
    /// For people and metrics.
    pub name: String,
    /// Requests that are here, running or waiting, from which on the band holds.
    pub min_requests: usize,
    /// Most requests that run at once.
    pub max_num_requests: usize,
    /// Token budget of one step.
    pub max_num_tokens: usize,
    /// Most drafts of a request that are verified in one step.
    pub max_draft_tokens: usize,
}

/// The bands of one device and model, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// For people and metrics.
    pub name: String,
    /// The first holds from one request on.
    pub bands: Vec<Band>,
    /// Steps in a row that ask for a lower band before it is taken.
    pub dwell_steps: usize,
    /// How far below its edge, in percent, a band is left.
    pub margin_percent: usize,
}

impl Recipe {
    /// One band for every concurrency: the limits themselves.
    pub fn fixed(limits: &Limits) -> Self {
        let band = Band {
            name: "all".into(),
            min_requests: 1,
            max_num_requests: limits.max_num_requests,
            max_num_tokens: limits.max_num_tokens,
            max_draft_tokens: limits.max_draft_tokens,
        };
        Self { name: "fixed".into(), bands: vec![band], dwell_steps: 1, margin_percent: 0 }
    }

    /// Refuses a recipe that does not cover every concurrency, or asks for more than the memory
    /// of a step was sized for.
    pub fn check(&self, limits: &Limits) -> Result<(), Error> {
        let refuse = |what: String| Err(Error::Config(format!("recipe {}: {what}", self.name)));
        match self.bands.first() {
            None => return refuse("it has no bands".into()),
            Some(band) if band.min_requests != 1 => {
                return refuse(format!(
                    "its first band, {}, holds from {} requests on; it must from 1",
                    band.name, band.min_requests
                ));
            }
            Some(_) => {}
        }
        if self.dwell_steps == 0 || self.margin_percent >= 100 {
            return refuse(format!(
                "dwell_steps is {} and margin_percent {}; at least 1, and below 100",
                self.dwell_steps, self.margin_percent
            ));
        }
        for pair in self.bands.windows(2) {
            if pair[1].min_requests <= pair[0].min_requests {
                return refuse(format!(
                    "band {} holds from {} requests on, which is not above {} of the band before",
                    pair[1].name, pair[1].min_requests, pair[0].min_requests
                ));
            }
        }
        self.bands.iter().try_for_each(|band| band.check(limits)).or_else(refuse)
    }

    /// The band of a number of requests, without hysteresis.
    pub fn band_of(&self, num_requests: usize) -> usize {
        self.bands.partition_point(|band| band.min_requests <= num_requests).max(1) - 1
    }

    /// A band above the first is left below this number of requests.
    fn leaves_below(&self, band: usize) -> usize {
        let edge = self.bands[band].min_requests;
        if band == 0 { 0 } else { edge - edge * self.margin_percent / 100 }
    }
}

impl Band {
    fn check(&self, limits: &Limits) -> Result<(), String> {
        for (name, value, least, most) in [
            ("max_num_requests", self.max_num_requests, 1, limits.max_num_requests),
            ("max_num_tokens", self.max_num_tokens, 1, limits.max_num_tokens),
            ("max_draft_tokens", self.max_draft_tokens, 0, limits.max_draft_tokens),
        ] {
            if !(least..=most).contains(&value) {
                return Err(format!(
                    "band {} has {name} {value}; from {least} to the engine's {most}",
                    self.name
                ));
            }
        }
        if self.max_num_tokens < self.max_num_requests {
            return Err(format!(
                "band {} has max_num_tokens {}, less than its max_num_requests, {}: a step has no \
                 room for one token of every running request",
                self.name, self.max_num_tokens, self.max_num_requests
            ));
        }
        Ok(())
    }
}

/// The band in force, and why.
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    recipe: Recipe,
    band: usize,
    /// The first step under it, and how many requests were here then.
    since: StepId,
    num_requests_then: usize,
    /// Steps in a row that asked for a lower band, and the highest of those bands.
    lower: (usize, usize),
    pub(crate) num_switches: usize,
}

impl Dispatch {
    /// In the lowest band.
    pub(crate) fn new(recipe: Recipe) -> Self {
        let since = StepId(0);
        Self { recipe, band: 0, since, num_requests_then: 0, lower: (0, 0), num_switches: 0 }
    }

    /// Looks at the load once per step, before the step is chosen.
    pub(crate) fn observe(&mut self, num_requests: usize, step: StepId) {
        let wanted = self.recipe.band_of(num_requests);
        if wanted > self.band {
            self.switch(wanted, num_requests, step);
        } else if num_requests < self.recipe.leaves_below(self.band) {
            let (steps, highest) = self.lower;
            self.lower = (steps + 1, if steps == 0 { wanted } else { highest.max(wanted) });
            if self.lower.0 >= self.recipe.dwell_steps {
                self.switch(self.lower.1, num_requests, step);
            }
        } else {
            self.lower = (0, 0);
        }
    }

    fn switch(&mut self, band: usize, num_requests: usize, step: StepId) {
        // Just below its edge a lower band can be the same one.
        if band != self.band {
            self.num_switches += 1;
            (self.band, self.since, self.num_requests_then) = (band, step, num_requests);
        }
        self.lower = (0, 0);
    }

    /// The limits in force.
    pub(crate) fn band(&self) -> &Band {
        &self.recipe.bands[self.band]
    }

    /// Place of the band in the recipe.
    pub(crate) fn index(&self) -> usize {
        self.band
    }
}

impl fmt::Display for Dispatch {
    /// "recipe h200, band balanced (8 to 63 requests): in force since step 41, when 9 requests were
    /// here; down after 16 steps below 6, up at 64; at most 64 requests and 8192 tokens a step".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { recipe, band: index, since, num_requests_then, .. } = self;
        let band = self.band();
        let next = recipe.bands.get(index + 1).map(|next| next.min_requests);
        write!(f, "recipe {}, band {} ({}", recipe.name, band.name, band.min_requests)?;
        match next {
            Some(next) => write!(f, " to {} requests)", next - 1)?,
            None => write!(f, " requests or more)")?,
        }
        write!(f, ": in force since step {since}, when {num_requests_then} requests were here")?;
        if *index > 0 {
            let (steps, below) = (recipe.dwell_steps, recipe.leaves_below(*index));
            write!(f, "; down after {steps} steps below {below}")?;
        }
        if let Some(next) = next {
            write!(f, "; up at {next}")?;
        }
        let (requests, tokens) = (band.max_num_requests, band.max_num_tokens);
        write!(f, "; at most {requests} requests and {tokens} tokens a step")
    }
}

#[cfg(test)]
mod tests {
    use super::{Band, Dispatch, Recipe};
    use crate::ids::StepId;
    use crate::limits::Limits;

    fn limits() -> Limits {
        Limits {
            max_model_len: 4096,
            max_num_requests: 256,
            max_num_tokens: 8192,
            max_queued_requests: 20_000,
            max_queued_tokens: 1 << 30,
            vocab_size: 100,
            max_steps_in_flight: 1,
            aging_steps: 8,
            prefix_cache: false,
            checkpoint_tokens: 0,
            max_draft_tokens: 3,
        }
    }

    fn band(name: &str, min_requests: usize, max_num_requests: usize, tokens: usize) -> Band {
        let (name, max_num_tokens) = (name.into(), tokens);
        Band { name, min_requests, max_num_requests, max_num_tokens, max_draft_tokens: 3 }
    }

    fn recipe() -> Recipe {
        Recipe {
            name: "test".into(),
            bands: vec![
                band("latency", 1, 8, 512),
                band("balanced", 8, 64, 2048),
                band("throughput", 64, 256, 8192),
            ],
            dwell_steps: 3,
            margin_percent: 25,
        }
    }

    fn bands_over(dispatch: &mut Dispatch, loads: &[usize]) -> Vec<usize> {
        let observed = loads.iter().zip(1..).map(|(&load, step)| {
            dispatch.observe(load, StepId(step));
            dispatch.index()
        });
        observed.collect()
    }

    #[test]
    fn every_concurrency_up_to_20000_has_a_band_and_edges_belong_to_the_upper_one() {
        let recipe = recipe();
        for load in 0..=20_000 {
            let expected = usize::from(load >= 8) + usize::from(load >= 64);
            assert_eq!(recipe.band_of(load), expected, "{load} requests");
        }
    }

    #[test]
    fn more_load_is_answered_at_once_and_less_only_after_it_lasted() {
        let mut dispatch = Dispatch::new(recipe());
        assert_eq!(bands_over(&mut dispatch, &[1, 7, 8, 64]), [0, 0, 1, 2]);
        // 48 is 25 % below the edge of 64: at it and above, the band stays for good.
        assert_eq!(bands_over(&mut dispatch, &[48, 63, 48, 48, 48]), [2; 5]);
        assert_eq!(bands_over(&mut dispatch, &[47, 47, 48, 47, 47]), [2; 5]); // interrupted
        assert_eq!(bands_over(&mut dispatch, &[47]), [1]);
        assert_eq!(dispatch.num_switches, 3);
    }

    #[test]
    fn a_fall_through_several_bands_stops_at_the_highest_that_was_asked_for() {
        let mut dispatch = Dispatch::new(recipe());
        assert_eq!(bands_over(&mut dispatch, &[200, 1, 9, 1, 1, 1, 1]), [2, 2, 2, 1, 1, 1, 0]);
    }

    #[test]
    fn load_that_swings_around_an_edge_switches_once() {
        let mut dispatch = Dispatch::new(recipe());
        let loads: Vec<usize> = (0..1000).map(|step| 62 + step % 4).collect();
        bands_over(&mut dispatch, &loads);
        assert_eq!((dispatch.index(), dispatch.num_switches), (2, 2)); // 62 first, then 64
    }

    #[test]
    fn what_is_in_force_and_why_is_a_sentence() {
        let mut dispatch = Dispatch::new(recipe());
        dispatch.observe(9, StepId(41));
        assert_eq!(
            dispatch.to_string(),
            "recipe test, band balanced (8 to 63 requests): in force since step 41, when 9 requests \
             were here; down after 3 steps below 6; up at 64; at most 64 requests and 2048 tokens a \
             step"
        );
    }

    #[test]
    fn impossible_recipes_are_refused_with_the_band_and_the_numbers() {
        let broken = |spoil: fn(&mut Recipe)| {
            let mut recipe = recipe();
            spoil(&mut recipe);
            recipe.check(&limits()).expect_err("spoilt").to_string()
        };
        assert!(recipe().check(&limits()).is_ok());
        assert!(Recipe::fixed(&limits()).check(&limits()).is_ok());
        for (spoil, says) in [
            (|r: &mut Recipe| r.bands.clear(), "no bands"),
            (|r| r.bands[0].min_requests = 2, "latency, holds from 2 requests on; it must from 1"),
            (|r| r.bands[2].min_requests = 8, "throughput holds from 8"),
            (
                |r| r.bands[2].max_num_requests = 257,
                "max_num_requests 257; from 1 to the engine's 256",
            ),
            (|r| r.bands[1].max_num_tokens = 8193, "balanced has max_num_tokens 8193"),
            (|r| r.bands[1].max_num_tokens = 63, "max_num_tokens 63, less than"),
            (|r| r.bands[1].max_num_requests = 0, "max_num_requests 0"),
            (|r| r.bands[2].max_draft_tokens = 4, "max_draft_tokens 4; from 0 to the engine's 3"),
            (|r| r.dwell_steps = 0, "dwell_steps is 0"),
            (|r| r.margin_percent = 100, "margin_percent 100"),
        ] as [(fn(&mut Recipe), &str); 10]
        {
            let message = broken(spoil);
            assert!(message.contains(says), "{message:?} does not say {says:?}");
        }
    }
}
