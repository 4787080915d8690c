"""Whether a saved model is, read back, the model that was saved; and what transformers 4 must find in its files."""

import json
import math
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING

# In a configuration, or kept by a module, beside what makes numbers.
_NAMES_OF_THE_RUN = ("transformers_version", "dtype", "architectures", "name_or_path")
# What an architecture's code may raise where a layer is not in the place that it was made for.
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, StrictDataclassError)
LARGEST_GAP = 1e-3  # of logits that are one, in standard deviations; the same code gives the same bits on CPUs


def difference(saved, loaded, report: dict) -> str:
    """The first difference between a model and what was read back, in a few words; "" where there is none.

    Configuration and attributes are compared besides logits, as a short text does not reach a sliding window's end.

    Args:
        saved, loaded: two models on one device, in evaluation mode.
        report: transformers' report of the loading.
    """
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report[kind])):
            return f"{len(names)} of its tensors are {kind.removesuffix('_keys')}, such as {names[0]}"
    for settings in (_configuration, _attributes):
        before, after = settings(saved), settings(loaded)
        both = [name for name in before if name in after]  # a kind of layer may be gone, and what was kept for it
        if changed := [name for name in both if not _equal(before[name], after[name])]:
            name = changed[0]
            return f"its {name} is {after[name]} in place of {before[name]}"
    gap = largest_gap(some_logits(saved), some_logits(loaded))
    return f"its logits differ by {gap:.2g} standard deviations" if gap > LARGEST_GAP else ""


def _equal(before, after) -> bool:
    """Whether two values are one; a scale may have been computed in another order."""
    numbers = isinstance(before, float) and isinstance(after, float)
    return before == after or (numbers and math.isclose(before, after, rel_tol=1e-6))


def _configuration(model) -> dict:
    values = json.loads(model.config.to_json_string(use_diff=False))
    return {name: value for name, value in values.items() if name not in _NAMES_OF_THE_RUN and name[0] != "_"}


def _attributes(model: nn.Module) -> dict:
    """Every number, switch and word that a module keeps: kinds and scales that are computed from a layer's index."""
    return {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float | bool | str) and key[0] != "_" and key not in _NAMES_OF_THE_RUN
    }


@torch.no_grad()
def some_logits(model) -> torch.Tensor:
    """(1, 16, vocabulary) logits on 16 tokens, in float32."""
    ids = torch.arange(1, 17, device=model.device)[None]
    return model(input_ids=ids, use_cache=False).logits.float()


def largest_gap(logits: torch.Tensor, others: torch.Tensor) -> float:
    """Largest difference of logits, in standard deviations; infinite where it is no number."""
    gap = float((logits - others).abs().max() / logits.std())
    return gap if gap == gap else math.inf  # NaN is not itself


def add_names_of_version_4(folder: Path) -> None:
    """Add to a folder of transformers 5 what transformers 4 looks for: keys, rotary settings, tokenizer by old names.

    Version 5 reads the old names as well.
    """
    _rewrite(folder / "config.json", _name_keys)
    _rewrite(folder / "tokenizer_config.json", _name_tokenizer)


def _rewrite(path: Path, change) -> None:
    if path.is_file():
        values = json.loads(path.read_text(encoding="utf-8"))
        change(values)
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _name_keys(config: dict) -> None:
    for part in (config, config.get("text_config") or {}):
        _name_rotary(part)
        names = CONFIG_MAPPING[part["model_type"]].attribute_map if part.get("model_type") in CONFIG_MAPPING else {}
        for other, name in names.items():  # such as the number of experts, whose name changed for some models
            if name in part:
                part.setdefault(other, part[name])


def _name_rotary(config: dict) -> None:
    rotary = config.get("rope_parameters") or {}
    everywhere = rotary.get("full_attention", rotary)  # or one set of settings per kind of layer, as in Gemma 3
    if "rope_theta" not in everywhere:
        return
    config["rope_theta"] = everywhere["rope_theta"]
    if "partial_rotary_factor" in everywhere:
        config["partial_rotary_factor"] = everywhere["partial_rotary_factor"]
    if str(config.get("model_type")).startswith("gpt_neox"):
        config["rotary_emb_base"] = everywhere["rope_theta"]
        config["rotary_pct"] = everywhere.get("partial_rotary_factor", 1.0)
    if "sliding_attention" in rotary:
        config["rope_local_base_freq"] = rotary["sliding_attention"]["rope_theta"]
    elif everywhere.get("rope_type", "default") != "default":
        config["rope_scaling"] = everywhere


def _name_tokenizer(settings: dict) -> None:
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):  # version 4 has a table under this name
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
