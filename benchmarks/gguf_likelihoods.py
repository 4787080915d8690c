"""Log-likelihoods of fixed texts by llama.cpp on a GGUF file, beside ours on the same file once it is dequantised.

    pip install xllamacpp             # llama.cpp; in an environment of its own, if need be, whose PYTHON is named below
    python -m benchmarks.gguf_likelihoods FILE [--llama PYTHON]       # minutes; writes benchmarks/gguf_likelihoods.json

llama.cpp reads the file by code that shares nothing with transformers. Token ids come from our tokenizer, and are
compared with llama.cpp's. It is no exact reference: its products take activations rounded to 8 bits, and where a tied
matrix stands in the file twice it embeds with the coarser one. So ours is also taken with that embedding.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

import gguf
import torch

from sdd_utils.base.files import file_sha256, write_json
from sdd_utils.base.provenance import process_provenance
from sdd_utils.models import chat_format, store

OUT = Path(__file__).with_suffix(".json")
TEXTS = [
    ("The capital of France is", " Paris, and the capital of Italy is Rome."),
    ("Water boils at", " 100 degrees Celsius at sea level."),
    ("def add(a, b):\n", "    return a + b\n"),
    ("for i in range(10):\n    if i % 2 == 0:\n", "        print(i)\n"),
    ("SELECT name FROM users WHERE", " age > 18 ORDER BY name;"),
    ("The quick brown fox", " jumps over the lazy dog."),
    ("To be, or not to be,", " that is the question."),
    ("Seven times eight is", " fifty-six."),
    ("12 + 30 =", " 42"),
    ("She sells 3 apples at $2 each, so she earns", " 3 * 2 = $6."),
    ("Plants make sugar from", " carbon dioxide and water in the presence of light."),
    ("The opposite of hot is", " cold, and the opposite of tall is short."),
    ("Die Hauptstadt von Deutschland ist", " Berlin."),
    ("La capitale de l'Espagne est", " Madrid."),
    ('{"name": "Ada",', ' "born": 1815}'),
    ("A triangle has", " three sides, a square has four."),
    ("The purple idea", " swallowed an entire Tuesday."),  # what no model expects
    ("import numpy as np\nx = np.zeros((3, 4))\nprint(x.shape)\n#", " (3, 4)"),
]
CHATS = [
    ("What is the largest planet?", "Jupiter is the largest planet in the solar system."),
    ("Tom has 5 pens and buys 7 more. How many has he?", "Tom has 5 + 7 = 12 pens."),
    ("Write a haiku about rain.", "Soft rain on the roof,\nthe garden drinks in silence,\nmorning holds its breath."),
]


def pairs_of(tokenizer) -> list[tuple[str, str]]:
    """Every prompt and its continuation."""
    asked = [([{"role": "user", "content": question}], answer) for question, answer in CHATS]
    return TEXTS + [(chat_format.render(tokenizer, question), answer) for question, answer in asked]


def ours(model, pairs: list[tuple[list[int], list[int]]]) -> list[float]:
    """Summed log-likelihood of every continuation, in nats, from one plain pass a pair."""
    sums = []
    for prompt, continuation in pairs:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + continuation])).logits[0, len(prompt) - 1 : -1].float()
        chosen = torch.tensor(continuation)[:, None]
        sums.append(logits.log_softmax(-1).gather(-1, chosen).sum().item())
    return sums


def with_the_files_embedding(model, file: Path):
    """The model with the embedding that the file holds, apart from the LM head."""
    (tensor,) = (tensor for tensor in gguf.GGUFReader(str(file)).tensors if tensor.name == "token_embd.weight")
    weight = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=model.dtype)
    model.get_input_embeddings().weight = torch.nn.Parameter(weight)
    return model


def llama_cpp(python: str, **asked) -> dict:
    """What `benchmarks/llama_cpp.py` answers, in another interpreter."""
    script = Path(__file__).with_name("llama_cpp.py")
    done = subprocess.run([python, script], input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Ask both engines, print a summary and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a GGUF file")
    parser.add_argument("--llama", default=sys.executable, help="interpreter that has xllamacpp (default: this one)")
    arguments = parser.parse_args()
    name = str(arguments.file.resolve())
    tokenizer = store.load_tokenizer(name)
    texts = pairs_of(tokenizer)
    ids = [[tokenizer(part, add_special_tokens=False)["input_ids"] for part in pair] for pair in texts]
    asked = {"file": name, "threads": torch.get_num_threads(), "texts": [*map("".join, texts)], "pairs": ids}
    theirs = llama_cpp(arguments.llama, **asked)
    whole = [tokenizer(prompt + continuation, add_special_tokens=False)["input_ids"] for prompt, continuation in texts]
    nats = {"llama.cpp": theirs["nats"]}
    for dtype in (torch.float32, torch.bfloat16):
        model, _ = store.load_model(name, dtype=dtype)
        nats[str(dtype).removeprefix("torch.")] = ours(model, ids)
        if dtype == torch.float32:
            nats["float32, embedding of the file"] = ours(with_the_files_embedding(model, arguments.file), ids)
    record = {
        "file": arguments.file.name,
        "sha256": file_sha256(arguments.file),
        "llama_cpp": f"xllamacpp {theirs['version']}",
        "same_tokens": whole == theirs["tokens"],
        "tokens": sum(len(continuation) for _, continuation in ids),
        "difference": {own: difference(nats[own], nats["llama.cpp"], ids) for own in nats if own != "llama.cpp"},
        "prompts": [
            {"prompt": prompt, "continuation": continuation, "tokens": len(ids[i][1])}
            | {"nats": {engine: round(sums[i], 4) for engine, sums in nats.items()}}
            for i, (prompt, continuation) in enumerate(texts)
        ],
        "provenance": process_provenance(seed=None),
    }
    write_json(OUT, record)
    print(json.dumps(record["difference"], indent=1), "tokens are the same:", record["same_tokens"])


def difference(own: list[float], theirs: list[float], ids: list) -> dict:
    """Between two engines' sums, in nats: mean absolute and largest a prompt, and mean absolute and signed a token."""
    gaps, tokens = [a - b for a, b in zip(own, theirs, strict=True)], [len(continuation) for _, continuation in ids]
    return {
        "mean_absolute": round(mean(map(abs, gaps)), 4),
        "largest": round(max(map(abs, gaps)), 4),
        "mean_absolute_per_token": round(sum(map(abs, gaps)) / sum(tokens), 4),
        "mean_per_token": round(sum(gaps) / sum(tokens), 4),
    }


if __name__ == "__main__":
    main()
