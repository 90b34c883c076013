// Copies docs/ to where the site is made, beside the packages that it is compiled with. typedoc adds the API reference.
import { cpSync, rmSync } from "node:fs";
import path from "node:path";

const pages = path.join(import.meta.dirname, "pages");
rmSync(pages, { recursive: true, force: true });
cpSync(path.join(import.meta.dirname, "../docs"), pages, { recursive: true });
