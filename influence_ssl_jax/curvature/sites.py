"""Find where a network uses its parameters, from one example's jaxpr.

This works for any framework. The network is traced for one image. A parameter keeps its *origin* through operations
that are linear in it and that no image enters. An operation that is linear in such a value and also reads the image
is a *site*: its other operand, and the gradient with respect to its result, give the parameter's gradient. A
parameter with any other use is *loose*. The trace is of one example and is then mapped over examples, so it does not
matter which axis is that of the examples.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.matrices import LAYOUTS, Layout, LayoutStep, Matrix, layout_step, matrix_of
from influence_ssl_jax.nets.convolution import conv_general_dilated
from influence_ssl_jax.nets.network import refuse_params_in
from influence_ssl_jax.types import Frozen, Params, PyTree

Embed: TypeAlias = Callable[[Params, Frozen, Array], Array]
"""`(params, frozen, images [batch, height, width, channels]) -> embeddings [batch, width]`; hashable."""

JOINTLY_LINEAR: dict[str, tuple[int, ...] | None] = {
    "add": (0, 1),
    "add_any": (0, 1),
    "sub": (0, 1),
    "neg": (0,),
    "concatenate": None,
    "pad": (0, 1),
    "reduce_sum": (0,),
    "cumsum": (0,),
    "dynamic_update_slice": (0, 1),
    "stack": None,
    **dict.fromkeys(LAYOUTS, (0,)),
}
"""Operations that are linear in all operands at these positions together (None: in all operands)."""

SEPARATELY_LINEAR: dict[str, tuple[int, ...]] = {
    "mul": (0, 1),
    "div": (0,),
    "dot_general": (0, 1),
    "conv_general_dilated": (0, 1),
    "canonical_convolution": (0, 1),
    "gather": (0,),
    "dynamic_slice": (0,),
}
"""Operations that are linear in one operand if the others are constant."""

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
"""Calls that are entered if a parameter is inside, and the setting that holds the called program.

`custom_jvp` and `custom_vjp` are not among them: their derivative is not that of their body, so a parameter inside is
loose.
"""

UNROLLED = 128
"""The largest number of loop steps that are written out; the parameters of a longer loop are loose."""


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One operation of the flattened program.

    Attributes:
        name: Name of the primitive.
        params: Its settings.
        inputs: Numbers of the values that it reads.
        outputs: Numbers of the values that it writes.
        evaluate: The function that computes the outputs.
        depends: Whether it reads the image, directly or through other operations.
    """

    name: str
    params: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    evaluate: Callable[[Sequence[Any]], list[Array]]
    depends: bool


@dataclasses.dataclass(frozen=True)
class Step:
    """One linear operation between a parameter and the site that uses it.

    Attributes:
        instruction: Number of the operation.
        position: Number of its operand that comes from the parameter.
        layout: The operation as a change of layout; None if it is more than that.
    """

    instruction: int
    position: int
    layout: LayoutStep | None


Chain: TypeAlias = tuple[Step, ...]
Values: TypeAlias = dict[int, Any]
"""Arrays by the numbers of their values; literals of the program are arrays of NumPy."""


