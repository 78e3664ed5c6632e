"""Peak memory is known beforehand, and grows with nothing that it should not grow with."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.blocks import discover_blocks
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.data import Arrays, ToInput
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.ihvp import BACKENDS, Damping, Exact, Gram, Identity, LoGra, gram
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.parallel import Sharded
from influence_ssl_jax.runs.score import choose_batch_size
from influence_ssl_jax.scoring import memory
from influence_ssl_jax.scoring.fitting import shapes
from influence_ssl_jax.scoring.memory import Memory, check_fit, estimate_memory, host_memory
from influence_ssl_jax.scoring.scores import Scorer, Scoring
from influence_ssl_jax.scoring.stream import stream
from tests import problems
from tests.ihvp.fitted import SMALL

SIZE, CHANNELS, DRAWS = 12, 32, 2


class Wide(nn.Module):
    """Two convolutions whose patches, and whose weights, are many more numbers than what they read and write."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        x = jnp.tanh(nn.Conv(CHANNELS, (3, 3), name="first")(x))
        x = jnp.tanh(nn.Conv(CHANNELS, (3, 3), strides=(2, 2), name="second")(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


WIDE: nn.Module = Wide()


def scorer_of(batch, dtype=jnp.float32, module=WIDE):
    problem = problems.problem(CosineDistance(), module=module, size=batch, image=SIZE, channels=3)
    problem = dataclasses.replace(problem, params=trees.astype(problem.params, dtype))
    backend = LoGra(rank=2)
    leaves, structure, _ = shapes(problem, backend, 0)
    ones = jax.tree.unflatten(structure, [jnp.ones(leaf.shape, leaf.dtype) for leaf in leaves])
    return Scorer.of(problem, ones, backend, Scoring(draws=DRAWS, batch_size=batch)), problems.first_batch(problem)


def sizes(jaxpr):
    """Numbers in every array of a program, those of inner programs too."""
    for equation in jaxpr.eqns:
        for out in equation.outvars:
            yield int(np.prod(out.aval.shape))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)


def test_no_array_is_examples_times_parameters_or_patches_times_positions():
    scorer, batch = scorer_of(8)

    def form(batch):
        measured = measure(scorer.measurement, scorer.problem.params, scorer.problem.frozen, batch, DRAWS)
        return scorer.backend.draw_gram(scorer.state, measured.gradients, scorer.damping).values

    largest = max(sizes(jax.make_jaxpr(form)(batch).jaxpr))
    images = 2 * DRAWS * 8
    read = images * SIZE * SIZE * CHANNELS
    assert largest <= read
    assert read < 8 * DRAWS * trees.size(scorer.problem.params)
    assert read < images * (SIZE // 2) ** 2 * 9 * CHANNELS


def test_gradient_norms_form_patches_of_few_examples_at_a_time(monkeypatch):
    scorer, batch = scorer_of(8)

    def norms(batch):
        measured = measure(scorer.measurement, scorer.problem.params, scorer.problem.frozen, batch, DRAWS)
        return measured.gradients.gram(scorer.blocks)

    whole = jax.jit(norms)(batch)
    patches = DRAWS * 2 * SIZE * SIZE * (9 * 3 + 1)
    monkeypatch.setattr(cut, "ENTRIES", patches)  # one example of the first layer, fewer of the second
    largest = max(sizes(jax.make_jaxpr(lambda batch: norms(batch))(batch).jaxpr))
    np.testing.assert_allclose(jax.jit(lambda batch: norms(batch))(batch), whole, rtol=1e-5)
    assert largest <= 2 * DRAWS * 8 * SIZE * SIZE * CHANNELS


@pytest.mark.slow
def test_the_formula_bounds_what_the_compiled_program_allocates(monkeypatch):
    monkeypatch.setattr(cut, "ENTRIES", 1)
    scorer, batch = scorer_of(32)
    held = scorer.problem.params, scorer.problem.frozen
    need = estimate_memory(scorer.measurement, *held, scorer.backend, scorer.state, (SIZE, SIZE, 3), DRAWS)
    fixed = need.fixed  # with the patches of one example
    leaves, structure = jax.tree.flatten((scorer, batch))

    def scored(leaves):
        scorer, batch = jax.tree.unflatten(structure, leaves)
        return tuple(scorer(batch))

    memory_used = jax.jit(scored).lower(leaves).compile().memory_analysis()
    took = memory_used.temp_size_in_bytes + memory_used.argument_size_in_bytes
    assert took <= fixed + 32 * need.per_example <= 3 * took


class Fat(nn.Module):
    """Two linear layers with many more weights than what they read and write."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        return nn.Dense(4)(jnp.tanh(nn.Dense(100)(x.reshape(x.shape[0], -1))))


@pytest.mark.parametrize("kind", BACKENDS, ids=lambda kind: kind.__name__)
def test_what_a_form_holds_is_known_beforehand(kind, monkeypatch):
    """What XLA allocates for the form of four examples: at most what is counted, and at least a third of it.

    Gram forms gradients for as many examples as there is room for, here for one.
    """
    backend = dataclasses.replace(SMALL[kind], max_parameters=2**20) if kind is Exact else SMALL[kind]
    problem = problems.problem(
        CosineDistance(), "fisher", module=Fat(), num_batches=1, size=4, image=8, channels=3, samples=1
    )
    problem = dataclasses.replace(problem, params=trees.astype(problem.params, jnp.float32))
    parameters = trees.size(problem.params)
    monkeypatch.setattr(cut, "ENTRIES", DRAWS * parameters)
    leaves, structure, _ = shapes(problem, backend, 0)
    images, batches = jax.tree.flatten(problems.first_batch(problem))
    counted = []

    def form(leaves, params, images):
        batch = jax.tree.unflatten(batches, images)
        state, damping = jax.tree.unflatten(structure, leaves), jnp.ones((), jnp.float32)
        counted.append(backend.workspace(state, parameters))
        gradients = measure(problem.objective, params, problem.frozen, batch, DRAWS).gradients
        resolved = jax.tree.map(lambda mean: mean * 0 + damping, backend.mean_eigenvalue(state))
        return backend.draw_gram(state, gradients, resolved).values

    lowered = jax.jit(form).lower(leaves, problem.params, images)
    took = lowered.compile().memory_analysis().temp_size_in_bytes / 4
    fixed, per_draw = counted[0]
    if kind is Gram:
        fixed += 4 * cut.ENTRIES
    activations = 2 * memory.LIVE * (8 * 8 * 3 * 2 + 204)
    vectors = fixed + 4 * DRAWS * per_draw
    assert took <= vectors + 4 * DRAWS * activations
    assert vectors <= 3 * took, (vectors / parameters, took / parameters)


@pytest.mark.parametrize(("storage", "width"), [("working", 4), ("bfloat16", 2)])
def test_gram_keeps_a_number_for_each_row_and_parameter_and_is_refused_beforehand(monkeypatch, storage, width):
    problem = problems.problem(CosineDistance(), "fisher", module=Wide(), size=8, image=SIZE, channels=3, samples=2)
    problem = dataclasses.replace(problem, params=trees.astype(problem.params, jnp.float32))
    backend, rows, parameters = Gram(storage=storage), 2 * 8 * 2, trees.size(problem.params)
    leaves, _, lengths = shapes(problem, backend, 0)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert 0 <= held - rows * parameters * width - 4 * (parameters + 4 * rows**2) < 100 * width * rows
    monkeypatch.setattr(memory, "available_memory", lambda: (held, "cpu"))
    check_fit(leaves, lengths, backend)
    monkeypatch.setattr(memory, "available_memory", lambda: (held + 1000, "cpu"))
    check_fit(leaves, lengths, backend, held=1000)
    with pytest.raises(InfluenceError, match=r"of which the encoders before it need 0\.0 GiB: score fewer together"):
        check_fit(leaves, lengths, backend, held=1001)
    monkeypatch.setattr(memory, "available_memory", lambda: (held - 1, "cpu"))
    monkeypatch.setattr(memory, "BANDWIDTH", 1e4)
    file = sum(
        leaf.size * 4 for leaf, length in zip(leaves, lengths, strict=True) if length
    )  # with what bfloat16 loses
    seconds = f"{file * width / 4 / 1e4:.0f} s"
    with pytest.raises(
        InfluenceError, match=rf"Gram keeps .*--backend\.rows disk.* of {file / 2**30:.1f} GiB.*\({seconds}"
    ):
        check_fit(leaves, lengths, backend)
    with pytest.raises(InfluenceError, match="Gram keeps") as refused:
        check_fit(leaves, lengths, dataclasses.replace(backend, rows="disk"))
    assert "rows disk" not in str(refused.value)


def test_gram_forms_the_gradients_of_few_examples_at_a_time(monkeypatch):
    """With room for two examples' patches and gradients of the second layer no array holds all eight's gradients."""
    data = {"num_batches": 1, "size": 8, "image": SIZE, "channels": 3}
    problem = problems.problem(CosineDistance(), "empirical_fisher", module=Wide(), **data)
    backend, batch = Gram(), problems.first_batch(problem)
    positions, inputs = 2 * DRAWS * 36, 9 * CHANNELS + 1
    monkeypatch.setattr(cut, "ENTRIES", 2 * (positions * inputs + DRAWS * inputs * CHANNELS))

    def forms(problem, batch):
        leaves, structure, _ = shapes(problem, backend, 0)
        state = jax.tree.unflatten(structure, [jnp.ones(leaf.shape, leaf.dtype) for leaf in leaves])
        measured = measure(problem.objective, problem.params, problem.frozen, batch, DRAWS).gradients
        return backend.draw_gram(state, measured, jnp.ones((), jnp.float64)).values

    every = set(sizes(jax.make_jaxpr(forms)(problem, batch).jaxpr))
    assert 2 * DRAWS * inputs * CHANNELS in every
    assert max(every) < 8 * DRAWS * inputs * CHANNELS


@pytest.mark.parametrize(("rows", "examples"), [(8, 1), (48, 1), (96, 2), (200, 4), (1000, 8)])
def test_gram_takes_more_examples_at_once_the_more_rows_it_keeps(monkeypatch, rows, examples):
    """There is room for a sixth as many gradients as rows; patches share it.

    Here an example has two gradients, and its patches take more than twice the room of these.
    """
    monkeypatch.setattr(cut, "ENTRIES", 1)
    problem = problems.problem(
        CosineDistance(), "empirical_fisher", module=Wide(), num_batches=1, size=8, image=SIZE, channels=3
    )
    block = discover_blocks(problem, "error")[1]
    inputs, outputs = block.inputs, block.outputs
    spans, span = gram._cut(block.size)
    held = Sharded(jnp.zeros((spans, rows, span)), spans)

    def products(batch):
        measured = measure(problem.objective, problem.params, problem.frozen, batch, DRAWS).gradients
        return gram._map_examples(block, measured, functools.partial(gram._inner, held, False), held, None)

    every = set(sizes(jax.make_jaxpr(products)(problems.first_batch(problem)).jaxpr))
    several = [n for n in (1, 2, 4, 8) if n * DRAWS * inputs * outputs in every]
    assert several[-1] == examples
    patches = DRAWS * inputs * (2 * 36 + outputs)
    assert examples * patches <= max(patches, rows // gram.ROWS_PER_GRADIENT * block.size)


def test_the_batch_is_the_largest_power_of_two_in_half_of_the_memory_that_is_free():
    need = Memory(fixed=1000, per_example=10)
    assert need.batch_size(1000 + 2 * 16 * 10, "gpu") == 16
    assert need.batch_size(1000 + 2 * 16 * 10 - 1, "gpu") == 8
    assert need.batch_size(1000 + 2 * 16 * 10 + 500, "gpu", held=500) == 16
    assert need.batch_size(1000 + 2 * 16 * 10 + 500, "gpu", held=501) == 8
    assert need.batch_size(10**12, "gpu") == 512
    assert need.batch_size(10**12, "cpu") == 64
    assert need.batch_size(0, "cpu") == 1


def test_a_batch_size_that_was_chosen_changes_no_score_and_one_program_serves_all_batches():
    scorer, _ = scorer_of(4, jnp.float64, problems.Small())  # in float32 other kernels for another size differ by 1e-5
    chosen = Scorer.of(scorer.problem, scorer.state, scorer.backend, Scoring(draws=DRAWS), scorer.measurement)
    assert chosen.batch_size == 64
    pixels = np.random.default_rng(0).integers(0, 256, (10, SIZE, SIZE, 3), dtype=np.uint8)

    def scores(of):
        parts = stream(of, Arrays(pixels).open(), ToInput(SIZE, SIZE))
        return np.concatenate([part.table["score"].to_numpy() for part in parts])

    before = Scorer.__call__._cache_size()
    in_memory = scores(scorer)  # two batches of four and one of two
    assert Scorer.__call__._cache_size() == before + 1
    np.testing.assert_allclose(scores(chosen), in_memory, rtol=1e-9)


class Crowded(Scorer):
    """A device with room for so many images at a time; more of them fail as XLA fails."""

    room = 0
    said = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."

    def __call__(self, batch):
        self.tried.append(len(batch.index))
        if len(batch.index) > self.room:
            raise jax.errors.JaxRuntimeError(self.said)


@functools.cache
def fitted_identity():
    problem, backend = problems.problem(CosineDistance(), module=problems.Linear(), image=3), Identity(probes=1)
    return problem, backend, jax.jit(backend.fit)(problem, jax.random.key(0))


def crowded(**of_device):
    problem, backend, state = fitted_identity()
    held = (problem, state, backend.resolve(state, Damping()), problem.objective, backend, Scoring(batch_size=16))
    return type("Device", (Crowded,), {**of_device, "tried": []})(*held, state.blocks)


def test_a_batch_that_runs_out_of_memory_is_halved_until_one_has_room(caplog):
    device = crowded(room=5)
    assert choose_batch_size(device, None).batch_size == 4
    assert device.tried == [16, 8, 4]
    assert [line.message for line in caplog.records] == [
        "batches of 16 images run out of memory; trying 8",
        "batches of 8 images run out of memory; trying 4",
    ]


def test_a_device_without_room_for_one_image_is_refused_and_other_failures_are_not_taken_for_that():
    with pytest.raises(InfluenceError, match="out of memory while it scores one image at a time"):
        choose_batch_size(crowded(), None)
    broken = crowded(said="INTERNAL: a kernel failed")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        choose_batch_size(broken, None)
    assert broken.tried == [16]


GIB = 2**30


@pytest.fixture
def root(tmp_path):
    """A host with 1 TiB free, as the kernel tells of it."""
    (tmp_path / "proc/self").mkdir(parents=True)
    write(tmp_path, "proc/meminfo", f"MemTotal: {2**30} kB\nMemAvailable: {2**30} kB\n")
    write(tmp_path, "proc/self/statm", "100 0 0\n")
    return tmp_path


def write(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_without_control_groups_the_host_is_the_bound(root):
    assert 0 < host_memory(root) <= 2**40
    assert host_memory(root / "nothing there") >= host_memory(root)


def test_the_limit_of_a_group_of_version_2_counts_and_so_does_one_above_it(root):
    write(root, "proc/self/cgroup", "0::/job/step\n")
    write(root, "sys/fs/cgroup/job/step/memory.max", "max\n")
    write(root, "sys/fs/cgroup/job/memory.max", f"{GIB}\n")
    assert host_memory(root) == GIB
    write(root, "sys/fs/cgroup/job/step/memory.max", f"{GIB // 2}\n")
    assert host_memory(root) == GIB // 2


def test_the_limit_of_a_group_of_version_1_counts(root):
    write(root, "proc/self/cgroup", "4:cpu,cpuacct:/job\n3:memory:/job\n")
    write(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", f"{GIB}\n")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")
    assert host_memory(root) == GIB


def test_what_other_processes_hold_is_not_there(root):
    write(root, "proc/meminfo", f"MemTotal: {2**30} kB\nMemAvailable: {GIB // 1024} kB\n")
    assert host_memory(root) == GIB
