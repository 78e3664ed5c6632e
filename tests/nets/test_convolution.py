"""Canonical convolutions against `jax.lax` in every derivative, batching and dtype; flax layers that use them."""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec

from influence_ssl_jax.nets.convolution import (
    canonical_convolutions,
    conv_general_dilated,
    with_canonical_convolutions,
)

NUMBERS = ("NHWC", "HWIO", "NHWC")


def draw(shape: tuple[int, ...], seed: int, dtype: Any = jnp.float64) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def derivatives(convolution: Any, lhs: jax.Array, rhs: jax.Array, vl: jax.Array, vr: jax.Array) -> dict[str, Any]:
    """Value, jvp, vjp, linearise, transpose, and forward-over-reverse of a non-linear function of one convolution."""
    out, pullback = jax.vjp(convolution, lhs, rhs)
    linear_out, linear = jax.linearize(convolution, lhs, rhs)

    def gradient(a: jax.Array, b: jax.Array) -> Any:
        return jax.grad(lambda a, b: (convolution(a, b) ** 3).sum(), (0, 1))(a, b)

    return {
        "value": out,
        "jvp": jax.jvp(convolution, (lhs, rhs), (vl, vr)),
        "vjp": pullback(out),
        "linearize": (linear_out, linear(vl, vr)),
        "transpose_lhs": jax.linear_transpose(lambda a: convolution(a, rhs), lhs)(out),
        "transpose_rhs": jax.linear_transpose(lambda b: convolution(lhs, b), rhs)(out),
        "forward_over_reverse": jax.jvp(gradient, (lhs, rhs), (vl, vr))[1],
    }


def assert_trees_close(actual: Any, expected: Any, rtol: float = 1e-11) -> None:
    def close(a: jax.Array, b: jax.Array) -> None:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * (1 + np.abs(b).max(initial=0)))

    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(close, actual, expected)


pair = functools.partial(st.tuples)


@given(
    image=pair(st.integers(3, 6), st.integers(3, 6)),
    window=pair(st.integers(1, 3), st.integers(1, 3)),
    strides=pair(st.integers(1, 3), st.integers(1, 2)),
    padding=pair(pair(st.integers(-1, 3), st.integers(0, 3)), pair(st.integers(0, 2), st.integers(-1, 2))),
    lhs_dilation=pair(st.integers(1, 2), st.integers(1, 3)),
    rhs_dilation=pair(st.integers(1, 2), st.integers(1, 2)),
)
@settings(max_examples=8)  # each is a compilation of its own
def test_equals_lax_in_value_and_derivatives(image, window, strides, padding, lhs_dilation, rhs_dilation):
    operands = draw((2, *image, 3), 0), draw((*window, 3, 4), 1), draw((2, *image, 3), 2), draw((*window, 3, 4), 3)
    parameters = {
        "window_strides": strides,
        "padding": padding,
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation,
        "dimension_numbers": NUMBERS,
    }

    @jax.jit
    def both(*operands: jax.Array) -> Any:
        return tuple(
            derivatives(functools.partial(convolution, **parameters), *operands)
            for convolution in (conv_general_dilated, lax.conv_general_dilated)
        )

    ours, theirs = both(*operands)
    assert_trees_close(ours, theirs)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
@pytest.mark.parametrize("padding", ["SAME", "VALID", "SAME_LOWER"])
def test_forward_is_bitwise_equal(dtype, padding):
    lhs, rhs = draw((4, 9, 8, 5), 0, dtype), draw((3, 3, 5, 6), 1, dtype)
    parameters = {"window_strides": (2, 1), "padding": padding, "rhs_dilation": (1, 2), "dimension_numbers": NUMBERS}
    ours = jax.jit(functools.partial(conv_general_dilated, **parameters))(lhs, rhs)
    theirs = jax.jit(functools.partial(lax.conv_general_dilated, **parameters))(lhs, rhs)
    assert ours.dtype == dtype
    assert jnp.array_equal(ours, theirs)
    assert jnp.array_equal(conv_general_dilated(lhs, rhs, **parameters), theirs)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_keep_the_dtype(dtype):
    lhs, rhs = draw((2, 5, 5, 3), 0, dtype), draw((3, 3, 3, 4), 1, dtype)

    @jax.jit
    def both(*operands: jax.Array) -> Any:
        return tuple(
            jax.grad(lambda a, b, convolution=convolution: same(convolution, a, b).sum(), (0, 1))(*operands)
            for convolution in (conv_general_dilated, lax.conv_general_dilated)
        )

    gradients, expected = both(lhs, rhs)
    assert [g.dtype for g in gradients] == [dtype, dtype]
    assert_trees_close(gradients, expected, rtol=2e-2 if dtype == jnp.bfloat16 else 1e-5)


