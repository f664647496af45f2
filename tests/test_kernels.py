"""The kernels against their plain twins, and what happens where they cannot be taken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import several
from igpt.attention import attend
from igpt.config import ModelConfig
from igpt.kernels import build
from igpt.kernels.activation import fast_quick_gelu, gelu_takes
from igpt.kernels.attention import attention_takes, fast_attention
from igpt.kernels.build import FLAGS, NO_TILES, load
from igpt.model import ImageGPT, quick_gelu
from igpt.objectives import AR
from igpt.parallel.sharding import draw_whole
from measured_memory import peak_bytes, resident_bytes

pytestmark = pytest.mark.usefixtures("two_threads")


def needs(dtype: torch.dtype, reason: str) -> pytest.MarkDecorator:
    """Skips where attention in `dtype` stays on plain PyTorch."""
    example = torch.zeros(1, 1, 2, 8, dtype=dtype)
    return pytest.mark.skipif(not attention_takes(example, example), reason=reason)


needs_bfloat16 = needs(torch.bfloat16, "no products in bfloat16, or no C++ compiler")
needs_compiler = needs(torch.float32, "no C++ compiler")
in_each_type = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.bfloat16, marks=needs_bfloat16, id="bfloat16"),
        pytest.param(torch.float32, marks=needs_compiler, id="float32"),
    ],
)
# Relative error of a result; plain PyTorch has 0.002 to 0.006, and 2e-7 to 6e-7.
ROUNDING = {torch.bfloat16: 0.01, torch.float32: 2e-6}


def heads(
    seed: int, *shape: int, fused: bool = False, dtype: torch.dtype = torch.bfloat16
) -> list[Tensor]:
    """Query, key and value [B, H, T, D]; fused: views of one product, as the model makes them."""
    B, H, T, D = shape
    generator = torch.Generator().manual_seed(seed)
    if fused:
        product = torch.randn(B, T, 3, H, D, generator=generator).to(dtype)
        return list(product.permute(2, 0, 3, 1, 4))
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


def exact(inputs: list[Tensor]) -> list[Tensor]:
    """The same numbers, to be computed with in float64."""
    return [x.detach().double().requires_grad_() for x in inputs]


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm().clamp(min=1e-6)).item()


@in_each_type
@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 3),
    H=st.integers(1, 3),
    T=st.integers(1, 130),
    D=st.sampled_from([1, 4, 5, 8, 16, 24, 32, 33, 48, 64, 80, 128]),
    causal=st.booleans(),
    fused=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example(B=2, H=2, T=64, D=64, causal=True, fused=True, seed=0)  # as presets have: nothing to pad
@example(B=1, H=3, T=96, D=128, causal=False, fused=True, seed=0)
@example(B=1, H=2, T=96, D=48, causal=True, fused=True, seed=0)
@example(B=1, H=2, T=1024, D=96, causal=True, fused=True, seed=0)
@example(B=2, H=1, T=70, D=192, causal=True, fused=False, seed=0)
@example(B=1, H=2, T=65, D=256, causal=True, fused=True, seed=0)  # the widest that is taken
@example(B=1, H=1, T=1024, D=256, causal=False, fused=False, seed=0)
def test_attention_gives_the_result_and_the_gradients_of_the_plain_path(
    dtype: torch.dtype, B: int, H: int, T: int, D: int, causal: bool, fused: bool, seed: int
) -> None:
    inputs = [x.requires_grad_() for x in heads(seed, B, H, T, D, fused=fused, dtype=dtype)]
    truth = exact(inputs)
    found = fast_attention(*inputs, causal)
    expected = F.scaled_dot_product_attention(*truth, is_causal=causal)
    assert found.dtype == dtype
    assert error(found, expected) < ROUNDING[dtype]
    change = torch.randn(expected.shape, generator=torch.Generator().manual_seed(seed + 1))
    change = change.to(dtype)
    gradients = torch.autograd.grad(found, inputs, change)
    truths = torch.autograd.grad(expected, truth, change.double())
    for gradient, other in zip(gradients, truths, strict=True):
        # With few tokens the gradients of scores may cancel, and what was rounded does not: of
        # 200,000 draws in bfloat16 the worst is 0.010 of this size, for PyTorch's own as well.
        size = other.norm() + change.double().norm() / T**0.5
        assert (gradient.double() - other).norm() < 1.5 * ROUNDING[dtype] * size


@pytest.mark.parametrize(
    ("dtype", "narrower"),
    [
        pytest.param(
            torch.bfloat16, ("attention", NO_TILES), marks=needs_bfloat16, id="vectors for tiles"
        ),
        pytest.param(
            torch.float32,
            ("attention_float32", "-mno-avx512f"),
            marks=needs_compiler,
            id="256 bits",
        ),
        pytest.param(
            torch.float32, ("attention_float32", "-mno-avx"), marks=needs_compiler, id="128 bits"
        ),
    ],
)
def test_what_lesser_processors_take_does_the_same(
    dtype: torch.dtype, narrower: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one that may have more."""
    lesser = load(*narrower)
    monkeypatch.setattr("igpt.kernels.attention._library", lambda _: lesser)
    sizes = [(70, 24, True), (64, 32, False), (33, 80, True), (96, 64, True)]
    sizes += [(1024, 96, True), (70, 192, True), (65, 256, False)]
    for T, D, causal in sizes:
        inputs = [x.requires_grad_() for x in heads(T, 2, 2, T, D, fused=True, dtype=dtype)]
        truth = exact(inputs)
        found = fast_attention(*inputs, causal)
        expected = F.scaled_dot_product_attention(*truth, is_causal=causal)
        assert error(found, expected) < ROUNDING[dtype]
        gradients = torch.autograd.grad(found.double().square().sum(), inputs)
        theirs = torch.autograd.grad(expected.square().sum(), truth)
        for gradient, other in zip(gradients, theirs, strict=True):
            assert error(gradient, other) < ROUNDING[dtype]


