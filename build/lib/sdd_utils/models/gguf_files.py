"""Models that come as one GGUF file: dequantised to bfloat16, tied weights tied, with the file's own tokenizer.

Such a model is named by a catalogue name, by a file `path/to/file.gguf`, or by a file on the hub,
`org/name[@revision]:file.gguf`.
"""

import copy
import functools
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import gguf
import numpy as np
import torch
import transformers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sdd_utils import ROOT
from sdd_utils.base.files import sha256_once
from sdd_utils.models import catalogue, checkpoints, hub

_ON_HUB = re.compile(r"(?P<repo>[^/@:]+/[^/@:]+)(?:@(?P<revision>[^:]+))?:(?P<file>[^:]+)")
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
# How words are split before BPE: what transformers rebuilds, and GPT-2's own way, which it takes for everything else.
_WORDS = {*GGUF_PRE_TOKENIZER_SPLITS, "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "smollm"}
# Tokens that end a text in some family of models; a GGUF names one of them as its end and leaves the others unnamed.
_ENDS = {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "</s>"}
_FIX = "use its safetensors"
_PARTS = "is one of several parts: merge them with llama.cpp's llama-gguf-split --merge"


def is_gguf(name: str) -> bool:
    """Whether a model's name says that it comes as a GGUF file."""
    return name in catalogue.CATALOGUE or (name.endswith(".gguf") and not (ROOT / name).is_dir())


def locate(name: str) -> Path:
    """The file of a model, fetched from the hub if need be.

    Raises:
        FileNotFoundError, ValueError: no such file, or a part of one, in one sentence.
    """
    if name in catalogue.CATALOGUE:
        return catalogue.locate(name)
    if _PART.search(name):
        raise ValueError(f"model {name!r} {_PARTS}")
    if (ROOT / name).is_file():  # an absolute path stays what it is
        return ROOT / name
    if on_hub := _ON_HUB.fullmatch(name):
        return hub.downloaded_file(name, **on_hub.groupdict())
    raise FileNotFoundError(
        f"model {name!r} does not exist: name a .gguf file by its path, absolute or relative to the repository, or on "
        "the hub as org/name[@revision]:file.gguf"
    )


def is_here(name: str) -> bool:
    """Whether `locate` needs no network."""
    on_hub = not (ROOT / name).is_file() and _ON_HUB.fullmatch(name)
    return not on_hub or hub.has_file(**on_hub.groupdict())


def folder_name(name: str) -> str:
    """The name of the folder that a model's dequantised weights belong into: another one for every other file."""
    if name in catalogue.CATALOGUE:
        return name
    file, on_hub = locate(name), _ON_HUB.fullmatch(name)
    repo = f"{on_hub['repo'].replace('/', '--')}--" if on_hub else ""
    return f"{repo}{file.stem}-{sha256_once(file)[:12]}"


def _recipe(name: str) -> dict:
    """Where a model's weights come from, for its manifest."""
    file = locate(name)
    made = {"gguf_sha256": sha256_once(file), "dequantised": True}
    if name in catalogue.CATALOGUE:
        return catalogue.recipe(name) | made
    if on_hub := _ON_HUB.fullmatch(name):
        commit = file.parents[on_hub["file"].count("/")].name  # the hub's cache has a folder for every commit
        return {"hub": on_hub["repo"], "revision": on_hub["revision"], "commit": commit, "gguf": file.name} | made
    return {"gguf": file.name} | made


def read_config(name: str) -> transformers.PretrainedConfig:
    """The configuration of a model, from its file without the weights; raises what `dequantise` raises."""
    with _opened(name) as (reader, source):
        return _config(name, reader, source)


def dequantise(name: str, *, check: Callable) -> tuple[transformers.PreTrainedModel, object, dict]:
    """The model of a file in bfloat16, its tokenizer, and the recipe for its manifest.

    Args:
        check: raises ValueError for a configuration and a name whose weights are not to be read.

    Raises:
        FileNotFoundError, ValueError: the file is not there, or transformers would not read all that it says; in one
            sentence.
    """
    with _opened(name) as (reader, source):
        config, same = _config(name, reader, source), same_matrix(reader)
        check(config, name)
        if same:
            config.tie_word_embeddings = False  # both are read, and one of them then serves for both
        with _told(name):
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                **source,
                config=config,
                quantization_config=transformers.GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
                output_loading_info=True,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
        _check_all_read(name, reader, model, report)
    if same:
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        embedding.weight = head.weight = head.weight if same == _HEAD else embedding.weight
        model.config.tie_word_embeddings = True
    tokenizer.chat_template = catalogue.chat_template(name) or tokenizer.chat_template
    _name_ends(model, tokenizer)
    return model, tokenizer, _recipe(name) | ({"tied": same} if same else {})


@contextmanager
def _opened(name: str) -> Iterator[tuple[gguf.GGUFReader, dict]]:
    """A file's reader, and what tells transformers of the file: alone in a folder, as it reads what lies beside it."""
    file = locate(name)
    with file.open("rb") as start:
        if start.read(4) != b"GGUF":
            raise ValueError(f"model {name!r} is no GGUF file, as it does not begin with 'GGUF': fetch it again")
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        # transformers parses a file three times and makes its table of names for every module: twice the time.
        for function in ("GGUFReader", "get_tensor_name_map"):
            stack.enter_context(mock.patch.object(gguf, function, functools.cache(getattr(gguf, function))))
        alone = Path(folder) / "model.gguf"
        alone.symlink_to(file.resolve())
        try:
            reader = gguf.GGUFReader(str(alone))
        except (ValueError, LookupError, OverflowError) as error:
            said = " ".join(str(error).split())[:150]
            problem = f"is a damaged GGUF file, or not all of it ({said})"
            raise ValueError(f"model {name!r} {problem}: fetch it again") from error
        _check_header(name, reader)
        yield reader, {"pretrained_model_name_or_path": folder, "gguf_file": alone.name, "trust_remote_code": False}


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What transformers says of a file that it cannot read, in one sentence."""
    try:
        yield
    except (*checkpoints.FAILURES, OSError) as error:
        said = " ".join(str(error).split())[:150]
        raise ValueError(f"model {name!r}: transformers cannot read this GGUF file ({said}): {_FIX}") from error


def _field(reader: gguf.GGUFReader, key: str):
    return reader.fields[key].contents() if key in reader.fields else None


def _check_header(name: str, reader: gguf.GGUFReader) -> None:
    """Raise ValueError for what transformers would take for something else without a word."""
    if (_field(reader, "split.count") or 1) > 1:
        raise ValueError(f"model {name!r} {_PARTS}")
    architecture = _field(reader, "general.architecture")
    scaling = _field(reader, f"{architecture}.rope.scaling.type")
    if scaling not in (None, "none") and architecture != "gpt-oss":
        raise ValueError(f"model {name!r}: transformers does not read how a GGUF scales positions ({scaling}): {_FIX}")
    words = _field(reader, "tokenizer.ggml.pre")
    if _field(reader, "tokenizer.ggml.model") == "gpt2" and words not in _WORDS:
        raise ValueError(f"model {name!r}: transformers cannot split words as this GGUF does ({words}): {_FIX}")


def _config(name: str, reader: gguf.GGUFReader, source: dict) -> transformers.PretrainedConfig:
    with _told(name):
        folder, settings = source["pretrained_model_name_or_path"], {"gguf_file": source["gguf_file"]}
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, **settings)
    if same_matrix(reader):
        config.tie_word_embeddings = True
    factors = [tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    return _with_llama3_positions(name, config, factors[0]) if factors else config


def _with_llama3_positions(name: str, config, factors: np.ndarray) -> transformers.PretrainedConfig:
    """The configuration with Llama 3's scaled positions, which a GGUF holds as a divisor of each frequency only."""
    scaled, plain = (
        copy.deepcopy(config),
        1 / config.rope_parameters["rope_theta"] ** (np.arange(len(factors)) / len(factors)),
    )
    scaled.rope_parameters |= {"rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": 1.0}
    scaled.rope_parameters |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))
    if not np.allclose(frequencies.numpy(), plain / factors, rtol=1e-4, atol=0):
        raise ValueError(f"model {name!r}: its positions are scaled otherwise than Llama 3's: {_FIX}")
    return scaled


