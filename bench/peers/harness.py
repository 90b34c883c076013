"""What lm-evaluation-harness with transformers makes of a model: prompts, log-likelihoods, generations and scores, for
bench/agreement.ts and test/evaluate/agreement.test.ts to compare with.

  python bench/peers/harness.py MODEL DATA OUT.json --limit 8 [--limit mmlu=2] [--tasks names] [--max-gen-toks 64]

DATA holds DATASET/CONFIG/SPLIT.jsonl in the hub's schema (npx tsx bench/benchmark-data.ts DATA makes it). Only hashes of
the prompts and generations are kept.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_ALLOW_CODE_EVAL"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import datasets  # noqa: E402
import evaluate  # noqa: E402
import torch  # noqa: E402

TASKS = {
    "winogrande": 5,
    "arc_challenge": 25,
    "arc_easy": 0,
    "mmlu": 5,
    "hellaswag": 10,
    "gsm8k": 5,
    "truthfulqa_mc1": 0,
    "truthfulqa_mc2": 0,
    "xlsum_english": 3,
    "mbpp": 3,
    "humaneval": 0,
    "wikitext": 0,
    "piqa": 0,
    "openbookqa": 0,
    "lambada_openai": 0,
}


def local_datasets(root: Path):
    def load(path, name=None, **_):
        folder = root / path / (name or "default")
        files = {file.name.split(".")[0]: file for file in sorted(folder.glob("*.jsonl"))}
        if not files:
            raise FileNotFoundError(f"no data in {folder}")
        splits = {}
        for split, file in files.items():
            with file.open(encoding="utf8") as lines:
                splits[split] = datasets.Dataset.from_list([json.loads(line) for line in lines])
        return datasets.DatasetDict(splits)

    return load


class CodeEval:
    """The harness's code_eval metric without its download: each program in a Python process of its own, 3 seconds."""

    def compute(self, references, predictions, k=(1,), **_):
        passed = []
        for reference, candidates in zip(references, predictions):
            results = [self.passes(f"{candidate}\n{reference}") for candidate in candidates]
            passed.append((len(results), sum(results)))
        scores = {}
        for size in k:
            values = [1 - product(1 - size / i for i in range(n - c + 1, n + 1)) if n - c >= size else 1 for n, c in passed]
            scores[f"pass@{size}"] = sum(values) / len(values)
        return scores, {}

    @staticmethod
    def passes(program):
        with tempfile.TemporaryDirectory() as folder:
            try:
                run = subprocess.run(
                    [sys.executable, "-I", "-c", program], cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, timeout=3
                )
            except (subprocess.TimeoutExpired, ValueError):
                return False
            return run.returncode == 0


def product(values):
    result = 1.0
    for value in values:
        result *= value
    return result


def digest(*parts):
    return hashlib.sha256("\0".join(parts).encode("utf8", "surrogatepass")).hexdigest()[:12]


def record(sample):
    prompts = [digest(*(part for part in request if isinstance(part, str))) for request in sample["arguments"]]
    replies = []
    for replies_of in sample["resps"]:
        reply = replies_of[0]
        if isinstance(reply, str):
            replies.append(digest(reply))
        elif isinstance(reply, (list, tuple)):
            replies.append([round(float(reply[0]), 5), int(reply[1])])
        else:
            replies.append([round(float(reply), 5)])
    return {"prompts": prompts, "replies": replies}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", default=",".join([*TASKS, "mbpp:0"]))
    parser.add_argument("--limit", action="append", default=[])
    parser.add_argument("--max-gen-toks", type=int)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--speed", action="store_true", help="seconds only, nothing is written")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    datasets.load_dataset = local_datasets(args.data)
    evaluate.load = lambda *_: CodeEval()

    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerFast

    limits = {}
    for limit in args.limit:
        name, _, value = limit.rpartition("=")
        limits[name] = float(value) if "." in value else int(value)
    # tokenizer.json as it is: transformers 5 rewrites Llama's, and then treats a space at a text's beginning otherwise
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.model)
    model = HFLM(pretrained=args.model, tokenizer=tokenizer, device="cpu", dtype="float32", batch_size=args.batch_size)
    manager = TaskManager(include_path=str(Path(__file__).parent / "tasks"))
    results = []
    for named in args.tasks.split(","):
        name, _, shots = named.partition(":")
        few_shot = int(shots) if shots else TASKS["mmlu" if name.startswith("mmlu_") else name]
        limit = limits.get(named, limits.get(name, limits.get("")))
        gen_kwargs = {"max_gen_toks": args.max_gen_toks} if args.max_gen_toks else None
        started = time.perf_counter()
        outcome = lm_eval.simple_evaluate(
            model=model,
            tasks=[name],
            num_fewshot=few_shot,
            limit=limit,
            gen_kwargs=gen_kwargs,
            log_samples=True,
            task_manager=manager,
            confirm_run_unsafe_code=True,
        )
        seconds = time.perf_counter() - started
        requests = sum(len(s["arguments"]) for samples in outcome["samples"].values() for s in samples)
        print(json.dumps({"task": name, "requests": requests, "seconds": seconds}), flush=True)
        if args.speed:
            continue
        scores = {
            task: {key: value for key, value in values.items() if isinstance(value, (int, float)) and key != "sample_len"}
            for task, values in {**outcome["results"], **outcome.get("groups", {})}.items()
        }
        samples = {}
        for task, found in outcome["samples"].items():  # one record a document, whatever its filters
            seen = {}
            for sample in found:
                seen.setdefault(sample["doc_id"], record(sample))
            samples[task] = [seen[doc] for doc in sorted(seen)]
        results.append({"task": name, "shots": few_shot, "limit": limit, "scores": scores, "samples": samples})
    if not args.speed:
        args.out.write_text(
            json.dumps(
                {"harness": lm_eval.__version__, "maxGenToks": args.max_gen_toks, "tasks": results}, separators=(",", ":")
            )
        )


if __name__ == "__main__":
    main()
