"""A model's architecture without its weights, and its parameter and FLOP table.

    python -m sdd_utils.models.architecture Llama-3.1-8B-Instruct 2 4 6 8 10
    python -m sdd_utils.models.architecture path/to/config.json 4

`sdd_utils/models/configs/` holds the architecture of the models that the studies name, so that a study can be planned
where its model is gated, not cached or out of reach.
"""

import argparse
import copy
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import tabulate
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sdd_utils import ROOT
from sdd_utils.models import catalogue, gguf_files, hub, layer_rules, store


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers of a causal language model, whatever wraps it.

    Of the lists in its text decoder that are as long as the configuration says, the one that holds most parameters:
    vision towers, audio encoders and lists of small parts may be as long.

    Raises:
        ValueError: the text decoder has no such list.
    """
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    modules = text_modules(model).values()
    lists = [module for module in modules if isinstance(module, nn.ModuleList) and len(module) == depth]
    if not lists:
        raise ValueError(
            f"{type(model).__name__} has no decoder layers to prune: use a decoder-only causal language model"
        )
    return max(lists, key=lambda layers: sum(parameter.numel() for parameter in layers.parameters()))


def text_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model that reads text, without the LM head: of a multimodal model its language model."""
    decoder = model.get_decoder()
    return decoder if isinstance(decoder, PreTrainedModel) else model.base_model  # some call their LM head a decoder


def text_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules by name that a token of text passes: the text decoder, and what the model has behind it.

    Left out is what stands beside the text decoder, and parts of it that hold a model of another configuration class.
    """
    decoder, own = text_decoder(model), (type(model.config), type(model.config.get_text_config()))
    beside = set(model.base_model.modules()) - {model, *decoder.modules()}
    for child in decoder.children():
        inner = set(child.modules())
        if any(isinstance(module, PreTrainedModel) and type(module.config) not in own for module in inner):
            beside |= inner
    return {name: module for name, module in model.named_modules() if module not in beside}


def context_length(config: PretrainedConfig) -> float:
    """Tokens that a model reads at most, prompt and new ones together; infinite where its configuration names none."""
    text = config.get_text_config(decoder=True)
    named = (getattr(text, key, None) for key in ("max_position_embeddings", "max_seq_len"))
    return next((length for length in named if length and length > 0), float("inf"))


SHIPPED = Path(__file__).parent / "configs"
LINEAR = (nn.Linear, Conv1D)  # the latter is a linear map too, with its weight transposed (GPT-2)
_EXPERT = re.compile(r"\bexperts\.\d")  # a layer of one of several experts; most are tensors of a class of their own
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k", "moe_k")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a model's size is made of. Counts, but `kv_width`: numbers per token in the KV cache."""

    parameters: int
    matmul: int
    adapter: int
    layers: int
    hidden: int
    vocabulary: int
    layer_width: float  # inputs and outputs of one layer's linear maps, for one token
    kv_width: int


def find_config(name: str) -> tuple[transformers.PretrainedConfig, str]:
    """The configuration of a model, and where it was found; no weights are loaded, downloaded or converted.

    Args:
        name: what study key `model` allows, a config.json, or the name of a shipped architecture.

    Raises:
        FileNotFoundError: nothing of that name can be had, in one sentence.
    """
    place, shipped = ROOT / name, SHIPPED / f"{re.split('[@:]', name)[0].rsplit('/', 1)[-1]}.json"
    if place.is_dir():
        return store.load_config(name), f"folder {name}"
    packed = gguf_files.is_gguf(name) and name not in catalogue.CATALOGUE
    if packed and gguf_files.is_here(name):
        return store.load_config(name), f"the header of {name}"
    if place.is_file():
        return _read(place), f"file {name}"
    if cached := _of_hub(name, local_files_only=True):
        return cached, "the hub cache"
    if shipped.is_file():
        return _read(shipped), f"sdd_utils/models/configs/{shipped.name} (shipped; the model itself was not looked at)"
    if fetched := _of_hub(name, local_files_only=False):
        return fetched, "its config.json on the hub"
    if packed:
        raise FileNotFoundError(
            f"model {name!r} is not here, and only the file says its size: run 'make prefetch' first"
        )
    shipped_names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.json")))
    raise FileNotFoundError(
        f"model {name!r} has no config that can be had: go online once, set HF_TOKEN if it is gated, or name a "
        f"folder, a config.json or one of {shipped_names}"
    )


