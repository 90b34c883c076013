import type { Settings } from "./conversation.js";

/** Numbers of a request: their names in the API, their labels and limits. */
const NUMBERS = [
  { name: "temperature", label: "Temperature", attributes: { min: 0, max: 2, step: 0.1 } },
  { name: "top_p", label: "Top p", attributes: { min: 0.01, max: 1, step: 0.01 } },
  { name: "min_p", label: "Min p", attributes: { min: 0, max: 1, step: 0.01, placeholder: "0" } },
  { name: "top_k", label: "Top k", attributes: { min: 0, step: 1, placeholder: "all" } },
  { name: "max_tokens", label: "Max tokens", attributes: { min: 1, step: 1 } },
  { name: "seed", label: "Seed", attributes: { min: 0, step: 1, placeholder: "any" } },
] as const;

export function Parameters({
  settings,
  onChange,
  apiKey,
  onKey,
}: {
  settings: Settings;
  onChange: (settings: Settings) => void;
  apiKey: string;
  onKey: (key: string) => void;
}) {
  return (
    <details>
      <summary>Parameters</summary>
      <div class="parameters">
        {NUMBERS.map(({ name, label, attributes }) => (
          <label key={name}>
            {label}
            <input
              type="number"
              {...attributes}
              value={settings[name]}
              onInput={(event) => onChange({ ...settings, [name]: event.currentTarget.value })}
            />
          </label>
        ))}
        <label>
          API key
          <input
            type="password"
            autocomplete="off"
            placeholder="if one is needed"
            value={apiKey}
            onChange={(event) => onKey(event.currentTarget.value)}
          />
        </label>
        <label class="wide">
          System prompt
          <textarea
            rows={2}
            placeholder="How the model should behave"
            value={settings.system}
            onInput={(event) => onChange({ ...settings, system: event.currentTarget.value })}
          />
        </label>
      </div>
    </details>
  );
}
