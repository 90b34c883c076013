import { writeFileSync } from "node:fs";
import path from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { FairQueue } from "../../src/serve/engine/fair-queue.js";
import { StopTexts } from "../../src/serve/engine/stop-texts.js";
import { ApiKeys, hashKey } from "../../src/serve/index.js";
import { temporaryDirectory } from "../temporary.js";

describe("stop texts", () => {
  const letters = fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 4 });

  it("end a text before the first of them, however the text is cut into chunks", () => {
    const chunksAndStops = fc.tuple(fc.array(letters, { maxLength: 12 }), fc.array(letters, { maxLength: 3 }));
    fc.assert(
      fc.property(chunksAndStops, ([chunks, stops]) => {
        const all = chunks.join("");
        const shown = new StopTexts(stops);
        let text = "";
        for (const chunk of chunks) {
          text += shown.push(chunk);
          expect(all.startsWith(text)).toBe(true);
        }
        text += shown.end();
        // the first place at which a stop text is complete
        const ends = stops.map((stop) => [all.indexOf(stop), stop] as const).filter(([at]) => at >= 0);
        if (ends.length === 0) expect(text).toBe(all);
        else {
          expect(shown.found).toBeDefined();
          expect(stops.some((stop) => text.includes(stop))).toBe(false);
          expect(all.startsWith(text + shown.found)).toBe(true);
        }
      }),
      { numRuns: 500 },
    );
  });
});

describe("a queue", () => {
  const never = new AbortController().signal;

  it("lets clients take turns, each in its own order", async () => {
    const queue = new FairQueue(1, 10);
    const order: string[] = [];
    const first = await queue.enter("a", never);
    const waiting = ["a1", "a2", "a3", "b1", "c1", "b2"].map(async (name) => {
      const leave = await queue.enter(name[0]!, never);
      order.push(name);
      leave();
    });
    expect(queue.waiting).toBe(6);
    first();
    await Promise.all(waiting);
    expect(order).toEqual(["a1", "b1", "c1", "a2", "b2", "a3"]);
    expect([queue.running, queue.waiting]).toEqual([0, 0]);
  });

  it("never lets more in than there are places, and forgets who leaves", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 3 }),
        fc.array(fc.tuple(fc.nat(3), fc.nat(4)), { maxLength: 30 }),
        async (places, all) => {
          const queue = new FairQueue(places, 100);
          let running = 0;
          const requests = all.map(async ([client, kind]) => {
            const abort = new AbortController();
            if (kind === 0) setImmediate(() => abort.abort(new Error("left")));
            try {
              const leave = await queue.enter(`${client}`, abort.signal);
              running++;
              expect(running).toBeLessThanOrEqual(places);
              await new Promise(setImmediate);
              running--;
              leave();
              leave(); // twice does no harm
            } catch (error) {
              expect((error as Error).message).toBe("left");
            }
          });
          await Promise.all(requests);
          expect([queue.running, queue.waiting]).toEqual([0, 0]);
        },
      ),
      { numRuns: 50 },
    );
  });

  it("that is full says when to try again", async () => {
    const queue = new FairQueue(1, 1);
    const leave = await queue.enter("a", never);
    const waiting = queue.enter("a", never);
    await expect(queue.enter("b", never)).rejects.toMatchObject({ status: 429, details: { retryAfter: 2 } });
    leave();
    (await waiting)();
  });
});

describe("keys", () => {
  const file = path.join(temporaryDirectory(), "keys");

  it("are known by their hashes", () => {
    writeFileSync(file, `# ours\n${hashKey("one")} laptop\n\n${hashKey("two")}\n`);
    const keys = ApiKeys.read(file);
    expect(["one", "two", "three", ""].map((key) => keys.clientOf(key)?.name)).toEqual([
      "laptop",
      "key 4",
      undefined,
      undefined,
    ]);
  });

  it.each([
    ["one\n", /keys:1 is not a SHA-256/],
    ["# nobody\n", /has no keys/],
  ])("that are not hashes are refused: %j", (content, message) => {
    writeFileSync(file, content);
    expect(() => ApiKeys.read(file)).toThrow(message);
    expect(() => ApiKeys.read(`${file}-none`)).toThrow(/no file of keys/);
  });
});
