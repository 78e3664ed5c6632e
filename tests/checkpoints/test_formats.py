"""A layout is recognised by its names, read as it is, or refused with the names that differ."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import checkpoints, trees
from influence_ssl_jax.checkpoint import CheckpointError
from influence_ssl_jax.checkpoints import FORMATS, Choices, WeightsFile
from influence_ssl_jax.checkpoints.layout import shapes_of
from influence_ssl_jax.checkpoints.tensors import Foreign
from influence_ssl_jax.data import ToInput
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.losses import BarlowTwins
from influence_ssl_jax.nets.convnext import ConvNeXt
from influence_ssl_jax.nets.resnet import ResNet
from influence_ssl_jax.nets.vit import VisionTransformer
from tests.checkpoints.memory import file_of

FILES = Path(__file__).parent / "files"
RECOGNISED = {
    "solo_learn_simclr.ckpt": "solo_learn",
    "solo_learn_byol.ckpt": "solo_learn",
    "barlow_twins.pth": "barlow_twins",
    "moco.pth.tar": "moco",
    "torchvision.pth": "torchvision",
    "resnet_cifar.pth": "torchvision",  # whose reader then asks which of two stems it is
    "dino.pth": "dino",
    "dinov2.pth": "dinov2",
    "dinov2_registers.safetensors": "dinov2",
    "dinov3.pth": "dinov3",
    "dinov3_gated.pth": "dinov3",
    "mae.pth": "mae",
    "convnext.pth": "convnext",
}


@functools.cache
def held(name):
    """The arrays of a file, by name and entry."""
    file = WeightsFile.open(FILES / name)
    groups = ("", *(key for key, value in file.content.items() if isinstance(value, dict)))
    return {group: {key: tensor.numpy() for key, tensor in file.group(group).items()} for group in groups}


@pytest.mark.parametrize("name", sorted(each.name for each in FILES.iterdir() if each.suffix != ".npz"))
def test_a_file_is_recognised_by_its_names_or_not_at_all(name):
    if name.startswith(("containers", "whole_model")):
        return
    file = WeightsFile.open(FILES / name)
    first = next((each for each, layout in FORMATS.items() if layout.recognises(file)), None)
    assert first == RECOGNISED.get(name)


@pytest.mark.parametrize("name", ["mae_tuned.pth", "timm.safetensors"])
def test_where_names_do_not_tell_the_layout_must_be_named(name):
    with pytest.raises(
        CheckpointError, match=r"says which layout it has. It holds \d+ arrays, .* Name it with --as"
    ) as refused:
        checkpoints.read(FILES / name)
    assert all(f"{each}: " in str(refused.value) for each in FORMATS)
    with pytest.raises(CheckpointError, match="There is no layout 'dinov4'"):
        checkpoints.read(FILES / name, "dinov4")


def test_what_is_said_of_a_file():
    imported = checkpoints.read(FILES / "dinov3.pth")
    assert imported.recognised == {
        "layout": "DINOv3's ViT (--as dinov3)",
        "network": "ViT, patch 4, width 16, 2 blocks, 2 heads, hidden 24, 4 registers, LayerScale, ε 1e-05",
        "positions": "rotary, 2 periods",
        "output": "normalised class token",
        "input": "shorter side to 256, bicubic, centre 224×224; mean 0.485, 0.456, 0.406; deviation 0.229, 0.224, 0.225",
    }
    assert imported.unread == {
        "blocks.… (2 arrays)": "mask of the bias, a setting of the network",
        "mask_token": "token of masked patches, read only in pretraining",
        "rope_embed.periods": "periods of the rotation, a setting of the network",
    }
    assert imported.encoder.input == ToInput(224, 224, 3, "bicubic", shorter=256)
    imported = checkpoints.read(FILES / "barlow_twins.pth", choices=Choices(loss="barlow_twins", size=64))
    assert imported.recognised["projector"] == "(Linear–BatchNorm–ReLU) × 2, Linear: hidden 6, output 6"
    assert imported.encoder.heads.loss == BarlowTwins()
    assert imported.encoder.input == ToInput(64, 64, 3, "bilinear", shorter=73)
    assert imported.unread == {
        "module.bn.… (2 arrays)": "beside the encoder",
        "epoch": "1",
        "optimizer": "a dict of 1",
        "args": "an object of argparse.Namespace, not created",
    }


def test_the_same_arrays_under_the_names_of_vicreg_and_swav():
    arrays = held("barlow_twins.pth")["model"]
    want = checkpoints.read(FILES / "barlow_twins.pth").encoder
    vicreg = {name: array for name, array in arrays.items() if not name.startswith("module.bn.")}
    swav = {
        name.replace("module.backbone.", "module.").replace("module.projector.", "module.projection_head."): array
        for name, array in vicreg.items()
    }
    swav["module.prototypes.weight"] = np.zeros((3, 6))
    contents = {"vicreg": {"model": vicreg}, "swav": {"state_dict": swav}}
    for layout, content in contents.items():
        file = file_of(content)
        assert next(name for name, each in FORMATS.items() if each.recognises(file)) == layout
        encoder = FORMATS[layout].read(file, Choices()).encoder
        jax.tree.map(np.testing.assert_array_equal, (encoder.params, encoder.frozen), (want.params, want.frozen))
        jax.tree.map(np.testing.assert_array_equal, encoder.heads.params, want.heads.params)
    bare = {name.removeprefix("module.backbone."): array for name, array in vicreg.items() if "projector" not in name}
    encoder = FORMATS["torchvision"].read(file_of(bare), Choices()).encoder
    jax.tree.map(np.testing.assert_array_equal, encoder.params, want.params["backbone"])
    dino = {"teacher": {f"backbone.{name}": array for name, array in bare.items()} | {"head.mlp.0.weight": np.zeros(1)}}
    file = file_of(dino)
    assert next(name for name, each in FORMATS.items() if each.recognises(file)) == "dino_resnet"
    encoder = FORMATS["dino_resnet"].read(file, Choices()).encoder
    jax.tree.map(np.testing.assert_array_equal, encoder.params, want.params["backbone"])
    assert encoder.input.resize == "bicubic"


def test_a_moco_head_of_one_layer_comes_along():
    arrays = held("moco.pth.tar")["state_dict"]
    one = {name: array for name, array in arrays.items() if ".fc." not in name}
    one |= {"module.encoder_q.fc.weight": np.ones((5, 64)), "module.encoder_q.fc.bias": np.zeros(5)}
    encoder = FORMATS["moco"].read(file_of({"state_dict": one}), Choices()).encoder
    assert encoder.heads.params["projector"]["output"]["kernel"].shape == (64, 5)


def test_timms_names_of_a_convnext():
    arrays = held("convnext.pth")["model"]
    renamed = {}
    for name, array in arrays.items():
        new = name.replace("downsample_layers.0", "stem").replace("dwconv", "conv_dw")
        new = new.replace("pwconv", "mlp.fc")
        if new.startswith("downsample_layers."):
            _, stage, rest = new.split(".", 2)
            new = f"stages.{stage}.downsample.{rest}"
        elif new.startswith("stages."):
            _, stage, block, rest = new.split(".", 3)
            new = f"stages.{stage}.blocks.{block}.{rest}"
        elif new.startswith("norm."):
            new = f"head.{new}"
        elif new.startswith("head."):
            new = new.replace("head.", "head.fc.")
        renamed[new] = array
    file = file_of(renamed)
    assert FORMATS["convnext"].recognises(file)
    imported = FORMATS["convnext"].read(file, Choices())
    want = checkpoints.read(FILES / "convnext.pth").encoder
    jax.tree.map(np.testing.assert_array_equal, imported.encoder.params, want.params)
    assert imported.unread == {"head.… (2 arrays)": "classifier"}
    small = {k: v[..., None, None] if ".mlp.fc" in k and k.endswith("weight") else v for k, v in renamed.items()}
    imported = FORMATS["convnext"].read(file_of(small), Choices())  # linear layers as convolutions of 1 × 1
    jax.tree.map(np.testing.assert_array_equal, imported.encoder.params, want.params)
    again = {**arrays, "norms.3.weight": arrays["norm.weight"], "norms.3.bias": arrays["norm.bias"] + 1}
    with pytest.raises(CheckpointError, match=r"norms.3.bias differs from norm.bias"):
        FORMATS["convnext"].read(file_of(again), Choices())


@pytest.mark.parametrize(
    ("layout", "name", "said"),
    [
        ("torchvision", "resnet_cifar.pth", "has a 7×7 stem; conv1.weight is .2, 3, 3, 3.*solo_learn has padding 2"),
        ("resnet_cifar", "torchvision.pth", "has a 3×3 stem; conv1.weight is .2, 3, 7, 7.*--as torchvision"),
        ("resnet_cifar", "resnet_cifar.pth", "does not say how its images were normalised; pass --mean and --std"),
        (
            "dinov2",
            "torchvision.pth",
            "not in the layout dinov2: it has no array …patch_embed.proj.weight. It holds .* such as .*conv1",
        ),
        ("moco", "barlow_twins.pth", "not in the layout moco: .*state_dict → module.encoder_q.layer1"),
        ("dino", "dino.pth", "the width 16 is not a multiple of 64; pass --heads"),
        ("mae", "dinov3.pth", "layout mae have no registers, LayerScale, rotary positions, and this file does"),
        ("dino", "timm.safetensors", "layout dino have no registers, positions of patches alone, and this file does"),
        ("dinov3", "mae.pth", "layout dinov3 have rotary positions, and this file has none"),
        ("dinov3", "dinov2_registers.safetensors", "layout dinov3 have rotary positions, and this file has none"),
    ],
)
def test_a_wrong_layout_is_refused_with_names(layout, name, said):
    with pytest.raises(CheckpointError, match=said):
        checkpoints.read(
            FILES / name, layout, Choices(heads=2 if name[:3] in ("tim", "mae") or "registers" in name else None)
        )


def test_parts_that_the_network_has_no_place_for_are_refused():
    arrays = held("mae_tuned.pth")["model"]
    odd = {**arrays, "norm_pre.weight": np.ones(16), "blocks.0.attn.q_norm.weight": np.ones(8)}
    with pytest.raises(CheckpointError) as refused:
        FORMATS["mae"].read(file_of({"model": odd}), Choices(heads=2))
    for name in ("norm_pre.weight: [16]", "blocks.0.attn.q_norm.weight: [8]"):
        assert f"{name} in the file, and no place for it in the network" in str(refused.value)
    for positions, said in (
        (np.zeros((1, 19, 16)), "pos_embed has 19 positions"),
        (None, "neither pos_embed nor rope"),
    ):
        changed = {name: array for name, array in arrays.items() if name != "pos_embed"}
        changed |= {} if positions is None else {"pos_embed": positions}
        with pytest.raises(CheckpointError, match=said):
            FORMATS["mae"].read(file_of({"model": changed}), Choices(heads=2))
    masked = dict(held("dinov3.pth")[""])
    masked["blocks.1.attn.qkv.bias_mask"] = np.ones(48)
    with pytest.raises(CheckpointError, match=r"blocks.1.attn.qkv.bias_mask masks more or less"):
        FORMATS["dinov3"].read(file_of(masked), Choices())
    with pytest.raises(CheckpointError, match="rotation has 2 heads, got --heads 4"):
        checkpoints.read(FILES / "dinov3.pth", choices=Choices(heads=4))


PUBLISHED = {
    "ResNet-18": (ResNet(stem="imagenet"), 11_689_512 - 513_000),
    "ResNet-34": (ResNet(blocks=(3, 4, 6, 3), stem="imagenet"), 21_797_672 - 513_000),
    "ResNet-50": (ResNet(blocks=(3, 4, 6, 3), block="bottleneck", stem="imagenet"), 25_557_032 - 2_049_000),
    "ResNet-101": (ResNet(blocks=(3, 4, 23, 3), block="bottleneck", stem="imagenet"), 44_549_160 - 2_049_000),
    "ConvNeXt-T": (ConvNeXt(), 28_589_128 - 769_000),
    "ViT-S/16 of DINO": (VisionTransformer(16, 384, 6, 12, 1536, 14), 21_665_664),
    "ViT-B/16 of MAE": (VisionTransformer(16, 768, 12, 12, 3072, 14), 86_567_656 - 769_000),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_their_published_sizes(name):
    """The sizes are torchvision's and the papers' own, without their classifiers."""
    module, size = PUBLISHED[name]
    assert trees.size(shapes_of(module, ToInput(224, 224))["params"]) == size


def test_images_that_patches_do_not_fill_and_heads_that_do_not_divide_are_refused():
    module = VisionTransformer(4, 16, 2, 1, 24, 4)
    with pytest.raises(StructureError, match="10×8 pixels cannot be cut into patches of 4"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 10, 8, 3))))
    for heads in (3, 0):
        with pytest.raises(StructureError, match=f"{heads} heads cannot share 16 channels"):
            jax.eval_shape(
                lambda number=heads: module.clone(heads=number).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
            )


def renamed(name, group, old, new):
    """The arrays of a file under another prefix."""
    arrays = held(name)[group]
    return {f"{new}{key.removeprefix(old)}": array for key, array in arrays.items() if key.startswith(old)}


def test_the_only_network_of_a_file_is_found_under_any_prefix():
    want = checkpoints.read(FILES / "torchvision.pth").encoder
    arrays = renamed("torchvision.pth", "", "", "online.net.")
    file = file_of({"epoch": 3, "ema": arrays})
    imported = FORMATS["torchvision"].read(file, Choices())
    jax.tree.map(np.testing.assert_array_equal, imported.encoder.variables(), want.variables())
    assert imported.recognised["found under"] == "ema/online.net"
    with pytest.raises(
        CheckpointError, match=r"several networks of the layout torchvision: ema/online.net, ema/target."
    ):
        FORMATS["torchvision"].read(
            file_of({"ema": {**arrays, **renamed("torchvision.pth", "", "", "target.")}}), Choices()
        )
    with pytest.raises(CheckpointError, match="It holds no arrays at its top or one level below"):
        FORMATS["torchvision"].read(file_of({"a": {"b": arrays}}), Choices())


@pytest.mark.parametrize(
    ("name", "layout", "choices", "said"),
    [
        ("torchvision.pth", None, {"heads": 2}, "--heads has no effect on files of the layout torchvision"),
        ("torchvision.pth", None, {"dataset": "cifar10"}, "--dataset has no effect"),
        ("torchvision.pth", None, {"loss": "simclr"}, "--loss needs the projector that SimCLR compared"),
        ("convnext.pth", None, {"part": "student"}, "--part has no effect on files of the layout convnext"),
        ("mae.pth", None, {"loss": "simclr"}, "--loss has no effect on files of the layout mae"),
        ("mae.pth", None, {}, "the width 16 is not a multiple of 64; pass --heads"),
        ("mae.pth", None, {"heads": 0}, "--heads must be at least 1, got 0"),
        ("mae.pth", None, {"size": 0}, "--size must be at least 1, got 0"),
    ],
)
def test_settings_without_effect_are_refused(name, layout, choices, said):
    with pytest.raises(CheckpointError, match=said):
        checkpoints.read(FILES / name, layout, Choices(**choices))


def test_widths_whose_heads_are_wider_must_say_their_number():
    arrays = {"patch_embed.proj.weight": np.ones((1280, 3, 1, 1)), "cls_token": np.ones((1, 1, 1280))}
    with pytest.raises(CheckpointError, match=r"the width 1280 have fewer .*pass --heads \(ViT-H"):
        FORMATS["mae"].read(file_of({**arrays, "blocks.0.norm1.weight": np.ones(1280)}), Choices())


@pytest.mark.parametrize(
    ("name", "key", "shape", "said"),
    [
        ("mae.pth", "patch_embed.proj.weight", (16, 3, 2, 4, 4), r"square patches; got \[16, 3, 2, 4, 4\]"),
        ("mae.pth", "patch_embed.proj.weight", (16, 3, 4, 2), "square patches; got"),
        ("dinov3.pth", "rope_embed.periods", (3,), "3 periods, 4 channels of a head for each"),
        ("dinov3.pth", "storage_tokens", (16,), r"storage_tokens must be .1, tokens, width., got \[16\]"),
        ("mae.pth", "pos_embed", (1, 0, 16), "0 positions, neither a square number nor one more"),
    ],
)
def test_arrays_of_impossible_shapes_are_refused(name, key, shape, said):
    group = "model" if name == "mae.pth" else ""
    arrays = {**held(name)[group], key: np.ones(shape, np.float32)}
    layout = name.removesuffix(".pth")
    with pytest.raises(CheckpointError, match=said):
        FORMATS[layout].read(file_of(arrays), Choices(heads=2 if layout == "mae" else None))


def test_whole_numbers_and_unknown_types_are_no_weights(monkeypatch):
    arrays = held("torchvision.pth")[""]
    quantised = {**arrays, "conv1.weight": arrays["conv1.weight"].astype(np.int8)}
    with pytest.raises(CheckpointError, match=r"conv1.weight: of int8 in the file, expected floating-point numbers"):
        FORMATS["torchvision"].read(file_of(quantised), Choices())
    file = file_of({**arrays, "conv1.weight": Foreign("torch.ComplexFloatStorage")})
    monkeypatch.setattr(WeightsFile, "open", {Path("weights.pth"): file}.__getitem__)
    with pytest.raises(CheckpointError, match=r"not read: conv1.weight \(torch.ComplexFloatStorage\)"):
        checkpoints.read("weights.pth", "torchvision")