@in_each_type
def test_large_scores_and_a_long_picture_stay_finite_and_exact(dtype: torch.dtype) -> None:
    query, key, value = heads(0, 1, 2, 1024, 32, dtype=dtype)
    found = fast_attention(40 * query, key, value, True)
    expected = F.scaled_dot_product_attention(*exact([40 * query, key, value]), is_causal=True)
    # Scores of some hundreds keep five digits behind the point in float32.
    assert error(found, expected) < max(ROUNDING[dtype], 2e-5)


@in_each_type
def test_what_is_no_number_is_not_hidden(dtype: torch.dtype) -> None:
    query, key, value = heads(0, 1, 2, 40, 32, dtype=dtype)
    query[0, 1, 7] = float("nan")
    wrong = fast_attention(query, key, value, True).isnan()
    assert wrong[0, 1, 7].all()
    assert wrong.sum() == 32  # of no other position


@in_each_type
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("T", [36, 64])
def test_gradients_stay_finite_where_no_query_likes_any_key(
    dtype: torch.dtype, T: int, causal: bool
) -> None:
    """Beside scores far below zero, the zeros of the keys that fill up a block are large."""
    query, key, value = heads(0, 1, 1, T, 32, dtype=dtype)
    inputs = [x.requires_grad_() for x in (10 + query, -10 + key, value)]
    found = torch.autograd.grad(fast_attention(*inputs, causal).double().square().sum(), inputs)
    truth = exact(inputs)
    expected = F.scaled_dot_product_attention(*truth, is_causal=causal)
    for ours, theirs in zip(
        found, torch.autograd.grad(expected.square().sum(), truth), strict=True
    ):
        # With such inputs rounding alone is half of it: scores are 600 away from zero.
        assert error(ours, theirs) < (0.1 if dtype == torch.bfloat16 else 1e-3)


@needs_bfloat16
@pytest.mark.parametrize("shape", [(1,), (3, 17), (5, 7, 1024)])
def test_the_activation_and_its_gradient_are_those_of_the_plain_path(
    shape: tuple[int, ...],
) -> None:
    x = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[..., 0] = -200  # far on the side where its exponential overflows
    x = x.bfloat16().requires_grad_()
    assert gelu_takes(x)
    exact = x.detach().float().requires_grad_()
    found, expected = fast_quick_gelu(x), exact * torch.sigmoid(1.702 * exact)
    torch.testing.assert_close(found.float(), expected, rtol=0.005, atol=1e-5)
    found.backward(torch.ones_like(found))
    expected.backward(torch.ones_like(expected))
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), exact.grad, rtol=0.005, atol=1e-3)


