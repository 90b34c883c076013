import { expectLlamaCppsBits } from "./quantizer.js";

expectLlamaCppsBits();
