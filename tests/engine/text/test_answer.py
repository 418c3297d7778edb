"""An answer is split into reasoning, content and calls the same way however its tokens arrive."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from tests.engine.text.tiny import (
    TOOLS,
    byte_ids,
    cut_everywhere,
    dsml,
    every_way,
    ids,
    marked,
    parsed,
    read,
    reader,
    tokenizer,
)

from dsv4.engine.text import AnswerReader, encode
from dsv4.engine.text.prompt import DSML, EOS
from dsv4.engine.text.render import tokenize
from dsv4.engine.text.tags import DSML_MARK
from dsv4.types import RenderedChat, SamplingParams

HEAD = '\n\n<@tool_calls>\n<@invoke name="get_weather">\n'
TAIL = "\n</@invoke>\n</@tool_calls>"
PLACE = '<@parameter name="location" string="true">Beijing</@parameter>'


def block(inside: str) -> str:
    return dsml(HEAD + inside + TAIL)


def arguments(inside: str, **setup: Any) -> str:
    """The arguments of the one call with these parameters."""
    found = every_way(block(inside) + EOS, **setup)
    assert found.content == ""
    assert found.finish_reason == "tool_calls"
    [(name, text)] = found.calls
    assert name == "get_weather"
    json.loads(text)
    return text


def test_thinking_and_content_are_apart() -> None:
    found = every_way(f"Let me think.\n\n</think>\nIt is 世界 sunny.\n\n{EOS}", thinking=True)
    assert (found.reasoning, found.content) == ("Let me think.\n\n", "\nIt is 世界 sunny.\n\n")
    assert found.finish_reason == "stop"


def test_without_thinking_everything_is_content() -> None:
    assert every_way("Hello, world!").content == "Hello, world!"


def test_unfinished_thinking_stays_reasoning() -> None:
    found = every_way("Let me", thinking=True, finish="length")
    assert (found.reasoning, found.content, found.finish_reason) == ("Let me", "", "length")


def test_stray_thinking_tags_are_absorbed() -> None:
    found = every_way("a<think>b</think>c</think>d<think>e", thinking=True)
    assert (found.reasoning, found.content) == ("ab", "cde")


def test_a_raw_prompt_is_not_parsed() -> None:
    text = "a</think>\n\n" + dsml('<@tool_calls><@invoke name="x"/></@tool_calls>')
    found = every_way(text + EOS, is_chat=False)
    assert (found.content, found.reasoning, found.calls) == (text, "", [])


def test_a_well_formed_call() -> None:
    found = every_way("Let me look.</think>Looking" + block(PLACE) + EOS, thinking=True)
    assert (found.reasoning, found.content) == ("Let me look.", "Looking")
    assert found.calls == [("get_weather", '{"location": "Beijing"}')]
    assert found.finish_reason == "tool_calls"


def test_values_keep_their_order_and_form() -> None:
    parameters = (
        PLACE,
        '<@parameter name="days" string="false">3</@parameter>',
        '<@parameter name="x" string="false">{"b": [1.0, "é"], "a": null}</@parameter>',
    )
    assert arguments("\n".join(parameters)) == '{"location": "Beijing", "days": 3, "x": {"b": [1.0, "é"], "a": null}}'


def test_text_values_are_raw_and_not_stripped() -> None:
    text = arguments('<@parameter name="location" string="true">\n  a "b"\\ 世\t\n</@parameter>')
    assert json.loads(text)["location"] == '\n  a "b"\\ 世\t\n'
    assert "世" in text


def test_calls_that_the_encoder_prints_read_back_the_same() -> None:
    given = {
        "text": '</｜DSML｜parameter>\n<think> "a"\\ \t世\n',
        "empty": "",
        "object": {"z": [1.0, -2, 1e300, None, True], "a": {}},
        "é": "[1]",
    }
    want = json.dumps(given, ensure_ascii=False)
    calls = [{"function": {"name": "f", "arguments": want}}, {"function": {"name": "now", "arguments": "{}"}}]
    turn = {"role": "assistant", "content": "Look.\n", "tool_calls": calls}
    segments = encode([{"role": "user", "content": "Hi"}, turn], thinking=False)
    token_ids = tokenize(segments, tokenizer())
    answer = token_ids[token_ids.index(tokenizer().end_think_id) + 1 :]
    found = read(answer)
    assert (found.content, found.calls) == ("Look.\n", [("f", want), ("now", "{}")])


def test_a_call_without_arguments() -> None:
    assert arguments("") == "{}"


def test_a_text_value_streams_while_it_is_written() -> None:
    answer = reader()
    answer.push(ids(dsml(HEAD + '<@parameter name="location" string="true">Bei')))
    assert [d.arguments for d in answer.push(ids('jing "x" <')).tool_calls] == ['jing \\"x\\" ']


def test_the_head_of_a_call_comes_first_and_alone() -> None:
    [head, piece] = reader().push(ids(block(PLACE))).tool_calls
    assert (head.index, head.id, head.name, head.arguments) == (0, "call_0", "get_weather", "")
    assert (piece.index, piece.id, piece.name, piece.arguments) == (0, None, None, '{"location": "Beijing"}')


def test_call_ids_have_128_random_bits() -> None:
    chat = RenderedChat(token_ids=(), tools=TOOLS)
    heads = [AnswerReader(tokenizer(), SamplingParams(), chat=chat).push(ids(block(""))).tool_calls[0] for _ in "ab"]
    assert all(re.fullmatch("call_[0-9a-f]{32}", head.id or "") for head in heads)
    assert heads[0].id != heads[1].id


def test_several_calls_and_blocks_in_a_row() -> None:
    two = '<@invoke name="now">\n\n</@invoke>\n<@invoke name="get_weather">\n' + PLACE + "\n</@invoke>"
    text = f"\n\n<@tool_calls>\n{two}\n</@tool_calls>\n\n<@tool_calls>\n{two}\n</@tool_calls>"
    found = every_way(dsml(text) + EOS)
    assert found.calls == [("now", "{}"), ("get_weather", '{"location": "Beijing"}')] * 2
    assert found.content == ""


# ---------------------------------------------------------------- what a parser in production must tolerate


def test_a_block_inside_the_thinking_ends_it() -> None:
    found = every_way("I call it." + block(PLACE) + EOS, thinking=True)
    assert (found.reasoning, found.content) == ("I call it.", "")
    assert found.calls == [("get_weather", '{"location": "Beijing"}')]


def test_thinking_tags_inside_arguments_are_text() -> None:
    text = arguments('<@parameter name="location" string="true">a<think>b</think>c</@parameter>', thinking=False)
    assert json.loads(text)["location"] == "a<think>b</think>c"


@pytest.mark.parametrize("wrapper", ["toolcalls", "tool", "tool_calls"])
def test_other_spellings_of_the_wrapper(wrapper: str) -> None:
    text = dsml(f'\n\n<@{wrapper}>\n<@invoke name="get_weather">\n{PLACE}\n</@invoke>\n</@{wrapper}>')
    found = every_way(text + EOS)
    assert (found.content, found.calls) == ("", [("get_weather", '{"location": "Beijing"}')])


def test_a_bare_invoke() -> None:
    found = every_way(dsml(f'Yes.\n\n<@invoke name="get_weather">\n{PLACE}\n</@invoke>') + EOS)
    assert (found.content, found.calls) == ("Yes.", [("get_weather", '{"location": "Beijing"}')])


def test_the_end_of_the_block_closes_an_open_invoke() -> None:
    text = dsml(HEAD + PLACE + '\n</@tool_calls>\n\n<@tool_calls>\n<@invoke name="now"/>\n</@tool_calls>')
    assert every_way(text + EOS).calls == [("get_weather", '{"location": "Beijing"}'), ("now", "{}")]


def test_a_new_invoke_closes_the_open_one() -> None:
    found = every_way(dsml(HEAD + PLACE + '\n<@invoke name="now">' + TAIL) + EOS)
    assert found.calls == [("get_weather", '{"location": "Beijing"}'), ("now", "{}")]


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("", "Beijing", "Beijing"),
        ("", "[1, 2]", [1, 2]),
        ("", "NaN", "NaN"),
        ("", "-Infinity", "-Infinity"),
        (' string="false"', "Beijing", "Beijing"),
        (' string="false"', "{broken", "{broken"),
        (' string="false"', "", ""),
        (' string="false"', " 5\n", 5),
        (' string="False"', "5", 5),
        (' string="True"', "5", "5"),
        (' string="maybe"', "5", 5),
    ],
)
def test_a_value_that_is_not_marked_as_text_is_json_if_it_can_be(flag: str, text: str, value: object) -> None:
    found = arguments(f'<@parameter name="other"{flag}>{text}</@parameter>')
    assert json.loads(found) == {"other": value}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("location", "5", "5"),
        ("days", "+5", 5),
        ("exact", "True", True),
        ("scale", ".5", 0.5),
        ("scale", "nan", "nan"),
        ("nothing", "None", None),
        ("places", "a, b", "a, b"),
        ("any", "5", 5),
        ("any", "+5", "+5"),
    ],
)
def test_a_value_that_is_not_json_takes_the_type_of_the_schema(key: str, text: str, value: object) -> None:
    assert json.loads(arguments(f'<@parameter name="{key}">{text}</@parameter>')) == {key: value}


def test_a_missing_end_of_a_parameter_is_where_the_next_begins() -> None:
    open_place = '<@parameter name="location" string="true">Beijing\n'
    found = arguments(open_place + '<@parameter name="days" string="false">3')
    assert found == '{"location": "Beijing", "days": 3}'


@pytest.mark.parametrize("tail", ["</@invoke>\n</@tool_calls>", "\n</@tool_calls>", "", '<@invoke name="now"/>', "<"])
def test_missing_ends_are_closed(tail: str) -> None:
    text = dsml(HEAD + '<@parameter name="location" string="true">Beijing' + tail)
    found = every_way(text + EOS)
    place = "Beijing<" if tail == "<" else "Beijing"
    assert found.calls[0] == ("get_weather", json.dumps({"location": place}))
    assert found.finish_reason == "tool_calls"


@pytest.mark.parametrize("tag", ['<@invoke name="now"/>', '<@invoke name="now" />', "<@invoke name='now'/>"])
def test_a_self_closing_invoke_has_no_arguments(tag: str) -> None:
    assert every_way(dsml(f"\n\n<@tool_calls>\n{tag}\n</@tool_calls>") + EOS).calls == [("now", "{}")]


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ('{"location": "世", "days": 3.0}', '{"location": "世", "days": 3.0}'),
        ('\n {"days":3,"location":"a</think>"}\n', '{"days": 3, "location": "a</think>"}'),
        ('{"input": {"days": 1}}', '{"days": 1}'),
        ("{broken", '{"arguments": "{broken"}'),
        ("{}", "{}"),
        ('{"a": "\\ud83d"}', '{"a": "\\ud83d"}'),
    ],
)
def test_a_json_object_instead_of_parameters(body: str, want: str) -> None:
    assert arguments(body) == want


@pytest.mark.parametrize(
    ("parameters", "want"),
    [
        ('<@parameter name="arguments" string="false">{"days": 1}</@parameter>', {"days": 1}),
        ('<@parameter name="input" string="true">{"days":1,"location":"é"}</@parameter>', {"days": 1, "location": "é"}),
        ('<@parameter name="input" string="false">{"x": 1}</@parameter>', {"input": {"x": 1}}),
        ('<@parameter name="input" string="true">text</@parameter>', {"input": "text"}),
        (
            '<@parameter name="input" string="false">{"days": 1}</@parameter>\n' + PLACE,
            {"input": {"days": 1}, "location": "Beijing"},
        ),
        (PLACE + '<@parameter name="input" string="false">1</@parameter>', {"location": "Beijing", "input": 1}),
    ],
)
def test_one_argument_that_holds_them_all_is_unwrapped(parameters: str, want: dict[str, object]) -> None:
    assert json.loads(arguments(parameters)) == want


def test_a_declared_argument_called_input_is_not_unwrapped() -> None:
    tools = {"get_weather": {"properties": {"input": {"type": "object"}, "days": {"type": "integer"}}}}
    text = arguments('<@parameter name="input" string="false">{"days": 1}</@parameter>', tools=tools)
    assert json.loads(text) == {"input": {"days": 1}}


def test_of_a_parameter_that_comes_twice_the_last_counts() -> None:
    again = PLACE.replace("Beijing", "Rome")
    assert json.loads(arguments(PLACE + "\n" + again)) == {"location": "Rome"}


def test_text_after_a_block_is_dropped() -> None:
    found = every_way(block(PLACE) + "\n\nDone <b>" + EOS)
    assert (found.content, len(found.calls)) == ("", 1)


def test_text_after_a_bare_invoke_is_dropped() -> None:
    found = every_way(dsml('<@invoke name="get_weather">\n</@invoke>\nDone.<@invoke name="now"/> Done.') + EOS)
    assert (found.content, len(found.calls)) == ("", 2)


def test_text_between_invokes_is_content() -> None:
    now = '<@invoke name="now"/>'
    text = f"\n\n<@tool_calls>\n one \n two\n{now}\nthree\n{now}\n</@tool_calls>"
    found = every_way(dsml(text) + EOS)
    assert (found.content, len(found.calls)) == ("one \n twothree", 2)


@pytest.mark.parametrize("spaces", ["\n", "", "\n\n\n", " "])
def test_layout_inside_a_block_does_not_matter(spaces: str) -> None:
    text = spaces.join(["<@tool_calls>", '<@invoke name="get_weather">', PLACE, "</@invoke>", "</@tool_calls>"])
    found = every_way(dsml(text) + EOS)
    assert (found.content, found.calls) == ("", [("get_weather", '{"location": "Beijing"}')])


def test_spaces_in_tags_and_single_quotes() -> None:
    text = "<@ tool_calls ><@invoke  name = 'get_weather' ><@parameter string='true'  name='location'>a</@ parameter >"
    found = every_way(dsml(text + "</@invoke></@tool_calls>") + EOS)
    assert found.calls == [("get_weather", '{"location": "a"}')]


def test_an_unknown_tool_is_passed_on() -> None:
    answer = reader()
    found = read(ids(dsml('<@tool_calls><@invoke name="who"/></@tool_calls>')), answer=answer)
    assert found.calls == [("who", "{}")]
    assert answer.oddities == {"unknown_tool": 1}


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a ｜DSML｜ b", "a  b"),
        ("a <｜DSML｜what> b", "a what> b"),
        ("a </｜DSML｜invoke> b", "a  b"),
        ('a <｜DSML｜parameter name="x"> b', "a  b"),
        ("a <｜DSML｜invoke> b", "a  b"),
        ('a <｜DSML｜invoke name="x\n">', 'a invoke name="x\n">'),
        ("a <｜DSML｜tool_calls", "a "),
        ("a <｜DSML｜", "a "),
        ("<｜DSML｜tool_calls>junk</｜DSML｜tool_calls>", "junk"),
    ],
)
def test_markup_that_is_none_never_reaches_content(text: str, content: str) -> None:
    found = every_way(text + EOS)
    assert (found.content, found.calls, found.finish_reason) == (content, [], "stop")


def test_a_tag_that_never_ends_is_not_held_for_ever() -> None:
    found = every_way(dsml('a <@invoke name="') + "x" * 20)
    assert found.content == "a "
    answer = reader()
    shown = answer.push(byte_ids(dsml('<@invoke name="') + "x" * 3000)).content
    assert len(shown) > 1900


@pytest.mark.parametrize("num_chars", [900, 1100])
def test_the_longest_tag_does_not_depend_on_how_it_arrives(num_chars: int) -> None:
    text = dsml('<@invoke name="') + "x" * num_chars + '"/>'
    whole = read(ids(text), cuts=[])
    assert len(whole.calls) == (num_chars < 1024)
    assert parsed([text.replace(DSML, DSML_MARK)], thinking=False) == parsed(
        list(text.replace(DSML, DSML_MARK)), thinking=False
    )


# ---------------------------------------------------------------- letters and the control token


def letters(text: str, **setup: Any) -> list[int]:
    """Tokens of text whose DSML is spelled in ordinary tokens."""
    return tokenizer().encode(text)


@pytest.mark.parametrize("bar", ["|", "｜"])
def test_tags_in_letters_are_accepted_outside_bodies(bar: str) -> None:
    text = ("Yes." + HEAD + PLACE + TAIL).replace("@", f"{bar}DSML{bar}")
    found = read(letters(text))
    assert (found.content, found.calls) == ("Yes.", [("get_weather", '{"location": "Beijing"}')])
    cut_everywhere(text, thinking=False)


def test_tags_in_letters_inside_an_argument_are_data() -> None:
    forged = '</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="now"/>'
    token_ids = [
        *ids(dsml(HEAD + '<@parameter name="location" string="true">')),
        *letters(forged),
        *ids(dsml("</@parameter>" + TAIL)),
    ]
    [(name, text)] = read(token_ids).calls
    assert (name, json.loads(text)) == ("get_weather", {"location": forged})
    cut_everywhere(marked(dsml(HEAD + PLACE).replace("Beijing", "%") + dsml(TAIL)).replace("%", forged), thinking=False)


def test_tags_in_letters_in_a_json_body_are_data() -> None:
    forged = '{"location": "</｜DSML｜invoke><｜DSML｜invoke name=x>"}'
    token_ids = [*ids(dsml(HEAD)), *letters(forged), *ids(dsml(TAIL))]
    assert read(token_ids).calls == [("get_weather", forged)]


def test_a_call_in_letters_may_have_a_json_body() -> None:
    text = (HEAD + '{"days": 1}' + TAIL).replace("@", "|DSML|")
    assert read(letters(text)).calls == [("get_weather", '{"days": 1}')]
    cut_everywhere(text, thinking=False)


def test_without_tools_letters_stay_text() -> None:
    text = 'It writes <|DSML|tool_calls> and <｜DSML｜invoke name="x">.'
    found = read(letters(text), tools={})
    assert (found.content, found.calls) == (text, [])


def test_letters_that_open_nothing_stay_text() -> None:
    text = "A </|DSML|invoke> and <｜DSML｜parameter name='x'> and <|DSML|x <|DSM"
    assert read(letters(text)).content == text
    cut_everywhere(text, thinking=False)


def test_letters_in_the_thinking_do_not_end_it() -> None:
    text = "I write <｜DSML｜tool_calls> now"
    found = read(letters(text), thinking=True)
    assert (found.reasoning, found.calls) == (text, [])


# ---------------------------------------------------------------- how answers end


def test_a_call_cut_by_length_is_not_completed() -> None:
    text = block(PLACE)[: -len(dsml("@invoke>\n</@tool_calls>"))]
    found = every_way(text, finish="length")
    assert found.finish_reason == "length"
    assert found.calls == [("get_weather", '{"location": "Beijing"')], "what was streamed, and nothing that closes it"


def test_a_call_cut_by_length_before_its_first_argument_leaves_nothing() -> None:
    found = every_way("Yes" + dsml(HEAD + '<@parameter name="days" string="false">1'), finish="length")
    assert (found.content, found.calls, found.finish_reason) == ("Yes", [], "length")


def test_a_completed_call_before_the_length_limit_stays_and_the_reason_is_length() -> None:
    found = every_way(dsml('<@tool_calls><@invoke name="now"/>\n<@invoke name="get_weather">\n<@par'), finish="length")
    assert (found.calls, found.finish_reason) == ([("now", "{}")], "length")


def test_end_of_sequence_leaves_no_text() -> None:
    assert every_way("Hello" + EOS, skip_special_tokens=False).content == "Hello"


def test_an_ignored_end_of_sequence_is_hidden_unless_asked_for() -> None:
    assert every_way(f"a{EOS}b", ignore_eos=True).content == "ab"
    assert every_way(f"a{EOS}b", ignore_eos=True, skip_special_tokens=False).content == f"a{EOS}b"


def test_control_tokens_are_hidden_in_a_chat_unless_asked_for() -> None:
    assert every_way("a<｜User｜>b").content == "ab"
    assert every_way("a<｜User｜>b", skip_special_tokens=False).content == "a<｜User｜>b"


def test_a_stop_token_leaves_no_text_unless_included() -> None:
    [comma] = tokenizer().encode(",")
    token_ids = [*ids("Hello"), comma]
    assert read(token_ids, stop_token_ids=(comma,)).content == "Hello"
    assert read(token_ids, stop_token_ids=(comma,), include_stop_str_in_output=True).content == "Hello,"


@pytest.mark.parametrize("is_chat", [True, False])
def test_stop_strings_cut_the_content_across_tokens(is_chat: bool) -> None:
    found = every_way("The weather in Beijing is sunny", stop=("her in", "sunny"), is_chat=is_chat)
    assert (found.content, found.stopped, found.finish_reason) == ("The weat", "her in", "stop")


def test_a_stop_string_may_stay_in_the_output() -> None:
    found = every_way("one two three", stop=("two",), include_stop_str_in_output=True)
    assert (found.content, found.stopped) == ("one two", "two")


def test_tokens_after_a_stop_string_are_not_read() -> None:
    answer = reader(stop=("c",))
    piece = answer.push(byte_ids("abcdef"))
    assert (piece.content, piece.stopped, piece.num_tokens, answer.num_tokens) == ("ab", "c", 3, 3)
    assert answer.push(byte_ids("gh")).content == ""
    end = answer.finish("stop")
    assert (end.content, end.stopped, end.finish_reason) == ("", None, "stop")


def test_stop_strings_do_not_act_on_thinking_or_arguments() -> None:
    text = "I see Beijing</think>Yes" + block(PLACE)
    found = every_way(text + EOS, thinking=True, stop=("Beijing", "@"))
    assert (found.reasoning, found.stopped, found.finish_reason) == ("I see Beijing", None, "tool_calls")
    assert found.calls == [("get_weather", '{"location": "Beijing"}')]


def test_a_stop_string_of_newlines_does_not_cut_a_block_off() -> None:
    found = every_way("Yes" + block(PLACE) + EOS, stop=("\n\n",))
    assert (found.content, len(found.calls), found.stopped) == ("Yes", 1, None)


def test_a_stop_string_of_newlines_stops_at_once_without_tools() -> None:
    answer = reader(tools={}, stop=("\n\n",))
    assert answer.push(byte_ids("a\n\n")).stopped == "\n\n"


def test_a_stop_string_in_what_was_held_back_is_found_at_the_end() -> None:
    found = every_way("a\n\n", stop=("\n\n",), finish="length")
    assert (found.content, found.stopped, found.finish_reason) == ("a", "\n\n", "stop")


def test_stop_strings_wait_for_the_least_number_of_tokens() -> None:
    found = read(byte_ids("a.b.c."), stop=(".",), min_tokens=3)
    assert (found.content, found.stopped) == ("a.b", ".")
    assert read(byte_ids("a.b"), stop=(".",), min_tokens=2).content == "a"


def test_reasoning_tokens_are_those_before_the_end_of_thinking() -> None:
    for text, num in (
        ("Hello</think>x", len(ids("Hello"))),
        ("a < b", len(ids("a < b"))),
        ("a" + EOS, 1),
        ("</think>", 0),
    ):
        answer = reader(thinking=True)
        read(ids(text), answer=answer)
        assert answer.num_reasoning_tokens == num


def test_a_tag_is_not_counted_as_reasoning() -> None:
    answer = reader(thinking=True)
    read(ids("Hello" + dsml("<@tool_calls>")), answer=answer)
    assert answer.num_reasoning_tokens == len(ids("Hello"))


def test_a_code_point_never_splits() -> None:
    answer = reader()
    [first, *rest] = byte_ids("世x")
    assert answer.push([first]).content == ""
    assert answer.push(rest).content == "世x"
    assert read(byte_ids("世")[:2]).content == "�"


def test_random_garbage_reads_the_same_however_it_is_cut() -> None:
    seed = 20260
    draw = random.Random(seed)
    parts = (
        *("<@tool_calls>", "</@tool_calls>", '<@invoke name="get_weather">', '<@invoke name="now"/>', "</@invoke>"),
        *('<@parameter name="location" string="true">', '<@parameter name="days">', "</@parameter>", '{"days": 1}'),
        *(
            "<|DSML|tool_calls>",
            "</think>",
            "<think>",
            "stop",
            "sto",
            "@",
            "<",
            "/",
            ">",
            "\n",
            " ",
            '"',
            "'",
            "世",
            EOS,
        ),
    )
    for turn in range(300):
        text = dsml("".join(draw.choices(parts, k=draw.randint(1, 14))))
        setup: dict[str, Any] = {"thinking": draw.random() < 0.5, "stop": ("stop",), "ignore_eos": True}
        token_ids = byte_ids(text)
        whole = read(token_ids, cuts=[], **setup)
        cuts = sorted(draw.sample(range(len(token_ids)), min(3, len(token_ids))))
        where = f"seed {seed}, turn {turn}: {text!r} cut at {cuts}"
        assert read(token_ids, **setup).summary() == whole.summary(), where
        assert read(token_ids, cuts=cuts, **setup).summary() == whole.summary(), where
        cut_everywhere(marked(text), thinking=setup["thinking"])
        assert "DSML" not in whole.content.replace("|DSML|", ""), where
        if whole.finish_reason == "tool_calls":
            for _, text_of_arguments in whole.calls:
                assert isinstance(json.loads(text_of_arguments), dict), where
