import { existsSync } from "node:fs";
import path from "node:path";

/** Real models and corpora that lie beside the project where they are at hand; they are not part of it. */
const root = path.resolve(import.meta.dirname, "../../shared/data");

export const stories260K = path.join(root, "models/stories260K");
export const corpora = path.join(root, "corpora");
export const hasSharedData = existsSync(stories260K);

if (!hasSharedData) console.warn("skipped: tests on real data, because ../shared/data is not there");
