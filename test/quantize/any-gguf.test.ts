import { expectLlamaCppsBitsOfAny } from "./quantizer.js";

// every-kind.test.ts has more kinds of each
expectLlamaCppsBitsOfAny([
  { name: "falcon", kinds: ["q3_k_m", "tq2_0"] },
  { name: "falcon", sizes: { layers: 32, hidden: 64, ffn: 64 }, kinds: ["q8_0", "q4_k_m", "q3_k_l"] },
  { name: "mamba", kinds: ["f16", "q4_k_m"] },
  { name: "jamba", kinds: ["q8_0", "q3_k_m"] },
  { name: "dbrx", sizes: { layers: 2 }, kinds: ["q3_k_l", "mxfp4_moe"] },
  { name: "dbrx", sizes: { layers: 2, experts: 8 }, kinds: ["q4_k_m"] },
]);
