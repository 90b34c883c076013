import type { FileKind } from "../../src/quantize/index.js";
import { expectLlamaCppsBits, expectLlamaCppsBitsOfAny } from "./quantizer.js";

const COMMON: readonly FileKind[] = ["q8_0", "q4_k_m", "q3_k_m", "q3_k_l"];

expectLlamaCppsBits();

expectLlamaCppsBitsOfAny([
  { name: "falcon", kinds: [...COMMON, "q4_k_s", "q5_k_m", "tq2_0"] },
  { name: "falcon", sizes: { layers: 32, hidden: 64, ffn: 64 }, kinds: COMMON },
  { name: "mamba", kinds: ["f16", "q4_k_m", "mxfp4_moe"] },
  { name: "jamba", kinds: [...COMMON, "q2_k", "iq3_s"] },
  { name: "dbrx", sizes: { layers: 2 }, kinds: [...COMMON, "mxfp4_moe"] },
  { name: "dbrx", sizes: { layers: 2, experts: 8 }, kinds: [...COMMON, "mxfp4_moe", "q2_k"] },
]);
