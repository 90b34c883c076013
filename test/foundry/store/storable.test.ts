import { PGlite } from "@electric-sql/pglite";
import fc from "fast-check";
import { expect, it } from "vitest";
import { storedJson, storedText } from "../../../src/foundry/store/storable.js";

const db = await PGlite.create();

it("PostgreSQL stores any text and any JSON", async () => {
  const text = fc.string({
    unit: fc.constantFrom("a", "é", "😀", "\0", "\ud800", "\udc00", "\\", '"', "\\u0000"),
    maxLength: 8,
  });
  const json = fc.dictionary(text, fc.oneof(text, fc.integer(), fc.array(text)));
  await fc.assert(
    fc.asyncProperty(text, json, async (line, value) => {
      const { rows } = await db.query<{ line: string; value: object }>("select $1::text as line, $2::jsonb as value", [
        storedText(line),
        storedJson(value),
      ]);
      const unstorable = /\0|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
      expect(rows[0]!.line).toBe(line.replace(unstorable, "\ufffd"));
      expect(rows[0]!.value).toEqual(JSON.parse(storedJson(value)));
    }),
    { numRuns: 200 },
  );
  await db.close();
});
