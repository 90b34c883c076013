import { useEffect, useRef, useState } from "preact/hooks";
import { messageOf } from "../shared/use.js";
import { events, type JobStatus, type Point, ServiceError } from "./api.js";

/** A job's events. */
type JobEvents = {
  readonly status: JobStatus;
  readonly state: { readonly state: string; readonly error?: string };
  readonly stage: { readonly stage: string };
  readonly metrics: Point;
  readonly log: { readonly text: string };
  readonly end: { readonly state: string };
};

/** Milliseconds until a stream that broke off is opened again. */
const RETRY_MILLISECONDS = 2000;
/** Events that arrive within so many milliseconds are drawn together. */
const REDRAW_MILLISECONDS = 250;
/** Only so many lines of the log are shown: the last ones. */
const MAX_LINES = 2000;

/** What a job's events have shown so far. */
export interface JobFeed {
  readonly status: JobStatus | undefined;
  readonly points: readonly Point[];
  readonly logs: readonly string[];
  readonly problem: string;
}

/** Follows a job's events from the first one on, and opens the stream again when it breaks off. */
export function useJobFeed(id: string, isRunning: boolean, onEnd: () => void): JobFeed {
  const [status, setStatus] = useState<JobStatus>();
  const [points, setPoints] = useState<readonly Point[]>([]);
  const [logs, setLogs] = useState<readonly string[]>([]);
  const [problem, setProblem] = useState("");
  const received = useRef({ lastId: 0, curve: new Map<number, Point>(), lines: [] as string[] });

  useEffect(() => {
    const abort = new AbortController();
    const { signal } = abort;
    let isDrawDue = false;
    const draw = () => {
      isDrawDue = false;
      if (signal.aborted) return;
      const { curve, lines } = received.current;
      setPoints([...curve.values()].sort((a, b) => a.step - b.step));
      setLogs(lines.slice(-MAX_LINES));
    };
    const drawSoon = () => {
      if (!isDrawDue) setTimeout(draw, REDRAW_MILLISECONDS);
      isDrawDue = true;
    };
    const follow = async () => {
      const { current } = received;
      const stream = events<JobEvents>(`/v1/jobs/${id}/events?after=${current.lastId}`, { signal });
      for await (const { event, id: eventId, data } of stream) {
        if (eventId !== "") current.lastId = Number(eventId);
        if (event === "status") setStatus(data);
        if (event === "metrics") current.curve.set(data.step, data);
        if (event === "log") current.lines.push(data.text);
        if (event === "state") current.lines.push(`${data.state}${data.error ? `: ${data.error}` : ""}`);
        drawSoon();
        if (event === "end") return onEnd();
      }
      throw new Error("the service closed the connection");
    };
    const followAndRetry = async () => {
      for (;;)
        try {
          return await follow();
        } catch (error) {
          if (signal.aborted) return;
          if (error instanceof ServiceError) return setProblem(messageOf(error));
          await new Promise((resolve) => setTimeout(resolve, RETRY_MILLISECONDS)); // the service may come back
        }
    };
    void followAndRetry();
    return () => abort.abort();
  }, [id, isRunning]);
  return { status, points, logs, problem };
}
