"""Loss of a model on a text with transformers, cut as Coppice cuts it: documents one after another, sequences of LENGTH tokens,
each predicting the next. Writes {loss, tokens} for several lengths.

    python bench/peers/perplexity.py MODEL_DIR TEXT(.gz) test/fixtures/perplexity-stories260K.json
"""
import gzip
import json
import sys

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

DOCUMENTS = 40


def main():
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json")
    text = (gzip.open if sys.argv[2].endswith(".gz") else open)(sys.argv[2], "rt").read()
    documents = [d.strip() for d in text.split("<|endoftext|>") if d.strip()][:DOCUMENTS]
    ids = [i for d in documents for i in tokenizer.encode(d).ids]
    result = {"documents": DOCUMENTS, "losses": []}
    for length in (64, 256):
        total, count = 0.0, 0
        for start in range(0, len(ids) - 1, length):
            x = torch.tensor([ids[start:start + length + 1]])
            with torch.no_grad():
                logits = model(x[:, :-1]).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, x[0, 1:], reduction="sum"))
            count += x.shape[1] - 1
        result["losses"].append({"length": length, "loss": total / count, "tokens": count})
    json.dump(result, open(sys.argv[3], "w"))


if __name__ == "__main__":
    main()
