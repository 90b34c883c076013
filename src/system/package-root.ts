import path from "node:path";
import { fileURLToPath } from "node:url";

/** The directory of this package's package.json. */
export const packageRoot = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
