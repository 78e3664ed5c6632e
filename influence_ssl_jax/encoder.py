"""An encoder: a pure function from images to embeddings, with its parameters, frozen state, input and name."""

import dataclasses
import fnmatch
import importlib
import inspect
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import flax.core
import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from influence_ssl_jax import checkpoint, configuration, provenance, randomness, trees
from influence_ssl_jax.augment.recipes import PRETRAINING
from influence_ssl_jax.augment.transform import Views
from influence_ssl_jax.data.transform import ToInput
from influence_ssl_jax.errors import InfluenceError, StructureError
from influence_ssl_jax.losses import TRAINING_LOSSES, Loss
from influence_ssl_jax.nets import architectures
from influence_ssl_jax.nets.heads import SelfSupervised
from influence_ssl_jax.nets.network import (
    FIXED,
    EmbeddingFunction,
    FunctionNetwork,
    Network,
    NnxNetwork,
    PartlyTrained,
    Pool,
    refuse_params_in,
)
from influence_ssl_jax.problem import Objective
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.types import Frozen, Params, PyTree

Output: TypeAlias = Literal["encoder", "projector", "predictor"]
"""Which embedding: the representation, what the projector makes of it, or what the predictor makes of that."""

METHODS: dict[Output, str] = {"encoder": "encode", "projector": "project", "predictor": "predict"}
"""The method of `SelfSupervised` that computes an output."""
PARTS: dict[Output, tuple[str, ...]] = {
    "encoder": ("backbone",),
    "projector": ("backbone", "projector"),
    "predictor": ("backbone", "projector", "predictor"),
}
"""The parameters that it reads."""

EVALUATION: dict[str, bool] = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
    "inference": True,
}
"""Arguments that are known to tell training from evaluation, with their value in evaluation."""

FILE = "encoder"
"""The name, without suffix, of the two files in a saved encoder's folder."""


