import { useEffect, useRef } from "preact/hooks";
import { copyText, showCopied } from "../shared/browser.js";
import { Markdown } from "../shared/markdown.js";
import { Problem } from "../shared/parts.js";
import { Scrollable } from "../shared/scrollable.js";
import type { Turn } from "./conversation.js";

/** The log scrolls along with new text while it is scrolled to within so many pixels of its end. */
const NEAR_END = 80;

/** The turns of a conversation. */
export function Log({
  turns,
  model,
  isRunning,
  onEdit,
  onRetry,
}: {
  turns: readonly Turn[];
  model: string;
  isRunning: boolean;
  onEdit: (index: number) => void;
  onRetry: (turns: readonly Turn[]) => Promise<void>;
}) {
  const element = useRef<HTMLDivElement>(null);
  const isAtEnd = useRef(true);
  useEffect(() => {
    if (isAtEnd.current && element.current !== null) element.current.scrollTop = element.current.scrollHeight;
  }, [turns]);
  const lastQuestion = turns.findLastIndex(({ role }) => role === "user");
  const isLast = (i: number) => i === turns.length - 1;
  const retry = lastQuestion < 0 || isRunning ? undefined : () => void onRetry(turns.slice(0, lastQuestion + 1));
  return (
    <Scrollable
      class="log"
      ref={element}
      role="log"
      aria-live="polite"
      aria-busy={isRunning}
      aria-label="Conversation"
      onScroll={({ currentTarget: { scrollHeight, scrollTop, clientHeight } }) => {
        isAtEnd.current = scrollHeight - scrollTop - clientHeight < NEAR_END;
      }}
    >
      {turns.length === 0 && (
        <p class="quiet start">Messages are sent only to this service and stored only in this tab.</p>
      )}
      {turns.map((turn, i) => (
        <TurnView
          key={i}
          turn={turn}
          name={turn.role === "user" ? "You" : model}
          isWriting={isRunning && isLast(i)}
          onEdit={turn.role === "user" && !isRunning ? () => onEdit(i) : undefined}
          onRetry={isLast(i) && i > lastQuestion ? retry : undefined}
        />
      ))}
    </Scrollable>
  );
}

/** One turn, with buttons for what can be done with it. */
function TurnView({
  turn: { role, content, error },
  name,
  isWriting,
  onEdit,
  onRetry,
}: {
  turn: Turn;
  name: string;
  isWriting: boolean;
  onEdit: (() => void) | undefined;
  onRetry: (() => void) | undefined;
}) {
  const copy = (button: HTMLElement) => void copyText(content).then((isCopied) => showCopied(button, isCopied));
  return (
    <article class={`${role}${error === undefined ? "" : " error"}`} aria-busy={isWriting}>
      <h2>{name}</h2>
      {role === "user" ? <p class="as-written">{content}</p> : <Markdown text={content} />}
      {isWriting && content === "" && <p class="quiet">…</p>}
      <Problem>{error}</Problem>
      <div class="row">
        {role === "assistant" && !isWriting && content !== "" && (
          <button type="button" class="plain" onClick={(event) => copy(event.currentTarget)}>
            Copy
          </button>
        )}
        {onEdit && (
          <button type="button" class="plain" onClick={onEdit}>
            Edit
          </button>
        )}
        {onRetry && (
          <button type="button" class="plain" onClick={onRetry}>
            Retry
          </button>
        )}
      </div>
    </article>
  );
}
