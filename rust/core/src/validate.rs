//! The one validator of sampling parameters and lengths, behind every door.
//!
//! A door (HTTP, the Python API) decodes what a client wrote into [`Sampling`] and calls
//! [`Sampling::check`]; nothing else decides whether a request is well formed. Integers are
//! `i128` and lists are counted before they are converted, so that a door can pass on any
//! number that it can parse, saturated if need be, and the refusal happens here.
//!
//! Every limit below has a test just under it, at it and just over it.

use std::fmt::Display;
use std::ops::RangeInclusive;

pub use crate::error::{Code, Invalid};

/// Most choices (`n`) of one request.
pub const MAX_CHOICES: i128 = 16;
/// Most stop strings of one request.
pub const MAX_STOP_STRINGS: usize = 16;
/// Most bytes of one stop string, in UTF-8.
pub const MAX_STOP_BYTES: usize = 1024;
/// Most entries of `logit_bias`, `allowed_token_ids` and `stop_token_ids`, each.
pub const MAX_TOKEN_ENTRIES: usize = 1024;
/// Most ids that end a request inside the core: its own, and the end of sequence.
pub const MAX_ENDINGS: usize = MAX_TOKEN_ENTRIES + 1;
/// Largest magnitude of one `logit_bias` entry.
pub const MAX_LOGIT_BIAS: f64 = 100.0;
/// Largest `temperature`.
pub const MAX_TEMPERATURE: f64 = 2.0;
/// Largest magnitude of the presence and frequency penalties.
pub const MAX_PENALTY: f64 = 2.0;
/// Largest `repetition_penalty`; it must also be above 0.
pub const MAX_REPETITION_PENALTY: f64 = 2.0;
/// Largest `top_k`, far above any vocabulary: what an array of 32-bit integers can hold.
pub const MAX_TOP_K: i128 = i32::MAX as i128;

impl Invalid {
    fn value(param: &'static str, message: String) -> Self {
        Self { param, code: Code::InvalidValue, message }
    }

    fn context(param: &'static str, message: String) -> Self {
        Self { param, code: Code::ContextLengthExceeded, message }
    }
}

/// What the engine can hold; the other half of every check.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Most tokens of one request, prompt and output together, by configuration.
    pub max_model_len: usize,
    /// Most tokens of one request that the pools can hold alone.
    pub max_request_tokens: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Most alternatives per token in `logprobs`.
    pub max_logprobs: usize,
}

/// Sampling parameters as a client wrote them. Fields mean what `SamplingParams` says.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields are those of dsv4.types.SamplingParams")]
pub struct Sampling<'a> {
    pub num_prompt_tokens: usize,
    pub max_tokens: Option<i128>,
    pub min_tokens: i128,
    pub temperature: f64,
    pub top_p: f64,
    pub top_k: i128,
    pub min_p: f64,
    pub presence_penalty: f64,
    pub frequency_penalty: f64,
    pub repetition_penalty: f64,
    pub logit_bias: &'a [(i128, f64)],
    pub allowed_token_ids: Option<&'a [i128]>,
    pub seed: Option<i128>,
    pub n: i128,
    pub stop: &'a [&'a str],
    pub stop_token_ids: &'a [i128],
    pub logprobs: Option<i128>,
}

