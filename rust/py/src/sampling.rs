//! `check_sampling`: the validator as Python calls it.

use pyo3::prelude::*;

use dsv4_core::validate::{Capacity, MAX_STOP_STRINGS, MAX_TOKEN_ENTRIES, Sampling};

use crate::error::refused;
use crate::numbers::{Real, Whole, entries, text};

/// The one validator behind every door. Returns `max_tokens` resolved; raises `InvalidRequest` naming the field.
#[pyfunction]
#[pyo3(signature = (
    *, num_prompt_tokens, max_model_len, max_request_tokens, vocab_size, max_tokens, min_tokens,
    temperature, top_p, top_k, min_p, presence_penalty, frequency_penalty, repetition_penalty,
    logit_bias, allowed_token_ids, seed, n, stop, stop_token_ids, logprobs, max_logprobs = 20
))]
#[expect(clippy::too_many_arguments, reason = "they are the request's fields, by keyword")]
pub(crate) fn check_sampling(
    py: Python<'_>,
    num_prompt_tokens: usize,
    max_model_len: usize,
    max_request_tokens: usize,
    vocab_size: usize,
    max_tokens: Option<Whole>,
    min_tokens: Whole,
    temperature: Real,
    top_p: Real,
    top_k: Whole,
    min_p: Real,
    presence_penalty: Real,
    frequency_penalty: Real,
    repetition_penalty: Real,
    logit_bias: &Bound<'_, PyAny>,
    allowed_token_ids: Option<&Bound<'_, PyAny>>,
    seed: Option<Whole>,
    n: Whole,
    stop: &Bound<'_, PyAny>,
    stop_token_ids: &Bound<'_, PyAny>,
    logprobs: Option<Whole>,
    max_logprobs: usize,
) -> PyResult<u32> {
    let ids = |list: &Bound<'_, PyAny>, param| {
        entries(list, param, MAX_TOKEN_ENTRIES, |id| id.extract().map(|Whole(id)| id))
    };
    let logit_bias = entries(logit_bias, "logit_bias", MAX_TOKEN_ENTRIES, |entry| {
        entry.extract().map(|(Whole(id), Real(bias))| (id, bias))
    })?;
    let allowed_token_ids = allowed_token_ids.map(|list| ids(list, "allowed_token_ids"));
    let allowed_token_ids = allowed_token_ids.transpose()?;
    let stop = entries(stop, "stop", MAX_STOP_STRINGS, |entry| text(entry, "stop"))?;
    let stop: Vec<&str> = stop.iter().map(String::as_str).collect();
    let stop_token_ids = ids(stop_token_ids, "stop_token_ids")?;
    let sampling = Sampling {
        num_prompt_tokens,
        max_tokens: max_tokens.map(|Whole(value)| value),
        min_tokens: min_tokens.0,
        temperature: temperature.0,
        top_p: top_p.0,
        top_k: top_k.0,
        min_p: min_p.0,
        presence_penalty: presence_penalty.0,
        frequency_penalty: frequency_penalty.0,
        repetition_penalty: repetition_penalty.0,
        logit_bias: &logit_bias,
        allowed_token_ids: allowed_token_ids.as_deref(),
        seed: seed.map(|Whole(value)| value),
        n: n.0,
        stop: &stop,
        stop_token_ids: &stop_token_ids,
        logprobs: logprobs.map(|Whole(value)| value),
    };
    let has = Capacity { max_model_len, max_request_tokens, vocab_size, max_logprobs };
    sampling.check(&has).map_err(|invalid| refused(py, &invalid))
}
