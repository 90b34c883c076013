import { Template } from "@huggingface/jinja";
import { FormatError } from "../../system/errors.js";
import { ApiError } from "../errors.js";
import type { TemplateMessage } from "./tools.js";

/** How a model was taught to read conversations (Jinja). */
export class ChatTemplate {
  private readonly template: Template;

  /** @param file that it comes with. @throws FormatError when it is no template */
  constructor(
    readonly source: string,
    private readonly specials: { readonly bos: string; readonly eos: string },
    file: string,
  ) {
    try {
      this.template = new Template(source);
    } catch (error) {
      throw new FormatError(`${file}: its chat template is none: ${error instanceof Error ? error.message : error}`);
    }
  }

  /**
   * A conversation as the model reads it, up to where its answer begins.
   * @param variables more that the template may read
   * @throws ApiError 400 when it does not take the messages
   */
  render(
    messages: readonly TemplateMessage[],
    tools: readonly unknown[],
    variables: Readonly<Record<string, unknown>> = {},
  ): string {
    const render = (own: readonly TemplateMessage[]) =>
      this.template.render({
        ...variables,
        messages: own,
        add_generation_prompt: true,
        bos_token: this.specials.bos,
        eos_token: this.specials.eos,
        ...(tools.length > 0 && { tools }),
      });
    try {
      return render(messages);
    } catch (error) {
      const [system, user, ...rest] = messages;
      const reason = error instanceof Error ? error.message : error;
      const refused = new ApiError(400, `the model's chat template does not take these messages: ${reason}`, {
        param: "messages",
      });
      if (system?.role !== "system" || user?.role !== "user") throw refused;
      try {
        return render([{ ...user, content: `${system.content}\n\n${user.content}` }, ...rest]); // Gemma has no system
      } catch {
        throw refused;
      }
    }
  }
}