@dataclasses.dataclass(frozen=True)
class Heads:
    """What an encoder was pretrained with: heads on its representation, and the loss that compared their outputs.

    Attributes:
        params: Parameters of `projector` and, where there is one, `predictor`; their frozen state is the encoder's.
        loss: The loss, where it is known.
        views: The views that it compared, where they are known: a name (`augment.recipes.PRETRAINING`), or themselves.
    """

    params: Params
    loss: Loss | None = None
    views: str | Views | None = None


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A pure function `network(params, frozen, images) -> embeddings` [batch, width], and what it needs.

    Parameters that are not trained are in `frozen["fixed"]`: gradients, curvature, norms and damping are of `params`
    alone.

    Example:
        ```python
        encoder = Encoder.from_nnx(model, input=ToInput(32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        embeddings = encoder(images)  # pixels in [0, 1]
        ```

    Attributes:
        network: The function; hashable, so that a compiled program can be kept for it.
        params: Its trained parameters.
        frozen: Everything else that it reads, such as running statistics.
        input: How an image becomes pixels of the size that the network reads.
        name: What it is called in reports.
        heads: Projector and predictor, where they are there.
        trainable: The patterns by which `params` were chosen; all parameters where empty.
        notes: Where it came from: plain JSON, kept in its file.
    """

    network: EmbeddingFunction
    params: Params
    frozen: Frozen
    input: ToInput
    name: str
    heads: Heads | None = None
    trainable: tuple[str, ...] = ()
    notes: Mapping[str, configuration.Plain] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse frozen state that holds parameters."""
        refuse_params_in(self.frozen)

    @classmethod
    def from_linen(
        cls,
        module: nn.Module,
        variables: Mapping[str, PyTree],
        *,
        input: ToInput,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        method: str = "__call__",
        arguments: Mapping[str, Hashable] | None = None,
        output: str | int | None = None,
        pool: Pool | None = None,
        trainable: Sequence[str] = (),
        name: str | None = None,
    ) -> "Encoder":
        """Make an encoder of a linen module and its variables.

        Args:
            module: From standardised images to embeddings.
            variables: `{"params": …}` and its other collections, as `module.init` returns them.
            input: Size and channels of the images, and how others are brought to it.
            mean: Per-channel mean subtracted from pixels in [0, 1].
            std: Per-channel standard deviation they are divided by.
            method: The module's method.
            arguments: Keyword arguments of the method; those of `EVALUATION` are found out.
            output: Which of several outputs is the embedding: a name or a position.
            pool: How features at several positions become one embedding.
            trainable: Which parameters count; see `with_trainable`.
            name: What it is called; the module's class where None.

        Raises:
            StructureError: The module asks for an argument that is not known, is in training mode, or embeds an image
                by its neighbours.
            ValueError: What it returns is not one embedding an image.
        """
        held = dict(flax.core.unfreeze(nn.meta.unbox(variables)))
        if "params" not in held:
            raise StructureError(
                f"variables holds {', '.join(held) or 'nothing'}, no 'params'; pass what init returned."
            )
        reserved = held.keys() & {FIXED, "target"}
        if reserved:
            raise StructureError(
                f"The collection name {reserved.pop()!r} is used by this package; call yours otherwise."
            )
        params, called = held.pop("params"), type(module).__name__
        found = evaluation_arguments(getattr(type(module), method), 2, arguments, f"{called}.{method}")
        network = Network(module, method, found, mean, std, output, pool)
        return cls(network, params, held, input, name or called).checked().with_trainable(trainable)

    @classmethod
    def from_nnx(
        cls,
        model: nnx.Module,
        *,
        input: ToInput,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        method: str = "__call__",
        arguments: Mapping[str, Hashable] | None = None,
        output: str | int | None = None,
        pool: Pool | None = None,
        trainable: Sequence[str] = (),
        name: str | None = None,
    ) -> "Encoder":
        """Make an encoder of an nnx model; the model itself stays as it is.

        Dropout and BatchNorm inside it are put into evaluation mode in a copy. Its `nnx.Param`s are the parameters;
        arguments and errors are those of `from_linen`.
        """
        copy = nnx.clone(model)
        copy.eval()
        graph, params, keys, state = nnx.split(copy, nnx.Param, nnx.RngKey, ...)
        called = type(model).__name__
        found = evaluation_arguments(getattr(model, method), 1, arguments, f"{called}.{method}")
        network = NnxNetwork(graph, called, method, found, mean, std, output, pool)
        frozen = {
            "keys": jax.tree.map(jax.random.key_data, nnx.to_pure_dict(keys)),
            "state": nnx.to_pure_dict(state),
        }
        encoder = cls(network, nnx.to_pure_dict(params), frozen, input, name or called)
        return encoder.checked().with_trainable(trainable)

    @classmethod
    def from_function(
        cls,
        function: Callable[..., Any],
        params: Params,
        frozen: Frozen | None = None,
        *,
        input: ToInput,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        output: str | int | None = None,
        pool: Pool | None = None,
        trainable: Sequence[str] = (),
        name: str | None = None,
    ) -> "Encoder":
        """Make an encoder of any pure function `(params, images)`, or `(params, frozen, images)` with frozen state.

        An equinox model becomes one by `params, rest = equinox.partition(model, equinox.is_inexact_array)` and the
        function `lambda params, images: jax.vmap(equinox.combine(params, rest))(images)`.

        Args:
            function: The function, in evaluation mode.
            params: Any tree of arrays; entries that are not floating-point are fixed.
            frozen: Any tree of arrays that it reads beside.
            input: As for `from_linen`, like the arguments that follow.
            mean: Per-channel mean subtracted from pixels in [0, 1].
            std: Per-channel standard deviation they are divided by.
            output: Which of several outputs is the embedding: a name or a position.
            pool: How features at several positions become one embedding.
            trainable: Which parameters count; see `with_trainable`.
            name: What it is called; the function's own name where None.

        Raises:
            StructureError: A leaf is no array, or an image is embedded by its neighbours.
            ValueError: What the function returns is not one embedding an image.
        """
        for leaf_name, leaf in checkpoint.named({"params": params, "frozen": frozen}).items():
            if not isinstance(leaf, jax.Array | np.ndarray):
                raise StructureError(
                    f"{leaf_name} is a {type(leaf).__name__}, not an array. Parameters and frozen state are trees of "
                    "arrays: keep functions and settings inside the function (equinox: partition with is_array)."
                )
        network = FunctionNetwork(function, frozen is not None, mean, std, output, pool)
        held = {} if frozen is None else {"state": frozen}
        encoder = cls(network, params, held, input, name or getattr(function, "__qualname__", type(function).__name__))
        return encoder.checked().with_trainable(trainable)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Embed images [batch, height, width, channels] with pixels in [0, 1]."""
        return self.network(self.params, self.frozen, images)

    def with_trainable(self, patterns: Sequence[str]) -> "Encoder":
        """Choose which parameters count; the others become frozen state.

        A pattern is a name, part of a path, or a glob: `blocks_11`, `attn/qkv`, `*/bias`; with `!` before it, it takes
        away (`!pos_embed`). Patterns that only take away start from all parameters, the others from none.

        Args:
            patterns: Which; all floating-point parameters where empty.

        Raises:
            StructureError: A pattern names no parameter, or none is left.
        """
        whole = self._whole()
        names = list(checkpoint.named(whole))
        for pattern in patterns:
            if not any(_matches(name, pattern.removeprefix("!")) for name in names):
                raise StructureError(
                    f"trainable={pattern!r} names no parameter. There are {', '.join(names[:8])}"
                    f"{f', … ({len(names)} in all)' if len(names) > 8 else ''}."
                )
        adding = [pattern for pattern in patterns if not pattern.startswith("!")]

        def chosen(name: str, leaf: Any) -> bool:
            kept = not adding
            for pattern in patterns:
                if _matches(name, pattern.removeprefix("!")):
                    kept = not pattern.startswith("!")
            return kept and bool(jnp.issubdtype(leaf.dtype, jnp.floating))

        params, fixed = trees.partition(whole, chosen)
        network = self.network.network if isinstance(self.network, PartlyTrained) else self.network
        frozen = {name: value for name, value in self.frozen.items() if name != FIXED}
        if jax.tree.leaves(fixed):
            network, frozen = PartlyTrained(network), {**frozen, FIXED: fixed}
        own, heads = params, self.heads
        if heads is not None:
            own = {name: params[name] for name in self.params}
            heads = dataclasses.replace(heads, params={name: params[name] for name in heads.params})
        if not jax.tree.leaves(own):
            raise StructureError(f"trainable={list(patterns)} leaves no parameter of the encoder to differentiate.")
        return dataclasses.replace(
            self, network=network, params=own, frozen=frozen, heads=heads, trainable=tuple(patterns)
        )

    def at(self, output: Output) -> "Encoder":
        """Return the encoder whose embedding is another output: the projector's or the predictor's.

        Raises:
            InfluenceError: The encoder has no such head.
        """
        if self.heads is None and output == "encoder":
            return self
        held = {**({} if self.heads is None else self.heads.params), **self.params}
        if output != "encoder" and output not in held:
            known = None if self.heads is None else self.heads.loss
            trained_by = "" if known is None else f" trained by {type(known).__name__}"
            there = ["encoder", *(name for name in ("projector", "predictor") if name in held)]
            raise InfluenceError(f"{self.name}{trained_by} has no {output}; use {' or '.join(there)}.")
        params = {name: held[name] for name in PARTS[output] if name in held}
        return dataclasses.replace(self, network=self._at_method(METHODS[output]), params=params)

    def pretraining(self) -> tuple[Objective, Params]:
        """Return the loss that the encoder was pretrained with, and the parameters that it reads.

        Raises:
            InfluenceError: The encoder has no heads, or its loss is not known.
        """
        if self.heads is None or self.heads.loss is None or self.heads.views is None:
            what = "heads" if self.heads is None else "known pretraining loss"
            raise InfluenceError(
                f"{self.name} has no {what}, so the curvature of the pretraining loss is not defined; use the curvature of "
                "the measurement (--curvature.objective measurement), or import the encoder again with --loss."
            )
        compares = self.heads.loss.compares_with_target
        online = self.at("predictor" if compares else "projector")
        target = self._without_fixed(self._at_method(METHODS["projector"])) if compares else None
        views = PRETRAINING[self.heads.views] if isinstance(self.heads.views, str) else self.heads.views
        return Objective(online.network, views, self.heads.loss, target), online.params

    def computing_in(self, dtype: jax.typing.DTypeLike | None) -> "Encoder":
        """Return the encoder whose layers compute in another type (`None`: that of the parameters).

        Raises:
            StructureError: The network is no linen module, or has no field `dtype`.
        """
        inner = self._without_fixed(self.network)
        if not isinstance(inner, Network):
            raise StructureError(
                f"{self.name} is no linen module, so its layers cannot be told to compute in another type. Build it with "
                "dtype=… yourself, and score with precision float32."
            )
        changed = dataclasses.replace(inner, module=architectures.computing_in(inner.module, dtype))
        return dataclasses.replace(self, network=self._with_fixed(changed))

    def sizes(self) -> tuple[int, int]:
        """Return the number of trained parameters of the encoder itself, and of all of them."""
        whole = self._whole()
        own = {name: whole[name] for name in self.params} if self.heads is not None else whole
        return trees.size(self.params), trees.size(own)

    def variables(self) -> PyTree:
        """Return everything that is read, whatever is trained: `{"params": …, "frozen": …}`, heads included."""
        return {
            "params": self._whole(),
            "frozen": {name: value for name, value in self.frozen.items() if name != FIXED},
        }

    def digest(self) -> str:
        """Return the SHA-256 of `variables`: equal exactly where two encoders' arrays are."""
        held = self.variables()
        return provenance.tree_digest(held)

    def describe(self) -> configuration.Plain:
        """Describe everything but the arrays, as JSON; a network that cannot be rebuilt is described by its name."""
        inner = self._without_fixed(self.network)
        network = inner.name if isinstance(inner, NnxNetwork) else self.name
        if isinstance(inner, Network):
            try:
                module = architectures.describe(inner.module)
            except StructureError:  # a module of the user's own, or one inside
                module = type(inner.module).__name__
            network = {"module": module, **_options(inner), "method": inner.method, "arguments": dict(inner.arguments)}
        elif isinstance(inner, NnxNetwork | FunctionNetwork):
            network = {"module": network, **_options(inner)}
        heads = self.heads
        known = None if heads is None or heads.loss is None else configuration.describe(heads.loss)
        views = None if heads is None else configuration.describe(heads.views)
        return {
            "name": self.name,
            "network": network,
            "input": configuration.describe(self.input),
            "heads": None if heads is None else {"loss": known, "views": views},
            "trainable": list(self.trainable),
        }

    def save(self, folder: str | Path, storage: checkpoint.Storage = "float32") -> checkpoint.Files:
        """Write `encoder.npz` and `encoder.json` into a folder, without pickles.

        Args:
            folder: Where to; it is made.
            storage: The type of stored parameters; see `checkpoint.save` for what float16 rounds.

        Raises:
            StructureError: The network is none of this package's: a file could not say how to build it.
        """
        inner = self._without_fixed(self.network)
        if not isinstance(inner, Network):
            raise StructureError(
                f"{self.name} is a function or model of yours, so a file cannot say how to build it. Write a function that "
                "returns the encoder, and name it as package.module:function wherever an encoder is asked for."
            )
        architectures.describe(inner.module)
        if self.heads is not None and not isinstance(self.heads.views, str | None):
            raise StructureError(
                f"The views of {self.name} are a {type(self.heads.views).__name__}; a file knows those of a name alone: "
                f"{', '.join(PRETRAINING)}."
            )
        description = {"encoder": self.describe(), "storage": storage, **self.notes}
        return checkpoint.save(Path(folder) / FILE, self.variables(), description, storage)

    @classmethod
    def load(cls, place: str | Path) -> "Encoder":
        """Load an encoder that `save` wrote, or call the function named `package.module:function` that returns one.

        Args:
            place: A folder, one of the two files in it, or the name of a function.

        Raises:
            CheckpointError: A file is absent, damaged, or not that of the network that it describes.
            InfluenceError: There is no such function, or it returns no encoder.
        """
        path = Path(place)
        if not path.exists() and ":" in str(place):
            return _called(str(place))
        path = path / FILE if path.is_dir() else path
        held = checkpoint.describe(path)
        description = held.get("encoder")
        if not isinstance(description, dict):
            raise checkpoint.CheckpointError(f"{path}.json describes no encoder; import or save it again.")
        try:
            network, heads = _network(description), description["heads"]
            taken = configuration.restore(description["input"], [ToInput])
            name, trainable = str(description["name"]), tuple(description["trainable"])
            loss = heads and heads["loss"] and configuration.restore(heads["loss"], TRAINING_LOSSES)
            views = heads and heads["views"]
        except (KeyError, TypeError, AttributeError) as error:
            raise checkpoint.CheckpointError(
                f"{path}.json describes its encoder wrongly ({type(error).__name__}: {error}); import or save it again."
            ) from error
        shapes = variable_shapes(network, taken, loss)
        whole = checkpoint.load(path, shapes)
        notes = {key: value for key, value in held.items() if key not in ("format", "digest", "encoder", "storage")}
        params, found = whole["params"], None
        if heads is not None:
            found = Heads({part: params[part] for part in params if part != "backbone"}, loss, views)
            params = {"backbone": params["backbone"]}
        encoder = cls(network, params, whole["frozen"], taken, name, found, notes=notes)
        return encoder.with_trainable(trainable) if trainable else encoder

    def _whole(self) -> Params:
        """All parameters, trained or not, heads included."""
        params = self.params
        if self.heads is not None:
            params = {**params, **self.heads.params}
        return trees.merge(params, self.frozen[FIXED]) if FIXED in self.frozen else params

    def _at_method(self, method: str) -> EmbeddingFunction:
        inner = self._without_fixed(self.network)
        if not isinstance(inner, Network) or not isinstance(inner.module, SelfSupervised):
            raise InfluenceError(f"{self.name} has heads, but its network is no SelfSupervised.")
        return self._with_fixed(dataclasses.replace(inner, method=method))

    @staticmethod
    def _without_fixed(network: EmbeddingFunction) -> EmbeddingFunction:
        return network.network if isinstance(network, PartlyTrained) else network

    def _with_fixed(self, network: EmbeddingFunction) -> EmbeddingFunction:
        return PartlyTrained(network) if isinstance(self.network, PartlyTrained) else network

    def checked(self) -> "Encoder":
        """Embed random images and refuse what is no function of each image alone.

        Raises:
            StructureError: The network is in training mode, or an embedding depends on the other images of its batch.
        """
        shape = (2, self.input.height, self.input.width, self.input.channels)
        dtype = next((x.dtype for x in jax.tree.leaves(self.params) if jnp.issubdtype(x.dtype, jnp.floating)), None)
        if dtype is None:
            raise StructureError(f"{self.name} has no floating-point parameters.")
        pixels = randomness.generator(0, Stream.ENCODER_CHECK).uniform(size=(5, *shape[1:])).astype(dtype)
        embed = jax.jit(self.network)
        try:
            first = embed(self.params, self.frozen, pixels[:3])
        except (flax.errors.ModifyScopeVariableError, flax.errors.InvalidRngError) as error:
            raise StructureError(
                f"{self.name} is in training mode: it draws random numbers or updates its statistics ({_brief(error)}). "
                "Pass the arguments that put it into evaluation mode as arguments={'name': value}."
            ) from error
        except flax.errors.FlaxError as error:
            raise StructureError(f"The variables do not fit {self.name}: {_brief(error)}.") from error
        alone = np.asarray(first[0], np.float64)
        beside = np.asarray(embed(self.params, self.frozen, pixels[[0, 3, 4]])[0], np.float64)
        if not np.isfinite(alone).all():
            raise StructureError(
                f"{self.name} embeds an image of random pixels as NaN or infinity; check its parameters."
            )
        if np.linalg.norm(alone - beside) > 1e-3 * np.linalg.norm(alone):
            raise StructureError(
                f"{self.name} embeds an image differently beside another one, as BatchNorm does in training mode. Pass the "
                "arguments that put it into evaluation mode as arguments={'name': value}, or build it that way."
            )
        return self


