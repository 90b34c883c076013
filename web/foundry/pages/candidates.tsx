import { Problem } from "../../shared/parts.js";
import type { Candidate, Plan } from "../api.js";
import { type CandidatesProps, candidateName, describeCandidate, lowerEnvelope, Pareto } from "../charts/pareto.js";
import { bytes } from "../format.js";
import { Panel } from "../parts.js";

/** The candidates of a plan, to choose from in a chart or in a list. */
export function CandidateChooser({
  plan,
  chosen,
  onChoose,
}: {
  plan: Plan;
} & Omit<CandidatesProps, "candidates">) {
  const fitting = plan.candidates.filter(({ fits }) => fits);
  const front = lowerEnvelope(fitting);
  const others = fitting.filter((candidate) => !front.includes(candidate));
  return (
    <Panel title="Candidates">
      {plan.best === null && <Problem>No candidate fits this device.</Problem>}
      <div class="panels">
        <figure>
          <Pareto candidates={plan.candidates} chosen={chosen} onChoose={onChoose} />
          <figcaption>
            {`${plan.device.name}: ${bytes(plan.device.usableBytes ?? 0)} usable. Each point is a size and a file type; the line joins the best trade-offs.`}
          </figcaption>
        </figure>
        <div>
          {chosen !== null && <Choice candidate={chosen} />}
          <fieldset class="choices">
            <legend>Best trade-offs, lowest loss first</legend>
            <Choices candidates={front} chosen={chosen} onChoose={onChoose} />
            {others.length > 0 && (
              <details open={chosen !== null && others.includes(chosen)}>
                <summary>All others that fit</summary>
                <Choices candidates={others} chosen={chosen} onChoose={onChoose} />
              </details>
            )}
          </fieldset>
        </div>
      </div>
    </Panel>
  );
}

/** The chosen candidate in words. */
function Choice({ candidate }: { candidate: Candidate }) {
  const { totalBytes, weightBytes, cacheBytes } = candidate.memory;
  return (
    <p class="choice" aria-live="polite">
      <strong>{candidateName(candidate)}</strong>
      {`: ${bytes(totalBytes)} of memory (${bytes(weightBytes)} weights, ${bytes(cacheBytes)} cache), about ${Math.round(candidate.tokensPerSecond)} tokens/s, expected to lose ${candidate.expectedLoss.toPrecision(2)} nats per token.`}
      {candidate.share === 1 && " Nothing needs to be cut: the model is only quantized."}
    </p>
  );
}

function Choices({ candidates, chosen, onChoose }: CandidatesProps) {
  return (
    <>
      {candidates
        .toSorted((a, b) => a.expectedLoss - b.expectedLoss)
        .map((candidate) => (
          <label key={`${candidate.kind} ${candidate.parameters}`} class="check">
            <input type="radio" name="candidate" checked={candidate === chosen} onChange={() => onChoose(candidate)} />
            {describeCandidate(candidate)}
          </label>
        ))}
    </>
  );
}
