"""Writes a small model in the forms that other tools quantize to: test/fixtures/quantized/NAME.

    pip install numpy ml_dtypes
    python bench/peers/make_quantized_fixtures.py

Each directory has the checkpoint, and in expected.safetensors what its matrices mean, by the definitions of transformers'
FineGrainedFP8, of compressed-tensors and of ml_dtypes. codes.json lists every value of the 8-bit floats.
"""

import json
import math
import pathlib
import struct

import ml_dtypes
import numpy as np

root = pathlib.Path(__file__).resolve().parents[2] / "test/fixtures"
E4M3, E5M2, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.bfloat16
NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8", "int32": "I32"}
NAMES |= {"int64": "I64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


def read(file):
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = data[8 + length :]
    return {
        name: np.frombuffer(body[entry["data_offsets"][0] : entry["data_offsets"][1]], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
    }


def write(file, tensors):
    header, body = {}, b""
    for name, value in tensors.items():
        data = np.ascontiguousarray(value).tobytes()
        header[name] = {
            "dtype": NAMES[value.dtype.name],
            "shape": list(value.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def spread(scale, shape, block):
    """The scale of each element of a matrix cut into blocks, the last of which may be smaller."""
    return np.repeat(np.repeat(scale, block[0], 0), block[1], 1)[: shape[0], : shape[1]]


def largest(matrix, block):
    rows, columns = (math.ceil(size / part) for size, part in zip(matrix.shape, block))
    result = np.zeros((rows, columns), np.float32)
    for i in range(rows):
        for j in range(columns):
            part = matrix[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            result[i, j] = np.abs(part).max()
    return result


def fp8_block(name, matrix):
    block = (24, 20)
    scale = largest(matrix, block) / 448
    stored = (matrix / spread(scale, matrix.shape, block)).astype(E4M3)
    value = (stored.astype(np.float32) * spread(scale, matrix.shape, block)).astype(BF16)
    return {name: stored, f"{name}_scale_inv": scale}, value


def fp8_tensor(name, matrix):
    scale = np.float32(np.abs(matrix).max() / 448)
    stored = (matrix / scale).astype(E4M3)
    module = name.removesuffix(".weight")
    extra = {f"{name}_scale": np.array(scale), f"{module}.input_scale": np.array(np.float32(0.5))}
    return {name: stored, **extra}, (stored.astype(np.float32) * scale).astype(BF16)


def fp8_channel(name, matrix):
    scale = (np.abs(matrix).max(1, keepdims=True) / 448).astype(BF16)
    stored = (matrix / scale.astype(np.float32)).astype(E4M3)
    return {name: stored, f"{name}_scale": scale}, (stored.astype(np.float32) * scale.astype(np.float32)).astype(BF16)


def int8_channel(name, matrix):
    low, high = np.minimum(matrix.min(1, keepdims=True), 0), np.maximum(matrix.max(1, keepdims=True), 0)
    scale = ((high - low) / 255).astype(np.float32)
    zero = np.clip(np.round(-128 - low / scale), -128, 127).astype(np.int8)
    stored = np.clip(np.round(matrix / scale) + zero, -128, 127).astype(np.int8)
    value = ((stored.astype(np.float32) - zero.astype(np.float32)) * scale).astype(np.float16)
    return {name: stored, f"{name}_scale": scale, f"{name}_zero_point": zero}, value


def int4_packed(name, matrix):
    group = 16
    rows, columns = matrix.shape
    grouped = matrix.reshape(rows, columns // group, group)
    scale = (np.abs(grouped).max(2) / 7.5).astype(np.float32)
    whole = np.clip(np.round(matrix / np.repeat(scale, group, 1)), -8, 7).astype(np.int64)
    packed = np.zeros((rows, math.ceil(columns / 8)), np.uint32)
    for i in range(8):
        packed |= ((whole[:, i::8] + 8).astype(np.uint32) << np.uint32(4 * i))
    value = (whole.astype(np.float32) * np.repeat(scale, group, 1)).astype(np.float16)
    extra = {f"{name}_scale": scale, f"{name}_shape": np.array(matrix.shape, np.int64)}
    return {f"{name}_packed": packed.view(np.int32), **extra}, value


def plain(name, matrix):
    """No scales: only other types of floats."""
    if "mlp" in name:
        stored = matrix.astype(E5M2)
        return {name: stored}, stored.astype(BF16)
    return {name: matrix.astype(np.float64)}, matrix


def group(**weights):
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"]}


def compressed(form, **weights):
    return {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed", **group(**weights)}


FORMS = {
    "fp8-block": (fp8_block, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [24, 20]}),
    "fp8-tensor": (fp8_tensor, {"quant_method": "fp8", "activation_scheme": "static"}),
    "float-quantized": (fp8_channel, compressed("float-quantized", num_bits=8, type="float", strategy="channel")),
    "int-quantized": (
        int8_channel,
        compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False),
    ),
    "pack-quantized": (
        int4_packed,
        compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=16, symmetric=True),
    ),
    "plain": (plain, None),
}

source = root / "models/llama-1"
weights = read(source / "model.safetensors")
for form, (convert, quantization) in FORMS.items():
    directory = root / "quantized" / form
    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    if quantization is not None:
        config["quantization_config"] = quantization
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    stored, expected = {}, {}
    for name, value in weights.items():
        if value.ndim == 2 and "layers" in name:
            tensors, meaning = convert(name, value)
            stored |= tensors
            if "layers.1.self_attn.o_proj" in name or "layers.0.mlp.down_proj" in name:
                expected[name] = meaning
        else:
            stored[name] = value.astype(BF16)
    write(directory / "model.safetensors", stored)
    write(directory / "expected.safetensors", expected)

codes = np.arange(256, dtype=np.uint8)
listed = {
    name: [None if math.isnan(x) else str(x) if math.isinf(x) else x for x in codes.view(kind).astype(float).tolist()]
    for name, kind in {"F8_E4M3": E4M3, "F8_E5M2": E5M2}.items()
}
(root / "quantized/codes.json").write_text(json.dumps(listed) + "\n")
