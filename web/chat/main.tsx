import { type RefObject, render } from "preact";
import { useRef, useState } from "preact/hooks";
import { Form, Problem, Select } from "../shared/parts.js";
import { useLoaded } from "../shared/use.js";
import { listModels, loadConversation } from "./conversation.js";
import { Log } from "./log.js";
import { Parameters } from "./parameters.js";
import { useConversation } from "./use-conversation.js";
import "../shared/style.css";
import "./chat.css";

/** The service's models, and the one that answers. */
function useModels(key: string) {
  const { value: models = [], error } = useLoaded(() => listModels(key), [key]);
  const [selected, setModel] = useState("");
  const model = models.includes(selected) ? selected : (models[0] ?? "");
  return { models, model, setModel, problem: error && `The models could not be listed: ${error}` };
}

function Chat() {
  const [stored] = useState(loadConversation);
  const [settings, setSettings] = useState(stored.settings);
  const [key, setKey] = useState("");
  const [text, setText] = useState("");
  const field = useRef<HTMLTextAreaElement>(null);
  const { models, model, setModel, problem } = useModels(key);
  const conversation = useConversation({ stored: stored.turns, model, settings, key });
  const { turns, running } = conversation;
  const submit = () => {
    const content = text.trim();
    if (content === "" || running !== undefined) return;
    setText("");
    field.current?.focus();
    void conversation.ask([...turns, { role: "user", content }]);
  };
  const edit = (index: number) => {
    setText(turns[index]?.content ?? "");
    conversation.setTurns(turns.slice(0, index));
    field.current?.focus();
  };
  return (
    <>
      <header>
        <h1>Coppice</h1>
        <Select
          label="Model"
          value={model}
          choices={models.map((id) => ({ value: id, name: id }))}
          onSelect={setModel}
        />
        <button type="button" onClick={conversation.startOver}>
          New chat
        </button>
        <a href="/docs">API</a>
      </header>
      <main>
        <Parameters settings={settings} onChange={setSettings} apiKey={key} onKey={setKey} />
        <Problem>{problem}</Problem>
        <Log turns={turns} model={model} isRunning={running !== undefined} onEdit={edit} onRetry={conversation.ask} />
        <p id="status" role="status">
          {conversation.status}
        </p>
        <MessageForm field={field} text={text} onText={setText} onSubmit={submit} running={running} />
      </main>
    </>
  );
}

/** Where a message is written and sent, or the answer to the last one stopped. */
function MessageForm({
  field,
  text,
  onText,
  onSubmit,
  running,
}: {
  field: RefObject<HTMLTextAreaElement>;
  text: string;
  onText: (text: string) => void;
  onSubmit: () => void;
  running: AbortController | undefined;
}) {
  return (
    <Form class="ask" onSubmit={onSubmit}>
      <label for="text" class="hidden">
        Message
      </label>
      <textarea
        id="text"
        ref={field}
        rows={2}
        required
        placeholder="Message (Enter to send, Shift+Enter for a new line)"
        value={text}
        onInput={(event) => onText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
          event.preventDefault();
          onSubmit();
        }}
      />
      {running === undefined ? (
        <button type="submit" class="primary">
          Send
        </button>
      ) : (
        <button type="button" onClick={() => running.abort()}>
          Stop
        </button>
      )}
    </Form>
  );
}

const root = document.getElementById("app");
if (root !== null) render(<Chat />, root);
