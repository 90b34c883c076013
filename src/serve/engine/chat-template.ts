import { Template } from "@huggingface/jinja";
import { FormatError } from "../../system/errors.js";
import { ApiError } from "../errors.js";
import type { TemplateMessage } from "./tools.js";
import { MOST_MILLISECONDS, withinTime } from "./within-time.js";

/** Templates come with models, from anybody, and may loop for ever. */
const tooSlow = (): ApiError =>
  new ApiError(400, `the model's chat template takes more than ${MOST_MILLISECONDS} ms`, { param: "model" });

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
      return withinTime(() => render(messages), tooSlow);
    } catch (error) {
      if (error instanceof ApiError) throw error;
      const [system, user, ...rest] = messages;
      const reason = error instanceof Error ? error.message : error;
      const refused = new ApiError(400, `the model's chat template does not take these messages: ${reason}`, {
        param: "messages",
      });
      if (system?.role !== "system" || user?.role !== "user") throw refused;
      try {
        return withinTime(
          () => render([{ ...user, content: `${system.content}\n\n${user.content}` }, ...rest]),
          tooSlow,
        ); // Gemma has no system
      } catch {
        throw refused;
      }
    }
  }
}
