"""An engine in somebody else's process: it leaves nothing behind, and changes nothing that is not its own."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
from tests.engine.gates import LIMIT_S, Gate, letters, opened, parts, text_of, tiny_model, whole

from dsv4 import EngineConfig
from dsv4.engine.engine import LLM, AsyncEngine
from dsv4.errors import ConfigError, EngineClosed, RequestFailed
from dsv4.serve.engine import Engine
from dsv4.types import ChatRequest, SamplingParams

SHORT = SamplingParams(max_tokens=3)
LONG = SamplingParams(max_tokens=3000, ignore_eos=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    directory = tiny_model(tmp_path_factory.mktemp("tiny"))
    return EngineConfig(
        model=str(directory),
        load_format="dummy",
        kv_cache_memory_bytes=48 << 20,
        max_model_len=1024,
        max_num_seqs=4,
        max_num_batched_tokens=128,
        seed=1,
    )


def test_the_engine_is_what_the_door_asks_for() -> None:
    async def work() -> None:
        async with AsyncEngine.over(parts()) as engine:
            asked: Engine = engine
            chat = await asked.render(ChatRequest(messages=({"role": "user", "content": "hi"},)))
            async with await asked.open(chat, SHORT, request_id="one", priority=1) as stream:
                assert await stream.take()
            assert asked.health().ready
            assert asked.info.served_name == "null"
            assert asked.tokenizer.encode("hi")

    asyncio.run(work())


def test_leaving_the_block_ends_what_runs_and_joins_the_thread() -> None:
    async def work() -> None:
        gate = Gate()
        given = parts(before_step=gate)
        async with AsyncEngine.over(given) as engine:
            stream = await engine.open([5], LONG)
            second = await opened(engine, gate, [6], LONG)
            gate.arrived()
            gate.open()
        assert given.runner.closed  # type: ignore[attr-defined]
        assert not engine._front.driver._thread.is_alive()
        for each in (stream, second):
            with pytest.raises(RequestFailed) as end:
                await whole(each)
            assert end.value.code == "engine_closed"
        with pytest.raises(EngineClosed):
            await engine.open([5], SHORT)
        with pytest.raises(EngineClosed):
            await engine.stats()
        assert engine.health().reason == "engine_closed"
        assert engine.metrics_text()

    asyncio.run(work())


def test_an_error_in_the_block_is_raised_and_the_engine_is_closed() -> None:
    given = parts()

    async def work() -> None:
        async with AsyncEngine.over(given) as engine:
            await engine.open([5], LONG)
            raise LookupError("the caller's")

    with pytest.raises(LookupError, match="caller"):
        asyncio.run(work())
    assert given.runner.closed  # type: ignore[attr-defined]


def test_close_is_idempotent_and_everything_after_it_says_so() -> None:
    llm = LLM.over(parts())
    llm.close()
    llm.close()
    with pytest.raises(EngineClosed):
        llm.generate("hi", SHORT)
    with pytest.raises(EngineClosed):
        llm.stream("hi", SHORT)
    with pytest.raises(EngineClosed):
        llm.stats()


def test_an_engine_that_was_dropped_ends_its_thread() -> None:
    given = parts()
    llm = LLM.over(given)
    assert llm.generate("hi", SHORT)[0].text == "abc"
    thread = llm._front.driver._thread
    del llm
    gc.collect()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert given.runner.closed  # type: ignore[attr-defined]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_use_after_a_fork_raises_in_the_child_and_the_parent_goes_on() -> None:
    with LLM.over(parts()) as llm:
        llm.generate("hi", SHORT)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # CPython 3.12 warns of forks beside threads
            child = os.fork()
        if child == 0:
            status = 1
            signal.alarm(int(LIMIT_S))  # a child that waits for a thread that is not there is killed
            try:
                try:
                    llm.generate("hi", SHORT)
                except EngineClosed as error:
                    status = 0 if "fork" in str(error) else 2
                llm.close()  # and leaving must not wait for a thread that is not there
            finally:
                os._exit(status)
        _, waited = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(waited) == 0
        assert llm.generate("hi", SHORT)[0].text == "abc"


def test_several_engines_live_side_by_side() -> None:
    async def work() -> None:
        second = parts(lambda draw, position: letters(draw, position + 1))
        third = parts(lambda draw, position: letters(draw, position + 2))
        async with AsyncEngine.over(parts()) as one, AsyncEngine.over(second) as two:
            with LLM.over(third) as three:
                streams = [await engine.open("hi", SHORT) for engine in (one, two) for _ in range(4)]
                blocking = asyncio.create_task(asyncio.to_thread(three.generate, "hi", SHORT))
                answers = await asyncio.gather(*map(whole, streams))
                assert (await blocking)[0].text == "cde"
        assert list(map(text_of, answers)) == ["abc"] * 4 + ["bcd"] * 4

    asyncio.run(work())


def test_a_blocking_engine_works_inside_a_running_loop() -> None:
    async def cell_of_a_notebook() -> str:
        with LLM.over(parts()) as llm:
            return llm.generate("hi", SHORT)[0].text

    assert asyncio.run(cell_of_a_notebook()) == "abc"


def test_threads_share_one_engine() -> None:
    with LLM.over(parts()) as llm:
        found: list[str] = []

        def ask() -> None:
            found.append(llm.generate("hi", SHORT)[0].text)
            found.append("".join(delta.content for delta in llm.stream("hi", SHORT)))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
    assert found == ["abc"] * 16


def test_one_engine_serves_several_loops() -> None:
    async def ask(engine: AsyncEngine) -> str:
        return text_of(await whole(await engine.open("hi", SHORT)))

    async def work() -> None:
        async with AsyncEngine.over(parts()) as engine:
            other = await asyncio.to_thread(lambda: asyncio.run(ask(engine)))
            assert (await ask(engine), other) == ("abc", "abc")

    asyncio.run(work())


def test_a_loop_that_closes_without_leaving_its_streams_does_not_stop_the_engine() -> None:
    with_gate = Gate()

    async def forget(engine: AsyncEngine, held: list[Any]) -> None:
        held.append(await engine.open([5], LONG))

    async def work() -> None:
        async with AsyncEngine.over(parts(before_step=with_gate)) as engine:
            held: list[Any] = []
            await asyncio.to_thread(lambda: asyncio.run(forget(engine, held)))
            with_gate.open()
            assert text_of(await whole(await engine.open("hi", SHORT))) == "abc"
            await asyncio.wait_for(asyncio.wrap_future(engine._front.driver.when_idle()), LIMIT_S)
            await engine.audit()

    asyncio.run(work())


def test_the_process_is_left_as_it_was() -> None:
    numbers = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
    before = [signal.getsignal(number) for number in numbers]
    hook, variables, threads = sys.excepthook, dict(os.environ), threading.active_count()
    with LLM.over(parts()) as llm:
        llm.generate("hi", SHORT)
        assert [signal.getsignal(number) for number in numbers] == before
    assert sys.excepthook is hook
    assert os.environ == variables
    assert threading.active_count() == threads


@pytest.mark.parametrize("module", ["dsv4", "dsv4.engine.engine", "dsv4.engine.null"])
def test_importing_does_not_import_torch(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_script_that_never_closes_its_engine_ends_by_itself() -> None:
    script = """