def evaluation_arguments(
    call: Callable[..., Any], leading: int, given: Mapping[str, Hashable] | None, name: str
) -> tuple[tuple[str, Hashable], ...]:
    """Find out the keyword arguments that put a network into evaluation mode.

    Args:
        call: The method.
        leading: Arguments before them: the images, and `self` where it is not bound.
        given: Arguments that are known; they win.
        name: Of the method, for errors.

    Raises:
        StructureError: The method asks for an argument that is neither given nor known, or has none of a given name.
    """
    given, found = dict(given or {}), {}
    parameters = list(inspect.signature(call).parameters.values())[leading:]
    kinds = inspect.Parameter
    for parameter in parameters:
        if parameter.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD) or parameter.name in given:
            continue
        if parameter.name in EVALUATION:
            found[parameter.name] = EVALUATION[parameter.name]
        elif parameter.default is kinds.empty:
            raise StructureError(
                f"{name} asks for the argument {parameter.name!r}, whose value in evaluation is not known; pass "
                f"arguments={{{parameter.name!r}: value}}."
            )
    names = {parameter.name for parameter in parameters}
    if not any(parameter.kind is kinds.VAR_KEYWORD for parameter in parameters) and given.keys() - names:
        raise StructureError(
            f"{name} has no argument {sorted(given.keys() - names)[0]!r}; it has {', '.join(sorted(names)) or 'none'}."
        )
    return tuple(sorted({**found, **given}.items()))