impl Sampling<'_> {
    /// Checks everything; returns `max_tokens`, resolved to what fits where none was given.
    pub fn check(&self, has: &Capacity) -> Result<u32, Invalid> {
        self.check_shape()?;
        self.check_tokens(has)?;
        check_lengths(self.num_prompt_tokens, self.max_tokens, self.min_tokens, has)
    }

    /// The ranges that depend on nothing else.
    fn check_shape(&self) -> Result<(), Invalid> {
        check_whole("n", self.n, 1..=MAX_CHOICES, |_| "send several requests instead".into())?;
        check_real("temperature", self.temperature, 0.0, MAX_TEMPERATURE, "use 0 for greedy")?;
        check_real("min_p", self.min_p, 0.0, 1.0, "use 0 to switch it off")?;
        check_real_above_zero("top_p", self.top_p, 1.0)?;
        check_real("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY, OFF_AT_0)?;
        check_real(
            "frequency_penalty",
            self.frequency_penalty,
            -MAX_PENALTY,
            MAX_PENALTY,
            OFF_AT_0,
        )?;
        check_real_above_zero(
            "repetition_penalty",
            self.repetition_penalty,
            MAX_REPETITION_PENALTY,
        )?;
        check_whole("top_k", self.top_k, -1..=MAX_TOP_K, |_| {
            "use -1 or 0 to switch it off".into()
        })?;
        if let Some(seed) = self.seed {
            let range = i128::from(i64::MIN)..=i128::from(i64::MAX);
            check_whole("seed", seed, range, |_| "a seed is a signed 64-bit integer".into())?;
        }
        check_count("stop", self.stop.len(), MAX_STOP_STRINGS)?;
        for (index, text) in self.stop.iter().enumerate() {
            if !(1..=MAX_STOP_BYTES).contains(&text.len()) {
                return Err(Invalid::value(
                    "stop",
                    format!(
                        "stop[{index}] has {} bytes; a stop string has 1 to {MAX_STOP_BYTES} bytes",
                        text.len()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// What is bounded by the vocabulary or by the configured number of alternatives.
    fn check_tokens(&self, has: &Capacity) -> Result<(), Invalid> {
        check_count("logit_bias", self.logit_bias.len(), MAX_TOKEN_ENTRIES)?;
        for &(id, bias) in self.logit_bias {
            check_token("logit_bias", id, has.vocab_size)?;
            if !(-MAX_LOGIT_BIAS..=MAX_LOGIT_BIAS).contains(&bias) {
                return Err(Invalid::value(
                    "logit_bias",
                    format!(
                        "logit_bias of token {id} is {bias}; it must be a number from \
                         -{MAX_LOGIT_BIAS} to {MAX_LOGIT_BIAS}"
                    ),
                ));
            }
        }
        check_stop_tokens(self.stop_token_ids, MAX_TOKEN_ENTRIES, has.vocab_size)?;
        if let Some(ids) = self.allowed_token_ids {
            check_count("allowed_token_ids", ids.len(), MAX_TOKEN_ENTRIES)?;
            if ids.is_empty() {
                return Err(Invalid::value(
                    "allowed_token_ids",
                    "allowed_token_ids is empty, so no token could be generated; list at least \
                     one id or leave the field out"
                        .into(),
                ));
            }
            for &id in ids {
                check_token("allowed_token_ids", id, has.vocab_size)?;
            }
        }
        if let Some(logprobs) = self.logprobs {
            let limit = i128::try_from(has.max_logprobs).unwrap_or(i128::MAX);
            check_whole("logprobs", logprobs, 0..=limit, |_| "ask for fewer alternatives".into())?;
        }
        Ok(())
    }
}

const OFF_AT_0: &str = "use 0 to switch it off";

/// Prompt, `max_tokens` and `min_tokens` against what there is; returns `max_tokens` resolved.
pub fn check_lengths(
    num_prompt_tokens: usize,
    max_tokens: Option<i128>,
    min_tokens: i128,
    has: &Capacity,
) -> Result<u32, Invalid> {
    let max_tokens = resolve_max_tokens(num_prompt_tokens, max_tokens, has)?;
    check_whole("min_tokens", min_tokens, 0..=i128::from(max_tokens), |limit| {
        format!("this request can generate at most {limit} tokens; ask for fewer")
    })?;
    Ok(max_tokens)
}

/// The ids that end a request: few, and of the vocabulary.
pub fn check_stop_tokens(ids: &[i128], limit: usize, vocab_size: usize) -> Result<(), Invalid> {
    check_count("stop_token_ids", ids.len(), limit)?;
    ids.iter().try_for_each(|&id| check_token("stop_token_ids", id, vocab_size))
}

/// The ids of a prompt.
pub fn check_prompt(tokens: &[i32], vocab_size: usize) -> Result<(), Invalid> {
    let outside = |&&id: &&i32| usize::try_from(id).map_or(true, |id| id >= vocab_size);
    tokens
        .iter()
        .find(outside)
        .map_or(Ok(()), |&id| check_token("prompt", i128::from(id), vocab_size))
}

/// Prompt and output against the context and against the pools.
fn resolve_max_tokens(
    prompt: usize,
    max_tokens: Option<i128>,
    has: &Capacity,
) -> Result<u32, Invalid> {
    if prompt == 0 {
        return Err(Invalid::value(
            "prompt",
            "the prompt is empty; it needs at least 1 token".into(),
        ));
    }
    for (limit, what) in [
        (has.max_model_len, "the context (max_model_len)"),
        (has.max_request_tokens, "what the KV pools can hold for one request"),
    ] {
        if prompt >= limit {
            return Err(Invalid::context(
                "prompt",
                format!(
                    "the prompt has {prompt} tokens and at least 1 is generated, but {what} is \
                     {limit} tokens; shorten the prompt by at least {}",
                    (prompt - limit).saturating_add(1)
                ),
            ));
        }
        let room = limit - prompt;
        let most = i128::try_from(room).unwrap_or(i128::MAX);
        if let Some(asked) = max_tokens.filter(|&asked| asked > most) {
            return Err(Invalid::context(
                "max_tokens",
                format!(
                    "the prompt has {prompt} tokens and max_tokens is {asked}, but {what} is \
                     {limit} tokens; shorten the prompt or ask for at most {room}"
                ),
            ));
        }
    }
    let room = has.max_model_len.min(has.max_request_tokens) - prompt;
    let room = u32::try_from(room).unwrap_or(u32::MAX);
    match max_tokens {
        None => Ok(room),
        Some(asked) => {
            check_whole("max_tokens", asked, 1..=i128::from(room), |limit| {
                format!("at most {limit} fit here; leave it out for what fits")
            })?;
            Ok(u32::try_from(asked).unwrap_or(room))
        }
    }
}

/// Refuses a list that is too long; doors call it before they convert the entries.
pub fn check_count(param: &'static str, len: usize, limit: usize) -> Result<(), Invalid> {
    if len <= limit {
        return Ok(());
    }
    Err(Invalid::value(param, format!("{param} has {len} entries; at most {limit} are allowed")))
}

/// Refuses an integer outside a range.
pub fn check_whole(
    param: &'static str,
    value: i128,
    range: RangeInclusive<i128>,
    advice: impl Fn(i128) -> String,
) -> Result<(), Invalid> {
    if range.contains(&value) {
        return Ok(());
    }
    let advice = advice(*range.end());
    Err(out_of_range(param, value, &format!("from {} to {}", range.start(), range.end()), &advice))
}

/// NaN is in no range, so it is refused like any other number outside.
fn check_real(
    param: &'static str,
    value: f64,
    low: f64,
    high: f64,
    advice: &str,
) -> Result<(), Invalid> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(out_of_range(param, value, &format!("a number from {low} to {high}"), advice))
}

fn check_real_above_zero(param: &'static str, value: f64, high: f64) -> Result<(), Invalid> {
    if value > 0.0 && value <= high {
        return Ok(());
    }
    let range = format!("a number above 0 and at most {high}");
    Err(out_of_range(param, value, &range, "use 1 to switch it off"))
}

/// Refuses a token id outside the vocabulary.
pub fn check_token(param: &'static str, id: i128, vocab_size: usize) -> Result<(), Invalid> {
    if usize::try_from(id).is_ok_and(|id| id < vocab_size) {
        return Ok(());
    }
    Err(Invalid::value(
        param,
        format!(
            "{param} names token {id}; the vocabulary has {vocab_size} tokens, numbered from 0"
        ),
    ))
}

fn out_of_range(param: &'static str, value: impl Display, range: &str, advice: &str) -> Invalid {
    Invalid::value(param, format!("{param} is {value}; it must be {range}; {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HAS: Capacity = Capacity {
        max_model_len: 4096,
        max_request_tokens: 8192,
        vocab_size: 1000,
        max_logprobs: 20,
    };

    const PLAIN: Sampling<'static> = Sampling {
        num_prompt_tokens: 10,
        max_tokens: Some(16),
        min_tokens: 0,
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        repetition_penalty: 1.0,
        logit_bias: &[],
        allowed_token_ids: None,
        seed: None,
        n: 1,
        stop: &[],
        stop_token_ids: &[],
        logprobs: None,
    };

    fn accepts(sampling: &Sampling<'_>) {
        if let Err(refusal) = sampling.check(&HAS) {
            panic!("refused: {refusal}\n{sampling:?}");
        }
    }

    /// Refused for `param`, with every one of `words` in the message.
    fn refuses(sampling: &Sampling<'_>, param: &str, words: &[&str]) {
        let refusal = sampling.check(&HAS).expect_err("accepted");
        assert_eq!(refusal.param, param, "{refusal}");
        for word in words {
            assert!(refusal.message.contains(word), "{word:?} not in {refusal}");
        }
    }

    /// Just under, at and just over both ends of a range of integers.
    fn whole_range(param: &str, low: i128, high: i128, with: impl Fn(i128) -> Sampling<'static>) {
        for value in [low, low + 1, high - 1, high] {
            accepts(&with(value));
        }
        for value in [low - 1, high + 1, i128::MIN, i128::MAX] {
            refuses(&with(value), param, &[param, &value.to_string(), &high.to_string()]);
        }
    }

    /// The same for real numbers; a low end that is open is refused itself.
    fn real_range(
        param: &str,
        (low, low_is_open): (f64, bool),
        high: f64,
        with: impl Fn(f64) -> Sampling<'static>,
    ) {
        for value in [low.next_up(), high.next_down(), high] {
            accepts(&with(value));
        }
        if low_is_open {
            refuses(&with(low), param, &[param]);
        } else {
            accepts(&with(low));
        }
        let outside = [low.next_down(), high.next_up(), f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        for value in outside {
            refuses(&with(value), param, &[param, &high.to_string()]);
        }
    }

    #[test]
    fn the_defaults_are_accepted_and_unchanged() {
        assert_eq!(PLAIN.check(&HAS), Ok(16));
    }

    #[test]
    fn whole_numbers_are_accepted_up_to_their_limits_and_not_beyond() {
        whole_range("n", 1, 16, |n| Sampling { n, ..PLAIN });
        whole_range("top_k", -1, i128::from(i32::MAX), |top_k| Sampling { top_k, ..PLAIN });
        whole_range("logprobs", 0, 20, |k| Sampling { logprobs: Some(k), ..PLAIN });
        whole_range("min_tokens", 0, 16, |min_tokens| Sampling { min_tokens, ..PLAIN });
        whole_range("seed", i128::from(i64::MIN), i128::from(i64::MAX), |seed| Sampling {
            seed: Some(seed),
            ..PLAIN
        });
    }

    #[test]
    fn real_numbers_are_accepted_up_to_their_limits_and_not_beyond() {
        real_range("temperature", (0.0, false), 2.0, |temperature| Sampling {
            temperature,
            ..PLAIN
        });
        real_range("top_p", (0.0, true), 1.0, |top_p| Sampling { top_p, ..PLAIN });
        real_range("min_p", (0.0, false), 1.0, |min_p| Sampling { min_p, ..PLAIN });
        real_range("presence_penalty", (-2.0, false), 2.0, |presence_penalty| Sampling {
            presence_penalty,
            ..PLAIN
        });
        real_range("frequency_penalty", (-2.0, false), 2.0, |frequency_penalty| Sampling {
            frequency_penalty,
            ..PLAIN
        });
        real_range("repetition_penalty", (0.0, true), 2.0, |repetition_penalty| Sampling {
            repetition_penalty,
            ..PLAIN
        });
    }

    #[test]
    fn stop_strings_are_counted() {
        for len in [0, 1, 15, 16] {
            accepts(&Sampling { stop: &vec!["x"; len], ..PLAIN });
        }
        for len in [17, 10_000] {
            refuses(
                &Sampling { stop: &vec!["x"; len], ..PLAIN },
                "stop",
                &[&len.to_string(), "16"],
            );
        }
    }

    #[test]
    fn stop_strings_are_measured_in_bytes() {
        for len in [1, 2, 1023, 1024] {
            accepts(&Sampling { stop: &[&"x".repeat(len)], ..PLAIN });
        }
        refuses(&Sampling { stop: &["ok", ""], ..PLAIN }, "stop", &["stop[1]", "0 bytes"]);
        refuses(&Sampling { stop: &[&"x".repeat(1025)], ..PLAIN }, "stop", &["1025", "1024"]);
        refuses(&Sampling { stop: &[&"é".repeat(513)], ..PLAIN }, "stop", &["1026 bytes"]);
    }

    #[test]
    fn lists_of_tokens_are_counted() {
        for len in [1, 1023, 1024] {
            let ids = vec![1; len];
            accepts(&Sampling { stop_token_ids: &ids, ..PLAIN });
            accepts(&Sampling { allowed_token_ids: Some(&ids), ..PLAIN });
            accepts(&Sampling { logit_bias: &vec![(1, 0.0); len], ..PLAIN });
        }
        let ids = vec![1; 1025];
        let said = ["1025", "1024"];
        refuses(&Sampling { stop_token_ids: &ids, ..PLAIN }, "stop_token_ids", &said);
        refuses(&Sampling { allowed_token_ids: Some(&ids), ..PLAIN }, "allowed_token_ids", &said);
        refuses(&Sampling { logit_bias: &vec![(1, 0.0); 1025], ..PLAIN }, "logit_bias", &said);
    }

    #[test]
    fn an_empty_list_of_allowed_tokens_is_refused_and_no_list_is_not() {
        refuses(
            &Sampling { allowed_token_ids: Some(&[]), ..PLAIN },
            "allowed_token_ids",
            &["empty"],
        );
        accepts(&Sampling { allowed_token_ids: None, ..PLAIN });
    }

    #[test]
    fn token_ids_are_those_of_the_vocabulary() {
        for id in [0, 1, 998, 999] {
            accepts(&Sampling { stop_token_ids: &[id], ..PLAIN });
            accepts(&Sampling { allowed_token_ids: Some(&[id]), ..PLAIN });
            accepts(&Sampling { logit_bias: &[(id, 1.0)], ..PLAIN });
        }
        for id in [-1, 1000, i128::MIN, i128::MAX] {
            let said = [id.to_string(), "1000".into()];
            let said: Vec<&str> = said.iter().map(String::as_str).collect();
            refuses(&Sampling { stop_token_ids: &[5, id], ..PLAIN }, "stop_token_ids", &said);
            refuses(
                &Sampling { allowed_token_ids: Some(&[id]), ..PLAIN },
                "allowed_token_ids",
                &said,
            );
            refuses(&Sampling { logit_bias: &[(id, 1.0)], ..PLAIN }, "logit_bias", &said);
        }
    }

    #[test]
    fn logit_bias_is_a_number_up_to_a_hundred() {
        for bias in [-100.0, (-100f64).next_up(), 0.0, 100f64.next_down(), 100.0] {
            accepts(&Sampling { logit_bias: &[(7, bias)], ..PLAIN });
        }
        for bias in [(-100f64).next_down(), 100f64.next_up(), f64::NAN, f64::INFINITY] {
            refuses(&Sampling { logit_bias: &[(7, bias)], ..PLAIN }, "logit_bias", &["7", "100"]);
        }
    }

    #[test]
    fn without_max_tokens_the_request_gets_what_fits() {
        let open = Sampling { max_tokens: None, ..PLAIN };
        assert_eq!(open.check(&HAS), Ok(4086));
        let small_pool = Capacity { max_request_tokens: 100, ..HAS };
        assert_eq!(open.check(&small_pool), Ok(90));
    }

    #[test]
    fn min_tokens_without_max_tokens_is_checked_against_the_context() {
        let open = Sampling { max_tokens: None, ..PLAIN };
        accepts(&Sampling { min_tokens: 4085, ..open });
        accepts(&Sampling { min_tokens: 4086, ..open });
        refuses(&Sampling { min_tokens: 4087, ..open }, "min_tokens", &["4087", "4086"]);
    }

    #[test]
    fn max_tokens_is_at_least_one() {
        accepts(&Sampling { max_tokens: Some(1), ..PLAIN });
        for asked in [0, -1, i128::MIN] {
            let sampling = Sampling { max_tokens: Some(asked), ..PLAIN };
            refuses(&sampling, "max_tokens", &[&asked.to_string(), "from 1"]);
        }
    }

    #[test]
    fn prompt_and_output_fill_the_context_exactly_and_no_more() {
        accepts(&Sampling { max_tokens: Some(4085), ..PLAIN });
        accepts(&Sampling { max_tokens: Some(4086), ..PLAIN });
        for asked in [4087, i128::MAX] {
            let over = Sampling { max_tokens: Some(asked), ..PLAIN };
            refuses(
                &over,
                "max_tokens",
                &["10 tokens", &asked.to_string(), "4096", "at most 4086"],
            );
            let refusal = over.check(&HAS).expect_err("accepted");
            assert_eq!(refusal.code.as_str(), "context_length_exceeded");
        }
    }

    #[test]
    fn prompt_and_output_fill_the_pools_exactly_and_no_more() {
        let has = Capacity { max_request_tokens: 100, ..HAS };
        for asked in [89, 90] {
            assert!(Sampling { max_tokens: Some(asked), ..PLAIN }.check(&has).is_ok());
        }
        let over = Sampling { max_tokens: Some(91), ..PLAIN };
        let refusal = over.check(&has).expect_err("accepted");
        assert_eq!((refusal.param, refusal.code), ("max_tokens", Code::ContextLengthExceeded));
        for word in ["10 tokens", "91", "100 tokens", "at most 90"] {
            assert!(refusal.message.contains(word), "{word:?} not in {refusal}");
        }
    }

    #[test]
    fn a_prompt_leaves_room_for_one_token() {
        let open = Sampling { max_tokens: None, ..PLAIN };
        assert_eq!(Sampling { num_prompt_tokens: 4094, ..open }.check(&HAS), Ok(2));
        assert_eq!(Sampling { num_prompt_tokens: 4095, ..open }.check(&HAS), Ok(1));
        for (num_prompt_tokens, excess) in [(4096, 1), (5000, 905)] {
            let over = Sampling { num_prompt_tokens, ..open };
            let said = format!("by at least {excess}");
            refuses(&over, "prompt", &[&num_prompt_tokens.to_string(), "4096", &said]);
            let refusal = over.check(&HAS).expect_err("accepted");
            assert_eq!(refusal.code, Code::ContextLengthExceeded);
        }
    }

    #[test]
    fn an_empty_prompt_is_refused() {
        refuses(&Sampling { num_prompt_tokens: 0, ..PLAIN }, "prompt", &["empty"]);
        accepts(&Sampling { num_prompt_tokens: 1, ..PLAIN });
    }

    #[test]
    fn the_largest_numbers_neither_overflow_nor_panic() {
        let huge = Capacity { max_model_len: usize::MAX, max_request_tokens: usize::MAX, ..HAS };
        let open = Sampling { max_tokens: None, ..PLAIN };
        assert_eq!(open.check(&huge), Ok(u32::MAX));
        let full = Sampling { num_prompt_tokens: usize::MAX - 1, ..open };
        assert_eq!(full.check(&huge), Ok(1));
        let over = Sampling { num_prompt_tokens: usize::MAX, ..open };
        assert!(over.check(&HAS).is_err());
    }

    #[test]
    fn a_list_that_is_too_long_is_refused_before_it_is_converted() {
        assert!(check_count("logit_bias", MAX_TOKEN_ENTRIES, MAX_TOKEN_ENTRIES).is_ok());
        let refusal = check_count("logit_bias", MAX_TOKEN_ENTRIES + 1, MAX_TOKEN_ENTRIES);
        assert_eq!(refusal.expect_err("accepted").param, "logit_bias");
    }
}
