import { createContext, Script } from "node:vm";
import { Template } from "@huggingface/jinja";
import { FormatError } from "../../system/errors.js";
import { ApiError } from "../errors.js";
import type { TemplateMessage } from "./tools.js";

/** Templates come with models, from anybody, and may loop for ever; real ones take a few milliseconds. */
const MOST_MILLISECONDS = 1000;

const limited = createContext({ work: undefined as (() => unknown) | undefined });
const script = new Script("work()");

/** Runs something that does not wait, and ends it where it takes too long. */
function withinTime<T>(work: () => T): T {
  limited.work = work;
  try {
    return script.runInContext(limited, { timeout: MOST_MILLISECONDS }) as T;
  } finally {
    limited.work = undefined;
  }
}

/** The error is of the script's own context, and so no instance of this one's class. */
const isTimeout = (error: unknown): boolean =>
  (error as { readonly code?: unknown } | null)?.code === "ERR_SCRIPT_EXECUTION_TIMEOUT";

/** A model's chat template (Jinja), which turns a conversation into a prompt. */
export class ChatTemplate {
  private readonly template: Template;

  /** @param file the model's, for errors @throws FormatError when the template cannot be read */
  constructor(
    readonly source: string,
    private readonly specials: { readonly bos: string; readonly eos: string },
    file: string,
  ) {
    try {
      this.template = new Template(source);
    } catch (error) {
      throw new FormatError(
        `${file}: its chat template cannot be read: ${error instanceof Error ? error.message : error}`,
      );
    }
  }

  /**
   * The text of a conversation up to where the model's answer begins.
   * @param variables more variables of the template
   * @throws ApiError 400 when the template does not take the messages
   */
  render(
    messages: readonly TemplateMessage[],
    tools: readonly unknown[],
    variables: Readonly<Record<string, unknown>> = {},
  ): string {
    const { bos, eos } = this.specials;
    const render = (list: readonly TemplateMessage[]) => {
      const context = { ...variables, messages: list, add_generation_prompt: true, bos_token: bos, eos_token: eos };
      return this.template.render(tools.length > 0 ? { ...context, tools } : context);
    };
    try {
      return withinTime(() => render(messages));
    } catch (error) {
      if (isTimeout(error))
        throw new ApiError(400, `the model's chat template takes more than ${MOST_MILLISECONDS} ms`, {
          param: "model",
        });
      const [system, user, ...rest] = messages;
      const reason = error instanceof Error ? error.message : error;
      const refused = new ApiError(400, `the model's chat template does not take these messages: ${reason}`, {
        param: "messages",
      });
      if (system?.role !== "system" || user?.role !== "user") throw refused;
      try {
        return withinTime(() => render([{ ...user, content: `${system.content}\n\n${user.content}` }, ...rest])); // Gemma has no system
      } catch {
        throw refused;
      }
    }
  }
}