@dataclasses.dataclass(frozen=True)
class Site:
    """One use of one parameter.

    Attributes:
        leaf: Number of the parameter among the leaves of the tree.
        chain: The operations between the parameter and the site: linear, and without the image.
        instruction: Number of the site's operation.
        position: Number of its operand that comes from the parameter.
        slot: Number of the recorded gradient, which is that with respect to the operation's result.
        matrix: The operation as a product of rows with a matrix; None if it is none.
        layout: How the parameter becomes that matrix; None if that is more than a change of layout.
        bias: The leaf that is added to the result of the matrix immediately, if any: it shares the gradient.
    """

    leaf: int
    chain: Chain
    instruction: int
    position: int
    slot: int
    matrix: Matrix | None = None
    layout: Layout | None = None
    bias: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A network of one example as a flat list of operations.

    Attributes:
        instructions: All operations in order.
        live: Numbers of the operations that the embedding depends on.
        constants: Known values, by number.
        parameters: Numbers of the parameters' values.
        frozen: Numbers of the frozen values.
        image: Number of the image.
        output: Number of the embedding.
        avals: Shape and dtype of every value.
        depends: Numbers of the values that the image enters.
        sites: Uses of parameters that are not loose, in order.
        slots: Numbers of the operations whose results have recorded gradients.
        loose: The reason for each loose parameter: the operation that is not linear in it.
        read: Numbers of the parameters that the embedding depends on.
    """

    instructions: tuple[Instruction, ...]
    live: frozenset[int]
    constants: dict[int, Any]
    parameters: tuple[int, ...]
    frozen: tuple[int, ...]
    image: int
    output: int
    avals: dict[int, Any]
    depends: frozenset[int]
    sites: tuple[Site, ...]
    slots: tuple[int, ...]
    loose: dict[int, str]
    read: frozenset[int]

    def operands(self, site: Site) -> tuple[int, ...]:
        """Return the numbers of the values to record for a site.

        These are the operands, other than the parameter, in which the operation is not jointly linear with it.
        """
        instruction = self.instructions[site.instruction]
        joint = _jointly_linear(instruction)
        return tuple(v for k, v in enumerate(instruction.inputs) if k != site.position and k not in joint)

    @functools.cached_property
    def recorded(self) -> tuple[int, ...]:
        """Numbers of the recorded values that depend on the image, each once."""
        numbers = dict.fromkeys(v for site in self.sites for v in self.operands(site) if v in self.depends)
        return tuple(numbers)

    def shape(self, instruction: int) -> tuple[int, ...]:
        """Return the shape of an operation's result."""
        return self.avals[self.instructions[instruction].outputs[0]].shape

    def dtype(self, instruction: int) -> Any:
        """Return the dtype of an operation's result."""
        return self.avals[self.instructions[instruction].outputs[0]].dtype

    def fixed(self, params: Params, frozen: Frozen) -> Values:
        """Compute the values that no image enters."""
        values: Values = dict(self.constants)
        values.update(zip(self.parameters, jax.tree.leaves(params), strict=True))
        values.update(zip(self.frozen, jax.tree.leaves(frozen), strict=True))
        for number in sorted(self.live):
            instruction = self.instructions[number]
            if not instruction.depends:
                _execute(instruction, values)
        return values

    def forward(
        self, fixed: Values, image: Float[Array, "height width channels"], zeros: list[Array]
    ) -> tuple[Float[Array, " embedding"], list[Array]]:
        """Embed one image, with `zeros` added to the results of the sites.

        Args:
            fixed: The result of `fixed`.
            image: The image.
            zeros: One array for each slot.

        Returns:
            The embedding and the recorded operands.
        """
        values = dict(fixed)
        values[self.image] = image
        zero_of = dict(zip(self.slots, zeros, strict=True))
        for number in sorted(self.live):
            instruction = self.instructions[number]
            if instruction.depends:
                _execute(instruction, values)
                if number in zero_of:
                    values[instruction.outputs[0]] = values[instruction.outputs[0]] + zero_of[number]
        return values[self.output], [values[number] for number in self.recorded]

    def gradient(self, site: Site, fixed: Values, operands: Sequence[Any], gradient: Array) -> Float[Array, "*leaf"]:
        """Compute a parameter's gradient through one site, for one example.

        Args:
            site: The site.
            fixed: The result of `fixed`.
            operands: The values of `operands(site)`.
            gradient: Gradient with respect to the site's result.
        """
        pulled = self._pull_back(Step(site.instruction, site.position, None), operands, gradient)
        for step in reversed(site.chain):
            if step.layout is not None:
                pulled = step.layout.transpose(pulled)
            else:
                instruction = self.instructions[step.instruction]
                joint = _jointly_linear(instruction)
                others = [fixed[v] for k, v in enumerate(instruction.inputs) if k != step.position and k not in joint]
                pulled = self._pull_back(step, others, pulled)
        return pulled

    def _pull_back(self, step: Step, operands: Sequence[Any], gradient: Array) -> Array:
        """Apply the transposed operation.

        It is the transpose with respect to all operands in which the operation is jointly linear.
        """
        instruction = self.instructions[step.instruction]
        free = sorted({step.position, *_jointly_linear(instruction)})
        exact = instruction.name in _WIDENED
        dtype = self.avals[instruction.inputs[step.position]].dtype
        wide = jnp.promote_types(dtype, jnp.float32)

        def widen(value: Any) -> Any:
            return value.astype(wide) if exact and jnp.issubdtype(value.dtype, jnp.floating) else value

        def operation(*linear: Array) -> Array:
            moving, fixed = iter(linear), iter(operands)
            values = [next(moving) if k in free else widen(next(fixed)) for k in range(len(instruction.inputs))]
            return _WIDENED[instruction.name](*values) if exact else instruction.evaluate(values)[0]

        likes = [jax.ShapeDtypeStruct(self.avals[instruction.inputs[k]].shape, wide if exact else dtype) for k in free]
        written = jax.eval_shape(operation, *likes)
        pulled = jax.linear_transpose(operation, *likes)(gradient.astype(written.dtype))
        return pulled[free.index(step.position)].astype(wide)