def _read(path: Path) -> transformers.PretrainedConfig:
    return transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)


def _of_hub(name: str, *, local_files_only: bool) -> transformers.PretrainedConfig | None:
    """The config.json of a hub id, the only file that is fetched; None where it cannot be had."""
    if not hub.is_hub_id(name):
        return None
    repo, _, revision = name.partition("@")
    settings = {"revision": revision or "main", "local_files_only": local_files_only, "trust_remote_code": False}
    try:
        return transformers.AutoConfig.from_pretrained(repo, **settings)
    except (OSError, ValueError):
        return None


def shape_of(config: transformers.PretrainedConfig, *, block_size: int, rank: int, targets: str) -> Shape:
    """Count a model on the meta device, the LoRA adapter of rank `rank` on `targets` included."""
    config = pruned_config(config, start=0, block_size=block_size)
    model = without_weights(config)
    text, account = config.get_text_config(), account_of(model)
    head = model.get_output_embeddings()
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, LINEAR) and layer is not head}
    chosen = [
        layer
        for name, layer in linear.items()
        if targets == "all-linear" or name.rpartition(".")[2] in targets.split(",")
    ]
    passed = text_modules(model)
    return Shape(
        parameters=account.parameters,
        matmul=account.matmul,
        adapter=sum(rank * sum(_widths(layer)) for layer in chosen),
        layers=account.layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        layer_width=sum(sum(_widths(layer)) for name, layer in linear.items() if name in passed) / account.layers,
        kv_width=_kv_width(model),
    )


