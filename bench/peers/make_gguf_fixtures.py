"""Describes the GGUF files that llama.cpp's own converter makes of the test models: test/fixtures/gguf/NAME.json.

    python bench/peers/make_gguf_fixtures.py PATH_OF_LLAMA_CPP

The models have no tokenizers, so each gets the one that the test gives it: byte-level, of as many tokens as the model has.
"""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

llama_cpp = pathlib.Path(sys.argv[1]).resolve()
sys.path[:0] = [str(llama_cpp / "gguf-py"), str(llama_cpp)]
from gguf import GGUFReader, GGUFValueType  # noqa: E402

root = pathlib.Path(__file__).resolve().parents[2] / "test/fixtures"
LONG = 64


def tokenizer(size):
    names = [f"<{i}>" if i < 3 else f"token{i}" for i in range(size)]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": names[i], **added} for i in range(3)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {name: i for i, name in enumerate(names)}, "merges": []},
    }


# the converter knows pre-tokenizers by a hash of what they make of a text, and stops at those it has not met
CONVERT = """
import runpy, sys
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def value(field):
    content = field.contents()
    if isinstance(content, list) and len(content) > LONG:
        return {"length": len(content), "sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest()}
    return content


def describe(file):
    reader = GGUFReader(file)
    return {
        "metadata": {
            name: {"kind": [GGUFValueType(t).name for t in field.types], "value": value(field)}
            for name, field in reader.fields.items()
            if not name.startswith("GGUF.")
        },
        "tensors": {
            t.name: {
                "type": t.tensor_type.name,
                "shape": [int(n) for n in reversed(t.shape)],
                "sha256": hashlib.sha256(t.data.tobytes()).hexdigest(),
            }
            for t in reader.tensors
        },
    }


(root / "gguf").mkdir(exist_ok=True)
for model in sorted((root / "models").iterdir()):
    if model.name == "stories260K":
        continue
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary) / model.name
        shutil.copytree(model, work)
        (work / "expected-logits.safetensors").unlink()
        config = json.loads((work / "config.json").read_text())
        (work / "tokenizer.json").write_text(json.dumps(tokenizer(config["vocab_size"])))
        (work / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
        out = pathlib.Path(temporary) / "out.gguf"
        command = [sys.executable, "-c", CONVERT, str(llama_cpp / "convert_hf_to_gguf.py"), str(work)]
        done = subprocess.run(
            [*command, "--outtype", "f32", "--outfile", str(out)],
            cwd=llama_cpp,
            env={"PYTHONPATH": f"{llama_cpp}:{llama_cpp / 'gguf-py'}"},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            print(f"{model.name}: not converted: {done.stderr.strip().splitlines()[-1]}")
            continue
        (root / "gguf" / f"{model.name}.json").write_text(json.dumps(describe(out), indent=1, ensure_ascii=False) + "\n")
        print(model.name)