def same(convolution: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    return convolution(lhs, rhs, (1, 1), "SAME", dimension_numbers=NUMBERS)


@pytest.mark.parametrize("axes", [(0, None), (3, None), (None, 0), (None, 4), (1, 2)])
def test_vmap(axes):
    lhs, rhs = draw((2, 5, 4, 3), 0), draw((3, 2, 3, 4), 1)
    lhs = lhs if axes[0] is None else jnp.stack([lhs, 2 * lhs + 1, -lhs], axes[0])
    rhs = rhs if axes[1] is None else jnp.stack([rhs, rhs**2, 1 - rhs], axes[1])

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(convolution: Any, lhs: jax.Array, rhs: jax.Array) -> Any:
        return jax.vmap(jax.value_and_grad(lambda a, b: (same(convolution, a, b) ** 3).sum(), (0, 1)), axes)(lhs, rhs)

    assert_trees_close(gradients(conv_general_dilated, lhs, rhs), gradients(lax.conv_general_dilated, lhs, rhs))


def test_scan_of_gradients_equals_their_sum():
    lhs, rhs = draw((3, 2, 5, 5, 3), 0), draw((3, 3, 3, 4), 1)

    def gradient(convolution: Any, images: jax.Array) -> jax.Array:
        return jax.grad(lambda kernel: (same(convolution, images, kernel) ** 3).sum())(rhs)

    def step(total: jax.Array, images: jax.Array) -> tuple[jax.Array, None]:
        return total + gradient(conv_general_dilated, images), None

    scanned, _ = jax.jit(lambda: lax.scan(step, jnp.zeros_like(rhs), lhs))()
    alone = jax.jit(functools.partial(gradient, lax.conv_general_dilated))
    assert_trees_close(scanned, sum(np.asarray(alone(images)) for images in lhs))


@pytest.mark.parametrize("ndim", [1, 3])
def test_any_number_of_spatial_axes(ndim):
    numbers = nn.linear._conv_dimension_numbers((0,) * (ndim + 2))
    lhs, rhs = draw((2, *(5, 4, 3)[:ndim], 3), 0), draw((*(2, 3, 1)[:ndim], 3, 4), 1)
    parameters = {"window_strides": (2, 1, 1)[:ndim], "padding": "SAME", "dimension_numbers": numbers}
    operands = lhs, rhs, lhs**2, rhs**2

    @jax.jit
    def both(*operands: jax.Array) -> Any:
        return tuple(
            derivatives(functools.partial(convolution, **parameters), *operands)
            for convolution in (conv_general_dilated, lax.conv_general_dilated)
        )

    assert_trees_close(*both(*operands))


def test_groups_and_other_layouts_are_passed_on():
    lhs, rhs = draw((2, 5, 5, 4), 0), draw((3, 3, 2, 6), 1)
    parameters: dict[str, Any] = {"window_strides": (1, 1), "padding": "SAME"}
    grouped = conv_general_dilated(lhs, rhs, **parameters, dimension_numbers=NUMBERS, feature_group_count=2)
    expected = lax.conv_general_dilated(lhs, rhs, **parameters, dimension_numbers=NUMBERS, feature_group_count=2)
    assert jnp.array_equal(grouped, expected)
    channels_first = jnp.moveaxis(lhs, -1, 1), draw((6, 4, 3, 3), 2)
    assert jnp.array_equal(
        conv_general_dilated(*channels_first, **parameters), lax.conv_general_dilated(*channels_first, **parameters)
    )


def test_named_padding_of_a_dilated_image_is_refused():
    with pytest.raises(ValueError, match="explicit padding, got padding='SAME'"):
        conv_general_dilated(
            draw((1, 4, 4, 1), 0), draw((3, 3, 1, 1), 1), (1, 1), "SAME", (2, 2), dimension_numbers=NUMBERS
        )


def test_gradient_of_an_empty_batch_is_zero():
    gradient = jax.grad(lambda kernel: same(conv_general_dilated, jnp.zeros((0, 5, 5, 3)), kernel).sum())
    assert not gradient(draw((3, 3, 3, 4), 1)).any()


def test_inside_shard_map():
    lhs, rhs = draw((4, 5, 5, 3), 0), draw((3, 3, 3, 4), 1)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradient(convolution: Any, images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.grad(lambda b: (same(convolution, images, b) ** 3).sum())(kernel)

    sharded = jax.shard_map(
        functools.partial(gradient, conv_general_dilated),
        mesh=mesh,
        in_specs=(PartitionSpec("data"), PartitionSpec()),
        out_specs=PartitionSpec(),
    )
    alone = jax.jit(functools.partial(gradient, lax.conv_general_dilated))
    assert_trees_close(jax.jit(sharded)(lhs, rhs), alone(lhs, rhs))


class UserNet(nn.Module):
    """A module that knows nothing of this package: set-up layers, a layer passed as an attribute, groups, remat."""

    first: nn.Module

    def setup(self) -> None:
        self.second = nn.Conv(4, (3, 3), strides=2, padding=1)
        self.grouped = nn.Conv(4, (3, 3), feature_group_count=2)
        self.third = nn.remat(nn.Conv)(4, (1, 1))

    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = jnp.tanh(self.second(self.first(images)))
        return self.third(jnp.tanh(self.grouped(self.second(hidden)))).mean((1, 2))


def primitives(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr),
        ):
            if isinstance(inner, jax.extend.core.ClosedJaxpr):
                yield from primitives(inner.jaxpr)
            elif isinstance(inner, jax.extend.core.Jaxpr):
                yield from primitives(inner)


def test_any_linen_module_becomes_canonical_and_stays_so_in_second_order():
    module = UserNet(first=nn.Conv(4, (3, 3), padding="CIRCULAR"))
    images = draw((2, 6, 6, 3), 0)
    shapes = jax.eval_shape(module.init, jax.random.key(1), images)
    params = jax.tree.map(lambda leaf: draw(leaf.shape, leaf.size, leaf.dtype), shapes)

    def gradient(params: Any, canonical: bool) -> Any:
        def loss(params: Any) -> jax.Array:
            if canonical:
                with canonical_convolutions():
                    return (module.apply(params, images) ** 2).sum()
            return (module.apply(params, images) ** 2).sum()

        return jax.jvp(jax.grad(loss), (params,), (params,))[1]

    compiled = jax.jit(gradient, static_argnames="canonical")
    assert_trees_close(compiled(params, canonical=True), compiled(params, canonical=False), rtol=1e-5)
    traced = jax.make_jaxpr(functools.partial(gradient, canonical=True))(params)
    ordinary = [e for e in primitives(traced.jaxpr) if e.primitive.name == "conv_general_dilated"]
    assert any(e.primitive.name == "canonical_convolution" for e in primitives(traced.jaxpr))
    assert all(max(e.params["feature_group_count"], e.params["batch_group_count"]) == 2 for e in ordinary)
    assert module.first.conv_general_dilated is None


def test_a_layer_with_its_own_convolution_is_left_alone():
    called = []

    def own(*operands: jax.Array, **parameters: Any) -> jax.Array:
        called.append(True)
        return lax.conv_general_dilated(*operands, **parameters)

    with canonical_convolutions():
        nn.Conv(2, (3, 3), conv_general_dilated=own).init(jax.random.key(0), draw((1, 4, 4, 1), 0))
    assert called


def test_accelerators_are_left_alone(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    layer, images = nn.Conv(2, (3, 3)), draw((1, 4, 4, 1), 0)
    params = layer.init(jax.random.key(0), images)

    def apply(params: Any) -> jax.Array:
        with canonical_convolutions():
            return layer.apply(params, images)

    assert "canonical_convolution" not in str(jax.make_jaxpr(apply)(params))


@pytest.mark.parametrize("options", [{}, {"feature_group_count": 2}, {"preferred_element_type": jnp.float64}])
def test_convolutions_of_nnx_use_it_where_it_has_what_they_ask_for(options):
    layer = nnx.Conv(4, 6, (3, 3), strides=2, padding=1, rngs=nnx.Rngs(0), **options)
    graph, state = nnx.split(layer)
    images = draw((2, 7, 8, 4), 0, jnp.float32)

    def apply(state: Any, images: jax.Array) -> jax.Array:
        return with_canonical_convolutions(nnx.merge(graph, state))(images)

    np.testing.assert_array_equal(apply(state, images), layer(images))
    assert layer.conv_general_dilated is lax.conv_general_dilated
    assert ("canonical_convolution" in str(jax.make_jaxpr(apply)(state, images))) == (not options)
