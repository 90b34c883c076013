import { useEffect, useRef, useState } from "preact/hooks";
import { messageOf } from "../shared/use.js";
import { events, type JobStatus, type Point, Refused } from "./api.js";

/** What happens to a job. */
type JobEvents = {
  readonly status: JobStatus;
  readonly state: { readonly state: string; readonly error?: string };
  readonly stage: { readonly stage: string };
  readonly metrics: Point;
  readonly log: { readonly text: string };
  readonly end: { readonly state: string };
};

/** Milliseconds before a stream that broke off is asked for again. */
const AGAIN = 2000;
/** Points that come within so many milliseconds are drawn together. */
const DRAW = 250;

/** What was heard of a job so far. */
export interface Followed {
  readonly status: JobStatus | undefined;
  readonly points: readonly Point[];
  readonly logs: readonly string[];
  readonly problem: string;
}

/** Follows what happens to a job, from its beginning on. A stream that breaks off is gone on with. */
export function useFollowed(id: string, isRunning: boolean, onEnd: () => void): Followed {
  const [status, setStatus] = useState<JobStatus>();
  const [points, setPoints] = useState<readonly Point[]>([]);
  const [logs, setLogs] = useState<readonly string[]>([]);
  const [problem, setProblem] = useState("");
  const known = useRef({ last: 0, curve: new Map<number, Point>() });

  useEffect(() => {
    const stop = new AbortController();
    const { signal } = stop;
    let isDue = false;
    const draw = () => {
      isDue = false;
      if (!signal.aborted) setPoints([...known.current.curve.values()].sort((a, b) => a.step - b.step));
    };
    const follow = async () => {
      const all = events<JobEvents>(`/v1/jobs/${id}/events?after=${known.current.last}`, { signal });
      for await (const { event, id: at, data } of all) {
        if (at !== "") known.current.last = Number(at);
        if (event === "status") setStatus(data);
        if (event === "metrics") {
          known.current.curve.set(data.step, data);
          if (!isDue) setTimeout(draw, DRAW);
          isDue = true;
        }
        if (event === "log") setLogs((before) => [...before, data.text]);
        if (event === "state") setLogs((before) => [...before, `${data.state}${data.error ? `: ${data.error}` : ""}`]);
        if (event === "end") return onEnd();
      }
      throw new Error("the service ended the connection");
    };
    const keepOn = async () => {
      for (;;)
        try {
          return await follow();
        } catch (failed) {
          if (signal.aborted) return;
          if (failed instanceof Refused) return setProblem(messageOf(failed));
          await new Promise((resolve) => setTimeout(resolve, AGAIN)); // the service may come back
        }
    };
    void keepOn();
    return () => stop.abort();
  }, [id, isRunning]);
  return { status, points, logs, problem };
}
