import { describe, expect, it } from "vitest";
import { recoveredShare, recoveryText } from "../../src/jobs/recovery.js";

const losses = (teacher: number, pruned: number, student: number, correctedTeacher?: number) => ({
  teacher: { loss: teacher },
  pruned: { loss: pruned },
  student: { loss: student },
  ...(correctedTeacher === undefined ? {} : { correctedTeacher: { loss: correctedTeacher } }),
});

describe("what distillation won back", () => {
  it("is a share of what pruning cost", () => {
    expect(recoveredShare(losses(2, 3, 2.25))).toBeCloseTo(0.75, 12);
    expect(recoveryText(losses(2, 3, 2.25), false)).toMatch(/won back 75 % of the loss that pruning cost/);
    expect(recoveryText(losses(2, 3, 2.25), true)).toMatch(/75 % of the loss that the last round's cut/);
  });

  it("is counted from the teacher that was distilled from", () => {
    expect(recoveredShare(losses(2.5, 2.35, 2.25, 2.15))).toBeCloseTo(0.5, 12);
  });

  it("is no share where pruning cost nothing", () => {
    expect(recoveredShare(losses(2.5, 2.35, 2.25))).toBeUndefined();
    expect(recoveryText(losses(2.5, 2.35, 2.25), false)).toMatch(/lowered the loss by 0.1000 nats/);
    expect(recoveryText(losses(2, 2, 2), false)).not.toMatch(/NaN|Infinity/);
  });

  it("is told from a loss that training made worse", () => {
    for (const models of [losses(2, 3, 3.1), losses(2.5, 2.35, 2.4)])
      expect(recoveryText(models, false)).toMatch(/worse than its start/);
    expect(recoveryText({ student: { loss: 1 } }, false)).toBeUndefined();
  });
});