def _widths(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear map, in the order of its weight."""
    return tuple(layer.weight.shape)


def _kv_width(model: PreTrainedModel) -> int:
    """Numbers that a token leaves in the KV cache: what the layers' own maps to keys and values give.

    Where those are one map with others, it follows from the configuration; of latent attention (MLA) transformers
    caches the latent vector and the rotary part of the keys. Layers of linear attention keep none.
    """
    text, layers = model.config.get_text_config(), decoder_layers(model)
    kinds = getattr(text, "layer_types", None) or [""] * len(layers)
    attending = [layer for layer, kind in zip(layers, kinds, strict=True) if not str(kind).startswith("linear")]
    if getattr(text, "kv_lora_rank", None):
        return len(attending) * (text.kv_lora_rank + text.qk_rope_head_dim)
    named = [pair for layer in attending for pair in layer.named_modules()]
    maps = [module for name, module in named if name.rpartition(".")[2] in ("k_proj", "v_proj")]
    if maps:
        return sum(layer.out_features for layer in maps if isinstance(layer, nn.Linear))
    heads = getattr(text, "num_attention_heads", 0) or 0  # a model that keeps states alone has none
    width = getattr(text, "head_dim", None) or text.hidden_size // max(heads, 1)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        kv_heads = 1  # Falcon's newer form caches what all heads read
    return 2 * len(attending) * kv_heads * width


def check_block(*, start: int, block_size: int, depth: int, smallest: int = 0) -> None:
    """Raise ValueError, in one sentence, unless [start, start + block_size) leaves some of `depth` layers."""
    if not smallest <= block_size < depth:
        allowed = f"{smallest}..{depth - 1}"
        raise ValueError(f"block size {block_size} is impossible: a model of {depth} layers allows {allowed}")
    if not 0 <= start <= depth - block_size:
        raise ValueError(
            f"block start {start} is impossible: {block_size} of {depth} layers can start at 0..{depth - block_size}"
        )


def kept_layers(*, start: int, block_size: int, depth: int) -> list[int]:
    """Indices, in the original model, of the layers that stay."""
    return [*range(start), *range(start + block_size, depth)]


def pruned_config(config: PretrainedConfig, *, start: int, block_size: int) -> PretrainedConfig:
    """A copy of a model's configuration for its form without a block, see `config_without`."""
    check_block(start=start, block_size=block_size, depth=config.get_text_config().num_hidden_layers)
    return config_without(config, range(start, start + block_size))


def config_without(config: PretrainedConfig, removed: Iterable[int]) -> PretrainedConfig:
    """A copy of a model's configuration for its form without these layers, see `layer_rules`.

    Raises:
        ValueError: a layer that the model does not have, one named twice, or all of them.
    """
    pruned, removed = copy.deepcopy(config), list(removed)
    text = pruned.get_text_config()
    kept = [layer for layer in range(text.num_hidden_layers) if layer not in removed]
    if not kept or len(kept) + len(removed) != text.num_hidden_layers:
        allowed = f"name some of 0..{text.num_hidden_layers - 1}, each once and not all of them"
        raise ValueError(f"layers {removed} cannot be removed from {text.num_hidden_layers}: {allowed}")
    layer_rules.renumber(text, kept)
    return pruned


@dataclass(frozen=True)
class Accounting:
    """Size of a model: `parameters` counts shared tensors once; `matmul` counts the weights that multiply
    a token (linear layers and LM head, no input embedding). FLOPs per token are 2x either, attention scores apart."""

    layers: int
    parameters: int
    matmul: int


def account(config: PretrainedConfig) -> Accounting:
    """Count a model's parameters from its configuration, on the meta device: no weights are loaded."""
    return account_of(without_weights(config))


def without_weights(config: PretrainedConfig):
    """The model that a configuration describes, on the meta device: shapes only."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))


def account_of(model: PreTrainedModel) -> Accounting:
    """Count the parameters of a model, which may be on the meta device."""
    share = _routed_share(model.config.get_text_config())
    matmul = sum(_multiplied(name, module, share) for name, module in text_modules(model).items())
    depth = model.config.get_text_config().num_hidden_layers
    return Accounting(layers=depth, parameters=sum(p.numel() for p in model.parameters()), matmul=round(matmul))


def _routed_share(text: PretrainedConfig) -> float:
    """The share of the routed experts that a token goes through; 1 for a model without experts."""
    chosen, all_ = (
        next((n for name in names if isinstance(n := getattr(text, name, None), int) and n), 1)
        for names in (_EXPERTS_PER_TOKEN, _EXPERTS)
    )
    return min(chosen / all_, 1.0)


def _multiplied(name: str, module: nn.Module, routed_share: float) -> float:
    """How many of a module's own weights multiply one token."""
    if isinstance(module, nn.Embedding):
        return 0
    routed = "Expert" in type(module).__name__ or bool(_EXPERT.search(name))
    own = {key: weight for key, weight in module.named_parameters(recurse=False) if weight.dim() > 1}
    matrices = [w.numel() for key, w in own.items() if key == "weight" or (routed and "bias" not in key)]
    return sum(matrices) * (routed_share if routed else 1)


def accounting_table(config: PretrainedConfig, block_sizes: list[int]) -> list[dict]:
    """One row per block size: layers, parameters, and the cut in both countings (shares of the original, 0..1).

    The paper's "FLOPs saved" of 16.30 % at n = 6 is the share of parameters; the share of matrix products
    that a token needs is larger. Both are given.
    """
    whole = account(config)
    rows = []
    for n in block_sizes:
        part = account(pruned_config(config, start=0, block_size=n))
        rows.append(
            {
                "block_size": n,
                "layers": part.layers,
                "parameters": part.parameters,
                "flops_per_token_2p": 2 * part.parameters,
                "flops_per_token_matmul": 2 * part.matmul,
                "cut_parameters": 1 - part.parameters / whole.parameters,
                "cut_matmul": 1 - part.matmul / whole.matmul,
            }
        )
    return rows


def architecture_table(config: transformers.PretrainedConfig, block_sizes: list[int]) -> str:
    """`accounting_table` for people: billions of parameters, GFLOP per token, cuts in per cent."""
    rows = [
        {
            "n": row["block_size"],
            "layers": row["layers"],
            "parameters": f"{row['parameters']:,}",
            "cut": f"{row['cut_parameters']:.2%}",
            "GFLOP per token, 2 x parameters": round(row["flops_per_token_2p"] / 1e9, 3),
            "GFLOP per token, matrix products": round(row["flops_per_token_matmul"] / 1e9, 3),
            "cut, matrix products": f"{row['cut_matmul']:.2%}",
        }
        for row in accounting_table(config, block_sizes)
    ]
    return tabulate.tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True, stralign="right")


def main() -> int:
    """Print the table of one model; exit status 2 and one sentence on a wrong name or block size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="hub id, folder, config.json, or the name of a shipped architecture")
    parser.add_argument("block_sizes", nargs="*", type=int, help="layers to remove (0, the original, always leads)")
    arguments = parser.parse_args()
    try:
        config, origin = find_config(arguments.model)
        table = architecture_table(config, [0, *(n for n in arguments.block_sizes if n)])
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.model}: architecture from {origin}\n\n{table}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
