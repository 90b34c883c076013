import { useEffect, useRef, useState } from "preact/hooks";
import { messageOf } from "../shared/use.js";
import { type AnswerPart, type Settings, saveConversation, streamAnswer, type Turn } from "./conversation.js";

export interface ConversationOptions {
  /** The turns to begin with. */
  readonly stored: readonly Turn[];
  readonly model: string;
  readonly settings: Settings;
  /** The API key; empty for none. */
  readonly key: string;
}

/** The turns of a conversation, the answer under way, and how fast it comes. */
export function useConversation({ stored, model, settings, key }: ConversationOptions) {
  const [turns, setTurns] = useState(stored);
  const [status, setStatus] = useState("");
  const [running, setRunning] = useState<AbortController>();
  useSaving(turns, settings, running !== undefined);
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => event.key === "Escape" && running?.abort();
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, [running]);
  /** The request whose answer is shown. A new chat leaves the old one unseen. */
  const shown = useRef<AbortController>();
  /** Requests the answer to the last turn, which is the user's. */
  const ask = async (history: readonly Turn[]) => {
    const abort = new AbortController();
    shown.current = abort;
    setRunning(abort);
    const isShown = () => shown.current === abort;
    const show = (content: string, error?: string) =>
      isShown() && setTurns([...history, { role: "assistant", content, error }]);
    show("");
    let text = "";
    try {
      const answer = streamAnswer({ turns: history, model, settings, key, signal: abort.signal });
      const speed = await timed(answer, (part) => {
        text += part;
        show(text);
      });
      if (isShown()) setStatus(speed);
    } catch (error) {
      if (!abort.signal.aborted) show(text, messageOf(error));
      else if (text === "") show("", "Stopped before the first word.");
      if (abort.signal.aborted && isShown()) setStatus("Stopped.");
    } finally {
      if (isShown()) setRunning(undefined);
    }
  };
  const startOver = () => {
    shown.current = undefined;
    running?.abort();
    setRunning(undefined);
    setTurns([]);
    setStatus("");
  };
  return { turns, setTurns, status, running, ask, startOver };
}

/** Stores the conversation in the tab: not with every token, but when an answer ends and when the page is left. */
function useSaving(turns: readonly Turn[], settings: Settings, isRunning: boolean): void {
  useEffect(() => {
    const save = () => saveConversation(turns, settings);
    if (!isRunning) save();
    addEventListener("pagehide", save);
    return () => removeEventListener("pagehide", save);
  }, [turns, settings, isRunning]);
}

/** Passes on an answer's text. @returns its speed, in words */
async function timed(answer: AsyncIterable<AnswerPart>, onText: (text: string) => void): Promise<string> {
  const began = performance.now();
  let first: number | undefined;
  let count = 0;
  for await (const { text, tokens } of answer) {
    if (text !== "") first ??= performance.now();
    count = tokens;
    onText(text);
  }
  const seconds = Math.max((performance.now() - (first ?? began)) / 1000, 1e-3);
  const wait = first === undefined ? "" : `, first token after ${Math.round(first - began)} ms`;
  return `${count} tokens, ${(count / seconds).toFixed(1)} tokens/s${wait}`;
}