def variable_shapes(network: Network, taken: ToInput, loss: Loss | None) -> PyTree:
    """Return the shapes of everything that a network of this package reads, as `Encoder.variables` has them."""
    images = jax.ShapeDtypeStruct((2, taken.height, taken.width, taken.channels), jnp.float32)
    arguments: dict[str, Any] = {"train": False}
    held = dict(jax.eval_shape(lambda x: network.module.init(jax.random.key(0), x, **arguments), images))
    params, frozen = held.pop("params"), held
    if loss is not None and loss.compares_with_target:
        parts = PARTS["projector"]
        frozen = {**frozen, "target": {"params": _of(params, parts), **{k: _of(v, parts) for k, v in frozen.items()}}}
    return {"params": params, "frozen": frozen}


def _of(tree: dict[str, PyTree], parts: Sequence[str]) -> dict[str, PyTree]:
    return {name: tree[name] for name in parts if name in tree}


def _network(description: Mapping[str, Any]) -> Network:
    held = description["network"]
    mean, std = (tuple(float(value) for value in held[name]) for name in ("mean", "std"))
    arguments = tuple(sorted(held["arguments"].items()))
    module = architectures.build(held["module"])
    return Network(module, held["method"], arguments, mean, std, held["output"], held["pool"])


def _options(network: Network | NnxNetwork | FunctionNetwork) -> dict[str, configuration.Plain]:
    return {
        "mean": list(network.mean),
        "std": list(network.std),
        "output": network.output,
        "pool": network.pool,
    }


def _called(place: str) -> Encoder:
    """Call the function that a text names, from an installed package or the working folder."""
    module, _, function = place.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # behind what is installed, so that nothing there is replaced
    try:
        found = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise InfluenceError(
            f"{place} is neither a file nor package.module:function: {error}. Check the path or the name."
        ) from error
    except AttributeError as error:
        raise InfluenceError(f"{module} has no {function!r}; name a function in it that returns an Encoder.") from error
    encoder = found() if callable(found) and not isinstance(found, Encoder) else found
    if not isinstance(encoder, Encoder):
        raise InfluenceError(f"{place} must be or return an Encoder, got a {type(encoder).__name__}.")
    return encoder


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern is a whole name, or whole parts of one."""
    padded, wanted = f"/{name}/", f"/{pattern.strip('/')}/"
    return fnmatch.fnmatchcase(padded, f"*{wanted}*")


def _brief(error: Exception) -> str:
    return str(error).split(" (https://", 1)[0].splitlines()[0].rstrip(".")
