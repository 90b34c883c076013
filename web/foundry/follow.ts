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
const RETRY_MS = 2000;
/** What comes within so many milliseconds is drawn together. */
const REDRAW_MS = 250;
/** Lines of the log that are shown: the last ones. */
const MOST_LINES = 2000;

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
  const known = useRef({ last: 0, curve: new Map<number, Point>(), lines: [] as string[] });

  useEffect(() => {
    const stop = new AbortController();
    const { signal } = stop;
    let isDue = false;
    const draw = () => {
      isDue = false;
      if (signal.aborted) return;
      const { curve, lines } = known.current;
      setPoints([...curve.values()].sort((a, b) => a.step - b.step));
      setLogs(lines.slice(-MOST_LINES));
    };
    const drawSoon = () => {
      if (!isDue) setTimeout(draw, REDRAW_MS);
      isDue = true;
    };
    const follow = async () => {
      const all = events<JobEvents>(`/v1/jobs/${id}/events?after=${known.current.last}`, { signal });
      for await (const { event, id: at, data } of all) {
        if (at !== "") known.current.last = Number(at);
        if (event === "status") setStatus(data);
        if (event === "metrics") known.current.curve.set(data.step, data);
        if (event === "log") known.current.lines.push(data.text);
        if (event === "state") known.current.lines.push(`${data.state}${data.error ? `: ${data.error}` : ""}`);
        drawSoon();
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
          await new Promise((resolve) => setTimeout(resolve, RETRY_MS)); // the service may come back
        }
    };
    void keepOn();
    return () => stop.abort();
  }, [id, isRunning]);
  return { status, points, logs, problem };
}
