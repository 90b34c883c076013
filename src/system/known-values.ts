import { existsSync, readFileSync } from "node:fs";
import { z } from "zod";
import { writeJson } from "./files.js";

const fileSchema = z.object({ identity: z.string(), values: z.array(z.tuple([z.string(), z.unknown()])) });

/** Values that took long to find, kept in a file, so that a job that is killed need not find them again. */
export class KnownValues {
  private readonly values: Map<string, unknown>;

  /** @param identity of what the values depend on beside their keys: values of another are forgotten */
  constructor(
    private readonly file: string,
    private readonly identity: string,
  ) {
    this.values = new Map(read(file, identity));
  }

  /** A value that was found before, or else found now. It must survive JSON. */
  async once<T>(key: readonly unknown[], find: () => Promise<T>): Promise<T> {
    const known = this.get<T>(key);
    if (known !== undefined) return known;
    const value = await find();
    this.set(key, value);
    return value;
  }

  /** A value that was found before. */
  get<T>(key: readonly unknown[]): T | undefined {
    return (this.values.get(JSON.stringify(key)) ?? undefined) as T | undefined;
  }

  set(key: readonly unknown[], value: unknown): void {
    this.values.set(JSON.stringify(key), value);
    writeJson(this.file, { identity: this.identity, values: [...this.values] });
  }
}

/** What a file holds; nothing where it is damaged: then it is found anew. */
function read(file: string, identity: string): (readonly [string, unknown])[] {
  if (!existsSync(file)) return [];
  try {
    const parsed = fileSchema.parse(JSON.parse(readFileSync(file, "utf8")));
    return parsed.identity === identity ? parsed.values : [];
  } catch {
    return [];
  }
}
