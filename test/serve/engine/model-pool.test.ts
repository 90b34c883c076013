import { describe, expect, it } from "vitest";
import type { HostedModel } from "../../../src/serve/engine/hosted-model.js";
import { ModelPool, type ModelSource } from "../../../src/serve/engine/model-pool.js";

/** A model that takes so many bytes, and computes nothing. */
const source = (name: string, bytes: number): ModelSource => ({
  name,
  expectedBytes: () => bytes,
  open: async () => ({ memoryBytes: bytes, dispose: async () => {} }) as HostedModel,
});
const poolOf = (patienceMs: number) =>
  new ModelPool([source("busy", 6), source("other", 6)], { slots: 1, queueLimit: 9, memoryLimit: 10, patienceMs });
const { signal } = new AbortController();
/** Lets everything that is ready happen. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

describe("a model that does not fit beside a busy one", () => {
  it("gets its turn, though requests for the other never stop", async () => {
    const pool = poolOf(0);
    const first = await pool.lease("busy", signal);
    const order: string[] = [];
    const other = pool.use("other", signal, async () => void order.push("other"));
    await settle();
    const second = pool.use("busy", signal, async () => void order.push("busy"));
    await settle();
    expect(order).toEqual([]); // both wait for the first to end
    first.release();
    await Promise.all([other, second]);
    expect(order).toEqual(["other", "busy"]);
    await pool.close();
  });

  it("waits a while before it keeps others waiting", async () => {
    const pool = poolOf(1e9);
    const first = await pool.lease("busy", signal);
    const other = pool.use("other", signal, async () => {});
    await settle();
    const second = await pool.lease("busy", signal); // at once
    first.release();
    second.release();
    await other;
    await pool.close();
  });

  it("is not waited for when nobody wants it any more", async () => {
    const pool = poolOf(0);
    const first = await pool.lease("busy", signal);
    const leaving = new AbortController();
    const other = pool.use("other", leaving.signal, async () => {});
    await settle();
    const second = pool.use("busy", signal, async () => "at once");
    leaving.abort(new Error("the client left"));
    await expect(other).rejects.toThrow("the client left");
    expect(await second).toBe("at once"); // while the first is still in use
    first.release();
    await pool.close();
  });

  it("lets as many requests wait as may, and no more", async () => {
    const pool = poolOf(0);
    const first = await pool.lease("busy", signal);
    const waiting = [pool.use("other", signal, async () => {})];
    await settle();
    for (let i = 1; i < 9; i++) waiting.push(pool.use("busy", signal, async () => {}));
    await expect(pool.use("busy", signal, async () => {})).rejects.toThrow(/9 requests are waiting/);
    first.release();
    await Promise.all(waiting);
    await pool.close();
  });

  it("keeps nobody waiting whose request has ended", async () => {
    const pool = poolOf(0);
    const first = await pool.lease("busy", signal);
    const other = pool.use("other", signal, async () => {});
    await settle();
    const impatient = new AbortController();
    const second = pool.lease("busy", impatient.signal);
    impatient.abort(new Error("the client left"));
    await expect(second).rejects.toThrow("the client left");
    first.release();
    await other;
    await pool.close();
  });
});