_WIDENED: dict[str, Callable[..., Array]] = {"mul": jnp.multiply, "add": jnp.add, "sub": jnp.subtract}
"""Operations that are transposed in at least 32 bits, because their transposes sum over positions."""


def _execute(instruction: Instruction, values: dict[int, Any]) -> None:
    """Compute an operation and store its results."""
    out = instruction.evaluate([values[number] for number in instruction.inputs])
    values.update(zip(instruction.outputs, out, strict=True))


def _jointly_linear(instruction: Instruction) -> tuple[int, ...]:
    """Return the operands in which an operation is jointly linear."""
    every = tuple(range(len(instruction.inputs)))
    if instruction.name == "select_n":
        return every[1:]
    positions = JOINTLY_LINEAR.get(instruction.name, ())
    return every if positions is None else positions


def leaf_paths(params: Params) -> list[tuple[str, ...]]:
    """Return the path of every parameter, in the order of `jax.tree.leaves`.

    Examples:
        >>> from influence_ssl_jax.curvature.sites import leaf_paths
        >>> leaf_paths({"dense": {"bias": 0.0, "kernel": 0.0}})
        [('dense', 'bias'), ('dense', 'kernel')]
    """
    whole = [tuple(map(_word, path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    # An nnx variable is a node with one child `value`, which is not part of a parameter's name.
    short = [path[:-1] if len(path) > 1 and path[-1] == "value" else path for path in whole]
    return short if len(set(short)) == len(short) else whole


def _word(key: Any) -> str:
    """Return the name of one step of a path."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def program_of(network: Embed, params: Params, frozen: Frozen, image_shape: tuple[int, ...]) -> Program:
    """Trace a network for one image and find its parameters' uses.

    The same network is traced only once.

    Args:
        network: A hashable pure function.
        params: The parameters, or their shapes.
        frozen: The other variables that the network reads, or their shapes.
        image_shape: [height, width, channels].

    Raises:
        StructureError: If `frozen` has an entry "params", which some networks would read in place of the parameters.

    Examples:
        The kernel of a linear network has one site, a product of rows with a matrix of 2 inputs and 3 outputs:

        >>> import jax.numpy as jnp
        >>> import influence_ssl_jax as isj
        >>> from influence_ssl_jax.curvature.sites import program_of
        >>> from influence_ssl_jax.nets.linear import Linear
        >>> params = {"dense": {"kernel": jnp.zeros((2, 3))}}
        >>> program = program_of(isj.Network(Linear(3)), params, {}, (1, 2, 1))
        >>> [(site.leaf, site.matrix.inputs, site.matrix.outputs) for site in program.sites]
        [(0, 2, 3)]
    """
    refuse_params_in(frozen)
    dtype = jax.tree.leaves(params)[0].dtype
    names = ("jax_enable_x64", "jax_default_matmul_precision")
    settings = (*(getattr(jax.config, name) for name in names), jax.default_backend())
    return _trace(network, _Shapes.of(params), _Shapes.of(frozen), tuple(image_shape), dtype, settings)


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """The shapes and types of a tree, hashable."""

    structure: Any
    leaves: tuple[tuple[tuple[int, ...], Any], ...]

    @classmethod
    def of(cls, tree: PyTree) -> "_Shapes":
        """Read the shapes and types of a tree."""
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple((jnp.shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves))

    @property
    def tree(self) -> PyTree:
        """The tree with shapes in place of arrays."""
        return jax.tree.unflatten(self.structure, [jax.ShapeDtypeStruct(*leaf) for leaf in self.leaves])


@functools.lru_cache(maxsize=64)
def _trace(
    network: Embed,
    params: _Shapes,
    frozen: _Shapes,
    image_shape: tuple[int, ...],
    dtype: Any,
    settings: Hashable,
) -> Program:
    """Trace a network and find the uses of its parameters."""
    del settings  # part of the cache key: a trace depends on them

    def embed(params: Params, frozen: Frozen, image: Array) -> Array:
        return network(params, frozen, image[None])[0]

    image = jax.ShapeDtypeStruct(image_shape, dtype)
    return _Builder().program(
        jax.make_jaxpr(embed)(params.tree, frozen.tree, image), len(params.leaves), len(frozen.leaves)
    )


class _Builder:
    """The state of flattening a jaxpr and following the parameters through it."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.constants: dict[int, Any] = {}
        self.avals: dict[int, Any] = {}
        self.depends: set[int] = set()
        self.parts: dict[int, tuple[tuple[int, Chain], ...]] = {}
        self.reasons: list[tuple[int, str, int | None]] = []
        self.sites: list[Site] = []

    def program(self, closed: core.ClosedJaxpr, parameters: int, frozen: int) -> Program:
        """Flatten a traced network.

        Args:
            closed: The jaxpr of one image.
            parameters: Number of leaves of the parameters, the first inputs.
            frozen: Number of frozen leaves, the inputs after them.
        """
        numbers = [self.value(v.aval) for v in closed.jaxpr.invars]
        for leaf in range(parameters):
            self.parts[numbers[leaf]] = ((leaf, ()),)
        self.depends.add(numbers[-1])
        (output,) = self.walk(closed.jaxpr, closed.consts, numbers)
        self.loosen([output], "the embedding itself", None)
        live, needed = set(), {output}
        for number in reversed(range(len(self.instructions))):
            instruction = self.instructions[number]
            if needed & set(instruction.outputs):
                live.add(number)
                needed |= set(instruction.inputs)
        loose: dict[int, str] = {}
        for leaf, reason, number in self.reasons:
            used = number is None or number in live
            if used and (leaf not in loose or reason == "while"):  # the first reason, or the one without a remedy
                loose[leaf] = reason
        sites = [site for site in self.sites if site.instruction in live and site.leaf not in loose]
        consumers: dict[int, list[int]] = {output: [-1]}
        for number in live:
            for value in self.instructions[number].inputs:
                consumers.setdefault(value, []).append(number)
        last = {site.instruction: self.last_equal(site.instruction, consumers) for site in sites}
        slots = tuple(dict.fromkeys(last[site.instruction] for site in sites))
        sites = [dataclasses.replace(site, slot=slots.index(last[site.instruction])) for site in sites]
        sites = [self.as_matrix(site) for site in sites]
        return Program(
            tuple(self.instructions),
            frozenset(live),
            self.constants,
            tuple(numbers[:parameters]),
            tuple(numbers[parameters : parameters + frozen]),
            numbers[-1],
            output,
            self.avals,
            frozenset(self.depends),
            tuple(self.with_bias(site, sites, consumers) for site in sites),
            slots,
            loose,
            frozenset(leaf for leaf in range(parameters) if numbers[leaf] in needed),
        )

    def value(self, aval: Any) -> int:
        """Number a new value."""
        self.avals[len(self.avals)] = aval
        return len(self.avals) - 1

    def walk(self, jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[int]) -> list[int]:
        """Append the operations of a jaxpr; return the numbers of its results."""
        names: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
        for name, constant in zip(jaxpr.constvars, consts, strict=True):
            names[name] = self.constant(constant, name.aval)

        def number(atom: Any) -> int:
            return self.constant(atom.val, atom.aval) if isinstance(atom, core.Literal) else names[atom]

        for equation in jaxpr.eqns:
            outputs = self.equation(equation, [number(atom) for atom in equation.invars])
            names.update(zip(equation.outvars, outputs, strict=True))
        return [number(atom) for atom in jaxpr.outvars]

    def constant(self, array: Any, aval: Any) -> int:
        """Number a known value."""
        number = self.value(aval)
        self.constants[number] = jnp.asarray(array, aval.dtype) if not hasattr(array, "dtype") else array
        return number

    def equation(self, equation: Any, inputs: list[int]) -> list[int]:
        """Append one equation, and enter it if a parameter is inside."""
        name, params = equation.primitive.name, equation.params
        followed = any(number in self.parts for number in inputs)
        if followed and name in CALLS:
            inner = params[CALLS[name]]
            closed = inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())
            return self.walk(closed.jaxpr, closed.consts, inputs)
        if followed and name == "scan" and params["length"] <= UNROLLED:
            return self.unroll(params, inputs)
        if followed and name == "split":
            return self.split(params, inputs[0])
        return self.append(name, params, inputs, [v.aval for v in equation.outvars], _evaluation(equation))

    def append(
        self, name: str, params: dict[str, Any], inputs: list[int], avals: list[Any], evaluate: Callable[..., Any]
    ) -> list[int]:
        """Append an operation and record its effect on parameters among its operands."""
        outputs, depends = [self.value(aval) for aval in avals], any(v in self.depends for v in inputs)
        instruction = Instruction(name, params, tuple(inputs), tuple(outputs), evaluate, depends)
        number = len(self.instructions)
        self.instructions.append(instruction)
        if depends:
            self.depends.update(outputs)
        followed = [k for k, value in enumerate(inputs) if value in self.parts]
        if not followed:
            return outputs
        linear = set(followed) <= set(_jointly_linear(instruction)) or (
            len(followed) == 1 and followed[0] in SEPARATELY_LINEAR.get(name, ())
        )
        if not linear or not jnp.issubdtype(avals[0].dtype, jnp.floating):
            self.loosen(inputs, name, number)
        elif depends:
            for k in followed:
                for leaf, chain in self.parts[inputs[k]]:
                    self.sites.append(Site(leaf, chain, number, k, -1))
        else:
            self.parts[outputs[0]] = tuple(
                (leaf, (*chain, self.step(number, k))) for k in followed for leaf, chain in self.parts[inputs[k]]
            )
        return outputs

    def step(self, number: int, position: int) -> Step:
        """Describe one more operation between a parameter and its site."""
        instruction = self.instructions[number]
        shapes = self.avals[instruction.inputs[position]].shape, self.avals[instruction.outputs[0]].shape
        added = instruction.name in ("add", "add_any") or (instruction.name == "sub" and position == 0)
        if added and shapes[0] == shapes[1]:  # the derivative is the identity; for example, a kernel plus its adapter
            return Step(number, position, LayoutStep("same", *shapes))
        return Step(number, position, layout_step(instruction.name, instruction.params, *shapes))

    def loosen(self, values: Sequence[int], reason: str, number: int | None) -> None:
        """Record that an operation not linear in these values uses their parameters."""
        self.reasons.extend((leaf, reason, number) for value in values for leaf, _ in self.parts.get(value, ()))

    def unroll(self, params: dict[str, Any], inputs: list[int]) -> list[int]:
        """Append every step of a loop."""
        inner = params["jaxpr"]
        closed = inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())
        if "ft_in" in params:  # from JAX 0.12 on: trees of constants, carried values and inputs
            fixed, carried, _ = (len(list(part)) for part in params["ft_in"].unpack())
        else:
            fixed, carried = params["num_consts"], params["num_carry"]
        consts, carry, whole = inputs[:fixed], inputs[fixed : fixed + carried], inputs[fixed + carried :]
        steps = range(params["length"])
        written: list[list[int]] = []
        for index in reversed(steps) if params["reverse"] else steps:
            now = [self.index(value, index) for value in whole]
            out = self.walk(closed.jaxpr, closed.consts, [*consts, *carry, *now])
            carry = out[:carried]
            written.append(out[carried:])
        if params["reverse"]:
            written.reverse()
        stacked = []
        for column, v in enumerate(closed.jaxpr.outvars[carried:]):
            one: Any = v.aval
            whole_aval = one.update(shape=(len(steps), *one.shape))
            rows = [row[column] for row in written]
            stacked += self.append("stack", {}, rows, [whole_aval], lambda values: [jnp.stack(values)])
        return [*carry, *stacked]

    def index(self, value: int, index: int) -> int:
        """Append the selection of one entry of the leading axis."""
        aval = self.avals[value]
        one = aval.update(shape=aval.shape[1:])
        return self.append("index", {"index": index}, [value], [one], lambda values: [values[0][index]])[0]

    def split(self, params: dict[str, Any], value: int) -> list[int]:
        """Append a split into consecutive parts of an axis, each a slice."""
        aval, axis, start, outputs = self.avals[value], int(params["axis"]), 0, []
        for size in map(int, params["sizes"]):
            starts, limits = [0] * len(aval.shape), list(aval.shape)
            starts[axis], limits[axis] = start, start + size
            settings = {"start_indices": tuple(starts), "limit_indices": tuple(limits), "strides": None}
            shape = tuple(b - a for a, b in zip(starts, limits, strict=True))

            def part(values: Sequence[Any], starts: list[int] = starts, limits: list[int] = limits) -> list[Array]:
                return [jax.lax.slice(values[0], starts, limits)]

            outputs += self.append("slice", settings, [value], [aval.update(shape=shape)], part)
            start += size
        return outputs

    def last_equal(self, number: int, consumers: dict[int, list[int]]) -> int:
        """Return the last operation whose result has the same gradient.

        It is reached through sums, each of which is the only reader of the result before it.
        """
        while True:
            (value,) = self.instructions[number].outputs[:1]
            readers = consumers.get(value, [])
            if len(readers) != 1 or readers[0] < 0:
                return number
            reader = self.instructions[readers[0]]
            added = reader.name in ("add", "add_any") or (reader.name == "sub" and reader.inputs[0] == value)
            result = self.avals[reader.outputs[0]]
            if not added or result.shape != self.avals[value].shape or result.dtype != self.avals[value].dtype:
                return number
            number = readers[0]

    def as_matrix(self, site: Site) -> Site:
        """Add the matrix to a site, if its operation is one."""
        instruction = self.instructions[site.instruction]
        if instruction.name not in ("dot_general", "conv_general_dilated", "canonical_convolution"):
            return site
        kernel, read = (self.avals[instruction.inputs[k]].shape for k in (site.position, 1 - site.position))
        matrix = matrix_of(instruction.name, instruction.params, site.position, kernel, read)
        if matrix is None:
            return site
        lead, steps = _split_chain(site.chain)
        if steps is None or not all(step.bijective for step in steps):
            return dataclasses.replace(site, matrix=matrix)
        kept = tuple(step for step in (*steps, *matrix.kernel_steps) if step.kind != "same")
        return dataclasses.replace(site, matrix=matrix, layout=Layout(lead, kept))

    def with_bias(self, site: Site, sites: list[Site], consumers: dict[int, list[int]]) -> Site:
        """Add the bias to a site.

        It is the parameter that alone is added to the result of the site's matrix.
        """
        if site.layout is None or site.matrix is None:
            return site
        (value,) = self.instructions[site.instruction].outputs[:1]
        readers = consumers.get(value, [])
        added = [other for other in sites if [other.instruction] == readers]
        if len(added) != 1 or self.instructions[readers[0]].name not in ("add", "add_any"):
            return site
        (other,) = added
        lead, steps = _split_chain(other.chain)
        if steps is None or lead != site.layout.lead or places(other) != places(site):
            return site
        written = self.avals[value].shape
        if written != self.avals[self.instructions[readers[0]].outputs[0]].shape:
            return site
        shape = steps[0].before if steps else self.avals[self.instructions[readers[0]].inputs[other.position]].shape
        numbered = np.arange(math.prod(shape)).reshape(shape)
        for step in steps:
            numbered = step.apply(numbered)
        rows = site.matrix.output_rows(np.broadcast_to(numbered, written)[None])[0]
        order = np.arange(site.matrix.groups * site.matrix.outputs).reshape(rows.shape[1:])
        return dataclasses.replace(site, bias=other.leaf) if bool(np.all(rows == order)) else site


def _layouts(chain: Chain) -> list[LayoutStep | None]:
    """Return a chain's changes of layout, with `W[t]` as one step.

    An entry is None if the operation does more than change the layout.
    """
    layouts: list[LayoutStep | None] = []
    for step in chain:
        layout, last = step.layout, layouts[-1] if layouts else None
        if layout is not None and layout.kind == "same":
            continue
        one = last is not None and last.kind == "slice" and last.after == (1, *last.before[1:])
        if last is not None and one and layout is not None and layout.after == last.before[1:]:
            layouts[-1] = LayoutStep("index", last.before, layout.after, (last.data[0][0],))
        else:
            layouts.append(layout)
    return layouts


def _split_chain(chain: Chain) -> tuple[tuple[int, ...], tuple[LayoutStep, ...] | None]:
    """Split a chain into indexed leading axes and later changes of layout.

    Returns:
        The sizes of the indexed axes, and the changes of layout; None if an operation does more than change the
        layout.
    """
    layouts = _layouts(chain)
    known = tuple(layout for layout in layouts if layout is not None)
    lead = []
    for layout in known:
        if layout.kind != "index":
            break
        lead.append(layout.before[0])
    return tuple(lead), known[len(lead) :] if len(known) == len(layouts) else None


def places(site: Site) -> tuple[int, ...]:
    """Return which entry of a parameter's leading axes a site uses.

    It is the number of a loop's step, or the index of `W[t]`; empty if nothing is indexed.
    """
    indices = []
    for layout in _layouts(site.chain):
        if layout is None or layout.kind != "index":
            break
        indices.append(int(layout.data[0]))
    return tuple(indices)


def _evaluation(equation: Any) -> Callable[[Sequence[Any]], list[Array]]:
    """Return the function that computes an equation.

    A convolution is computed in its canonical form if that is faster (on a CPU).
    """
    primitive, params = equation.primitive, equation.params
    if primitive.name == "conv_general_dilated" and jax.default_backend() == "cpu" and _ordinary(params):
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")
        names = (*names, "feature_group_count", "batch_group_count", "precision")
        settings = {name: params[name] for name in names}
        return lambda values: [conv_general_dilated(values[0], values[1], **settings)]

    def evaluate(values: Sequence[Any]) -> list[Array]:
        out = primitive.bind(*values, **primitive.get_bind_params(params))
        return list(out) if primitive.multiple_results else [out]

    return evaluate


def _ordinary(params: dict[str, Any]) -> bool:
    """Test whether a convolution has no setting that its canonical form lacks."""
    return params["preferred_element_type"] is None and params.get("out_sharding") is None