@in_each_type
def test_they_are_well_formed_operators_of_pytorch(dtype: torch.dtype) -> None:
    inputs = [x.requires_grad_() for x in heads(0, 2, 2, 33, 16, dtype=dtype)]
    tolerance = 5 * ROUNDING[dtype]
    operator = torch.ops.igpt.attention.default
    torch.library.opcheck(operator, (*inputs, True), atol=tolerance, rtol=tolerance)
    if gelu_takes(inputs[0]):
        operator = torch.ops.igpt.quick_gelu.default
        torch.library.opcheck(operator, (inputs[0],), atol=tolerance, rtol=tolerance)


@in_each_type
def test_whoever_divides_the_work_the_result_is_the_same_to_the_bit(dtype: torch.dtype) -> None:
    inputs = heads(0, 3, 4, 70, 32, dtype=dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = fast_attention(*inputs, True)
        torch.set_num_threads(2)
        assert torch.equal(fast_attention(*inputs, True), alone)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(fast_attention(*(x[1:2] for x in inputs), True), alone[1:2])


def test_float64_stays_on_the_plain_path() -> None:
    query, key, value = heads(0, 2, 2, 40, 16, dtype=torch.float64)
    assert not attention_takes(query, key)
    plain = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert torch.equal(attend(query, key, value, True), plain)


@in_each_type
def test_a_compiled_function_takes_the_kernels_without_a_break(dtype: torch.dtype) -> None:
    query, key, value = heads(0, 2, 2, 40, 16, dtype=dtype)
    attention = torch.compile(lambda q, k, v: attend(q, k, v, True), fullgraph=True)
    assert torch.equal(attention(query, key, value), fast_attention(query, key, value, True))
    if not gelu_takes(value):
        return
    activation = torch.compile(quick_gelu, fullgraph=True)
    assert torch.equal(activation(value), fast_quick_gelu(value))


@needs_bfloat16
@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_in_bfloat16_learns_as_in_float32(compiled: bool) -> None:
    config = ModelConfig(n_layer=2, n_embd=32, n_head=2, vocab_size=16, n_positions=64)
    tokens = torch.randint(0, 16, (8, 64), generator=torch.Generator().manual_seed(0))
    curves = []
    for dtype in (torch.float32, torch.bfloat16):
        model = ImageGPT(config)
        model.init_weights(draw_whole(torch.Generator().manual_seed(0)))
        optimizer, objective = torch.optim.Adam(model.parameters(), lr=0.003), AR()
        losses = torch.compile(
            lambda x, objective=objective, model=model: objective(model, x), disable=not compiled
        )
        curve = []
        for _ in range(15):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = losses(tokens).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] < curves[0][0] - 0.05
    assert curves[1] == pytest.approx(curves[0], abs=0.01)


def memory_of_a_step(n_positions: int, dtype: torch.dtype) -> int:
    """Bytes of the tensors of a small model's step on a picture of so many tokens."""
    config = ModelConfig(n_layer=2, n_embd=64, n_head=2, vocab_size=16, n_positions=n_positions)
    model, tokens = ImageGPT(config), torch.zeros(1, n_positions, dtype=torch.long)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            AR()(model, tokens).mean().backward()

    return peak_bytes(step)


