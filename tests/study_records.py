"""Records of a tiny study, as far as analysis and report read them."""

import numpy as np


def score(documents, **changes):
    """A task's score whose one measure is the accuracy, clear of chance."""
    base = {"metric": "acc", "n": len(documents), "chance": 0.0, "accuracy": measured(documents)}
    return base | changes


def measured(documents):
    return {"value": float(np.mean(documents)), "stderr": 0.01, "documents": np.asarray(documents, float).tolist()}


def study_records():
    def pruning(n, documents):
        accounting = {"layers": 5 - n, "parameters": 10 - n, "cut_parameters": n / 10, "cut_matmul": n / 10}
        metrics = {"scores": {"a": score(documents)}, "accounting": accounting}
        return {"step": "pruning", "params": {"block_size": n}, "metrics": metrics}

    documents, training = {"sft": [1, 0, 0, 0], "self_data_ft": [1, 1, 0, 0]}, {"rows": 40}
    arms = {arm: {"scores": {"a": score(own)}, "training": training} for arm, own in documents.items()}
    params = {"block_size": 2, "data_set": "d", "seed": 0, "capacity": ""}
    params |= {"lora_rank": 16, "lora_alpha": 32, "lora_targets": "all-linear"}
    tuned = {"step": "finetuning", "params": params, "metrics": {"arms": arms}}
    return [pruning(0, [1, 1, 1, 1]), pruning(2, [0, 0, 0, 1]), tuned]
