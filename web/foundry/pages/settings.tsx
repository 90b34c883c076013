import { useState } from "preact/hooks";
import { Form, Problem } from "../../shared/parts.js";
import { messageOf, useLoaded } from "../../shared/use.js";
import { get, type Me, ServiceError, send, storedKey, storeKey } from "../api.js";
import { bytes } from "../format.js";
import { Panel } from "../parts.js";

export function Settings() {
  const { value: me, error, reload } = useLoaded(() => get<Me>("/v1/me"), []);
  return (
    <section>
      <h1>Settings</h1>
      <Panel title="Account">
        {me ? (
          <p>
            {me.name} of {me.tenant}, role {me.role}. {bytes(me.used_bytes)}
            {me.quota.max_bytes === null ? "" : ` of ${bytes(me.quota.max_bytes)}`} stored.
          </p>
        ) : (
          <Problem>{error}</Problem>
        )}
        <KeyForm onSaved={reload} />
      </Panel>
      {me && (
        <Panel title="Hub">
          <TokenForm isStored={me.hub_token} onSaved={reload} />
        </Panel>
      )}
      <p>
        <a href="/docs">API</a>
      </p>
    </section>
  );
}

/** A form for one secret, with a message when it is saved and an error when it is not. */
function SecretForm({
  label,
  button,
  initial,
  save,
}: {
  label: string;
  button: string;
  initial: string;
  /** Returns the message, and the secret that the field then has. */
  save: (secret: string) => Promise<{ readonly secret: string; readonly message: string }>;
}) {
  const [secret, setSecret] = useState(initial);
  const [message, setMessage] = useState("");
  const [problem, setProblem] = useState("");
  const submit = async () => {
    setMessage("");
    setProblem("");
    try {
      const saved = await save(secret.trim());
      setSecret(saved.secret);
      setMessage(saved.message);
    } catch (error) {
      setProblem(messageOf(error));
    }
  };
  return (
    <Form onSubmit={() => void submit()}>
      <label>
        {label}
        <input
          type="password"
          autocomplete="off"
          value={secret}
          onInput={(event) => setSecret(event.currentTarget.value)}
        />
      </label>
      <button type="submit">{button}</button>
      <p role="status">{message}</p>
      <Problem>{problem}</Problem>
    </Form>
  );
}

/** A key is kept only if the service accepts it. */
function KeyForm({ onSaved }: { onSaved: () => void }) {
  const save = async (key: string) => {
    const previous = storedKey();
    storeKey(key);
    try {
      const me = await get<Me>("/v1/me");
      onSaved();
      return {
        secret: key,
        message: key === "" ? "This tab uses no key." : `Signed in as ${me.name} of ${me.tenant}.`,
      };
    } catch (error) {
      storeKey(previous);
      if (error instanceof ServiceError && error.status === 401 && key !== "")
        throw new Error("Unknown key. To create one: coppice foundry keys add NAME");
      throw error;
    }
  };
  return <SecretForm label="API key (for this tab)" button="Use" initial={storedKey()} save={save} />;
}

function TokenForm({ isStored, onSaved }: { isStored: boolean; onSaved: () => void }) {
  const save = async (token: string) => {
    if (token === "") await send("DELETE", "/v1/hub-token");
    else await send("PUT", "/v1/hub-token", { token });
    onSaved();
    return { secret: "", message: token === "" ? "Deleted." : "Saved, encrypted." };
  };
  const label = isStored ? "Hub token (one is stored; save an empty one to delete it)" : "Hub token";
  return <SecretForm label={label} button="Save" initial="" save={save} />;
}