def same_matrix(reader: gguf.GGUFReader) -> str:
    """Which of embedding and LM head is the more precise, where both are one matrix quantised twice; "" otherwise.

    Quantised to b bits a weight, Qwen2.5-Coder-0.5B's matrix moves by 2.0 / 2^b (Q4_0, Q5_0) to 2.5 / 2^b (Q4_1, Q5_1)
    of its norm. The two in its official file (Q8_0 and Q5_0, of 5.5 bits) are 0.044 apart, two that have nothing to do
    with each other 1.2 (its rows in another order) to 1.4 (random). The limit is 6 / 2^b of the coarser one, here 0.13,
    and at most 0.5: a head that was trained apart from its embedding stays apart.
    """
    pair = [tensor for tensor in reader.tensors if tensor.name in (_EMBEDDING, _HEAD)]
    if len(pair) < 2 or [*pair[0].shape] != [*pair[1].shape]:
        return ""
    every = max(1, pair[0].data.shape[0] // 4096)  # rows, spread over the vocabulary
    first, second = (gguf.dequantize(tensor.data[::every], tensor.tensor_type) for tensor in pair)
    distance = np.linalg.norm(first - second) / max(np.linalg.norm(first), np.linalg.norm(second))
    bits = {tensor.name: 8 * tensor.n_bytes / tensor.n_elements for tensor in pair}
    return max(bits, key=bits.get) if distance <= min(6 / 2 ** min(8, *bits.values()), 0.5) else ""


def _check_all_read(name: str, reader: gguf.GGUFReader, model, report: dict) -> None:
    """Raise ValueError unless every weight of the model was in the file, and every one of the file is in the model."""
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"model {name!r} lacks {len(missing)} tensors that it needs, such as {missing[0]}: {_FIX}")
    depth = model.config.get_text_config().num_hidden_layers  # what predicts further tokens stands behind the layers
    held = {tensor.name: tensor.n_elements for tensor in reader.tensors if _layer(tensor.name) < depth}
    held.pop("rope_freqs.weight", None)  # read, see `_config`
    if model.config.tie_word_embeddings:
        held.pop(_HEAD, None)
    tensors = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    if (unread := int(sum(held.values())) - sum(tensors.values())) != 0:
        raise ValueError(f"model {name!r}: transformers leaves {unread:,} numbers of the file unread: {_FIX}")


def _layer(tensor: str) -> int:
    """The number of a tensor's layer; -1 for one outside the layers."""
    parts = tensor.split(".")
    return int(parts[1]) if parts[0] == "blk" else -1


def _name_ends(model, tokenizer) -> None:
    """Name every token that ends a text in the generation settings, where the vocabulary has more than one."""
    added = tokenizer.added_tokens_decoder.items()
    others = [id_ for id_, token in added if token.content in _ENDS and id_ != tokenizer.unk_token_id]
    ends = [*dict.fromkeys(id_ for id_ in (tokenizer.eos_token_id, *others) if id_ is not None)]
    if len(ends) > 1:
        ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "pad_token_id")}
        model.generation_config = transformers.GenerationConfig(eos_token_id=ends, **ids)
