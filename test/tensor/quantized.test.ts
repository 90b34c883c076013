import { describe, expect, it } from "vitest";
import { QUANTIZED_DTYPES, type QuantizedDType, toFloat32 } from "../../src/ggml/index.js";
import { convertRows } from "../../src/quantize/convert.js";
import { Random } from "../../src/system/random.js";
import { Graph, ops, TensorStore } from "../../src/tensor/index.js";
import { testBackends } from "../devices.js";
import { openBackend } from "./backend.js";

const random = new Random(11);
const normal = (count: number) => Float32Array.from({ length: count }, () => random.normal());
const [rows, columns, batch] = [48, 256, 5];
/** A software driver takes long to compile the products of other types. */
const ON_VULKAN: readonly QuantizedDType[] = ["q4_0", "q8_0", "q4_k"];
/** Quantizing to these types starts by computing tables for seconds. */
const SLOW: readonly QuantizedDType[] = ["iq1_s", "iq1_m", "iq2_xs", "iq2_s"];
const ON_CPU = QUANTIZED_DTYPES.filter((dtype) => !SLOW.includes(dtype));

// our kernels do not read quantized weights: the CPU with ggml alone stands for all variants
describe.each(testBackends.filter(([name]) => name === "the CPU" || name === "Vulkan"))(
  "quantized weights on %s",
  (name, options) => {
    const { backend, freeLater } = openBackend(options);

    it.each(name === "Vulkan" ? ON_VULKAN : ON_CPU)("%s multiply and look up as their values do", async (dtype) => {
      const weights = normal(rows * columns);
      const importance = new Float32Array(columns).fill(1);
      const stored = await convertRows(new Uint8Array(weights.buffer), {
        name: "w",
        from: "f32",
        to: dtype,
        columns,
        importance,
      });
      const values = toFloat32(backend.functions, stored, dtype);
      const store = new TensorStore(backend, 1);
      const w = store.add("w", [rows, columns], dtype);
      store.allocate();
      store.write(w, stored);
      const g = new Graph(backend);
      const x = g.input("x", "f32", [batch, columns]);
      const ids = g.input("ids", "i32", [3]);
      const product = g.output(ops.linear(g, x, w));
      const found = g.output(ops.embedding(g, w, ids));
      const input = normal(batch * columns);
      g.write(x, input);
      g.write(ids, Int32Array.of(7, 0, 47));
      await g.run();
      freeLater(g, store);
      const looked = g.read(found);
      [7, 0, 47].forEach((id, i) => {
        for (let c = 0; c < columns; c++) expect(looked[i * columns + c]).toBeCloseTo(values[id * columns + c]!, 5);
      });
      // ggml rounds the other operand to 8 bits: an error of 1 % of the sum's own spread
      const result = g.read(product);
      let squares = 0;
      let errors = 0;
      for (let i = 0; i < batch; i++)
        for (let j = 0; j < rows; j++) {
          let expected = 0;
          for (let c = 0; c < columns; c++) expected += input[i * columns + c]! * values[j * columns + c]!;
          squares += expected ** 2;
          errors += (expected - result[i * rows + j]!) ** 2;
        }
      expect(Math.sqrt(errors / squares)).toBeLessThan(0.02);
    });
  },
);