@in_each_type
def test_the_memory_of_training_grows_as_the_tokens_do(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory_of_a_step(1024, dtype) < 5 * memory_of_a_step(256, dtype)
    monkeypatch.setattr("igpt.attention.attention_takes", lambda *_: False)
    with sdpa_kernel(SDPBackend.MATH):  # keeps a number for every two tokens: it would be seen
        assert memory_of_a_step(1024, dtype) > 8 * memory_of_a_step(256, dtype)


@in_each_type
def test_the_attention_kernel_keeps_no_number_for_every_two_tokens_itself(
    dtype: torch.dtype,
) -> None:
    """What it takes by itself is none of PyTorch's tensors."""
    T = 8192
    inputs = [x.requires_grad_() for x in heads(0, 1, 1, T, 32, dtype=dtype)]
    assert resident_bytes(lambda: fast_attention(*inputs, True).sum().backward()) < T**2


SOURCES = sorted(path.name for path in Path(build.__file__).parent.glob("*.cpp"))
WITH_TILES = "-march=sapphirerapids"  # the first that has them, and products in bfloat16


def compile_with_tiles(*words: str) -> subprocess.CompletedProcess[str]:
    """As the kernels are compiled, but for a processor with tiles, and to nowhere."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler here")
    # As far as assembly: that an instruction is not for the processor is found no sooner.
    command = [compiler, *FLAGS, WITH_TILES, "-O0", "-S", "-o", os.devnull, *words]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def knows_tiles() -> None:
    """Skips where the compiler is for other processors, or older than tiles."""
    if compile_with_tiles("-x", "c++", os.devnull).returncode:
        pytest.skip("the compiler knows no processor with tiles")


@pytest.mark.usefixtures("knows_tiles")
@pytest.mark.parametrize(
    ("source", "flag"), [*((name, "") for name in SOURCES), ("attention.cpp", NO_TILES)]
)
def test_every_kernel_compiles_for_a_processor_with_tiles(source: str, flag: str) -> None:
    """Here too, where there may be none: what they hide from other processors is code as well."""
    done = compile_with_tiles(*flag.split(), str(Path(build.__file__).with_name(source)))
    assert done.returncode == 0, done.stderr


WHERE = """
import torch
from igpt.kernels.activation import gelu_takes
from igpt.kernels.attention import attention_takes
from igpt.attention import attend
from igpt.model import quick_gelu
x = torch.ones(1, 1, 4, 8, dtype=torch.bfloat16)
print(attention_takes(x, x), attend(x, x, x, True).shape == x.shape)
print(gelu_takes(x), quick_gelu(x).shape == x.shape)
"""


OTHERS = """
print(attention_takes(x.float(), x.float()))
import numpy
from igpt.kernels.palette import color_cells
print(color_cells(numpy.zeros(1 << 24, dtype=numpy.uint16)) is not None)
"""


@pytest.mark.parametrize(
    "environment",
    [
        {"IGPT_KERNELS": "0"},
        {"CXX": "no-such-compiler"},
        {"CXX": "false"},  # one that fails
        {"CXX": "c++ 'unfinished"},
        {"XDG_CACHE_HOME": "/proc/nowhere"},  # a folder that cannot be written
    ],
    ids=["switched off", "no compiler", "a broken compiler", "no command", "no cache"],
)
def test_where_it_cannot_be_compiled_the_plain_path_is_taken(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = several.script(WHERE + OTHERS, **{"XDG_CACHE_HOME": str(tmp_path), **environment})
    assert done.out.split() == ["False", "True", "False", "True", "False", "False"]
    assert len(done.err.splitlines()) <= 4  # one a kernel


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What a compiler that makes empty files was asked for."""
    asked: list[Path] = []

    def compile_nothing(command: list[str], **_options: object) -> object:
        if "-o" in command:
            asked.append(Path(command[command.index("-o") + 1]))
            asked[-1].touch()
        return subprocess.CompletedProcess(command, 0, "version", "")

    monkeypatch.setattr(subprocess, "run", compile_nothing)
    monkeypatch.setattr("shutil.which", lambda _name: "/compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("IGPT_KERNELS", raising=False)
    return asked


@pytest.mark.parametrize("cache", [True, False])
def test_a_user_without_a_home_needs_another_cache(
    compiled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bool
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    if not cache:
        monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert load.__wrapped__("attention") is None  # what is empty is no library
    assert [path.parent for path in compiled] == [tmp_path / "igpt"] * cache


def test_a_damaged_library_is_made_anew(tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler here")
    # Flags are no part of the compiler's name.
    env = {"XDG_CACHE_HOME": str(tmp_path), "CXX": "c++ -Wall"}
    words = "from igpt.kernels.build import load; print(load('palette') is not None)"
    for _ in range(2):
        done = several.script(words, **env)
        assert done.out == "True\n", done.err
        (library,) = (tmp_path / "igpt").iterdir()
        assert library.stat().st_size > 1000
        library.write_bytes(b"cut short")


def test_whoever_compiles_does_so_under_a_name_of_its_own(
    compiled: list[Path], tmp_path: Path
) -> None:
    for _ in range(2):
        load.__wrapped__("attention")
        (library,) = (tmp_path / "igpt").iterdir()
        library.unlink()
    assert len(set(compiled)) == 2


@needs_bfloat16
def test_processes_that_compile_at_once_leave_one_library_of_each_kernel(tmp_path: Path) -> None:
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", WHERE]
    started = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(2)]
    for process in started:
        out, _ = process.communicate(timeout=120)
        assert out.split() == [b"True"] * 4
    libraries = sorted((tmp_path / "igpt").iterdir())
    assert [path.name.partition("-")[0] for path in libraries] == ["activation", "attention"]
    assert all(path.suffix == ".so" for path in libraries)
