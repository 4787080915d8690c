"""Merges of LoRA adapters. A task vector is what training added to the weights (arXiv 2212.04089): here a product B A.

Two adapters beside each other are one adapter of both ranks, so a weighted sum of two task vectors is an adapter, too.
Nothing is rounded, and the merge is scored just as its parents are, beside weights in any precision.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdd_utils.base.files import whole_folder
from sdd_utils.engine.generation import ADAPTER_WEIGHTS
from sdd_utils.models.adapters import REPORT
from sdd_utils.steps.merging import LERP_ABOVE, angle, falls_back, slerp_weights

CONFIG = "adapter_config.json"
_PLAIN = {"rank_pattern": {}, "alpha_pattern": {}, "use_dora": False, "use_rslora": False, "bias": "none"}


def merge_adapters(a: Path, b: Path, *, out: Path, t: float, how: str = "slerp") -> dict:
    """Write the merge of two adapters, trained on the same weights, as an adapter.

        x s B A + y s' B' A' = [x s B, y s' B'] [A; A'],   s = alpha / r of each

    Args:
        how: "slerp" goes along the arc between the two task vectors of each tensor; "lerp" straight, which is also what
            LERP of the whole weights gives.
        t: from a (0) to b (1).

    Returns:
        {angles: {module: radians}, lerp_share: share of the modules where SLERP falls back, 0..1, lerp_above: the
        |cosine| from which it does}.

    Raises:
        ValueError: the adapters change other modules, were trained on other weights, or are no plain LoRA.
    """
    configs, trained_on = ([_json(folder / name) for folder in (a, b)] for name in (CONFIG, REPORT))
    _check(a, b, configs, [report["weights"] for report in trained_on])
    tensors, angles = {}, {}
    for name, pair in _paired(a, b):
        angles[name] = w = angle(*(up @ down for up, down in pair))
        shares = slerp_weights(how, w, t)
        scales = [share * config["lora_alpha"] / config["r"] for share, config in zip(shares, configs, strict=True)]
        tensors[f"{name}.lora_A.weight"] = torch.cat([down for _, down in pair])
        tensors[f"{name}.lora_B.weight"] = torch.cat(
            [scale * up for scale, (up, _) in zip(scales, pair, strict=True)], 1
        )
    rank = sum(config["r"] for config in configs)
    with whole_folder(out) as scratch:
        save_file(tensors, scratch / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (scratch / CONFIG).write_text(json.dumps(configs[0] | {"r": rank, "lora_alpha": rank}))
        (scratch / REPORT).write_text(json.dumps({"weights": trained_on[0]["weights"]}))
    share = sum(map(falls_back, angles.values())) / len(angles)
    return {"angles": angles, "lerp_share": share, "lerp_above": LERP_ABOVE}


def _json(path: Path) -> dict:
    return json.loads(path.read_text())


def _check(a: Path, b: Path, configs: list[dict], weights: list[dict]) -> None:
    if weights[0] != weights[1]:
        raise ValueError(f"adapters {a.name} and {b.name} were trained on other weights: merge two of one block")
    for folder, config in zip((a, b), configs, strict=True):
        if other := [key for key, plain in _PLAIN.items() if config.get(key, plain) != plain]:
            raise ValueError(f"adapter {folder.name} has {other[0]} = {config[other[0]]!r}: only plain LoRA is merged")


def _paired(a: Path, b: Path) -> Iterator[tuple[str, list[tuple[Tensor, Tensor]]]]:
    """By module, B and A of both adapters in float32."""
    left, right = (load_file(folder / ADAPTER_WEIGHTS) for folder in (a, b))
    if apart := sorted(left.keys() ^ right.keys()):
        raise ValueError(f"adapters {a.name} and {b.name} differ in {apart[0]!r}: a merge needs the same modules")
    for name in sorted({name.rpartition(".lora_")[0] for name in left}):
        factors = ([side[f"{name}.lora_{which}.weight"].float() for which in "BA"] for side in (left, right))
        yield name, [tuple(pair) for pair in factors]
