import path from "node:path";
import { fileURLToPath } from "node:url";

/** This package's own folder (where package.json lies). */
export const packageRoot = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
