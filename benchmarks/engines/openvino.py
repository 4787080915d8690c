"""OpenVINO GenAI on a model that optimum-intel exports once into `folder`."""

import subprocess
import sys
from pathlib import Path

from benchmarks.engines import exchange


def start(
    *, model: str, ends: list[int], rows: int, longest: int, threads: int, dtype: str, folder: str
) -> exchange.Decode:
    import openvino as ov
    import openvino_genai as genai

    exported = Path(folder) / "openvino"
    if not exported.is_dir():
        _export(model, exported)
    pages = genai.SchedulerConfig()
    pages.max_num_seqs, pages.enable_prefix_caching, pages.cache_size = rows, False, 2
    # What a CPU computes in by default is kept, but keys and values would be rounded to 8 bits.
    kind = {"bfloat16": ov.Type.bf16, "float32": ov.Type.f32}[dtype]
    precise = {"INFERENCE_PRECISION_HINT": kind, "KV_CACHE_PRECISION": kind, "INFERENCE_NUM_THREADS": threads}
    pipeline = genai.ContinuousBatchingPipeline(str(exported), pages, "CPU", precise)

    def decode(prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        config = genai.GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, stop_token_ids={*ends})
        asked = [ov.Tensor([prompt]) for prompt in prompts]
        finished = pipeline.generate(asked, [config] * len(asked))
        return [row.m_generation_ids[0] for row in finished]

    return decode


def _export(model: str, folder: Path) -> None:
    """In a process of its own: what it needs of memory and threads is no part of decoding."""
    part = folder.with_suffix(".part")
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", model]
    subprocess.run([*command, "--task", "text-generation-with-past", "--weight-format", "fp16", str(part)], check=True)
    part.rename(folder)


if __name__ == "__main__":
    exchange.serve(start)
