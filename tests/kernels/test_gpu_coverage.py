# mypy: disable-error-code="no-untyped-call"
"""A step of the GPU's model is made of kernels: of those that the startup report names, and of nothing else.

The kernels are not run here but for the sampler's: what is launched and what torch does beside it depends on no value.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.kernels.conftest import DEVICE
from tests.kernels.test_gpu_model import CONFIG, NUMERICS, over_kernels, prompt
from tests.kernels.test_gpu_runner import KINDS, Next, draw
from tests.model.stepping import Planner, make_caches
from tests.runtime.test_batch import core
from torch.utils._python_dispatch import TorchDispatchMode

from dsv4._core import StepDone
from dsv4.engine.kernels import OPS, TORCH, TRITON, told
from dsv4.kernels.cuda.choice import Choice
from dsv4.model.gpu import attention
from dsv4.model.gpu.step import Bounds
from dsv4.model.inputs import StepInputs
from dsv4.runtime.gpu.runner import GpuRunner

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "dsv4"
pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="kernels are counted where they are interpreted")

NAMES = {op.name for op in OPS}
MEMORY = {  # torch's ops that compute nothing
    "empty", "empty_like", "new_empty", "view", "slice", "select", "flatten", "unsqueeze", "expand", "detach", "alias",
    "as_strided", "transpose", "permute", "t", "_unsafe_view", "unbind", "split", "reshape",
}  # fmt: skip
SITES = {  # where torch computes in a step -> the row of TORCH that says why
    "model/gpu/model.py:forward": "embedding, rows to sample",
    "model/norm_rope.py:at": "angles, compress plans",
    "kernels/compress/plan.py": "angles, compress plans",
    "model/gpu/index.py:select": "index slots of a long prompt",
    "runtime/gpu/runner.py:run": "forwarded tokens",
    "runtime/copies.py:copy_state": "state of checkpoints",
    "runtime/gpu/memory.py": "the step's arrays, the sampler's parameters, tokens",
    "runtime/gpu/sample.py": "the step's arrays, the sampler's parameters, tokens",
    "kernels/sample/sample.py": "the step's arrays, the sampler's parameters, tokens",
}
TYPES = {  # what the GPU's model and runner may take from the CPU's: types, and arithmetic of indices and angles
    "dsv4.model.caches", "dsv4.model.inputs", "dsv4.model.numerics", "dsv4.model.weights", "dsv4.runtime.batch",
    "dsv4.runtime.copies", "dsv4.runtime.sample", "dsv4.runtime.step", "dsv4.model.model.StepOutput",
    "dsv4.model.norm_rope.Angles", "dsv4.model.step.Frequencies", "dsv4.kernels.cache.reference.Layout",
}  # fmt: skip
ORIGINAL: dict[str, Any] = {}  # how a kernel is interpreted, before any test watched it
WAITS = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select"}


class Watch(TorchDispatchMode):
    """Kernels launched, torch's ops by site, and the files of ours whose functions ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, run: bool = False) -> None:
        super().__init__()
        interpreted = pytest.importorskip("triton.runtime.interpreter").InterpretedFunction
        ORIGINAL.setdefault("run", interpreted.run)
        self.kernels: set[str] = set()
        self.ops: set[tuple[str, str]] = set()
        self.files: set[str] = set()

        def launched(kernel: Any, *args: Any, **kwargs: Any) -> None:
            self.kernels.add(f"{kernel.fn.__module__}.{kernel.fn.__name__}".removeprefix("dsv4.kernels."))
            if run:
                ORIGINAL["run"](kernel, *args, **kwargs)

        monkeypatch.setattr(interpreted, "run", launched)

    def __enter__(self) -> Any:
        sys.setprofile(self._called)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        sys.setprofile(None)

    def _called(self, frame: Any, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(str(PACKAGE)) and frame.f_code.co_name != "<module>":
            self.files.add(path.removeprefix(f"{PACKAGE}/"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame: Any = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(str(PACKAGE)):
            if "triton" in frame.f_code.co_filename:  # a kernel that is interpreted
                return func(*args, **(kwargs or {}))
            frame = frame.f_back
        if frame is not None:
            at = frame.f_code.co_filename.removeprefix(f"{PACKAGE}/")
            self.ops.add((f"{at}:{frame.f_code.co_name}", func._schema.name.removeprefix("aten::")))
        return func(*args, **(kwargs or {}))

    @property
    def computes(self) -> set[tuple[str, str]]:
        """Sites and ops of torch that are no bookkeeping of memory."""
        return {(site, name) for site, name in self.ops if name not in MEMORY}

    def unexplained(self) -> set[tuple[str, str]]:
        """Those that no row of TORCH speaks for."""
        rows = {name for name, _ in TORCH}
        sites = {site for site, row in SITES.items() if row in rows}
        return {(at, op) for at, op in self.computes if at not in sites and at.partition(":")[0] not in sites}


class Steps:
    """One model over kernels that are not run."""

    def __init__(self) -> None:
        device = torch.device(DEVICE)
        self.model = over_kernels(device)
        self.planner = Planner(CONFIG.sliding_window, full=80, swa=300, slots=34)
        self.caches = make_caches(CONFIG, NUMERICS, self.planner)

    def run(self, watch: Watch, *pieces: tuple[str, list[int]]) -> None:
        inputs = self.planner.step(pieces, sample="last")
        bounds = Bounds(int(inputs.seq_lens.max()), max(len(ids) for _, ids in pieces))
        there = StepInputs(**{f.name: getattr(inputs, f.name).int() for f in dataclasses.fields(inputs)})
        with watch:
            self.model.forward(there, self.caches, bounds)


@pytest.fixture(scope="module")
def forward() -> Watch:
    """Prompts, long and short, then decoding."""
    with pytest.MonkeyPatch.context() as patched:
        watch, steps = Watch(patched), Steps()
        steps.run(watch, ("a", prompt(300, 1)), ("b", prompt(5, 2)))
        steps.run(watch, ("a", [3]), ("b", [4]), ("c", prompt(2100, 5)))
        steps.run(watch, ("a", [3]), ("b", [4]))
    return watch


def test_every_kernel_of_a_step_is_told_at_start_and_every_kernel_told_is_launched(
    forward: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Watch(monkeypatch, run=True)
    decode(sampling)
    said = {f"{file.replace('/', '.')}.{kernel}" for op in OPS for file, of in op.files.items() for kernel in of}
    assert forward.kernels | sampling.kernels == said
    for op in OPS:
        for file, kernels in op.files.items():
            source = (PACKAGE / "kernels" / f"{file}.py").read_text()
            assert all(f"def {kernel}(" in source for kernel in kernels), op
    monkeypatch.setattr("dsv4.engine.kernels._choice", lambda *_: Choice(TRITON, "there is no Hopper GPU"))
    report = dict(told("cuda"))
    assert report["index top-k"] == "_select (kernels/index/topk.py)"
    assert report.keys() > NAMES


def test_no_reference_runs_in_a_step(forward: Watch) -> None:
    assert not {file for file in forward.files if file.endswith("reference.py")}
    of_the_model = {file for file in forward.files if file.startswith("model/") and not file.startswith("model/gpu/")}
    assert of_the_model == {"model/norm_rope.py", "model/caches.py"}, "Angles.at, and sizes of a slot"


def test_torch_computes_nothing_in_a_step_but_what_is_listed(forward: Watch) -> None:
    assert forward.unexplained() == set()
    waits = {(site, op) for site, op in forward.ops if op in WAITS}
    assert waits == set(), "nothing is read back from the device"


def test_a_long_prompt_is_scored_part_by_part(forward: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(site.startswith("model/gpu/index.py") for site, _ in forward.computes)
    monkeypatch.setattr("dsv4.model.gpu.index.SCORE_BYTES", 4 * 100 * 40)
    watch, steps = Watch(monkeypatch), Steps()
    steps.run(watch, ("a", prompt(300, 1)))
    assert {op for site, op in watch.computes if site == "model/gpu/index.py:select"} == {"copy_"}
    assert watch.unexplained() == set()


def decode(watch: Watch) -> None:
    """Steps of the runner, two in flight, so that tokens are forwarded."""
    device = torch.device(DEVICE)
    filled, caches = core(max_steps_in_flight=2), object()
    runner = GpuRunner(Next(device), caches, filled, max_rows=8, vocab_size=1000, num_steps=2)  # type: ignore[arg-type]
    for n, params in enumerate(KINDS[:3]):
        number = filled.submit([3 + n, 4, 5], max_tokens=4)
        runner.begin(number, dataclasses.replace(draw(params, n), prompt=[3 + n, 4, 5]))
    flights: list[Any] = []
    for step in range(1, 14):
        plan = filled.plan(runner.memories[step % 2])
        if plan is not None:
            flights.append(plan)
        if flights and (plan is None or len(flights) == 2):
            done = flights.pop(0)
            with watch:
                result = runner.run(done)
            filled.advance([StepDone(done.step_id, result.tokens, result.non_finite)])
    runner.close()


def test_the_runner_adds_copies_and_forwarded_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, run=True)
    decode(watch)
    assert watch.unexplained() == set()
    assert not {file for file in watch.files if file.endswith("reference.py")}


def test_an_op_that_falls_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_torch(o: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> None:
        from dsv4.kernels.norm_rope.reference import rotate

        o.copy_(rotate(o.float(), *angles))

    monkeypatch.setattr(attention, "rotate_back", by_torch)
    watch, steps = Watch(monkeypatch), Steps()
    steps.run(watch, ("a", prompt(9, 1)))
    assert "kernels/norm_rope/reference.py" in watch.files
    assert "norm_rope.query_store._rotate_back" not in watch.kernels
    assert {site for site, _ in watch.unexplained()} >= {"kernels/norm_rope/reference.py:rotate"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dsv4."):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("dsv4."))


@pytest.mark.parametrize("folder", ["model/gpu", "runtime/gpu"])
def test_the_gpus_model_and_runner_import_no_reference(folder: str) -> None:
    for path in (PACKAGE / folder).glob("*.py"):
        for name in imports(path):
            inside = name.startswith(
                ("dsv4.model.gpu.", "dsv4.runtime.gpu.", "dsv4.config.", "dsv4.errors", "dsv4.types")
            )
            kernel = name.startswith("dsv4.kernels.") and ".reference" not in name
            listed = name in TYPES or name.rpartition(".")[0] in TYPES or name.startswith("dsv4._core.")
            assert inside or kernel or listed, f"{path.name} imports {name}"
