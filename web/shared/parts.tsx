import type { ComponentChildren } from "preact";

/** An error message, where the error occurred; nothing without one. */
export function Problem({ children }: { children: ComponentChildren }) {
  if (children === undefined || children === null || children === "") return null;
  return (
    <p class="error" role="alert">
      {children}
    </p>
  );
}

/** A form that is handled by a function instead of loading a page. */
export function Form({
  class: className,
  onSubmit,
  children,
}: {
  class?: string | undefined;
  onSubmit: () => void;
  children: ComponentChildren;
}) {
  return (
    <form
      class={className}
      onSubmit={(event) => {
        event.preventDefault();
        onSubmit();
      }}
    >
      {children}
    </form>
  );
}

export interface Choice {
  readonly value: string;
  readonly name: string;
}

/** A labelled list to choose from. */
export function Select({
  label,
  value,
  choices,
  onSelect,
}: {
  label: string;
  value: string | undefined;
  choices: readonly Choice[];
  onSelect: (value: string) => void;
}) {
  return (
    <label>
      {label}
      <select value={value} onChange={(event) => onSelect(event.currentTarget.value)}>
        {choices.map((choice) => (
          <option key={choice.value} value={choice.value}>
            {choice.name}
          </option>
        ))}
      </select>
    </label>
  );
}
