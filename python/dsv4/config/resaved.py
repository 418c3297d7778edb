"""The config.json that transformers 5.x writes, put back into the official words.

    rope_parameters {main, compress}  ->  rope_theta, compress_rope_theta, rope_scaling
    layer_types + compress_rates      ->  compress_ratios (main layers only)
    mlp_layer_types                   ->  num_hash_layers

A tool that looks for the official keys in such a file finds none and computes the compressed layers without YaRN. What
is neither here nor there is refused, never assumed.
"""

from __future__ import annotations

from collections.abc import Mapping

from dsv4.config.fields import Fields, shown
from dsv4.errors import UnsupportedModel

WINDOW = "sliding_attention"


def official(raw: Mapping[str, object]) -> dict[str, object]:
    """`raw` with the official keys filled in from transformers' where only those are there."""
    config, fields = dict(raw), Fields(raw, "config.json")
    if raw.get("rope_parameters") is not None:
        _rope(config, fields.section("rope_parameters"))
    if "compress_ratios" not in raw and raw.get("layer_types") is not None:
        config["compress_ratios"] = _ratios(fields)
    if "num_hash_layers" not in raw and raw.get("mlp_layer_types") is not None:
        config["num_hash_layers"] = _hash_layers(fields)
    return config


def _rope(config: dict[str, object], nested: Fields) -> None:
    main, compress = nested.section("main"), nested.section("compress")
    if main.raw.get("rope_type", "default") != "default":
        kind = shown(main.raw["rope_type"])
        raise UnsupportedModel(f"config.json: rope_parameters.main.rope_type is {kind}; window layers are never scaled")
    for key, section in (("rope_theta", main), ("compress_rope_theta", compress)):
        theta = section.value("rope_theta")
        if config.get(key, theta) != theta:
            nested.wrong(key, f"is {shown(theta)} here and {shown(config[key])} outside")
        config[key] = theta
    if config.get("rope_scaling") is None:
        without = ("rope_theta", "partial_rotary_factor")
        config["rope_scaling"] = {key: value for key, value in compress.raw.items() if key not in without}


def _ratios(fields: Fields) -> list[object]:
    rates = fields.section("compress_rates")
    return [0 if kind == WINDOW else rates.value(str(kind)) for kind in fields.items("layer_types")]


def _hash_layers(fields: Fields) -> int:
    kinds = fields.items("mlp_layer_types")
    count = kinds.count("hash_moe")
    if kinds != ["hash_moe"] * count + ["moe"] * (len(kinds) - count):
        fields.wrong("mlp_layer_types", "must be some 'hash_moe' followed by 'moe' only")
    return count
