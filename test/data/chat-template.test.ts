import { describe, expect, it } from "vitest";
import { ChatTemplate, ConversationError } from "../../src/data/index.js";
import { FormatError } from "../../src/system/errors.js";

const specials = { bos: "<s>", eos: "</s>" };
const template = (source: string) => new ChatTemplate(source, specials, "model.gguf");
const TURNS = `{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}`;
const NO_SYSTEM = `{% if messages[0].role == "system" %}{{ raise_exception("no system role") }}{% endif %}${TURNS}`;
const conversation = [
  { role: "system", content: "Be brief." },
  { role: "user", content: "Hello" },
] as const;

describe("a chat template", () => {
  it("turns a conversation into a prompt, up to where the answer begins", () => {
    const chat = template(`${TURNS}{% if add_generation_prompt %}[assistant]{% endif %}`);
    expect(chat.render(conversation, { begunAnswer: true })).toBe("<s>[system]Be brief.</s>[user]Hello</s>[assistant]");
  });

  it("gets tools where there are some, and further variables", () => {
    const chat = template(`{% if tools %}{{ tools | length }} tools{% else %}none{% endif %}, {{ mode }}`);
    expect(chat.render(conversation, { tools: [{}, {}], variables: { mode: "thinking" }, begunAnswer: true })).toBe(
      "2 tools, thinking",
    );
    expect(chat.render(conversation, { variables: { mode: "plain" }, begunAnswer: true })).toBe("none, plain");
  });

  it("that has no system role gets its text before the user's", () => {
    expect(template(NO_SYSTEM).render(conversation, { begunAnswer: true })).toBe("<s>[user]Be brief.\n\nHello</s>");
  });

  it("tells what stands before answers, if anything does", () => {
    expect(template(TURNS).beforeAnswers).toBe("</s>[assistant]");
    expect(template(`{% for m in messages %}{{ m.content }} {% endfor %}`).beforeAnswers).toBeUndefined();
    expect(template(`{{ raise_exception("no") }}`).beforeAnswers).toBeUndefined();
  });

  it("that does not end is ended", () => {
    const count = (body: string) => `{% for a in range(100000) %}${body}{% endfor %}`;
    expect(() => template(count(count(count("")))).render(conversation, { begunAnswer: true })).toThrow(
      /template takes more than 1000 ms/,
    );
    expect(template(TURNS).render(conversation.slice(1), { begunAnswer: true })).toBe("<s>[user]Hello</s>");
  });

  it("that does not take the messages answers with its reason", () => {
    const refusing = template(`{{ raise_exception("roles must alternate") }}`);
    for (const messages of [conversation, conversation.slice(1)]) {
      const attempt = () => refusing.render(messages, { begunAnswer: true });
      expect(attempt).toThrow(ConversationError);
      expect(attempt).toThrow(/does not take these messages: .*roles must alternate/);
    }
  });

  it("that cannot be read is refused with the model's file", () => {
    expect(() => template("{% for m in %}")).toThrow(FormatError);
    expect(() => template("{% for m in %}")).toThrow(/^model\.gguf: its chat template cannot be read/);
  });
});