from tests.engine.gates import parts
from dsv4 import LLM, SamplingParams
llm = LLM.over(parts())
stream = llm.stream("hi", SamplingParams(max_tokens=3000, ignore_eos=True))
print(next(stream).content)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=LIMIT_S, check=False, cwd=root)
    assert (done.returncode, done.stdout) == (0, b"a\n"), done.stderr.decode()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_closing_drops_the_model_and_its_memory(tiny: EngineConfig) -> None:
    def cycle() -> None:
        with LLM(config=tiny) as llm:
            runner: Any = llm._front.driver._the_flights._runner
            held = [weakref.ref(runner), weakref.ref(runner._network), weakref.ref(runner._network.head)]
            pool = weakref.ref(runner._caches.layers[0].swa)
            del runner
            llm.generate("hi", SHORT)
        gc.collect()
        assert [ref() for ref in (*held, pool)] == [None] * 4

    cycle()
    cycle()
    before = resident_bytes()
    for _ in range(4):
        cycle()
    assert resident_bytes() - before < 24 << 20  # one set of pools is 48 MiB


def test_closing_an_asynchronous_engine_drops_the_model_too(tiny: EngineConfig) -> None:
    async def work() -> list[Any]:
        async with AsyncEngine.running(tiny) as engine:
            runner: Any = engine._front.driver._the_flights._runner
            held = [weakref.ref(runner), weakref.ref(runner._network)]
            del runner
            async for _ in engine.generate("hi", SHORT):
                break
        gc.collect()
        return [ref() for ref in held]

    assert asyncio.run(work()) == [None, None]


def test_a_start_that_is_cancelled_lets_go_of_what_was_loaded(
    tiny: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, begun, go_on = parts(), threading.Event(), threading.Event()

    def slow_start(config: EngineConfig) -> Any:
        begun.set()
        assert go_on.wait(LIMIT_S)
        return given

    monkeypatch.setattr("dsv4.engine.engine.start", slow_start)

    async def work() -> None:
        async def use() -> None:
            async with AsyncEngine.running(tiny):
                raise AssertionError("it never starts")

        task = asyncio.create_task(use())
        await asyncio.to_thread(begun.wait, LIMIT_S)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert given.runner.closed  # type: ignore[attr-defined]


def test_a_setting_that_does_not_exist_is_named_with_its_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'max_num_seq'; did you mean max_num_seqs\?"):
        LLM("demo", max_num_seq=4)
