import { Template } from "@huggingface/jinja";
import { CoppiceError, FormatError } from "../system/errors.js";
import { MOST_MILLISECONDS, withinTime } from "../system/within-time.js";

/** A message of a conversation, as templates take it: its role and content, and whatever else it has. */
export type TemplateMessage = Readonly<Record<string, unknown>>;

/** A template does not take a conversation. */
export class ConversationError extends CoppiceError {
  /** @param fault where it lies: the messages, or a template that takes too long */
  constructor(
    message: string,
    readonly fault: "messages" | "template",
  ) {
    super(message);
  }
}

/** Templates come with models, from anybody, and may loop for ever. */
const tooSlow = (): ConversationError =>
  new ConversationError(`the model's chat template takes more than ${MOST_MILLISECONDS} ms`, "template");

/** What a conversation is rendered with. */
export interface TemplateOptions {
  /** Tools that the model may call. */
  readonly tools?: readonly unknown[] | undefined;
  /** More variables of the template. */
  readonly variables?: Readonly<Record<string, unknown>> | undefined;
  /** Whether the text goes on to where the model's answer begins. */
  readonly begunAnswer: boolean;
}

/** A model's chat template (Jinja), which turns a conversation into a text. */
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

  /** The text of a conversation. @throws ConversationError when the template does not take the messages */
  render(messages: readonly TemplateMessage[], { tools = [], variables = {}, begunAnswer }: TemplateOptions): string {
    const { bos, eos } = this.specials;
    const render = (list: readonly TemplateMessage[]) => {
      const context = {
        ...variables,
        messages: list,
        add_generation_prompt: begunAnswer,
        bos_token: bos,
        eos_token: eos,
      };
      return this.template.render(tools.length > 0 ? { ...context, tools } : context);
    };
    try {
      return withinTime(() => render(messages), tooSlow);
    } catch (error) {
      if (error instanceof ConversationError) throw error;
      const [system, user, ...rest] = messages;
      const reason = error instanceof Error ? error.message : error;
      const refused = new ConversationError(
        `the model's chat template does not take these messages: ${reason}`,
        "messages",
      );
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

  /**
   * What stands between a question and its answer: a text that has it is a conversation.
   * @returns undefined where the template says nothing there, or does not take such a conversation
   */
  get beforeAnswers(): string | undefined {
    const [question, answer] = ["a1question", "b2answer"];
    try {
      const text = this.render(
        [
          { role: "user", content: question },
          { role: "assistant", content: answer },
        ],
        { begunAnswer: false },
      );
      const between = text.slice(text.lastIndexOf(question) + question.length, text.lastIndexOf(answer));
      return text.includes(question) && text.includes(answer) && between.trim() !== "" ? between : undefined;
    } catch {
      return undefined;
    }
  }
}
